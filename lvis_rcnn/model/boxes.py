"""Boxes and the deltas that move them (MMDetection 3.3.0, ``DeltaXYWHBBoxCoder`` and ``bbox_overlaps``).

A delta (dx, dy, dw, dh) is in units of the size of the box it moves, divided by ``stds``. No "+1" in widths.
"""

import math

import torch
from jaxtyping import Float

# A side changes by at most this factor either way; torchvision limits growth only.
LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
SMALLEST_UNION = 1e-6

Stds = tuple[float, float, float, float]
RPN_STDS: Stds = (1.0, 1.0, 1.0, 1.0)
ROI_STDS: Stds = (0.1, 0.1, 0.2, 0.2)


def encode(
    boxes_xyxy: Float[torch.Tensor, "n 4"], targets_xyxy: Float[torch.Tensor, "n 4"], stds: Stds
) -> Float[torch.Tensor, "n 4"]:
    """Deltas that move each box onto its target; both with sides above 0."""
    centres, sizes = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    target_centres = (targets_xyxy[:, :2] + targets_xyxy[:, 2:]) * 0.5
    target_sizes = targets_xyxy[:, 2:] - targets_xyxy[:, :2]
    deltas = torch.cat([(target_centres - centres) / sizes, torch.log(target_sizes / sizes)], dim=1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes_xyxy: Float[torch.Tensor, "n 4"], deltas: Float[torch.Tensor, "n 4"], stds: Stds
) -> Float[torch.Tensor, "n 4"]:
    """Boxes moved by their deltas; inverse of :func:`encode` up to the limit of a side's ratio."""
    scaled = deltas * deltas.new_tensor(stds)
    log_ratios = scaled[:, 2:].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    centres, sizes = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    moved, half = centres + sizes * scaled[:, :2], sizes * log_ratios.exp() * 0.5
    return torch.cat([moved - half, moved + half], dim=1)


def clip(boxes_xyxy: Float[torch.Tensor, "n 4"], size_hw: tuple[int, int]) -> Float[torch.Tensor, "n 4"]:
    """Boxes cut to an image of ``size_hw``; one that lies outside keeps no area."""
    height, width = size_hw
    return torch.minimum(boxes_xyxy.clamp(min=0), boxes_xyxy.new_tensor([width, height, width, height]))


def areas(boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Float[torch.Tensor, " n"]:
    """Width times height in square pixels."""
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def overlaps(
    first_xyxy: Float[torch.Tensor, "n 4"], second_xyxy: Float[torch.Tensor, "m 4"]
) -> Float[torch.Tensor, "n m"]:
    """Intersection over union of every pair; the union counts as at least ``SMALLEST_UNION``."""
    intersections = sides(first_xyxy[:, 0::2], second_xyxy[:, 0::2]) * sides(first_xyxy[:, 1::2], second_xyxy[:, 1::2])
    unions = areas(first_xyxy)[:, None] + areas(second_xyxy)[None] - intersections
    return intersections / unions.clamp(min=SMALLEST_UNION)


def sides(first: Float[torch.Tensor, "n 2"], second: Float[torch.Tensor, "m 2"]) -> Float[torch.Tensor, "n m"]:
    """Length that the intervals (start, end) of every pair share."""
    ends = torch.minimum(first[:, None, 1], second[None, :, 1])
    return (ends - torch.maximum(first[:, None, 0], second[None, :, 0])).clamp(min=0)
