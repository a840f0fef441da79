"""All runs become the table; runs, rows or studies are compared.

    python -m lvis_rcnn.report table --study configs/mini.yaml --results results --out results/table.md
    python -m lvis_rcnn.report compare results/mini/r50/seed0 results/mini/r101/seed0
    python -m lvis_rcnn.report compare results/mini_no_sampling results/mini_sampling --plot results/sampling

table writes table.md, table.csv and table.json, and the same three into RESULTS/<study>/, from whatever exists: a cell
that cannot be filled says why. A number is shown only while the records of the steps before it stand and agree with the
study file, so that a run that is being repeated never shows its old AP.

table.json: {"format": "lvis_rcnn.table", "version": 1, "study", "title", "rows": [...], "provenance": {...}}; all
numbers are unrounded, AP and AR as fractions. A published model has two rows, as published and as scored here.

compare prints, of what was scored with match results on the same annotations, every metric with its difference, the
95 % interval and p from resamples of the images that both share, the categories that changed most, and what the
records say differently. FIRST and SECOND are a run each, a row (the mean of its seeds, whose spread widens the
intervals), or a study each: rows of one name are then compared, and single rows whatever their names.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.bootstrap import SEED
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.compare import compare, comparison_text
from lvis_rcnn.config import Study, load_study
from lvis_rcnn.difference_plots import write_difference_plots
from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.published import known_models
from lvis_rcnn.runs import MEASURES, Run
from lvis_rcnn.scored_runs import pairs_of
from lvis_rcnn.table_rows import (
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
    moments_of,
    published_value,
    reasons,
    row_record,
    rows_of,
)
from lvis_rcnn.zoo import ZooModel

# What stands behind numbers that were measured elsewhere than the first of their column.
MARKS = ("", "†", "‡", "§")
OF_DEVICE = ("memory_gb", "fps")
PUBLISHERS = "the publisher's GPUs"

# The page's columns in its order; Download stands between the two.
PAGE_COLUMNS = {"memory_gb": "Mem (GB)", "fps": "Inf time (fps)", "box_AP": "box AP", "mask_AP": "mask AP"}
FURTHER_COLUMNS = {"mask_APr": "APr", "mask_APc": "APc", "mask_APf": "APf", "images_seen": "Images seen"}

TERMINAL_CELL_CHARACTERS = 17  # "23.1 [21.0, 25.2]"; twelve columns would not fit otherwise


def write_tables(study: Study, models: Mapping[str, ZooModel], results: Path, out: Path, now_s: float) -> str:
    """Write the table of ``study`` to ``out`` and into its folder in ``results``; return it as text for the terminal.

    Args:
        study: what should have been run.
        models: published models by name, those that the study scores among them.
        results: folder that all steps write into.
        out: path of table.md; .csv and .json appear beside it.
        now_s: Unix time; tells a live run from a dead one.
    """
    rows = rows_of(study, results, models, now_s)
    for path in (results / study.study / "table.md", out):
        link = links_from(path.parent, results, study.report.base_url)
        write_text(path, markdown(study, rows, link))
        write_text(path.with_suffix(".csv"), spreadsheet(study, rows, link).to_csv(index=False))
        write_json(path.with_suffix(".json"), everything(study, rows, link))
    frame = cells(rows)
    widths = [TERMINAL_CELL_CHARACTERS] * frame.shape[1]
    return frame.to_markdown(index=False, tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def links_from(folder: Path, results: Path, base_url: str | None) -> Link:
    """How a file of ``results`` is linked in a table of ``folder``: relative to it, or below ``base_url``."""

    def link(path: Path) -> str:
        if base_url is None:
            return quote(Path(os.path.relpath(path, folder)).as_posix())
        return f"{base_url.rstrip('/')}/{quote(path.relative_to(results).as_posix())}"

    return link


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


def devices_line(rows: list[Row]) -> str:
    """What the marks mean; empty where all was measured on one device."""
    first, *others = places(rows) or [""]
    if not others:
        return ""
    marked = [f"{MARKS[min(at, len(MARKS) - 1)]} {place}" for at, place in enumerate(others, start=1)]
    return f"Mem and Inf time compare only on one device: no mark {first}; {'; '.join(marked)}."


def titled(study: Study) -> str:
    """The study's title, with its name in it."""
    named = re.search(rf"(?<![\w.]){re.escape(study.study)}(?![\w.])", study.title)
    return study.title if named else f"{study.title} ({study.study})"


def markdown(study: Study, rows: list[Row], link: Link) -> str:
    """The page: title, table, one line of provenance, how to read the numbers, the published files."""
    frame = cells(rows, link, marked=True)
    table = frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=["left"] * frame.shape[1])
    parts = [f"# {titled(study)}", table, provenance_line(study, rows), devices_line(rows)]
    parts += [reading_line(rows), files_line(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def reading_line(rows: list[Row]) -> str:
    """What the columns beyond the page are, and which seeds are missing from a mean."""
    parts = ["APr, APc, APf: mask AP of rare, common and frequent categories. All AP in percent."]
    seeds = max(len(row.runs) for row in rows)
    if seeds > 1:
        parts.append(f"Mean ± sample standard deviation over {seeds} seeds; Download is the first seed that is done.")
    parts += interval_sentence(rows)
    if any(difference(row, name) is not None for row in rows for name in COMPARED):
        parts.append(f"In round brackets: measured here minus published; ! marks what is {noise_of(rows, seeds)}.")
    for row in rows:
        if any(not run.missing for run in row.runs):
            late = {run.seed: next(iter(run.missing.values())) for run in row.runs if run.missing}
            parts += [f"{row.title}, seed {seed}: {reasons({seed: why})}." for seed, why in late.items()]
    return " ".join(parts)


def interval_sentence(rows: list[Row]) -> list[str]:
    """What square brackets are, where there are any."""
    records = [
        run.records["evaluate"].get("intervals") for row in rows for run in row.runs if "evaluate" in run.records
    ]
    resamples = {found["resamples"] for found in records if found}
    if not resamples:
        return []
    numbers = ", ".join(f"{number:,}" for number in sorted(resamples))
    return [f"In square brackets: 95 % interval over the validation images, from a bootstrap of {numbers} resamples."]


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
        "measured_on": all_of("measure", "device"),
        "memory": list(filter(None, all_of("measure", "training"))),
        "fps": all_of("measure", "inference"),
        "published_files": published_files(rows),
    }


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
            for key, (low, high) in measure.get("intervals", {}).items():
                of = f"_seed{key}" if len(row.runs) > 1 else ""
                line |= {f"{name}_low{of}": low, f"{name}_high{of}": high}
        for kind in ("published", "difference"):
            line |= {f"{name}_{kind}": value for name, value in record.get(kind, {}).items()}
        line["missing"] = "; ".join(why_late(run) for run in row.runs if run.missing)
        line |= {kind: next(filter(None, record[kind].values()), None) for kind in ("model", "log")}
        lines.append(line)
    return pd.DataFrame(lines)


def why_late(run: Run) -> str:
    """The first reason why a run is not whole, with its seed where it has one."""
    why = next(iter(run.missing.values()))
    return why if run.seed is None else f"seed {run.seed}: {why}"


def table_step(args: argparse.Namespace) -> None:
    """Write the table of a study and show it."""
    if args.out.suffix != ".md":
        raise InputError(f"--out {args.out}", "is no Markdown file", allowed="a name that ends in .md")
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}", "no such folder", mend="name the folder the steps wrote into")
    study = load_study(args.study)
    models = known_models(study, args.study)
    table = write_tables(study, models, args.results, args.out, time.time())
    log.info("%s", titled(study))
    for line in table.splitlines():
        log.info("%s", line)
    log.info("wrote %s (also .csv and .json)", args.out)


def compare_step(args: argparse.Namespace) -> None:
    """Show how two runs, rows or studies differ."""
    for name, (first, second) in pairs_of(args.first, args.second).items():
        found = compare(first, second, args.resamples, args.seed)
        print("\n\n".join(filter(None, [name, comparison_text(first, second, found, args.resamples, args.seed)])))
        if args.plot:
            write_difference_plots(first, second, found, (str(args.first), str(args.second)), args.plot / name)
            log.info("wrote %s and category_differences.png beside it", args.plot / name / "differences.png")


def whole_number(least: int) -> Callable[[str], int]:
    """Reads a whole number from ``least`` upwards."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return read


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = commands.add_parser("table", help="write the results table from whatever exists", allow_abbrev=False)
    table.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    table.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder that all steps write into")
    table.add_argument("--out", type=Path, required=True, metavar="FILE", help="table.md to write")
    table.set_defaults(step=table_step)
    both = commands.add_parser("compare", help="say how two runs, rows or studies differ", allow_abbrev=False)
    for name in ("first", "second"):
        both.add_argument(name, type=Path, metavar=name.upper(), help="folder of a run, a row or a study")
    both.add_argument(
        "--resamples", type=whole_number(1), default=1000, metavar="N", help="of the images (default: 1000)"
    )
    both.add_argument("--seed", type=whole_number(0), default=SEED, help=f"of the resamples (default: {SEED})")
    both.add_argument(
        "--plot", type=Path, metavar="DIR", help="folder for differences.png, category_differences.png and .svg"
    )
    both.set_defaults(step=compare_step)
    for command in (table, both):
        # The parent's option again, so that it may stand after the command as with every other step.
        command.add_argument("--log", type=Path, default=argparse.SUPPRESS, metavar="FILE", help=argparse.SUPPRESS)
    run_step(parser, lambda args: args.step(args))


if __name__ == "__main__":
    main()
