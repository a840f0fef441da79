"""The rows of the table: runs of a backbone, published numbers, and a published model that was scored again here.

Every cell holds a number or says why there is none.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.config.schema import BACKBONES, Schedule
from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.evaluation.bootstrap import Interval, row_intervals
from lvis_rcnn.runs.records import MEASURES, Run, read_measured, read_published, read_run

TRAINED = "trained here"
PUBLISHED = "published"
RESCORED = "published, re-scored here"

COMPARED = ("box_AP", "mask_AP")
OF_TRAINING = ("memory_gb", "images_seen", "gpu_hours", "cpu_hours")
ROUNDING = 0.0005 + 1e-9  # published numbers are percent with one decimal

Link = Callable[[Path], str]


@dataclass(frozen=True)
class Row:
    """One row: what it is of, the runs that measured it, and the published model where it is of one."""

    source: str
    """TRAINED, PUBLISHED or RESCORED."""
    backbone: str
    lr_schd: str
    scored_on: str
    """Name of the validation data."""
    runs: tuple[Run, ...]
    """One for each seed of TRAINED, one of RESCORED, none of PUBLISHED."""
    measured: Run | None = None
    """Memory and speed, measured with the first of them; None of PUBLISHED."""
    model: ZooModel | None = None
    reference: ZooModel | None = None
    """Whose published numbers the row is compared with: the same backbone, data and schedule."""
    intervals_of_means: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals of the means over several seeds, by the measure; empty where there are none."""

    def runs_of(self, name: str) -> tuple["Run", ...]:
        """The runs that a measure is taken of."""
        return (self.measured,) if self.measured and MEASURES[name].step == "measure" else self.runs

    def interval(self, name: str) -> Interval | None:
        """The 95 % interval of a measure: of the only run, or of the mean over seeds; None where there is none."""
        measure = MEASURES[name]
        if len(scored := [run for run in self.runs if measure.step in run.records]) == 1:
            return scored[0].interval(measure)
        return self.intervals_of_means.get(name)

    @property
    def has_mean(self) -> bool:
        """Whether its AP are means over several seeds."""
        return sum("evaluate" in run.records for run in self.runs) > 1

    @property
    def measured_on(self) -> str | None:
        """The device that memory and speed are of; None where nothing is measured."""
        return self.measured.records["measure"]["device"] if self.measured and self.measured.records else None

    @property
    def title(self) -> str:
        """Name on the page."""
        return BACKBONES[self.backbone].title


def rows_of(study: Study, results: Path, models: Mapping[str, ZooModel], now_s: float) -> list[Row]:
    """The rows of a study in its order: trained ones, then each published model as published and as scored here.

    Args:
        study: what should have been run.
        results: folder that all steps write into.
        models: published models by name, those that the study scores among them.
        now_s: Unix time.
    """
    rows = []
    for backbone in study.backbones:
        runs = tuple(read_run(study, results, backbone, seed, now_s) for seed in study.seeds)
        measured = read_measured(study, results, runs[0])
        schedule, data = schedule_name(study.schedule), study.dataset.name
        same = [
            other
            for other in models.values()
            if (other.kind, other.backbone, other.schedule) == (data, backbone, schedule)
        ]
        reference = next(iter(same), None)
        rows.append(Row(TRAINED, backbone, schedule, data, runs, measured, None, reference, intervals_over_seeds(runs)))
    for published in study.published:
        model = models[published.model]
        scored_on = study.dataset.name if published.split == "val" else published.split
        run = read_published(study, results, published, model, now_s)
        rows.append(Row(PUBLISHED, model.backbone, model.schedule, scored_on, (), None, model, model))
        measured = read_measured(study, results, run)
        rows.append(Row(RESCORED, model.backbone, model.schedule, scored_on, (run,), measured, model, model))
    return rows


def intervals_over_seeds(runs: Sequence[Run]) -> Mapping[str, Interval]:
    """The intervals of the means over the seeds that are scored, by the measure."""
    scored = [run for run in runs if "evaluate" in run.records]
    found = row_intervals([run.folder for run in scored], [run.records["evaluate"] for run in scored])
    keys = {name: measure.keys for name, measure in MEASURES.items() if measure.step == "evaluate"}
    every = {name: found.get(kind, {}).get(metric) for name, (kind, metric) in keys.items()}
    return {name: bounds for name, bounds in every.items() if bounds}


def schedule_name(schedule: Schedule) -> str:
    """Length of the schedule as the page names it: 12 epochs of the step policy are 1x; else epochs or iterations."""
    if schedule.epochs is None:
        return f"{schedule.steps} it"
    if schedule.policy == "step" and schedule.epochs % 12 == 0:
        return f"{schedule.epochs // 12}x"
    return f"{schedule.epochs} ep"


def published_value(row: Row, name: str) -> float | None:
    """A measure as published, AP as a fraction; None where nothing was published."""
    if row.reference is None:
        return None
    percent = {"box_AP": row.reference.box_ap, "mask_AP": row.reference.mask_ap}.get(name)
    if name == "memory_gb":
        return row.reference.memory_gb
    return None if percent is None else percent / 100


def difference(row: Row, name: str) -> float | None:
    """The AP that was measured here minus the published one; None where either is missing."""
    if row.source == PUBLISHED or name not in COMPARED:
        return None
    published, measured = published_value(row, name), moments_of(row, name)["mean"]
    return None if published is None or measured is None else measured - published


def is_outside_noise(row: Row, name: str) -> bool | None:
    """Whether a difference is more than noise; None where there is none, or nothing to tell it by.

    The noise of the same weights is the rounding of the published number; that of a training is two standard deviations
    over its seeds, or, with one seed, the 95 % interval over the validation images.
    """
    change, published = difference(row, name), published_value(row, name)
    deviation: float | None = moments_of(row, name)["sd"]
    interval = row.interval(name)
    if change is None or published is None:
        return None
    if row.source == RESCORED:
        return abs(change) > ROUNDING
    if deviation is not None:
        return abs(change) > 2 * deviation
    return None if interval is None else not interval[0] <= published <= interval[1]


def cell(row: Row, name: str) -> str:
    """What the table prints of a measure: the number, the published one and their difference, or why there is none."""
    if row.source == PUBLISHED:
        value = published_value(row, name)
        return "not published" if value is None else f"{MEASURES[name].scale * value:.1f}"
    if row.source == RESCORED and name in OF_TRAINING:
        return "- (not trained here)"
    text, published, change = measured_cell(row, name), published_value(row, name), difference(row, name)
    if published is None or moments_of(row, name)["mean"] is None:
        return text
    scale, mark = MEASURES[name].scale, " !" if is_outside_noise(row, name) else ""
    compared = "" if change is None else f", {scale * change:+z.1f}{mark}"
    return f"{text} (published {scale * published:.1f}{compared})"


def is_best(row: Row, rows: Sequence[Row], name: str) -> bool:
    """Whether a row has the highest AP of those scored here on its data, of which at least one other has one."""
    if row.source == PUBLISHED:
        return False
    others = [other for other in rows if other is not row and other.scored_on == row.scored_on]
    others = [other for other in others if other.source != PUBLISHED]
    values = [value for other in others if (value := moments_of(other, name)["mean"]) is not None]
    own = moments_of(row, name)["mean"]
    return own is not None and bool(values) and own >= max(values)


def measured_cell(row: Row, name: str) -> str:
    """Mean, sample standard deviation over the seeds and interval, or why there is no number."""
    runs, measure = row.runs_of(name), MEASURES[name]
    present = [run for run in runs if measure.step in run.records]
    values = [value for run in present if (value := run.value(measure)) is not None]
    if not present:
        return reasons({run.seed: run.missing[measure.step] for run in runs})
    if not values:
        return "undefined: nothing annotated" if measure.step == "evaluate" else "not recorded"
    mean, spread = moments(values)
    if measure == MEASURES["images_seen"]:
        return count_text(mean)
    decimals = 2 if measure.keys[-1] in OF_TRAINING and mean < 1 else 1
    text = f"{measure.scale * mean:.{decimals}f}"
    if spread is not None:
        text += f" ± {measure.scale * spread:.{decimals}f}"
    if interval := row.interval(name):
        text += " [{:.1f}, {:.1f}]".format(*(measure.scale * bound for bound in interval))
    return text if len(values) == len(runs) else f"{text} ({len(values)} of {len(runs)} seeds)"


def count_text(count: float) -> str:
    """A number of images in few characters; without commas, which tabulate takes for a wrong number."""
    if count < 10_000:
        return f"{count:.0f}"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def moments(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; one value has no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def reasons(of_seeds: Mapping[int | None, str]) -> str:
    """One reason if all seeds share it, else each with its seed; safe inside a Markdown table."""
    different = set(of_seeds.values())
    text = (
        different.pop() if len(different) == 1 else "; ".join(f"seed {seed}: {why}" for seed, why in of_seeds.items())
    )
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def download(row: Row, link: Link) -> str:
    """Links to model and log: the publisher's, or those of the first seed that has both."""
    if row.model is not None:
        return " &#124; ".join(f"[{kind}]({url})" for kind, url in published_links(row.model).items() if url)
    whys: dict[int | None, str] = {}
    for run in row.runs:
        model, log_file = run.file("model"), run.file("log")
        if isinstance(model, Path) and isinstance(log_file, Path):
            return f"[model]({link(model)}) &#124; [log]({link(log_file)})"
        whys[run.seed] = model if isinstance(model, str) else str(log_file)
    return reasons(whys)


def published_links(model: ZooModel) -> dict[str, str | None]:
    """Where the publisher keeps model and log."""
    return {"model": model.url, "log": model.log_url}


@dataclass(frozen=True)
class Cost:
    """What a row costs, as the table says it; None where it was not measured here."""

    memory_gb: float | None
    fps: float | None
    device: str | None


def cost_of(row: Row) -> Cost:
    """Memory and speed of a row, means over its seeds: the one place where plots and pages take them from."""
    memory, fps = (None if row.source == PUBLISHED else moments_of(row, name)["mean"] for name in ("memory_gb", "fps"))
    return Cost(memory, fps, row.measured_on)


def row_record(row: Row, link: Link) -> dict[str, Any]:
    """The row in table.json: every measure with mean, deviation, 95 % interval, those of each run; what is missing.

    A run is named by its seed, or ``published``. Rows that are compared with a published model also have ``published``,
    ``difference`` and ``outside_noise``.
    """
    record: dict[str, Any] = {
        "source": row.source,
        "backbone": row.backbone,
        "title": row.title,
        "style": BACKBONES[row.backbone].style,
        "lr_schd": row.lr_schd,
        "scored_on": row.scored_on,
        "measures": {name: moments_of(row, name) for name in MEASURES},
        "measured_on": row.measured_on,
        "missing": {run_key(run): missing for run in row.runs if (missing := missing_of(row, run))},
    }
    if row.reference is not None and row.source != PUBLISHED:
        record["published"] = {name: published_value(row, name) for name in ("memory_gb", *COMPARED)}
        record["difference"] = {name: difference(row, name) for name in COMPARED}
        record["outside_noise"] = {name: is_outside_noise(row, name) for name in COMPARED}
    if row.model is None:
        return record | {kind: links_of_runs(row, kind, link) for kind in ("model", "log")}
    return record | {kind: {PUBLISHED: url} for kind, url in published_links(row.model).items()}


def moments_of(row: Row, name: str) -> dict[str, Any]:
    """Mean, deviation and each run's value of a measure; published numbers have no runs."""
    values = {run_key(run): run.value(MEASURES[name]) for run in row.runs_of(name)}
    present = [value for value in values.values() if value is not None]
    if row.source == PUBLISHED:
        return {"mean": published_value(row, name), "sd": None, "seeds": {}}
    mean, spread = moments(present) if present else (None, None)
    intervals = {run_key(run): run.interval(MEASURES[name]) for run in row.runs}
    found = {key: bounds for key, bounds in intervals.items() if bounds}
    record = {"mean": mean, "sd": spread, "seeds": values} | ({"intervals": found} if found else {})
    return record | ({"interval": bounds} if (bounds := row.interval(name)) else {})


def missing_of(row: Row, run: Run) -> dict[str, str]:
    """What a run lacks, and what its row lacks where that is measured with it."""
    of_row = row.measured.missing if row.measured and run is row.runs[0] else {}
    return {**run.missing, **of_row}


def run_key(run: Run) -> str:
    """Name of a run within its row."""
    return PUBLISHED if run.seed is None else str(run.seed)


def links_of_runs(row: Row, kind: str, link: Link) -> dict[str, str | None]:
    """Link to the model or log of each run, None where there is no file."""
    files = {run_key(run): run.file(kind) for run in row.runs}
    return {key: link(file) if isinstance(file, Path) else None for key, file in files.items()}
