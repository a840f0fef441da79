"""Whether two rows on the same annotations differ, and where: a paired bootstrap over images, and variance of seeds.

Every resample draws the same images for both, so that the difficulty of images cancels out. The metrics of a row with
several seeds are means over them, and the interval includes the variance between seeds.
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
    resampled_metrics,
    resampling_of,
    seed_noise,
)
from lvis_rcnn.evaluation.matches import FIX, MatchesFile, read_matches
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError


def scored_rows(path: Path, only: Collection[str] = ()) -> dict[str, list[Path]]:
    """metrics.json of the runs of each row, by the row's name, which is empty unless ``path`` is a study.

    Args:
        path: folder of a study, a row or a run, or a metrics.json, which need not exist.
        only: the runs below it to use, as r50/seed0; all if empty.

    Raises:
        InputError: nothing in the folder is scored, or one of ``only`` is not.
    """
    scored = sorted(str(file.parent.relative_to(path)) for file in path.glob("**/metrics.json") if only)
    for run in only:
        if run not in scored:
            fix = "name one of them, or score it first"
            raise InputError(
                f"--only {run}", f"is no scored run of {path}", allowed=", ".join(scored) or "none", fix=fix
            )
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
    """metrics.json of each seed of a row, in the order of seeds."""
    return sorted(folder.glob("seed*/metrics.json"), key=lambda file: (len(file.parent.name), file.parent.name))


def pair_names(first: Path, ours: Collection[str], second: Path, theirs: Collection[str]) -> dict[str, tuple[str, str]]:
    """Rows to compare, by the name of the pair: rows of the same name, or two single rows whatever their names.

    Args:
        first: folder of the rows of ``ours``.
        ours: names of rows.
        second: folder of the rows of ``theirs``.
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


# The settings of a run in each of its records, as opposed to its results and times.
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
    """The settings in its records, by "record: key"."""


ScoredRow = tuple[Scored, ...]
"""The runs of a row, one for each seed."""


def read_scored(path: Path) -> Scored:
    """Read a run by its folder or its metrics.json, with matches.npz and the other records in the same folder.

    Raises:
        InputError: metrics.json or matches.npz is missing or damaged, or they belong to different detections.
    """
    file = path / "metrics.json" if path.is_dir() else path
    metrics = read_metrics(file)
    matches = read_matches(file.with_name("matches.npz"))
    for digest in ("annotations_sha256", "detections_sha256"):
        if getattr(matches, digest) != metrics.get(digest):
            raise InputError(str(file.with_name("matches.npz")), f"{digest} is not that of {file.name}", fix=FIX)
    return Scored(str(path), metrics, matches, settings_beside(file))


def read_metrics(file: Path) -> dict[str, Any]:
    """The value of a metrics.json; InputError where it is missing, or is not one."""
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
    """The settings in the records beside a metrics.json; a missing record has none."""
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
    """The values of nested records, each with the keys that lead to it."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from flat(f"{name} {key}", inner)


def row_pairs(first: Path, second: Path, only: Collection[str] = ()) -> dict[str, tuple[ScoredRow, ScoredRow]]:
    """Rows to compare, by the name of the pair (:func:`pair_names`).

    Args:
        first: folder of a run, a row or a study, or a metrics.json.
        second: another one.
        only: the runs of ``second`` to use, as r50/seed0; all if empty.

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
    """A metric of two rows as fractions, means over their seeds; None where it is undefined in a run."""

    first: float | None
    second: float | None
    difference: float | None
    """The second minus the first."""
    interval: Interval | None
    """95 % interval of the difference."""
    p: float | None
    """Two-sided p value of the hypothesis that there is no difference."""
    first_sd: float | None
    second_sd: float | None
    """Sample standard deviation over seeds; None for a single seed."""


def compare(first: ScoredRow, second: ScoredRow, resamples: int, seed: int) -> dict[Kind, dict[str, Difference]]:
    """The difference in every metric of the kinds that all runs have.

    Args:
        first: the runs of a row.
        second: the runs of another row, on the same annotations.
        resamples: number of resamples of the images, which are the same for all runs.
        seed: seed of the resamples.

    Raises:
        InputError: the annotations differ, or there is no kind that all runs have.
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
    """The difference in every metric of one kind."""
    samples = mean_samples(second, kind, resamples, seed) - mean_samples(first, kind, resamples, seed)
    for place, row in enumerate((first, second)):
        # The images are drawn from (seed, number of the resample).
        generator = np.random.default_rng([seed, resamples, place])
        samples = samples + seed_noise(of_runs(row, kind), resamples, generator)
    return paired(of_runs(first, kind), of_runs(second, kind), samples)


def mean_samples(row: ScoredRow, kind: Kind, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """The metrics of every resample, means over the seeds; NaN where one is undefined."""
    means: np.ndarray = np.mean([samples_of(run, kind, resamples, seed) for run in row], axis=0)
    return means


def samples_of(run: Scored, kind: Kind, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """The metrics of every resample of a run: those that scoring kept, if they are enough and ``seed`` is ``SEED``."""
    kept = run.matches.resampled.get(kind)
    if kept is not None and seed == SEED and len(kept) >= resamples:
        return kept[:resamples]
    return resampled_metrics(resampling_of(run.matches.outcomes[kind], run.matches.frequencies), resamples, seed)


def of_runs(row: ScoredRow, kind: Kind) -> Float64[np.ndarray, "n m"]:
    """The metrics of each run of a row; NaN where undefined."""
    return metrics_of_runs([run.metrics for run in row], kind)


def paired(
    first: Float64[np.ndarray, "n m"], second: Float64[np.ndarray, "k m"], samples: Float64[np.ndarray, "s m"]
) -> dict[str, Difference]:
    """The difference in every metric.

    Args:
        first: metrics of the runs of a row.
        second: metrics of the runs of the other row.
        samples: the second minus the first in each resample; NaN where undefined.
    """
    means = [row.mean(axis=0).tolist() for row in (first, second)]
    spreads = [row.std(axis=0, ddof=1).tolist() if len(row) > 1 else [None] * row.shape[1] for row in (first, second)]
    estimates = {name: defined(two - one) for name, one, two in zip(METRIC_NAMES, *means, strict=True)}
    bounds = intervals(estimates, samples)
    found: dict[str, Any] = {}
    for place, name in enumerate(METRIC_NAMES):
        estimate = estimates[name]
        p = None if estimate is None or bounds[name] is None else p_value(estimate, samples[:, place])
        one, other, *both = (defined(values[place]) for values in (*means, *spreads))
        found[name] = Difference(one, other, estimate, bounds[name], p, *both)
    return found


def defined(value: float | None) -> float | None:
    """The value; None where it is NaN."""
    return None if value is None or np.isnan(value) else value


def p_value(difference: float, values: Float64[np.ndarray, " s"]) -> float:
    """Two-sided bootstrap p value of the hypothesis of no difference: twice the smaller tail probability, at most 1.

    Resamples vary around the difference as the difference would vary around 0 under the hypothesis, so that those at
    twice the difference or beyond are as extreme as the observed one. p is below 0.05 where the basic 95 % interval
    excludes 0. Counting one more resample keeps p above 0 (Davison and Hinkley 1997, section 4.2).
    """
    values = values[~np.isnan(values)]
    smaller_tail = min(int((values <= 2 * difference).sum()), int((values >= 2 * difference).sum()))
    return min(1.0, 2 * (smaller_tail + 1) / (len(values) + 1))


def mean_categories(row: ScoredRow, kind: Kind) -> list[dict[str, Any]]:
    """``per_category`` of metrics.json with means over the seeds; None where a run does not define the AP."""
    rows = []
    for of_runs in zip(*(run.metrics["per_category"] for run in row), strict=True):
        values = [one.get(kind) for one in of_runs]
        rows.append({**of_runs[0], kind: None if None in values else sum(values) / len(values)})
    return rows
