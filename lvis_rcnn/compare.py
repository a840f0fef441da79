"""Whether two rows on the same annotations differ, and where: a paired bootstrap over images, and the spread of seeds.

Every resample draws the same images for both, so that what makes images hard or easy cancels out. Where a row has
several seeds, its number is their mean, and what another choice of seeds would have changed is part of the interval.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from tabulate import tabulate

from lvis_rcnn.accumulate import METRIC_NAMES
from lvis_rcnn.bootstrap import SEED, Interval, intervals, plans_of, resampled_metrics
from lvis_rcnn.command import InputError
from lvis_rcnn.results_file import KINDS, Kind
from lvis_rcnn.row_intervals import metrics_of_runs, seed_noise
from lvis_rcnn.scored_runs import Scored, ScoredRow

MOST_CATEGORIES = 5


@dataclass(frozen=True)
class Difference:
    """A metric of two rows, in fractions: means over their seeds; None where it is undefined in a run."""

    first: float | None
    second: float | None
    difference: float | None
    """The second minus the first."""
    interval: Interval | None
    """95 %, of the difference."""
    p: float | None
    """Of as large a difference where there is none, both ways."""
    first_sd: float | None
    second_sd: float | None
    """Sample standard deviation over seeds; None of one."""


def compare(first: ScoredRow, second: ScoredRow, resamples: int, seed: int) -> dict[Kind, dict[str, Difference]]:
    """Every metric of the kinds that all runs have.

    Args:
        first: the runs of a row.
        second: those of another one, on the same annotations.
        resamples: of the images, the same for all runs.
        seed: of the resamples.

    Raises:
        InputError: the annotations are not the same, or there is no kind that all have.
    """
    for run in (*first, *second):
        if run.matches.annotations_sha256 != first[0].matches.annotations_sha256:
            what = f"was scored on other annotations than {first[0].name}"
            raise InputError(run.name, what, allowed="runs on the same annotations")
    kinds = [kind for kind in KINDS if all(kind in run.matches.outcomes for run in (*first, *second))]
    if not kinds:
        has = [" and ".join(row[0].matches.outcomes) for row in (first, second)]
        what = f"has {has[1]}, {first[0].name} has {has[0]}"
        raise InputError(second[0].name, what, allowed="boxes, or masks, of all runs")
    return {kind: differences(first, second, kind, resamples, seed) for kind in kinds}


def differences(first: ScoredRow, second: ScoredRow, kind: Kind, resamples: int, seed: int) -> dict[str, Difference]:
    """Every metric of one kind."""
    samples = mean_samples(second, kind, resamples, seed) - mean_samples(first, kind, resamples, seed)
    for place, row in enumerate((first, second)):
        # The images are drawn from (seed, number of the resample).
        generator = np.random.default_rng([seed, resamples, place])
        samples = samples + seed_noise(of_runs(row, kind), resamples, generator)
    return paired(of_runs(first, kind), of_runs(second, kind), samples)


def mean_samples(row: ScoredRow, kind: Kind, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """Metrics of every resample, means over the seeds; NaN where one is undefined."""
    means: np.ndarray = np.mean([samples_of(run, kind, resamples, seed) for run in row], axis=0)
    return means


def samples_of(run: Scored, kind: Kind, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """Metrics of every resample of a run: those that scoring has kept, which are of ``SEED``, where they suffice."""
    kept = run.matches.resampled.get(kind)
    if kept is not None and seed == SEED and len(kept) >= resamples:
        return kept[:resamples]
    return resampled_metrics(plans_of(run.matches.outcomes[kind], run.matches.frequencies), resamples, seed)


def of_runs(row: ScoredRow, kind: Kind) -> Float64[np.ndarray, "n m"]:
    """The metrics of each run; NaN where undefined."""
    return metrics_of_runs([run.metrics for run in row], kind)


def paired(
    first: Float64[np.ndarray, "n m"], second: Float64[np.ndarray, "k m"], samples: Float64[np.ndarray, "s m"]
) -> dict[str, Difference]:
    """Every metric.

    Args:
        first: metrics of the runs of a row.
        second: of the other one.
        samples: the second minus the first in each resample; NaN where undefined.
    """
    means = [dict(zip(METRIC_NAMES, map(defined, row.mean(axis=0).tolist()), strict=True)) for row in (first, second)]
    spreads = [row.std(axis=0, ddof=1).tolist() if len(row) > 1 else [None] * row.shape[1] for row in (first, second)]
    estimates = {name: minus(means[1][name], means[0][name]) for name in METRIC_NAMES}
    bounds = intervals(estimates, samples)
    found: dict[str, Any] = {}
    for place, name in enumerate(METRIC_NAMES):
        estimate, both = estimates[name], [defined(spread[place]) for spread in spreads]
        p = None if estimate is None or bounds[name] is None else p_value(estimate, samples[:, place])
        found[name] = Difference(means[0][name], means[1][name], estimate, bounds[name], p, *both)
    return found


def defined(value: float | None) -> float | None:
    """None for what is undefined."""
    return None if value is None or np.isnan(value) else value


def minus(one: float | None, other: float | None) -> float | None:
    """The difference of what is defined."""
    return None if one is None or other is None else one - other


def p_value(difference: float, values: Float64[np.ndarray, " s"]) -> float:
    """How often chance alone makes as large a difference, either way: twice the rarer side, at most 1.

    Resamples move about the difference as it would move about 0 if there were none: those at twice the difference or
    beyond moved as far. Below 0.05 the basic 95 % interval leaves 0 out. One resample more keeps p above 0, since no
    number of them shows that something never happens (Davison and Hinkley 1997, section 4.2).
    """
    values = values[~np.isnan(values)]
    rarer = min(int((values <= 2 * difference).sum()), int((values >= 2 * difference).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(values) + 1))


def mean_categories(row: ScoredRow, kind: Kind) -> list[dict[str, Any]]:
    """As ``per_category`` of metrics.json, means over the seeds; None where a run does not define one."""
    rows = []
    for of_runs in zip(*(run.metrics["per_category"] for run in row), strict=True):
        values = [one.get(kind) for one in of_runs]
        rows.append({**of_runs[0], kind: None if None in values else sum(values) / len(values)})
    return rows


def category_changes(first: ScoredRow, second: ScoredRow, kind: Kind) -> list[tuple[str, float, float]]:
    """Name with frequency, and both AP, of every category that both define, by what it gained."""
    rows = zip(mean_categories(first, kind), mean_categories(second, kind), strict=True)
    both = [(f"{row['name'] or row['id']} ({row['frequency']})", row[kind], other[kind]) for row, other in rows]
    defined = [(name, one, other) for name, one, other in both if one is not None and other is not None]
    return sorted(defined, key=lambda row: row[2] - row[1])


def comparison_text(
    first: ScoredRow, second: ScoredRow, found: dict[Kind, dict[str, Difference]], resamples: int, seed: int
) -> str:
    """All of it for a person: metrics, categories, settings."""
    parts = [f"A: {named(first)}\nB: {named(second)}"]
    for kind, metrics in found.items():
        parts += [f"{TITLES[kind]}\n{metrics_text(metrics)}", categories_text(first, second, kind)]
    drawn = f"{resamples} resamples of the images, seed {seed}"
    said = f"In percent; B - A with its 95 % interval and p from {drawn}; {of_seeds(first, second)}."
    return "\n\n".join([*parts, said, settings_text(first, second)])


def named(row: ScoredRow) -> str:
    """The runs of a row."""
    return ", ".join(run.name for run in row)


def of_seeds(first: ScoredRow, second: ScoredRow) -> str:
    """What the intervals hold of the noise of training."""
    if len(first) == len(second) == 1:
        return "one run of each: other seeds would move it, too"
    counted = [f"{len(row)} of {name}" for name, row in zip("AB", (first, second), strict=True) if len(row) > 1]
    ours = f"and from the spread of seeds ({', '.join(counted)}; ± is their standard deviation)"
    alone = [name for name, row in zip("AB", (first, second), strict=True) if len(row) == 1]
    return ours + (f"; {alone[0]} is one run: other seeds would move it, too" if alone else "")


TITLES: dict[Kind, str] = {"bbox": "Boxes", "segm": "Masks"}


def metrics_text(found: dict[str, Difference]) -> str:
    """Metrics side by side."""
    rows = []
    for name, row in found.items():
        bounds = "-" if row.interval is None else f"{percent(row.interval[0], '+')} to {percent(row.interval[1], '+')}"
        p = "-" if row.p is None else f"{row.p:.3f}"
        values = [with_spread(row.first, row.first_sd), with_spread(row.second, row.second_sd)]
        rows.append([name, *values, percent(row.difference, "+"), bounds, p])
    headers = ["", "A", "B", "B - A", "95 % interval", "p"]
    return tabulate(rows, headers=headers, colalign=["left", *["right"] * 5], disable_numparse=True)


def with_spread(value: float | None, spread: float | None) -> str:
    """A mean with its standard deviation where there is one."""
    return percent(value) + ("" if spread is None else f" ± {percent(spread)}")


def percent(value: float | None, sign: str = "") -> str:
    """A fraction in percent; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def categories_text(first: ScoredRow, second: ScoredRow, kind: Kind) -> str:
    """The categories that gained and lost most; no interval is given, since most have few objects."""
    changes = category_changes(first, second, kind)
    gained = [row for row in reversed(changes) if row[2] > row[1]][:MOST_CATEGORIES]
    lost = [row for row in changes if row[2] < row[1]][:MOST_CATEGORIES]
    lines = []
    for title, rows in (("gained most", gained), ("lost most", lost)):
        told = [f"{name} {percent(one)} to {percent(other)}" for name, one, other in rows]
        lines.append(f"Categories that {title}: {', '.join(told) or 'none'}")
    return "\n".join(lines)


def printed(value: Any) -> str:
    """A setting, a number in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_text(first: ScoredRow, second: ScoredRow) -> str:
    """What the records say differently; of several seeds every value that occurs."""
    told = [
        {key: list(dict.fromkeys(printed(run.settings.get(key, "-")) for run in row)) for key in keys_of(row)}
        for row in (first, second)
    ]
    differing = [key for key in told[0] | told[1] if told[0].get(key) != told[1].get(key)]
    rows = [[key, *(", ".join(values.get(key, ["-"])) for values in told)] for key in differing]
    if not rows:
        return "Settings: the same in all records."
    return tabulate(rows, headers=["Settings that differ", "A", "B"], disable_numparse=True)


def keys_of(row: ScoredRow) -> list[str]:
    """Everything that the records of a row say something of."""
    return list(dict.fromkeys(key for run in row for key in run.settings))
