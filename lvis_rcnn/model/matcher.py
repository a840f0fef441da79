"""Which ground truth each box is matched with, and which boxes are sampled for the losses.

An assignment is k > 0 for ground truth k - 1, 0 for background, -1 for ignored (MMDetection 3.3.0, ``MaxIoUAssigner``
and ``RandomSampler``). torchvision's matcher differs: its low-quality matches give a box its own best ground truth,
and have no lower bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64

from lvis_rcnn.model.boxes import pairwise_iou

# Ground truths compared at a time: an image may hold 500, and 500 x 270,000 overlaps would be 540 MB.
GROUND_TRUTHS_PER_CHUNK = 32

Choose = Callable[[Int64[torch.Tensor, " n"], int], Int64[torch.Tensor, " chosen"]]
"""Picks ``chosen`` of ``n`` candidates, ``chosen < n``."""


@dataclass(frozen=True)
class Thresholds:
    """IoU thresholds of an assignment."""

    positive: float
    """A box with at least this IoU is matched with the ground truth that it overlaps most."""
    negative: float
    """A box below this for every ground truth is background."""
    low_quality: float
    """A ground truth whose best IoU is at least this is matched with every box of that IoU (``min_pos_iou``)."""


RPN_THRESHOLDS = Thresholds(positive=0.7, negative=0.3, low_quality=0.3)
ROI_THRESHOLDS = Thresholds(positive=0.5, negative=0.5, low_quality=0.5)


def assign(
    boxes_xyxy: Float[torch.Tensor, "n 4"], truths_xyxy: Float[torch.Tensor, "g 4"], thresholds: Thresholds
) -> Int64[torch.Tensor, " n"]:
    """Assignment of each box.

    Low-quality matches come last and win: MMDetection's ``match_low_quality`` with ``gt_max_assign_all``.
    """
    best = boxes_xyxy.new_zeros(len(boxes_xyxy))
    best_truth = torch.zeros(len(boxes_xyxy), dtype=torch.int64, device=boxes_xyxy.device)
    low_quality = torch.zeros_like(best_truth)
    for first in range(0, len(truths_xyxy), GROUND_TRUTHS_PER_CHUNK):
        overlap = pairwise_iou(truths_xyxy[first : first + GROUND_TRUTHS_PER_CHUNK], boxes_xyxy)
        higher, truth = overlap.max(dim=0)
        best_truth = torch.where(higher > best, truth + first, best_truth)
        best = torch.maximum(best, higher)
        matches = low_quality_matches(overlap, first, thresholds.low_quality)
        low_quality = torch.maximum(low_quality, matches)
    assigned = torch.full_like(best_truth, -1)
    assigned[best < thresholds.negative] = 0
    assigned = torch.where(best >= thresholds.positive, best_truth + 1, assigned)
    return torch.where(low_quality > 0, low_quality, assigned)


def low_quality_matches(overlap: Float[torch.Tensor, "g n"], first: int, least_iou: float) -> Int64[torch.Tensor, " n"]:
    """For each box the last ground truth whose best IoU it has, 0 for none.

    Args:
        overlap: IoU of some ground truths with all boxes.
        first: index of the first of these ground truths; the result counts from 1.
        least_iou: a ground truth whose best IoU is below this has no such match.
    """
    if overlap.shape[1] == 0:
        return torch.zeros(0, dtype=torch.int64, device=overlap.device)
    highest = overlap.max(dim=1, keepdim=True).values
    is_best = (overlap == highest) & (highest >= least_iou)
    numbers = torch.arange(first + 1, first + 1 + len(overlap), device=overlap.device)
    return (is_best * numbers[:, None]).max(dim=0).values


def random_choice(generator: torch.Generator) -> Choose:
    """Uniform choice without replacement; drawn on the CPU, so that it is the same on every device."""

    def choose(candidates: Int64[torch.Tensor, " n"], count: int) -> Int64[torch.Tensor, " chosen"]:
        order = torch.randperm(len(candidates), generator=generator)[:count]
        return candidates[order.to(candidates.device)]

    return choose


def sample(
    assigned: Int64[torch.Tensor, " n"], count: int, positive_fraction: float, choose: Choose
) -> tuple[Int64[torch.Tensor, " p"], Int64[torch.Tensor, " q"]]:
    """Indices of the sampled positive and of the sampled negative boxes, each ascending.

    At most ``count * positive_fraction`` positives; negatives fill up to ``count``. ``choose`` is called only where
    there are more candidates than that.
    """
    positives = limited((assigned > 0).nonzero()[:, 0], int(count * positive_fraction), choose)
    negatives = limited((assigned == 0).nonzero()[:, 0], count - len(positives), choose)
    return positives, negatives


def limited(candidates: Int64[torch.Tensor, " n"], count: int, choose: Choose) -> Int64[torch.Tensor, " kept"]:
    """All candidates, or ``count`` of them."""
    return candidates if len(candidates) <= count else choose(candidates, count).sort().values
