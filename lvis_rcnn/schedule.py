"""Budgets and learning rates as pure functions of the step, so that resuming is arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvis_rcnn.config import Schedule


def steps_in_epoch(epoch_length: int, images_per_step: int) -> int:
    """Optimizer steps that see ``epoch_length`` images at least once."""
    return math.ceil(epoch_length / images_per_step)


def total_steps(steps: int | None, epochs: int | None, epoch_length: int, images_per_step: int) -> int:
    """The budget in optimizer steps; exactly one of ``steps`` and ``epochs`` is given."""
    if steps is not None:
        return steps
    assert epochs is not None
    return epochs * steps_in_epoch(epoch_length, images_per_step)


def warmup_factor(step: int, warmup_steps: int, start_factor: float) -> float:
    """Linear warm-up of mmcv 1.x (``lr_updater.py``): ``1 - (1 - step / warmup_steps) (1 - start_factor)``, then 1."""
    if step >= warmup_steps:
        return 1.0
    return 1 - (1 - step / warmup_steps) * (1 - start_factor)


def step_factor(step: int, steps: int, decay_at_steps: Sequence[int], decay_factor: float) -> float:
    """``decay_factor`` for each milestone that has been reached."""
    return float(decay_factor ** sum(step >= milestone for milestone in decay_at_steps))


def one_cycle_factor(step: int, steps: int, decay_at_steps: Sequence[int], decay_factor: float) -> float:
    """Half a cosine from 1 at step 0 to 0 at ``steps`` (the annealing of Smith and Topin 2017, as PyTorch does it)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


POLICIES: dict[str, Callable[[int, int, Sequence[int], float], float]] = {
    "step": step_factor,
    "one_cycle": one_cycle_factor,
}


def learning_rate(
    step: int,
    *,
    peak: float,
    policy: str,
    steps: int,
    warmup_steps: int,
    warmup_start_factor: float,
    decay_at_steps: Sequence[int],
    decay_factor: float,
) -> float:
    """Learning rate of a 0-based optimizer step: peak times warm-up times a row of ``POLICIES``."""
    warmup = warmup_factor(step, warmup_steps, warmup_start_factor)
    return peak * warmup * POLICIES[policy](step, steps, decay_at_steps, decay_factor)


@dataclass(frozen=True)
class Recipe:
    """What one run does, with every count resolved to optimizer steps."""

    steps: int
    images_per_step: int
    epoch_length: int
    """Images of one pass over the oversampled list."""
    schedule: Schedule

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps of one pass over the oversampled list."""
        return steps_in_epoch(self.epoch_length, self.images_per_step)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a 0-based step."""
        return learning_rate(
            step,
            peak=self.schedule.learning_rate,
            policy=self.schedule.policy,
            steps=self.steps,
            warmup_steps=self.schedule.warmup_steps,
            warmup_start_factor=self.schedule.warmup_start_factor,
            decay_at_steps=[epoch * self.steps_in_epoch for epoch in self.schedule.decay_at_epochs],
            decay_factor=self.schedule.decay_factor,
        )


def make_recipe(schedule: Schedule, epoch_length: int) -> Recipe:
    """Resolve the budget of a schedule for an epoch of ``epoch_length`` images."""
    steps = total_steps(schedule.steps, schedule.epochs, epoch_length, schedule.images_per_step)
    return Recipe(steps, schedule.images_per_step, epoch_length, schedule)
