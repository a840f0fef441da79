"""The rows of the table as numbers: runs of a backbone, published models, and published models scored again here."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.config.protocols import Protocol
from lvis_rcnn.config.schema import BACKBONES, Published, Schedule
from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.evaluation.uncertainty import Interval, Sampled, differs_from_seeds, intervals, sampled_row
from lvis_rcnn.runs.records import (
    CPU_TIME,
    QUANTITIES,
    RunRecord,
    images_seen_by_weights,
    other_work,
    quantity,
    read_measured,
    read_published,
)
from lvis_rcnn.runs.states import state_of
from lvis_rcnn.system.cli import InputError

TRAINED = "trained here"
PUBLISHED = "published"
RESCORED = "published, re-scored here"

COMPARED = ("box_AP", "mask_AP")
PROTOCOL_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
PUBLISHERS = "the publisher's GPUs"
RESIDENT = "resident memory"
"""What is measured of memory on a CPU."""
ROUNDING = 0.0005 + 1e-9  # published numbers are percent with one decimal

Link = Callable[[Path], str]
"""How a file is linked."""


@dataclass(frozen=True)
class Row:
    """One row: what it is of, the runs that measured it, and the published model where it is of one."""

    source: str
    """TRAINED, PUBLISHED or RESCORED."""
    backbone: str
    lr_schd: str
    scored_on: str
    """Name of the validation data."""
    runs: tuple[RunRecord, ...]
    """One per seed of TRAINED, one of RESCORED, none of PUBLISHED."""
    measured: RunRecord | None = None
    """Memory and speed, measured with the first of them; None of PUBLISHED."""
    model: ZooModel | None = None
    reference: ZooModel | None = None
    """Whose published numbers the row is compared with: the same backbone, data, schedule and method."""
    sampled: Mapping[Kind, Sampled] = field(default_factory=dict)
    """Metrics of all scored runs and of their resamples; empty where there are none."""
    why_no_intervals: str = ""
    """What is wrong with the files that these come from."""
    detections_kept: int = 300
    """The most detections of an image that inference keeps."""
    images_seen_before: int = 0
    """Validation images that the initial weights were trained on."""
    protocols: tuple[Protocol, ...] = ()
    """By which it is scored beside AP@300."""
    sampled_by: Mapping[str, Mapping[Kind, Sampled]] = field(default_factory=dict)
    """``sampled`` by each of these, by its name."""
    name: str = ""
    """Name of a trained row."""
    called: str = ""
    """What the study calls it; empty where it is called by its backbone."""
    trained_as: str = ""
    """Name of the row whose training it uses, often its own."""
    is_baseline: bool = False
    """Whether the other trained rows are compared with it."""

    @property
    def scored_seeds(self) -> list[int | None]:
        """Seeds of the runs that ``sampled`` is of."""
        return [run.seed for run in self.runs if "evaluate" in run.records]

    @property
    def is_scored(self) -> bool:
        """Whether each of its runs is."""
        return len(self.scored_seeds) == len(self.runs)

    @property
    def is_single(self) -> bool:
        """Whether one run is scored, however many the study plans."""
        return len(self.scored_seeds) == 1

    def protocol_measures(self) -> list[str]:
        """Names of all metrics by the further protocols."""
        return [
            f"{one.name}_{word}_{metric}"
            for one in self.protocols
            for kind, word in KINDS.items()
            if kind == "segm" or not one.is_boundary
            for metric in PROTOCOL_METRICS
        ]

    @property
    def title(self) -> str:
        """What a person calls it: often the name of its backbone."""
        return self.called or BACKBONES[self.backbone].title

    @property
    def names(self) -> dict[str, str]:
        """What the row is, by the names of the table's first columns."""
        style = BACKBONES[self.backbone].style
        same = {"lr_schd": self.lr_schd, "scored_on": self.scored_on, "source": self.source}
        return {"title": self.title, "style": style, **same}

    @property
    def measured_on(self) -> str | None:
        """The device that memory and speed are of; None where nothing is measured."""
        return self.measured.records["measure"]["device"] if self.measured and self.measured.records else None

    @property
    def speed(self) -> Mapping[str, Any]:
        """What was recorded of the speed; empty where nothing was."""
        records = self.measured.records if self.measured else {}
        speed: Mapping[str, Any] = records["measure"]["inference"] if records else {}
        return speed

    @property
    def other_work(self) -> str:
        """How much other work ran while the speed was measured, which makes it no number to compare; else empty."""
        return other_work(self.speed)

    @property
    def fps_quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of the speed over the images; None where there is none to compare."""
        image_s = None if self.other_work else self.speed.get("image_s")
        return (1 / image_s["third_quartile"], 1 / image_s["first_quartile"]) if image_s else None

    @property
    def fps_spread(self) -> tuple[float, float] | None:
        """The quartiles, and the speed itself where a few slow images take it out of these."""
        found = [*self.fps_quartiles, self.speed["fps"]] if self.fps_quartiles else []
        return (min(found), max(found)) if found else None

    def way(self, name: str) -> str:
        """What is measured of memory or speed where it is another thing than MMDetection measures; else empty."""
        if self.measured_on != "cpu":
            return ""
        of_speed = CPU_TIME if self.speed.get("clock") == CPU_TIME else ""
        return RESIDENT if name == "memory_gb" else of_speed

    def place(self, name: str) -> str | None:
        """Where and how memory or speed was measured; None where there is no number."""
        if self.mean(name) is None:
            return None
        if self.measured is None:
            return PUBLISHERS
        of_some = name == "fps" and self.speed["masks"] != "all"
        parts = (self.measured_on, self.way(name), "only the masks that are scored" if of_some else "")
        return ", ".join(filter(None, parts))

    def runs_of(self, name: str) -> tuple[RunRecord, ...]:
        """The runs that a measure is taken of."""
        return (self.measured,) if self.measured and quantity(name).step == "measure" else self.runs

    def interval(self, name: str) -> Interval | None:
        """The 95 % interval of a measure: of the only run, or of the mean over seeds; None where there is none."""
        measure = quantity(name)
        if len(scored := [run for run in self.runs if measure.step in run.records]) == 1:
            return scored[0].interval(measure)
        sampled = self.sampled_by.get(measure.keys[1], {}) if measure.keys[0] == "protocols" else self.sampled
        of_kind = next((one for kind, one in sampled.items() if kind in measure.keys), None)
        return intervals(of_kind)[measure.keys[-1]] if of_kind else None

    def scored_annotations(self) -> str | None:
        """Digest of the annotations that all scored runs were scored on; None where none is scored."""
        found = {run.records["evaluate"].get("annotations_sha256") for run in self.runs if "evaluate" in run.records}
        return found.pop() if len(found) == 1 else None

    def measure(self, name: str) -> dict[str, Any]:
        """Mean, sample standard deviation, intervals and each run's value of a measure, as table.json holds them.

        Published numbers have no runs. ``intervals`` are of runs, ``interval`` of the mean, ``quartiles`` of a speed
        over the images; absent where there is none. A speed beside which ``other_work`` ran is None.
        """
        if self.source == PUBLISHED:
            return {"mean": published_value(self, name), "sd": None, "seeds": {}}
        hidden = name == "fps" and bool(self.other_work)
        values = {run_key(run): None if hidden else run.value(quantity(name)) for run in self.runs_of(name)}
        present = [value for value in values.values() if value is not None]
        mean = statistics.fmean(present) if present else None
        record = {"mean": mean, "sd": statistics.stdev(present) if len(present) > 1 else None, "seeds": values}
        of_runs = {run_key(run): bounds for run in self.runs if (bounds := run.interval(quantity(name)))}
        more: dict[str, Any] = {"intervals": of_runs, "interval": self.interval(name)}
        more |= {"quartiles": self.fps_quartiles, "other_work": self.other_work} if name == "fps" else {}
        return record | {key: value for key, value in more.items() if value}

    def mean(self, name: str) -> float | None:
        """Mean of a measure over the runs that have it; None where none has."""
        mean: float | None = self.measure(name)["mean"]
        return mean


def run_key(run: RunRecord) -> str:
    """Name of a run within its row: its seed, or ``published``."""
    return PUBLISHED if run.seed is None else str(run.seed)


def rows_of(study: Study, results: Path, models: Mapping[str, ZooModel]) -> list[Row]:
    """The rows of a study in its order: trained ones, then each published model as published and as scored here.

    Args:
        study: what should have been run.
        results: folder that all steps write into.
        models: published models by name, those that the study scores among them.
    """
    rows = [trained_row(study, results, row, models) for row in study.trained_rows]
    for published in study.published:
        rows += published_rows(study, results, published, models[published.model])
    return rows


def trained_row(study: Study, results: Path, row: str, models: Mapping[str, ZooModel]) -> Row:
    """A row that is trained; one with images or inference of its own is compared with nothing published."""
    own, backbone, data = study.of_row(row), study.backbone_of(row), study.dataset.name
    schedule = schedule_name(own.schedule)
    runs = tuple(state_of(study, results, row, seed, models).run for seed in study.seeds)
    compared = row in study.backbones or {*study.rows[row].changes} <= {"sampling", "model", "schedule"}
    alike = models.values() if compared else ()
    same = (one for one in alike if one.is_trained_like(own, backbone, schedule))
    sampled, why_none = sampled_runs(runs)
    protocols = study.evaluation.asked_protocols
    return Row(
        *(TRAINED, backbone, schedule, data, runs),
        measured=read_measured(own, results, runs[0]),
        reference=next(same, None),
        sampled=sampled,
        why_no_intervals=why_none,
        detections_kept=own.inference.detections_per_image,
        images_seen_before=images_seen_by_weights(study, results),
        protocols=protocols,
        sampled_by=sampled_by(runs, protocols),
        name=row,
        called=study.title_of(row) if row in study.rows else "",
        trained_as=study.trained_as(row),
        is_baseline=row == study.report.baseline,
    )


def published_rows(study: Study, results: Path, published: Published, model: ZooModel) -> list[Row]:
    """A published model as it was published, and as it is scored here."""
    scored_on = study.dataset.name if published.split == "val" else published.split
    run = read_published(study, results, published, model)
    sampled, why_none = sampled_runs([run])
    protocols = study.evaluation.asked_protocols
    of_data = (model.backbone, model.schedule, scored_on)
    called = f"{BACKBONES[model.backbone].title}, {model.method}" if model.method else ""
    here = Row(
        *(RESCORED, *of_data, (run,)),
        measured=read_measured(study, results, run),
        model=model,
        reference=model,
        sampled=sampled,
        why_no_intervals=why_none,
        detections_kept=study.inference.detections_per_image,
        protocols=protocols,
        sampled_by=sampled_by([run], protocols),
        called=called,
    )
    return [Row(PUBLISHED, *of_data, (), model=model, reference=model, called=called), here]


def sampled_runs(runs: Sequence[RunRecord], protocol: str = "") -> tuple[Mapping[Kind, Sampled], str]:
    """Metrics of the runs that are scored and of their resamples, and what is wrong with their files."""
    scored = [run for run in runs if "evaluate" in run.records]
    try:
        return sampled_row([run.folder for run in scored], [run.records["evaluate"] for run in scored], protocol), ""
    except InputError as error:
        return {}, str(error)


def sampled_by(runs: Sequence[RunRecord], protocols: Sequence[Protocol]) -> dict[str, Mapping[Kind, Sampled]]:
    """:func:`sampled_runs` by each further protocol; the files are those of AP@300."""
    return {one.name: sampled_runs(runs, one.name)[0] for one in protocols}


def kept_sentence(rows: Sequence[Row]) -> str:
    """How many detections of an image AP is of, where the detector keeps fewer than count; else empty."""
    scored = {
        (row.detections_kept, run.records["evaluate"].get("detections_per_image", row.detections_kept))
        for row in rows
        for run in row.runs
        if "evaluate" in run.records
    }
    counted = {most: {kept for kept, of in scored if kept < of == most} for _, most in sorted(scored)}
    texts = [
        f"The detector kept at most {' to '.join(map(str, sorted({min(kept), max(kept)})))} detections an image; "
        f"{most} would count"
        for most, kept in counted.items()
        if kept
    ]
    return "; ".join(texts)


def schedule_name(schedule: Schedule) -> str:
    """Length of the schedule as the table names it: 12 epochs of the step policy are 1x; else epochs or steps."""
    if schedule.epochs is None:
        return f"{schedule.steps} steps"
    if schedule.policy == "step" and schedule.epochs % 12 == 0:
        return f"{schedule.epochs // 12}x"
    return f"{schedule.epochs} epochs"


def published_value(row: Row, name: str) -> float | None:
    """A measure as published, AP as a fraction; None where nothing was published."""
    if row.reference is None:
        return None
    model = row.reference
    value = {"box_AP": model.box_ap, "mask_AP": model.mask_ap, "memory_gb": model.memory_gb}.get(name)
    return None if value is None else value / QUANTITIES[name].scale


def difference(row: Row, name: str) -> float | None:
    """The AP that was measured here minus the published one; None where either is missing."""
    if row.source == PUBLISHED or name not in COMPARED:
        return None
    published, measured = published_value(row, name), row.mean(name)
    return None if published is None or measured is None else measured - published


def is_outside_noise(row: Row, name: str) -> bool | None:
    """Whether a difference is more than noise; None where there is none, or nothing to tell it by.

    The noise of the same weights is the rounding of the published number. That of trainings is told by the variance
    between seeds (:func:`uncertainty.differs_from_seeds`); one seed tells nothing.
    """
    change, published, found = difference(row, name), published_value(row, name), row.measure(name)
    if change is None or published is None:
        return None
    if row.source == RESCORED:
        return abs(change) > ROUNDING
    if found["sd"] is None:
        return None
    number = sum(value is not None for value in found["seeds"].values())
    return differs_from_seeds(published, found["mean"], found["sd"], number)


def is_unranked(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row's speed differs from that of another by no more than their spread.

    Only rows that were measured alike are compared, and only where both have quartiles.
    """
    own = row.fps_spread
    others = (other.fps_spread for other in rows if other is not row and other.place("fps") == row.place("fps"))
    return own is not None and any(found and found[0] <= own[1] and own[0] <= found[1] for found in others)


def missing_of(row: Row, run: RunRecord) -> dict[str, str]:
    """What a run lacks by the step, and what its row lacks where that is measured with it."""
    of_row = row.measured.missing if row.measured and run is row.runs[0] else {}
    return {**run.missing, **of_row}
