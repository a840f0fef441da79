"""Which ground truth a box is trained on, and which boxes are trained on at all.

Labels of an assignment: k > 0 is ground truth k - 1, 0 is background, -1 is neither (MMDetection 3.3.0,
``MaxIoUAssigner`` and ``RandomSampler``). torchvision's matcher differs: its low-quality matches give a box back its
own best ground truth, and have no lower bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64

from lvis_rcnn.model.boxes import overlaps

# Ground truths at a time: an image may hold 500, and 500 x 270,000 overlaps would be 540 MB.
GROUND_TRUTHS_AT_ONCE = 32

Choose = Callable[[Int64[torch.Tensor, " n"], int], Int64[torch.Tensor, " chosen"]]
"""Picks ``chosen`` of ``n`` candidates, ``chosen < n``."""


@dataclass(frozen=True)
class Thresholds:
    """Overlaps that decide an assignment."""

    positive: float
    """From here on a box belongs to the ground truth it overlaps most."""
    negative: float
    """Below this for every ground truth it is background."""
    low_quality: float
    """A ground truth whose best overlap reaches this takes all boxes that tie for it."""


RPN_THRESHOLDS = Thresholds(positive=0.7, negative=0.3, low_quality=0.3)
ROI_THRESHOLDS = Thresholds(positive=0.5, negative=0.5, low_quality=0.5)


def assign(
    boxes_xyxy: Float[torch.Tensor, "n 4"], truths_xyxy: Float[torch.Tensor, "g 4"], thresholds: Thresholds
) -> Int64[torch.Tensor, " n"]:
    """Assignment of each box.

    A box that several ground truths claim as their best goes to the last of them, even if it overlaps another more.
    """
    best = boxes_xyxy.new_zeros(len(boxes_xyxy))
    best_truth = torch.zeros(len(boxes_xyxy), dtype=torch.int64, device=boxes_xyxy.device)
    claimed = torch.zeros_like(best_truth)
    for first in range(0, len(truths_xyxy), GROUND_TRUTHS_AT_ONCE):
        overlap = overlaps(truths_xyxy[first : first + GROUND_TRUTHS_AT_ONCE], boxes_xyxy)
        higher, truth = overlap.max(dim=0)
        best_truth = torch.where(higher > best, truth + first, best_truth)
        best = torch.maximum(best, higher)
        claimed = torch.maximum(claimed, claims(overlap, first, thresholds.low_quality))
    assigned = torch.full_like(best_truth, -1)
    assigned[best < thresholds.negative] = 0
    assigned = torch.where(best >= thresholds.positive, best_truth + 1, assigned)
    return torch.where(claimed > 0, claimed, assigned)


def claims(overlap: Float[torch.Tensor, "g n"], first: int, low_quality: float) -> Int64[torch.Tensor, " n"]:
    """For each box the last ground truth (1-based, row 0 being ``first``) of which it is a best box; 0 for none."""
    if overlap.shape[1] == 0:
        return torch.zeros(0, dtype=torch.int64, device=overlap.device)
    highest = overlap.max(dim=1, keepdim=True).values
    claim = (overlap == highest) & (highest >= low_quality)
    numbers = torch.arange(first + 1, first + 1 + len(overlap), device=overlap.device)
    return (claim * numbers[:, None]).max(dim=0).values


def random_choice(generator: torch.Generator) -> Choose:
    """Uniform choice without repetition; drawn on the CPU, so that every device draws the same."""

    def choose(candidates: Int64[torch.Tensor, " n"], count: int) -> Int64[torch.Tensor, " chosen"]:
        order = torch.randperm(len(candidates), generator=generator)[:count]
        return candidates[order.to(candidates.device)]

    return choose


def sample(
    assigned: Int64[torch.Tensor, " n"], count: int, positive_fraction: float, choose: Choose
) -> tuple[Int64[torch.Tensor, " p"], Int64[torch.Tensor, " q"]]:
    """Positions of the positive and of the negative boxes to train on, each ascending.

    At most ``count * positive_fraction`` positives; negatives fill up to ``count``. ``choose`` is asked only where
    there are more than wanted.
    """
    positives = limited((assigned > 0).nonzero()[:, 0], int(count * positive_fraction), choose)
    negatives = limited((assigned == 0).nonzero()[:, 0], count - len(positives), choose)
    return positives, negatives


def limited(candidates: Int64[torch.Tensor, " n"], count: int, choose: Choose) -> Int64[torch.Tensor, " kept"]:
    """All candidates, or ``count`` of them."""
    return candidates if len(candidates) <= count else choose(candidates, count).sort().values
