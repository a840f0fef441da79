"""What this process has of a machine or of its SLURM job, how busy others keep it, and whether a process still runs."""

import contextlib
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

JOB = "[0-9]+(_[0-9]+)?"
ENDED = 0  # start of a process that has ended; no process starts before the first tick
SHARED_MEMORY = Path("/dev/shm")
ANSWER_S = 30.0  # SLURM is asked for no longer


def this_machine() -> str:
    """The boot of this machine and the namespace of its pids: if both agree, a pid means the same process.

    Empty without /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def free_shared_memory() -> int | None:
    """Bytes that processes of this machine or container may still share; None where that is no folder, as on macOS."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def start_ticks(pid: int) -> int | None:
    """Start of a process in ticks since this machine's boot; ENDED if it has ended, None if unknown."""
    try:
        # proc_pid_stat(5): "pid (name) state ...", the start is field 22; a name may contain blanks and brackets.
        state, *rest = stat_fields(Path(f"/proc/{pid}/stat"))
        return ENDED if state in "ZX" else int(rest[18])
    except (FileNotFoundError, ProcessLookupError):
        return None if is_there(pid) else ENDED
    except (OSError, ValueError, IndexError):
        return None


def cpu_s_of_others(proc: Path = Path("/proc")) -> float | None:
    """CPU seconds since boot that all cores spent on anything but this process, its children, and what started it.

    None without /proc. Snakemake, which asks several times a second how much memory its job has, is no other work.
    A difference of two such numbers, divided by the seconds between them, is the number of cores that others used.
    Time that a hypervisor gave to other machines counts as theirs.
    """
    try:
        # proc_stat(5): user nice system idle iowait irq softirq steal; guests are part of user and nice.
        user, nice, system, _, _, *interrupts = map(int, (proc / "stat").read_text(encoding="ascii").split()[1:9])
        own = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        ticks = user + nice + system + sum(interrupts) - sum(cpu_ticks(proc / str(pid) / "stat") for pid in own)
        ticks -= sum(sum(map(int, fields[11:13])) for fields in ancestors(proc, os.getpid()))
    except (OSError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_ticks(stat: Path) -> int:
    """CPU time of a process and of its children that have ended, in ticks; ``stat`` is its file in /proc."""
    # proc_pid_stat(5), as in start_ticks: utime, stime, cutime and cstime are fields 14 to 17.
    return sum(map(int, stat_fields(stat)[11:15]))


def stat_fields(stat: Path) -> list[str]:
    """What a process's file in /proc says, from the third field on."""
    return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def ancestors(proc: Path, pid: int) -> Iterator[list[str]]:
    """The fields of the parent of a process, of that one's, and so on, as far as they can be seen."""
    fields = stat_fields(proc / str(pid) / "stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while int(fields[1]):
            fields = stat_fields(proc / fields[1] / "stat")
            yield fields


def is_there(pid: int) -> bool:
    """Whether a process has this pid; asked of the system, since /proc may be hidden or that of another machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def slurm_job() -> str | None:
    """Id of this process's SLURM job; None outside of one.

    In an array ``<array>_<index>``, since the plain number of one of its jobs may stand for all of them.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(JOB, job) else None


@dataclass(frozen=True)
class Allocation:
    """CPU cores and GPUs that are this process's alone."""

    gpus: int
    cpus: int
    since: float
    """Unix seconds."""
    waited_s: float
    """From when the job could have started, according to SLURM, until it did; 0 without SLURM."""


def allocation(cpus: int, gpus: int) -> Allocation:
    """What this process has, according to SLURM; without SLURM the given numbers."""
    shown = job_as_shown()
    started, ready = (moment(shown.get(name)) for name in ("StartTime", "EligibleTime"))
    if started is None:
        return Allocation(gpus, cpus, time.time(), waited_s=0.0)
    # On a cluster that does not know GPUs a job asks for none and has none.
    counted = re.search(r"(?:^|,)gres/gpu(?::[^=,]+)?=(\d+)", shown.get("TRES", shown.get("AllocTRES", "")))
    return Allocation(
        gpus=int(counted[1]) if counted else gpus,
        cpus=int(shown.get("NumCPUs", cpus)),
        since=started,
        waited_s=max(started - ready, 0.0) if ready is not None else 0.0,
    )


def job_as_shown() -> dict[str, str]:
    """SLURM's fields of this process's job; empty outside of a job, or if SLURM does not answer."""
    job = slurm_job()
    if job is None:
        return {}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scontrol", "show", "job", "-o", job]
        plain = {key: value for key, value in os.environ.items() if key != "SLURM_TIME_FORMAT"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S, env=plain)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    return {}


def ended_as(job: str) -> str:
    """State in which a SLURM job ended, such as OUT_OF_MEMORY; empty if SLURM does not say."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
        return done.stdout.partition(" ")[0].strip()  # CANCELLED by 1000
    return ""


def moment(text: str | None) -> float | None:
    """SLURM's local time as Unix seconds; None if unknown."""
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
