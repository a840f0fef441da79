"""Every start of a run and how it ended; a start that could only fail as the ones before is refused.

``attempts.jsonl`` in the state folder has a line when a start begins and one when it ends. A killed start has no second
line, and may have cut one short: such a line counts as none. Only the holder of the folder's lease writes.
"""

import contextlib
import errno
import os
import re
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import sync
from lvis_rcnn.system.machine import Allocation, slurm_job
from lvis_rcnn.system.provenance import code_version

FILE = "attempts.jsonl"
SAME_ERRORS = 2
SILENT_ENDS = 3  # one more, since a lost node is as silent as a process killed for its memory
LONGEST_ERROR = 1000  # characters

Ending = Literal["done", "stopped", "error"]


class Begin(msgspec.Struct, frozen=True, tag_field="event", tag="begin"):
    """Line of a start that begins."""

    attempt: int
    started_at: float
    host: str
    pid: int
    job: str | None
    step: int
    code_version: str
    gpus: int = 0
    cpus: int = 0
    allocated_at: float | None = None
    waited_s: float = 0.0
    last_seen_at: float | None = None
    version: Literal[1] = 1


class End(msgspec.Struct, frozen=True, tag_field="event", tag="end"):
    """Line of a start that ends otherwise than by a kill."""

    attempt: int
    ended_at: float
    kind: Ending
    step: int
    error: str | None
    version: Literal[1] = 1


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int
    """From 1 upwards."""
    started_at: float
    """Unix seconds."""
    host: str
    pid: int
    job: str | None
    """As :func:`lvis_rcnn.system.machine.slurm_job`."""
    code_version: str
    first_step: int
    """Steps done when it began."""
    last_step: int | None = None
    """Steps done when it ended; None where it runs, or was killed."""
    ended: Ending | None = None
    """Stopped means by a signal, or handed over."""
    error: str | None = None
    """What ended it, in one line."""
    gpus: int = 0
    """That it had to itself."""
    cpus: int = 0
    """CPU cores that it had to itself."""
    allocated_at: float | None = None
    """Unix seconds since when it had them; None in a line that is older than this field."""
    waited_s: float = 0.0
    """As :class:`lvis_rcnn.system.machine.Allocation`."""
    ended_at: float | None = None
    """Unix seconds; of a killed one its last sign of life, as the next start found it."""


@dataclass(frozen=True)
class Cost:
    """What all starts of a run took, those included that were killed."""

    starts: int
    gpu_hours: float
    """GPUs times the time they were held."""
    cpu_hours: float
    """CPU cores times the time they were held, used or not."""
    waited_s: float
    """In the queue."""


def cost_of(attempts: list[Attempt], now: float) -> Cost:
    """The sum over all starts; the last one may still run, until ``now`` (Unix seconds)."""
    gpu_s = cpu_s = 0.0
    for attempt in attempts:
        began = attempt.started_at if attempt.allocated_at is None else attempt.allocated_at
        until = now if attempt is attempts[-1] else began
        held_s = max((attempt.ended_at or until) - began, 0.0)
        gpu_s, cpu_s = gpu_s + attempt.gpus * held_s, cpu_s + attempt.cpus * held_s
    return Cost(len(attempts), gpu_s / 3600, cpu_s / 3600, sum(attempt.waited_s for attempt in attempts))


def read_attempts(state_dir: Path) -> list[Attempt]:
    """All starts of a run, oldest first; none where there is no file."""
    attempts: dict[int, Attempt] = {}
    for line in read_lines(state_dir / FILE):
        before = attempts.get(line.attempt - 1 if isinstance(line, Begin) else line.attempt)
        if isinstance(line, Begin):
            if before is not None and before.ended is None:
                attempts[before.number] = replace(before, ended_at=line.last_seen_at)
            attempts[line.attempt] = attempt_of(line)
        elif before is not None:
            attempts[line.attempt] = replace(
                before, last_step=line.step, ended=line.kind, error=line.error, ended_at=line.ended_at
            )
    return list(attempts.values())


def read_lines(path: Path) -> list[Begin | End]:
    """The lines of the file, without those that are damaged."""
    lines = []
    for text in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            lines.append(msgspec.json.decode(text, type=Begin | End))
    return lines


def attempt_of(line: Begin) -> Attempt:
    """A start of which no end is known."""
    return Attempt(
        number=line.attempt,
        started_at=line.started_at,
        host=line.host,
        pid=line.pid,
        job=line.job,
        code_version=line.code_version,
        first_step=line.step,
        gpus=line.gpus,
        cpus=line.cpus,
        allocated_at=line.allocated_at,
        waited_s=line.waited_s,
    )


def begin_attempt(state_dir: Path, step: int, has: Allocation | None = None) -> int:
    """Record that a start begins, and return its number; the caller holds the lease.

    Args:
        state_dir: the run's; it exists.
        step: optimizer steps done, as in the checkpoint that the start goes on from.
        has: what the start has of the machine; None where nobody counts.

    Raises:
        InputError: going on is pointless. With this version of the code the last two starts ended in the same error at
            the same step, or the last three ended without a word and without gaining a step. Or the file cannot be
            written.
    """
    path, version = state_dir / FILE, code_version()
    before = read_attempts(state_dir)
    require_no_repeated_error(path, before[-SAME_ERRORS:], version)
    require_no_silent_ends(path, before[-SILENT_ENDS:], version, step)
    number = before[-1].number + 1 if before else 1
    line = Begin(number, time.time(), socket.gethostname(), os.getpid(), slurm_job(), step, version)
    if has is not None:
        counted = {"gpus": has.gpus, "cpus": has.cpus, "allocated_at": has.since, "waited_s": has.waited_s}
        line = msgspec.structs.replace(line, **counted)
    if before and before[-1].ended is None:
        line = msgspec.structs.replace(line, last_seen_at=last_sign_of_life(state_dir))
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


def end_attempt(state_dir: Path, number: int, kind: Ending, step: int, error: BaseException | None = None) -> None:
    """Record how a start ended; where that cannot be written, it looks killed, and what it did still counts.

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
    """An error in one line; the name of its class where the message is no sentence for users."""
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())}"[:LONGEST_ERROR]


def append_line(path: Path, line: Begin | End) -> None:
    """Append in one write, on a line of its own whatever a kill has left before, and wait until it is on disk."""
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
    kinds = {(one.code_version, one.ended, one.last_step, without_numbers(one.error or "")) for one in last}
    if len(last) < SAME_ERRORS or len(kinds) > 1 or (last[0].code_version, last[0].ended) != (version, "error"):
        return
    raise InputError(
        str(path),
        f"the last {SAME_ERRORS} starts ({places(last)}) ended in the same error at step {last[-1].last_step}: "
        f"{last[-1].error}",
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
    """Whether an error is one by which :func:`begin_attempt` refuses a start, so that another could only fail, too."""
    return f"{FILE}: the last " in error


def without_numbers(error: str) -> str:
    """What two errors of the same cause share: pids, addresses and bytes free differ each time."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "#", error)


def require_no_silent_ends(path: Path, last: list[Attempt], version: str, step: int) -> None:
    """Refuse a fourth start after three that were killed and gained no step."""
    kinds = {(one.code_version, one.ended, one.first_step) for one in last}
    if len(last) < SILENT_ENDS or kinds != {(version, None, step)}:
        return
    raise InputError(
        str(path),
        f"the last {SILENT_ENDS} starts ({places(last)}) were killed, and none saved a step after step {step}",
        fix=f"fix the cause (out of memory?), then delete {path} to try again",
    )


def places(attempts: list[Attempt]) -> str:
    """Numbers and hosts of attempts, for a message."""
    return ", ".join(f"{attempt.number} on {attempt.host}" for attempt in attempts)
