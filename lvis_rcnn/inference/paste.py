"""Masks pasted into their image, only inside their boxes, as run lengths or bitmaps.

MMDetection 3.3.0, ``fcn_mask_head.py`` (``_do_paste_mask`` with ``skip_empty``): bilinear interpolation at the centres
of the pixels of the box, rounded outwards, and one more on each side; at least one half is mask.

Here the interpolation is a product of three matrices, which is faster than ``grid_sample``, but rounds otherwise.
Values within ``SURE`` of one half are computed again by ``grid_sample``, so that every pixel is the same. On a GPU all
pixels are interpolated one by one, in a few kernels for all masks together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch.nn.functional import grid_sample

from lvis_rcnn.dataset.rle import texts_of_runs
from lvis_rcnn.model.device import sent

# Pixels pasted at a time, by kind of device: 4 MB of float32; some 100 bytes each on a GPU.
PIXELS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}

# The two forms differ by a few roundings of a coordinate in the mask: 2e-6 each.
SURE = 1e-4


@dataclass(frozen=True, eq=False)
class Crops:
    """Pasted pixels of ``k`` regions of one image, region by region, each column by column.

    Each column has one more pixel, which is background, so that no run of pixels goes on in the next column.
    """

    masks: Int64[np.ndarray, " k"]
    """Index of the mask of each region; a large mask has several regions, left to right."""
    frames_xyxy: Int64[np.ndarray, "k 4"]
    bits: Bool[np.ndarray, " pixels"]


def pasted_crops(
    probabilities: Float[torch.Tensor, "d s s"], boxes_xyxy: Float[torch.Tensor, "d 4"], size_hw: tuple[int, int]
) -> Iterator[Crops]:
    """Paste masks into an image of ``size_hw``, masks in order, about ``PIXELS_AT_ONCE`` pixels at a time.

    Args:
        probabilities: of the masks, on any device; only bits are copied to the host.
        boxes_xyxy: in pixels of the image, in CPU memory; they may exceed the image, and may have no area.
        size_hw: of the image.
    """
    device = probabilities.device
    most, paste = PIXELS_AT_ONCE[device.type], pasted if device.type == "cpu" else pasted_by_pixel
    masks, frames = regions_of(boxes_xyxy.numpy(), size_hw, most)
    sizes = np.cumsum((frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1] + 1))
    for rows in np.split(np.arange(len(masks)), np.flatnonzero(np.diff(sizes // most)) + 1):
        if len(rows):
            bits = paste(probabilities, boxes_xyxy, masks[rows], frames[rows])
            yield Crops(masks[rows], frames[rows], bits.cpu().numpy())


def regions_of(
    boxes_xyxy: Float[np.ndarray, "d 4"], size_hw: tuple[int, int], most: int
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, "k 4"]]:
    """Mask and frame of each region that has pixels; none has many more pixels than ``most``."""
    height, width = size_hw
    corners = np.concatenate([np.floor(boxes_xyxy[:, :2]) - 1, np.ceil(boxes_xyxy[:, 2:]) + 1], axis=1)
    frames = corners.clip(0, [width, height] * 2).astype(np.int64)
    masks = np.flatnonzero((frames[:, 2:] > frames[:, :2]).all(axis=1))
    frames = frames[masks]
    columns = np.maximum(most // (frames[:, 3] - frames[:, 1] + 1), 1)
    strips = -(-(frames[:, 2] - frames[:, 0]) // columns)
    rows = np.repeat(np.arange(len(masks)), strips)
    frames, columns = frames[rows], columns[rows]
    frames[:, 0] += columns * (np.arange(len(rows)) - np.repeat(np.cumsum(strips) - strips, strips))
    frames[:, 2] = np.minimum(frames[:, 0] + columns, frames[:, 2])
    return masks[rows], frames


def pasted(
    probabilities: Float[torch.Tensor, "d s s"],
    boxes_xyxy: Float[torch.Tensor, "d 4"],
    masks: Int64[np.ndarray, " k"],
    frames: Int64[np.ndarray, "k 4"],
) -> Bool[torch.Tensor, " pixels"]:
    """``Crops.bits`` of some regions, on the CPU."""
    columns, rows = frames[:, 2] - frames[:, 0], frames[:, 3] - frames[:, 1] + 1
    x = box_coordinates(frames[:, 0], columns, boxes_xyxy[masks, 0::2])
    y = box_coordinates(frames[:, 1], rows, boxes_xyxy[masks, 1::2])
    above = probabilities.new_empty(int((columns * rows).sum()))
    across = linear_weights(x, probabilities.shape[1]).split(columns.tolist())
    down = linear_weights(y, probabilities.shape[1]).mT.split(rows.tolist(), dim=1)
    outs = above.split((columns * rows).tolist())
    for mask, weights_x, weights_y, out in zip(probabilities[masks].mT.unbind(), across, down, outs, strict=True):
        torch.mm(torch.mm(weights_x, mask), weights_y, out=out.view(weights_x.shape[0], weights_y.shape[1]))
    bits = above.sub_(0.5) >= 0
    # Not "<=": NaN is unsure, too.
    unsure = np.flatnonzero(~(above.abs_() > SURE).cpu().numpy())
    if len(unsure):
        bits[unsure] = by_grid_sample(unsure, probabilities, masks, columns, rows, x, y)
    bits[np.repeat(rows, columns).cumsum() - 1] = False
    return bits


def box_coordinates(
    first: Int64[np.ndarray, " k"], each: Int64[np.ndarray, " k"], bounds: Float[torch.Tensor, "k 2"]
) -> Float[torch.Tensor, " places"]:
    """Centres of the pixels ``first``, ``first + 1``, ... of each region, from -1 to 1 between the sides of its box.

    A box without length has infinite ones, which become 0, the middle of the mask, as in MMDetection.
    """
    pixels = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each - first, each)
    low, high = bounds.repeat_interleave(torch.from_numpy(each).to(bounds.device), dim=0).unbind(1)
    coordinates = (torch.from_numpy(pixels).to(bounds.device) + 0.5 - low) / (high - low) * 2 - 1
    return coordinates.masked_fill_(coordinates.isinf(), 0)


def linear_weights(coordinates: Float[torch.Tensor, " p"], cells: int) -> Float[torch.Tensor, "p cells"]:
    """Weights of linear interpolation between the centres of ``cells`` cells; 0 is assumed beyond the last."""
    in_cells = ((coordinates + 1) * cells - 1) / 2
    return (in_cells[:, None] - torch.arange(cells, device=coordinates.device)).abs_().neg_().add_(1).clamp_(min=0)


def by_grid_sample(
    pixels: Int64[np.ndarray, " p"],
    probabilities: Float[torch.Tensor, "d s s"],
    masks: Int64[np.ndarray, " k"],
    columns: Int64[np.ndarray, " k"],
    rows: Int64[np.ndarray, " k"],
    x: Float[torch.Tensor, " columns"],
    y: Float[torch.Tensor, " rows"],
) -> Bool[torch.Tensor, " p"]:
    """Bits of some pixels of :func:`pasted`, in ascending order, computed as in MMDetection."""
    ends = (columns * rows).cumsum()
    regions = np.searchsorted(ends, pixels, side="right")
    inside = pixels - (ends - columns * rows)[regions]
    at_x = (columns.cumsum() - columns)[regions] + inside // rows[regions]
    at_y = (rows.cumsum() - rows)[regions] + inside % rows[regions]
    grid = torch.stack([x[at_x], y[at_y]], dim=1)
    sampled, counts = np.unique(regions, return_counts=True)
    values = [
        grid_sample(probabilities[mask][None, None], points[None, None], align_corners=False)[0, 0, 0]
        for mask, points in zip(masks[sampled].tolist(), grid.split(counts.tolist()), strict=True)
    ]
    return torch.cat(values) >= 0.5


def pasted_by_pixel(
    probabilities: Float[torch.Tensor, "d s s"],
    boxes_xyxy: Float[torch.Tensor, "d 4"],
    masks: Int64[np.ndarray, " k"],
    frames: Int64[np.ndarray, "k 4"],
) -> Bool[torch.Tensor, " pixels"]:
    """:func:`pasted` on any device: a bilinear value of each pixel, but for rounding that of ``grid_sample``."""
    boxes, corners = boxes_xyxy[masks], torch.from_numpy(np.concatenate([frames, masks[:, None]], axis=1))
    (edges,), (corners,) = sent(probabilities.device, boxes), sent(probabilities.device, corners)
    left, top, right, bottom, mask_of = corners.unbind(1)
    rows = bottom - top + 1
    sizes = (right - left) * rows
    pixels = int(((frames[:, 2] - frames[:, 0]) * (frames[:, 3] - frames[:, 1] + 1)).sum())
    region = torch.repeat_interleave(sizes, output_size=pixels)
    inside = torch.arange(pixels, device=region.device) - (sizes.cumsum(0) - sizes)[region]
    at = left[region] + inside // rows[region], top[region] + inside % rows[region]
    cells, values = probabilities.shape[1], probabilities.new_zeros(pixels)
    across, down = (
        neighbours(of_axis, edges[:, axis][region], edges[:, axis + 2][region], cells)
        for axis, of_axis in enumerate(at)
    )
    first = mask_of[region] * cells**2
    for row, row_weight in down:
        for column, column_weight in across:
            values += probabilities.flatten()[first + row * cells + column] * (row_weight * column_weight)
    return (values >= 0.5) & (at[1] < bottom[region])


def neighbours(
    pixels: Int64[torch.Tensor, " p"], low: Float[torch.Tensor, " p"], high: Float[torch.Tensor, " p"], cells: int
) -> list[tuple[Int64[torch.Tensor, " p"], Float[torch.Tensor, " p"]]]:
    """The two cells whose centres are next to that of each pixel, along one axis of its box, and their weights."""
    coordinates = (pixels + 0.5 - low) / (high - low) * 2 - 1
    in_cells = ((coordinates.masked_fill(coordinates.isinf(), 0) + 1) * cells - 1) / 2
    before = in_cells.floor()
    pairs = (before, before + 1 - in_cells), (before + 1, in_cells - before)
    exist = [(cell >= 0) & (cell < cells) for cell, _ in pairs]
    # 0 is assumed beyond the last cell; a coordinate that is no number has no cell.
    return [
        (torch.where(exists, cell, 0).long(), weight * exists)
        for exists, (cell, weight) in zip(exist, pairs, strict=True)
    ]


def bitmaps(crops: Iterator[Crops], count: int, size_hw: tuple[int, int]) -> Bool[np.ndarray, "d h w"]:
    """``count`` masks at the size of their image."""
    pasted_masks = np.zeros((count, *size_hw), bool)
    for part in crops:
        start = 0
        for mask, (left, top, right, bottom) in zip(part.masks.tolist(), part.frames_xyxy.tolist(), strict=True):
            stop = start + (right - left) * (bottom - top + 1)
            columns = part.bits[start:stop].reshape(right - left, bottom - top + 1)
            pasted_masks[mask, top:bottom, left:right] = columns[:, :-1].T
            start = stop
    return pasted_masks


def run_length_texts(
    crops: Iterator[Crops], count: int, size_hw: tuple[int, int]
) -> tuple[Int64[np.ndarray, " ends"], UInt8[np.ndarray, " bytes"]]:
    """``count`` masks as COCO's compressed run lengths: text i is bytes ``offsets[i]`` to ``offsets[i + 1]``.

    They equal ``pycocotools.mask.encode`` of :func:`bitmaps`, byte for byte, without making the bitmaps.
    """
    height, width = size_hw
    runs = np.concatenate([np.zeros((3, 0), np.int64), *(runs_of_crops(part, height) for part in crops)], axis=1)
    masks, starts, stops = runs
    # In a region as high as its image, a run may go on in the next column.
    goes_on = (masks[1:] == masks[:-1]) & (stops[:-1] == starts[1:])
    masks, starts = runs[:2, np.concatenate([[True], ~goes_on])[: len(masks)]]
    stops = stops[np.concatenate([~goes_on, [True]])[: len(stops)]]
    return texts_of_runs(*lengths_of_runs(masks, starts, stops, count, height * width))


def runs_of_crops(crops: Crops, image_height: int) -> Int64[np.ndarray, "3 r"]:
    """Mask, first pixel, and the pixel after the last of each run; pixels count down the image's columns."""
    edges = np.flatnonzero(np.diff(crops.bits, prepend=False))
    left, top, right, bottom = crops.frames_xyxy.T
    regions = np.repeat(np.arange(len(left)), right - left)
    rows = (bottom - top + 1)[regions]
    ends = rows.cumsum()
    x = np.arange(len(regions)) - np.repeat(np.cumsum(right - left) - right, right - left)
    shifts = x * image_height + top[regions] - (ends - rows)
    columns = np.searchsorted(ends, edges[0::2], side="right")
    return np.stack([crops.masks[regions[columns]], edges[0::2] + shifts[columns], edges[1::2] + shifts[columns]])


def lengths_of_runs(
    masks: Int64[np.ndarray, " r"],
    starts: Int64[np.ndarray, " r"],
    stops: Int64[np.ndarray, " r"],
    count: int,
    pixels: int,
) -> tuple[Int64[np.ndarray, " lengths"], Int64[np.ndarray, " d"]]:
    """Lengths of background, mask, background, ... of each of ``count`` masks, and how many each has.

    The first may be 0. Runs are in the order of masks, then pixels, with background between them.
    """
    each = 2 * np.bincount(masks, minlength=count) + 1
    last = each.cumsum() - 1
    inner = np.ones(int(each.sum()), bool)
    inner[last] = False
    bounds = np.full(len(inner), pixels)
    bounds[inner] = np.stack([starts, stops], axis=1).reshape(-1)
    lengths = np.diff(bounds, prepend=0)
    lengths[last[:-1] + 1] += pixels
    touching = lengths[last] == 0
    return np.delete(lengths, last[touching]), each - touching
