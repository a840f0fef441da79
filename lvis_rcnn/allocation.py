"""What this process has of a machine, and since when: what its SLURM job has, where it is in one."""

import contextlib
import os
import re
import subprocess
import time
from dataclasses import dataclass

from lvis_rcnn.holder import slurm_job

ANSWER_S = 30.0


@dataclass(frozen=True)
class Allocation:
    """CPU cores and GPUs that nobody else has meanwhile."""

    gpus: int
    cpus: int
    since: float
    """Unix seconds."""
    waited_s: float
    """From when a job could have started, as far as SLURM knows, until it did; 0 without SLURM."""


def allocation(cpus: int, gpus: int) -> Allocation:
    """What this process has.

    Args:
        cpus: that it uses, where no scheduler counts them.
        gpus: that it uses, likewise.
    """
    shown = job_as_shown()
    started, ready = (moment(shown.get(name)) for name in ("StartTime", "EligibleTime"))
    if started is None:
        return Allocation(gpus, cpus, time.time(), waited_s=0.0)
    # On a cluster without a word for GPUs a job asks for, and has, none.
    counted = re.search(r"(?:^|,)gres/gpu(?::[^=,]+)?=(\d+)", shown.get("TRES", shown.get("AllocTRES", "")))
    return Allocation(
        gpus=int(counted[1]) if counted else gpus,
        cpus=int(shown.get("NumCPUs", cpus)),
        since=started,
        waited_s=max(started - ready, 0.0) if ready is not None else 0.0,
    )


def job_as_shown() -> dict[str, str]:
    """What SLURM says of this process's job; empty where it is in none, or SLURM does not answer."""
    job = slurm_job()
    if job is None:
        return {}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scontrol", "show", "job", "-o", job]
        plain = {key: value for key, value in os.environ.items() if key != "SLURM_TIME_FORMAT"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S, env=plain)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    return {}


def moment(text: str | None) -> float | None:
    """SLURM's local time as Unix seconds; None where it is unknown."""
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
