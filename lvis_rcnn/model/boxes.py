"""Boxes, the deltas that move them, and anchors.

MMDetection 3.3.0: ``DeltaXYWHBBoxCoder``, ``bbox_overlaps`` and ``AnchorGenerator``. A delta (dx, dy, dw, dh) is
relative to the size of the box it moves, divided by ``stds``. Widths have no "+1".
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float, Int64

from lvis_rcnn import SizeHW
from lvis_rcnn.model.device import constant

STRIDES_PX = (4, 8, 16, 32, 64)
"""Of the levels P2 to P6."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors of one place."""

# A side grows or shrinks by at most this factor; torchvision limits growth only.
LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
SMALLEST_UNION = 1e-6

Stds = tuple[float, float, float, float]
RPN_STDS: Stds = (1.0, 1.0, 1.0, 1.0)
ROI_STDS: Stds = (0.1, 0.1, 0.2, 0.2)


def encode(
    boxes_xyxy: Float[torch.Tensor, "n 4"], targets_xyxy: Float[torch.Tensor, "n 4"], stds: Stds
) -> Float[torch.Tensor, "n 4"]:
    """Deltas that move each box onto its target; all sides are above 0."""
    centres, sizes = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    target_centres = (targets_xyxy[:, :2] + targets_xyxy[:, 2:]) * 0.5
    target_sizes = targets_xyxy[:, 2:] - targets_xyxy[:, :2]
    deltas = torch.cat([(target_centres - centres) / sizes, torch.log(target_sizes / sizes)], dim=1)
    return deltas / constant(stds, deltas.device)


def decode(
    boxes_xyxy: Float[torch.Tensor, "n 4"], deltas: Float[torch.Tensor, "n 4"], stds: Stds
) -> Float[torch.Tensor, "n 4"]:
    """Boxes moved by their deltas; inverse of :func:`encode` within the limit of a side's ratio."""
    scaled = deltas * constant(stds, deltas.device)
    log_ratios = scaled[:, 2:].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    centres, sizes = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    moved, half = centres + sizes * scaled[:, :2], sizes * log_ratios.exp() * 0.5
    return torch.cat([moved - half, moved + half], dim=1)


def clip(boxes_xyxy: Float[torch.Tensor, "n 4"], size_hw: tuple[int, int]) -> Float[torch.Tensor, "n 4"]:
    """Boxes clipped to an image of ``size_hw``; a box outside the image has no area left."""
    clipped = boxes_xyxy.clamp(min=0)
    for axis, size in enumerate(reversed(size_hw)):
        clipped[:, axis::2].clamp_(max=size)
    return clipped


def best_rows(scores: Float[torch.Tensor, " m"], count: int) -> Int64[torch.Tensor, " kept"]:
    """Indices of the best ``count`` scores, or of all, best first, equal ones in order; scores are 0 or above.

    To select before sorting takes a tenth of the time on a CPU. Numbers that are 0 or above are in the order of their
    bits, and no two have the same bits and index: the order is complete, and the host need not look for equal scores.
    """
    bits = scores.float().view(torch.int32).long()
    last_first = torch.arange(len(scores) - 1, -1, -1, device=scores.device)
    return ((bits << 32) | last_first).topk(min(count, len(scores))).indices


def areas(boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Float[torch.Tensor, " n"]:
    """Areas in square pixels."""
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def pairwise_iou(
    first_xyxy: Float[torch.Tensor, "n 4"], second_xyxy: Float[torch.Tensor, "m 4"]
) -> Float[torch.Tensor, "n m"]:
    """Intersection over union of every pair; a union below ``SMALLEST_UNION`` counts as that."""
    intersections = shared_lengths(first_xyxy[:, 0::2], second_xyxy[:, 0::2]) * shared_lengths(
        first_xyxy[:, 1::2], second_xyxy[:, 1::2]
    )
    unions = areas(first_xyxy)[:, None] + areas(second_xyxy)[None] - intersections
    return intersections / unions.clamp(min=SMALLEST_UNION)


def shared_lengths(first: Float[torch.Tensor, "n 2"], second: Float[torch.Tensor, "m 2"]) -> Float[torch.Tensor, "n m"]:
    """Length of the intersection of every pair of intervals (start, end)."""
    ends = torch.minimum(first[:, None, 1], second[None, :, 1])
    return (ends - torch.maximum(first[:, None, 0], second[None, :, 0])).clamp(min=0)


@cache
def base_anchors(side_px: float, device: torch.device) -> Float[torch.Tensor, "3 4"]:
    """Anchors around the origin (xyxy), one of each aspect ratio, each of area ``side_px`` squared; as `constant`."""
    with torch.inference_mode(False):
        stretch = torch.tensor(ASPECT_RATIOS, device="cpu").sqrt()
        half = torch.stack([side_px / stretch, side_px * stretch], dim=1) * 0.5
        return torch.cat([-half, half], dim=1).to(device)


def anchors_of_level(
    level_hw: SizeHW, stride_px: int, scale: float, device: torch.device
) -> Float[torch.Tensor, "anchors 4"]:
    """Anchors of one level in the order y, x, ratio; their centres are (x, y) times the stride."""
    y, x = (torch.arange(size, device=device) * stride_px for size in level_hw)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).reshape(-1, 1, 4)
    return (places + base_anchors(scale * stride_px, device)).reshape(-1, 4)


def pyramid_anchors(
    levels_hw: Sequence[SizeHW], scale: float, device: torch.device
) -> list[Float[torch.Tensor, "_ 4"]]:
    """:func:`anchors_of_level` for P2, P3, ...; a side is ``scale`` times the level's stride."""
    return [anchors_of_level(size, stride, scale, device) for size, stride in zip(levels_hw, STRIDES_PX, strict=False)]


def anchors_in_image(
    levels_hw: Sequence[SizeHW], padded_hw: SizeHW, device: torch.device
) -> list[Bool[torch.Tensor, " _"]]:
    """Which anchors of each level have their centre inside an image padded to a multiple of 32, ``padded_hw``.

    In a batch, the padding beyond that, up to the largest image, has no anchors that are trained on.
    """
    inside = []
    for size, stride in zip(levels_hw, STRIDES_PX, strict=False):
        rows, columns = (
            torch.arange(full, device=device) < math.ceil(padded / stride)
            for full, padded in zip(size, padded_hw, strict=True)
        )
        places = rows[:, None] & columns[None]
        inside.append(places.reshape(-1, 1).expand(-1, len(ASPECT_RATIOS)).reshape(-1))
    return inside
