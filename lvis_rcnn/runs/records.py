"""The runs of a study: what each has recorded, and why the rest is not there.

A record counts only while those of the steps before it stand, and while it agrees with the study file: a run that is
being repeated never shows the AP of the old one.
"""

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvis_rcnn.config.schema import Published
from lvis_rcnn.config.study import SECTIONS_OF_STEP, Study, settings_digest
from lvis_rcnn.config.zoo import ZooModel, initial_model
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.system.files import sha256_of_json

# Step -> the record it writes last, what the table needs of it, and what is said before the step has begun.
RECORDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": ("train.json", ("memory_gb", "model_file", "log_file"), "not started"),
    "import": ("import.json", ("file", "sha256", "model_sha256"), "not started"),
    "infer": ("inference.json", ("detections",), "waiting for inference"),
    "evaluate": ("metrics.json", ("bbox", "segm"), "waiting for scoring"),
    "measure": ("measure.json", ("device", "inference"), "waiting for the measurement"),
}
STEPS_OF_TRAINED = ("train", "infer", "evaluate")
STEPS_OF_PUBLISHED = ("import", "infer", "evaluate")
SHARED_STEPS = ("draw", "store_train", "store_val", "preflight", "repeat_factors")
SECONDS_TO_BE_DEAD = 300
REASON_CHARACTERS = 60


@dataclass(frozen=True)
class Measure:
    """One measured number of a run."""

    step: str
    """The step that measures it."""
    keys: tuple[str, ...]
    """The keys that lead to it in the step's record."""
    scale: float = 1
    """The table prints it times this."""


MEASURES = {
    "memory_gb": Measure("measure", ("training", "memory_gb")),
    "fps": Measure("measure", ("inference", "fps")),
    "images_seen": Measure("train", ("images_seen",)),
    "gpu_hours": Measure("train", ("cost", "gpu_hours")),
    "cpu_hours": Measure("train", ("cost", "cpu_hours")),
    **{f"box_{name}": Measure("evaluate", ("bbox", name), scale=100) for name in METRIC_NAMES},
    **{f"mask_{name}": Measure("evaluate", ("segm", name), scale=100) for name in METRIC_NAMES},
}


@dataclass(frozen=True)
class Run:
    """What is known of a backbone with a seed, or of a published model: each step's record, or why there is none."""

    folder: Path
    seed: int | None
    """None for a published model."""
    steps: tuple[str, ...]
    earlier_logs: dict[str, str]
    """Name of each log of what comes before ``steps``, and what the table calls it."""
    records: dict[str, dict[str, Any]]
    missing: dict[str, str]

    @property
    def name(self) -> str:
        """What logs of its steps end with."""
        return f"{self.folder.parent.name}_{self.folder.name}"

    def value(self, measure: Measure) -> float | None:
        """The measured number; None where it is missing or undefined."""
        value: Any = self.records.get(measure.step)
        for key in measure.keys:
            value = None if value is None else value.get(key)
        return None if value is None else float(value)

    def interval(self, measure: Measure) -> tuple[float, float] | None:
        """Bounds of the 95 % interval that scoring gives a metric; None where it gives none."""
        bounds: Any = self.records.get(measure.step, {}).get("intervals", {})
        for key in measure.keys:
            bounds = bounds.get(key, {}) if isinstance(bounds, dict) else {}
        return (float(bounds[0]), float(bounds[1])) if bounds else None

    def file(self, kind: str) -> Path | str:
        """Path of the published ``model`` or ``log``, or why there is none."""
        if "train" in self.missing:
            return self.missing["train"]
        path = self.folder / self.records["train"][f"{kind}_file"]
        return path if path.is_file() else f"missing file: {path.name}"


def read_run(study: Study, results: Path, backbone: str, seed: int, now_s: float) -> Run:
    """The records of a run that is trained; the first that is missing explains all that follow from it."""
    folder = results / study.study / backbone / f"seed{seed}"
    earlier = {step: step for step in SHARED_STEPS}
    return with_records(study, results, Run(folder, seed, STEPS_OF_TRAINED, earlier, records={}, missing={}), now_s)


def read_published(study: Study, results: Path, row: Published, model: ZooModel, now_s: float) -> Run:
    """:func:`read_run` of a published model."""
    folder = results / study.study / "published" / row.model
    store = f"store_{row.split}"
    earlier = {"draw": "draw", store: store, f"fetch_{model.file_name}": "fetch"}
    return with_records(study, results, Run(folder, None, STEPS_OF_PUBLISHED, earlier, records={}, missing={}), now_s)


def read_measured(study: Study, results: Path, run: Run) -> Run:
    """The measurement of the row whose first run is ``run``, in the form of a run."""
    step = "measure"
    folder = run.folder if run.seed is None else run.folder.parent
    measured = Run(folder, run.seed, (step,), {}, {}, {})
    record, reason = measurement(study, results, run, folder / RECORDS[step][0])
    if reason:
        measured.missing[step] = reason
    else:
        measured.records[step] = record
    return measured


def measurement(study: Study, results: Path, run: Run, path: Path) -> tuple[dict[str, Any], str]:
    """The record at ``path``, and why it must not be shown (empty if it may); that of ``run`` where it has no model."""
    step, of_model = "measure", run.steps[0]
    if of_model in run.missing:
        return {}, run.missing[of_model]
    if not path.exists():
        name = run.name if run.seed is None else run.folder.parent.name
        error = last_error(results / study.study / "logs" / f"{step}_{name}.log")
        return {}, shortened(f"failed: {error}") if error else RECORDS[step][2]
    found = read_json_object(path)
    if any(key not in found for key in RECORDS[step][1]):
        return {}, f"unreadable: {path.name}"
    return found, outdated(study, step, found, run.records)


def with_records(study: Study, results: Path, run: Run, now_s: float) -> Run:
    """``run``, filled step by step."""
    reason = ""
    for step in run.steps:
        if not reason:
            run.records[step], reason = read_step(study, results, run, step, now_s)
        if reason:
            run.records.pop(step, None)
            run.missing[step] = reason
    return run


def read_step(study: Study, results: Path, run: Run, step: str, now_s: float) -> tuple[dict[str, Any], str]:
    """A step's record, and why it must not be shown (empty if it may); a damaged one keeps the table writable."""
    name, needed, _ = RECORDS[step]
    path = run.folder / name
    if not path.exists():
        return {}, why_missing(study, results, run, step, now_s)
    found = read_json_object(path)
    absent = [key for key in needed if key not in found]
    if absent:
        return {}, f"unreadable: {name}"
    return found, outdated(study, step, found, run.records)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none to be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def outdated(study: Study, step: str, found: dict[str, Any], earlier: dict[str, dict[str, Any]]) -> str:
    """Why a record no longer belongs to this study or to the records before it; empty if it does."""
    if settings_changed(study, step, found):
        return "outdated: the settings changed since"
    first, done = ("import", "imported") if "import" in earlier else ("train", "trained")
    model = earlier.get(first, {}).get("model_sha256")
    if step in ("infer", "measure") and found.get("model_sha256", model) != model:
        return f"outdated: {done} again since"
    return ""


def settings_changed(study: Study, step: str, found: dict[str, Any]) -> bool:
    """Whether a record was made with other settings than the study's; an import has none."""
    if step == "evaluate":
        wanted = study.evaluation.detections_per_image
        return bool(found.get("detections_per_image", wanted) != wanted)
    if step not in SECTIONS_OF_STEP:
        return False
    wanted_digest = settings_digest(study, step)
    return bool(found.get("settings_digest", wanted_digest) != wanted_digest)


def why_missing(study: Study, results: Path, run: Run, step: str, now_s: float) -> str:
    """Why a step left no record: it runs, it or a step before all runs failed, it stopped, or its turn is to come."""
    progress = newest_progress(results, study.study, run) if step == "train" else {}
    percent = f"{100 * progress['step'] / progress['steps']:.0f} %" if progress else ""
    recent = bool(progress) and now_s - progress["updated_at"] < SECONDS_TO_BE_DEAD
    if progress.get("state") == "running" and recent and not died_here(progress):
        return f"running {percent}"
    error = failure(study, results, run, step) or progress.get("error", "")
    if error:
        return shortened(f"failed: {error}")
    return f"stopped at {percent}" if progress else RECORDS[step][2]


def failure(study: Study, results: Path, run: Run, step: str) -> str:
    """What the log of a step, or of one that comes before all runs, says went wrong; empty if nothing did."""
    logs = results / study.study / "logs"
    candidates = [("", logs / f"{step}_{run.name}.log")]
    if step == run.steps[0]:
        candidates += [(f"{label}: ", logs / f"{log_name}.log") for log_name, label in run.earlier_logs.items()]
    errors = ((prefix, last_error(path)) for prefix, path in candidates)
    return next((f"{prefix}{error}" for prefix, error in errors if error), "")


def died_here(progress: dict[str, Any]) -> bool:
    """Whether a heartbeat is of a process of this machine that is no more: a kill leaves no word."""
    if progress.get("host") != socket.gethostname() or "pid" not in progress:
        return False
    try:
        os.kill(progress["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # alive, and another user's
    return False


def newest_progress(results: Path, study: str, run: Run) -> dict[str, Any]:
    """The latest heartbeat of a training run, whichever settings it runs under; empty where there is none."""
    folder = results / "state" / study / run.folder.parent.name / run.folder.name
    found = [read_json_object(path) for path in folder.glob("*/progress.json")]
    whole = [progress for progress in found if {"step", "steps", "updated_at"} <= set(progress)]
    return max(whole, key=lambda progress: float(progress["updated_at"]), default={})


def last_error(log_file: Path) -> str:
    """What a step's log says went wrong, if its last line says so; empty otherwise, and if a person stopped it."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    stamped = re.fullmatch(r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d )?error: (.*)", last.strip())
    if stamped is None or stamped[1] == "interrupted":
        return ""
    return re.split(r"; (?:allowed|fix|to mend): ", stamped[1])[0]


def shortened(reason: str) -> str:
    """A reason that fits a cell."""
    text = " ".join(reason.split())
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1].rstrip() + "…"


# Raised when a change of the code changes the weights that a run ends with: older state is then not resumed.
TRAINER_REVISION = 3


def run_digest(study: Study, backbone: str, seed: int, annotations_sha256: str, zoo: Mapping[str, ZooModel]) -> str:
    """Hex SHA-256 of everything that changes the model that a run ends with."""
    kind = study.model.weights
    return sha256_of_json(
        {
            "revision": TRAINER_REVISION,
            "settings": settings_digest(study, "train"),
            "backbone": backbone,
            "seed": seed,
            "annotations": annotations_sha256,
            # Its name carries the file's digest.
            "initial_weights": None if kind == "none" else initial_model(zoo, kind, backbone).file_name,
        }
    )


def state_folder_name(digest: str) -> str:
    """Name of the state folder of a run; another recipe, dataset or seed never meets its checkpoints."""
    return digest[:12]
