"""Scored runs as comparisons read them: one run, the seeds of a row, or all rows of a study."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lvis_rcnn.command import InputError
from lvis_rcnn.matches_file import MatchesFile, read_matches

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


def read_rows(path: Path) -> dict[str, ScoredRow]:
    """Rows of a study by their names; a row's folder, a run's and a metrics.json are one row without a name.

    Raises:
        InputError: nothing there is scored, or a run is damaged (:func:`read_scored`).
    """
    if not path.is_dir() or (path / "metrics.json").exists():
        return {"": (read_scored(path),)}
    if seeds := seeds_of(path):
        return {"": tuple(map(read_scored, seeds))}
    rows = {folder.name: seeds_of(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    rows |= {f"published/{file.parent.name}": [file] for file in sorted(path.glob("published/*/metrics.json"))}
    found = {name: tuple(map(read_scored, files)) for name, files in rows.items() if files}
    if not found:
        allowed = "the folder of a run, of a backbone or of a study, or a metrics.json"
        raise InputError(str(path), "nothing in it is scored", allowed=allowed, mend="run the study up to its scores")
    return found


def seeds_of(folder: Path) -> list[Path]:
    """metrics.json of each seed of a row, by the number of the seed."""
    return sorted(folder.glob("seed*/metrics.json"), key=lambda file: (len(file.parent.name), file.parent.name))


def pairs_of(first: Path, second: Path) -> dict[str, tuple[ScoredRow, ScoredRow]]:
    """Rows to compare, by name: two single rows whatever they are called, else those of the same name.

    Raises:
        InputError: as :func:`read_rows`, or two studies have no row in common.
    """
    ours, theirs = read_rows(first), read_rows(second)
    if len(ours) == len(theirs) == 1:
        return {"": (next(iter(ours.values())), next(iter(theirs.values())))}
    if not (both := [name for name in ours if name in theirs]):
        named = [", ".join(name or "one row" for name in rows) for rows in (ours, theirs)]
        what = f"has no row in common with {first}: {named[1]}; there {named[0]}"
        raise InputError(str(second), what, allowed="studies with a backbone in common, or one row of each")
    return {name: (ours[name], theirs[name]) for name in both}
