"""Bitmaps of objects, each only as large as its object.

The published chain rasterises a polygon at the original size (``pycocotools``), resizes the bitmap by nearest neighbour
(OpenCV) and flips it. Outside the object such a bitmap is zero, so a crop holds all of it: 12 objects of an image of
1333 x 800 are 12.8 MB as bitmaps and about 0.3 MB as crops. Every pixel is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8, UInt32

from lvis_rcnn import SizeHW
from lvis_rcnn.dataloader.transforms import nearest_positions
from lvis_rcnn.dataset.polygons import ALLOWED, too_large
from lvis_rcnn.dataset.rle import pixels_of_runs
from lvis_rcnn.system.cli import InputError

# pycocotools walks along polygons in steps of a fifth of a pixel.
STEPS_PER_PX = 5


@dataclass(frozen=True)
class MaskCrops:
    """The masks of ``a`` objects of one image, in the frame of the network's input."""

    frames_xyxy: Int64[torch.Tensor, "a 4"]
    """Frame of each crop, right and lower edge excluded; an object without a pixel has an empty frame."""
    offsets: Int64[torch.Tensor, " a+1"]
    pixels: UInt8[torch.Tensor, " pixels"]
    """Crop i row by row: ``offsets[i]`` to ``offsets[i + 1]``, 1 on the object."""

    def mapped(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "MaskCrops":
        """The same with every tensor moved elsewhere."""
        return MaskCrops(move(self.frames_xyxy), move(self.offsets), move(self.pixels))


@dataclass(frozen=True)
class Crop:
    """One bitmap and the position of its upper left pixel."""

    left: int
    top: int
    bitmap: UInt8[np.ndarray, "h w"]


EMPTY = Crop(0, 0, np.zeros((0, 0), np.uint8))


def mask_crops(
    outlines: Sequence[Sequence[Float64[np.ndarray, " _"]] | UInt32[np.ndarray, " _"]],
    original_hw: SizeHW,
    size_hw: SizeHW,
    flip: bool,
) -> MaskCrops:
    """Crops of objects.

    Args:
        outlines: of each object its polygons (x0, y0, x1, y1, ... in pixels of the original image), or the run lengths
            of its mask.
        original_hw: size of the original image.
        size_hw: size after rescaling.
        flip: whether the rescaled image is flipped left to right.
    """
    rows, columns = (nearest_positions(old, new) for old, new in zip(original_hw, size_hw, strict=True))
    originals = [
        decoded(outline, original_hw) if isinstance(outline, np.ndarray) else rasterised(outline, original_hw)
        for outline in outlines
    ]
    crops = [resized(original, rows, columns, flip) for original in originals]
    frames = [(c.left, c.top, c.left + c.bitmap.shape[1], c.top + c.bitmap.shape[0]) for c in crops]
    ends = np.cumsum([0, *(crop.bitmap.size for crop in crops)])
    pixels = np.concatenate([np.zeros(0, np.uint8), *(crop.bitmap.reshape(-1) for crop in crops)])
    return MaskCrops(
        torch.tensor(frames, dtype=torch.int64).reshape(-1, 4), torch.from_numpy(ends), torch.from_numpy(pixels)
    )


def decoded(runs: UInt32[np.ndarray, " runs"], original_hw: SizeHW) -> Crop:
    """A run-length mask at original size, as pycocotools decodes it."""
    bitmap = pixels_of_runs(runs, original_hw)
    columns, rows = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (0, 1))
    if not len(columns):
        return EMPTY
    left, top = int(columns[0]), int(rows[0])
    return Crop(left, top, bitmap[top : rows[-1] + 1, left : columns[-1] + 1])


def rasterised(polygons: Sequence[Float64[np.ndarray, " _"]], original_hw: SizeHW) -> Crop:
    """The union of polygons at original size, as pycocotools draws it (``frPyObjects``, ``merge``, ``decode``)."""
    crossings = [one for polygon in polygons if len((one := column_crossings(polygon, original_hw))[0])]
    if not crossings:
        return EMPTY
    columns, rows = (np.concatenate(parts) for parts in zip(*crossings, strict=True))
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max()
    bitmap = np.zeros((bottom - top, right - left), np.uint8)
    for polygon_columns, polygon_rows in crossings:
        # One more row, for crossings at the lower edge of the frame.
        places = (polygon_rows - top) * (right - left) + polygon_columns - left
        toggles = np.zeros((bottom - top + 1) * (right - left), np.uint8)
        np.bitwise_xor.at(toggles, places, np.uint8(1))
        bitmap |= np.bitwise_xor.accumulate(toggles.reshape(-1, right - left)[:-1], axis=0)
    return Crop(int(left), int(top), bitmap)


def column_crossings(
    polygon: Float64[np.ndarray, " xy"], original_hw: SizeHW
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Where the outline of a polygon crosses the middle of a column: columns, and the first row below the crossing.

    A pixel belongs to the polygon if an odd number of crossings of its column are at or above its row. The outline is
    followed as in pycocotools, in steps of a fifth of a pixel with the same roundings (cocoapi, ``rleFrPoly`` of
    maskApi.c).

    Raises:
        InputError: it is larger than a store that is built now would hold.
    """
    if why := too_large(polygon.tolist()):
        raise InputError("the outline of an annotation", why, allowed=ALLOWED, fix="build the annotation store again")
    u, v = outline_points(polygon)
    height, width = original_hw
    crossed = np.flatnonzero(u[1:] != u[:-1])
    before, after = u[crossed], u[crossed + 1]
    at = np.where(after < before, after, after - 1)
    y = np.minimum(v[crossed], v[crossed + 1])
    # A step is in the middle of a pixel where its number is 2 more than a multiple of 5.
    columns = (at - 2) // STEPS_PER_PX
    middle = (at - 2) % STEPS_PER_PX == 0
    kept = middle & (columns >= 0) & (columns < width)
    rows = np.clip(-((2 - y) // STEPS_PER_PX), 0, height)
    return columns[kept], rows[kept]


def outline_points(polygon: Float64[np.ndarray, " xy"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The closed outline as neighbouring points (u, v) on a grid of a fifth of a pixel."""
    starts = (STEPS_PER_PX * polygon.reshape(-1, 2).T + 0.5).astype(np.int64)  # a cast truncates, as in C
    ends = np.concatenate([starts[:, 1:], starts[:, :1]], axis=1)
    extent = np.abs(ends - starts)
    wide = extent[0] >= extent[1]
    # The coordinate of the longer side comes first and ascends, so that an edge has the same points in both directions.
    starts, ends = np.where(wide, starts, starts[::-1]), np.where(wide, ends, ends[::-1])
    backwards = starts[0] > ends[0]
    first, last = np.where(backwards, ends, starts), np.where(backwards, starts, ends)
    steps = last[0] - first[0]
    slope = (last[1] - first[1]) / np.maximum(steps, 1)
    begins = np.cumsum(steps + 1) - (steps + 1)
    sign, shift = np.where(backwards, -1, 1), np.where(backwards, begins + steps, -begins)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    step = sign[edge] * np.arange(len(edge)) + shift[edge]
    along = first[0][edge] + step
    across = (first[1][edge] + slope[edge] * step + 0.5).astype(np.int64)
    is_wide = wide[edge]
    return np.where(is_wide, along, across), np.where(is_wide, across, along)


def resized(crop: Crop, rows: Int64[np.ndarray, " h"], columns: Int64[np.ndarray, " w"], flip: bool) -> Crop:
    """A crop after rescaling: pixel (y, x) comes from (``rows[y]``, ``columns[x]``); then flipped left to right."""
    height, width = crop.bitmap.shape
    top, bottom = np.searchsorted(rows, [crop.top, crop.top + height])
    left, right = np.searchsorted(columns, [crop.left, crop.left + width])
    from_columns = columns[left:right] - crop.left
    if flip:
        left, from_columns = len(columns) - right, from_columns[::-1]
    # One axis after the other, columns first: this takes a sixth of the time of indexing both at once.
    bitmap = crop.bitmap.take(from_columns, axis=1).take(rows[top:bottom] - crop.top, axis=0)
    return Crop(int(left), int(top), bitmap)
