"""Scored runs as comparisons read them: one run, the seeds of a row, or all rows of a study."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lvis_rcnn.command import InputError
from lvis_rcnn.matches_file import MatchesFile, read_matches
from lvis_rcnn.pairs import pair_names, scored_rows

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
    """Rows to compare, by the name of the pair (:func:`lvis_rcnn.pairs.pair_names`).

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
