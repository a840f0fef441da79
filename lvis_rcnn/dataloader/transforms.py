"""Pixels of the network's input, as MMDetection makes them, through mmcv.

Decode to BGR bytes, rescale bytes bilinearly, flip, normalise to RGB, pad with zeros to a multiple of 32 (MMDetection
3.3.0, ``LoadImageFromFile`` to ``DetDataPreprocessor``).
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from lvis_rcnn.dataset.images import mmcv

mmcv()  # once here, not again in every process that reads images

MEAN_RGB = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD_RGB = np.array([58.395, 57.12, 57.375], dtype=np.float32)
# What each byte of R, G and B becomes, as MMDetection 3 normalises the stacked batch: ``(x - mean) / std`` in float32
# (``mmcv.imnormalize``, which 2.x used, multiplies by a rounded 1 / std).
NORMALISED_RGB = (np.arange(256, dtype=np.float32)[:, None] - MEAN_RGB) / STD_RGB

PAD_MULTIPLE_PX = 32  # the stride of the coarsest level that the FPN upsamples from


def rescaled_size_hw(height: int, width: int, short_edge_px: int, long_edge_px: int) -> tuple[int, int]:
    """Size after rescaling to a short edge without exceeding the long edge, rounded as MMDetection does.

    An edge that would round to 0, where MMDetection ends with an error of OpenCV, has 1 pixel.
    """
    factor = min(long_edge_px / max(height, width), short_edge_px / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


# COCO's edges have a few hundred lengths and six scales: this is less than 100 MB.
@lru_cache(maxsize=4096)
def nearest_positions(old_px: int, new_px: int) -> Int64[np.ndarray, " new"]:
    """Which of ``old_px`` pixels each of ``new_px`` is when an edge is resized by nearest neighbour; read-only.

    A ramp is resized by OpenCV, whose roundings differ from the formula.
    """
    ramp = np.arange(old_px, dtype=np.float32)[None]
    positions: np.ndarray = mmcv().imresize(ramp, (new_px, 1), interpolation="nearest").astype(np.int64)
    positions.flags.writeable = False
    return np.ravel(positions)


def write_network_pixels(
    image_bgr: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int], flip: bool, out: Float[torch.Tensor, "3 H W"]
) -> None:
    """Rescale, flip and normalise one image into the upper left of ``out``, and fill the rest with zeros.

    The floats, 10 MB, are written once, where separate operations would write them each time: a seventh of the time.

    Args:
        image_bgr: as decoded.
        size_hw: size after rescaling.
        flip: whether the rescaled image is flipped left to right.
        out: at least of that size; planes, or channels last (its channels lie beside each other).
    """
    height, width = size_hw
    image = mmcv().imresize(image_bgr, (width, height), interpolation="bilinear")
    if flip:
        image = cv2.flip(image, 1)  # mmcv.imflip is a view, which is then copied pixel by pixel
    out[:, height:] = 0
    out[:, :height, width:] = 0
    inside = out[:, :height, :width]
    if out.stride(0) == 1:
        look_up(mmcv().bgr2rgb(image), NORMALISED_RGB[:, None], inside.permute(1, 2, 0).numpy())
        return
    for plane, values, target in zip(cv2.split(image)[::-1], NORMALISED_RGB.T.copy(), inside.numpy(), strict=True):
        look_up(plane, values, target)


def look_up(image: UInt8[np.ndarray, "h w *c"], values: Float[np.ndarray, "256 ..."], out: np.ndarray) -> None:
    """Write ``values[byte]`` for every byte into ``out``, whose rows need not be adjacent."""
    written = cv2.LUT(image, values, dst=out)
    assert written is out  # OpenCV would allocate another array for one that does not fit


def padded_size_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of one image after padding to a multiple of ``PAD_MULTIPLE_PX``."""
    height, width = (-(-edge // PAD_MULTIPLE_PX) * PAD_MULTIPLE_PX for edge in size_hw)
    return height, width
