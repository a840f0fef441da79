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
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from lvis_rcnn.bootstrap import SEED
from lvis_rcnn.command import InputError, add_command, log, run_step, step_parser
from lvis_rcnn.compare import compare, comparison_text
from lvis_rcnn.config import Study, load_study
from lvis_rcnn.difference_plots import write_difference_plots
from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.html_pages import page, plain_text
from lvis_rcnn.printed_table import cells
from lvis_rcnn.published import known_models
from lvis_rcnn.runs import Run
from lvis_rcnn.scored_runs import pairs_of
from lvis_rcnn.table_captions import devices_line, files_line, provenance, provenance_line, reading_line, titled
from lvis_rcnn.table_rows import Link, Row, missing_of, row_record, rows_of
from lvis_rcnn.zoo import ZooModel

CELL_CHARACTERS = 17  # "23.1 [21.0, 25.2]"; twelve columns would not fit otherwise
TERMINAL_CHARACTERS, TITLE_CHARACTERS = 100, 16
MOST_SIDE_BY_SIDE = 4  # rows of the table that fit beside each other on a terminal


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
    """Say how two runs, rows or studies differ."""
    if args.out and args.out.suffix != ".txt":
        raise InputError(f"--out {args.out}", "is no text file", allowed="a name that ends in .txt")
    texts = []
    for name, (first, second) in pairs_of(args.first, args.second, args.only).items():
        found = compare(first, second, args.resamples, args.seed)
        said = comparison_text(first, second, found, args.resamples, args.seed)
        texts.append(f"{name}\n\n{said}" if name else said)
        if args.plot:
            write_difference_plots(first, second, found, (str(args.first), str(args.second)), args.plot / name)
            log.info("wrote %s and category_differences.png beside it", args.plot / name / "differences.png")
    text = "\n\n".join(texts)
    if args.out is None:
        print(text)
        return
    write_text(args.out, f"{text}\n")
    write_text(args.out.with_suffix(".html"), page(f"{args.second} beside {args.first}", [plain_text(text)]))
    log.info("wrote %s (also .html)", args.out)


def whole_number(least: int) -> Callable[[str], int]:
    """Reads a whole number from ``least`` upwards."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return read


TABLE = """Write the results table of a study from whatever exists, and show it.

    python -m lvis_rcnn.report table --study configs/mini.yaml --results results --out results/table.md

A cell that cannot be filled says why. AP and AR are percent in table.md and fractions in table.csv and table.json;
memory is in GB, speed in images a second.
"""

COMPARE = """Say how two runs, rows or studies differ, metric by metric, and how sure that is.

    python -m lvis_rcnn.report compare results/mini/r50/seed0 results/mini/r101/seed0

Both must be scored with match results on the same annotations. Differences and their 95 % intervals are SECOND minus
FIRST, in points of percent.
"""


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table_options(add_command(commands, "table", TABLE))
    compare_options(add_command(commands, "compare", COMPARE))
    run_step(parser, lambda args: args.step(args))


def table_options(table: argparse.ArgumentParser) -> None:
    """What ``report table`` takes."""
    table.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    table.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder that all steps write into")
    table.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="table.md to write, .csv and .json beside it"
    )
    table.set_defaults(step=table_step)


def compare_options(both: argparse.ArgumentParser) -> None:
    """What ``report compare`` takes."""
    for name in ("first", "second"):
        both.add_argument(name, type=Path, metavar=name.upper(), help="folder of a run, a row or a study")
    resamples = "resamples of the images, 1 or more (default: 1000)"
    both.add_argument("--resamples", type=whole_number(1), default=1000, metavar="N", help=resamples)
    seed = f"seed of the resamples, 0 or more (default: {SEED})"
    both.add_argument("--seed", type=whole_number(0), default=SEED, metavar="N", help=seed)
    both.add_argument(
        "--plot", type=Path, metavar="DIR", help="folder for differences.png, category_differences.png and .svg"
    )
    both.add_argument("--out", type=Path, metavar="FILE", help="comparison.txt to write, .html beside it")
    only = "runs of SECOND that count, as r50/seed0 (default: all)"
    both.add_argument("--only", nargs="+", default=(), metavar="RUN", help=only)
    both.set_defaults(step=compare_step)


if __name__ == "__main__":
    main()
