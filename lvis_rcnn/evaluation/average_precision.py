"""Federated LVIS AP: judge only what was annotated (Gupta et al. 2019, section 2.3).

The protocol is that of ``lvis`` 0.5.3, and so is every bit of its results; the way there is another. Only cells of one
image and one category that were looked at are visited, all of them at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.evaluation.federated import (
    Judged,
    Objects,
    best_of_categories,
    best_of_images,
    judged_detections,
    objects_of,
    place_in_run,
    run_starts,
)
from lvis_rcnn.evaluation.ground_truth import Truth
from lvis_rcnn.evaluation.iou import Pairs, compare_boxes, compare_masks
from lvis_rcnn.evaluation.results import Found, Kind

# The expression of lvis, since its values are no exact multiples of 0.05.
THRESHOLDS = np.linspace(0.5, 0.95, 10, endpoint=True)

AREA_RANGES_PX = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Both ends belong to a range."""


@dataclass(frozen=True, eq=False)
class Hits:
    """``h`` detections that found an object at some of ``t`` thresholds and ``z`` sizes."""

    detections: Int64[np.ndarray, " h"]
    """Places in ``Judged``."""
    matched: Bool[np.ndarray, "h t z"]
    on_ignored: Bool[np.ndarray, "h t z"]
    """Matched to an object that does not count: the detection does not count either."""


def outside(areas: Float64[np.ndarray, " k"]) -> Bool[np.ndarray, "k z"]:
    """Whether an area is not of a size, for every size."""
    bounds = np.array(list(AREA_RANGES_PX.values()))
    return (areas[:, None] < bounds[:, 0]) | (areas[:, None] > bounds[:, 1])


def match(
    pairs: Pairs,
    cells: Int64[np.ndarray, " d"],
    by_cell: Int64[np.ndarray, " d"],
    ignored: Bool[np.ndarray, "g z"],
) -> Hits:
    """Let detections choose.

    Args:
        pairs: what overlaps.
        cells: cell of each detection of ``by_cell``.
        by_cell: as in ``Judged``.
        ignored: whether an object does not count, for every size.
    """
    # Best first: of equal overlaps the last object.
    pairs = sorted_pairs(pairs)
    starts = run_starts(pairs.detections)
    candidates = pairs.detections[starts]
    choosing = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(pairs.detections)))
    turns, slots = place_in_run(cells[candidates])[choosing], place_in_run(pairs.detections)
    reached, passed_over = reached_bits(pairs.overlaps), ignored_bits(ignored)
    taken = np.zeros(len(ignored), np.int64)
    matched, on_ignored = np.zeros((2, len(candidates)), np.int64)
    order = np.lexsort((slots, turns))
    for turn in np.split(order, run_starts(turns[order])[1:]) if len(order) else ():
        # Pairs of one slot are of different cells, so that none gets in another's way.
        groups = np.split(turn, run_starts(slots[turn])[1:])
        for ignoring in (False, True):
            for group in groups:
                mine, theirs = choosing[group], pairs.objects[group]
                allowed = passed_over[theirs] if ignoring else ~passed_over[theirs]
                takes = reached[group] & allowed & ~taken[theirs] & ~matched[mine]
                matched[mine] |= takes
                taken[theirs] |= takes
                if ignoring:
                    on_ignored[mine] |= takes
    hit = np.flatnonzero(matched)
    return Hits(by_cell[candidates[hit]], bits(matched[hit]), bits(on_ignored[hit]))


def sorted_pairs(pairs: Pairs) -> Pairs:
    """The objects of each detection, best first; most have only one."""
    order = np.arange(len(pairs.detections))
    each = np.diff(run_starts(pairs.detections), append=len(order))
    several = np.flatnonzero(np.repeat(each, each) > 1)
    overlaps, detections = pairs.overlaps[several], pairs.detections[several]
    order[several] = several[np.lexsort((-pairs.objects[several], -overlaps, detections))]
    return Pairs(pairs.detections, pairs.objects[order], pairs.overlaps[order])


# A threshold and a size are one bit of a whole number, so that one operation answers for all of them: bit
# ``threshold * sizes + size``.
SIZES = len(AREA_RANGES_PX)
PLACES = np.arange(len(THRESHOLDS) * SIZES)


def reached_bits(overlaps: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Thresholds that an overlap reaches."""
    up_to = np.searchsorted(THRESHOLDS, overlaps, side="right")
    reached: np.ndarray = (1 << SIZES * up_to) - 1
    return reached


def ignored_bits(ignored: Bool[np.ndarray, "g z"]) -> Int64[np.ndarray, " g"]:
    """Sizes, at every threshold, for which an object does not count."""
    of_threshold = ignored @ (1 << np.arange(SIZES))
    spread: np.ndarray = of_threshold * (1 << PLACES[::SIZES]).sum()
    return spread


def bits(numbers: Int64[np.ndarray, " h"]) -> Bool[np.ndarray, "h t z"]:
    """The bits of each, as truth values."""
    return ((numbers[:, None] >> PLACES) & 1).astype(bool).reshape(-1, len(THRESHOLDS), SIZES)


RECALLS = np.linspace(0.0, 1.00, 101, endpoint=True)

METRIC_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
FREQUENCIES = "rcf"

UNDEFINED = -1.0
"""Precision and recall of a category without objects."""


def curves(
    categories: Int64[np.ndarray, " d"],
    counts_alone: Bool[np.ndarray, "d z"],
    hits: Hits,
    num_objects: Int64[np.ndarray, "c z"],
) -> tuple[Float64[np.ndarray, "t r c z"], Float64[np.ndarray, "t c z"]]:
    """Precision at every recall, and the recall that is reached; -1 for a category without objects.

    Args:
        categories: category of each detection, ascending, in each by descending score.
        counts_alone: whether a detection that finds nothing is wrong; else it does not count.
        hits: what was found.
        num_objects: objects that count, of each category and size.
    """
    shape = len(THRESHOLDS), len(num_objects), len(RECALLS)
    precision = np.empty((len(THRESHOLDS), len(RECALLS), *num_objects.shape))
    recall = np.empty((len(THRESHOLDS), *num_objects.shape))
    order = np.argsort(hits.detections)
    at = hits.detections[order]
    starts = np.searchsorted(categories, np.arange(len(num_objects)))
    for size, objects in enumerate(num_objects.T):
        # All thresholds are read one after the other, as if each had its own categories and detections.
        threshold, hit = np.nonzero(hits.matched[order, :, size].T)
        right = ~hits.on_ignored[order[hit], threshold, size]
        of = threshold * len(num_objects) + categories[at[hit]]
        # Detections that count, up to and with each that found something, and before each category.
        alone = np.concatenate([[0], np.cumsum(counts_alone[:, size])])
        amends = np.concatenate([[0], np.cumsum(right.astype(np.int64) - counts_alone[at[hit], size])])
        before = np.tile(alone[starts], len(THRESHOLDS)) + amends[np.searchsorted(of, np.arange(shape[0] * shape[1]))]
        counted = alone[at[hit] + 1] + amends[1:] - before[of]
        best, found = best_precision(of[right], counted[right], np.tile(objects, len(THRESHOLDS)))
        defined = objects > 0
        precision[..., size] = np.where(defined[:, None], best.reshape(shape), UNDEFINED).transpose(0, 2, 1)
        recall[..., size] = np.where(defined, found.reshape(shape[:2]) / np.maximum(objects, 1), UNDEFINED)
    return precision, recall


def best_precision(
    categories: Int64[np.ndarray, " p"], counted: Int64[np.ndarray, " p"], num_objects: Int64[np.ndarray, " c"]
) -> tuple[Float64[np.ndarray, "c r"], Int64[np.ndarray, " c"]]:
    """Best precision at every recall or above, and the number of true positives, of each category.

    Args:
        categories: category of each true positive, ascending, in each by descending score.
        counted: detections that count up to and with each, in its category.
        num_objects: of each category.
    """
    found = np.bincount(categories, minlength=len(num_objects))
    right = np.arange(1, len(categories) + 1) - (np.cumsum(found) - found)[categories]
    # As lvis writes it, in this order of operations.
    true, false = right.astype(np.float64), (counted - right).astype(np.float64)
    reached = true / (false + true + np.spacing(1))
    # A true positive is the first to reach all recalls up to its own that its predecessor did not reach.
    highest = np.searchsorted(RECALLS, true / num_objects[categories], side="right") - 1
    place = categories * len(RECALLS) + highest
    best = np.zeros((len(num_objects), len(RECALLS)))
    runs = run_starts(place)
    if len(runs):
        best.reshape(-1)[place[runs]] = np.maximum.reduceat(reached, runs)
    return np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1], found


def metrics(
    precision: Float64[np.ndarray, "t r c z"], recall: Float64[np.ndarray, "t c z"], frequencies: Sequence[str]
) -> dict[str, float | None]:
    """The 13 official metrics, in fractions; None where no object defines one.

    Means are over the same values in the same order as those of ``lvis``: the rounding of a sum depends on it.
    """
    sizes = {name[0]: place for place, name in enumerate(AREA_RANGES_PX)}
    of_all = precision[..., sizes["a"]]
    values = {"AP": mean(of_all)}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        values[name] = mean(of_all[threshold == THRESHOLDS])
    for size in "sml":
        values[f"AP{size}"] = mean(precision[..., sizes[size]])
    for group in FREQUENCIES:
        members = [place for place, frequency in enumerate(frequencies) if frequency == group]
        values[f"AP{group}"] = mean(of_all[:, :, members])
    values["AR@300"] = mean(recall[..., sizes["a"]])
    for size in "sml":
        values[f"AR{size}@300"] = mean(recall[..., sizes[size]])
    return values


def mean_curves(
    precision: Float64[np.ndarray, "t r c z"], frequencies: Sequence[str]
) -> dict[str, dict[str, list[float] | None]]:
    """Precision at every recall, averaged over the categories that have objects: of all, and of each frequency.

    Keys are ``all``, r, c, f, then an IoU or the range of all; None where no category is defined. The mean of a curve
    of the range is the AP of its categories, to the five decimals that are kept.
    """
    defined = precision[0, 0, :, 0] > UNDEFINED
    members = {"all": defined} | {group: defined & (np.array(frequencies) == group) for group in FREQUENCIES}
    thresholds = {"0.5": slice(0, 1), "0.75": slice(5, 6), "0.5:0.95": slice(None)}
    return {
        group: {
            name: precision[at, :, :, 0][:, :, of_group].mean(axis=(0, 2)).round(5).tolist() if of_group.any() else None
            for name, at in thresholds.items()
        }
        for group, of_group in members.items()
    }


def mean(values: Float64[np.ndarray, "..."]) -> float | None:
    """Mean of what is defined."""
    defined = values[values > UNDEFINED]
    return float(np.mean(defined)) if len(defined) else None


def ap_of_categories(precision: Float64[np.ndarray, "t r c z"]) -> list[float | None]:
    """AP of each category over all sizes; None where it has no object."""
    means = precision[..., 0].mean(axis=(0, 1)).tolist()
    return [value if value > UNDEFINED else None for value in means]


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
