"""What a study still has to do: which runs start afresh, which go on from where, and what that costs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvis_rcnn.config import Study
from lvis_rcnn.files import read_json_lines
from lvis_rcnn.run_states import RunState

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
