"""How far trainings are, on the screen of Snakemake: a line a minute for each that runs.

A training beside others, on another host, or without a terminal shows no bar there. Its heartbeat (training/log.py) is
read instead, from the folder of results, which all hosts see.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel, initial_zoo
from lvis_rcnn.runs.states import running
from lvis_rcnn.system.cli import duration, rate

SECONDS_BETWEEN_LINES = 60.0
# Of one training: those of days get fewer than a line a minute.
MOST_LINES = 1000


def start_telling(study: Study, study_file: Path, say: Callable[[str], None]) -> None:
    """Say every minute how far the trainings of ``study`` are, from a thread that ends with this process."""
    words = (study, Path("results"), initial_zoo(study, study_file), say)
    threading.Thread(target=tell_always, args=words, daemon=True).start()


def tell_always(study: Study, results: Path, zoo: Mapping[str, ZooModel], say: Callable[[str], None]) -> None:
    """Look at all trainings every minute."""
    due_s: dict[str, float] = {}
    while True:
        time.sleep(SECONDS_BETWEEN_LINES)
        # A file may vanish between two looks at it; it is there the next time.
        with contextlib.suppress(OSError):
            tell(running(study, results, zoo), due_s, time.monotonic(), say)


def tell(
    heartbeats: Mapping[str, Mapping[str, Any]], due_s: dict[str, float], now_s: float, say: Callable[[str], None]
) -> None:
    """A line for each training whose next line is due.

    Args:
        heartbeats: of trainings that run, by name.
        due_s: when each is said next; changed.
        now_s: by the same clock.
        say: prints a line.
    """
    for name, heartbeat in heartbeats.items():
        if now_s >= due_s.get(name, now_s):
            say(line_of(name, heartbeat))
            due_s[name] = now_s + max(SECONDS_BETWEEN_LINES, whole_s(heartbeat) / MOST_LINES)


def line_of(name: str, heartbeat: Mapping[str, Any]) -> str:
    """How far a training is: steps, percent, speed and time left as far as they are known."""
    step, steps = heartbeat["step"], heartbeat["steps"]
    images_per_s, eta_s = heartbeat.get("images_per_s"), heartbeat.get("eta_s")
    speed = "" if images_per_s is None else f", {rate(images_per_s)} images/s"
    left = "" if eta_s is None else f", {duration(eta_s)} left"
    return f"training {name}: step {step:,} of {steps:,} ({100 * step // steps} %){speed}{left}"


def whole_s(heartbeat: Mapping[str, Any]) -> float:
    """Expected seconds of all steps at the speed of this attempt; 0 before its first."""
    left = heartbeat["steps"] - heartbeat["step"]
    return (heartbeat.get("eta_s") or 0.0) * heartbeat["steps"] / left if left else 0.0
