"""What stands around the results table: how to read it, and how each number was obtained."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.reporting.rows import (
    COMPARED,
    PUBLISHED,
    RESCORED,
    TRAINED,
    Link,
    Row,
    cell,
    difference,
    download,
    is_best,
    missing_of,
    moments_of,
    published_value,
    reasons,
    row_record,
    rows_of,
)
from lvis_rcnn.runs.records import MEASURES, Run
from lvis_rcnn.system.files import write_json, write_text

# What stands behind numbers that were measured elsewhere than the first of their column.
MARKS = ("", "†", "‡", "§")
OF_DEVICE = ("memory_gb", "fps")
PUBLISHERS = "the publisher's GPUs"

# The page's columns in its order; Download stands between the two.
PAGE_COLUMNS = {"memory_gb": "Mem (GB)", "fps": "Inf time (fps)", "box_AP": "box AP", "mask_AP": "mask AP"}
FURTHER_COLUMNS = {"mask_APr": "APr", "mask_APc": "APc", "mask_APf": "APf", "images_seen": "Images seen"}


def cells(rows: list[Row], link: Link | None = None, marked: bool = False) -> pd.DataFrame:
    """The printed table; with ``link`` it has the column Download, with published models what a row is of.

    ``marked``: the best AP among rows of the same data stands between two asterisks.
    """
    lines = []
    for row in rows:
        line = {"Backbone": row.title, "Style": BACKBONES[row.backbone].style, "Lr schd": row.lr_schd}
        if any(other.model for other in rows):
            line |= {"Scored on": row.scored_on, "Source": row.source}
        line |= {title: printed(row, rows, name, marked) for name, title in PAGE_COLUMNS.items()}
        if link:
            line["Download"] = download(row, link)
        further = FURTHER_COLUMNS | hours_column(rows)
        line |= {title: printed(row, rows, name, marked) for name, title in further.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def hours_column(rows: list[Row]) -> dict[str, str]:
    """What a training took, with all its starts: CPU-hours where no GPU took part."""
    took = {name: [moments_of(row, name)["mean"] for row in rows] for name in ("gpu_hours", "cpu_hours")}
    by_cpu = any(took["cpu_hours"]) and not any(took["gpu_hours"])
    return {"cpu_hours": "CPU-hours"} if by_cpu else {"gpu_hours": "GPU-hours"}


def printed(row: Row, rows: list[Row], name: str, marked: bool) -> str:
    """A cell; ``marked``: the best AP among rows of the same data stands in bold."""
    text = cell(row, name) + mark(rows, row, name)
    return f"**{text}**" if marked and "AP" in name and is_best(row, rows, name) else text


def place_of(row: Row, name: str) -> str | None:
    """Where memory or speed of a row was measured; None where there is no number."""
    if row.source == PUBLISHED:
        return PUBLISHERS if published_value(row, name) is not None else None
    return row.measured_on if row.runs_of(name)[0].value(MEASURES[name]) is not None else None


def places(rows: list[Row]) -> list[str]:
    """Every place where memory or speed was measured; the first needs no mark."""
    return list(dict.fromkeys(place for row in rows for name in OF_DEVICE if (place := place_of(row, name))))


def mark(rows: list[Row], row: Row, name: str) -> str:
    """What tells a number of another device from the others of its column."""
    place = place_of(row, name) if name in OF_DEVICE else None
    return MARKS[min(places(rows).index(place), len(MARKS) - 1)] if place else ""


def titled(study: Study) -> str:
    """The study's title, with its name in it."""
    named = re.search(rf"(?<![\w.]){re.escape(study.study)}(?![\w.])", study.title)
    return study.title if named else f"{study.title} ({study.study})"


def devices_line(rows: list[Row]) -> str:
    """What the marks mean; empty where all was measured on one device."""
    first, *others = places(rows) or [""]
    if not others:
        return ""
    marked = [f"{MARKS[min(at, len(MARKS) - 1)]} {place}" for at, place in enumerate(others, start=1)]
    return f"Mem and Inf time compare only on one device: no mark {first}; {'; '.join(marked)}."


def reading_line(rows: list[Row]) -> str:
    """What the columns beyond the page are, and which seeds are missing from a mean."""
    parts = ["APr, APc, APf: mask AP of rare, common and frequent categories. All AP in percent."]
    seeds = max(len(row.runs) for row in rows)
    if seeds > 1:
        parts.append(f"Mean ± sample standard deviation over {seeds} seeds.")
    parts += interval_sentence(rows)
    if any(difference(row, name) is not None for row in rows for name in COMPARED):
        said = "the published number, and of AP what was measured here minus that"
        parts.append(f"In round brackets: {said}; ! marks what is {noise_of(rows, seeds)}.")
    for row in rows:
        if any(not run.missing for run in row.runs):
            late = {run.seed: next(iter(run.missing.values())) for run in row.runs if run.missing}
            parts += [f"{row.title}, seed {seed}: {reasons({seed: why})}." for seed, why in late.items()]
    return " ".join(parts)


def interval_sentence(rows: list[Row]) -> list[str]:
    """What square brackets are, where there are any."""
    shown = [row for row in rows if any(row.interval(name) for name in MEASURES)]
    if not shown:
        return []
    records = [run.records["evaluate"] for row in shown for run in row.runs if "evaluate" in run.records]
    numbers = sorted({found["intervals"]["resamples"] for found in records if found.get("intervals")})
    of_means = "; that of a mean over seeds counts their spread, too" if any(row.has_mean for row in shown) else ""
    resamples = ", ".join(f"{number:,}" for number in numbers)
    sentence = f"95 % interval over the validation images, from a bootstrap of {resamples} resamples{of_means}"
    return [f"In square brackets: {sentence}."]


def noise_of(rows: list[Row], seeds: int) -> str:
    """Beyond which noise a difference to a published number is marked."""
    rescored = "more than the rounding of the published number, the weights being the same"
    trained = (
        "more than two standard deviations over the seeds"
        if seeds > 1
        else "outside the interval over the validation images; another seed would move it, too"
    )
    of = {RESCORED: rescored, TRAINED: trained}
    return ", or, trained here, ".join(text for source, text in of.items() if any(row.source == source for row in rows))


def files_line(rows: list[Row]) -> str:
    """The published files that were read, with the digest of their bytes; empty where there are none."""
    files = [f"{file['file']} (sha256 {file['sha256']})" for file in published_files(rows)]
    return f"Published files scored here: {'; '.join(files)}." if files else ""


def published_files(rows: list[Row]) -> list[dict[str, str]]:
    """Name and digest of each published file that was read."""
    records = [run.records["import"] for row in rows for run in row.runs if "import" in run.records]
    return [{key: record[key] for key in ("file", "sha256")} for record in records]


def provenance(study: Study, rows: list[Row]) -> dict[str, Any]:
    """What all numbers of the table were made with; lists hold every value that occurs."""
    # A published model was trained elsewhere: what its numbers were made with here is what detected with it.
    found_by_run = [run.records for row in rows for run in (*row.runs, *filter(None, [row.measured]))]
    records = [{**found, "made": found.get("train", found.get("infer", {}))} for found in found_by_run]

    def all_of(step: str, *keys: str) -> list[Any]:
        found: list[Any] = []
        for record in records:
            value: Any = record.get(step, {})
            for key in keys:
                value = (value or {}).get(key, {})
            if value != {} and value not in found:
                found.append(value)
        return found

    return {
        "study": study.study,
        "seeds": list(study.seeds),
        "code_version": all_of("made", "code_version"),
        "train_annotations_sha256": all_of("train", "annotations_sha256"),
        "val_annotations_sha256": all_of("evaluate", "annotations_sha256"),
        "versions": {name: all_of("made", "versions", name) for name in ("python", "torch", "torchvision")},
        "device": all_of("train", "device"),
        "threads": all_of("made", "threads"),
        "precision": all_of("made", "precision"),
        "images_seen": all_of("train", "images_seen"),
        "finished": max((str(at)[:10] for at in all_of("train", "finished_at")), default=None),
        "protocol": all_of("evaluate", "protocol"),
        "scored_on": scored_on(rows),
        "measured_on": all_of("measure", "device"),
        "memory": list(filter(None, all_of("measure", "training"))),
        "fps": all_of("measure", "inference"),
        "published_files": published_files(rows),
    }


def scored_on(rows: list[Row]) -> list[str]:
    """What runs were scored on, and how many images that is."""
    scored = [(row, run.records["evaluate"]) for row in rows for run in row.runs if "evaluate" in run.records]
    named = (f"{found['images']:,} validation images of {row.scored_on}" for row, found in scored if "images" in found)
    return list(dict.fromkeys(named))


def provenance_line(study: Study, rows: list[Row]) -> str:
    """:func:`provenance` in one line; what no run has recorded yet is left out."""
    facts = provenance(study, rows)
    seeds = f"seed{'s' if len(facts['seeds']) > 1 else ''} {', '.join(map(str, facts['seeds']))}"
    digests = {"train": facts["train_annotations_sha256"], "val": facts["val_annotations_sha256"]}
    parts = [
        f"Study {facts['study']}" + (f", {seeds}" if facts["seeds"] else ""),
        listed("code", facts["code_version"]),
        listed("data", [f"{sha256[:8]} ({split})" for split, found in digests.items() for sha256 in found]),
        *(listed(name.replace("python", "Python"), found) for name, found in facts["versions"].items()),
        listed("trained on", facts["device"]),
        listed("threads", facts["threads"]),
        listed("", facts["precision"]),
        listed("images seen by a run:", facts["images_seen"]),
        listed("scored on", facts["scored_on"]),
        facts["finished"] or "",
    ]
    definitions = [
        listed("AP:", facts["protocol"]),
        measurement_line("Mem", facts["measured_on"], facts["memory"], "{images} images in {steps} steps"),
        measurement_line("Inf time", facts["measured_on"], facts["fps"], "{images} images after {warmup_images}"),
    ]
    return ". ".join(["; ".join(filter(None, parts)), *filter(None, definitions)]) + "."


def measurement_line(label: str, devices: list[str], found: list[dict[str, Any]], extent: str) -> str:
    """What was measured, on what, how precisely and over how much; ``extent`` names keys of a measurement."""
    conditions = dict.fromkeys(f"{one['resolution']}, {one['precision']}, {extent.format_map(one)}" for one in found)
    definitions = ", ".join(dict.fromkeys(one["definition"] for one in found))
    return f"{label}: {definitions} ({'; '.join([', '.join(devices), *conditions])})" if found else ""


def listed(label: str, values: Iterable[Any]) -> str:
    """``label value, value``; empty if there is no value."""
    text = ", ".join(map(str, values))
    return f"{label} {text}".strip() if text else ""


CELL_CHARACTERS = 17  # "23.1 [21.0, 25.2]"; twelve columns would not fit otherwise
TERMINAL_CHARACTERS, TITLE_CHARACTERS = 100, 16
MOST_SIDE_BY_SIDE = 4  # rows of the table that fit beside each other on a terminal


def write_tables(study: Study, models: Mapping[str, ZooModel], results: Path, out: Path, now_s: float) -> str:
    """Write the table of ``study`` to ``out``; return it as text for the terminal.

    Args:
        study: what should have been run.
        models: published models by name, those that the study scores among them.
        results: folder that all steps write into.
        out: path of table.md; .csv and .json appear beside it.
        now_s: Unix time; tells a live run from a dead one.
    """
    rows = rows_of(study, results, models, now_s)
    link = links_from(out.parent, results, study.report.base_url)
    write_text(out, markdown(study, rows, link))
    write_text(out.with_suffix(".csv"), spreadsheet(study, rows, link).to_csv(index=False))
    write_json(out.with_suffix(".json"), everything(study, rows, link))
    said = [fill(text, TERMINAL_CHARACTERS) for text in (reading_line(rows), devices_line(rows)) if text]
    return "\n\n".join([terminal_table(cells(rows)), *said])


def terminal_table(frame: pd.DataFrame) -> str:
    """The table for a terminal: turned, a column for each row, as long as these fit beside each other."""
    lines, width = [list(frame.columns), *frame.to_numpy().tolist()], CELL_CHARACTERS
    if len(frame) <= MOST_SIDE_BY_SIDE:
        lines = [list(line) for line in zip(*lines, strict=True)]
        width = (TERMINAL_CHARACTERS - TITLE_CHARACTERS) // len(frame) - 2
    widths = [width] * len(lines[0])
    return tabulate(lines[1:], lines[0], tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def links_from(folder: Path, results: Path, base_url: str | None) -> Link:
    """How a file of ``results`` is linked in a table of ``folder``: relative to it, or below ``base_url``."""

    def link(path: Path) -> str:
        if base_url is None:
            return quote(Path(os.path.relpath(path, folder)).as_posix())
        return f"{base_url.rstrip('/')}/{quote(path.relative_to(results).as_posix())}"

    return link


def markdown(study: Study, rows: list[Row], link: Link) -> str:
    """The page: title, table, one line of provenance, how to read the numbers, the published files."""
    frame = cells(rows, link, marked=True)
    table = frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=["left"] * frame.shape[1])
    parts = [f"# {titled(study)}", table, provenance_line(study, rows), devices_line(rows)]
    several = "Download is the first seed that is done." if any(len(row.runs) > 1 for row in rows) else ""
    parts += [" ".join(filter(None, [several, reading_line(rows)])), files_line(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def everything(study: Study, rows: list[Row], link: Link) -> dict[str, Any]:
    """The value of table.json."""
    return {
        "format": "lvis_rcnn.table",
        "version": 1,
        "study": study.study,
        "title": titled(study),
        "rows": [row_record(row, link) for row in rows],
        "provenance": provenance(study, rows),
    }


def spreadsheet(study: Study, rows: list[Row], link: Link) -> pd.DataFrame:
    """:func:`everything` with a line for each row; with several seeds, deviations and each seed have columns too."""
    lines = []
    for row in rows:
        record = row_record(row, link)
        named = ("source", "backbone", "title", "style", "lr_schd", "scored_on", "measured_on")
        line = {"study": study.study} | {key: record[key] for key in named}
        for name, measure in record["measures"].items():
            line[name] = measure["mean"]
            if len(row.runs) > 1:
                line[f"{name}_sd"] = measure["sd"]
                line |= {f"{name}_seed{seed}": value for seed, value in measure["seeds"].items()}
            bounds = {"": measure["interval"]} if "interval" in measure else {}
            if len(row.runs) > 1:
                bounds |= {f"_seed{key}": found for key, found in measure.get("intervals", {}).items()}
            for of, (low, high) in bounds.items():
                line |= {f"{name}_low{of}": low, f"{name}_high{of}": high}
        for kind in ("published", "difference", "outside_noise"):
            line |= {f"{name}_{kind}": value for name, value in record.get(kind, {}).items()}
        line["missing"] = "; ".join(filter(None, (why_late(row, run) for run in row.runs)))
        line |= {kind: next(filter(None, record[kind].values()), None) for kind in ("model", "log")}
        lines.append(line)
    return pd.DataFrame(lines)


def why_late(row: Row, run: Run) -> str:
    """The first reason why a run, or the measurement of its row, is not whole, with its seed; empty where all is."""
    missing = missing_of(row, run)
    if not missing:
        return ""
    step, why = next(iter(missing.items()))
    said = f"{step}: {why}" if step not in run.missing else why
    return said if run.seed is None else f"seed {run.seed}: {said}"
