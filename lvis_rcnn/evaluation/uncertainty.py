"""How far metrics and their differences would vary: standard errors, 95 % intervals, p values.

What is estimated is the **mean** of a metric over sets of as many images from the same source, for the same categories:
of a single run for the same weights, of a row of three seeds or more also over seeds. It is neither the metric of one
other set, whose interval would be wider (of one run 1.4 times), nor that of many more images: precision is taken as the
best at a recall or above, so that AP of few images is expected to be too high.

The interval is estimate ± t · standard error, so that it holds the estimate always. The variance from images is that of
resamples (:mod:`bootstrap`). With ``n`` seeds it is that of the resampled mean, which also holds what images add to the
variance between the seeds; what seeds add beyond that comes from the variance between their metrics.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.matches import read_resampled
from lvis_rcnn.evaluation.metrics import of_protocol
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError

LEVEL = 0.95
METHOD = "estimate ± t · standard deviation of bootstrap resamples of the images, 20 degrees of freedom"
"""Part of metrics.json and of what makes scoring run again, so its wording is fixed."""

IMAGE_DF = 20.0
"""Degrees of freedom of the standard deviation of resamples.

An allowance, and no result of theory: AP of rare categories rests on few images, so that its standard error is itself
uncertain, and 1.96, the normal distribution's, would be too small. tests/benchmarks/bootstrap_coverage.py measures it.
"""

FEWEST_RESAMPLES = 200
"""The standard deviation of fewer resamples is off by more than a tenth in one of twenty cases."""

FEWEST_SEEDS = 3
"""Two seeds say too little about the variance between seeds: t with one degree of freedom is 12.7."""

Interval = tuple[float, float]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Sampled:
    """The metrics of the ``n`` runs of a row, and of each run on the same ``s`` resamples; NaN where undefined."""

    metrics: Float64[np.ndarray, "n m"]
    samples: Float64[np.ndarray, "n s m"]


@dataclass(frozen=True)
class Estimate:
    """A metric, a mean of it over seeds, or a difference of such means, as fractions."""

    value: float
    error: float
    """Its standard error, above 0."""
    df: float
    """Degrees of freedom of the standard error."""

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        reach = t_quantile(1 - (1 - LEVEL) / 2, self.df) * self.error
        return self.value - reach, self.value + reach

    @property
    def p(self) -> float:
        """Two-sided, uncorrected p value of the mean being 0; below 0.05 where the interval excludes 0."""
        return 2 * t_tail(abs(self.value) / self.error, self.df)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_tail(t: float, df: float) -> float:
    """Probability that Student's t with ``df`` degrees of freedom, 1 to 200, exceeds ``t``, at least 0.

    With t = sqrt(df) tan(a) it is an integral of cos(a)^(df - 1) up to a right angle, here by Gauss and Legendre.
    """
    low = math.atan2(t, math.sqrt(df))
    half = (math.pi / 2 - low) / 2
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return float(scale * half * (WEIGHTS @ np.cos(low + half * (NODES + 1)) ** (df - 1)))


@lru_cache(maxsize=4096)
def t_quantile(level: float, df: float) -> float:
    """The value that Student's t stays below with probability ``level``, above 0.5; by bisection."""
    low, high = 0.0, 1e4
    while high - low > 1e-9 * max(high, 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > 1 - level else (low, middle)
    return high


def estimates(row: Sampled, minus: Sampled | None = None) -> dict[str, Estimate | None]:
    """Each metric's mean over the runs of a row, or how much it exceeds that of another row, ``minus``.

    The degrees of freedom follow Satterthwaite (1946): those of the variance from images and of the variances between
    seeds, each by its share. Each row has its own variance between seeds, as in Welch's test: with a common one p is
    below 0.05 in about 10 % of equal rows of three seeds, where one of them varies much more. None where the metric is
    undefined in a run, neither resamples nor seeds differ, too few resamples define it, or a row has two seeds.
    """
    rows = [row] if minus is None else [row, minus]
    resamples = min(one.samples.shape[1] for one in rows)
    both = [(one.metrics.mean(axis=0), one.samples[:, :resamples].mean(axis=0)) for one in rows]
    values, samples = (of[0] - of[1] if minus else of[0] for of in zip(*both, strict=True))
    of_images = variances(samples)
    total, spread = of_images, of_images**2 / IMAGE_DF
    for one in rows:
        n = len(one.metrics)
        between, from_images = seed_variances(one)
        beyond_images = np.maximum(between - from_images, 0)
        total = total + beyond_images / n
        # Satterthwaite has the variance between seeds here; but what is cut off at 0 varies less. This is between both.
        spread = spread + ((between + beyond_images) / 2 / n) ** 2 / max(n - 1, 1)
    allowed = all(len(one.metrics) == 1 or len(one.metrics) >= FEWEST_SEEDS for one in rows)
    return {
        name: Estimate(float(value), math.sqrt(variance), variance**2 / fourth)
        if allowed and np.isfinite(value) and variance > 0
        else None
        for name, value, variance, fourth in zip(METRIC_NAMES, values, total.tolist(), spread.tolist(), strict=True)
    }


def seedwise(row: Sampled, minus: Sampled) -> dict[str, Estimate | None]:
    """How much a row exceeds another one of the same trainings, whose runs are in the same order of seeds.

    What a training adds to both cancels; the variance between seeds is that of the differences.
    """
    resamples = min(row.samples.shape[1], minus.samples.shape[1])
    samples = row.samples[:, :resamples] - minus.samples[:, :resamples]
    return estimates(Sampled(row.metrics - minus.metrics, samples))


def variances(samples: Float64[np.ndarray, "s m"]) -> Float64[np.ndarray, " m"]:
    """Variance of each metric over the resamples that define it; NaN where they are too few.

    Where all resamples are equal it is 0, not the rounding error of their mean.
    """
    columns = [column[~np.isnan(column)] for column in samples.T]
    return np.array(
        [
            np.nan if len(column) < FEWEST_RESAMPLES else column.var(ddof=1) if np.ptp(column) > 1e-12 else 0.0
            for column in columns
        ]
    )


def seed_variances(row: Sampled) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Variance of each metric between seeds, and what of it comes from these images; 0 for a single seed.

    Two runs differ more on some images than on others, so that other images would change their difference. Resamples
    show how much: that part is in the resampled mean already, and counted once.
    """
    n = len(row.metrics)
    if n == 1:
        return np.zeros(row.metrics.shape[1]), np.zeros(row.metrics.shape[1])
    between = row.metrics.var(axis=0, ddof=1)
    from_images = np.sum([variances(one) for one in row.samples - row.samples.mean(axis=0)], axis=0) / (n - 1)
    return between, from_images


def holm(p_values: Mapping[Name, float], pending: int = 0) -> dict[Name, float]:
    """The p values, corrected for their number: each at most 1 (Holm 1979).

    The probability that any true hypothesis comes below 0.05 is at most 0.05, whichever others are false and however
    they depend, as far as each p value is right. Those of ``pending`` further tests count as 1: once they are known, no
    corrected p value is larger.
    """
    corrected, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) + pending - place) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def differs_from_seeds(value: float, mean: float, deviation: float, n: int) -> bool:
    """Whether ``value`` is more than seeds explain: outside the 95 % prediction interval of one more seed.

    Args:
        value: of another training.
        mean: over ``n`` seeds.
        deviation: their sample standard deviation.
        n: at least 2.
    """
    return abs(value - mean) > t_quantile(1 - (1 - LEVEL) / 2, n - 1) * deviation * math.sqrt(1 + 1 / n)


def within_0_and_1(bounds: Interval | None) -> Interval | None:
    """An interval, limited to what a fraction can be."""
    return None if bounds is None else (min(max(bounds[0], 0.0), 1.0), min(max(bounds[1], 0.0), 1.0))


def intervals(row: Sampled) -> dict[str, Interval | None]:
    """The 95 % interval of each metric's mean over the runs of a row; None where :func:`estimates` has none."""
    return {name: within_0_and_1(one.interval if one else None) for name, one in estimates(row).items()}


def metrics_of_runs(scored: Sequence[Mapping[str, Any]], kind: Kind) -> Float64[np.ndarray, "n m"]:
    """The metrics of each run, from its metrics.json; NaN where undefined."""
    of_runs = [metrics[kind] for metrics in scored]
    return np.array([[of.get(name, of.get(uncapped(name))) for name in METRIC_NAMES] for of in of_runs], np.float64)


def uncapped(name: str) -> str:
    """The name of a metric by a protocol that does not limit the detections of an image."""
    return name.removesuffix("@300")


def resamples_text(number: int) -> str:
    """So many resamples, for a caption, and whether they are too few."""
    counted = f"{number:,} resample{'s' * (number != 1)}"
    return counted + (f": too few for intervals, use {FEWEST_RESAMPLES} or more" if number < FEWEST_RESAMPLES else "")


def sampled_row(
    folders: Sequence[Path], scored: Sequence[Mapping[str, Any]], protocol: str = ""
) -> dict[Kind, Sampled]:
    """Boxes and masks of a row, whatever all its runs have; empty where they were scored without resamples.

    Args:
        folders: folder of each scored run, with its match results.
        scored: metrics.json of each.
        protocol: by which they are scored, as :func:`metrics.of_protocol`.

    Raises:
        InputError: match results are missing or damaged, or the runs are scored on different annotations.
    """
    scored = [of_protocol(metrics, protocol) for metrics in scored]
    if not any(metrics.get("intervals") for metrics in scored):
        return {}
    if len({metrics.get("annotations_sha256") for metrics in scored}) > 1:
        allowed = "the same annotations, whose resamples they share"
        raise InputError(str(folders[0].parent), "seeds are scored on different annotations", allowed=allowed)
    kept = [
        read_resampled(folder / "matches.npz", metrics.get("detections_sha256", ""), protocol)
        for folder, metrics in zip(folders, scored, strict=True)
    ]
    resamples = min((len(samples) for of_run in kept for samples in of_run.values()), default=0)
    return {
        kind: Sampled(metrics_of_runs(scored, kind), np.array([of_run[kind][:resamples] for of_run in kept]))
        for kind in KINDS
        if kept and all(kind in of_run for of_run in kept)
    }
