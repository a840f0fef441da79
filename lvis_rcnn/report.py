"""All runs become the table.

    python -m lvis_rcnn.report table --study configs/mini.yaml --results results --out results/table.md

Writes table.md, table.csv and table.json, and the same three into RESULTS/<study>/, from whatever exists: a cell that
cannot be filled says why. A number is shown only while the records of the steps before it stand and agree with the
study file, so that a run that is being repeated never shows its old AP.

table.json: {"format": "lvis_rcnn.table", "version": 1, "study", "title", "rows": [...], "provenance": {...}}; all
numbers are unrounded, AP and AR as fractions.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Schedule, Study, load_study
from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.runs import MEASURES, Measure, Run, read_run

# The page's columns in its order; Download stands between the two.
PAGE_COLUMNS = {"memory_gb": "Mem (GB)", "fps": "Inf time (fps)", "box_AP": "box AP", "mask_AP": "mask AP"}
FURTHER_COLUMNS = {"mask_APr": "APr", "mask_APc": "APc", "mask_APf": "APf"}

TERMINAL_CELL_CHARACTERS = 16  # as wide as the longest row name; eleven columns would not fit otherwise

Rows = dict[str, tuple[Run, ...]]
Link = Callable[[Path], str]


def write_tables(study: Study, results: Path, out: Path, now_s: float) -> str:
    """Write the table of ``study`` to ``out`` and into its folder in ``results``; return it as text for the terminal.

    Args:
        study: what should have been run.
        results: folder that all steps write into.
        out: path of table.md; .csv and .json appear beside it.
        now_s: Unix time; tells a live run from a dead one.
    """
    rows: Rows = {
        backbone: tuple(read_run(study, results, backbone, seed, now_s) for seed in study.seeds)
        for backbone in study.backbones
    }
    for path in (results / study.study / "table.md", out):
        link = links_from(path.parent, results, study.report.base_url)
        write_text(path, markdown(study, rows, link))
        write_text(path.with_suffix(".csv"), spreadsheet(study, rows, link).to_csv(index=False))
        write_json(path.with_suffix(".json"), everything(study, rows, link))
    frame = cells(study, rows)
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


def cells(study: Study, rows: Rows, link: Link | None = None) -> pd.DataFrame:
    """The printed table; with ``link`` it has the column Download."""
    lines = []
    for backbone, runs in rows.items():
        row = BACKBONES[backbone]
        line = {"Backbone": row.title, "Style": row.style, "Lr schd": schedule_name(study.schedule)}
        line |= {title: cell(runs, MEASURES[name]) for name, title in PAGE_COLUMNS.items()}
        if link:
            line["Download"] = download(runs, link)
        line |= {title: cell(runs, MEASURES[name]) for name, title in FURTHER_COLUMNS.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def schedule_name(schedule: Schedule) -> str:
    """Length of the schedule as the page names it: 12 epochs of the step policy are 1x; else epochs or iterations."""
    if schedule.epochs is None:
        return f"{schedule.steps} it"
    if schedule.policy == "step" and schedule.epochs % 12 == 0:
        return f"{schedule.epochs // 12}x"
    return f"{schedule.epochs} ep"


def cell(runs: tuple[Run, ...], measure: Measure) -> str:
    """Mean and sample standard deviation over the seeds that are there, or why there is no number."""
    present = [run for run in runs if measure.step in run.records]
    values = [value for run in present if (value := run.value(measure)) is not None]
    if not present:
        return reasons({run.seed: run.missing[measure.step] for run in runs})
    if not values:
        return "undefined: nothing annotated"
    mean, spread = moments(values)
    decimals = 2 if measure.keys == ("memory_gb",) and mean < 1 else 1
    text = f"{measure.scale * mean:.{decimals}f}"
    if spread is not None:
        text += f" ± {measure.scale * spread:.{decimals}f}"
    return text if len(values) == len(runs) else f"{text} ({len(values)} of {len(runs)} seeds)"


def moments(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; one value has no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def reasons(of_seeds: dict[int, str]) -> str:
    """One reason if all seeds share it, else each with its seed; safe inside a Markdown table."""
    different = set(of_seeds.values())
    text = (
        different.pop() if len(different) == 1 else "; ".join(f"seed {seed}: {why}" for seed, why in of_seeds.items())
    )
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def download(runs: tuple[Run, ...], link: Link) -> str:
    """Links to model and log of the first seed that has both."""
    whys = {}
    for run in runs:
        model, log_file = run.file("model"), run.file("log")
        if isinstance(model, Path) and isinstance(log_file, Path):
            return f"[model]({link(model)}) &#124; [log]({link(log_file)})"
        whys[run.seed] = model if isinstance(model, str) else str(log_file)
    return reasons(whys)


def titled(study: Study) -> str:
    """The study's title, with its name in it."""
    named = re.search(rf"(?<![\w.]){re.escape(study.study)}(?![\w.])", study.title)
    return study.title if named else f"{study.title} ({study.study})"


def markdown(study: Study, rows: Rows, link: Link) -> str:
    """The page: title, table, one line of provenance, how to read the numbers."""
    frame = cells(study, rows, link)
    table = frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=["left"] * frame.shape[1])
    return "\n\n".join([f"# {titled(study)}", table, provenance_line(study, rows), reading_line(rows)]) + "\n"


def reading_line(rows: Rows) -> str:
    """What the columns beyond the page are, and which seeds are missing from a mean."""
    parts = ["APr, APc, APf: mask AP of rare, common and frequent categories. All AP in percent."]
    seeds = len(next(iter(rows.values())))
    if seeds > 1:
        parts.append(f"Mean ± sample standard deviation over {seeds} seeds; Download is the first seed that is done.")
    for backbone, runs in rows.items():
        if any(not run.missing for run in runs):
            late = {run.seed: next(iter(run.missing.values())) for run in runs if run.missing}
            parts += [
                f"{BACKBONES[backbone].title}, seed {seed}: {reasons({seed: why})}." for seed, why in late.items()
            ]
    return " ".join(parts)


def provenance(study: Study, rows: Rows) -> dict[str, Any]:
    """What all numbers of the table were made with; lists hold every value that occurs."""
    records = [run.records for runs in rows.values() for run in runs]

    def all_of(step: str, *keys: str) -> list[Any]:
        found: list[Any] = []
        for record in records:
            value: Any = record.get(step, {})
            for key in keys:
                value = value.get(key, {})
            if value != {} and value not in found:
                found.append(value)
        return found

    return {
        "study": study.study,
        "seeds": list(study.seeds),
        "code_version": all_of("train", "code_version"),
        "train_annotations_sha256": all_of("train", "annotations_sha256"),
        "val_annotations_sha256": all_of("evaluate", "annotations_sha256"),
        "versions": {name: all_of("train", "versions", name) for name in ("python", "torch", "torchvision")},
        "device": all_of("train", "device"),
        "threads": all_of("train", "threads"),
        "precision": all_of("train", "precision"),
        "images_seen": all_of("train", "images_seen"),
        "finished": max((str(at)[:10] for at in all_of("train", "finished_at")), default=None),
        "protocol": all_of("evaluate", "protocol"),
        "memory_definition": all_of("train", "memory_definition"),
        "train_resolution": all_of("train", "resolution"),
        "fps_definition": all_of("infer", "fps_definition"),
        "fps_device": all_of("infer", "device"),
        "fps_batch_size": all_of("infer", "batch_size"),
        "fps_resolution": all_of("infer", "resolution"),
    }


def provenance_line(study: Study, rows: Rows) -> str:
    """:func:`provenance` in one line; what no run has recorded yet is left out."""
    facts = provenance(study, rows)
    seeds = ", ".join(map(str, facts["seeds"]))
    digests = {"train": facts["train_annotations_sha256"], "val": facts["val_annotations_sha256"]}
    parts = [
        f"Study {facts['study']}, seed{'s' if len(facts['seeds']) > 1 else ''} {seeds}",
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
        listed("Mem:", with_places(facts["memory_definition"], facts["device"], facts["train_resolution"])),
        listed("Inf time:", with_places(facts["fps_definition"], facts["fps_device"], facts["fps_resolution"])),
    ]
    return ". ".join(["; ".join(filter(None, parts)), *filter(None, definitions)]) + "."


def with_places(definitions: list[str], devices: list[str], resolutions: list[str]) -> list[str]:
    """Definitions of a measurement with the devices and resolutions it was made on."""
    return [f"{definition} ({', '.join([*devices, *resolutions])})" for definition in definitions]


def listed(label: str, values: Iterable[Any]) -> str:
    """``label value, value``; empty if there is no value."""
    text = ", ".join(map(str, values))
    return f"{label} {text}".strip() if text else ""


def everything(study: Study, rows: Rows, link: Link) -> dict[str, Any]:
    """The value of table.json."""
    return {
        "format": "lvis_rcnn.table",
        "version": 1,
        "study": study.study,
        "title": titled(study),
        "rows": [row_record(study, backbone, runs, link) for backbone, runs in rows.items()],
        "provenance": provenance(study, rows),
    }


def row_record(study: Study, backbone: str, runs: tuple[Run, ...], link: Link) -> dict[str, Any]:
    """One backbone: every measure with mean, deviation and the value of each seed; what is missing; the files."""
    measures = {}
    for name, measure in MEASURES.items():
        values = {str(run.seed): run.value(measure) for run in runs}
        present = [value for value in values.values() if value is not None]
        mean, spread = moments(present) if present else (None, None)
        measures[name] = {"mean": mean, "sd": spread, "seeds": values}
    files = {kind: {str(run.seed): run.file(kind) for run in runs} for kind in ("model", "log")}
    return {
        "backbone": backbone,
        "title": BACKBONES[backbone].title,
        "style": BACKBONES[backbone].style,
        "lr_schd": schedule_name(study.schedule),
        "measures": measures,
        "missing": {str(run.seed): run.missing for run in runs if run.missing},
        **{
            kind: {seed: link(path) if isinstance(path, Path) else None for seed, path in paths.items()}
            for kind, paths in files.items()
        },
    }


def spreadsheet(study: Study, rows: Rows, link: Link) -> pd.DataFrame:
    """:func:`everything` with one row a backbone; with several seeds, deviations and each seed have columns too."""
    lines = []
    for backbone, runs in rows.items():
        row = row_record(study, backbone, runs, link)
        line = {"study": study.study} | {key: row[key] for key in ("backbone", "title", "style", "lr_schd")}
        for name, measure in row["measures"].items():
            line[name] = measure["mean"]
            if len(runs) > 1:
                line[f"{name}_sd"] = measure["sd"]
                line |= {f"{name}_seed{seed}": value for seed, value in measure["seeds"].items()}
        line["missing"] = "; ".join(f"seed {run.seed}: {why}" for run in runs for why in [*run.missing.values()][:1])
        line |= {kind: next(filter(None, row[kind].values()), None) for kind in ("model", "log")}
        lines.append(line)
    return pd.DataFrame(lines)


def step(args: argparse.Namespace) -> None:
    """Write the table of a study and show it."""
    if args.out.suffix != ".md":
        raise InputError(f"--out {args.out}", "is no Markdown file", allowed="a name that ends in .md")
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}", "no such folder", mend="name the folder the steps wrote into")
    study = load_study(args.study)
    table = write_tables(study, args.results, args.out, time.time())
    log.info("%s", titled(study))
    for line in table.splitlines():
        log.info("%s", line)
    log.info("wrote %s (also .csv and .json)", args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = commands.add_parser("table", help="write the results table from whatever exists", allow_abbrev=False)
    table.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    table.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder that all steps write into")
    table.add_argument("--out", type=Path, required=True, metavar="FILE", help="table.md to write")
    # The parent's option again, so that it may stand after the command as with every other step.
    table.add_argument("--log", type=Path, default=argparse.SUPPRESS, metavar="FILE", help=argparse.SUPPRESS)
    run_step(parser, step)


if __name__ == "__main__":
    main()
