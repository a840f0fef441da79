"""What a run says while it trains: one JSON line a logged step, and a heartbeat for onlookers."""

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.schedule import Recipe


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
    initial_weights: str = ""
    """Where the first start's weights came from."""
    started_at: float = field(default_factory=time.time)
    """Unix seconds of the first start."""
    unlogged: list[dict[str, float]] = field(default_factory=list)
    """Losses and times of the steps since the last line of the log."""
    broken_images: dict[str, int] = field(default_factory=dict)
    """What is wrong with each image that was skipped, and how often another took its place."""

    @property
    def skipped_images(self) -> int:
        """How often a broken image was replaced by another."""
        return sum(self.broken_images.values())


class TrainingLog:
    """One JSON line each logged step under MMDetection 2.x's keys; losses and times are means since the last line."""

    def __init__(self, path: Path, recipe: Recipe, steps_done: int) -> None:
        self.path = path
        self.recipe = recipe
        keep_lines_until(path, steps_done)

    def write(self, progress: Progress) -> dict[str, Any]:
        """Write the line of the steps that are not logged yet, at least one, and forget them."""
        line = self.line(progress)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        progress.unlogged.clear()
        return line

    def line(self, progress: Progress) -> dict[str, Any]:
        """The line of the last step; epoch and iter count from 1, memory is in MiB."""
        window = progress.unlogged
        means = {name: sum(values[name] for values in window) / len(window) for name in window[-1]}
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
            "images_seen": progress.step * self.recipe.images_per_step,
            **({"skipped_images": progress.skipped_images} if progress.broken_images else {}),
        }


def keep_lines_until(path: Path, steps_done: int) -> None:
    """Drop the lines of steps that are done again, and a line that a kill cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= steps_done:
                kept.append(line)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def sentence(line: dict[str, Any], steps: int) -> str:
    """A line of the log for a person: position, loss, rate, times, skipped images if any."""
    left_s = (steps - line["step"]) * line["time"]
    skipped = f", {line['skipped_images']} broken images skipped" if "skipped_images" in line else ""
    return (
        f"step {line['step']} of {steps}: loss {line['loss']:.3f}, lr {line['lr']:.1e}, "
        f"{line['time']:.2f} s a step ({share_of_data(line)} waiting for data), {left_s / 60:.1f} min left{skipped}"
    )


def share_of_data(line: dict[str, Any]) -> str:
    """Part of a step's time in which it waited for its images: more than a few percent ask for loader workers."""
    return f"{line['data_time'] / line['time']:.0%}" if line["time"] else "0%"


def write_heartbeat(state_dir: Path, progress: Progress, steps: int, state: str) -> None:
    """Tell the table and other onlookers how far the run is; ``state`` is running, stopped or done."""
    write_json(
        state_dir / "progress.json",
        {
            "step": progress.step,
            "steps": steps,
            "updated_at": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "state": state,
        },
    )
