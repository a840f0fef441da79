"""Metrics of resamples of the images, without matching again.

A resample draws as many images as there are, with replacement. An image that is drawn w times counts as w different
images with the same detections and objects and consecutive ids. So every number of a resample is a weighted count. A
category without objects in the resample is undefined there and left out of means.

Most of the work is one running sum of the detections' weights, which all IoU thresholds share. Only true positives are
computed one by one: as in evaluation.average_precision, precision peaks there and recall changes only there. Among the
copies of a true positive only the last can be such a peak, unless its image has other detections of its category and
score: then the copies of all of them alternate, and each is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64
from tqdm import tqdm

from lvis_rcnn.evaluation.average_precision import FREQUENCIES, METRIC_NAMES, NUM_SIZES, RECALLS, THRESHOLDS, Outcomes
from lvis_rcnn.evaluation.federated import place_in_run, run_starts

# Hundredths that np.linspace, and so lvis, rounds up: a recall of exactly so many hundredths does not reach them.
ROUNDED_UP = np.arange(len(RECALLS)) / 100 < RECALLS

# Resamples that scoring kept are taken to be of this seed: another one needs a new SCORING_REVISION.
SEED = 0

# True positives at a time: what fits the processor's cache.
TRUE_POSITIVES_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class Ties:
    """``e`` true positives that share image, category and score with other detections that count."""

    places: Int64[np.ndarray, " e"]
    """Their places among the true positives."""
    counted: Int64[np.ndarray, " e"]
    """Number of the sharing detections that count, up to and including each."""
    right: Int64[np.ndarray, " e"]
    """How many of these are true positives."""
    all_counted: Int64[np.ndarray, " e"]
    all_right: Int64[np.ndarray, " e"]
    """The same numbers for all that share."""


@dataclass(frozen=True, eq=False)
class TruePositives:
    """``p`` true positives of one size, sorted by threshold, category and score.

    Those of a threshold and category are a group; there are ``q`` groups.
    """

    right: Int64[np.ndarray, " p"]
    """Image of each true positive."""
    unmatched_up_to: Int64[np.ndarray, " p"]
    """How many of ``SizeResampling.unmatched`` come up to and including it."""
    corrections_up_to: Int64[np.ndarray, " p"]
    """How many of ``SizeResampling.corrections`` do."""
    starts: Int64[np.ndarray, " q"]
    """First true positive of each group."""
    groups: Int64[np.ndarray, " q"]
    """threshold * categories + category."""
    unmatched_before: Int64[np.ndarray, " q"]
    """How many of ``SizeResampling.unmatched``, and of ``corrections``, come before the group."""
    corrections_before: Int64[np.ndarray, " q"]
    ties: Ties


@dataclass(frozen=True, eq=False)
class SizeResampling:
    """What all resamples of one size have in common."""

    objects: Int64[np.ndarray, " o"]
    """Image of each object that counts, sorted by category."""
    object_starts: Int64[np.ndarray, " bounds"]
    unmatched: Int64[np.ndarray, " k"]
    """Image of each detection that is a false positive if unmatched."""
    corrections: Int64[np.ndarray, " m"]
    """Image of each detection whose match changes whether it counts, threshold by threshold."""
    signs: Int32[np.ndarray, " m"]
    """1 where it counts because of the match, -1 where it no longer does."""
    parts: tuple[TruePositives, ...]
    """All groups that have true positives."""


def running(values: np.ndarray) -> Int32[np.ndarray, " sums"]:
    """Sums of the first 0, 1, 2, ... values."""
    sums = np.zeros(len(values) + 1, np.int32)
    np.cumsum(values, out=sums[1:])
    return sums


def resampling_of_size(outcomes: Outcomes, size: int) -> SizeResampling:
    """Prepare the resamples of one size."""
    matches, counts = outcomes.matches, outcomes.is_false_positive_if_unmatched[:, size]
    num_categories, num_detections = len(outcomes.starts) - 1, len(outcomes.images)
    threshold, match = np.nonzero(matches.matched[:, :, size].T)
    at = matches.detections[match]
    is_right = ~matches.matched_to_ignored[match, threshold, size]
    changes = is_right.astype(np.int32) - counts[at]
    groups = threshold * num_categories + np.searchsorted(outcomes.starts, at, side="right") - 1
    right, corrected = np.flatnonzero(is_right), np.flatnonzero(changes)
    unmatched_before, corrections_before = running(counts).astype(np.int64), running(changes != 0).astype(np.int64)
    starts = run_starts(groups[right])
    of = groups[right[starts]]
    objects = outcomes.object_counts[:, size]
    whole = TruePositives(
        right=outcomes.images[at[right]],
        unmatched_up_to=unmatched_before[at[right] + 1],
        corrections_up_to=corrections_before[right + 1],
        starts=starts,
        groups=of,
        unmatched_before=unmatched_before[outcomes.starts[of % num_categories]],
        corrections_before=np.searchsorted(groups[corrected], of),
        ties=ties_of(outcomes.tied, threshold * num_detections + at, right, running(counts), changes),
    )
    return SizeResampling(
        objects=outcomes.object_images[objects],
        object_starts=running(objects)[outcomes.object_starts].astype(np.int64),
        unmatched=outcomes.images[counts],
        corrections=outcomes.images[at[corrected]],
        signs=changes[corrected],
        parts=tuple(parts_of(whole)),
    )


def parts_of(whole: TruePositives) -> Iterator[TruePositives]:
    """The same true positives in parts of whole groups that fit the processor's cache."""
    ends = np.append(whole.starts[1:], len(whole.right))
    cuts = np.unique(np.searchsorted(ends, np.arange(0, len(whole.right), TRUE_POSITIVES_AT_ONCE), side="right"))
    for first, last in pairwise([*cuts.tolist(), len(ends)]):
        start, stop = int(whole.starts[first]), int(ends[last - 1])
        of_ties = slice(*np.searchsorted(whole.ties.places, [start, stop]))
        ties = {name: column[of_ties] for name, column in vars(whole.ties).items()}
        columns = {name: getattr(whole, name)[start:stop] for name in ("right", "unmatched_up_to", "corrections_up_to")}
        columns |= {
            name: getattr(whole, name)[first:last] for name in ("groups", "unmatched_before", "corrections_before")
        }
        yield TruePositives(
            starts=whole.starts[first:last] - start, ties=Ties(**{**ties, "places": ties["places"] - start}), **columns
        )


def ties_of(
    tied: Bool[np.ndarray, " d"],
    keys: Int64[np.ndarray, " h"],
    right: Int64[np.ndarray, " p"],
    unmatched_before: Int32[np.ndarray, " sums"],
    changes: Int32[np.ndarray, " h"],
) -> Ties:
    """The true positives that share their image, category and score with another detection.

    Args:
        tied: as in ``Outcomes``.
        keys: threshold * detections + detection of each match, ascending.
        right: matches that are true positives.
        unmatched_before: number of detections before each that are false positives if unmatched.
        changes: what each match adds to the number of detections that count.
    """
    firsts = np.flatnonzero(np.concatenate([~tied, [True]]))  # and the number of detections
    threshold, at = keys[right] // max(len(tied), 1), keys[right] % max(len(tied), 1)
    run = np.searchsorted(firsts, at, side="right") - 1
    sharing = np.flatnonzero(firsts[run + 1] - firsts[run] > 1)
    threshold, at, run = threshold[sharing], at[sharing], run[sharing]
    is_right = np.zeros(len(keys), bool)
    is_right[right] = True
    changes_before, right_before = running(changes), running(is_right)

    def between(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of detections that count, and of true positives among them."""
        first, last = (np.searchsorted(keys, threshold * len(tied) + bound) for bound in (start, stop))
        found = changes_before[last] - changes_before[first]
        return unmatched_before[stop] - unmatched_before[start] + found, right_before[last] - right_before[first]

    counted, of_right = between(firsts[run], at + 1)
    all_counted, all_right = between(firsts[run], firsts[run + 1])
    several = all_counted > 1
    columns = (counted, of_right, all_counted, all_right)
    return Ties(sharing[several], *(column[several].astype(np.int64) for column in columns))


@dataclass(frozen=True, eq=False)
class CategoryScores:
    """The categories of one size in one resample."""

    precision: Float64[np.ndarray, "t c"]
    """Mean precision over all recalls."""
    recall: Float64[np.ndarray, "t c"]
    defined: Bool[np.ndarray, " c"]
    """Whether the category has objects."""


def category_scores(resampling: SizeResampling, weights: Int32[np.ndarray, " n"]) -> CategoryScores:
    """Precision and recall of one size where each image counts ``weights`` times."""
    # ndarray.take is three times as fast as indexing.
    objects = np.diff(running(weights.take(resampling.objects))[resampling.object_starts])
    unmatched = running(weights.take(resampling.unmatched))
    corrections = running(weights.take(resampling.corrections) * resampling.signs)
    areas, found = np.zeros((2, len(THRESHOLDS) * len(objects)))
    for part in resampling.parts:
        of_groups = np.maximum(objects[part.groups % len(objects)], 1)
        each = np.diff(part.starts, append=len(part.right))
        before = unmatched[part.unmatched_before] + corrections[part.corrections_before]
        counted = unmatched.take(part.unmatched_up_to) + corrections.take(part.corrections_up_to)
        counted -= np.repeat(before, each)
        sums = running(weights.take(part.right))
        right = sums[1:] - np.repeat(sums[part.starts], each)
        areas[part.groups] = mean_precision(part, weights, counted, right, np.repeat(of_groups, each), each)
        found[part.groups] = np.diff(sums[part.starts], append=sums[-1])
    shape = len(THRESHOLDS), len(objects)
    return CategoryScores(areas.reshape(shape), found.reshape(shape) / np.maximum(objects, 1), objects > 0)


def mean_precision(
    part: TruePositives,
    weights: Int32[np.ndarray, " n"],
    counted: Int32[np.ndarray, " p"],
    right: Int32[np.ndarray, " p"],
    objects: Int32[np.ndarray, " p"],
    each: Int64[np.ndarray, " q"],
) -> Float64[np.ndarray, " q"]:
    """Mean over all recalls of the best precision at that recall or above, of each group.

    Args:
        part: the true positives.
        weights: of the images.
        counted: number of detections that count, up to and including the last copy of each true positive.
        right: how many of these are true positives.
        objects: number of objects of the category of each, at least 1.
        each: number of true positives of each group.
    """
    # As in lvis, whose sum of false and true positives is exact.
    reached = right / (counted + np.spacing(1))
    ties = part.ties.places
    reached[ties] = 0
    # Recalls are in descending order, so that "or above" is a running maximum.
    ends = np.repeat(np.arange(1, len(each) + 1) * len(RECALLS) - 1, each)
    places = ends - highest_recall(right, objects)
    best = np.zeros((len(each), len(RECALLS)))
    runs = run_starts(places)
    best.reshape(-1)[places[runs]] = np.maximum.reduceat(reached, runs)
    if len(ties):
        at, right, counted = each_copy(part, weights, right, counted)
        places = ends[at] - highest_recall(right, objects[at])
        np.maximum.at(best.reshape(-1), places, right / (counted + np.spacing(1)))
    means: np.ndarray = np.maximum.accumulate(best, axis=1, out=best).sum(axis=1) / len(RECALLS)
    return means


def each_copy(
    part: TruePositives,
    weights: Int32[np.ndarray, " n"],
    right: Int32[np.ndarray, " p"],
    counted: Int32[np.ndarray, " p"],
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Every copy of the tied true positives: its true positive, and ``right`` and ``counted`` up to and including it.

    The arguments are what these numbers would be if the copies of each followed each other.
    """
    ties = part.ties
    copies = weights[part.right[ties.places]].astype(np.int64)
    of = np.repeat(np.arange(len(copies)), copies)
    earlier = place_in_run(of)
    at = ties.places[of]
    right = right[at] + ((1 - copies) * ties.right)[of] + earlier * ties.all_right[of]
    counted = counted[at] + ((1 - copies) * ties.counted)[of] + earlier * ties.all_counted[of]
    return at, right, counted


def highest_recall(right: Int[np.ndarray, " p"], objects: Int[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """The last place of ``RECALLS`` that a recall of ``right / objects`` reaches.

    In floating point 100 right / objects is an integer only where it is one exactly.
    """
    hundredths = 100.0 * right / objects
    highest: np.ndarray = hundredths.astype(np.int64)
    exact = np.flatnonzero(highest == hundredths)
    highest[exact] -= ROUNDED_UP[highest[exact]]
    return highest


@dataclass(frozen=True, eq=False)
class Resampling:
    """What all resamples of boxes or masks have in common."""

    num_images: int
    sizes: tuple[SizeResampling, ...]
    """All, small, medium, large."""
    frequencies: tuple[Int64[np.ndarray, " _"], ...]
    """The categories that are rare, common and frequent."""


def resampling_of(outcomes: Outcomes, frequencies: Sequence[str]) -> Resampling:
    """Prepare the resamples; ``frequencies`` are r, c or f of each category."""
    return Resampling(
        num_images=outcomes.num_images,
        sizes=tuple(resampling_of_size(outcomes, size) for size in range(NUM_SIZES)),
        frequencies=tuple(np.flatnonzero(np.array(frequencies) == group) for group in FREQUENCIES),
    )


def weighted_metrics(resampling: Resampling, weights: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " m"]:
    """The 13 metrics, in the order of ``METRIC_NAMES``, where each image counts ``weights`` times; NaN where undefined.

    With weights of 1 they differ from those of :func:`average_precision.score` by less than 1e-12, since means are
    taken category by category here.
    """
    of_sizes = [category_scores(resampling, weights.astype(np.int32)) for resampling in resampling.sizes]
    everything, defined = of_sizes[0].precision, of_sizes[0].defined
    values = [mean_or_nan(everything[:, defined])]
    values += [mean_or_nan(everything[threshold == THRESHOLDS][:, defined]) for threshold in (0.5, 0.75)]
    values += [mean_or_nan(size.precision[:, size.defined]) for size in of_sizes[1:]]
    values += [mean_or_nan(everything[:, members[defined[members]]]) for members in resampling.frequencies]
    values += [mean_or_nan(size.recall[:, size.defined]) for size in of_sizes]
    return np.array(values)


def mean_or_nan(values: Float64[np.ndarray, "..."]) -> float:
    """Mean of the values; NaN where there is none."""
    return float(values.mean()) if values.size else np.nan


def image_weights(num_images: int, seed: int, number: int) -> Int64[np.ndarray, " n"]:
    """How often resample ``number`` draws each image; the same for all runs on these images."""
    drawn = np.random.default_rng([seed, number]).integers(0, num_images, num_images)
    return np.bincount(drawn, minlength=num_images)


def resampled_metrics(resampling: Resampling, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """The metrics of every resample, one per row."""
    numbers = tqdm(range(resamples), desc="resamples", disable=None, leave=False)
    rows = [weighted_metrics(resampling, image_weights(resampling.num_images, seed, number)) for number in numbers]
    return np.array(rows).reshape(-1, len(METRIC_NAMES))
