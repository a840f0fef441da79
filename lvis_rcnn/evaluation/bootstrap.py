"""How far each metric would move with other images: a bootstrap over images, without matching again.

A resample draws as many images as there are, with replacement. An image that is drawn w times is w images with the same
detections and objects, under ids that follow each other: to the protocol they are different images. So every number of
a resample is a weighted count. A category without objects in it is undefined there and drops out of the mean.

Most of the work is one running sum of the detections' weights, which all thresholds share. Only true positives are
looked at one by one: as in evaluation.average_precision, precision is best there and recall changes only there. Of the
copies of a true positive only the last can be that best, except where its image has other detections of its category
and score: then copies of all of them take turns, and each is looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64
from tqdm import tqdm

from lvis_rcnn.evaluation.average_precision import AREA_RANGES_PX, FREQUENCIES, METRIC_NAMES, RECALLS, THRESHOLDS
from lvis_rcnn.evaluation.federated import place_in_run, run_starts
from lvis_rcnn.evaluation.matches import Outcomes, read_resampled
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError

# A recall of exactly so many hundredths is below the recall that lvis reads there: np.linspace rounds up.
ROUNDED_UP = np.arange(len(RECALLS)) / 100 < RECALLS


SEED = 0
LEVEL = 0.95
TAILS_PERCENT = (2.5, 97.5)
METHOD = "basic bootstrap over images"

Interval = tuple[float, float]

# True positives at a time: what fits the processor's cache.
FINDS_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class Ties:
    """``e`` true positives that share image, category and score with other detections that count."""

    places: Int64[np.ndarray, " e"]
    """Their places among the true positives."""
    counted: Int64[np.ndarray, " e"]
    """Of the sharing detections, those that count, up to and with each."""
    right: Int64[np.ndarray, " e"]
    """Of these, the true positives."""
    all_counted: Int64[np.ndarray, " e"]
    all_right: Int64[np.ndarray, " e"]
    """The same of all that share."""


@dataclass(frozen=True, eq=False)
class Part:
    """``p`` true positives of one size, by threshold, category and score.

    Those of a threshold and category are a group; there are ``q`` groups.
    """

    right: Int64[np.ndarray, " p"]
    """Image of each true positive."""
    alone_up_to: Int64[np.ndarray, " p"]
    """How many of ``Plan.alone`` stand up to and with it."""
    amends_up_to: Int64[np.ndarray, " p"]
    """How many of ``Plan.amends`` do."""
    starts: Int64[np.ndarray, " q"]
    """First true positive of each group."""
    groups: Int64[np.ndarray, " q"]
    """threshold * categories + category."""
    alone_before: Int64[np.ndarray, " q"]
    """How many of ``Plan.alone`` and of ``Plan.amends`` stand before the group's category."""
    amends_before: Int64[np.ndarray, " q"]
    ties: Ties


@dataclass(frozen=True, eq=False)
class Plan:
    """What of one size is the same in every resample."""

    objects: Int64[np.ndarray, " o"]
    """Image of each object that counts, by category."""
    object_starts: Int64[np.ndarray, " bounds"]
    alone: Int64[np.ndarray, " k"]
    """Image of each detection that is wrong where it finds nothing."""
    amends: Int64[np.ndarray, " m"]
    """Image of each detection whose find changes whether it counts, threshold by threshold."""
    signs: Int32[np.ndarray, " m"]
    """1 where it now counts, -1 where it no longer does."""
    parts: tuple[Part, ...]
    """All groups that have true positives."""


def running(values: np.ndarray) -> Int32[np.ndarray, " sums"]:
    """Sum of the first 0, 1, 2, ... values."""
    sums = np.zeros(len(values) + 1, np.int32)
    np.cumsum(values, out=sums[1:])
    return sums


def plan_of(outcomes: Outcomes, size: int) -> Plan:
    """What resamples of one size share."""
    hits, counts = outcomes.hits, outcomes.counts_alone[:, size]
    num_categories, num_detections = len(outcomes.starts) - 1, len(outcomes.images)
    threshold, hit = np.nonzero(hits.matched[:, :, size].T)
    at = hits.detections[hit]
    is_right = ~hits.on_ignored[hit, threshold, size]
    changes = is_right.astype(np.int32) - counts[at]
    groups = threshold * num_categories + np.searchsorted(outcomes.starts, at, side="right") - 1
    right, amended = np.flatnonzero(is_right), np.flatnonzero(changes)
    alone_before, amends_before = running(counts).astype(np.int64), running(changes != 0).astype(np.int64)
    starts = run_starts(groups[right])
    of = groups[right[starts]]
    objects = outcomes.object_counts[:, size]
    whole = Part(
        right=outcomes.images[at[right]],
        alone_up_to=alone_before[at[right] + 1],
        amends_up_to=amends_before[right + 1],
        starts=starts,
        groups=of,
        alone_before=alone_before[outcomes.starts[of % num_categories]],
        amends_before=np.searchsorted(groups[amended], of),
        ties=ties_of(outcomes.tied, threshold * num_detections + at, right, running(counts), changes),
    )
    return Plan(
        objects=outcomes.object_images[objects],
        object_starts=running(objects)[outcomes.object_starts].astype(np.int64),
        alone=outcomes.images[counts],
        amends=outcomes.images[at[amended]],
        signs=changes[amended],
        parts=tuple(parts_of(whole)),
    )


def parts_of(whole: Part) -> Iterator[Part]:
    """Whole groups, so many that they fit the processor's cache."""
    ends = np.append(whole.starts[1:], len(whole.right))
    cuts = np.unique(np.searchsorted(ends, np.arange(0, len(whole.right), FINDS_AT_ONCE), side="right"))
    for first, last in pairwise([*cuts.tolist(), len(ends)]):
        start, stop = int(whole.starts[first]), int(ends[last - 1])
        of_ties = slice(*np.searchsorted(whole.ties.places, [start, stop]))
        ties = {name: column[of_ties] for name, column in vars(whole.ties).items()}
        columns = {name: getattr(whole, name)[start:stop] for name in ("right", "alone_up_to", "amends_up_to")}
        columns |= {name: getattr(whole, name)[first:last] for name in ("groups", "alone_before", "amends_before")}
        yield Part(
            starts=whole.starts[first:last] - start, ties=Ties(**{**ties, "places": ties["places"] - start}), **columns
        )


def ties_of(
    tied: Bool[np.ndarray, " d"],
    keys: Int64[np.ndarray, " h"],
    right: Int64[np.ndarray, " p"],
    alone_before: Int32[np.ndarray, " sums"],
    changes: Int32[np.ndarray, " h"],
) -> Ties:
    """The true positives that share their image, category and score.

    Args:
        tied: as in ``Outcomes``.
        keys: threshold * detections + detection of each find, ascending.
        right: finds that are true positives.
        alone_before: detections that count alone before each.
        changes: what each find adds to the number of those that count.
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
        """Detections that count, and true positives among them."""
        first, last = (np.searchsorted(keys, threshold * len(tied) + bound) for bound in (start, stop))
        found = changes_before[last] - changes_before[first]
        return alone_before[stop] - alone_before[start] + found, right_before[last] - right_before[first]

    counted, of_right = between(firsts[run], at + 1)
    all_counted, all_right = between(firsts[run], firsts[run + 1])
    several = all_counted > 1
    columns = (counted, of_right, all_counted, all_right)
    return Ties(sharing[several], *(column[several].astype(np.int64) for column in columns))


@dataclass(frozen=True, eq=False)
class Curves:
    """A size in one resample."""

    precision: Float64[np.ndarray, "t c"]
    """Mean precision over all recalls."""
    recall: Float64[np.ndarray, "t c"]
    defined: Bool[np.ndarray, " c"]
    """Whether the category has objects."""


def curves(plan: Plan, weights: Int32[np.ndarray, " n"]) -> Curves:
    """Precision and recall of one size where each image counts ``weights`` times."""
    # ndarray.take is three times as fast as an index.
    objects = np.diff(running(weights.take(plan.objects))[plan.object_starts])
    alone, amends = running(weights.take(plan.alone)), running(weights.take(plan.amends) * plan.signs)
    areas, found = np.zeros((2, len(THRESHOLDS) * len(objects)))
    for part in plan.parts:
        of_groups = np.maximum(objects[part.groups % len(objects)], 1)
        each = np.diff(part.starts, append=len(part.right))
        before = alone[part.alone_before] + amends[part.amends_before]
        counted = alone.take(part.alone_up_to) + amends.take(part.amends_up_to) - np.repeat(before, each)
        sums = running(weights.take(part.right))
        right = sums[1:] - np.repeat(sums[part.starts], each)
        areas[part.groups] = mean_precision(part, weights, counted, right, np.repeat(of_groups, each), each)
        found[part.groups] = np.diff(sums[part.starts], append=sums[-1])
    shape = len(THRESHOLDS), len(objects)
    return Curves(areas.reshape(shape), found.reshape(shape) / np.maximum(objects, 1), objects > 0)


def mean_precision(
    part: Part,
    weights: Int32[np.ndarray, " n"],
    counted: Int32[np.ndarray, " p"],
    right: Int32[np.ndarray, " p"],
    objects: Int32[np.ndarray, " p"],
    each: Int64[np.ndarray, " q"],
) -> Float64[np.ndarray, " q"]:
    """Mean over all recalls of the best precision at that recall or above, of each group.

    Args:
        part: the true positives.
        weights: of images.
        counted: detections that count, up to and with the last copy of each true positive.
        right: of these, true positives.
        objects: of the category of each, at least 1.
        each: true positives of each group.
    """
    # As lvis writes it: its sum of false positives and true ones is exact.
    reached = right / (counted + np.spacing(1))
    ties = part.ties.places
    reached[ties] = 0
    # Recalls run downwards, so that "or above" is a running maximum.
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
    part: Part, weights: Int32[np.ndarray, " n"], right: Int32[np.ndarray, " p"], counted: Int32[np.ndarray, " p"]
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Every copy of the true positives in ties: its true positive, and the counts up to and with the copy.

    ``right`` and ``counted`` say of each what would be if its copies followed each other.
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
    """The last place of ``RECALLS`` that so many of the objects reach.

    100 right / objects is whole only where that is exact, and far from whole elsewhere.
    """
    hundredths = 100.0 * right / objects
    highest: np.ndarray = hundredths.astype(np.int64)
    exact = np.flatnonzero(highest == hundredths)
    highest[exact] -= ROUNDED_UP[highest[exact]]
    return highest


@dataclass(frozen=True, eq=False)
class Plans:
    """What resamples of boxes or masks share."""

    num_images: int
    sizes: tuple[Plan, ...]
    """All, small, medium, large."""
    frequencies: tuple[Int64[np.ndarray, " _"], ...]
    """The categories that are rare, common, frequent."""


def plans_of(outcomes: Outcomes, frequencies: Sequence[str]) -> Plans:
    """Prepare resampling; ``frequencies`` are r, c or f of each category."""
    return Plans(
        num_images=outcomes.num_images,
        sizes=tuple(plan_of(outcomes, size) for size in range(len(AREA_RANGES_PX))),
        frequencies=tuple(np.flatnonzero(np.array(frequencies) == group) for group in FREQUENCIES),
    )


def weighted_metrics(plans: Plans, weights: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " m"]:
    """The 13 metrics, in the order of ``METRIC_NAMES``, where each image counts so often; NaN where undefined.

    With weights of 1 they are those of :func:`average_precision.score` but for the rounding of sums, below 1e-12: means
    are taken category by category here.
    """
    of_sizes = [curves(plan, weights.astype(np.int32)) for plan in plans.sizes]
    everything, defined = of_sizes[0].precision, of_sizes[0].defined
    values = [mean(everything[:, defined])]
    values += [mean(everything[threshold == THRESHOLDS][:, defined]) for threshold in (0.5, 0.75)]
    values += [mean(size.precision[:, size.defined]) for size in of_sizes[1:]]
    values += [mean(everything[:, members[defined[members]]]) for members in plans.frequencies]
    values += [mean(size.recall[:, size.defined]) for size in of_sizes]
    return np.array(values)


def mean(values: Float64[np.ndarray, "..."]) -> float:
    """Mean; NaN of nothing."""
    return float(values.mean()) if values.size else np.nan


def image_weights(num_images: int, seed: int, number: int) -> Int64[np.ndarray, " n"]:
    """How often resample ``number`` draws each image; the same for every run over these images."""
    drawn = np.random.default_rng([seed, number]).integers(0, num_images, num_images)
    return np.bincount(drawn, minlength=num_images)


def resampled_metrics(plans: Plans, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """Metrics of every resample, a row each."""
    numbers = tqdm(range(resamples), desc="resamples", disable=None, leave=False)
    rows = [weighted_metrics(plans, image_weights(plans.num_images, seed, number)) for number in numbers]
    return np.array(rows).reshape(-1, len(METRIC_NAMES))


def intervals(estimates: dict[str, float | None], samples: Float64[np.ndarray, "s m"]) -> dict[str, Interval | None]:
    """The 95 % interval of each metric or difference; None where it is undefined, or is in every resample.

    Args:
        estimates: the metrics of the images themselves.
        samples: metrics of resamples; those in which one is undefined say nothing of it.
    """
    found: dict[str, Interval | None] = {}
    for place, name in enumerate(METRIC_NAMES):
        estimate, values = estimates[name], samples[:, place]
        values = values[~np.isnan(values)]
        found[name] = None if estimate is None or not len(values) else interval(estimate, values)
    return found


def interval(estimate: float, values: Float64[np.ndarray, " s"]) -> Interval:
    """The basic interval (Davison and Hinkley 1997, section 5.2): as far from the estimate as resamples lie beyond it.

    That is their percentiles, mirrored at the estimate. Percentiles as they are would hold the truth far less often
    than they say: precision counts as the best at a recall or above, so AP is too high with few images, and of a
    resample it is too high again. Mirrored, the second error takes off part of the first.
    tests/benchmarks/bootstrap_coverage.py measures it.
    """
    low, high = np.percentile(values, TAILS_PERCENT).tolist()
    return 2 * estimate - high, 2 * estimate - low


def within_0_and_1(bounds: Interval | None) -> Interval | None:
    """An interval of a metric, which is a fraction."""
    return None if bounds is None else (min(max(bounds[0], 0.0), 1.0), min(max(bounds[1], 0.0), 1.0))


def metrics_of_runs(scored: Sequence[dict[str, Any]], kind: Kind) -> Float64[np.ndarray, "n m"]:
    """The metrics of each run, from its metrics.json; NaN where undefined."""
    return np.array([[metrics[kind][name] for name in METRIC_NAMES] for metrics in scored], dtype=np.float64)


def seed_noise(
    metrics: Float64[np.ndarray, "n m"], resamples: int, generator: np.random.Generator
) -> Float64[np.ndarray, "s m"]:
    """By how much a mean over ``n`` other seeds may be off, for each resample; nothing is known of it from one.

    Student's t with n - 1 degrees of freedom times the standard error: the standard deviation is itself estimated. The
    difference of two such means is Behrens and Fisher's. That images and seeds vary independently is an assumption,
    and a careful one: part of the spread of seeds is that of the images that they find hard.
    """
    n, shape = len(metrics), (resamples, metrics.shape[1])
    if n == 1:
        return np.zeros(shape)
    noise: np.ndarray = generator.standard_t(n - 1, shape) * metrics.std(axis=0, ddof=1) / np.sqrt(n)
    return noise


def mean_intervals(
    metrics: Float64[np.ndarray, "n m"], samples: Float64[np.ndarray, "n s m"]
) -> dict[str, Interval | None]:
    """Interval of each metric's mean over ``n`` runs; None where it is undefined.

    Args:
        metrics: of each run.
        samples: of each run, on the same resamples of the images.
    """
    noise = seed_noise(metrics, samples.shape[1], np.random.default_rng([SEED, samples.shape[1]]))
    means = [None if np.isnan(value) else float(value) for value in metrics.mean(axis=0)]
    found = intervals(dict(zip(METRIC_NAMES, means, strict=True)), samples.mean(axis=0) + noise)
    return {name: within_0_and_1(bounds) for name, bounds in found.items()}


def row_intervals(folders: Sequence[Path], scored: Sequence[dict[str, Any]]) -> dict[str, dict[str, Interval | None]]:
    """:func:`mean_intervals` of boxes and masks of a row with several seeds; empty where nothing tells.

    Args:
        folders: of each scored run, where its match results lie.
        scored: its metrics.json. Other annotations are other resamples, which say nothing together.
    """
    if len(scored) < 2 or len({metrics.get("annotations_sha256") for metrics in scored}) > 1:
        return {}
    try:
        kept = [
            read_resampled(folder / "matches.npz", metrics.get("detections_sha256", ""))
            for folder, metrics in zip(folders, scored, strict=True)
        ]
    except InputError:
        return {}  # a table is written of whatever exists
    shared = [kind for kind in KINDS if all(kind in samples for samples in kept)]
    if not shared:
        return {}
    resamples = min(len(samples[shared[0]]) for samples in kept)
    return {
        kind: mean_intervals(metrics_of_runs(scored, kind), np.array([samples[kind][:resamples] for samples in kept]))
        for kind in shared
    }
