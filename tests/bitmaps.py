"""Mask crops as whole bitmaps."""

import numpy as np

from lvis_rcnn.mask_crops import MaskCrops


def pasted(crops: MaskCrops, size_hw: tuple[int, int]) -> np.ndarray:
    """Crops put back onto whole bitmaps."""
    bitmaps = np.zeros((len(crops.frames_xyxy), *size_hw), np.uint8)
    for bitmap, (left, top, right, bottom), start, end in zip(
        bitmaps, crops.frames_xyxy.tolist(), crops.offsets[:-1], crops.offsets[1:], strict=True
    ):
        bitmap[top:bottom, left:right] = crops.pixels[start:end].reshape(bottom - top, right - left)
    return bitmaps
