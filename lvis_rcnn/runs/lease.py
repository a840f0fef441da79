"""Keeps two trainers off one state folder: the second asks the first to hand over, and waits until it has.

The n-th lease of a folder is ``lease-<n>.json``; the one with the highest number is valid. The next one is taken by a
hard link to a name that must not exist, which has one winner also on NFS, as in flufl.lock; unlike there, clocks of two
machines are never compared, and a holder can be asked to leave. The holder increments a counter, its beat, in the file;
a waiting trainer times the beats by its own clock. A trainer that finds a higher lease than its own has lost, however
long it was suspended before.

By ``lease-<n>.request`` a waiting trainer asks the holder of that lease to hand over; ``.lease-*`` are temporary files.
The next holder removes the files of earlier leases.
"""

import contextlib
import errno
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.machine import JOB, slurm_job, start_ticks, this_machine

SCANCEL_S = 60.0


@dataclass(frozen=True)
class Holder:
    """The content of a lease: which process holds the folder, and its sign of life."""

    generation: int
    """From 1 upwards."""
    token: str
    """Random, so that this lease differs from any other of the same name."""
    host: str
    machine: str
    """As :func:`this_machine`."""
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    pid_start: int | None
    """As :func:`start_ticks`, since a later process may get the same pid."""
    job: Annotated[str, Meta(pattern=f"^{JOB}$")] | None
    """As :func:`slurm_job`."""
    cluster: str | None
    """The cluster on which the job has this id."""
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


def is_near(holder: Holder) -> bool:
    """Whether the holder's pid is one of this machine and namespace."""
    known = holder.machine != "" and holder.pid_start is not None
    return known and (holder.machine, holder.host) == (this_machine(), socket.gethostname())


def is_gone(holder: Holder) -> bool:
    """Whether the holder has certainly ended: its pid is free, or that of a later process."""
    return is_near(holder) and start_ticks(holder.pid) not in (None, holder.pid_start)


def read_holder(content: bytes) -> Holder | None:
    """The holder of a lease; None where the file is damaged or of a later version."""
    try:
        return msgspec.json.decode(content, type=Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
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
    """The holder's SLURM job if it is not this process's own and belongs to the same cluster."""
    if holder is None or holder.job == slurm_job():
        return None
    return holder.job if os.environ.get("SLURM_CLUSTER_NAME") in (None, holder.cluster) else None


def signal_job(job: str) -> None:
    """Send SIGTERM to all processes of a SLURM job; nothing happens without scancel, or if it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scancel", "--signal=TERM", "--full", job]
        subprocess.run(command, capture_output=True, check=False, timeout=SCANCEL_S)


RENEW_S = 10.0
STALE_S = 60.0  # six beats, since a busy file server may delay one
HANDOVER_S = 900.0  # the holder finishes its step and saves

LEASE = re.compile(r"lease-([0-9]{1,18})\.json")
TRACE = re.compile(r"\.?lease-([0-9]{1,18})\..+")  # also matches leases


def lease_path(folder: Path, generation: int) -> Path:
    """File of a lease."""
    return folder / f"lease-{generation}.json"


def request_path(folder: Path, generation: int) -> Path:
    """File that asks the holder of a lease to hand over."""
    return folder / f"lease-{generation}.request"


def newest(folder: Path) -> int:
    """Generation of the valid lease; 0 where there is none yet."""
    return max((int(match[1]) for name in os.listdir(folder) if (match := LEASE.fullmatch(name))), default=0)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; empty where it does not exist, or no longer."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # the latter on NFS, replaced between open and read
            return b""
        raise


def is_newest(folder: Path, mine: Holder) -> bool:
    """Whether this lease exists, and no higher one.

    An NFS client may list names that are a minute old, but cannot open a file that was removed, and a new holder
    removes the leases before its own.
    """
    written = read_holder(read_bytes(lease_path(folder, mine.generation)))
    return written is not None and written.token == mine.token and newest(folder) == mine.generation


def write(path: Path, holder: Holder) -> None:
    """Write the holder to ``path``, whole or not at all.

    It is not flushed to disk: after a crash of the machine there is no holder, and a flush may take a minute during a
    large save.
    """
    temporary = path.with_name(f".{path.name}.{holder.token}")
    try:
        with contextlib.suppress(FileNotFoundError):  # a later holder has removed it: this lease is no longer valid
            temporary.write_bytes(msgspec.json.encode(holder))
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove the files of leases before the newest; a trainer that still writes them has lost."""
    highest = newest(folder)
    for name in os.listdir(folder):
        match = TRACE.fullmatch(name)
        if match and int(match[1]) < highest:
            (folder / name).unlink(missing_ok=True)


def claim(folder: Path, mine: Holder) -> bool:
    """Take the lease of that generation, if nobody has it; returns whether it was taken."""
    path = lease_path(folder, mine.generation)
    temporary = path.with_name(f".{path.name}.{mine.token}")
    try:
        temporary.write_bytes(msgspec.json.encode(mine))
        make_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # Read back from the folder, since NFS may report a link as failed that it made, and since a lease that was already
    # removed can be made again, although there is a higher one.
    taken = is_newest(folder, mine)
    clear(folder)
    return taken


def make_new(temporary: Path, path: Path) -> None:
    """Give a file its final name, unless that exists."""
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        pass  # another trainer was faster, and may have removed the temporary file
    except OSError:
        # A file system without hard links. A kill before the write leaves a damaged lease, which becomes stale.
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(temporary.read_bytes())


class Contender:
    """Watches the newest lease of a folder until it can be taken."""

    def __init__(self, folder: Path, stale_s: float) -> None:
        self.folder = folder
        self.stale_s = stale_s
        self.generation = 0
        self.content = b""
        self.holder: Holder | None = None
        self.beats = 0
        """Changes that were seen, which prove that the holder is alive."""
        self.changed_at = time.monotonic()
        self.quiet_s = 0.0
        """Seconds for which the lease has certainly not changed."""
        self.asked = 0
        """Generation of the lease whose holder was asked to hand over."""
        self.job_to_signal: str | None = None

    def look(self) -> None:
        """Read the newest lease.

        The clock is read before a look that finds no change and after one that finds one, so that time in which this
        process was suspended is never counted as silence of the holder.
        """
        began = time.monotonic()
        generation = newest(self.folder)
        content = read_bytes(lease_path(self.folder, generation))
        if (generation, content) == (self.generation, self.content):
            self.quiet_s = began - self.changed_at
            return
        self.beats = self.beats + 1 if generation == self.generation else 0
        self.generation, self.content, self.holder = generation, content, read_holder(content)
        self.changed_at, self.quiet_s = time.monotonic(), 0.0

    def reason_to_take(self) -> str | None:
        """Why the folder is free, empty where it was released or never held; None where somebody holds it."""
        if self.generation == 0 or (self.holder and self.holder.state == "released"):
            return ""
        if self.holder and is_gone(self.holder):
            return f"{self.holder} has ended without releasing it"
        return f"no sign of life of {self} for {self.quiet_s:.0f} s" if self.quiet_s >= self.stale_s else None

    def ask(self) -> None:
        """Ask the holder to save and hand over, by a file and a signal, from another machine through SLURM.

        SLURM signals all processes of the job, so that this waits for a beat as proof that the holder is alive.
        """
        if self.asked != self.generation:
            self.asked = self.generation
            write(request_path(self.folder, self.generation), new_holder(self.generation))
            self.job_to_signal = None if terminate(self.holder) else other_job(self.holder)
            log.info("%s is held by %s: asked it to save and hand over; waiting", self.folder, self)
        if self.job_to_signal and self.beats:
            signal_job(self.job_to_signal)
            self.job_to_signal = None

    def __str__(self) -> str:
        return str(self.holder or f"a trainer whose {lease_path(self.folder, self.generation).name} cannot be read")


def take(folder: Path, stale_s: float, handover_s: float, poll_s: float) -> Holder:
    """Wait for the lease of a folder and take it; returns what was written.

    Raises:
        InputError: the holder is alive and has not handed over within ``handover_s``.
    """
    contender = Contender(folder, stale_s)
    deadline = time.monotonic() + handover_s
    while time.monotonic() <= deadline:
        contender.look()
        reason = contender.reason_to_take()
        if reason is None:
            contender.ask()
        elif claim(folder, mine := new_holder(contender.generation + 1)):
            if reason:
                log.info("%s: %s; taking its place", folder, reason)
            return mine
        time.sleep(poll_s)
    raise InputError(
        str(folder),
        f"is held by {contender}, which was asked to hand over and still runs after {handover_s / 60:.0f} min",
        allowed="one trainer at a time",
        fix=f"end it, or delete {lease_path(folder, contender.generation)} if there is no such process",
    )


def is_held(folder: Path) -> bool:
    """Whether a trainer holds the lease of a folder, or may: one on another machine is not asked for a sign of life."""
    contender = Contender(folder, STALE_S)
    contender.look()
    return contender.reason_to_take() is None


class Lease:
    """A lease that this process holds, renewed by a thread until it is released or lost."""

    def __init__(self, folder: Path, mine: Holder, renew_s: float) -> None:
        self.folder = folder
        self.mine = mine
        self.renew_s = renew_s
        self.asked = False
        """Whether another trainer waits for this one, or has replaced it: finish the step, save and leave."""
        self.why_lost = ""
        self.troubled = False
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether this process no longer holds the folder, as far as it has looked."""
        return self.why_lost != ""

    def why_not_held(self) -> str:
        """Why this process no longer holds the folder, empty while it does; costs some small reads."""
        with self.lock:
            self.look()
            return self.why_lost or "it was released" * self.over.is_set()

    def look(self) -> None:
        """Read from the folder whether this lease was lost, and whether another trainer asks for it."""
        if not self.lost and not is_newest(self.folder, self.mine):
            # This one's own heartbeat may have made a deleted folder again, without a lease.
            replaced = self.folder.exists() and newest(self.folder) > 0
            self.why_lost = "another trainer has taken over" if replaced else "was deleted during the training"
            self.asked = True
            log.warning("%s: %s", self.folder, self.why_lost)
        request = request_path(self.folder, self.mine.generation)
        if not self.asked and request.exists():
            self.asked = True
            log.info("%s: asked by %s to hand over", self.folder, read_holder(read_bytes(request)) or "another trainer")

    def keep(self) -> None:
        """Renew until the end; a failure does not stop the training."""
        while not self.over.wait(self.renew_s) and not self.lost:
            try:
                self.renew()
                self.troubled = False
            except OSError as error:
                self.complain(error)

    def renew(self) -> None:
        """Give a sign of life, unless the lease was lost.

        If it is lost between look and write, its file exists again: harmless, since a higher one does, and removed.
        """
        with self.lock:
            self.look()
            if not self.lost:
                self.mine = replace(self.mine, beat=self.mine.beat + 1)
                write(lease_path(self.folder, self.mine.generation), self.mine)
                self.look()
            clear(self.folder)

    def release(self) -> None:
        """Let the next trainer start at once; if that cannot be written, it waits until the lease is stale."""
        self.over.set()
        self.thread.join()
        try:
            if is_newest(self.folder, self.mine):
                write(lease_path(self.folder, self.mine.generation), replace(self.mine, state="released"))
            clear(self.folder)
        except OSError as error:
            self.complain(error)

    def complain(self, error: OSError) -> None:
        """Warn once that the lease cannot be written."""
        if not self.troubled:
            log.warning("warning: %s: the lease cannot be renewed: %s", self.folder, error.strerror)
        self.troubled = True


@contextlib.contextmanager
def held_lease(
    state_dir: Path, *, renew_s: float = RENEW_S, stale_s: float = STALE_S, handover_s: float = HANDOVER_S
) -> Iterator[Lease]:
    """Hold a state folder until the end of the block, after waiting until no other trainer holds it.

    The wait is one poll if the holder has ended on this machine or released it, ``stale_s`` if it gives no sign of
    life, and otherwise until it has saved and left. :meth:`Lease.why_not_held` says why once this lease is not the
    newest, or was released.

    Args:
        state_dir: the folder, created if it does not exist.
        renew_s: seconds between signs of life.
        stale_s: seconds without a sign of life after which a holder has lost; many times ``renew_s``.
        handover_s: seconds to wait at most.

    Raises:
        InputError: the holder is alive and does not hand over, or the folder cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        mine = take(state_dir, stale_s, handover_s, poll_s=min(1.0, renew_s / 4))
    except OSError as error:
        fix = "make room, or name a folder that can be written"
        raise InputError(str(state_dir), f"cannot be written: {error.strerror}", fix=fix) from None
    lease = Lease(state_dir, mine, renew_s)
    lease.thread.start()
    try:
        yield lease
    finally:
        lease.release()
