"""How far a study is, on the screen of Snakemake: a line a minute for each training, and the table after each row.

A training beside others, on another host, or without a terminal shows no bar there. Its heartbeat (training/log.py) is
read instead, from the folder of results, which all hosts see.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lvis_rcnn.config.zoo import initial_zoo
from lvis_rcnn.runs.paths import RESULTS, StudyPaths
from lvis_rcnn.runs.states import running
from lvis_rcnn.system.cli import duration, rate

SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_LOOKS = 5.0
LOOKS_BETWEEN_LINES = round(SECONDS_BETWEEN_LINES / SECONDS_BETWEEN_LOOKS)
# Of one training: those of days get fewer than a line a minute.
MOST_LINES = 1000

# Held while the table of what exists is written: the end, which removes it, waits for it.
writing_table = threading.Lock()

Heartbeats = Mapping[str, Mapping[str, Any]]
Awaited = dict[str, dict[Path, int | None]]
"""Scores that jobs are about to write, with the time of the file that is there before, by row."""


def start_telling(paths: StudyPaths, planned: Collection[str], say: Callable[[str], None], *, shows_bars: bool) -> None:
    """Say how far the study is, from a thread that ends with this process; trainings only where no bar shows them.

    Args:
        paths: of the study.
        planned: files that jobs are about to write; none has begun.
        say: prints a line.
        shows_bars: whether trainings show theirs.
    """
    zoo = initial_zoo(paths.study, paths.study_file)

    def heartbeats() -> Heartbeats:
        return {} if shows_bars else running(paths.study, Path(RESULTS), zoo)

    def table() -> str:
        done = table_so_far(paths)
        return "" if done.returncode else done.stderr.rstrip()

    words = (awaited_scores(paths, planned), heartbeats, table, say)
    threading.Thread(target=tell_always, args=words, daemon=True).start()


def tell_always(
    awaited: Awaited, heartbeats: Callable[[], Heartbeats], table: Callable[[], str], say: Callable[[str], None]
) -> None:
    """Look at the scores every few seconds, and at the trainings every minute."""
    due_s: dict[str, float] = {}
    for look in itertools.count(1):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        # A file may vanish between two looks at it; it is there the next time.
        with contextlib.suppress(OSError):
            # Reading them takes a tenth of a core if done at every look, which measurements would notice.
            if look % LOOKS_BETWEEN_LINES == 0:
                tell(heartbeats(), due_s, time.monotonic(), say)
            left = {row: files for row, files in awaited.items() if not are_written(files)}
            # After the last row Snakemake itself shows the table, or measures, which this would disturb.
            if 0 < len(left) < len(awaited) and (text := table()):
                say(text)
            awaited = left


def awaited_scores(paths: StudyPaths, planned: Collection[str]) -> Awaited:
    """What is to be scored, of each row that is."""
    files = {row: [f"{paths.folder}/{run}/metrics.json" for run in paths.runs_of_row(row)] for row in paths.rows}
    of_rows = {row: [Path(file) for file in of_row if file in planned] for row, of_row in files.items()}
    return {row: {file: time_of(file) for file in of_row} for row, of_row in of_rows.items() if of_row}


def are_written(files: Mapping[Path, int | None]) -> bool:
    """Whether each file is there, and not the one that was there before."""
    return all(time_of(file) not in (None, before) for file, before in files.items())


def time_of(file: Path) -> int | None:
    """When a file was written, in nanoseconds; None where there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def table_so_far(paths: StudyPaths) -> subprocess.CompletedProcess[str]:
    """Write the table of what exists to partial_table.md; ``stderr`` has it for a terminal, or what went wrong."""
    command = [sys.executable, "-m", "lvis_rcnn.report", "table", "--study", paths.study_file]
    command += ["--results", RESULTS, "--out", f"{paths.folder}/partial_table.md"]
    more: dict[str, Any] = {"env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}}
    # A session of its own: Ctrl-C ends this process, not a table that is half written.
    with writing_table:
        return subprocess.run(command, **more, capture_output=True, text=True, start_new_session=True)


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
