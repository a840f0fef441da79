"""What a run says while it trains: one JSON line a logged step, and a heartbeat for onlookers."""

import contextlib
import json
import math
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.system.cli import duration, log
from lvis_rcnn.system.files import atomic_file, read_json_lines, write_json
from lvis_rcnn.training.solver import Recipe

# Keys of a line that differ from one run to its repetition; all others are functions of the recipe.
MEASURED_KEYS = frozenset({"data_time", "time", "memory", "images_per_s", "eta_s", "written_at"})

# A loss is a spike if it is more than SPIKE_FACTOR times the median of the last SPIKE_LINES lines. A median, since an
# earlier spike must not hide the next one; too few lines say nothing.
SPIKE_FACTOR = 3.0
SPIKE_LINES = 50
FEWEST_SPIKE_LINES = 10

# Onlookers take a run for stalled after minutes; several beats may be lost before.
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
    saved_step: int = 0
    """Steps in the newest whole checkpoint."""
    loss: float | None = None
    """Total loss of the last step."""
    initial_weights: str = ""
    """Where the first start's weights came from."""
    started_at: float = field(default_factory=time.time)
    """Unix seconds of the first start."""
    unlogged: list[dict[str, float]] = field(default_factory=list)
    """Losses and times of the steps since the last line of the log."""
    broken_images: list[str] = field(default_factory=list)
    """What is wrong with each image that this process skipped."""
    skipped_images: int = 0
    """How often another image took the place of a broken one, in all processes."""

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the steps of this attempt; None before its first."""
        step, elapsed_s = self.attempt_from
        return (self.elapsed_s - elapsed_s) / (self.step - step) if self.step > step else None

    def begin_attempt(self, attempts: int, ranks: int = 1) -> None:
        """From here on speed is that of this attempt, the ``attempts``-th, with so many processes."""
        self.attempts, self.ranks, self.attempt_from = attempts, ranks, (self.step, self.elapsed_s)

    def add_step(self, values: dict[str, float]) -> None:
        """A step is done.

        Args:
            values: Each ``loss_…``, ``time`` and ``data_time`` in seconds, and, where it is known, ``grad_norm``.
        """
        self.step += 1
        self.elapsed_s += values["time"]
        self.loss = total_loss(values)
        self.unlogged.append(values)


def total_loss(values: Mapping[str, float]) -> float:
    """Sum of the losses among the values of a step."""
    return sum(value for name, value in values.items() if name.startswith("loss_"))


class TrainingLog:
    """One JSON line each logged step under MMDetection 2.x's keys; losses and times are means since the last line.

    Beside these a line has ``step``, ``images_seen``, ``images_per_s``, ``eta_s`` (at the mean speed of this attempt)
    and ``written_at`` (Unix seconds); where gradients were measured ``grad_norm`` and ``grad_norm_max``; after broken
    images ``skipped_images``; and ``loss_spike: true`` where a step since the last line had a total loss of more than
    ``SPIKE_FACTOR`` times the median ``loss`` of the up to ``SPIKE_LINES`` lines before, if they are at least
    ``FEWEST_SPIKE_LINES`` and that median is not 0. Only ``MEASURED_KEYS`` depend on anything but the losses and
    gradients of the run.
    """

    def __init__(self, path: Path, recipe: Recipe, steps_done: int) -> None:
        self.path = path
        self.recipe = recipe
        kept = keep_lines_until(path, steps_done)
        self.losses = deque([line["loss"] for line in kept[-SPIKE_LINES:]], maxlen=SPIKE_LINES)

    def write(self, progress: Progress) -> dict[str, Any]:
        """Write the line of the steps that are not logged yet, at least one, and forget them; warn of a spike.

        Where it cannot be written, as on a full disk, the steps stay for the next line, and the training goes on.
        """
        line = self.line(progress)
        if "loss_spike" in line:
            log.warning("warning: %s", spike_sentence(progress, statistics.median(self.losses)))
        size = self.path.stat().st_size
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
        parts = {name: round(value, 5) for name, value in means.items() if name.startswith("loss_")}
        epoch, position = divmod(progress.step - 1, self.recipe.steps_in_epoch)
        return {
            "mode": "train",
            "epoch": epoch + 1,
            "iter": position + 1,
            "lr": self.recipe.learning_rate(progress.step - 1),
            "memory": progress.peak_memory_bytes // 2**20,
            "data_time": round(means["data_time"], 5),
            **parts,
            "loss": round(sum(parts.values()), 5),
            "time": round(means["time"], 5),
            "step": progress.step,
            "images_seen": self.recipe.stream.images_before_step(progress.step),
            **speed(self.recipe, progress, len(window), sum(values_of(window, "time"))),
            "written_at": round(time.time(), 2),
            **gradient_norms(window),
            **({"skipped_images": progress.skipped_images} if progress.skipped_images else {}),
            **({"loss_spike": True} if self.is_spike(max(map(total_loss, window))) else {}),
        }

    def is_spike(self, loss: float) -> bool:
        """Whether a total loss stands out of the lines so far; beside a median of 0 none does."""
        return len(self.losses) >= FEWEST_SPIKE_LINES and 0 < SPIKE_FACTOR * statistics.median(self.losses) < loss


def values_of(window: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """A value of each step that has it."""
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
    """Mean and maximum of the norms that were measured; null where one is not finite, which JSON cannot say."""
    norms = values_of(window, "grad_norm")
    if not norms:
        return {}
    pair = {"grad_norm": statistics.fmean(norms), "grad_norm_max": max(norms)}
    return {name: round(value, 5) if math.isfinite(sum(norms)) else None for name, value in pair.items()}


def spike_sentence(progress: Progress, median: float) -> str:
    """Names the step since the last line with the largest loss."""
    totals = [total_loss(values) for values in progress.unlogged]
    step = progress.step - len(totals) + 1 + totals.index(max(totals))
    return f"loss spike at step {step}: {max(totals):.3f}, {max(totals) / median:.1f} times the median of late"


def keep_lines_until(path: Path, steps_done: int) -> list[dict[str, Any]]:
    """Drop the lines of steps that are done again, and one that a kill cut short; returns the others."""
    kept = [line for line in read_json_lines(path) if line["step"] <= steps_done]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept


def sentence(line: dict[str, Any], steps: int) -> str:
    """A line of the log for a person: position, loss, rate, speed, time left, skipped images if any."""
    skipped = f", {line['skipped_images']} broken images skipped" if "skipped_images" in line else ""
    return (
        f"step {line['step']} of {steps}: loss {line['loss']:.3f}, lr {line['lr']:.1e}, "
        f"{line['time']:.2f} s a step ({share_of_data(line)} waiting for data), {line['images_per_s'] or 0:.1f} "
        f"images/s, {duration(line['eta_s'] or 0)} left{skipped}"
    )


def share_of_data(line: dict[str, Any]) -> str:
    """Part of a step's time in which it waited for its images: more than a few percent ask for loader workers."""
    return f"{line['data_time'] / line['time']:.0%}" if line["time"] else "0%"


class Heartbeat:
    """The heartbeat file of a run, never much older than ``SECONDS_BETWEEN_HEARTBEATS`` while steps are taken.

    The trainer itself writes it, between steps and not from a thread, so that a hung run falls silent.
    """

    def __init__(self, state_dir: Path, recipe: Recipe) -> None:
        self.state_dir = state_dir
        self.recipe = recipe
        self.written_s = -math.inf

    def write(self, progress: Progress, state: str = "running", error: str | None = None) -> None:
        """As :func:`write_heartbeat`; where it cannot be written, the training goes on."""
        try:
            write_heartbeat(self.state_dir, progress, self.recipe, state, error)
        except OSError as problem:
            log.warning("warning: %s cannot be written: %s", self.state_dir / "progress.json", problem.strerror)
        self.written_s = time.monotonic()

    def write_if_due(self, progress: Progress) -> None:
        """Say that the run lives, if the last word is old enough; costs nothing otherwise, to be called every step."""
        if time.monotonic() - self.written_s >= SECONDS_BETWEEN_HEARTBEATS:
            self.write(progress)


def write_heartbeat(state_dir: Path, progress: Progress, recipe: Recipe, state: str, error: str | None = None) -> None:
    """Tell the table and other onlookers how far the run is.

    Args:
        state_dir: Folder of the run; progress.json appears in it.
        progress: Where the run is; ``images_per_s`` and ``eta_s`` are at the mean speed of this attempt.
        recipe: Where it ends.
        state: running, stopped, done or failed.
        error: Why it failed, in one line.
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
        "loss": None if progress.loss is None or not math.isfinite(progress.loss) else round(progress.loss, 5),
    }
    write_json(state_dir / "progress.json", record if error is None else {**record, "error": error})


# Tag -> key of a line of the log; each loss has a tag of its own beside these.
TAGS = {
    "loss/total": "loss",
    "gradient/norm": "grad_norm",
    "gradient/norm_max": "grad_norm_max",
    "schedule/lr": "lr",
    "speed/images_per_s": "images_per_s",
    "speed/memory_mib": "memory",
}


class EventFiles:
    """The scalars of each line of a log at its step, as event files of a folder.

    The log is the truth: every start writes all of its lines anew, after the word that voids what was written before
    (``purge_step``). So no step is there twice and none is lost, however a run was stopped.
    """

    def __init__(self, folder: Path, log_file: Path) -> None:
        # More than a second, which only a process that trains should pay.
        from torch.utils.tensorboard import SummaryWriter

        old = files_of(folder)
        self.writer = SummaryWriter(str(folder), purge_step=0)
        for line in read_json_lines(log_file):
            self.add(line)
        self.writer.flush()
        drop_superseded(old, new=files_of(folder) - old)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line that the log has just got; onlookers see it at once."""
        self.add(line)
        self.writer.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Queue the scalars of a line, at the time at which it was logged."""
        for tag, value in scalars(line).items():
            self.writer.add_scalar(tag, value, line["step"], walltime=line["written_at"])

    def close(self) -> None:
        """End the writing thread; what was written stays."""
        self.writer.close()


def files_of(folder: Path) -> set[Path]:
    """Event files of a folder."""
    return set(folder.glob("events.out.tfevents.*"))


def drop_superseded(old: set[Path], new: set[Path]) -> None:
    """Remove the files of earlier starts but the last, from which an onlooker that is open goes on to the new one.

    TensorBoard reads files in the order of their names, which begin with the time of their hosts' clocks: where a clock
    was ahead, the last one goes too, or it would void the new one.
    """
    last = max(old, default=None)
    for file in old:
        if file != last or file > min(new):
            file.unlink()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """What of a line is drawn, by tag; a value that is missing or null is not."""
    found = {f"loss/{key.removeprefix('loss_')}": line[key] for key in line if key.startswith("loss_")}
    found.pop("loss/spike", None)
    found |= {tag: line.get(key) for tag, key in TAGS.items()}
    if line["time"]:
        found["speed/data_share"] = line["data_time"] / line["time"]
    return {tag: value for tag, value in found.items() if value is not None}
