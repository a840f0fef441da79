"""Boundary IoU of masks (Cheng et al. 2021, arXiv 2103.16562): how well outlines agree, also those of large objects.

The boundary of a mask is made of its pixels within ``d`` pixels of its outline or of the image's edge. The overlap of a
pair is min(IoU of masks, IoU of boundaries), as in boundary-iou-api at 37d25586 and in lvis-api's branch of 2021
(lvis_challenge_2021, 04e89fde). LVIS has no crowd regions, for which it would be the IoU of masks: like ``lvis`` and
that branch, this does not read ``iscrowd``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64
from pycocotools import mask as coco_mask

from lvis_rcnn.evaluation.federated import EvaluatedDetections, Objects, run_starts
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.iou import LEAST_IOU, Pairs, in_processes
from lvis_rcnn.evaluation.masks import Packed, masks_of_truth
from lvis_rcnn.evaluation.results import DetectionSet
from lvis_rcnn.evaluation.subsets import only_objects

# Of the image's diagonal.
DILATION = 0.02

# Pairs at a time: a few MB of run lengths.
PAIRS_AT_ONCE = 1 << 12


@dataclass(frozen=True, eq=False)
class Boundary:
    """The boundary of a mask, inside the mask's bounding box."""

    left: int
    top: int
    is_boundary: Bool[np.ndarray, "w h"]
    """Column by column, as run lengths are."""
    area: int


def dilation_px(height: int, width: int) -> int:
    """Width of boundaries in an image: 0.02 of its diagonal, rounded half to even, and at least 1."""
    return max(1, round(DILATION * math.sqrt(height**2 + width**2)))


def boundary_of(mask: Packed) -> Boundary:
    """The pixels of a mask whose (2d + 1) x (2d + 1) square is not wholly inside the mask and the image."""
    height, width = mask["size"]
    left, top, columns, rows = coco_mask.toBbox(mask).astype(int).tolist()
    # Outside of its bounding box is outside of the mask, whether or not it is outside of the image.
    pixels = coco_mask.decode(mask).T[left : left + columns, top : top + rows].astype(bool)
    d = dilation_px(height, width)
    if min(pixels.shape) > 2 * d:
        pixels[d:-d, d:-d] &= ~whole_squares(pixels, 2 * d + 1)
    return Boundary(left, top, pixels, int(np.count_nonzero(pixels)))


def whole_squares(pixels: Bool[np.ndarray, "w h"], side: int) -> Bool[np.ndarray, "w-{side}+1 h-{side}+1"]:
    """Whether each square of ``side`` pixels that fits into ``pixels`` is set everywhere.

    Squares grow by up to their own side at a time: six steps to 33 pixels, which is that of 640 x 480.
    """
    reached = 1
    while reached < side:
        step = min(reached, side - reached)
        pixels = pixels[:-step] & pixels[step:]
        pixels = pixels[:, :-step] & pixels[:, step:]
        reached += step
    return pixels


def boundary_iou(one: Boundary, other: Boundary) -> float:
    """IoU of two boundaries in the same image; 0 where both are empty."""
    left, top = max(one.left, other.left), max(one.top, other.top)
    both = [boundary.is_boundary[left - boundary.left :, top - boundary.top :] for boundary in (one, other)]
    columns, rows = (min(sides) for sides in zip(*(pixels.shape for pixels in both), strict=True))
    shared = int(np.count_nonzero(both[0][:columns, :rows] & both[1][:columns, :rows]))
    return shared / max(one.area + other.area - shared, 1)


@dataclass(frozen=True, eq=False)
class BoundaryPart:
    """Pairs of masks, sorted by detection, with everything that is needed to compare their boundaries."""

    masks: list[Packed]
    """Of each detection."""
    objects: list[Packed]
    at: list[int]
    """Place of each pair's detection in ``masks``, ascending."""
    at_objects: list[int]


def compare_part(part: BoundaryPart) -> Float64[np.ndarray, " p"]:
    """IoU of the boundaries of each pair; each boundary is made once."""
    theirs = [boundary_of(mask) for mask in part.objects]
    found, last, mine = [], -1, None
    for at, at_object in zip(part.at, part.at_objects, strict=True):
        if at != last or mine is None:
            last, mine = at, boundary_of(part.masks[at])
        found.append(boundary_iou(mine, theirs[at_object]))
    return np.array(found)


def boundary_pairs(
    truth: GroundTruth,
    objects: Objects,
    detections: DetectionSet,
    evaluated: EvaluatedDetections,
    pairs: Pairs,
    processes: int = 1,
) -> Pairs:
    """Those of the ``pairs`` of masks that still overlap by 0.5 where boundaries are compared, too.

    Args:
        truth: the annotations.
        objects: the objects of ``pairs``.
        detections: with masks.
        evaluated: the detections of ``pairs``.
        pairs: as :func:`iou.compare_masks` found them. No other pair can overlap by 0.5.
        processes: number of processes that compare, at least 1; no result depends on it.
    """
    parts = in_processes(compare_part, boundary_parts(truth, objects, detections, evaluated, pairs), processes)
    overlaps = np.minimum(pairs.overlaps, np.concatenate([np.zeros(0), *parts]))
    kept = overlaps >= LEAST_IOU
    return Pairs(pairs.detections[kept], pairs.objects[kept], overlaps[kept])


def boundary_parts(
    truth: GroundTruth, objects: Objects, detections: DetectionSet, evaluated: EvaluatedDetections, pairs: Pairs
) -> Iterator[BoundaryPart]:
    """The pairs, in parts of about ``PAIRS_AT_ONCE``."""
    assert detections.masks is not None
    starts = run_starts(pairs.detections)
    cuts = np.arange(0, len(pairs.detections), PAIRS_AT_ONCE)
    bounds = starts[np.unique(np.searchsorted(starts, cuts, side="right") - 1)]
    for start, stop in pairwise([*bounds.tolist(), len(pairs.detections)]):
        mine, at = np.unique(pairs.detections[start:stop], return_inverse=True)
        theirs, at_objects = np.unique(pairs.objects[start:stop], return_inverse=True)
        yield BoundaryPart(
            masks=detections.masks.packed(evaluated.rows[evaluated.by_cell[mine]]),
            objects=masks_of_truth(only_objects(truth, objects.rows[theirs])),
            at=at.tolist(),
            at_objects=at_objects.tolist(),
        )
