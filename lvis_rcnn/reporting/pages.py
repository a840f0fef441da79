"""Pages about a study, one HTML file each, which open anywhere without a network."""

import contextlib
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tqdm import tqdm

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import known_models
from lvis_rcnn.evaluation.results import KINDS
from lvis_rcnn.reporting import PAGES
from lvis_rcnn.reporting.cards import write_cards
from lvis_rcnn.reporting.differences import differences_line
from lvis_rcnn.reporting.figures import GROUPS
from lvis_rcnn.reporting.html import Column, Value, page, text_page
from lvis_rcnn.reporting.methods import methods_cells, methods_note
from lvis_rcnn.reporting.notes import (
    failures_line,
    files_line,
    measured_line,
    measurement_lines,
    provenance,
    provenance_line,
    reading_line,
    so_far_line,
    titled,
)
from lvis_rcnn.reporting.plots import read_category_figures
from lvis_rcnn.reporting.rows import Row, kept_sentence, rows_of
from lvis_rcnn.reporting.score_plots import category_aps, metrics_of, row_name
from lvis_rcnn.reporting.table import column_titles, printed_cells
from lvis_rcnn.runs.paths import CHECKED, first_repeat_factors, name_end
from lvis_rcnn.runs.records import QUANTITIES, RunRecord
from lvis_rcnn.system.cli import duration
from lvis_rcnn.system.files import write_text

MIB_PER_GB = 1024
TRAINING_COLUMNS = (
    *(Column("backbone"), Column("seed", 0), Column("device"), Column("processes", 0), Column("starts", 0)),
    *(Column("steps", 0), Column("images", 0), Column("GPU-hours", 2), Column("CPU-hours", 2)),
    Column("peak memory, GB", 2),
)
JOB_COLUMNS = (Column("job"), Column("seconds", 1), Column("CPU seconds", 1), Column("sampled peak memory, GB", 2))
MEASURED_COLUMNS = (
    *(Column("row"), Column("device"), Column("memory, GB", 2), Column("images a second", 2)),
    *(Column(f"seconds an image, {name}", 3) for name in ("first quartile", "median", "third quartile")),
    *(Column("with reading, images a second", 2), Column("CPU time / wall time", 2), Column("cores used by others", 2)),
)
RUN_FACTS = (
    "code_version",
    "finished_at",
    "device",
    "threads",
    "precision",
    "passes",
    "initial_weights",
    "model_sha256",
)


def write_pages(study: Study, study_file: Path, results: Path, out: Path) -> None:
    """Write the pages of a study, those of PAGES, into ``out``, and the card of each run into its folder there.

    Args:
        study: what should have been run.
        study_file: its file, which its zoo is relative to.
        results: folder that all steps write into.
        out: folder of the pages.

    Raises:
        InputError: tables of repeat factors are damaged.
    """
    rows = rows_of(study, results, known_models(study, study_file))
    counted = read_category_figures(first_repeat_factors(study, results))
    makers: dict[str, Callable[[], str]] = {
        "table": lambda: table_page(study, rows),
        "per_category": lambda: per_category_page(study, rows, counted[1] if counted else {}),
        "cost": lambda: cost_page(study, results, rows),
        "provenance": lambda: provenance_page(study, rows),
        "preflight": lambda: preflight_page(study, results),
    }
    for name in tqdm(PAGES, desc="pages", unit="page", disable=None):
        write_text(out / f"{name}.html", makers[name]())
    write_cards(study, rows, out)


def table_page(study: Study, rows: Sequence[Row]) -> str:
    """The results table."""
    lines = printed_cells(rows, write=in_html)
    methods = methods_cells(rows)
    numbers = {title for name, title in column_titles(rows).items() if name not in (*rows[0].names, "download")}
    return page(
        "table",
        titled(study),
        columns=[Column(title, by_number=title in numbers) for title in lines[0]],
        rows=[list(line.values()) for line in lines],
        methods=[[Column(title) for title in methods[0]], [list(line.values()) for line in methods]] if methods else [],
        notes=[
            methods_note(rows),
            failures_line(rows),
            so_far_line(rows),
            differences_line(rows),
            measured_line(rows),
            reading_line(rows),
        ],
        provenance=[provenance_line(study, rows), files_line(rows)],
    )


def in_html(text: str, is_best: bool) -> str:
    """A cell whose interval, or number with its unit, is never split between lines; bold where it is the best."""
    text = re.sub(r"\[[^\]]*\]|^[\d.]+ \w+$", lambda found: found.group().replace(" ", "\N{NO-BREAK SPACE}"), text)
    return Markup("<strong>{}</strong>").format(text) if is_best else text


def per_category_page(study: Study, rows: Sequence[Row], image_counts: Mapping[int, int]) -> str:
    """AP of every category, a column for each row of the results table and kind; a table for each set of categories."""
    scored = [row for row in rows if any(metrics.get("per_category") for metrics in metrics_of(row))]
    sets = {data: [row for row in scored if row.scored_on == data] for data in [row.scored_on for row in scored]}
    tables = [(data, *categories_table(of_data, image_counts)) for data, of_data in sets.items()]
    groups = [name for name, _, _ in GROUPS.values()]
    title = f"AP of each category of {study.study}"
    return page("per_category", title, tables=tables, groups=groups, kept=kept_sentence(scored))


def categories_table(rows: Sequence[Row], image_counts: Mapping[int, int]) -> tuple[list[Column], list[list[Value]]]:
    """Columns and lines of rows that are scored on the same categories."""
    aps = {(row_name(row), kind): category_aps(row, kind) for kind in reversed(KINDS) for row in rows}
    columns = [Column("category"), Column("group", is_group=True), Column("training images", 0), Column("objects", 0)]
    columns += [Column(f"{KINDS[kind]} AP {name}", 1, full=100) for name, kind in aps]
    scored = [metrics for row in rows for metrics in metrics_of(row)]
    categories = {category["id"]: category for metrics in scored for category in metrics.get("per_category", ())}
    lines: list[list[Value]] = [
        [
            category["name"] or f"id {key}",
            GROUPS[category["frequency"]][0],
            image_counts.get(key),
            category.get("objects"),
            *(of_row[key][1] if key in of_row else None for of_row in aps.values()),
        ]
        for key, category in categories.items()
    ]
    return columns, lines


def cost_page(study: Study, results: Path, rows: Sequence[Row]) -> str:
    """What trainings and jobs took."""
    trained = [(row, run) for row in rows for run in row.runs if "train" in run.records and not run.uses]
    jobs = job_costs(results / study.study / "benchmarks")
    wall, cpu = (duration(sum(float(job[at] or 0) for job in jobs)) for at in (1, 2))
    return page(
        "cost",
        f"Cost of {study.study}",
        training_columns=TRAINING_COLUMNS,
        trainings=[training_cost(row, run) for row, run in trained],
        job_columns=JOB_COLUMNS,
        jobs=jobs,
        wall=wall,
        cpu=cpu,
    )


def training_cost(row: Row, run: RunRecord) -> list[Any]:
    """The line of one training."""
    record = run.records["train"]
    of_record = [record.get(key) for key in ("attempts", "steps", "images_seen")]
    costs = [run.value(QUANTITIES[name]) for name in ("gpu_hours", "cpu_hours")]
    return [row.title, run.seed, record.get("device"), record.get("ranks", 1), *of_record, *costs, record["memory_gb"]]


def job_costs(folder: Path) -> list[list[Any]]:
    """Name, seconds, CPU seconds and gigabytes of each job as Snakemake measured it; None where it could not."""
    jobs = []
    for file in sorted(folder.rglob("*.tsv")):
        if not file.is_file():
            continue
        # A damaged line and what follows it are left out.
        with contextlib.suppress(csv.Error), file.open(newline="", encoding="utf-8", errors="replace") as lines:
            for measured in csv.DictReader(lines, delimiter="\t"):
                seconds, cpu, memory_mib = (number(measured.get(key)) for key in ("s", "cpu_time", "max_rss"))
                name = str(file.relative_to(folder).with_suffix(""))
                jobs.append([name, seconds, cpu, None if memory_mib is None else memory_mib / MIB_PER_GB])
    return jobs


def number(text: str | None) -> float | None:
    """What Snakemake wrote, which is NA or - for a job too short to be measured."""
    try:
        return float(text or "")
    except ValueError:
        return None


def provenance_page(study: Study, rows: Sequence[Row]) -> str:
    """What all numbers were made with, and what each run was."""
    runs = [(row, run) for row in rows for run in row.runs if run.records]
    # The record of the step that made a run's model, or read it.
    made = [run.records.get("train") or run.records.get("import") or {} for _, run in runs]
    facts = provenance(study, rows)
    facts |= measurement_lines(facts)
    return page(
        "provenance",
        f"Provenance of {study.study}",
        fact_columns=[Column("of all runs"), Column("")],
        facts=[[key.replace("_", " "), in_words(value)] for key, value in facts.items() if value],
        measured_columns=MEASURED_COLUMNS,
        measured=[measurement(row, row.measured) for row in rows if row.measured and row.measured.records],
        run_columns=[Column("row"), Column("seed", 0), *(Column(key.replace("_", " ")) for key in RUN_FACTS)],
        runs=[
            [row_name(row), run.seed, *(in_words(record.get(key)) for key in RUN_FACTS)]
            for (row, run), record in zip(runs, made, strict=True)
        ],
    )


def measurement(row: Row, measured: RunRecord) -> list[Any]:
    """The line of one measurement of memory and speed; earlier versions recorded less."""
    record = measured.records["measure"]
    speed = record["inference"]
    seconds = speed.get("image_s", {})
    quartiles = [seconds.get(key) for key in ("first_quartile", "median", "third_quartile")]
    conditions = [speed.get(key) for key in ("end_to_end_fps", "cpu_per_wall", "other_cores")]
    memory_gb = (record.get("training") or {}).get("memory_gb")
    return [row_name(row), record["device"], memory_gb, speed["fps"], *quartiles, *conditions]


def in_words(value: Any) -> str:
    """A value of a record as plain text."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {in_words(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return "" if value is None else str(value)


def preflight_page(study: Study, results: Path) -> str:
    """What was found before training."""
    ends = dict.fromkeys(["", *(name_end(study, row, CHECKED) for row in study.rows_to_train)])
    files = [results / study.study / f"preflight{end}{failed}.txt" for end in ends for failed in ("", "_failed")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    none = "Data and settings have not been checked, or nothing is trained."
    return text_page(f"Preflight of {study.study}", text, none)
