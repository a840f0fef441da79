"""Masks as whole bitmaps."""

import math

import numpy as np
import torch
from torch.nn.functional import grid_sample

from lvis_rcnn.dataloader.masks import MaskCrops
from lvis_rcnn.inference.paste import bitmaps, pasted_crops


def pasted(crops: MaskCrops, size_hw: tuple[int, int]) -> np.ndarray:
    """Crops put back onto whole bitmaps."""
    bitmaps = np.zeros((len(crops.frames_xyxy), *size_hw), np.uint8)
    for bitmap, (left, top, right, bottom), start, end in zip(
        bitmaps, crops.frames_xyxy.tolist(), crops.offsets[:-1], crops.offsets[1:], strict=True
    ):
        bitmap[top:bottom, left:right] = crops.pixels[start:end].reshape(bottom - top, right - left)
    return bitmaps


def paste_mask(probabilities: torch.Tensor, box_xyxy: torch.Tensor, height: int, width: int) -> np.ndarray:
    """One mask of inference, pasted."""
    return bitmaps(pasted_crops(probabilities[None], box_xyxy[None], (height, width)), 1, (height, width))[0]


def plain_paste(probabilities: torch.Tensor, box_xyxy: torch.Tensor, height: int, width: int) -> np.ndarray:
    """The same as MMDetection does it, a mask at a time: ``grid_sample`` of the box's region."""
    x0, y0, x1, y1 = box_xyxy.tolist()
    left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
    right, bottom = max(min(math.ceil(x1) + 1, width), left), max(min(math.ceil(y1) + 1, height), top)
    bitmap = np.zeros((height, width), dtype=bool)
    columns = (torch.arange(left, right) + 0.5 - box_xyxy[0]) / (box_xyxy[2] - box_xyxy[0]) * 2 - 1
    rows = (torch.arange(top, bottom) + 0.5 - box_xyxy[1]) / (box_xyxy[3] - box_xyxy[1]) * 2 - 1
    columns[columns.isinf()] = 0
    rows[rows.isinf()] = 0
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    if grid.numel():
        values = grid_sample(probabilities[None, None], grid[None].float(), align_corners=False)[0, 0]
        bitmap[top:bottom, left:right] = (values >= 0.5).numpy()
    return bitmap
