"""Every start of a run and how it ended, and whether a crashed run is tried again.

The rule: with the same version of the code, a start is refused after two that ended in the same error at the same step,
or after three that were killed at work without gaining a step. A kill before the first step, or by preemption, says
nothing about the run. Two other limits apply on a cluster: slurm/profile.yaml says how
often Snakemake submits a failed or preempted job again, and slurm/submission.py ends that for a start refused here.

``attempts.jsonl`` in the state folder has a line when a start begins and one when it ends. A killed start has no second
line and may have left an incomplete one, which counts as none. Only the holder of the folder's lease writes.
"""

import contextlib
import errno
import os
import re
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Heartbeat
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import sync
from lvis_rcnn.system.machine import Allocation, ended_as, slurm_job
from lvis_rcnn.system.provenance import code_version

FILE = "attempts.jsonl"
SAME_ERRORS = 2
SILENT_ENDS = 3  # one more, since a lost node is as silent as a process killed for its memory
LONGEST_ERROR = 1000  # characters

Time = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Ending = Literal["done", "stopped", "error"]
"""Stopped means by a signal, or handed over."""


class Begin(msgspec.Struct, frozen=True, tag_field="event", tag="begin"):
    """The line of a start that begins."""

    attempt: int
    """From 1 upwards."""
    started_at: Time
    """Unix seconds."""
    host: str
    pid: int
    job: str | None
    """As :func:`lvis_rcnn.system.machine.slurm_job`."""
    step: int
    """Optimizer steps done when it began."""
    code_version: str
    gpus: int = 0
    """Number of GPUs that were reserved for it."""
    cpus: int = 0
    """Number of CPU cores that were reserved for it."""
    allocated_at: Time | None = None
    """Unix seconds when these were reserved; None in lines that are older than this field."""
    waited_s: Time = 0.0
    """As :class:`lvis_rcnn.system.machine.Allocation`."""
    last_seen_at: Time | None = None
    """Last sign of life of the start before, in Unix seconds, if that was killed."""
    last_killed_at_work: bool = False
    """Whether the start before was killed at work: see :func:`killed_at_work`."""
    version: Literal[1] = 1


class End(msgspec.Struct, frozen=True, tag_field="event", tag="end"):
    """The line of a start that ends other than by a kill."""

    attempt: int
    ended_at: Time
    """Unix seconds."""
    kind: Ending
    step: int
    """Optimizer steps done when it ended."""
    error: str | None
    """What ended it, in one line."""
    version: Literal[1] = 1


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    begin: Begin
    end: End | None = None
    """None where it is running, or was killed."""
    last_seen_at: float | None = None
    """Last sign of life of a killed one, in Unix seconds, as the next start found it."""
    killed_at_work: bool = False
    """As the next start found it: see :func:`killed_at_work`."""

    @property
    def ended(self) -> Ending | None:
        """How it ended; None where it is running, or was killed."""
        return self.end.kind if self.end else None

    @property
    def ended_at(self) -> float | None:
        """When it ended or was last seen, in Unix seconds; None where unknown."""
        return self.end.ended_at if self.end else self.last_seen_at


@dataclass(frozen=True)
class Cost:
    """What all starts of a run cost, including killed ones."""

    starts: int
    gpu_hours: float
    """Number of GPUs times the time they were reserved."""
    cpu_hours: float
    """Number of CPU cores times the time they were reserved, used or not."""
    waited_s: float
    """Time in the queue."""


def cost_of(attempts: list[Attempt], now: float) -> Cost:
    """The sum over all starts; the last one may still be running at ``now`` (Unix seconds)."""
    gpu_s = cpu_s = 0.0
    for attempt in attempts:
        begin = attempt.begin
        began = begin.started_at if begin.allocated_at is None else begin.allocated_at
        until = now if attempt is attempts[-1] else began
        held_s = max((attempt.ended_at or until) - began, 0.0)
        gpu_s, cpu_s = gpu_s + begin.gpus * held_s, cpu_s + begin.cpus * held_s
    return Cost(len(attempts), gpu_s / 3600, cpu_s / 3600, sum(attempt.begin.waited_s for attempt in attempts))


def read_attempts(state_dir: Path) -> list[Attempt]:
    """All starts of a run, oldest first; none where there is no file."""
    attempts: dict[int, Attempt] = {}
    for line in read_lines(state_dir / FILE):
        before = attempts.get(line.attempt - 1 if isinstance(line, Begin) else line.attempt)
        if isinstance(line, Begin):
            if before is not None and before.end is None:
                attempts[before.begin.attempt] = replace(
                    before, last_seen_at=line.last_seen_at, killed_at_work=line.last_killed_at_work
                )
            attempts[line.attempt] = Attempt(line)
        elif before is not None:
            attempts[line.attempt] = replace(before, end=line)
    return list(attempts.values())


def read_lines(path: Path) -> list[Begin | End]:
    """The undamaged lines of the file."""
    lines = []
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(msgspec.json.decode(text, type=Begin | End))
    return lines


def begin_attempt(state_dir: Path, step: int, has: Allocation | None = None) -> int:
    """Record that a start begins, and return its number; the caller holds the lease.

    Args:
        state_dir: the run's; it exists.
        step: optimizer steps done, as in the checkpoint that the start resumes from.
        has: what is reserved for the start; None where that is not recorded.

    Raises:
        InputError: another start would only fail like those before (see above), or the file cannot be written.
    """
    path, version = state_dir / FILE, code_version()
    before = read_attempts(state_dir)
    if before and before[-1].ended is None:
        at_work = killed_at_work(state_dir, before[-1])
        before[-1] = replace(before[-1], last_seen_at=last_sign_of_life(state_dir), killed_at_work=at_work)
    require_no_repeated_error(path, before[-SAME_ERRORS:], version)
    require_no_silent_ends(path, before[-SILENT_ENDS:], version, step)
    number = before[-1].begin.attempt + 1 if before else 1
    line = Begin(number, time.time(), socket.gethostname(), os.getpid(), slurm_job(), step, version)
    if has is not None:
        counted = {"gpus": has.gpus, "cpus": has.cpus, "allocated_at": has.since, "waited_s": has.waited_s}
        line = msgspec.structs.replace(line, **counted)
    if before and before[-1].ended is None:
        last = {"last_seen_at": before[-1].last_seen_at, "last_killed_at_work": before[-1].killed_at_work}
        line = msgspec.structs.replace(line, **last)
    try:
        append_line(path, line)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}", fix="make room and start again") from None
    return number


def last_sign_of_life(state_dir: Path) -> float | None:
    """When the heartbeat of a run was last written, by the clock of its file system; None where there is none."""
    try:
        return (state_dir / "progress.json").stat().st_mtime
    except OSError:
        return None


def killed_at_work(state_dir: Path, last: Attempt) -> bool:
    """Whether the last start, which was killed, had taken a step by its heartbeat, or lacked memory by SLURM's account.

    If so, another start may end alike; a job that is preempted again and again does nothing wrong.
    """
    state = ended_as(last.begin.job) if last.begin.job else ""
    beat = read_json_object(state_dir / "progress.json", Heartbeat)
    took_steps = beat.get("attempt") == last.begin.attempt and beat.get("step", 0) > last.begin.step
    return state == "OUT_OF_MEMORY" or (took_steps and state != "PREEMPTED")


def end_attempt(state_dir: Path, number: int, kind: Ending, step: int, error: BaseException | None = None) -> None:
    """Record how a start ended. Where that cannot be written, it looks killed, but its steps still count.

    Args:
        state_dir: the run's.
        number: as :func:`begin_attempt` returned.
        kind: done, stopped (by a signal, or handed over) or error.
        step: optimizer steps done, saved or not.
        error: what ended it.
    """
    try:
        append_line(state_dir / FILE, End(number, time.time(), kind, step, None if error is None else text_of(error)))
    except OSError as problem:
        log.warning("warning: %s cannot be written: %s", state_dir / FILE, problem.strerror)


def text_of(error: BaseException) -> str:
    """An error in one line, with the name of its class unless it is written for users."""
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())}"[:LONGEST_ERROR]


def append_line(path: Path, line: Begin | End) -> None:
    """Append in one write, on a line of its own even after an incomplete one, and wait until it is on disk."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        fresh = size == 0 or os.pread(handle, 1, size - 1) == b"\n"
        text = (b"" if fresh else b"\n") + msgspec.json.encode(line) + b"\n"
        if os.write(handle, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    finally:
        os.close(handle)
    sync(path.parent)


def require_no_repeated_error(path: Path, last: list[Attempt], version: str) -> None:
    """Refuse a third start into the same error at the same step."""
    ends = [one.end for one in last if one.begin.code_version == version and one.end and one.end.kind == "error"]
    if len(ends) < SAME_ERRORS or len({(end.step, without_numbers(end.error or "")) for end in ends}) > 1:
        return
    raise InputError(
        str(path),
        f"the last {SAME_ERRORS} starts ({places(last)}) ended in the same error at step {ends[-1].step}: "
        f"{ends[-1].error}",
        fix=f"fix the cause, then delete {path} to try again",
    )


def would_refuse(state_dir: Path) -> bool:
    """Whether the next start ends before its first step, since the last ones ended in the same error at one step."""
    try:
        require_no_repeated_error(state_dir / FILE, read_attempts(state_dir)[-SAME_ERRORS:], code_version())
    except InputError:
        return True
    return False


def is_refusal(error: str) -> bool:
    """Whether :func:`begin_attempt` refused a start with this error, so that another start would fail as well."""
    return f"{FILE}: the last " in error


def without_numbers(error: str) -> str:
    """What errors of the same cause have in common: process ids, addresses and free memory differ each time."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "#", error)


def require_no_silent_ends(path: Path, last: list[Attempt], version: str, step: int) -> None:
    """Refuse a fourth start after three that were killed at work and gained no step."""
    kinds = {(one.begin.code_version, one.killed_at_work, one.begin.step) for one in last}
    if len(last) < SILENT_ENDS or kinds != {(version, True, step)}:
        return
    raise InputError(
        str(path),
        f"the last {SILENT_ENDS} starts ({places(last)}) were killed, and none saved a step after step {step}",
        fix=f"fix the cause (out of memory?), then delete {path} to try again",
    )


def places(attempts: list[Attempt]) -> str:
    """Numbers and hosts of attempts, for a message."""
    return ", ".join(f"{attempt.begin.attempt} on {attempt.begin.host}" for attempt in attempts)
