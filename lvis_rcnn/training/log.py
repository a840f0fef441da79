"""What a run reports while it trains: progress, log.json, the heartbeat for table and status, event files."""

import contextlib
import json
import math
import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.runs.records import read_log
from lvis_rcnn.runs.shapes import WrittenLine
from lvis_rcnn.system.cli import duration, log, rate
from lvis_rcnn.system.files import atomic_file, write_json
from lvis_rcnn.training.solver import Recipe

# A loss is a spike if it is more than SPIKE_FACTOR times the median of the last SPIKE_LINES lines, at least
# FEWEST_SPIKE_LINES. A median, since one spike must not hide the next.
SPIKE_FACTOR = 3.0
SPIKE_LINES = 50
FEWEST_SPIKE_LINES = 10

# A run counts as stalled after minutes without a heartbeat, so that some may be lost.
SECONDS_BETWEEN_HEARTBEATS = 30.0


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    elapsed_s: float = 0.0
    """Seconds of these steps, over all attempts."""
    peak_memory_bytes: int = 0
    """Largest memory of any attempt."""
    attempts: int = 1
    """Starts so far."""
    attempt_from: tuple[int, float] = (0, 0.0)
    """``step`` and ``elapsed_s`` at the beginning of this attempt."""
    ranks: int = 1
    """Processes of this attempt."""
    passes: str = ""
    """How the groups of a step pass through the network, in this attempt."""
    saved_step: int = 0
    """Steps done in the newest checkpoint."""
    loss: float | None = None
    """Total loss of the last step."""
    initial_weights: str = ""
    """Which weights the first start began with."""
    started_at: float = field(default_factory=time.time)
    """Unix seconds of the first start."""
    unlogged: list[dict[str, float]] = field(default_factory=list)
    """Losses and times of the steps since the last line of the log."""
    broken_images: list[str] = field(default_factory=list)
    """Errors of the images that this process skipped."""
    skipped_images: int = 0
    """How often a broken image was replaced by another, in all processes."""

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the steps of this attempt; None before its first."""
        step, elapsed_s = self.attempt_from
        return (self.elapsed_s - elapsed_s) / (self.step - step) if self.step > step else None

    def count_attempt(self, attempts: int, ranks: int = 1) -> None:
        """This is attempt number ``attempts``, of ``ranks`` processes; its speed is measured from here."""
        self.attempts, self.ranks, self.attempt_from = attempts, ranks, (self.step, self.elapsed_s)

    def add_step(self, values: dict[str, float]) -> None:
        """Count a step.

        Args:
            values: each ``loss_…``, ``time`` and ``data_time`` in seconds, and ``grad_norm`` if it is known.
        """
        self.step += 1
        self.elapsed_s += values["time"]
        self.loss = total_loss(values)
        self.unlogged.append(values)


def total_loss(values: Mapping[str, float]) -> float:
    """Sum of the losses among the values of a step."""
    return sum(value for name, value in values.items() if name.startswith("loss_"))


class TrainingLog:
    """One JSON line per logged step, with MMDetection 2.x's keys; losses and times are means since the last line.

    Further keys are ``step``, ``images_seen``, ``images_per_s``, ``eta_s`` (at the mean speed of this attempt),
    ``written_at`` (Unix seconds), ``grad_norm`` and ``grad_norm_max``; ``skipped_images`` after broken images; and
    ``loss_spike: true`` if the total loss of a step since the last line was a spike: more than ``SPIKE_FACTOR`` times
    the median ``loss`` of the last ``SPIKE_LINES`` lines. All keys but ``time``, ``data_time``, ``memory``,
    ``images_per_s``, ``eta_s`` and ``written_at`` are the same when a run is repeated.
    """

    def __init__(self, path: Path, recipe: Recipe, steps_done: int) -> None:
        self.path = path
        self.recipe = recipe
        kept = keep_lines_until(path, steps_done)
        self.losses = deque([line["loss"] for line in kept[-SPIKE_LINES:]], maxlen=SPIKE_LINES)

    def write(self, progress: Progress) -> dict[str, Any]:
        """Write a line of the steps since the last one, at least one; warn of a spike.

        If it cannot be written, as on a full disk, that is a warning, and the next line includes these steps.
        """
        line = self.line(progress)
        if "loss_spike" in line:
            totals = [total_loss(values) for values in progress.unlogged]
            step, times = progress.step - len(totals) + 1 + totals.index(max(totals)), max(totals) / self.median
            log.warning("warning: loss spike at step %d: %.3f, %.1f times the recent median", step, max(totals), times)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("warning: %s cannot be written: %s", self.path, error.strerror)
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            return line
        self.losses.append(line["loss"])
        progress.unlogged.clear()
        return line

    def line(self, progress: Progress) -> dict[str, Any]:
        """The line of the last step; epoch and iter count from 1, memory is in MiB."""
        window = progress.unlogged
        means = {name: statistics.fmean(values_of(window, name)) for name in window[-1]}
        losses = {name: round(value, 5) for name, value in means.items() if name.startswith("loss_")}
        stream = self.recipe.stream
        epoch = stream.epoch_of_step(progress.step - 1)
        return {
            "mode": "train",
            "epoch": epoch + 1,
            "iter": progress.step - stream.steps_before_epoch(epoch),
            "lr": self.recipe.learning_rate(progress.step - 1),
            "memory": progress.peak_memory_bytes // 2**20,
            "data_time": round(means["data_time"], 5),
            **losses,
            "loss": round(sum(losses.values()), 5),
            "time": round(means["time"], 5),
            "step": progress.step,
            "images_seen": stream.images_before_step(progress.step),
            **speed(self.recipe, progress, len(window), sum(values_of(window, "time"))),
            "written_at": round(time.time(), 2),
            **gradient_norms(window),
            **({"skipped_images": progress.skipped_images} if progress.skipped_images else {}),
            **({"loss_spike": True} if 0 < SPIKE_FACTOR * self.median < max(map(total_loss, window)) else {}),
        }

    @property
    def median(self) -> float:
        """Of the losses of the last lines; 0 while they are too few to call anything a spike."""
        return statistics.median(self.losses) if len(self.losses) >= FEWEST_SPIKE_LINES else 0.0


def values_of(window: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The values called ``name``, of the steps that have one."""
    return [values[name] for values in window if name in values]


def speed(recipe: Recipe, progress: Progress, steps: int, seconds: float) -> dict[str, float | None]:
    """``images_per_s`` of the last ``steps``, which took ``seconds``; ``eta_s`` at the mean speed of this attempt."""
    before = recipe.stream.images_before_step(progress.step - steps)
    images = recipe.stream.images_before_step(progress.step) - before
    per_step = progress.seconds_per_step
    return {
        "images_per_s": round(images / seconds, 3) if seconds > 0 else None,
        "eta_s": None if per_step is None else round((recipe.steps - progress.step) * per_step, 1),
    }


def gradient_norms(window: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Mean and maximum of the norms that were measured; null if one is not finite, which JSON has no number for."""
    norms = values_of(window, "grad_norm")
    if not norms:
        return {}
    pair = {"grad_norm": statistics.fmean(norms), "grad_norm_max": max(norms)}
    return {name: round(value, 5) if math.isfinite(sum(norms)) else None for name, value in pair.items()}


def keep_lines_until(path: Path, steps_done: int) -> list[dict[str, Any]]:
    """Drop the lines of steps that will be done again, and damaged lines; returns the others."""
    lines = [line for line in read_log(path, WrittenLine) if line["step"] <= steps_done]
    kept = [line for line in lines if all(isinstance(line[key], int | float | None) for key in line if key != "mode")]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept


def sentence(line: dict[str, Any], steps: int) -> str:
    """A line of the log as text: position, loss, rate, speed, time left, skipped images if any."""
    skipped = f", {line['skipped_images']} broken images skipped" if "skipped_images" in line else ""
    return (
        f"step {line['step']} of {steps}: loss {line['loss']:.3f}, lr {line['lr']:.1e}, "
        f"{line['time']:.2f} s per step ({share_of_data(line)} waiting for data), {rate(line['images_per_s'] or 0)} "
        f"images/s, {duration(line['eta_s'] or 0)} left{skipped}"
    )


def share_of_data(line: dict[str, Any]) -> str:
    """Fraction of a step's time that it waited for images; more than a few percent call for more loader workers."""
    return f"{line['data_time'] / line['time']:.0%}" if line["time"] else "0%"


class Heartbeat:
    """Writes progress.json about every ``SECONDS_BETWEEN_HEARTBEATS`` while steps are taken.

    It is written between steps, not from a thread, so that a run that hangs stops writing it.
    """

    def __init__(self, state_dir: Path, recipe: Recipe) -> None:
        self.state_dir = state_dir
        self.recipe = recipe
        self.written_s = -math.inf

    def write(self, progress: Progress, state: str = "running", error: str | None = None) -> None:
        """As :func:`write_heartbeat`, but an error is a warning."""
        try:
            write_heartbeat(self.state_dir, progress, self.recipe, state, error)
        except OSError as problem:
            log.warning("warning: %s cannot be written: %s", self.state_dir / "progress.json", problem.strerror)
        self.written_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last heartbeat is old enough."""
        return time.monotonic() - self.written_s >= SECONDS_BETWEEN_HEARTBEATS


def write_heartbeat(state_dir: Path, progress: Progress, recipe: Recipe, state: str, error: str | None = None) -> None:
    """Write progress.json, from which table and status read how far the run is.

    Args:
        state_dir: folder of the run.
        progress: of the run; ``images_per_s`` and ``eta_s`` are at the mean speed of this attempt.
        recipe: of the run.
        state: running, stopped, done or failed.
        error: why it failed, in one line.
    """
    step, elapsed_s = progress.attempt_from
    record = {
        "step": progress.step,
        "steps": recipe.steps,
        "saved_step": progress.saved_step,
        "updated_at": time.time(),
        "started_at": progress.started_at,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "ranks": progress.ranks,
        "attempt": progress.attempts,
        "state": state,
        **speed(recipe, progress, progress.step - step, progress.elapsed_s - elapsed_s),
        "peak_memory_bytes": progress.peak_memory_bytes,
        "loss": None if progress.loss is None or not math.isfinite(progress.loss) else round(progress.loss, 5),
    }
    write_json(state_dir / "progress.json", record if error is None else {**record, "error": error})


# Tag in TensorBoard -> key of a line of the log. Each loss has a tag, too.
TAGS = {
    "loss/total": "loss",
    "gradient/norm": "grad_norm",
    "gradient/norm_max": "grad_norm_max",
    "schedule/lr": "lr",
    "speed/images_per_s": "images_per_s",
    "speed/memory_mib": "memory",
}


class EventFiles:
    """The scalars of log.json as event files for TensorBoard.

    Every start writes all lines of the log again, and tells TensorBoard to forget what it read before (``purge_step``).
    So no step is there twice and none is lost, however a run was stopped.
    """

    def __init__(self, folder: Path, log_file: Path) -> None:
        # Importing takes more than a second, which only a process that trains should spend.
        from torch.utils.tensorboard import SummaryWriter

        self.hook, threading.excepthook = threading.excepthook, say_that_a_thread_has_ended
        old = files_of(folder)
        self.writer = SummaryWriter(str(folder), purge_step=0)
        for line in read_log(log_file, WrittenLine):
            self.add(line)
        self.writer.flush()
        drop_superseded(old, new=files_of(folder) - old)

    def write(self, line: dict[str, Any]) -> None:
        """Add a new line of the log, and flush it."""
        self.add(line)
        self.writer.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Add the scalars of a line, with the time at which it was logged."""
        for tag, value in scalars(line).items():
            self.writer.add_scalar(tag, value, line["step"], walltime=line["written_at"])

    def close(self) -> None:
        """End the writing thread."""
        self.writer.close()
        threading.excepthook = self.hook


def say_that_a_thread_has_ended(ended: threading.ExceptHookArgs) -> None:
    """One line in place of a traceback where the disk of the event files is full; the training goes on without them."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)
    else:
        log.warning("warning: event files for TensorBoard cannot be written any more: %s", ended.exc_value.strerror)


def files_of(folder: Path) -> set[Path]:
    """Event files of a folder."""
    return set(folder.glob("events.out.tfevents.*"))


def drop_superseded(old: set[Path], new: set[Path]) -> None:
    """Remove the files of earlier starts, but for the last one, from which an open TensorBoard goes on to the new one.

    TensorBoard reads files in the order of their names, which begin with the time of their host. If that clock was
    ahead, the last one is removed too: it would be read after the new one.
    """
    last = max(old, default=None)
    for file in old:
        if file != last or file > min(new):
            file.unlink()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The scalars of a line by tag, without values that are missing or null."""
    values = {f"loss/{key.removeprefix('loss_')}": line[key] for key in line if key.startswith("loss_")}
    values.pop("loss/spike", None)
    values |= {tag: line.get(key) for tag, key in TAGS.items()}
    if line["time"]:
        values["speed/data_share"] = line["data_time"] / line["time"]
    return {tag: value for tag, value in values.items() if value is not None}
