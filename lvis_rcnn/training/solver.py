"""Optimizers, budgets and learning rates; the rate is a pure function of the step, so nothing of it is saved."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lvis_rcnn.config.schema import Evaluation, Schedule
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataset.checks import Problem
from lvis_rcnn.system.cli import InputError

# Every process counts the epochs of a run one by one, 20 microseconds each.
MOST_EPOCHS = 100_000


def warmup_factor(step: int, warmup_steps: int, start_factor: float) -> float:
    """Linear warm-up from ``start_factor`` at step 0 to 1 at the last of ``warmup_steps``, then 1.

    MMDetection 3.3.0 (mmengine's LinearLR of begin 0 and end ``warmup_steps``); 2.x reached 1 one step later.
    """
    if step >= warmup_steps:
        return 1.0
    return start_factor + (1 - start_factor) * step / max(warmup_steps - 1, 1)


def step_factor(step: int, steps: int, decay_at_steps: Sequence[int], decay_factor: float) -> float:
    """``decay_factor`` to the power of the milestones that have been reached."""
    return float(decay_factor ** sum(step >= milestone for milestone in decay_at_steps))


def one_cycle_factor(step: int, steps: int, decay_at_steps: Sequence[int], decay_factor: float) -> float:
    """Half a cosine from 1 at step 0 to 0 at ``steps`` (the annealing of Smith and Topin 2017, as PyTorch does it)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


POLICIES: dict[str, Callable[[int, int, Sequence[int], float], float]] = {
    "step": step_factor,
    "one_cycle": one_cycle_factor,
}


def scaled_learning_rate(learning_rate: float, images_per_step: int, learning_rate_images: int | None) -> float:
    """Linear scaling of a rate for steps of ``learning_rate_images`` (Goyal et al. 2017, arXiv 1706.02677)."""
    # The ratio first: where both are equal the rate keeps its last bit.
    return learning_rate if learning_rate_images is None else learning_rate * (images_per_step / learning_rate_images)


@dataclass(frozen=True)
class Recipe:
    """Sample stream, schedule and number of optimizer steps of a run; made by :func:`make_recipe`."""

    steps: int
    schedule: Schedule
    stream: SampleStream

    @property
    def images_per_step(self) -> int:
        """Images of a step; the last one of an epoch may have fewer."""
        return self.schedule.images_per_step

    @property
    def images_seen(self) -> int:
        """Images of the whole run, with repetitions."""
        return self.stream.images_before_step(self.steps)

    @property
    def epoch_length(self) -> int:
        """Images in the oversampled list of the first epoch."""
        return int(self.stream.copies_of_epoch(0).sum())

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps of the first epoch; with stochastic rounding others differ slightly."""
        return self.stream.steps_before_epoch(1)

    @property
    def epochs(self) -> float:
        """Passes over the oversampled list."""
        return self.epochs_after(self.steps)

    def epochs_after(self, steps: int) -> float:
        """Passes over the oversampled list after so many steps."""
        whole = self.stream.epoch_of_step(steps)
        first, end = self.stream.steps_before_epoch(whole), self.stream.steps_before_epoch(whole + 1)
        return whole + (steps - first) / (end - first)

    @property
    def peak_learning_rate(self) -> float:
        """The rate after warm-up and before any decay."""
        return scaled_learning_rate(
            self.schedule.learning_rate, self.images_per_step, self.schedule.learning_rate_images
        )

    def learning_rate(self, step: int) -> float:
        """Learning rate of a 0-based step: the peak times warm-up times a row of ``POLICIES``."""
        schedule = self.schedule
        warmup = warmup_factor(step, schedule.warmup_steps, schedule.warmup_start_factor)
        decay_at_steps = [self.stream.steps_before_epoch(epoch) for epoch in schedule.decay_at_epochs]
        decay = POLICIES[schedule.policy](step, self.steps, decay_at_steps, schedule.decay_factor)
        return self.peak_learning_rate * warmup * decay

    @property
    def sentence(self) -> str:
        """The budget in steps and in images, and the learning rate, as text."""
        return (
            f"{self.steps:,} steps of {self.images_per_step} images, {self.images_seen:,} images seen in "
            f"{self.epochs:.2f} epochs; {self.rate_sentence}"
        )

    @property
    def rate_sentence(self) -> str:
        """The peak learning rate, and how it was scaled, as text."""
        given, images = self.schedule.learning_rate, self.schedule.learning_rate_images
        if images in (None, self.images_per_step):
            return f"learning rate {given:g}"
        return (
            f"learning rate {self.peak_learning_rate:g}: {given:g} is for steps of {images} images and is scaled "
            f"linearly to {self.images_per_step}"
        )


def make_recipe(schedule: Schedule, stream: SampleStream) -> Recipe:
    """Resolve the budget of a schedule on the epochs of a stream; InputError where they are too many to be counted."""
    epochs = schedule.epochs or (schedule.steps or 0) / max(stream.steps_before_epoch(1), 1)
    if epochs > MOST_EPOCHS:
        key = "epochs" if schedule.epochs else "steps"
        allowed = f"at most {MOST_EPOCHS:,} epochs"
        raise InputError(f"schedule.{key}", f"is {epochs:,.0f} passes over the data", allowed=allowed, fix="lower it")
    if schedule.steps is not None:
        return Recipe(schedule.steps, schedule, stream)
    assert schedule.epochs is not None
    return Recipe(stream.steps_before_epoch(schedule.epochs), schedule, stream)


def kept_steps(recipe: Recipe, evaluation: Evaluation) -> frozenset[int]:
    """Steps after which weights are kept to be scored, those beyond the last among them."""
    of_epochs = map(recipe.stream.steps_before_epoch, evaluation.score_at_epochs)
    return frozenset((*of_epochs, *evaluation.score_at_steps))


def point_errors(recipe: Recipe, evaluation: Evaluation) -> Iterator[Problem]:
    """Steps beyond the last, which the study alone does not tell where its budget is in epochs."""
    for step in sorted(kept_steps(recipe, evaluation)):
        if step > recipe.steps:
            what = f"names step {step:,}, where no weights are"
            yield Problem("evaluation.score_at_steps", what, f"up to {recipe.steps:,}, the last step", "lower it")


def sgd(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with momentum: the recipe's."""
    return torch.optim.SGD(
        parameters,
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        fused=True,
    )


def adamw(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)


# Fused: one pass over all weights, and the only form that reads ``found_inf``.
OPTIMIZERS = {"sgd": sgd, "adamw": adamw}
