"""The results table: table.md for people, table.tex for papers, table.csv and table.json for programs."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.reporting.differences import differences_line, is_shown_best, paired_tests
from lvis_rcnn.reporting.methods import methods_cells, methods_note, methods_record
from lvis_rcnn.reporting.notes import (
    MARKS,
    OF_DEVICE,
    OTHER_WORK,
    SEEN_BEFORE,
    UNRANKED,
    failures_line,
    files_line,
    measured_line,
    places,
    provenance,
    provenance_line,
    reading_line,
    so_far_line,
    titled,
)
from lvis_rcnn.reporting.rows import (
    COMPARED,
    PUBLISHED,
    RESCORED,
    Link,
    Row,
    difference,
    is_outside_noise,
    is_unranked,
    missing_of,
    published_value,
    rows_of,
    run_key,
)
from lvis_rcnn.runs.records import FAILED, QUANTITIES, RunRecord, quantity
from lvis_rcnn.system.cli import rate
from lvis_rcnn.system.files import write_json, write_text

# The only order of the columns: table.csv and table.json follow it, with what is not printed at the end.
COLUMNS = {
    "title": "Backbone",
    "style": "Style",
    "lr_schd": "Lr schd",
    "scored_on": "Scored on",
    "source": "Source",
    "memory_gb": "Mem (GB)",
    "fps": "Inf time (fps), images/s",
    "box_AP": "box AP",
    "mask_AP": "mask AP",
    "download": "Download",
    "mask_APr": "APr",
    "mask_APc": "APc",
    "mask_APf": "APf",
    "images_seen": "Images seen",
    "gpu_hours": "GPU-hours",
    "cpu_hours": "CPU-hours",
}
MEASURES_IN_ORDER = tuple(dict.fromkeys([*(name for name in COLUMNS if name in QUANTITIES), *QUANTITIES]))

# Of each further protocol, by what stands behind its title.
OF_PROTOCOL = {"box_AP": "box AP", "mask_AP": "mask AP", "mask_APr": "APr", "mask_APc": "APc", "mask_APf": "APf"}

OF_TRAINING = ("memory_gb", "images_seen", "gpu_hours", "cpu_hours")

# Behind the title of a column whose numbers are all measured in another way than MMDetection's (Row.way).
TITLE_ENDS = {"memory_gb": ", resident", "fps": " of CPU time"}

CELL_CHARACTERS = 17  # "23.1 [21.0, 25.2]"; twelve columns would not fit otherwise
TERMINAL_CHARACTERS, TITLE_CHARACTERS = 100, 16
MOST_SIDE_BY_SIDE = 4  # rows of the table that fit beside each other on a terminal


def write_tables(study: Study, models: Mapping[str, ZooModel], results: Path, out: Path) -> str:
    """Write the table of ``study`` to ``out``; return it as text for the terminal.

    Args:
        study: what should have been run.
        models: published models by name, those that the study scores among them.
        results: folder that all steps write into.
        out: path of table.md; .tex, .csv and .json appear beside it.
    """
    rows = rows_of(study, results, models)
    link = links_from(out.parent, results, study.report.base_url)
    records = [row_record(row, link) | methods_record(rows, row) for row in rows]
    write_text(out, markdown(study, rows, link))
    write_text(out.with_suffix(".tex"), latex(study, rows))
    write_text(out.with_suffix(".csv"), spreadsheet(study, rows, records))
    table = {"format": "lvis_rcnn.table", "version": 1, "study": study.study, "title": titled(study), "rows": records}
    write_json(out.with_suffix(".json"), table | {"provenance": provenance(study, rows)})
    lines = (methods_note, failures_line, so_far_line, differences_line, reading_line, measured_line)
    texts = [line(rows) for line in lines]
    notes = [fill(text, TERMINAL_CHARACTERS) for text in texts if text]
    methods = [tabulate(cells, "keys", "simple", disable_numparse=True) for cells in [methods_cells(rows)] if cells]
    return "\n\n".join([terminal_table(printed_cells(rows)), *methods, *notes])


def links_from(folder: Path, results: Path, base_url: str | None) -> Link:
    """How a file of ``results`` is linked in a table of ``folder``: relative to it, or below ``base_url``."""

    def link(path: Path) -> str:
        if base_url is None:
            return quote(Path(os.path.relpath(path, folder)).as_posix())
        return f"{base_url.rstrip('/')}/{quote(path.relative_to(results).as_posix())}"

    return link


def links_of(row: Row, link: Link) -> dict[str, dict[str, str | None]]:
    """Link to the model and the log of each run, the publisher's of a published model; None where there is no file."""
    if row.model is not None:
        return {"model": {PUBLISHED: row.model.url}, "log": {PUBLISHED: row.model.log_url}}
    files = {kind: {run_key(run): run.file(kind) for run in row.runs} for kind in ("model", "log")}
    return {
        kind: {key: link(file) if isinstance(file, Path) else None for key, file in found.items()}
        for kind, found in files.items()
    }


def row_record(row: Row, link: Link) -> dict[str, Any]:
    """The row in table.json: every measure with mean, deviation, 95 % interval, those of each run; what is missing.

    A run is named by its seed, or ``published``. Rows that are compared with a published model also have ``published``,
    ``difference`` and ``outside_noise``.
    """
    record: dict[str, Any] = {
        **row.names,
        "backbone": row.backbone,
        "measured_on": row.measured_on,
        **({"images_seen_before": row.images_seen_before} if row.images_seen_before else {}),
        "measures": {name: row.measure(name) for name in (*MEASURES_IN_ORDER, *row.protocol_measures())},
        "missing": {run_key(run): missing for run in row.runs if (missing := missing_of(row, run))},
    }
    if so_far := {run_key(run): list(run.so_far) for run in row.runs if run.so_far}:
        record["so_far"] = so_far
    if row.reference is not None and row.source != PUBLISHED:
        record["published"] = {name: published_value(row, name) for name in ("memory_gb", *COMPARED)}
        record["difference"] = {name: difference(row, name) for name in COMPARED}
        record["outside_noise"] = {name: is_outside_noise(row, name) for name in COMPARED}
    return record | links_of(row, link)


def spreadsheet(study: Study, rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    """The text of table.csv: the records, a line per row; with several seeds, deviations and each seed's values too."""
    lines = [{"study": study.study, **spreadsheet_line(row, record)} for row, record in zip(rows, records, strict=True)]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def spreadsheet_line(row: Row, record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of table.csv by its columns."""
    line = {key: record[key] for key in (*row.names, "backbone", "measured_on")}
    line |= {key: record[key] for key in ("images_seen_before",) if key in record}
    for name, measure in record["measures"].items():
        line[name] = measure["mean"]
        if "quartiles" in measure:
            line[f"{name}_q1"], line[f"{name}_q3"] = measure["quartiles"]
        bounds = {"": measure["interval"]} if "interval" in measure else {}
        if len(row.runs) > 1:
            line[f"{name}_sd"] = measure["sd"]
            line |= {f"{name}_seed{seed}": value for seed, value in measure["seeds"].items()}
            bounds |= {f"_seed{key}": found for key, found in measure.get("intervals", {}).items()}
        for of, (low, high) in bounds.items():
            line |= {f"{name}_low{of}": low, f"{name}_high{of}": high}
    for kind in ("published", "difference", "outside_noise"):
        line |= {f"{name}_{kind}": value for name, value in record.get(kind, {}).items()}
    disturbed = f"{OTHER_WORK} while fps was measured: {row.other_work}" if row.other_work else ""
    line["missing"] = "; ".join(filter(None, [*(first_missing(row, run) for run in row.runs), disturbed]))
    return line | {kind: next(filter(None, record[kind].values()), None) for kind in ("model", "log")}


def first_missing(row: Row, run: RunRecord) -> str:
    """The first reason why a run, or the measurement of its row, is incomplete, with its seed; empty if it is whole."""
    for step, why in missing_of(row, run).items():
        reason = why if step in run.missing else f"{step}: {why}"
        return reason if run.seed is None else f"seed {run.seed}: {reason}"
    return ""


def plain(text: str, is_best: bool) -> str:
    """A cell as it is."""
    return text


def printed_cells(
    rows: Sequence[Row], link: Link | None = None, write: Callable[[str, bool], str] = plain
) -> list[dict[str, str]]:
    """The cells of each row by the titles of their columns; columns that hold nothing of interest are left out.

    Args:
        rows: of the table.
        link: for the column Download; None leaves it out.
        write: how a cell is written, given whether it is shown to be the best AP among rows of the same data.
    """
    took = {name: any(row.mean(name) for row in rows) for name in ("gpu_hours", "cpu_hours")}
    left_out = {"gpu_hours" if took["cpu_hours"] and not took["gpu_hours"] else "cpu_hours"}
    left_out |= set() if any(row.model for row in rows) else {"scored_on", "source"}
    left_out |= set() if link else {"download"}
    titles = column_titles(rows)
    names, tests = [name for name in titles if name not in left_out], paired_tests(rows)

    def text_of(row: Row, name: str) -> str:
        if name == "download" and link:
            return download(row, link)
        if name == "title" and row.images_seen_before:
            return f"{row.title} {SEEN_BEFORE}"
        return row.names[name] if name in row.names else cell(row, name) + measured_marks(rows, row, name)

    def line_of(row: Row) -> dict[str, str]:
        empty = empty_cells(row, names)
        return {name: empty[name] if name in empty else text_of(row, name) for name in names}

    return [
        {titles[name]: write(text, is_shown_best(row, rows, name, tests)) for name, text in line.items()}
        for row, line in zip(rows, map(line_of, rows), strict=True)
    ]


def column_titles(rows: Sequence[Row]) -> dict[str, str]:
    """Title of each column, then of a group for each further protocol, which it names.

    Those of memory and speed say it where all rows measure another thing than MMDetection.
    """
    ways = {
        name: {row.way(name) for row in rows if row.mean(name) is not None or (name == "fps" and row.other_work)}
        for name in OF_DEVICE
    }
    ends = {name: TITLE_ENDS[name] for name, found in ways.items() if found and all(found)}
    protocols = {one: one.title(row.detections_kept) for row in rows for one in row.protocols}
    first = {"title": "Row"} if any(row.called for row in rows) else {}
    return {name: title + ends.get(name, "") for name, title in (COLUMNS | first).items()} | {
        f"{one.name}_{name}": f"{title}: {shown}"
        for one, title in protocols.items()
        for name, shown in OF_PROTOCOL.items()
        if name != "box_AP" or not one.is_boundary
    }


def empty_cells(row: Row, names: Iterable[str]) -> dict[str, str]:
    """What stands in the columns that a row has nothing for: each reason once, in the first of them.

    A failure is one word there: :func:`failures_line` says below the table what failed.
    """
    cells: dict[str, str] = {}
    said: set[str] = set()
    for name in names:
        missing = missing_in(row, name)
        if reason := reasons(missing):
            short = {seed: why.split(":")[0] if why.startswith(FAILED) else why for seed, why in missing.items()}
            cells[name] = "-" if reason in said else reasons(short)
            said.add(reason)
    return cells


def missing_in(row: Row, name: str) -> dict[int | None, str]:
    """Why each run of a row has nothing in a column; empty where one has, and where there is nothing to have."""
    if name in row.names or row.source == PUBLISHED or (row.source == RESCORED and name in (*OF_TRAINING, "download")):
        return {}
    if name == "download":
        found = {
            run.seed: [file for kind in ("model", "log") if isinstance(file := run.file(kind), str)] for run in row.runs
        }
        return {seed: whys[0] for seed, whys in found.items()} if all(found.values()) else {}
    runs, step = row.runs_of(name), quantity(name).step
    return {} if any(step in run.records for run in runs) else {run.seed: run.missing[step] for run in runs}


def cell(row: Row, name: str) -> str:
    """What is printed of a measure: the number, the published one and their difference."""
    published, scale = published_value(row, name), quantity(name).scale
    if row.source == PUBLISHED:
        return "not published" if published is None else f"{scale * published:.1f}"
    if row.source == RESCORED and name in OF_TRAINING:
        return "- (not trained here)"
    text, change = measured_cell(row, name), difference(row, name)
    if published is None or row.mean(name) is None:
        return text
    mark = " !" if is_outside_noise(row, name) else ""
    compared = "" if change is None else f", {scale * change:+z.1f}{mark}"
    return f"{text} (published {scale * published:.1f}{compared})"


def measured_cell(row: Row, name: str) -> str:
    """Mean, sample standard deviation over the seeds and interval, where at least one run has a record."""
    runs, measure, found = row.runs_of(name), quantity(name), row.measure(name)
    mean, spread, scale = found["mean"], found["sd"], measure.scale
    if "other_work" in found:
        return OTHER_WORK
    if mean is None:
        return "undefined: nothing annotated" if measure.step == "evaluate" else "not recorded"
    if name == "images_seen":
        return count_text(mean)
    written = "{:.1f}".format if measure.step == "evaluate" else rate
    text = written(scale * mean) + ("" if spread is None else f" ± {written(scale * spread)}")
    if quartiles := found.get("quartiles"):
        text += f" ({'-'.join(map(rate, quartiles))})"
    if bounds := found.get("interval"):
        text += f" [{scale * bounds[0]:.1f}, {scale * bounds[1]:.1f}]"
    present = sum(value is not None for value in found["seeds"].values())
    return text if present == len(runs) else f"{text} ({present} of {len(runs)} seeds)"


def count_text(count: float) -> str:
    """A number of images in few characters."""
    if count < 10_000:
        return f"{count:.0f}"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def reasons(of_seeds: Mapping[int | None, str]) -> str:
    """One reason if all seeds share it, else each with its seed."""
    if len(different := set(of_seeds.values())) == 1:
        return different.pop()
    return "; ".join(f"seed {seed}: {why}" for seed, why in of_seeds.items())


def download(row: Row, link: Link) -> str:
    """Links to model and log in Markdown, of the first run that has both, or of a published model what there is."""
    found = links_of(row, link)
    of_runs = [{kind: url for kind in found if (url := found[kind][key])} for key in found["model"]]
    links = max(of_runs, key=len)
    return " &#124; ".join(f"[{kind}]({url})" for kind, url in links.items())


def measured_marks(rows: Sequence[Row], row: Row, name: str) -> str:
    """What marks a speed within the spread of another, and memory or speed of another device than the first's."""
    place = row.place(name) if name in OF_DEVICE else None
    unranked = UNRANKED if name == "fps" and is_unranked(row, rows) else ""
    return unranked + MARKS[min(places(rows, name).index(place), len(MARKS) - 1)] if place else ""


def terminal_table(cells: Sequence[Mapping[str, str]]) -> str:
    """The table for a terminal: turned, a column per row, as long as these fit beside each other."""
    frame, width = pd.DataFrame(cells), CELL_CHARACTERS
    if len(frame) <= MOST_SIDE_BY_SIDE:
        frame = frame.set_index(frame.columns[0]).T.rename_axis(frame.columns[0]).reset_index()
        width = (TERMINAL_CHARACTERS - TITLE_CHARACTERS) // len(cells) - 2
    lines, widths = frame.to_numpy().tolist(), [width] * len(frame.columns)
    return tabulate(lines, list(frame.columns), tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def markdown(study: Study, rows: Sequence[Row], link: Link) -> str:
    """The text of table.md: title, table, provenance, how to read the numbers, the published files."""
    lines = printed_cells(rows, link, lambda text, best: f"**{in_markdown(text)}**" if best else in_markdown(text))
    aligned = ["left"] * len(lines[0])
    table = tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=aligned)
    several = "Download: the first seed that is done." if any(len(row.runs) > 1 for row in rows) else ""
    notes = [" ".join(filter(None, [several, in_markdown(reading_line(rows))])), files_line(rows)]
    cells = [{key: in_markdown(text) for key, text in line.items()} for line in methods_cells(rows)]
    methods = tabulate(cells, "keys", "pipe", disable_numparse=True) if cells else ""
    below = [
        methods,
        *(in_markdown(line(rows)) for line in (methods_note, failures_line, so_far_line, differences_line)),
    ]
    parts = [f"# {titled(study)}", table, *below, provenance_line(study, rows), measured_line(rows), *notes]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex(study: Study, rows: Sequence[Row]) -> str:
    """The text of table.tex: a tabular for the package booktabs, its notes as comments."""

    def write(text: str, is_best: bool) -> str:
        return rf"\textbf{{{in_latex(text)}}}" if is_best else in_latex(text)

    lines = printed_cells(rows, write=write)
    head, *body = (
        " & ".join(cells) + r" \\" for cells in ([*map(in_latex, lines[0])], *(one.values() for one in lines))
    )
    texts = (f"{titled(study)}. Needs \\usepackage{{booktabs}}.", failures_line(rows), differences_line(rows))
    below = (reading_line(rows), measured_line(rows), provenance_line(study, rows))
    notes = [f"% {part}" for text in (*texts, *below) for part in fill(text, TERMINAL_CHARACTERS).splitlines()]
    columns = f"{{{'l' * len(lines[0])}}}"
    table = [rf"\begin{{tabular}}{columns}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*notes, *table]) + "\n"


IN_LATEX: dict[str, str | int | None] = {
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "]": "{]}"},
    **{"±": r"$\pm$", UNRANKED: r"$\approx$", SEEN_BEFORE: "$^1$", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}"},
    **{"<": "$<$", ">": "$>$"},
}


def in_latex(text: str) -> str:
    """A text that LaTeX sets as it is; a bracket after a line's end would be taken for a length."""
    return text.translate(str.maketrans(IN_LATEX))


def in_markdown(text: str) -> str:
    """A text that neither ends a cell of a Markdown table nor becomes HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
