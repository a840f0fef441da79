"""The runs of a study: what the steps of each have recorded, and why records are missing.

A record counts only if those of the steps before it do, and if it agrees with the study file: a run that is being
repeated never shows the AP of the old one.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lvis_rcnn.config.schema import Published
from lvis_rcnn.config.study import SECTIONS_OF_STEP, Study, digests_of, settings_digest
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.metrics import TableMetrics
from lvis_rcnn.runs.shapes import Imported, Inference, LogLine, Measured, Preflight, Trained

# Step -> the record it writes last, the shape of it, and the text before the step has begun.
RECORDS: dict[str, tuple[str, Any, str]] = {
    "train": ("train.json", Trained, "not started"),
    "import": ("import.json", Imported, "not started"),
    "infer": ("inference.json", Inference, "waiting for inference"),
    "evaluate": ("metrics.json", TableMetrics, "waiting for scoring"),
    "measure": ("measure.json", Measured, "waiting for the measurement"),
}
STEPS_OF_TRAINED = ("train", "infer", "evaluate")
STEPS_OF_PUBLISHED = ("import", "infer", "evaluate")
SHARED_STEPS = ("draw", "store_train", "store_val", "preflight", "repeat_factors")
FAILED = "failed: "
"""What a reason begins with that is an error."""
UNREADABLE = "unreadable: "
"""What a reason begins with where a record is damaged."""
CPU_TIME, WALL_TIME = "CPU time", "wall time"
"""Clocks of a measured speed."""
# Beyond these a speed is not that of a machine that does nothing else: a twentieth of the cores is more than an idle
# system uses; a process that computes on one core or more has less than nine tenths of a core only where others had it.
MOST_OTHER_CORES, LEAST_CPU_PER_WALL = 0.05, 0.9
# Among the facts of preflight.json, where there are any: validation images that the initial weights were trained on.
SEEN_BY_WEIGHTS = "val_images_seen_by_initial_weights"


@dataclass(frozen=True)
class Quantity:
    """A number that a step of a run has recorded."""

    step: str
    """The step that records it."""
    keys: tuple[str, ...]
    """The keys that lead to it in the step's record."""
    scale: float = 1
    """The table shows it multiplied by this."""


QUANTITIES = {
    "memory_gb": Quantity("measure", ("training", "memory_gb")),
    "fps": Quantity("measure", ("inference", "fps")),
    "images_seen": Quantity("train", ("images_seen",)),
    "gpu_hours": Quantity("train", ("cost", "gpu_hours")),
    "cpu_hours": Quantity("train", ("cost", "cpu_hours")),
    **{f"box_{name}": Quantity("evaluate", ("bbox", name), scale=100) for name in METRIC_NAMES},
    **{f"mask_{name}": Quantity("evaluate", ("segm", name), scale=100) for name in METRIC_NAMES},
}


def quantity(name: str) -> Quantity:
    """An entry of ``QUANTITIES``, or a metric by a further protocol: fixed_box_AP, minival_mask_APr."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    protocol, kind, metric = re.fullmatch(r"(.+)_(box|mask)_(\w+)", name).groups()  # type: ignore[union-attr]
    return Quantity("evaluate", ("protocols", protocol, {"box": "bbox", "mask": "segm"}[kind], metric), scale=100)


@dataclass(frozen=True)
class RunRecord:
    """The records of a backbone with a seed, or of a published model: of each step, or why there is none."""

    folder: Path
    seed: int | None
    """None for a published model."""
    steps: tuple[str, ...]
    earlier_logs: dict[str, str]
    """Name of the log of each step before all runs, and what the table calls that step."""
    records: dict[str, dict[str, Any]]
    missing: dict[str, str]
    so_far: Sequence[Mapping[str, Any]] = ()
    """Scores of weights that its training kept on the way (runs/points.py), by their steps."""
    uses: Path | None = None
    """Folder of the run whose training it uses; None where it has its own."""

    @property
    def name(self) -> str:
        """What the names of its logs end with."""
        return f"{self.folder.parent.name}_{self.folder.name}"

    def folder_of(self, step: str) -> Path:
        """Where a step writes its record."""
        return self.uses if self.uses and step == "train" else self.folder

    def value(self, quantity: Quantity) -> float | None:
        """The recorded number; None where it is missing or undefined."""
        value: Any = self.records.get(quantity.step)
        for key in quantity.keys:
            value = None if value is None else value.get(key)
        return None if value is None else float(value)

    def interval(self, quantity: Quantity) -> tuple[float, float] | None:
        """The 95 % interval of a metric; None where scoring made none."""
        bounds: Any = self.records.get(quantity.step, {})
        for key in (*quantity.keys[:-2], "intervals", *quantity.keys[-2:]):
            bounds = bounds.get(key, {}) if isinstance(bounds, dict) else {}
        return (float(bounds[0]), float(bounds[1])) if bounds else None

    def file(self, kind: str) -> Path | str:
        """Path of the published ``model`` or ``log``, or why there is none."""
        if "train" in self.missing:
            return self.missing["train"]
        path = self.folder_of("train") / self.records["train"][f"{kind}_file"]
        return path if path.is_file() else f"missing file: {path.name}"


def read_run(study: Study, results: Path, row: str, seed: int) -> RunRecord:
    """The records of a trained run; the reason for the first missing one holds for all that follow."""
    folder, trained = (results / study.study / of / f"seed{seed}" for of in (row, study.trained_as(row)))
    earlier, uses = {step: step for step in SHARED_STEPS}, None if trained == folder else trained
    run = RunRecord(folder, seed, STEPS_OF_TRAINED, earlier, records={}, missing={}, uses=uses)
    return with_records(study.of_row(row), results, run)


def read_published(study: Study, results: Path, row: Published, model: ZooModel) -> RunRecord:
    """The records of a published model, as :func:`read_run`."""
    folder = results / study.study / "published" / row.model
    store = f"store_{row.split}"
    earlier = {"draw": "draw", store: store, f"fetch_{model.file_name}": "fetch"}
    return with_records(study, results, RunRecord(folder, None, STEPS_OF_PUBLISHED, earlier, records={}, missing={}))


def read_measured(study: Study, results: Path, run: RunRecord) -> RunRecord:
    """The measurement of the row whose first run is ``run``, in the form of a run."""
    step, of_model = "measure", run.steps[0]
    is_published = run.seed is None
    folder = run.folder if is_published else run.folder.parent
    error = last_error(results / study.study / "logs" / f"{step}_{run.name if is_published else folder.name}.log")
    record, reason = read_record(study, step, folder / RECORDS[step][0], run.records, error)
    reason = run.missing.get(of_model, reason)
    if not reason:
        # Measurements that do not say so are older; they timed the masks of the study's setting.
        record["inference"].setdefault("masks", study.inference.masks)
    return RunRecord(folder, run.seed, (step,), {}, {} if reason else {step: record}, {step: reason} if reason else {})


def other_work(speed: Mapping[str, Any]) -> str:
    """How much other work ran while a speed was measured; empty where too little to matter, or where nothing says so.

    Args:
        speed: the part of measure.json about inference.
    """
    cores, others, per_wall = speed.get("cores"), speed.get("other_cores"), speed.get("cpu_per_wall")
    found = []
    if cores and others is not None and others > MOST_OTHER_CORES * cores:
        found.append(f"other processes used {others:.1f} of {cores} cores")
    # A process that waits for a GPU need not compute.
    if speed.get("clock") == CPU_TIME and per_wall is not None and per_wall < LEAST_CPU_PER_WALL:
        found.append(f"the process had a core for {100 * per_wall:.0f} % of the time")
    return ", ".join(found)


def with_records(study: Study, results: Path, run: RunRecord) -> RunRecord:
    """``run``, filled step by step."""
    reason = ""
    for step in run.steps:
        if not reason:
            path = run.folder_of(step) / RECORDS[step][0]
            error = "" if path.exists() else failure(study, results, run, step)
            record, reason = read_record(study, step, path, run.records, error)
        if reason:
            run.missing[step] = reason
        else:
            run.records[step] = record
    return run


def read_record(
    study: Study, step: str, path: Path, earlier: Mapping[str, dict[str, Any]], error: str
) -> tuple[dict[str, Any], str]:
    """The record of a step at ``path``, and why it must not be shown; empty if it may.

    Args:
        study: the study as it is now.
        step: the step that writes the record.
        path: file of the record; if it is damaged, that is the reason and no error: the table can still be written.
        earlier: records of the steps before it.
        error: the error in the step's log; empty if there is none.
    """
    name, shape, not_begun = RECORDS[step]
    if not path.exists():
        return {}, f"{FAILED}{error}" if error else not_begun
    found = read_json_object(path, shape)
    if not found:
        return {}, UNREADABLE + name
    return found, outdated(study, step, found, earlier)


def read_json_object(path: Path, shape: Any) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, it is damaged, or not of ``shape``, a TypedDict."""
    try:
        return json_object(path.read_bytes(), shape)
    except (OSError, ValueError, RecursionError):
        return {}


def json_object(text: bytes, shape: Any) -> dict[str, Any]:
    """The JSON object in a text, with the keys that ``shape`` does not know.

    Raises:
        ValueError: it is no such object, or holds NaN or infinity.
        RecursionError: it is nested too deeply.
    """
    found = msgspec.json.decode(text, type=dict[str, Any])
    msgspec.convert(found, shape)
    return found


def read_log(path: Path, shape: Any = LogLine) -> list[dict[str, Any]]:
    """The undamaged lines of a training's log.json, of ``shape``; none where there is no file."""
    lines = []
    try:
        texts = path.read_bytes().splitlines()
    except OSError:
        return []
    for text in texts:
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json_object(text, shape))
    return lines


def outdated(study: Study, step: str, found: dict[str, Any], earlier: Mapping[str, dict[str, Any]]) -> str:
    """Why a record no longer belongs to the study or to the earlier records; empty if it does."""
    if settings_changed(study, step, found):
        return "outdated: the settings changed since"
    first, done = ("import", "imported") if "import" in earlier else ("train", "trained")
    model = earlier.get(first, {}).get("model_sha256")
    if step in ("infer", "measure") and found.get("model_sha256", model) != model:
        return f"outdated: {done} again since"
    return ""


def settings_changed(study: Study, step: str, found: dict[str, Any]) -> bool:
    """Whether a record was made with other settings than the study's; an import has no settings."""
    if step == "evaluate":
        wanted = study.evaluation.detections_per_image
        lacking = set(study.evaluation.protocols) - set(found.get("protocols", {}))
        return bool(lacking or found.get("detections_per_image", wanted) != wanted)
    if step not in SECTIONS_OF_STEP:
        return False
    return found.get("settings_digest", settings_digest(study, step)) not in digests_of(study, step)


def failure(study: Study, results: Path, run: RunRecord, step: str) -> str:
    """The error in the log of a step or of one before it that all runs share; empty if there is none."""
    logs, folder = results / study.study / "logs", run.folder_of(step)
    candidates = [("", logs / f"{step}_{folder.parent.name}_{folder.name}.log")]
    if step == run.steps[0]:
        candidates += [(f"{label}: ", logs / f"{log_name}.log") for log_name, label in run.earlier_logs.items()]
    if step == "infer" and study.inference.calibration:
        candidates.append(("calibrate: ", logs / "calibrate.log"))
    errors = ((prefix, last_error(path)) for prefix, path in candidates)
    return next((f"{prefix}{error}" for prefix, error in errors if error), "")


def last_error(log_file: Path) -> str:
    """The error in the last line of a step's log; empty if it has none, or a person interrupted the step."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    stamped = re.fullmatch(r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d )?error: (.*)", last.strip())
    if stamped is None or stamped[1] == "interrupted":
        return ""
    return re.split(r"; (?:allowed|fix|to mend): ", stamped[1])[0]


def images_seen_by_weights(study: Study, results: Path) -> int:
    """Validation images that the initial weights of a study's trainings were trained on, as preflight counted them."""
    page = read_json_object(results / study.study / "preflight.json", Preflight)
    seen: int = page.get("facts", {}).get(SEEN_BY_WEIGHTS, 0)
    return seen
