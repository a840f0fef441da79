"""Whether two rows on the same annotations differ, and where: a paired bootstrap over images, and the spread of seeds.

Every resample draws the same images for both, so that what makes images hard or easy cancels out. Where a row has
several seeds, its number is their mean, and what another choice of seeds would have changed is part of the interval.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float64

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.bootstrap import (
    SEED,
    Interval,
    intervals,
    metrics_of_runs,
    plans_of,
    resampled_metrics,
    seed_noise,
)
from lvis_rcnn.evaluation.matches import MatchesFile, read_matches
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError


def scored_rows(path: Path, only: Collection[str] = ()) -> dict[str, list[Path]]:
    """metrics.json of the runs of each row of a study, by the row's name; of a row's folder or a run's, without a name.

    Args:
        path: folder of a study, a row or a run, or a metrics.json, which need not be there.
        only: runs below it that count, as r50/seed0; none for all.

    Raises:
        InputError: nothing in the folder is scored, or one of ``only`` is not.
    """
    for run in only:
        if not (path / run / "metrics.json").exists():
            raise InputError(str(path / run), "is not scored", allowed=f"scored runs of {path}", fix="score it first")
    if not path.is_dir() or (path / "metrics.json").exists():
        return {"": [path]}
    seeds = seeds_of(path)
    rows = {"": seeds} if seeds else rows_of_study(path)
    if not rows:
        allowed = "the folder of a run, of a backbone or of a study, or a metrics.json"
        raise InputError(str(path), "nothing in it is scored", allowed=allowed, fix="run the study up to its scores")
    if not only:
        return rows
    wanted = {path / run / "metrics.json" for run in only}
    return {name: kept for name, files in rows.items() if (kept := [file for file in files if file in wanted])}


def rows_of_study(study: Path) -> dict[str, list[Path]]:
    """:func:`scored_rows` of the folder of a study; empty where nothing is scored, or there is no folder."""
    rows = {folder.name: seeds_of(folder) for folder in sorted(study.glob("*"))}
    rows |= {f"published/{file.parent.name}": [file] for file in sorted(study.glob("published/*/metrics.json"))}
    return {name: files for name, files in rows.items() if files}


def seeds_of(folder: Path) -> list[Path]:
    """metrics.json of each seed of a row, by the number of the seed."""
    return sorted(folder.glob("seed*/metrics.json"), key=lambda file: (len(file.parent.name), file.parent.name))


def pair_names(first: Path, ours: Collection[str], second: Path, theirs: Collection[str]) -> dict[str, tuple[str, str]]:
    """Rows to compare, by the name of the pair: two single rows whatever they are called, else those of the same name.

    Args:
        first: where the rows of ``ours`` lie.
        ours: names of rows.
        second: where the rows of ``theirs`` lie.
        theirs: names of rows.

    Raises:
        InputError: there is no row in common.
    """
    if len(ours) == len(theirs) == 1:
        return {"": (next(iter(ours)), next(iter(theirs)))}
    if not (both := [name for name in ours if name in theirs]):
        named = [", ".join(name or "one row" for name in rows) for rows in (ours, theirs)]
        what = f"has no row in common with {first}: {named[1]}; there {named[0]}"
        allowed = "studies with a backbone in common, or one row of each"
        raise InputError(str(second), what, allowed=allowed, fix="name a row of each, or another study")
    return {name: (name, name) for name in both}


# What a run is, as opposed to what came out of it and when, of each of its records.
SETTINGS = {
    "train.json": (
        *("study", "backbone", "seed", "settings", "annotations_sha256", "steps", "images_per_step", "epochs"),
        *("initial_weights", "normalisation_group", "device", "threads", "precision", "resolution", "code_version"),
        "versions",
    ),
    "import.json": ("file", "sha256"),
    "inference.json": (
        *("study", "settings", "device", "threads", "batch_size", "precision", "resolution"),
        *("code_version", "versions"),
    ),
    "metrics.json": ("detections_per_image", "scorer", "versions"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """A scored run."""

    name: str
    metrics: dict[str, Any]
    """The value of metrics.json."""
    matches: MatchesFile
    settings: dict[str, Any]
    """What its records say of it, as record: key."""


ScoredRow = tuple[Scored, ...]
"""The runs of a row, one for each seed."""


def read_scored(path: Path) -> Scored:
    """A run by its folder or its metrics.json; matches.npz and the other records lie beside it.

    Raises:
        InputError: no metrics.json or matches.npz, one that is damaged, or they are of different detections.
    """
    file = path / "metrics.json" if path.is_dir() else path
    metrics = read_metrics(file)
    matches = read_matches(file.with_name("matches.npz"))
    for digest in ("annotations_sha256", "detections_sha256"):
        if getattr(matches, digest) != metrics.get(digest):
            what = f"{digest} is not that of {file.name}"
            fix = "score the detections again, with --matches"
            raise InputError(str(file.with_name("matches.npz")), what, fix=fix)
    return Scored(str(path), metrics, matches, settings_beside(file))


def read_metrics(file: Path) -> dict[str, Any]:
    """The value of a metrics.json; InputError where there is none or it is something else."""
    try:
        metrics = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        fix = "name the folder of a scored run, or a metrics.json"
        raise InputError(str(file), "no such file", fix=fix) from None
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"not readable as JSON: {error}", fix="score the run again") from None
    found = (metrics.get("format"), metrics.get("version"))
    if found != ("lvis_rcnn.metrics", 1):
        what = f"is {found[0]} version {found[1]}"
        raise InputError(str(file), what, allowed="lvis_rcnn.metrics version 1", fix="score the run again")
    return metrics


def settings_beside(file: Path) -> dict[str, Any]:
    """What the records beside a metrics.json say of their run; a record that is not there says nothing."""
    found: dict[str, Any] = {}
    for name, keys in SETTINGS.items():
        try:
            record = msgspec.json.decode(file.with_name(name).read_bytes(), type=dict[str, Any])
        except (OSError, ValueError):
            continue
        for key in keys:
            found |= {f"{Path(name).stem}: {part}": value for part, value in flat(key, record.get(key))}
    return found


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested records, each by the names that lead to it."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from flat(f"{name} {key}", inner)


def pairs_of(first: Path, second: Path, only: Collection[str] = ()) -> dict[str, tuple[ScoredRow, ScoredRow]]:
    """Rows to compare, by the name of the pair (:func:`pair_names`).

    Args:
        first: folder of a run, a row or a study, or a metrics.json.
        second: another one.
        only: of the study ``second`` only these runs, as r50/seed0; none for all.

    Raises:
        InputError: nothing there is scored, a run is damaged, or two studies have no row in common.
    """
    ours, theirs = scored_rows(first), scored_rows(second, only)
    return {
        name: (tuple(map(read_scored, ours[one])), tuple(map(read_scored, theirs[other])))
        for name, (one, other) in pair_names(first, ours, second, theirs).items()
    }


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
