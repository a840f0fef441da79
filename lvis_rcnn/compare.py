"""Whether two runs on the same annotations differ, and where: a paired bootstrap over images.

Every resample draws the same images for both, so that what makes images hard or easy cancels out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float64
from tabulate import tabulate

from lvis_rcnn.accumulate import METRIC_NAMES
from lvis_rcnn.bootstrap import Interval, intervals, plans_of, resampled_metrics
from lvis_rcnn.command import InputError
from lvis_rcnn.matches_file import MatchesFile, read_matches
from lvis_rcnn.results_file import KINDS, Kind

# What a run is, as opposed to what came out of it and when, of each of its records.
SETTINGS = {
    "train.json": (
        *("study", "backbone", "seed", "settings_digest", "annotations_sha256", "steps", "images_per_step", "epochs"),
        *("initial_weights", "normalisation_group", "device", "threads", "precision", "resolution", "code_version"),
        "versions",
    ),
    "import.json": ("file", "sha256"),
    "inference.json": (
        *("study", "settings_digest", "device", "threads", "batch_size", "precision", "resolution"),
        *("code_version", "versions"),
    ),
    "metrics.json": ("detections_per_image", "scorer", "versions"),
}

MOST_CATEGORIES = 5


@dataclass(frozen=True, eq=False)
class Scored:
    """A scored run."""

    name: str
    metrics: dict[str, Any]
    """The value of metrics.json."""
    matches: MatchesFile
    settings: dict[str, Any]
    """What its records say of it, as record: key."""


@dataclass(frozen=True)
class Difference:
    """A metric of two runs, in fractions; None where it is undefined."""

    first: float | None
    second: float | None
    difference: float | None
    """The second minus the first."""
    interval: Interval | None
    """95 %, of the difference."""
    p: float | None
    """Of as large a difference where there is none, both ways."""


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
            mend = "score the detections again, with --matches"
            raise InputError(str(file.with_name("matches.npz")), what, mend=mend)
    return Scored(str(path), metrics, matches, settings_beside(file))


def read_metrics(file: Path) -> dict[str, Any]:
    """The value of a metrics.json; InputError where there is none or it is something else."""
    try:
        metrics = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        mend = "name the folder of a scored run, or a metrics.json"
        raise InputError(str(file), "no such file", mend=mend) from None
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"not readable as JSON: {error}", mend="score the run again") from None
    found = (metrics.get("format"), metrics.get("version"))
    if found != ("lvis_rcnn.metrics", 1):
        what = f"is {found[0]} version {found[1]}"
        raise InputError(str(file), what, allowed="lvis_rcnn.metrics version 1", mend="score the run again")
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
            value = record.get(key)
            parts = {f" {part}": number for part, number in value.items()} if isinstance(value, dict) else {"": value}
            found |= {f"{Path(name).stem}: {key}{part}": number for part, number in parts.items()}
    return found


def compare(first: Scored, second: Scored, resamples: int, seed: int) -> dict[Kind, dict[str, Difference]]:
    """Every metric of the kinds that both runs have.

    Args:
        first: a run.
        second: another one on the same annotations.
        resamples: of the images, the same for both.
        seed: of the resamples.

    Raises:
        InputError: the annotations are not the same, or there is no kind that both have.
    """
    if first.matches.annotations_sha256 != second.matches.annotations_sha256:
        what = f"was scored on other annotations than {first.name}"
        raise InputError(second.name, what, allowed="runs on the same annotations")
    kinds = [kind for kind in KINDS if kind in first.matches.outcomes and kind in second.matches.outcomes]
    if not kinds:
        what = f"has {' and '.join(second.matches.outcomes)}, {first.name} has {' and '.join(first.matches.outcomes)}"
        raise InputError(second.name, what, allowed="boxes, or masks, of both")
    return {kind: differences(first, second, kind, resamples, seed) for kind in kinds}


def differences(first: Scored, second: Scored, kind: Kind, resamples: int, seed: int) -> dict[str, Difference]:
    """Every metric of one kind."""
    both = [
        resampled_metrics(plans_of(run.matches.outcomes[kind], run.matches.frequencies), resamples, seed)
        for run in (first, second)
    ]
    return paired(first.metrics[kind], second.metrics[kind], both[1] - both[0])


def paired(
    first: dict[str, float | None], second: dict[str, float | None], samples: Float64[np.ndarray, "s m"]
) -> dict[str, Difference]:
    """Every metric.

    Args:
        first: metrics of a run.
        second: of the other one.
        samples: the second minus the first in each resample; NaN where undefined.
    """
    estimates = {name: minus(second[name], first[name]) for name in METRIC_NAMES}
    bounds = intervals(estimates, samples)
    found: dict[str, Any] = {}
    for place, name in enumerate(METRIC_NAMES):
        estimate = estimates[name]
        p = None if estimate is None or bounds[name] is None else p_value(estimate, samples[:, place])
        found[name] = Difference(first[name], second[name], estimate, bounds[name], p)
    return found


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


def category_changes(first: Scored, second: Scored, kind: Kind) -> list[tuple[str, float, float]]:
    """Name and both AP of every category that both define, by what it gained."""
    rows = zip(first.metrics["per_category"], second.metrics["per_category"], strict=True)
    both = [(row["name"] or str(row["id"]), row.get(kind), other.get(kind)) for row, other in rows]
    defined = [(name, one, other) for name, one, other in both if one is not None and other is not None]
    return sorted(defined, key=lambda row: row[2] - row[1])


def comparison_text(
    first: Scored, second: Scored, found: dict[Kind, dict[str, Difference]], resamples: int, seed: int
) -> str:
    """All of it for a person: metrics, categories, settings."""
    parts = [f"A: {first.name}\nB: {second.name}"]
    for kind, metrics in found.items():
        parts += [f"{TITLES[kind]}\n{metrics_text(metrics)}", categories_text(first, second, kind)]
    said = f"In percent; B - A with its 95 % interval and p from {resamples} resamples of the images, seed {seed}."
    return "\n\n".join(filter(None, [*parts, said, settings_text(first.settings, second.settings)]))


TITLES: dict[Kind, str] = {"bbox": "Boxes", "segm": "Masks"}


def metrics_text(found: dict[str, Difference]) -> str:
    """Metrics side by side."""
    rows = []
    for name, row in found.items():
        bounds = "-" if row.interval is None else f"{percent(row.interval[0], '+')} to {percent(row.interval[1], '+')}"
        p = "-" if row.p is None else f"{row.p:.3f}"
        rows.append([name, percent(row.first), percent(row.second), percent(row.difference, "+"), bounds, p])
    headers = ["", "A", "B", "B - A", "95 % interval", "p"]
    return tabulate(rows, headers=headers, colalign=["left", *["right"] * 5], disable_numparse=True)


def percent(value: float | None, sign: str = "") -> str:
    """A fraction in percent; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def categories_text(first: Scored, second: Scored, kind: Kind) -> str:
    """The categories that gained and lost most; no interval is given, since most have few objects."""
    changes = category_changes(first, second, kind)
    gained = [row for row in reversed(changes) if row[2] > row[1]][:MOST_CATEGORIES]
    lost = [row for row in changes if row[2] < row[1]][:MOST_CATEGORIES]
    lines = []
    for title, rows in (("gained most", gained), ("lost most", lost)):
        told = [f"{name} {percent(one)} to {percent(other)}" for name, one, other in rows]
        lines.append(f"Categories that {title}: {', '.join(told) or 'none'}")
    return "\n".join(lines)


def settings_text(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What the records say differently."""
    differing = [key for key in first | second if first.get(key) != second.get(key)]
    rows = [[key, *(str(run.get(key, "-")) for run in (first, second))] for key in differing]
    if not rows:
        return "Settings: the same in all records."
    return tabulate(rows, headers=["Settings that differ", "A", "B"], disable_numparse=True)
