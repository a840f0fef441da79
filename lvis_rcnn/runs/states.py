"""How far each run of a study is, from the files that it leaves: while it runs, and after it died. Takes no lock."""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.runs.records import (
    RECORDS,
    Run,
    died_here,
    failure,
    read_json_object,
    read_measured,
    read_published,
    read_run,
    run_digest,
    state_folder_name,
)
from lvis_rcnn.system.cli import duration
from lvis_rcnn.system.files import read_json_lines

# What a run can be, in the order in which a summary counts.
STATES = ("done", "trained", "running", "stalled", "stopped", "failed", "not started")

# Without a heartbeat for so long a run is stalled, or for so many of its steps where these take longer.
SECONDS_TO_STALL = 180.0
STEPS_TO_STALL = 3


@dataclass(frozen=True)
class RunState:
    """Where one run of a study is."""

    run: Run
    backbone: str
    """Row of ``config.schema.BACKBONES``, or name of a published model."""
    state: str
    """One of ``STATES``; trained: but not scored yet."""
    reason: str = ""
    """More about it, where there is more to say."""
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    """As ``training_log.write_heartbeat``; empty where there is none."""
    state_dir: Path | None = None
    """Where the heartbeat lies."""
    older: tuple[Path, ...] = ()
    """State folders of the same backbone and seed with other settings, data or code."""
    is_unmeasured: bool = False
    """Whether it is the run that its row is measured on, and memory and speed are still missing."""

    @property
    def name(self) -> str:
        """For a person."""
        return self.backbone if self.run.seed is None else f"{self.backbone} seed {self.run.seed}"

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train; a published model never was ours to train."""
        return self.run.seed is None or has_model(self.run, self.heartbeat)

    @property
    def steps(self) -> int | None:
        """Of the whole training, where a heartbeat or a record says."""
        steps = self.heartbeat.get("steps", self.run.records.get("train", {}).get("steps"))
        return steps if isinstance(steps, int) else None


def states_of(
    study: Study, results: Path, scored: Mapping[str, ZooModel], zoo: Mapping[str, ZooModel]
) -> list[RunState]:
    """Every run of a study, in its order.

    Args:
        study: what should be run.
        results: folder that all steps write into.
        scored: the published models that it scores, by name.
        zoo: where initial weights come from.
    """
    trained = [state_of(study, results, name, seed, zoo) for name in study.backbones for seed in study.seeds]
    published = []
    for row in study.published:
        run = read_published(study, results, row, scored[row.model], time.time())
        published.append(RunState(run, row.model, *state_of_published(study, results, run)))
    return [replace(state, is_unmeasured=is_unmeasured(study, results, state.run)) for state in trained + published]


def is_unmeasured(study: Study, results: Path, run: Run) -> bool:
    """Whether a row waits for memory and speed of this run, its first; other seeds are not measured."""
    is_first = run.seed in (None, *study.seeds[:1])
    return is_first and bool(read_measured(study, results, run).missing)


def state_of_published(study: Study, results: Path, run: Run) -> tuple[str, str]:
    """State and reason of a published model that is scored here."""
    if "import" not in run.missing:
        return state_of_scoring(study, results, run)
    error = failure(study, results, run, "import")
    return ("failed", error) if error else ("not started", "")


def state_of_scoring(study: Study, results: Path, run: Run) -> tuple[str, str]:
    """State and reason of a run whose model is there."""
    late = [step for step in ("infer", "evaluate") if step in run.missing]
    if not late:
        return "done", ""
    error = failure(study, results, run, late[0])
    return ("failed", f"{late[0]}: {error}") if error else ("trained", RECORDS[late[0]][2])


def state_of(study: Study, results: Path, backbone: str, seed: int, zoo: Mapping[str, ZooModel]) -> RunState:
    """Where a run that is trained is."""
    run = read_run(study, results, backbone, seed, time.time())
    state_dir, older = state_dirs(study, results, backbone, seed, zoo)
    heartbeat = read_heartbeat(state_dir) if state_dir else {}
    state, reason = what_it_does(study, results, run, state_dir, heartbeat)
    return RunState(run, backbone, state, reason, heartbeat, state_dir, older)


def state_dirs(
    study: Study, results: Path, backbone: str, seed: int, zoo: Mapping[str, ZooModel]
) -> tuple[Path | None, tuple[Path, ...]]:
    """The state folder of a run, None where it has none, and those of other settings, data or code.

    Without the store of annotations nobody can tell which is the run's: then it is the one written last.
    """
    folder = results / "state" / study.study / backbone / f"seed{seed}"
    heartbeats = sorted(folder.glob("*/progress.json"), key=lambda file: file.stat().st_mtime)
    found = [file.parent for file in heartbeats]
    annotations = read_json_object(results / study.study / "data" / "train.store" / "store.json")
    own = found[-1] if found else None
    if "annotations_sha256" in annotations:
        digest = run_digest(study, backbone, seed, annotations["annotations_sha256"], zoo)
        named = folder / state_folder_name(digest)
        own = named if named in found else None
    return own, tuple(one for one in found if one != own)


def read_heartbeat(state_dir: Path) -> dict[str, Any]:
    """The heartbeat in a state folder; empty where there is none, or no whole one."""
    found = read_json_object(state_dir / "progress.json")
    return found if all(isinstance(found.get(key), int) for key in ("step", "steps")) else {}


def what_it_does(
    study: Study, results: Path, run: Run, state_dir: Path | None, heartbeat: Mapping[str, Any]
) -> tuple[str, str]:
    """State and reason of a run that is trained: its records count most, then its heartbeat, then its log."""
    if has_model(run, heartbeat):
        return state_of_scoring(study, results, run)
    state, reason = said_by(state_dir, heartbeat) if state_dir else ("not started", "")
    if state in ("running", "failed"):
        return state, reason
    error = failure(study, results, run, "train")
    return ("failed", error) if error else (state, reason)


def has_model(run: Run, heartbeat: Mapping[str, Any]) -> bool:
    """Whether nothing of a run is left to train; its results may still have to be put where the workflow looks."""
    return not {"train", "import"}.isdisjoint(run.records) or heartbeat.get("state") == "done"


def said_by(state_dir: Path, heartbeat: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason that a heartbeat tells, or its silence."""
    said = heartbeat.get("state")
    if said == "failed":
        return "failed", str(heartbeat.get("error", "unknown error"))
    if said != "running":
        return "stopped", ""
    if died_here(dict(heartbeat)):
        return "stopped", "killed"
    silent_s = age_s(state_dir / "progress.json")
    if silent_s > seconds_to_stall(heartbeat):
        return "stalled", f"no heartbeat for {duration(silent_s)}"
    return "running", ""


def seconds_to_stall(heartbeat: Mapping[str, Any]) -> float:
    """A step of LVIS takes minutes on a CPU, and the trainer says nothing during one."""
    eta_s, steps_left = heartbeat.get("eta_s") or 0.0, heartbeat["steps"] - heartbeat["step"]
    return max(SECONDS_TO_STALL, STEPS_TO_STALL * float(eta_s) / steps_left if steps_left else 0.0)


def age_s(file: Path) -> float:
    """Seconds since a file was written, by the clock that stamped it: that of its file system, whoever wrote it.

    A file made beside it tells that clock, so that those of hosts need not agree; an onlooker that may not write there
    takes its own.
    """
    try:
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            now_s = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now_s = time.time()
    return max(now_s - file.stat().st_mtime, 0.0)


MEASURED_LINES = 50  # of a log, the last ones


@dataclass(frozen=True)
class Pace:
    """How long a step takes."""

    seconds_per_step: float
    ranks: int
    """Processes that were measured."""
    measured_on: str
    """For a person: whose log it is from."""


@dataclass(frozen=True)
class Work:
    """What is left of one run."""

    state: RunState
    first_step: int
    """Steps that need not be taken again."""
    steps: int | None
    """Of the whole training; None where nothing says."""
    pace: Pace | None
    """None where no run of this backbone has been measured."""

    @property
    def training(self) -> str:
        """What the trainer would do, for a person."""
        if self.state.is_trained:
            return "is done"
        if self.state.state == "running":
            return f"runs, at step {self.first_step} of {self.steps}"
        if self.first_step:
            return f"resumes from step {self.first_step} of {self.steps}"
        return "fresh" if self.steps is None else f"fresh, {self.steps} steps"

    @property
    def seconds(self) -> float | None:
        """Expected time of the steps that are left; None where it is unknown."""
        if self.state.is_trained:
            return 0.0
        if self.pace is None or self.steps is None:
            return None
        return (self.steps - self.first_step) * self.pace.seconds_per_step

    @property
    def then(self) -> list[str]:
        """Later steps that lack their output."""
        scored = [step for step in self.state.run.missing if step != "train"]
        return scored + (["measure"] if self.state.is_unmeasured else [])


def work_left(study: Study, states: Sequence[RunState]) -> list[Work]:
    """What is left of each run that has something left, in the order of ``states``."""
    return [work_of(study, state, states) for state in states if state.state != "done" or state.is_unmeasured]


def work_of(study: Study, state: RunState, states: Sequence[RunState]) -> Work:
    """What is left of one run."""
    step = state.heartbeat.get("step", 0)
    # What a killed run did after its last checkpoint is done again.
    first_step = step if state.state == "running" else state.heartbeat.get("saved_step", step)
    known = [state.steps, study.schedule.steps if study.schedule else None, *(other.steps for other in states)]
    steps = next((steps for steps in known if steps is not None), None)
    return Work(state, first_step, steps, pace_of(state, states))


def pace_of(state: RunState, states: Sequence[RunState]) -> Pace | None:
    """Measured by the run itself, or by another seed of its backbone."""
    others = [other for other in states if other.backbone == state.backbone and other is not state]
    found = (pace_in(one, "its own log" if one is state else f"seed {one.run.seed}") for one in (state, *others))
    return next(filter(None, found), None)


def pace_in(state: RunState, measured_on: str) -> Pace | None:
    """Median of the last lines of a run's log; None where there is none of these settings."""
    folder: Path | None = state.state_dir
    if folder is None and "train" in state.run.records:
        folder = state.run.folder  # the state was deleted, what the run left was not
    lines = read_json_lines(folder / "log.json")[-MEASURED_LINES:] if folder else []
    if not lines:
        return None
    seconds = statistics.median(line["time"] for line in lines)
    return Pace(seconds, state.heartbeat.get("ranks", 1), measured_on)


def processor_hours(study: Study, work: Work) -> float | None:
    """Expected GPU-hours, or core-hours on CPUs, of the steps that are left; None where it is unknown."""
    if work.seconds is None:
        return None
    ranks = work.pace.ranks if work.pace else 1
    return work.seconds / 3600 * ranks * (1 if study.compute.device == "cuda" else study.compute.threads)
