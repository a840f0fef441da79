"""Whether two rows on the same annotations differ, and where: a paired bootstrap over images, and variance of seeds.

Every resample draws the same images for both, so that the difficulty of images cancels out. The metrics of a row with
several seeds are means over them, and the interval includes the variance between seeds (:mod:`uncertainty`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float64

from lvis_rcnn.config.protocols import protocols_by_name
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.bootstrap import SEED, resampled_metrics, resampling_of
from lvis_rcnn.evaluation.interface import any_detections, kinds_of_truth
from lvis_rcnn.evaluation.matches import FIX, MatchesFile, read_matches
from lvis_rcnn.evaluation.metrics import ComparedMetrics, of_protocol
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.evaluation.scoring import Annotations, Scoring, score_detections
from lvis_rcnn.evaluation.uncertainty import Interval, Sampled, estimates, holm, metrics_of_runs, seedwise
from lvis_rcnn.system.cli import InputError

SCORED_AGAIN = "score the run again, or name annotations before two results files: compare GT.json A.json B.json"


def scored_rows(path: Path, only: Sequence[str] = ()) -> dict[str, list[Path]]:
    """metrics.json of the runs of each row, by the row's name, which is empty unless ``path`` is a study.

    Args:
        path: folder of a study, a row or a run, or a metrics.json, which need not exist.
        only: the runs below it to use, as r50/seed0; all if empty.

    Raises:
        InputError: nothing in the folder is scored, one of ``only`` is not, or ``path`` is a single run.
    """
    if not path.is_dir() or (path / "metrics.json").exists():
        if only and path.exists():
            raise InputError(f"--only {only[0]}", f"is of several runs, and {path} is one", fix="leave it out")
        return {"": [path]}
    seeds = seeds_of(path)
    rows = {"": seeds} if seeds else rows_of_study(path)
    if not rows:
        allowed = "the folder of a run, of a backbone or of a study, or a metrics.json"
        raise InputError(str(path), "nothing in it is scored", allowed=allowed, fix="run the study up to its scores")
    if not only:
        return rows
    runs = {str(file.parent.relative_to(path)): file for files in rows.values() for file in files}
    if unknown := [run for run in only if run not in runs]:
        fix = "name one of them, or score it first"
        raise InputError(
            f"--only {unknown[0]}", f"is no scored run of {path}", allowed=", ".join(sorted(runs)), fix=fix
        )
    wanted = {runs[run] for run in only}
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
    """The settings in its records, by "record: key"; empty where it has none."""
    weights: str | None = None
    """SHA-256 of the weights that detected, where inference.json says it."""


ScoredRow = tuple[Scored, ...]
"""The runs of a row, one for each seed."""


def read_scored(path: Path, protocol: str = "") -> Scored:
    """Read a run by its folder or its metrics.json, with match results and the other records in the same folder.

    Args:
        path: the folder or the metrics.json.
        protocol: by which it was scored, as fixed or minival; the empty name is AP@300.

    Raises:
        InputError: metrics.json or match results are missing or damaged, they belong to different detections, or it was
            not scored by the protocol.
    """
    file = path / "metrics.json" if path.is_dir() else path
    metrics = read_metrics(file)
    known = metrics.get("protocols", {})
    if protocol and protocol not in known:
        allowed = ", ".join(known) or "AP@300 alone"
        raise InputError(str(file), f"was not scored by the protocol {protocol}", allowed=allowed, fix=FIX)
    beside, shared = matches_beside(file), file.with_name("matches.npz")
    beside = shared if shared.exists() and not beside.exists() else beside
    metrics = dict(of_protocol(metrics, protocol))
    matches = read_matches(beside, protocol)
    for name in ("annotations_sha256", "detections_sha256", "detections_per_image"):
        if getattr(matches, name) != metrics.get(name, getattr(matches, name)):
            raise InputError(str(beside), f"{name} is not that of {file.name}", fix=FIX)
    if any(of.num_images != metrics.get("images", of.num_images) for of in matches.outcomes.values()):
        raise InputError(str(beside), f"has another number of images than {file.name}", fix=FIX)
    lacking = [f"no {kind}" for kind in matches.outcomes if kind not in metrics]
    if [category["id"] for category in metrics["per_category"]] != matches.category_ids.tolist():
        lacking.append("other categories")
    if lacking:
        raise InputError(str(file), f"has {lacking[0]}, unlike {beside.name}", fix=FIX)
    weights = record_of(file.with_name("inference.json")).get("model_sha256") if file.name == "metrics.json" else None
    return Scored(str(path), metrics, matches, settings_beside(file), weights)


def share_trainings(first: ScoredRow, second: ScoredRow) -> bool:
    """Whether two rows are of the same weights, seed by seed, as rows are that differ in inference alone."""
    weights = [[run.weights for run in row] for row in (first, second)]
    return weights[0] == weights[1] and None not in weights[0]


def matches_beside(metrics: Path) -> Path:
    """Where scoring writes the match results of a file of metrics: matches.npz, but NAME.npz beside NAME.json."""
    return metrics.with_name("matches.npz") if metrics.name == "metrics.json" else metrics.with_suffix(".npz")


def scored_now(annotations: Annotations, detections: Path, protocol: str = "") -> Scored:
    """Detections of any detector, scored by AP@300 or another protocol.

    Raises:
        InputError: there is no such protocol, or as :func:`interface.any_detections`.
    """
    known = protocols_by_name()
    if protocol and protocol not in known:
        raise InputError(f"--protocol {protocol}", "is no protocol", allowed=", ".join(known))
    found = any_detections(detections, annotations.truth, kinds_of_truth(annotations.truth))
    metrics, matches = score_detections(annotations, found, Scoring(protocols=[known[protocol]] if protocol else ()))
    metrics, matches = dict(of_protocol(metrics, protocol)), matches.protocols.get(protocol, matches)
    return Scored(str(detections), metrics, matches, settings={})


def read_metrics(file: Path) -> dict[str, Any]:
    """The value of a metrics.json; InputError where it is missing, or is not one."""
    try:
        metrics = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        fix = "name the folder of a scored run, or a metrics.json"
        raise InputError(str(file), "no such file", fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), f"not readable as JSON: {error}", fix=SCORED_AGAIN) from None
    found = (metrics.get("format"), metrics.get("version"))
    if found != ("lvis_rcnn.metrics", 1):
        what = f"is {found[0]} version {found[1]}" if found[0] else "is no metrics.json"
        raise InputError(str(file), what, allowed="lvis_rcnn.metrics version 1", fix=SCORED_AGAIN)
    try:
        msgspec.convert(metrics, ComparedMetrics)
    except msgspec.ValidationError as error:
        raise InputError(str(file), f"damaged: {error}", fix="score the run again") from None
    return metrics


def settings_beside(file: Path) -> dict[str, Any]:
    """The settings in a file of metrics, and in the other records beside metrics.json; a missing one has none."""
    found: dict[str, Any] = {}
    for name, keys in SETTINGS.items():
        if file.name != "metrics.json" and name != "metrics.json":
            continue
        path = file if name == "metrics.json" else file.with_name(name)
        record = record_of(path)
        for key in keys if record else ():
            found |= {f"{Path(name).stem}: {part}": value for part, value in flat(key, record.get(key))}
    return found


def record_of(path: Path) -> dict[str, Any]:
    """The value of a record; empty where it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError, RecursionError):
        return {}


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested records, each with the keys that lead to it."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from flat(f"{name} {key}", inner)


def row_pairs(
    first: Path, second: Path, only: Sequence[str] = (), protocol: str = ""
) -> dict[str, tuple[ScoredRow, ScoredRow]]:
    """Rows to compare, by the name of the pair (:func:`pair_names`).

    Args:
        first: folder of a run, a row or a study, or a metrics.json.
        second: another one.
        only: the runs of ``second`` to use, as r50/seed0; all if empty.
        protocol: as in :func:`read_scored`.

    Raises:
        InputError: nothing there is scored, a run is damaged or not scored by the protocol, or two studies have no row
            in common.
    """
    ours, theirs = scored_rows(first), scored_rows(second, only)

    def read(runs: list[Path]) -> ScoredRow:
        return tuple(read_scored(run, protocol) for run in runs)

    return {
        name: (read(ours[one]), read(theirs[other]))
        for name, (one, other) in pair_names(first, ours, second, theirs).items()
    }


PRIMARY: tuple[tuple[Kind, str], ...] = (("bbox", "AP"), ("segm", "AP"), ("segm", "APr"))
"""The metrics that are tested. Of 26 tests at 5 % 1.3 would be expected to find a difference where there is none."""


@dataclass(frozen=True)
class Difference:
    """A metric of two rows as fractions, means over their seeds; None where it is undefined in a run."""

    first: float | None
    second: float | None
    difference: float | None
    """The second minus the first."""
    interval: Interval | None
    """95 % interval of the difference; None also where :func:`uncertainty.estimates` has none."""
    p: float | None
    """Two-sided p value of the hypothesis that there is no difference, not corrected for the number of tests."""
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
        if run.matches.images_sha256 != first[0].matches.images_sha256:
            what = f"was scored on other images than {first[0].name}: the subset has other ids"
            raise InputError(run.name, what, allowed="runs on the same images", fix=FIX)
    kinds = [kind for kind in KINDS if all(kind in run.matches.outcomes for run in (*first, *second))]
    if not kinds:
        has = [" and ".join(row[0].matches.outcomes) for row in (first, second)]
        what = f"has {has[1]}, {first[0].name} has {has[0]}"
        raise InputError(second[0].name, what, allowed="boxes, or masks, of all runs")
    return {kind: differences(first, second, kind, resamples, seed) for kind in kinds}


def differences(first: ScoredRow, second: ScoredRow, kind: Kind, resamples: int, seed: int) -> dict[str, Difference]:
    """The difference in every metric of one kind."""
    rows = [
        Sampled(
            metrics_of_runs([run.metrics for run in row], kind),
            np.array([samples_of(run, kind, resamples, seed) for run in row]),
        )
        for row in (first, second)
    ]
    return paired(*rows, same_trainings=share_trainings(first, second))


def samples_of(run: Scored, kind: Kind, resamples: int, seed: int) -> Float64[np.ndarray, "s m"]:
    """The metrics of every resample of a run: those that scoring kept, if they are enough and ``seed`` is ``SEED``."""
    kept = run.matches.resampled.get(kind)
    if kept is not None and seed == SEED and len(kept) >= resamples:
        return kept[:resamples]
    return resampled_metrics(resampling_of(run.matches.outcomes[kind], run.matches.frequencies), resamples, seed)


def paired(first: Sampled, second: Sampled, *, same_trainings: bool = False) -> dict[str, Difference]:
    """The difference in every metric, the second minus the first; seed by seed where both are of the same trainings."""
    metrics = [row.metrics for row in (first, second)]
    means = [row.mean(axis=0).tolist() for row in metrics]
    spreads = [row.std(axis=0, ddof=1).tolist() if len(row) > 1 else [None] * row.shape[1] for row in metrics]
    found = (seedwise if same_trainings else estimates)(second, first)
    return {
        name: Difference(
            first=defined(one),
            second=defined(other),
            difference=defined(other - one),
            interval=estimate.interval if (estimate := found[name]) else None,
            p=estimate.p if estimate else None,
            first_sd=defined(one_sd),
            second_sd=defined(other_sd),
        )
        for name, one, other, one_sd, other_sd in zip(METRIC_NAMES, *means, *spreads, strict=True)
    }


def corrected(found: Mapping[Kind, Mapping[str, Difference]]) -> dict[tuple[Kind, str], float]:
    """The p values of the primary metrics, corrected for their number (:func:`uncertainty.holm`)."""
    of_primary = {(kind, name): found[kind][name].p for kind, name in PRIMARY if kind in found}
    return holm({name: p for name, p in of_primary.items() if p is not None})


def defined(value: float | None) -> float | None:
    """The value; None where it is NaN."""
    return None if value is None or np.isnan(value) else value


def mean_categories(row: ScoredRow, kind: Kind) -> list[dict[str, Any]]:
    """``per_category`` of metrics.json with means over the seeds; None where a run does not define the AP."""
    rows = []
    for of_runs in zip(*(run.metrics["per_category"] for run in row), strict=True):
        values = [one.get(kind) for one in of_runs]
        rows.append({**of_runs[0], kind: None if None in values else sum(values) / len(values)})
    return rows
