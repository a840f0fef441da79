"""One gradient step: the losses of its groups, one sum over all processes, and an update that nothing infinite passes.

The host asks the device for nothing during a step: losses, norm and the flag that gated the update are read when the
next step has been given to it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.dataloader.seeds import losses_seed
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, MaskRcnn, losses
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.distributed import HANG_S, Ranks
from lvis_rcnn.training.setup import SMALLER, Training, peak_memory_bytes
from lvis_rcnn.training.solver import Recipe

POLL_S = 2e-4  # of a step of some 0.1 s


class OnItsWay:
    """Numbers of a device on their way to the host; to read them waits for what made them, not for later work."""

    def __init__(self, values: torch.Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.values = values.detach()
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values.detach(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> torch.Tensor:
        """The numbers; TimeoutError if they do not come within ``HANG_S``."""
        deadline = time.monotonic() + HANG_S
        while self.event is not None and not self.event.query():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the device has not ended a step in {HANG_S:.0f} s")
            time.sleep(POLL_S)
        return self.values


@dataclass(frozen=True)
class Taken:
    """A step that was given to the device."""

    step: int
    sums: OnItsWay
    """Losses of the whole step, processes that ask to stop, broken images that were replaced, norm of the gradient."""
    of_groups: OnItsWay
    """Losses of each group of this process."""
    image_ids: list[list[int]]
    """Of those groups."""

    def values(self) -> tuple[dict[str, float], bool, int]:
        """Losses and ``grad_norm``, whether to stop, and how many images others stood in for.

        Raises:
            InputError: one of them is not finite; the step has then not touched the weights.
        """
        *parts, stop, skipped, norm = self.sums.read().tolist()
        found = {**dict(zip(LOSS_NAMES, parts, strict=True)), "grad_norm": norm}
        if not all(map(math.isfinite, found.values())):
            raise self.not_finite(found)
        return found, stop > 0, int(skipped)

    def not_finite(self, found: dict[str, float]) -> InputError:
        """The error that names the images of the groups whose loss it is, as far as they are this process's."""
        culprits = {
            name: images
            for values, images in zip(self.of_groups.read().tolist(), self.image_ids, strict=True)
            for name, value in zip(LOSS_NAMES, values, strict=True)
            if not math.isfinite(value)
        }
        wrong = {name: value for name, value in found.items() if not math.isfinite(value)}
        of_losses = {name: value for name, value in wrong.items() if name in LOSS_NAMES}
        bad = [f"{name} = {value}" for name, value in (of_losses or wrong).items()]
        images = dict.fromkeys(image for group in culprits.values() for image in group)
        where = f", images {', '.join(map(str, images))}" if images else ""
        return InputError(
            f"step {self.step}{where}",
            f"{'loss' if of_losses else 'gradient'} is not finite: {', '.join(bad)}",
            fix="lower schedule.learning_rate, or set schedule.gradient_clip_norm (35 is usual)",
        )


def take_step(
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    groups: list[Batch],
    step: int,
    seed: int,
    recipe: Recipe,
    ranks: Ranks,
    *,
    precision: str,
    stop: bool = False,
) -> Taken:
    """One optimizer step on this process's share of a step's normalisation groups.

    Weights and optimizer stay as they are where a loss or the gradient is not finite, in all processes alike.

    Raises:
        RankLost: another process did not take part.
    """
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(step)
    optimizer.zero_grad(set_to_none=True)
    num_groups = recipe.stream.groups_per_step
    numbers = ranks.share_of(num_groups)
    of_groups = add_gradients(model, groups, numbers, num_groups, step, seed, precision)
    parameters = [value for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    gradients = [value.grad for value in parameters]
    told = of_groups.new_tensor([float(stop), float(sum(len(batch.broken) for batch in groups))])
    sums = ranks.add_up(gradients, torch.cat([of_groups.sum(dim=0) / num_groups, told]), step)
    norm = torch.nn.utils.get_total_norm(gradients)
    if recipe.schedule.gradient_clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.schedule.gradient_clip_norm, norm)
    sums = torch.cat([sums, norm[None]])
    # How PyTorch's own GradScaler keeps an update from happening without asking the device.
    optimizer.grad_scale, optimizer.found_inf = None, (~sums.isfinite().all()).float()  # type: ignore[attr-defined]
    optimizer.step()
    return Taken(step, OnItsWay(sums), OnItsWay(of_groups), [batch.image_ids for batch in groups])


def add_gradients(
    model: MaskRcnn,
    groups: Sequence[Batch],
    numbers: range,
    num_groups: int,
    step: int,
    seed: int,
    precision: str = "fp32",
) -> Float[torch.Tensor, "groups losses"]:
    """Add to the gradient what some of a step's groups contribute to it; returns the losses of each.

    A step of 16 images is 8 groups of 2, each with its own divisors, and its gradient is the mean of theirs, as that of
    8 GPUs in the published runs. Random numbers depend on (seed, step, group), so it does not matter which process
    takes which groups: their sums are the whole.

    Args:
        model: in training mode.
        groups: the batches to add.
        numbers: their places in the step.
        num_groups: groups of the whole step.
        step: 0-based optimizer step.
        seed: of the run.
        precision: fp32, or bf16 for convolutions and products in bfloat16; losses are float32 either way.
    """
    device = next(model.parameters()).device
    found = []
    for number, batch in zip(numbers, groups, strict=True):
        generator = torch.manual_seed(losses_seed(seed, step, number))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts = losses(model, batch, random_choice(generator))
        whole = torch.stack([parts[name].float() for name in LOSS_NAMES])
        (whole.sum() / num_groups).backward()
        found.append(whole.detach())
    return torch.stack(found) if found else torch.zeros(0, len(LOSS_NAMES), device=device)


def step_within_memory(training: Training, groups: list[Batch], step: int, stop: bool) -> Taken:
    """One step; InputError where the device has not enough memory for it."""
    run, ranks = training.run, training.ranks
    try:
        return take_step(
            training.model,
            training.optimizer,
            groups,
            step,
            run.seed,
            training.recipe,
            ranks,
            precision=run.study.compute.precision,
            stop=stop,
        )
    except torch.OutOfMemoryError as error:
        total_gb = torch.cuda.get_device_properties(ranks.device).total_memory / 2**30
        raise InputError(
            f"step {step} on {torch.cuda.get_device_name(ranks.device)}",
            f"out of memory: {peak_memory_bytes(ranks.device) / 2**30:.1f} of {total_gb:.1f} GB were in use, "
            f"{' '.join(str(error).split())[:120]}",
            fix=SMALLER,
        ) from None
