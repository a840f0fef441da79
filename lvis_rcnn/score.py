"""Federated LVIS AP: judge only what was annotated (Gupta et al. 2019, section 2.3).

The protocol is that of ``lvis`` 0.5.3, and so is every bit of its results; the way there is another. Only cells of one
image and one category that were looked at are visited, all of them at once.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.accumulate import ap_of_categories, curves, metrics
from lvis_rcnn.cells import Judged, Objects, best_of_categories, best_of_images, judged_detections, objects_of
from lvis_rcnn.match import AREA_RANGES_PX, Hits, match, outside
from lvis_rcnn.overlaps import compare_boxes, compare_masks
from lvis_rcnn.results_file import Found, Kind
from lvis_rcnn.truth import Truth

# Of AP-fixed.
DETECTIONS_PER_CATEGORY = 10_000


@dataclass(frozen=True, eq=False)
class Matches:
    """What every number is made of: who found what, detection by detection.

    Any weighting of images can be scored from it without matching again.
    """

    judged: Judged
    """Detections by category and score, with the image of each."""
    tied: Bool[np.ndarray, " d"]
    """Whether a detection has category, score and image of the one before it."""
    counts_alone: Bool[np.ndarray, "d z"]
    """Whether a detection is a false positive where it finds nothing; else it does not count."""
    hits: Hits
    """Those that found an object, at each threshold and size."""
    object_categories: Int64[np.ndarray, " g"]
    object_images: Int64[np.ndarray, " g"]
    object_counts: Bool[np.ndarray, "g z"]
    """Whether an object is of a size, and not ignored."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The result for boxes or masks; categories are those of ``Truth``, sizes all, small, medium, large."""

    precision: Float64[np.ndarray, "t r c z"]
    """At 10 thresholds and 101 recalls; -1 for a category without objects of a size."""
    recall: Float64[np.ndarray, "t c z"]
    metrics: dict[str, float | None]
    """The 13 official names, in fractions; None where no object defines one."""
    category_ap: list[float | None]
    num_objects: Int64[np.ndarray, "c z"]
    """Objects that count."""
    matches: Matches


def score(
    truth: Truth,
    found: Found,
    kind: Kind,
    detections_per_image: int = 300,
    mask_sizes_from: Literal["masks", "boxes"] = "masks",
    processes: int = 1,
) -> Scores:
    """Score boxes or masks.

    Args:
        truth: the annotations.
        found: detections that have what ``kind`` needs, in images of ``truth``; those of categories that it does not
            have only count towards the best of an image.
        kind: bbox or segm.
        detections_per_image: the best this many of an image count, over all categories together.
        mask_sizes_from: whether masks are small or large by their own area, or by that of their boxes, as ``lvis``
            has it where its results have both.
        processes: that compare masks, at least 1; no result depends on it.

    Raises:
        InputError: a mask is damaged.
    """
    best = best_of_images(truth, found, detections_per_image)
    return score_best(truth, found, kind, best, mask_sizes_from, processes)


def score_fixed(
    truth: Truth, found: Found, kind: Kind, detections_per_category: int = DETECTIONS_PER_CATEGORY
) -> Scores:
    """AP-fixed (Dave et al. 2021, arXiv 2102.01066, section 4): as :func:`score`, but for which detections count.

    These are the best of each category over all images, however many of an image: so no category's detections push
    out those of another.
    """
    return score_best(truth, found, kind, best_of_categories(truth, found, detections_per_category))


def score_best(
    truth: Truth,
    found: Found,
    kind: Kind,
    best: Bool[np.ndarray, " d"],
    mask_sizes_from: Literal["masks", "boxes"] = "masks",
    processes: int = 1,
) -> Scores:
    """Score some of the detections."""
    objects = objects_of(truth)
    judged = judged_detections(truth, objects, found, best)
    if kind == "bbox":
        areas, pairs = compare_boxes(truth, objects, found, judged)
    else:
        areas, pairs = compare_masks(truth, objects, found, judged, processes)
    if kind == "segm" and mask_sizes_from == "boxes":
        areas = box_areas(found, judged)
    not_counting = truth.ignored[objects.rows, None] | outside(truth.areas[objects.rows])
    kept = (areas > 0) & (areas < np.inf)
    if not kept.all():
        pairs = pairs.among(kept[judged.by_cell])
        judged, areas = judged.only(kept), areas[kept]
    hits = match(pairs, judged.cells(len(truth.image_ids)), judged.by_cell, not_counting)
    return scores_of(truth, matches_of(truth, found, objects, judged, areas, hits, ~not_counting))


def box_areas(found: Found, judged: Judged) -> Float64[np.ndarray, " d"]:
    """Area of the box of each detection."""
    assert found.boxes_xywh is not None
    width, height = found.boxes_xywh[judged.rows, 2:].astype(np.float64).T
    areas: np.ndarray = width * height
    return areas


def matches_of(
    truth: Truth,
    found: Found,
    objects: Objects,
    judged: Judged,
    areas: Float64[np.ndarray, " d"],
    hits: Hits,
    object_counts: Bool[np.ndarray, "g z"],
) -> Matches:
    """Who found what, with what it takes to count it."""
    return Matches(
        judged=judged,
        tied=tied_detections(found, judged),
        counts_alone=~(outside(areas) | judged.not_exhaustive[:, None]),
        hits=hits,
        object_categories=truth.categories[objects.rows],
        object_images=truth.images[objects.rows],
        object_counts=object_counts,
    )


def tied_detections(found: Found, judged: Judged) -> Bool[np.ndarray, " d"]:
    """Whether each has category, score and image of the one before it."""
    tied = np.zeros(len(judged.rows), bool)
    tied[1:] = np.diff(found.scores[judged.rows]) == 0
    for same in (judged.categories, judged.images):
        tied[1:] &= same[1:] == same[:-1]
    return tied


def scores_of(truth: Truth, matches: Matches) -> Scores:
    """All numbers."""
    num_objects = np.zeros((len(truth.category_ids), len(AREA_RANGES_PX)), np.int64)
    np.add.at(num_objects, matches.object_categories, matches.object_counts)
    precision, recall = curves(matches.judged.categories, matches.counts_alone, matches.hits, num_objects)
    return Scores(
        precision=precision,
        recall=recall,
        metrics=metrics(precision, recall, truth.frequencies),
        category_ap=ap_of_categories(precision),
        num_objects=num_objects,
        matches=matches,
    )
