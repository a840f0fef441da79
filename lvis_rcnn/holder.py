"""Which process holds a state folder: whether it has ended, and how to stop it from here."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

SCANCEL_S = 60.0

JOB = "[0-9]+(_[0-9]+)?"
ENDED = 0  # start of a process that is no more; no process begins before the first tick


@dataclass(frozen=True)
class Holder:
    """What a lease says: which process holds the folder, and that it still lives."""

    generation: int
    """From 1 upwards."""
    token: str
    """Random: tells this lease from any other of its name."""
    host: str
    machine: str
    """As :func:`this_machine`."""
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    pid_start: int | None
    """As :func:`start_ticks`: a number is given again to a later process."""
    job: Annotated[str, Meta(pattern=f"^{JOB}$")] | None
    """As :func:`slurm_job`."""
    cluster: str | None
    """Where the job's number counts."""
    started_at: float
    """Unix seconds, for people only."""
    beat: int = 0
    state: Literal["held", "released"] = "held"
    format: Literal["lvis_rcnn.lease"] = "lvis_rcnn.lease"
    version: Literal[1] = 1

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"the trainer on {self.host} (pid {self.pid}{job})"


def new_holder(generation: int) -> Holder:
    """This process, as the holder of that lease."""
    return Holder(
        generation=generation,
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        pid_start=start_ticks(os.getpid()),
        job=slurm_job(),
        cluster=os.environ.get("SLURM_CLUSTER_NAME"),
        started_at=time.time(),
    )


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


def is_near(holder: Holder) -> bool:
    """Whether the holder's pid means something in this process."""
    known = holder.machine != "" and holder.pid_start is not None
    return known and (holder.machine, holder.host) == (this_machine(), socket.gethostname())


def is_gone(holder: Holder) -> bool:
    """Whether the holder has certainly ended: its pid is no process, or a later one."""
    return is_near(holder) and start_ticks(holder.pid) not in (None, holder.pid_start)


def read_holder(content: bytes) -> Holder | None:
    """The holder of a lease; None where the file is damaged or of a later version."""
    try:
        return msgspec.json.decode(content, type=Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def terminate(holder: Holder | None) -> bool:
    """Send SIGTERM to a holder on this machine, unless it is this process; whether it was sent."""
    if holder is None or not is_near(holder) or holder.pid == os.getpid():
        return False
    if start_ticks(holder.pid) != holder.pid_start:
        return False
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except OSError:  # of another user, or just gone
        return False
    return True


def other_job(holder: Holder | None) -> str | None:
    """The holder's SLURM job where it is another than ours and counts in our cluster."""
    if holder is None or holder.job == slurm_job():
        return None
    return holder.job if os.environ.get("SLURM_CLUSTER_NAME") in (None, holder.cluster) else None


def signal_job(job: str) -> None:
    """Send SIGTERM to everything in a SLURM job; nothing happens where there is no scancel, or it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scancel", "--signal=TERM", "--full", job]
        subprocess.run(command, capture_output=True, check=False, timeout=SCANCEL_S)
