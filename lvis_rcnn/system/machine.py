"""What this process has of a machine, and since when: what its SLURM job has, where it is in one."""

import contextlib
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

JOB = "[0-9]+(_[0-9]+)?"
ENDED = 0  # start of a process that is no more; no process begins before the first tick


def this_machine() -> str:
    """The boot of this machine and the namespace of its pids: where both agree, a pid means the same process.

    Empty where there is no /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When a process began, in ticks since this machine's boot; ENDED where it is no more, None where none can tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # proc_pid_stat(5): "pid (name) state ...", start as 22nd; a name may hold blanks and brackets.
        state, *rest = text.rpartition(")")[2].split()
        return ENDED if state in "ZX" else int(rest[18])
    except (FileNotFoundError, ProcessLookupError):
        return None if is_there(pid) else ENDED
    except (OSError, ValueError, IndexError):
        return None


def is_there(pid: int) -> bool:
    """Whether a pid is given; /proc may be hidden, or that of another system."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def slurm_job() -> str | None:
    """The SLURM job of this process.

    In an array ``<array>_<index>``, since the plain number of one of its jobs is that of them all.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(JOB, job) else None


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
