"""Anchors: one scale a level and three ratios, unrounded, at multiples of fixed strides (MMDetection's).

torchvision rounds the base anchors to whole pixels, takes the stride from the sizes of image and level (61 in place of
64 for 608 pixels), and trains on anchors in the padding of smaller images.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float

STRIDES_PX = (4, 8, 16, 32, 64)
"""P2 to P6."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""

SizeHW = tuple[int, int]


def base_anchors(side_px: float) -> Float[torch.Tensor, "3 4"]:
    """The anchors of one place around the origin, each of area ``side_px`` squared (xyxy)."""
    stretch = torch.tensor(ASPECT_RATIOS).sqrt()
    half = torch.stack([side_px / stretch, side_px * stretch], dim=1) * 0.5
    return torch.cat([-half, half], dim=1)


def anchors_of_level(
    level_hw: SizeHW, stride_px: int, scale: float, device: torch.device
) -> Float[torch.Tensor, "anchors 4"]:
    """Anchors of one level in the order y, x, ratio; place (x, y) is at (x, y) times the stride."""
    y, x = (torch.arange(size, device=device) * stride_px for size in level_hw)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).reshape(-1, 1, 4)
    return (places + base_anchors(scale * stride_px).to(device)).reshape(-1, 4)


def pyramid_anchors(
    levels_hw: Sequence[SizeHW], scale: float, device: torch.device
) -> list[Float[torch.Tensor, "_ 4"]]:
    """:func:`anchors_of_level` for P2, P3, ...; a side is ``scale`` times the level's stride."""
    return [anchors_of_level(size, stride, scale, device) for size, stride in zip(levels_hw, STRIDES_PX, strict=False)]


def anchors_in_image(
    levels_hw: Sequence[SizeHW], padded_hw: SizeHW, device: torch.device
) -> list[Bool[torch.Tensor, " _"]]:
    """Which anchors of each level have their place inside ``padded_hw``, an image with its own padding only."""
    inside = []
    for size, stride in zip(levels_hw, STRIDES_PX, strict=False):
        rows, columns = (
            torch.arange(full, device=device) < math.ceil(padded / stride)
            for full, padded in zip(size, padded_hw, strict=True)
        )
        places = rows[:, None] & columns[None]
        inside.append(places.reshape(-1, 1).expand(-1, len(ASPECT_RATIOS)).reshape(-1))
    return inside
