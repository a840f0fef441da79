"""One optimizer step: the losses of its groups, one sum over all processes, and an update that only finite values make.

What a step computed is copied to the host while the device works on; the host reads it when the next step is queued.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float

from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.dataloader.seeds import losses_seed
from lvis_rcnn.model.device import sent
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, MaskRcnn, losses
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.model.one_pass import losses_together
from lvis_rcnn.model.seesaw import counters_of
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.setup import FIX_MEMORY, GROUP_BY_GROUP, Passes, Training, peak_memory_bytes

POLL_S = 2e-4  # of a step of some 0.1 s


class HostCopy:
    """Values on their way from the device to the host; reading waits for what computed them, not for later work."""

    def __init__(self, values: torch.Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.values = values.detach()
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values.detach(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> torch.Tensor:
        """The values; how long they may take is limited by the watch of the step (:class:`Watch`)."""
        while self.event is not None and not self.event.query():
            time.sleep(POLL_S)
        return self.values


@dataclass(frozen=True)
class QueuedStep:
    """A step that the device has been given, and perhaps not ended."""

    step: int
    totals: HostCopy
    """Of all processes: the losses (``LOSS_NAMES``), the number of processes that ask to stop, the number of replaced
    images, the norm of the gradient."""
    group_losses: HostCopy
    """Losses of each group of this process."""
    image_ids: list[list[int]]
    """Images of each of these groups."""

    def values(self) -> tuple[dict[str, float], bool, int]:
        """Losses and ``grad_norm``, whether to stop, and how many images were replaced.

        Raises:
            InputError: a loss or the norm is not finite; the weights are then as before the step.
        """
        *step_losses, stop, replaced, norm = self.totals.read().tolist()
        values = {**dict(zip(LOSS_NAMES, step_losses, strict=True)), "grad_norm": norm}
        if not all(map(math.isfinite, values.values())):
            raise self.not_finite(values)
        return values, stop > 0, int(replaced)

    def not_finite(self, values: dict[str, float]) -> InputError:
        """The error that names what is not finite, and the images of those groups of this process that caused it."""
        images = dict.fromkeys(
            image
            for group, image_ids in zip(self.group_losses.read().tolist(), self.image_ids, strict=True)
            if not all(map(math.isfinite, group))
            for image in image_ids
        )
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        wrong_losses = {name: value for name, value in wrong.items() if name in LOSS_NAMES}
        listed = ", ".join(f"{name} = {value}" for name, value in (wrong_losses or wrong).items())
        return InputError(
            f"step {self.step}" + (f", images {', '.join(map(str, images))}" if images else ""),
            f"{'loss' if wrong_losses else 'gradient'} is not finite: {listed}",
            fix="lower schedule.learning_rate, or set schedule.gradient_clip_norm (35 is usual)",
        )


def take_step(training: Training, groups: list[Batch], step: int, *, stop: bool = False) -> QueuedStep:
    """One optimizer step on this process's share of a step's normalisation groups.

    Weights, optimizer and counters of labels stay as they are where a loss or the gradient is not finite, in all
    processes alike.

    Args:
        training: the run.
        groups: the share, as :meth:`Ranks.share_of` numbers it.
        step: 0-based optimizer step.
        stop: ask all processes to stop.

    Raises:
        RankLost: another process did not take part.
        InputError: the device has not enough memory.
    """
    run, ranks, optimizer = training.run, training.ranks, training.optimizer
    counters = counters_of(training.model)
    for group in optimizer.param_groups:
        group["lr"] = run.recipe.learning_rate(step)
    optimizer.zero_grad(set_to_none=True)
    num_groups = run.recipe.stream.groups_per_step
    with explaining_memory(ranks, step):
        seed = run.seed
        group_losses = add_gradients(
            training.model, groups, ranks.share_of(num_groups), num_groups, step, seed, training.passes
        )
        parameters = [value for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
        gradients = [value.grad for value in parameters]
        counts = sent(group_losses.device, torch.tensor([int(stop), sum(len(batch.broken) for batch in groups)]))[0]
        numbers = torch.cat([group_losses.sum(dim=0) / num_groups, counts.float()])
        if counters is not None:
            # Exact: a float32 counts to 2^24, and a step has no more regions.
            numbers = torch.cat([numbers, counters.taken().flatten().float()])
        totals = ranks.add_up(gradients, numbers, step)
        totals, of_labels = totals[: len(LOSS_NAMES) + len(counts)], totals[len(LOSS_NAMES) + len(counts) :]
        norm = torch.nn.utils.get_total_norm(gradients)
        if run.study.schedule.gradient_clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, run.study.schedule.gradient_clip_norm, norm)
        totals = torch.cat([totals, norm[None]])
        # How PyTorch's own GradScaler keeps an update from happening without asking the device.
        is_finite = totals.isfinite().all()
        optimizer.grad_scale, optimizer.found_inf = None, (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        if counters is not None:
            counters.add(of_labels, is_finite)
        return QueuedStep(step, HostCopy(totals), HostCopy(group_losses), [batch.image_ids for batch in groups])


def add_gradients(
    model: MaskRcnn,
    groups: Sequence[Batch],
    numbers: range,
    num_groups: int,
    step: int,
    seed: int,
    passes: Passes = GROUP_BY_GROUP,
) -> Float[torch.Tensor, "groups losses"]:
    """Add to the gradient what some of a step's groups contribute to it; returns the losses of each.

    A step of 16 images is 8 groups of 2, each with its own divisors, and its gradient is the mean of theirs, as that of
    8 GPUs in the published runs. Random numbers depend on (seed, step, group), so it does not matter which process
    takes which groups, nor how many at once: the sums over all processes are those of one.

    Args:
        model: in training mode.
        groups: the batches to add.
        numbers: their places in the step.
        num_groups: groups of the whole step.
        step: 0-based optimizer step.
        seed: of the run.
        passes: how they pass through the network; losses are float32 in any case.
    """
    device = next(model.parameters()).device
    seeds = [losses_seed(seed, step, number) for number in numbers]
    group_losses = []
    for first in range(0, len(groups), passes.groups_at_once):
        together = slice(first, first + passes.groups_at_once)
        with torch.autocast(device.type, torch.bfloat16, enabled=passes.precision == "bf16"):
            values = losses_of_pass(model, groups[together], seeds[together], numbers[together], passes)
        (values.sum() / num_groups).backward()
        group_losses.append(values.detach())
    return torch.cat(group_losses) if group_losses else torch.zeros(0, len(LOSS_NAMES), device=device)


def losses_of_pass(
    model: MaskRcnn, groups: Sequence[Batch], seeds: Sequence[int], numbers: Sequence[int], passes: Passes
) -> Float[torch.Tensor, "groups losses"]:
    """The losses of each group; one that passes alone is computed image by image, as its bits have always been."""
    if passes.groups_at_once > 1:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return losses_together(model, groups, generators, passes.common_canvas, numbers)
    named = losses(model, groups[0], random_choice(torch.manual_seed(seeds[0])), numbers[0])
    return torch.stack([named[name].float() for name in LOSS_NAMES])[None]


@contextmanager
def explaining_memory(ranks: Ranks, step: int) -> Iterator[None]:
    """Turn a GPU's lack of memory into an InputError that says how much there is and what would need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        total_gb = torch.cuda.get_device_properties(ranks.device).total_memory / 2**30
        raise InputError(
            f"step {step} on {torch.cuda.get_device_name(ranks.device)}",
            f"out of memory: {peak_memory_bytes(ranks.device) / 2**30:.1f} of {total_gb:.1f} GB were in use, "
            f"{' '.join(str(error).split())[:120]}",
            fix=FIX_MEMORY,
        ) from None
