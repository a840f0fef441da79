"""Pages about a study, one HTML file each, which open anywhere without a network."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import known_models
from lvis_rcnn.reporting import PAGES
from lvis_rcnn.reporting.figures import GROUPS
from lvis_rcnn.reporting.html import MISSING, Best, Column, heading, page, paragraph, plain_text, sortable_table, table
from lvis_rcnn.reporting.plots import read_category_figures
from lvis_rcnn.reporting.rows import Row, rows_of
from lvis_rcnn.reporting.score_plots import KINDS, category_aps, metrics_of, row_name
from lvis_rcnn.reporting.table import cells, devices_line, files_line, provenance, provenance_line, reading_line, titled
from lvis_rcnn.system.cli import duration
from lvis_rcnn.system.files import write_text

SECONDS_AN_HOUR = 3600
MIB_A_GB = 1024
# Columns of the results table that say what a row is; the others are of numbers.
NAMING_COLUMNS = {"Backbone", "Style", "Lr schd", "Scored on", "Source"}


def table_page(study: Study, rows: Sequence[Row]) -> str:
    """The results table."""
    frame = cells(list(rows), marked=True)
    lines = [[from_markdown(str(value)) for value in row] for row in frame.to_numpy().tolist()]
    columns = [Column(str(title), by_number=title not in NAMING_COLUMNS) for title in frame.columns]
    found = list(rows)
    said = [paragraph(text) for text in (devices_line(found), reading_line(found)) if text]
    said += [paragraph(text, pale=True) for text in (provenance_line(study, found), files_line(found)) if text]
    return page(titled(study), [sortable_table(columns, lines, "rows"), *said])


def from_markdown(text: str) -> str:
    """A cell as it was before it was made safe for Markdown, an interval in one piece; what is bold stays so."""
    bold = text.startswith("**")
    text = text.removeprefix("**").removesuffix("**").replace("&lt;", "<").replace("\\|", "|").replace("\\\\", "\\")
    text = re.sub(r"\[[^\]]*\]", lambda found: found.group().replace(" ", "\N{NO-BREAK SPACE}"), text)
    return Best(text) if bold else text


def per_category_page(study: Study, rows: Sequence[Row], image_counts: Mapping[int, int]) -> str:
    """AP of every category, a column for each row of the results table and kind; a table for each set of categories."""
    title = f"AP of each category of {study.study}"
    scored = [row for row in rows if any(metrics.get("per_category") for metrics in metrics_of(row))]
    if not scored:
        return page(title, [paragraph("No run is scored yet.")])
    note = (
        f"AP in percent, 0 where nothing was found, {MISSING} where the validation split has no object of it. "
        "A click on a head sorts, a second one turns the order round."
    )
    parts = [paragraph(note)]
    for data in dict.fromkeys(row.scored_on for row in scored):
        parts.append(heading(f"Scored on {data}"))
        parts.append(categories_table([row for row in scored if row.scored_on == data], image_counts))
    return page(title, parts)


def categories_table(rows: Sequence[Row], image_counts: Mapping[int, int]) -> str:
    """The table of rows that are scored on the same categories."""
    aps = {(row_name(row), kind): category_aps(row, kind) for kind in ("segm", "bbox") for row in rows}
    named = [Column("category"), Column("group"), Column("training images", 0), Column("objects", 0)]
    columns = [*named, *(Column(f"{KINDS[kind]} AP {name}", 1, full=100) for name, kind in aps)]
    scored = [metrics for row in rows for metrics in metrics_of(row)]
    categories = {category["id"]: category for metrics in scored for category in metrics.get("per_category", ())}
    lines = [
        [
            category["name"] or f"id {key}",
            GROUPS[category["frequency"]][0],
            image_counts.get(key),
            category.get("objects"),
            *(of_row[key][1] if key in of_row else None for of_row in aps.values()),
        ]
        for key, category in categories.items()
    ]
    return sortable_table(columns, lines, "categories", [name for name, _, _ in GROUPS.values()])


def cost_page(study: Study, results: Path, rows: Sequence[Row]) -> str:
    """What trainings and jobs took."""
    trainings = [training_cost(row, record) for row in rows for record in records_of(row, "train")]
    jobs = job_costs(results / study.study / "benchmarks")
    parts = [
        heading("Trainings, over all their starts"),
        table(TRAINING_COLUMNS, trainings) if trainings else paragraph("Nothing is trained yet."),
        heading("Jobs, as Snakemake measured them"),
        *(jobs_parts(jobs) if jobs else [paragraph("No job has been measured yet.")]),
    ]
    return page(f"Cost of {study.study}", parts)


TRAINING_COLUMNS = (
    *(Column("backbone"), Column("seed", 0), Column("device"), Column("processes", 0), Column("starts", 0)),
    *(Column("steps", 0), Column("images", 0), Column("hours", 2), Column("device-hours", 2)),
    Column("memory, GB", 1),
)
JOB_COLUMNS = (Column("job"), Column("seconds", 1), Column("CPU seconds", 1), Column("peak memory, GB", 2))


def jobs_parts(jobs: Sequence[Sequence[Any]]) -> list[str]:
    """What jobs took, together and each."""
    wall, cpu = (sum(float(job[at] or 0) for job in jobs) for at in (1, 2))
    total = f"{len(jobs)} jobs, {duration(wall)} in all, {duration(cpu)} of CPU time."
    note = "Of a job that was stopped and started again, Snakemake measures the last start."
    return [paragraph(f"{total} {note}"), sortable_table(JOB_COLUMNS, jobs, "jobs")]


def training_cost(row: Row, record: Mapping[str, Any]) -> list[Any]:
    """The line of one training."""
    seconds, processes = record.get("elapsed_s"), record.get("ranks", 1)
    hours = None if seconds is None else seconds / SECONDS_AN_HOUR
    return [
        row.title,
        record.get("seed"),
        record.get("device"),
        processes,
        record.get("attempts"),
        record.get("steps"),
        record.get("images_seen"),
        hours,
        None if hours is None else hours * processes,
        record.get("memory_gb"),
    ]


def records_of(row: Row, step: str) -> list[dict[str, Any]]:
    """What a step has recorded of each run of a row, with its seed."""
    return [{"seed": run.seed, **run.records[step]} for run in row.runs if step in run.records]


def job_costs(folder: Path) -> list[list[Any]]:
    """Name, seconds, CPU seconds and gigabytes of each job that Snakemake has measured; a dash where it could not."""
    jobs = []
    for file in sorted(folder.rglob("*.tsv")):
        with file.open(newline="", encoding="utf-8") as lines:
            for measured in csv.DictReader(lines, delimiter="\t"):
                seconds, cpu, memory_mib = (number(measured.get(key)) for key in ("s", "cpu_time", "max_rss"))
                name = str(file.relative_to(folder).with_suffix(""))
                jobs.append([name, seconds, cpu, None if memory_mib is None else memory_mib / MIB_A_GB])
    return jobs


def number(text: str | None) -> float | None:
    """What Snakemake wrote, which is NA or - of a job too short to be measured."""
    try:
        return float(text or "")
    except ValueError:
        return None


def provenance_page(study: Study, rows: Sequence[Row]) -> str:
    """What all numbers were made with, and what each run was."""
    facts = [[key.replace("_", " "), said(value)] for key, value in provenance(study, list(rows)).items()]
    runs = [
        [row_name(row), run.seed, *(said(made_of(run.records).get(key)) for key in RUN_FACTS)]
        for row in rows
        for run in row.runs
        if run.records
    ]
    columns = [Column("row"), Column("seed", 0), *(Column(key.replace("_", " ")) for key in RUN_FACTS)]
    parts = [table([Column("of all runs"), Column("")], facts), heading("Runs")]
    return page(
        f"Provenance of {study.study}",
        [*parts, table(columns, runs) if runs else paragraph("No run has a record yet.")],
    )


RUN_FACTS = ("code_version", "finished_at", "device", "threads", "precision", "initial_weights", "model_sha256")


def made_of(records: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of what made a run's model, or read it."""
    return records.get("train") or records.get("import") or {}


def said(value: Any) -> str:
    """A value of a record in plain words."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {said(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return "" if value is None else str(value)


def preflight_page(study: Study, results: Path) -> str:
    """The page that was written before training."""
    folder, title = results / study.study, f"Preflight of {study.study}"
    for name in ("preflight.txt", "preflight_failed.txt"):
        if (folder / name).is_file():
            return page(title, [plain_text((folder / name).read_text(encoding="utf-8"))])
    return page(title, [paragraph("Data and settings have not been checked, or nothing is trained.")])


def write_pages(study: Study, study_file: Path, results: Path, out: Path, now_s: float) -> None:
    """Write all pages of a study into ``out``.

    Args:
        study: what should have been run.
        study_file: its file, which its zoo is relative to.
        results: folder that all steps write into.
        out: folder of the pages.
        now_s: Unix time; tells a live run from a dead one.

    Raises:
        InputError: tables of repeat factors are damaged.
    """
    rows = rows_of(study, results, known_models(study, study_file), now_s)
    counted = read_category_figures(results / study.study / "repeat_factors")
    pages: dict[str, Callable[[], str]] = {
        "table": lambda: table_page(study, rows),
        "per_category": lambda: per_category_page(study, rows, counted[1] if counted else {}),
        "cost": lambda: cost_page(study, results, rows),
        "provenance": lambda: provenance_page(study, rows),
        "preflight": lambda: preflight_page(study, results),
    }
    for name in tqdm(PAGES, desc="pages", unit="page", disable=None):
        write_text(out / f"{name}.html", pages[name]())
