"""IoU of the detections and objects of each cell: of boxes in NumPy, of masks with pycocotools."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lvis_rcnn.evaluation.federated import EvaluatedDetections, Objects, run_starts
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.masks import Packed, areas_of, damaged, masks_of_truth, texts_fit
from lvis_rcnn.evaluation.results import DetectionSet
from lvis_rcnn.system.cli import InputError

# Smallest IoU that the protocol calls a match.
LEAST_IOU = 0.5

# Pairs of boxes at a time: what fits the processor's cache.
BOXES_AT_ONCE = 1 << 17

# Masks at a time: 20 MB of Python objects.
MASKS_AT_ONCE = 1 << 15

# Parts that are prepared per process: one is worked on while others wait, and memory stays bounded.
PARTS_AHEAD = 3

Part = TypeVar("Part")
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a detection and an object of the same cell with an IoU of at least 0.5, sorted by cell, then by score.

    The objects of one detection are in the order of the file.
    """

    detections: Int64[np.ndarray, " p"]
    """Places in ``EvaluatedDetections.by_cell``."""
    objects: Int64[np.ndarray, " p"]
    """Places in ``Objects``."""
    overlaps: Float64[np.ndarray, " p"]

    def among(self, kept: Bool[np.ndarray, " d"]) -> "Pairs":
        """The pairs of the detections that are ``kept``, whose places are counted among these."""
        some = kept[self.detections]
        return Pairs((np.cumsum(kept) - 1)[self.detections[some]], self.objects[some], self.overlaps[some])


def compare_boxes(
    truth: GroundTruth, objects: Objects, detections: DetectionSet, evaluated: EvaluatedDetections
) -> tuple[Float64[np.ndarray, " d"], Pairs]:
    """Areas of the evaluated boxes, in the order of ``evaluated``, and their pairs.

    The arithmetic is that of ``bbIou`` in maskApi.c (cocoapi at 8c9bcc3c), operation by operation in 64 bits.
    """
    assert detections.boxes_xywh is not None
    lacking = np.isnan(truth.boxes_xywh).any(axis=1)
    if lacking.any():
        record = f"{truth.where}: annotation {truth.annotation_ids[np.argmax(lacking)]}"
        raise InputError(record, "has no bbox", fix="write it, or score masks only: --kinds segm")
    boxes = detections.boxes_xywh[evaluated.rows].astype(np.float64)
    with np.errstate(over="ignore"):
        areas = boxes[:, 2] * boxes[:, 3]
        first, each = objects_in_cell(truth, objects, evaluated)
        near = np.flatnonzero(each)
        parts = []
        theirs = sides(truth.boxes_xywh[objects.rows])
        mine = sides(boxes[evaluated.by_cell[near]])
        for at, at_objects in candidate_pairs(first[near], each[near]):
            parts.append(overlapping(mine, theirs, at, at_objects))
    pairs = joined(parts)
    return areas, Pairs(near[pairs.detections], pairs.objects, pairs.overlaps)


def sides(boxes_xywh: Float64[np.ndarray, "k 4"]) -> Float64[np.ndarray, "5 k"]:
    """Left, top, right, bottom and area of boxes."""
    x, y, width, height = boxes_xywh.T
    return np.stack([x, y, width + x, height + y, width * height])


def candidate_pairs(
    first: Int64[np.ndarray, " k"], each: Int64[np.ndarray, " k"]
) -> Iterator[tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]]:
    """Every detection 0 to k with each object of its cell, in parts of about ``BOXES_AT_ONCE`` pairs.

    Args:
        first: first object of the cell of each detection.
        each: number of objects there.
    """
    ends = np.cumsum(each)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.searchsorted(ends, np.arange(0, total, BOXES_AT_ONCE), side="right"))
    for start, stop in pairwise([*cuts.tolist(), len(each)]):
        numbers = each[start:stop]
        skipped = ends[start:stop] - numbers - (ends[start] - numbers[0]) - first[start:stop]
        objects = np.arange(numbers.sum()) - np.repeat(skipped, numbers)
        yield np.repeat(np.arange(start, stop), numbers), objects


def overlapping(
    mine: Float64[np.ndarray, "5 k"],
    theirs: Float64[np.ndarray, "5 g"],
    at: Int64[np.ndarray, " p"],
    at_objects: Int64[np.ndarray, " p"],
) -> Pairs:
    """Those of the pairs whose IoU is at least ``LEAST_IOU``.

    Args:
        mine: :func:`sides` of detections.
        theirs: :func:`sides` of objects.
        at: detection of each pair.
        at_objects: object of each pair.
    """
    width = np.minimum(mine[2, at], theirs[2, at_objects]) - np.maximum(mine[0, at], theirs[0, at_objects])
    kept = np.flatnonzero(width > 0)
    at, at_objects, width = at[kept], at_objects[kept], width[kept]
    height = np.minimum(mine[3, at], theirs[3, at_objects]) - np.maximum(mine[1, at], theirs[1, at_objects])
    shared = width * height
    with np.errstate(invalid="ignore", divide="ignore"):
        overlaps = shared / (mine[4, at] + theirs[4, at_objects] - shared)
        kept = np.flatnonzero((height > 0) & (overlaps >= LEAST_IOU))
    return Pairs(at[kept], at_objects[kept], overlaps[kept])


@dataclass(frozen=True, eq=False)
class MaskPart:
    """``d`` detections, all of their cells, with everything that is needed to compare their masks."""

    start: int
    """Place of the first in ``EvaluatedDetections.by_cell``."""
    masks: list[Packed]
    nearness: Float64[np.ndarray, "2 d"]
    """Smallest and largest area of the objects in each detection's cell."""
    first: Int64[np.ndarray, " d"]
    """First object of each detection's cell, among ``objects``; it differs between cells that have objects."""
    each: Int64[np.ndarray, " d"]
    """Number of objects in each detection's cell."""
    first_object: int
    """Place of the first of ``objects`` in ``Objects``."""
    objects: list[Packed]


Compared = tuple[Float64[np.ndarray, " d"], Pairs]
"""Areas of detections, and their pairs with an IoU of at least ``LEAST_IOU``."""


def compare_masks(
    truth: GroundTruth, objects: Objects, detections: DetectionSet, evaluated: EvaluatedDetections, processes: int = 1
) -> Compared:
    """Areas of the evaluated masks, in the order of ``evaluated``, and their pairs, whatever ``processes`` is.

    Raises:
        InputError: a mask is damaged, or inference left it out.
    """
    masks = detections.masks
    assert masks is not None
    require_masks(detections, evaluated)
    rows = evaluated.rows[evaluated.by_cell]
    areas, compared = np.zeros(len(rows)), []
    start = 0
    with tqdm(total=len(rows), desc="comparing masks", unit="mask", unit_scale=True, disable=None) as bar:
        for of_part, pairs in in_processes(compare_part, mask_parts(truth, objects, detections, evaluated), processes):
            stop = start + len(of_part)
            too_large = of_part > masks.sizes_hw[rows[start:stop]].prod(axis=1)
            if too_large.any():
                raise damaged(detections.record(int(rows[start + np.argmax(too_large)])))
            areas[start:stop] = of_part
            compared.append(pairs)
            bar.update(stop - start)
            start = stop
    areas_of_all = np.empty(len(rows))
    areas_of_all[evaluated.by_cell] = areas
    return areas_of_all, joined(compared)


def in_processes(compare: Callable[[Part], Found], parts: Iterator[Part], processes: int) -> Iterator[Found]:
    """What ``compare`` finds in each part, in order; one alone needs no new processes, whose start takes a second."""
    some = list(islice(parts, PARTS_AHEAD * processes))
    if processes == 1 or len(some) < 2:
        yield from map(compare, chain(some, parts))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while some:
            yield from pool.map(compare, some)
            some = list(islice(parts, PARTS_AHEAD * processes))


def compare_part(part: MaskPart) -> Compared:
    """Areas of the masks of a part, and their pairs."""
    areas = areas_of(part.masks)
    # A mask of less than half of another's pixels, or more than twice as many, overlaps it by less than 0.5.
    smallest, largest = part.nearness
    near = np.flatnonzero((areas > 0) & (2 * areas >= smallest) & (areas <= 2 * largest))
    # pycocotools would never come back from comparing a mask whose runs fill fewer or more pixels than the other's.
    fit = texts_fit([part.masks[at] for at in near.tolist()])
    areas[near[~fit]], near = np.inf, near[fit]
    found = []
    for a, b in pairwise([*run_starts(part.first[near]).tolist(), len(near)]):
        at_object = int(part.first[near[a]])
        of_cell = part.objects[at_object : at_object + int(part.each[near[a]])]
        overlaps = coco_mask.iou([part.masks[at] for at in near[a:b].tolist()], of_cell, [0] * len(of_cell))
        at, at_objects = np.nonzero(overlaps >= LEAST_IOU)
        places = part.start + near[a + at], part.first_object + at_object + at_objects
        found.append(Pairs(*places, overlaps[at, at_objects]))
    return areas, joined(found)


def require_masks(detections: DetectionSet, evaluated: EvaluatedDetections) -> None:
    """Refuse evaluated detections that have no mask, since inference kept only those that another file scores.

    Raises:
        InputError: names the first.
    """
    if detections.has_mask is not None and not detections.has_mask[evaluated.rows].all():
        row = int(evaluated.rows[np.argmin(detections.has_mask[evaluated.rows])])
        raise InputError(
            detections.record(row),
            "has no mask: inference ran with inference.masks: scored and another annotation file",
            fix="infer with inference.masks: all",
        )


def area_bounds(
    objects: Objects, areas: Float64[np.ndarray, " g"], first: Int64[np.ndarray, " d"], each: Int64[np.ndarray, " d"]
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
    """Smallest and largest area of the objects in the cell of each detection; NaN where it has no object."""
    smallest, largest = np.full((2, len(objects.cells) + 1), np.nan)
    starts = run_starts(objects.cells)
    if len(starts):
        smallest[starts], largest[starts] = np.minimum.reduceat(areas, starts), np.maximum.reduceat(areas, starts)
    where = np.where(each > 0, first, len(objects.cells))
    return smallest[where], largest[where]


def mask_parts(
    truth: GroundTruth, objects: Objects, detections: DetectionSet, evaluated: EvaluatedDetections
) -> Iterator[MaskPart]:
    """The detections in the order of ``evaluated.by_cell``, in parts that never divide a cell."""
    assert detections.masks is not None
    all_theirs = masks_of_truth(truth)
    theirs = [all_theirs[row] for row in objects.rows.tolist()]
    first, each = objects_in_cell(truth, objects, evaluated)
    nearness = np.stack(area_bounds(objects, areas_of(theirs), first, each))
    rows = evaluated.rows[evaluated.by_cell]
    for start, stop in whole_cells(evaluated.cells(len(truth.image_ids))):
        part, has_any = slice(start, stop), each[start:stop] > 0
        lowest = int(first[part][has_any].min(initial=len(theirs)))
        highest = int((first[part] + each[part])[has_any].max(initial=lowest))
        yield MaskPart(
            start=start,
            masks=detections.masks.packed(rows[part]),
            nearness=nearness[:, part],
            first=first[part] - lowest,
            each=each[part],
            first_object=lowest,
            objects=theirs[lowest:highest],
        )


def whole_cells(cells: Int64[np.ndarray, " d"]) -> Iterator[tuple[int, int]]:
    """Bounds of parts of about ``MASKS_AT_ONCE`` detections that never divide a cell."""
    ends = [*run_starts(cells)[1:].tolist(), len(cells)] if len(cells) else []
    start = 0
    for end in ends:
        if end - start >= MASKS_AT_ONCE or end == len(cells):
            yield start, end
            start = end


def objects_in_cell(
    truth: GroundTruth, objects: Objects, evaluated: EvaluatedDetections
) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " d"]]:
    """First object of the cell of each detection of ``by_cell``, and the number of objects there."""
    cells = evaluated.cells(len(truth.image_ids))
    first = np.searchsorted(objects.cells, cells)
    return first, np.searchsorted(objects.cells, cells, side="right") - first


def joined(parts: list[Pairs]) -> Pairs:
    """The pairs of all parts; none where there is no part."""
    nothing = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns = ("detections", "objects", "overlaps")
    return Pairs(*(np.concatenate([getattr(part, name) for part in (nothing, *parts)]) for name in columns))
