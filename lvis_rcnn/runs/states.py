"""The state of each run of a study, and the work left, from the files that it writes; takes no lock.

This is the one place that decides whether a run is alive; the results table and ``status`` both ask it. It judges by
the heartbeat that a training writes (training/log.py). Two other questions are not this one: whether a trainer may take
a state folder (runs/lease.py, where the holder must not be mistaken), and whether a process of the same training still
answers (training/distributed.py).
"""

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study, settings_digest
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.runs.identity import identities, own_identity
from lvis_rcnn.runs.inference import START, inferred
from lvis_rcnn.runs.paths import CHECKED, name_end, state_of_run
from lvis_rcnn.runs.points import SO_FAR, read_so_far
from lvis_rcnn.runs.price import DEVICES, step_flops
from lvis_rcnn.runs.records import (
    FAILED,
    RECORDS,
    UNREADABLE,
    RunRecord,
    failure,
    read_json_object,
    read_log,
    read_measured,
    read_published,
    read_run,
)
from lvis_rcnn.runs.shapes import Heartbeat, InferenceStart, Preflight, Store
from lvis_rcnn.system.cli import duration
from lvis_rcnn.system.files import modified_at
from lvis_rcnn.system.machine import ENDED, start_ticks

# The states of a run, in the order in which a summary counts them.
STATES = ("done", "trained", "running", "stalled", "stopped", "failed", "not started")

# A run is stalled without a heartbeat for so long, or for the time of so many steps if that is longer.
SECONDS_TO_STALL = 180.0
STEPS_TO_STALL = 3


@dataclass(frozen=True)
class RunState:
    """The state of one run of a study."""

    run: RunRecord
    row: str
    """Name of a trained row, or of a published model."""
    state: str
    """One of ``STATES``; "trained" runs are not scored yet."""
    reason: str = ""
    """Why, or what the run waits for; may be empty."""
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    """As ``training.log.write_heartbeat`` writes it; empty where there is none."""
    state_dir: Path | None = None
    """Folder of the heartbeat."""
    older: tuple[Path, ...] = ()
    """State folders of the same row and seed with other settings, data or code."""
    is_unmeasured: bool = False
    """Whether the row is measured on this run, and memory and speed are still missing."""

    @property
    def name(self) -> str:
        """Name of the run, for a person."""
        return self.row if self.run.seed is None else f"{self.row} seed {self.run.seed}"

    @property
    def is_trained(self) -> bool:
        """Whether it has nothing left to train, as a published model and what uses another row's training."""
        return self.run.seed is None or self.run.uses is not None or has_model(self.run, self.heartbeat)

    @property
    def steps(self) -> int | None:
        """Steps of the whole training; None where neither heartbeat nor record tells."""
        steps = self.heartbeat.get("steps", self.run.records.get("train", {}).get("steps"))
        return steps if isinstance(steps, int) else None


def states_of(
    study: Study, results: Path, scored: Mapping[str, ZooModel], zoo: Mapping[str, ZooModel]
) -> list[RunState]:
    """The state of every run of a study, in its order.

    Args:
        study: what should be run.
        results: folder that all steps write into.
        scored: the published models that it scores, by name.
        zoo: the published models that trainings begin with.
    """
    states = [state_of(study, results, row, seed, zoo) for row in study.trained_rows for seed in study.seeds]
    for row in study.published:
        run = read_published(study, results, row, scored[row.model])
        states.append(RunState(run, row.model, *what_it_does(study, results, run, None, {})))
    own = {row: study.of_row(row) for row in study.trained_rows}
    return [
        replace(state, is_unmeasured=is_unmeasured(own.get(state.row, study), results, state.run)) for state in states
    ]


def is_unmeasured(study: Study, results: Path, run: RunRecord) -> bool:
    """Whether a row waits for memory and speed of this run, its first; other seeds are not measured."""
    is_first = run.seed in (None, *study.seeds[:1])
    return is_first and bool(read_measured(study, results, run).missing)


def state_of(study: Study, results: Path, row: str, seed: int, zoo: Mapping[str, ZooModel]) -> RunState:
    """The state of a trained run; its record says for the table what is missing because of it."""
    run = read_run(study, results, row, seed)
    state_dir, older = (None, ()) if run.uses else state_dirs(study, results, row, seed, zoo)
    heartbeat = read_heartbeat(state_dir) if state_dir else {}
    state, reason = what_it_does(study.of_row(row), results, run, state_dir, heartbeat)
    if state_dir and not (run.folder / RECORDS["train"][0]).exists():
        run = replace(run, missing=dict.fromkeys(run.missing, cell_text(state, reason, heartbeat)))
    digest = state_dir.name if state_dir else run.records.get("train", {}).get("run_digest", "")
    run = replace(run, so_far=read_so_far(run.folder, digest, study.of_row(row)))
    return RunState(run, row, state, reason, heartbeat, state_dir, older)


def cell_text(state: str, reason: str, heartbeat: Mapping[str, Any]) -> str:
    """The state of a run without a model, for a cell of the table."""
    if state == "failed":
        return f"{FAILED}{reason}"
    if state == "trained":
        return reason
    percent = f" {100 * heartbeat['step'] / heartbeat['steps']:.0f} %" if heartbeat else ""
    return f"running{percent}" if state == "running" else f"{state} at{percent}" if percent else state


def state_dirs(
    study: Study, results: Path, row: str, seed: int, zoo: Mapping[str, ZooModel]
) -> tuple[Path | None, tuple[Path, ...]]:
    """The state folder of a run, None where it has none, and those of other settings, data or code.

    Without the store of annotations the run's own is unknown; then it is the last that was written undamaged.
    """
    folder = state_of_run(results, study, f"{row}/seed{seed}")
    heartbeats = sorted(folder.glob("*/progress.json"), key=modified_at)
    found = [file.parent for file in heartbeats]
    annotations = read_json_object(results / study.study / "data" / "train.store" / "store.json", Store)
    own = next((one for one in reversed(found) if read_heartbeat(one)), found[-1] if found else None)
    if "annotations_sha256" in annotations:
        own_study, backbone = study.of_row(row), study.backbone_of(row)
        known = identities(own_study, backbone, seed, annotations["annotations_sha256"], zoo)
        named = folder / own_identity(folder, known).folder_name
        own = named if named in found else None
    return own, tuple(one for one in found if one != own)


def read_heartbeat(state_dir: Path) -> dict[str, Any]:
    """The heartbeat in a state folder; empty where there is none, or it is damaged."""
    found = read_json_object(state_dir / "progress.json", Heartbeat)
    return found if {"step", "steps"} <= found.keys() else {}


def running(study: Study, results: Path, zoo: Mapping[str, ZooModel]) -> dict[str, dict[str, Any]]:
    """The heartbeats of the trainings of a study that run now, by the names of their runs."""
    found = {}
    for name in study.rows_to_train:
        for seed in study.seeds:
            state_dir, _ = state_dirs(study, results, name, seed, zoo)
            heartbeat = read_heartbeat(state_dir) if state_dir else {}
            if state_dir and heartbeat and heartbeat_state(state_dir, heartbeat)[0] == "running":
                found[f"{name} seed {seed}"] = heartbeat
    return found


def what_it_does(
    study: Study, results: Path, run: RunRecord, state_dir: Path | None, heartbeat: Mapping[str, Any]
) -> tuple[str, str]:
    """State and reason of a run: from its records first, then from its heartbeat, then from its logs."""
    if has_model(run, heartbeat):
        late = [step for step in ("infer", "evaluate") if step in run.missing]
        if not late:
            return "done", ""
        error = failure(study, results, run, late[0])
        waits = inference_progress(study, results, run) if late[0] == "infer" else ""
        if run.missing[late[0]].startswith(UNREADABLE):  # Snakemake sees that the file is there, and is content
            waits = f"{run.missing[late[0]]}; delete it, and start Snakemake again"
        return ("failed", f"{late[0]}: {error}") if error else ("trained", waits or RECORDS[late[0]][2])
    state, reason = heartbeat_state(state_dir, heartbeat) if state_dir else ("not started", "")
    error = "" if state in ("running", "failed") else failure(study, results, run, run.steps[0])
    return ("failed", error) if error else (state, reason)


def inference_progress(study: Study, results: Path, run: RunRecord) -> str:
    """How far the inference of a run is, for a person; empty before it has begun for this model and these settings."""
    folder = state_of_run(results, study, str(run.folder.relative_to(results / study.study)))
    wanted = {"settings_digest": settings_digest(study, "infer")}
    wanted["model_sha256"] = run.records.get(run.steps[0], {}).get("model_sha256", "")
    for state_dir in folder.glob("infer-*"):
        start = read_json_object(state_dir / START, InferenceStart)
        if wanted.items() <= start.items():
            now = inferred(state_dir)
            silent_s = age_s(state_dir, now.written_s)
            if has_died(start.get("host", ""), start.get("pid", 0)):
                return f"inference stopped at {now.position}"
            if silent_s > max(SECONDS_TO_STALL, STEPS_TO_STALL / (now.images_per_s or 1)):
                return f"inference stalled at {now.position}: nothing saved for {duration(silent_s)}"
            return f"inferring {now}"
    return ""


def has_model(run: RunRecord, heartbeat: Mapping[str, Any]) -> bool:
    """Whether nothing of a run is left to train; its model may still have to be written to its final place."""
    return not {"train", "import"}.isdisjoint(run.records) or heartbeat.get("state") == "done"


def heartbeat_state(state_dir: Path, heartbeat: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason of a training by its heartbeat: the one rule for whether it is alive."""
    state = heartbeat.get("state")
    if state == "failed":
        return "failed", str(heartbeat.get("error", "unknown error"))
    if state != "running":
        return "stopped", ""
    if "pid" in heartbeat and has_died(heartbeat.get("host", ""), heartbeat["pid"]):
        return "stopped", "killed"
    silent_s = age_s(state_dir, modified_at(state_dir / "progress.json"))
    if silent_s > seconds_to_stall(heartbeat):
        return "stalled", f"no heartbeat for {duration(silent_s)}"
    return "running", ""


def has_died(host: str, pid: int) -> bool:
    """Whether a process has certainly ended; never of one on another host, about which nothing is known here."""
    return host == socket.gethostname() and start_ticks(pid) == ENDED


def seconds_to_stall(heartbeat: Mapping[str, Any]) -> float:
    """Seconds of silence after which a run is stalled; there is no heartbeat during a step, which may take minutes."""
    eta_s, steps_left = heartbeat.get("eta_s") or 0.0, heartbeat["steps"] - heartbeat["step"]
    return max(SECONDS_TO_STALL, STEPS_TO_STALL * float(eta_s) / steps_left if steps_left else 0.0)


def age_s(folder: Path, written_s: float) -> float:
    """Seconds since a file of a folder was written, by the clock of its disk, so that clocks of hosts need not agree.

    A temporary file beside it tells that clock; without permission to write one, the own clock is taken.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            now_s = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now_s = time.time()
    return abs(now_s - written_s)  # of the future if that clock was set back: no sign of life either


MEASURED_LINES = 50  # the last lines of a log


@dataclass(frozen=True)
class Pace:
    """How long a step takes."""

    seconds_per_step: float
    ranks: int
    """Processes that were measured."""
    basis: str
    """What it is from, for a person."""
    is_estimated: bool = False
    """Whether no run of the row has logged a step: it follows from arithmetic (runs/price.py)."""


@dataclass(frozen=True)
class Work:
    """The work that is left of one run."""

    state: RunState
    first_step: int
    """Steps that need not be repeated."""
    steps: int | None
    """Steps of the whole training; None where unknown."""
    pace: Pace | None
    """None of a published model."""
    is_untracked: bool = False
    """Whether its kept weights are still to be scored."""

    @property
    def training(self) -> str:
        """What training is left, for a person."""
        if self.state.run.uses:
            return f"that of {self.state.run.uses.parent.name}"
        if self.state.is_trained:
            return "is done"
        if self.state.state == "running":
            return f"runs, at step {self.first_step} of {self.steps}"
        if self.first_step:
            return f"resumes from step {self.first_step} of {self.steps}"
        return "fresh" if self.steps is None else f"fresh, {self.steps} steps"

    @property
    def seconds(self) -> float | None:
        """Expected time of the steps that are left; None where unknown."""
        if self.state.is_trained:
            return 0.0
        if self.pace is None or self.steps is None:
            return None
        return (self.steps - self.first_step) * self.pace.seconds_per_step

    @property
    def then(self) -> list[str]:
        """The later steps that have no output yet."""
        scored = [step for step in self.state.run.missing if step != "train"]
        return ["track"] * self.is_untracked + scored + ["measure"] * self.state.is_unmeasured


def work_left(study: Study, states: Sequence[RunState]) -> list[Work]:
    """The work of each run that has any left, in the order of ``states``."""
    works = [work_of(study, state, states) for state in states]
    return [work for work in works if work.state.state != "done" or work.state.is_unmeasured or work.is_untracked]


def work_of(study: Study, state: RunState, states: Sequence[RunState]) -> Work:
    """The work that is left of one run."""
    step = state.heartbeat.get("step", 0)
    # A killed run repeats the steps after its last checkpoint.
    first_step = step if state.state == "running" else state.heartbeat.get("saved_step", step)
    own = study.of_row(state.row).schedule if state.row in study.trained_rows else None
    known = [state.steps, own.steps if own else None, *(other.steps for other in states)]
    steps = next((steps for steps in (*known, steps_by_preflight(study, state)) if steps is not None), None)
    if state.run.seed is None:
        return Work(state, first_step, steps, pace=None)
    keeps_weights = study.evaluation.scores_on_the_way and not state.run.uses
    # While it is trained, track writes the file after each point, and again at the end.
    is_untracked = keeps_weights and not (state.is_trained and (state.run.folder / SO_FAR).exists())
    return Work(state, first_step, steps, pace_of(study, state, states), is_untracked)


def steps_by_preflight(study: Study, state: RunState) -> int | None:
    """Steps of a training of its row as preflight counted them; None before it has."""
    if state.row not in study.trained_rows:
        return None
    name = f"preflight{name_end(study, state.row, CHECKED)}.json"
    facts = read_json_object(state.run.folder.parents[1] / name, Preflight).get("facts", {})
    steps: int | None = facts.get("schedule", {}).get("steps")
    return steps


def pace_of(study: Study, state: RunState, states: Sequence[RunState]) -> Pace:
    """The pace of the run itself, else of another seed, else an estimate from another row or from a device."""
    trained = sorted(
        (one for one in states if one.run.seed is not None),
        key=lambda one: (one is not state, one.row != state.row),
    )
    for one in trained:
        is_own, is_alike = one is state, one.row == state.row
        name = "its own log" if is_own else f"seed {one.run.seed}" if is_alike else f"estimated from {one.row}"
        if pace := pace_in(one, name):
            times = flops_of(study, state.row) / flops_of(study, one.row)
            return replace(pace, seconds_per_step=times * pace.seconds_per_step, is_estimated=not is_alike)
    asked, device = study.asked(study.backbone_of(state.row)), DEVICES[study.compute.device]
    ranks = (asked.gpus or 1) * (asked.nodes or 1)
    processors = ranks if study.compute.device == "cuda" else study.compute.threads
    seconds = flops_of(study, state.row) / device.flops_per_s / processors
    return Pace(seconds, ranks, f"estimated, {device.name}", is_estimated=True)


def flops_of(study: Study, row: str) -> float:
    """Arithmetic of a training step of a row."""
    return step_flops(study.of_row(row), study.backbone_of(row))


def pace_in(state: RunState, basis: str) -> Pace | None:
    """Median of the last lines of a run's log; None where there is no log of these settings."""
    folder: Path | None = state.state_dir
    if folder is None and "train" in state.run.records:
        folder = state.run.folder  # the state was deleted, the results were not
    lines = read_log(folder / "log.json")[-MEASURED_LINES:] if folder else []
    times = [line["time"] for line in lines if "time" in line]
    if not times:
        return None
    return Pace(statistics.median(times), state.heartbeat.get("ranks", 1), basis)


def processor_hours(study: Study, work: Work) -> float | None:
    """Expected GPU-hours, or core-hours on CPUs, of the steps that are left; None where unknown."""
    if work.seconds is None:
        return None
    ranks = work.pace.ranks if work.pace else 1
    return work.seconds / 3600 * ranks * (1 if study.compute.device == "cuda" else study.compute.threads)
