"""Matching, precision, recall and AP of the LVIS protocol (Gupta et al. 2019, section 2.3).

Results are bit-identical to those of ``lvis`` 0.5.3, which visits every (image, category) pair in a loop; here only
those with verified annotations are visited, all at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.evaluation.federated import (
    EvaluatedDetections,
    Objects,
    best_of_images,
    evaluated_detections,
    objects_of,
    place_in_run,
    run_starts,
)
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.iou import Pairs, compare_boxes, compare_masks
from lvis_rcnn.evaluation.results import DetectionSet, Kind

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
class Matches:
    """``h`` detections that match an object at some of ``t`` IoU thresholds and ``z`` sizes."""

    detections: Int64[np.ndarray, " h"]
    """Places in ``EvaluatedDetections``, ascending."""
    matched: Bool[np.ndarray, "h t z"]
    matched_to_ignored: Bool[np.ndarray, "h t z"]
    """Matched to an object that does not count: then the detection does not count either."""


def outside(areas: Float64[np.ndarray, " k"]) -> Bool[np.ndarray, "k z"]:
    """Whether an area is outside the range of each size."""
    bounds = np.array(list(AREA_RANGES_PX.values()))
    return (areas[:, None] < bounds[:, 0]) | (areas[:, None] > bounds[:, 1])


def match(
    pairs: Pairs,
    cells: Int64[np.ndarray, " d"],
    by_cell: Int64[np.ndarray, " d"],
    ignored: Bool[np.ndarray, "g z"],
) -> Matches:
    """Match each detection, best score first, to the free object of its cell that it overlaps most.

    Args:
        pairs: detections and objects that overlap by 0.5 or more.
        cells: cell of each detection of ``by_cell``.
        by_cell: as in ``EvaluatedDetections``.
        ignored: whether an object does not count, for every size.
    """
    # Best first; among equal overlaps the last object.
    pairs = sorted_pairs(pairs)
    starts = run_starts(pairs.detections)
    candidates = pairs.detections[starts]
    choosing = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(pairs.detections)))
    turns, slots = place_in_run(cells[candidates])[choosing], place_in_run(pairs.detections)
    reached, passed_over = reached_bits(pairs.overlaps), ignored_bits(ignored)
    taken = np.zeros(len(ignored), np.int64)
    matched, matched_to_ignored = np.zeros((2, len(candidates)), np.int64)
    order = np.lexsort((slots, turns))
    for turn in np.split(order, run_starts(turns[order])[1:]) if len(order) else ():
        # Pairs of one slot are of different cells, so that they cannot want the same object.
        groups = np.split(turn, run_starts(slots[turn])[1:])
        for ignoring in (False, True):
            for group in groups:
                mine, theirs = choosing[group], pairs.objects[group]
                allowed = passed_over[theirs] if ignoring else ~passed_over[theirs]
                takes = reached[group] & allowed & ~taken[theirs] & ~matched[mine]
                matched[mine] |= takes
                taken[theirs] |= takes
                if ignoring:
                    matched_to_ignored[mine] |= takes
    hit = np.flatnonzero(matched)
    hit = hit[np.argsort(by_cell[candidates[hit]])]
    return Matches(by_cell[candidates[hit]], bits(matched[hit]), bits(matched_to_ignored[hit]))


def sorted_pairs(pairs: Pairs) -> Pairs:
    """The objects of each detection, largest overlap first; most have only one."""
    order = np.arange(len(pairs.detections))
    each = np.diff(run_starts(pairs.detections), append=len(order))
    several = np.flatnonzero(np.repeat(each, each) > 1)
    overlaps, detections = pairs.overlaps[several], pairs.detections[several]
    order[several] = several[np.lexsort((-pairs.objects[several], -overlaps, detections))]
    return Pairs(pairs.detections, pairs.objects[order], pairs.overlaps[order])


# Each threshold and size is one bit of an integer, so that one operation handles all of them: bit
# ``threshold * sizes + size``.
NUM_SIZES = len(AREA_RANGES_PX)
PLACES = np.arange(len(THRESHOLDS) * NUM_SIZES)


def reached_bits(overlaps: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Thresholds that an overlap reaches."""
    up_to = np.searchsorted(THRESHOLDS, overlaps, side="right")
    reached: np.ndarray = (1 << NUM_SIZES * up_to) - 1
    return reached


def ignored_bits(ignored: Bool[np.ndarray, "g z"]) -> Int64[np.ndarray, " g"]:
    """Sizes, at every threshold, for which an object does not count."""
    of_threshold = ignored @ (1 << np.arange(NUM_SIZES))
    spread: np.ndarray = of_threshold * (1 << PLACES[::NUM_SIZES]).sum()
    return spread


def bits(numbers: Int64[np.ndarray, " h"]) -> Bool[np.ndarray, "h t z"]:
    """The bits of each, as truth values."""
    return ((numbers[:, None] >> PLACES) & 1).astype(bool).reshape(-1, len(THRESHOLDS), NUM_SIZES)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What every number is computed from: ``d`` detections and ``g`` objects sorted by category, and their matches.

    Detections of a category are in the order of descending scores, equal scores in that of images, within an image in
    that of the file. Any weighting of images can be scored from it without matching again.
    """

    num_images: int
    starts: Int64[np.ndarray, " bounds"]
    """First detection of each category, then the number of detections."""
    images: Int64[np.ndarray, " d"]
    """Position of each detection's image."""
    tied: Bool[np.ndarray, " d"]
    """Whether a detection has the category, score and image of the one before it."""
    is_false_positive_if_unmatched: Bool[np.ndarray, "d z"]
    """Whether a detection without a match is a false positive; if not, it does not count."""
    matches: Matches
    """In the order of detections."""
    object_starts: Int64[np.ndarray, " bounds"]
    """First object of each category, then the number of objects."""
    object_images: Int64[np.ndarray, " g"]
    object_counts: Bool[np.ndarray, "g z"]
    """Whether an object is of a size, and not ignored."""


RECALLS = np.linspace(0.0, 1.00, 101, endpoint=True)

METRIC_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
FREQUENCIES = "rcf"

UNDEFINED = -1.0
"""Precision and recall of a category without objects."""


def precision_and_recall(
    outcomes: Outcomes, num_objects: Int64[np.ndarray, "c z"]
) -> tuple[Float64[np.ndarray, "t r c z"], Float64[np.ndarray, "t c z"]]:
    """Precision at every recall, and the recall that is reached; -1 for a category without objects.

    ``num_objects`` says how many objects count, of each category and size.
    """
    matches, at = outcomes.matches, outcomes.matches.detections
    shape = len(THRESHOLDS), len(num_objects), len(RECALLS)
    precision = np.empty((len(THRESHOLDS), len(RECALLS), *num_objects.shape))
    recall = np.empty((len(THRESHOLDS), *num_objects.shape))
    categories = np.searchsorted(outcomes.starts, at, side="right") - 1
    for size, objects in enumerate(num_objects.T):
        # All thresholds follow each other, as if each had its own categories and detections.
        threshold, hit = np.nonzero(matches.matched[:, :, size].T)
        right = ~matches.matched_to_ignored[hit, threshold, size]
        of = threshold * len(num_objects) + categories[hit]
        # Number of detections that count, up to and including each match, and before each category: as if all were
        # unmatched, corrected by one for each match that changes whether its detection counts.
        if_unmatched = outcomes.is_false_positive_if_unmatched[:, size]
        false_positives = np.concatenate([[0], np.cumsum(if_unmatched)])
        corrections = np.concatenate([[0], np.cumsum(right.astype(np.int64) - if_unmatched[at[hit]])])
        before = np.tile(false_positives[outcomes.starts[:-1]], len(THRESHOLDS))
        before = before + corrections[np.searchsorted(of, np.arange(shape[0] * shape[1]))]
        counted = false_positives[at[hit] + 1] + corrections[1:] - before[of]
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
        categories: category of each true positive, ascending, within one by descending score.
        counted: detections of its category that count, up to and including each.
        num_objects: objects of each category that count.
    """
    found = np.bincount(categories, minlength=len(num_objects))
    right = np.arange(1, len(categories) + 1) - (np.cumsum(found) - found)[categories]
    # As lvis writes it, in this order of operations.
    true, false = right.astype(np.float64), (counted - right).astype(np.float64)
    reached = true / (false + true + np.spacing(1))
    # A true positive is the first to reach those recalls up to its own that the one before did not reach.
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

    Means are over the same values in the same order as in ``lvis``, since the rounding of a sum depends on it.
    """
    sizes = {name[0]: place for place, name in enumerate(AREA_RANGES_PX)}
    of_all = precision[..., sizes["a"]]
    values = {"AP": mean_of_defined(of_all)}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        values[name] = mean_of_defined(of_all[threshold == THRESHOLDS])
    for size in "sml":
        values[f"AP{size}"] = mean_of_defined(precision[..., sizes[size]])
    for group in FREQUENCIES:
        members = [place for place, frequency in enumerate(frequencies) if frequency == group]
        values[f"AP{group}"] = mean_of_defined(of_all[:, :, members])
    values["AR@300"] = mean_of_defined(recall[..., sizes["a"]])
    for size in "sml":
        values[f"AR{size}@300"] = mean_of_defined(recall[..., sizes[size]])
    return values


def mean_curves(
    precision: Float64[np.ndarray, "t r c z"], frequencies: Sequence[str]
) -> dict[str, dict[str, list[float] | None]]:
    """Precision at every recall, averaged over the categories that have objects: of all, and of each frequency.

    Keys are ``all``, r, c, f, then an IoU threshold or the range of all; None where no category is defined. The mean of
    a curve of the range is the AP of its categories, to the five decimals that are kept.
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


def mean_of_defined(values: Float64[np.ndarray, "..."]) -> float | None:
    """Mean of the values that are defined; None where there is none."""
    defined = values[values > UNDEFINED]
    return float(np.mean(defined)) if len(defined) else None


def ap_of_categories(precision: Float64[np.ndarray, "t r c z"]) -> list[float | None]:
    """AP of each category over all sizes; None where it has no object."""
    means = precision[..., 0].mean(axis=(0, 1)).tolist()
    return [value if value > UNDEFINED else None for value in means]


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of boxes or masks; categories are those of ``GroundTruth``, sizes all, small, medium, large."""

    precision: Float64[np.ndarray, "t r c z"]
    """At 10 thresholds and 101 recalls; -1 for a category without objects of a size."""
    recall: Float64[np.ndarray, "t c z"]
    metrics: dict[str, float | None]
    """The 13 official names, in fractions; None where no object defines one."""
    category_ap: list[float | None]
    num_objects: Int64[np.ndarray, "c z"]
    """Objects that count."""
    outcomes: Outcomes


def score(
    truth: GroundTruth,
    detections: DetectionSet,
    kind: Kind,
    detections_per_image: int = 300,
    mask_sizes_from: Literal["masks", "boxes"] = "masks",
    processes: int = 1,
) -> Scores:
    """Score boxes or masks.

    Args:
        truth: the annotations.
        detections: of images of ``truth``, with boxes or masks as ``kind`` needs; those of categories that ``truth``
            does not have only count towards ``detections_per_image``.
        kind: bbox or segm.
        detections_per_image: at most so many of an image count, the best ones over all categories together.
        mask_sizes_from: whether masks are small or large by their own area, or by that of their boxes as in ``lvis``
            for results that have both.
        processes: number of processes that compare masks, at least 1; no result depends on it.

    Raises:
        InputError: a mask is damaged.
    """
    best = best_of_images(truth, detections, detections_per_image)
    candidates = candidates_of(truth, detections, kind, best, mask_sizes_from, processes)
    return scores_of(outcomes_of(truth, detections, candidates), truth.frequencies)


@dataclass(frozen=True, eq=False)
class Candidates:
    """``d`` evaluated detections that have an area, and the objects that they overlap by 0.5 or more."""

    objects: Objects
    evaluated: EvaluatedDetections
    areas: Float64[np.ndarray, " d"]
    pairs: Pairs

    def only(self, kept: Bool[np.ndarray, " d"]) -> "Candidates":
        """The detections that are ``kept``."""
        pairs = self.pairs.among(kept[self.evaluated.by_cell])
        return Candidates(self.objects, self.evaluated.only(kept), self.areas[kept], pairs)


def candidates_of(
    truth: GroundTruth,
    detections: DetectionSet,
    kind: Kind,
    best: Bool[np.ndarray, " d"],
    mask_sizes_from: Literal["masks", "boxes"] = "masks",
    processes: int = 1,
) -> Candidates:
    """Compare the detections that are among the ``best`` with the objects of their cells."""
    objects = objects_of(truth)
    evaluated = evaluated_detections(truth, detections, best)
    if kind == "bbox":
        areas, pairs = compare_boxes(truth, objects, detections, evaluated)
    else:
        areas, pairs = compare_masks(truth, objects, detections, evaluated, processes)
    if kind == "segm" and mask_sizes_from == "boxes":
        assert detections.boxes_xywh is not None
        areas = detections.boxes_xywh[evaluated.rows, 2:].astype(np.float64).prod(axis=1)
    candidates = Candidates(objects, evaluated, areas, pairs)
    kept = (areas > 0) & (areas < np.inf)
    return candidates if kept.all() else candidates.only(kept)


def outcomes_of(truth: GroundTruth, detections: DetectionSet, candidates: Candidates) -> Outcomes:
    """Match the candidates."""
    objects, evaluated = candidates.objects, candidates.evaluated
    not_counting = truth.ignored[objects.rows, None] | outside(truth.areas[objects.rows])
    matches = match(candidates.pairs, evaluated.cells(len(truth.image_ids)), evaluated.by_cell, not_counting)
    bounds = np.arange(len(truth.category_ids) + 1)
    return Outcomes(
        num_images=len(truth.image_ids),
        starts=np.searchsorted(evaluated.categories, bounds),
        images=evaluated.images,
        tied=tied_detections(detections, evaluated),
        is_false_positive_if_unmatched=~(outside(candidates.areas) | evaluated.not_exhaustive[:, None]),
        matches=matches,
        object_starts=np.searchsorted(truth.categories[objects.rows], bounds),
        object_images=truth.images[objects.rows],
        object_counts=~not_counting,
    )


def tied_detections(detections: DetectionSet, evaluated: EvaluatedDetections) -> Bool[np.ndarray, " d"]:
    """Whether each has the category, score and image of the one before it."""
    tied = np.zeros(len(evaluated.rows), bool)
    tied[1:] = np.diff(detections.scores[evaluated.rows]) == 0
    for same in (evaluated.categories, evaluated.images):
        tied[1:] &= same[1:] == same[:-1]
    return tied


def scores_of(outcomes: Outcomes, frequencies: Sequence[str]) -> Scores:
    """All scores, from the outcomes and the frequency of each category."""
    num_objects = np.zeros((len(frequencies), NUM_SIZES), np.int64)
    categories_of_objects = np.repeat(np.arange(len(frequencies)), np.diff(outcomes.object_starts))
    np.add.at(num_objects, categories_of_objects, outcomes.object_counts)
    precision, recall = precision_and_recall(outcomes, num_objects)
    return Scores(
        precision=precision,
        recall=recall,
        metrics=metrics(precision, recall, frequencies),
        category_ap=ap_of_categories(precision),
        num_objects=num_objects,
        outcomes=outcomes,
    )
