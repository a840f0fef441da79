"""Which runs of a study are scored, and which rows of two are compared: by names alone, so that a plan can use it."""

from collections.abc import Collection
from pathlib import Path

from lvis_rcnn.command import InputError


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
            raise InputError(str(path / run), "is not scored", allowed=f"scored runs of {path}", mend="score it first")
    if not path.is_dir() or (path / "metrics.json").exists():
        return {"": [path]}
    seeds = seeds_of(path)
    rows = {"": seeds} if seeds else rows_of_study(path)
    if not rows:
        allowed = "the folder of a run, of a backbone or of a study, or a metrics.json"
        raise InputError(str(path), "nothing in it is scored", allowed=allowed, mend="run the study up to its scores")
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
        raise InputError(str(second), what, allowed=allowed, mend="name a row of each, or another study")
    return {name: (name, name) for name in both}
