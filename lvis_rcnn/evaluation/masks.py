"""Masks in the form that pycocotools compares, and their areas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from pycocotools import mask as coco_mask

from lvis_rcnn.dataset.json_text import mended
from lvis_rcnn.dataset.polygons import ALLOWED, is_bitmap, miscounted, of_three_points, too_large
from lvis_rcnn.dataset.records import Int64Number, problem_and_path, problem_of
from lvis_rcnn.dataset.rle import check_runs, damaged_texts, pixels_of_texts, runs_of_text, texts_of_runs
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.system.cli import InputError

# {"size": [height, width], "counts": compressed run lengths}.
Packed = dict[str, Any]

# Under NumPy 2 pycocotools fails on the areas of 256 or more masks in one call.
AREAS_AT_ONCE = 255

# Texts that are read at once: what fits the processor's cache.
TEXTS_AT_ONCE = 1 << 9

ALLOWED_MASKS = "run lengths {size: [height, width], counts}, or polygons [[x0, y0, x1, y1, ...], ...]"

# Run lengths have 32 bits.
MOST_PIXELS = 2**32 - 1


class Rle(msgspec.Struct, frozen=True):
    """A run-length encoded mask, compressed (text) or not (a list of run lengths)."""

    size: tuple[Int64Number, Int64Number]
    counts: str | list[int]


Segmentation = Rle | list[list[float]]

# The same for masks that were read: the type check of the test run would look at every number again.
Read = Rle | list[Any]


@dataclass(frozen=True, eq=False)
class Masks:
    """``d`` masks: compressed run lengths of mask i are bytes ``offsets[i]`` to ``offsets[i + 1]`` of ``counts``."""

    sizes_hw: Int64[np.ndarray, "d 2"]
    offsets: Int64[np.ndarray, " d+1"]
    counts: UInt8[np.ndarray, " bytes"]

    def packed(self, rows: Int64[np.ndarray, " m"]) -> list[Packed]:
        """The masks of ``rows``, as pycocotools takes them."""
        text = self.counts.data
        spans = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        # One list for all masks of a size: half of the time would go into others.
        sizes = self.sizes_hw[rows]
        _, first, which = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_index=True, return_inverse=True)
        shared = sizes[first].tolist()
        return [
            {"size": shared[size], "counts": text[a:b].tobytes()}
            for size, (a, b) in zip(which.tolist(), spans, strict=True)
        ]

    def damaged(self) -> Bool[np.ndarray, " d"]:
        """Whether pycocotools would read beyond the end of each text, or it holds characters of no number."""
        return damaged_texts(self.offsets, self.counts)


def no_masks() -> Masks:
    """Masks of no detections."""
    return Masks(np.zeros((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(0, np.uint8))


def packed_mask(segmentation: Read, size: tuple[int, int], record: str) -> Packed:
    """A mask of an image of ``size`` (height, width): polygons are drawn, run lengths compressed.

    Raises:
        InputError: no polygon has three points, one is of an odd count of numbers or too large, or no mask fits the
            image; ``record`` names it.
    """
    height, width = size
    if min(size) < 1 or height * width > MOST_PIXELS:
        what, fix = f"the mask of an image of {height} x {width} pixels", "score boxes only: --kinds bbox"
        raise InputError(record, what, allowed=f"1 to {MOST_PIXELS:,} pixels", fix=fix)
    if isinstance(segmentation, Rle):
        if segmentation.size != size:
            raise wrong_size(record, segmentation.size, size)
        if not runs_fit(segmentation):
            raise damaged(record)
        if isinstance(segmentation.counts, str):
            return {"size": [height, width], "counts": segmentation.counts.encode()}
    elif is_bitmap(segmentation):
        what = f"segmentation is a bitmap of {len(segmentation)} x {len(segmentation[0])} pixels"
        fix = "encode it: pycocotools.mask.encode(numpy.asfortranarray(bitmap))"
        raise InputError(record, what, allowed=ALLOWED_MASKS, fix=fix)
    elif (at := miscounted(segmentation)) is not None:
        fix = "remove or complete the polygon, or score boxes only: --kinds bbox"
        allowed = "an even number, of one polygon at least 6"
        raise InputError(record, f"polygon of {len(segmentation[at])} numbers", allowed=allowed, fix=fix)
    else:
        segmentation = of_three_points(segmentation)
    for polygon in () if isinstance(segmentation, Rle) else segmentation:
        if why := too_large(polygon):
            fix = "correct the polygon, or score boxes only: --kinds bbox"
            raise InputError(record, f"polygon {why}", allowed=ALLOWED, fix=fix)
    if isinstance(segmentation, list) and segmentation:
        parts: list[Packed] = coco_mask.frPyObjects(segmentation, height, width)
        return parts[0] if len(parts) == 1 else dict(coco_mask.merge(parts))
    runs = np.array(segmentation.counts if isinstance(segmentation, Rle) else [height * width], np.int64)
    # Not by pycocotools: 2.0.11 takes 6 bytes for the text of a run, and writes up to 7 and a zero behind the last.
    return {"size": [height, width], "counts": texts_of_runs(runs, np.array([len(runs)]))[1].tobytes()}


def wrong_size(record: str, size: Sequence[int], expected: Sequence[int]) -> InputError:
    """The error for a mask that is not of its image's size."""
    return InputError(record, f"mask size is {list(size)}", allowed=f"{list(expected)}, as the image")


def damaged(record: str) -> InputError:
    """The error for a mask whose run lengths are not those of any mask of its size."""
    return InputError(record, "mask is damaged: its run lengths do not fit its size", fix="write the mask again")


def runs_fit(mask: Rle) -> bool:
    """Whether run lengths cover the image exactly; a text of none or one is a mask without a pixel."""
    try:
        runs = np.array(mask.counts) if isinstance(mask.counts, list) else runs_of_text(mask.counts.encode())
        if len(runs) > 1 or isinstance(mask.counts, list):
            check_runs(runs, mask.size)
    except (ValueError, OverflowError):
        return False
    return True


def masks_of_truth(truth: GroundTruth) -> list[Packed]:
    """The mask of every object.

    Raises:
        InputError: a segmentation is malformed or does not fit its image; the annotation is named.
    """
    decoder = msgspec.json.Decoder(Segmentation)
    sizes = [(height, width) for height, width in truth.sizes_hw.tolist()]
    masks = []
    for raw, annotation, image in zip(
        truth.outlines, truth.annotation_ids.tolist(), truth.images.tolist(), strict=True
    ):
        record = f"{truth.where}: annotation {annotation}"
        try:
            segmentation = decoder.decode(raw)
        except msgspec.DecodeError:
            segmentation = mended_segmentation(bytes(raw), record)
        masks.append(packed_mask(segmentation, sizes[image], record))
    return masks


def mended_segmentation(raw: bytes, record: str) -> Segmentation:
    """A segmentation whose whole numbers may be written as 500.0; InputError for what is none."""
    text = mended(raw)
    try:
        found: Segmentation = msgspec.json.decode(text, type=Segmentation)
    except msgspec.DecodeError as error:
        problem, path = problem_and_path(str(error))
        what = f"segmentation{path}: {problem_of(problem, text, path)}" if raw else "has no segmentation"
        fix = "correct the file, or score boxes only: --kinds bbox"
        raise InputError(record, what, allowed=ALLOWED_MASKS, fix=fix) from None
    return found


def areas_of(masks: Sequence[Packed]) -> Float64[np.ndarray, " m"]:
    """Number of pixels of each mask."""
    areas = np.zeros(len(masks))
    for start in range(0, len(masks), AREAS_AT_ONCE):
        some = list(masks[start : start + AREAS_AT_ONCE])
        areas[start : start + len(some)] = coco_mask.area(some)
    return areas


def texts_fit(masks: Sequence[Packed]) -> Bool[np.ndarray, " m"]:
    """Whether the runs of each mask cover its image exactly; no text may be damaged."""
    fit = np.zeros(len(masks), bool)
    for start in range(0, len(masks), TEXTS_AT_ONCE):
        some = masks[start : start + TEXTS_AT_ONCE]
        texts = [mask["counts"] for mask in some]
        offsets = np.cumsum([0, *map(len, texts)])
        filled = pixels_of_texts(offsets, np.frombuffer(b"".join(texts), np.uint8))
        pixels = np.array([mask["size"] for mask in some]).prod(axis=1)
        fit[start : start + TEXTS_AT_ONCE] = filled == pixels
    return fit
