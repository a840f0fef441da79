"""Precision, recall and the headline numbers from who found what, as ``lvis`` 0.5.3 computes them, to the last bit.

Precision is read at 101 recalls, as the best that is reached at that recall or a higher one. Only true positives can be
that best, and recall changes only there, so only they are looked at: their number is bounded by the objects, and that
of the detections before each is one running sum for all thresholds, put right where detections found something.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.cells import run_starts
from lvis_rcnn.match import AREA_RANGES_PX, THRESHOLDS, Hits

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
