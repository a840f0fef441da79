"""Pixels of the network's input, as MMDetection makes them, through mmcv.

Decode to BGR bytes, rescale bytes bilinearly, flip, normalise to RGB, pad with zeros to a multiple of 32 (MMDetection
3.3.0, ``LoadImageFromFile`` to ``DetDataPreprocessor``). As there, whoever reads an image sends bytes, and the device
of the network makes floats of them: a quarter of the shared memory and of what goes to a GPU.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from lvis_rcnn.dataset.images import mmcv

mmcv()  # once here, not again in every process that reads images

MEAN_RGB = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD_RGB = np.array([58.395, 57.12, 57.375], dtype=np.float32)

NORMALISATION = f"RGB, mean {MEAN_RGB.tolist()}, std {STD_RGB.tolist()}"

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


def write_rescaled(
    image_bgr: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int], flip: bool, out: UInt8[torch.Tensor, "3 H W"]
) -> None:
    """Rescale and flip one image, and write its R, G and B into the upper left of ``out``; the rest is not touched.

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
    inside = out[:, :height, :width]
    if out.stride(0) == 1:
        inside.permute(1, 2, 0).numpy()[...] = mmcv().bgr2rgb(image)
        return
    # NumPy would copy a transposed image one byte at a time.
    for plane, target in zip(cv2.split(image)[::-1], inside.numpy(), strict=True):
        target[...] = plane


def normalised(
    pixels: UInt8[torch.Tensor, "n 3 h w"], sizes_hw: Sequence[tuple[int, int]]
) -> Float32[torch.Tensor, "n 3 h w"]:
    """``(x - mean) / std`` of each image, and zeros right of and below it; of the same layout, on the same device.

    As MMDetection 3 normalises a batch: ``mmcv.imnormalize``, which 2.x used, multiplies by a rounded 1 / std. Both
    operations round as IEEE 754 says, so every device gives the same bits. The host does not wait for the device.
    """
    layout = torch.contiguous_format if pixels.is_contiguous() else torch.channels_last
    # A row of each, since a CPU takes six times as long where its inner loop is over the 3 channels of a pixel.
    rows = (channel.expand(1, 3, 1, pixels.shape[3]) for channel in mean_and_std(pixels.device))
    mean, std = (row.contiguous(memory_format=layout) for row in rows)
    values = pixels.float().sub_(mean).div_(std)
    for image, (height, width) in zip(values, sizes_hw, strict=True):
        image[:, height:].zero_()
        image[:, :height, width:].zero_()
    return values


@lru_cache
def mean_and_std(device: torch.device) -> tuple[Float32[torch.Tensor, "3 1 1"], Float32[torch.Tensor, "3 1 1"]]:
    """Of R, G and B; copied to a device once, since the host waits for such a copy."""
    mean, std = (torch.from_numpy(channels)[:, None, None].to(device) for channels in (MEAN_RGB, STD_RGB))
    return mean, std


def padded_size_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of one image after padding to a multiple of ``PAD_MULTIPLE_PX``."""
    height, width = (-(-edge // PAD_MULTIPLE_PX) * PAD_MULTIPLE_PX for edge in size_hw)
    return height, width
