"""The processes of one training: one, or several that torchrun starts, each with a device of its own.

They share the normalisation groups of a step; the sum of their gradients is that of one process, to the order of
additions. One all-reduce per step carries the gradients, the losses, and whether to stop. If a process dies or hangs,
all others end within ``HANG_S`` and name it; on GPUs, where the host may be held up behind the exchange, a thread does
that (:class:`Watch`).

    torchrun --standalone --nproc-per-node 4 -m -- lvis_rcnn.train --study … (as with one process)
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lvis_rcnn.config.study import Study
from lvis_rcnn.runs.states import has_died
from lvis_rcnn.system.cli import EXIT_BAD_INPUT, InputError, log
from lvis_rcnn.system.gpus import hold_one_gpu

# A step waits this long for the slowest process, far longer than a slow file system takes for an image.
HANG_S = 300.0

# The others wait this long for the first process, which may wait for another training to hand over, or for a slow file
# system to take its last save.
FIRST_S = 1800.0

# The first process of an inference waits this long for the others.
SLOWEST_S = 7 * 86400.0

# How long a question to the store may take.
ASK_S = 5.0
ASK_AGAIN_S = 0.1

# Seconds between two looks of the watch, and how old a step is when it first asks whether the others still run. Half a
# minute after one has died, torchrun kills those beside it.
LOOK_S = 1.0
LATE_S = 5.0


class RankLost(InputError):
    """Another process died or hangs, or the device of this one."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``count`` ones."""

    rank: int
    count: int
    device: torch.device
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes log, checkpoints and results."""
        return self.rank == 0

    def share_of(self, groups: int) -> range:
        """Indices of the groups of a step that this process takes; every group belongs to exactly one process."""
        return range(self.rank, groups, self.count)

    def add_up(self, gradients: Sequence[torch.Tensor], numbers: torch.Tensor, step: int) -> torch.Tensor:
        """Replace each gradient by its sum over all processes; return the sums of ``numbers``, a float32 vector.

        On GPUs this returns before the processes have met: reading the sums waits, but at most ``HANG_S``.

        Raises:
            RankLost: names the processes that did not take part in ``step``.
        """
        if self.store is None:
            return numbers
        # One flat copy; activations are freed by now, so that the peak of memory does not grow.
        flat = torch.cat([numbers, *(gradient.reshape(-1) for gradient in gradients)])
        self.reduce(flat, distributed.ReduceOp.SUM, step)
        sums: torch.Tensor
        sums, *summed = flat.split([len(numbers), *(gradient.numel() for gradient in gradients)])
        torch._foreach_copy_(list(gradients), [new.view_as(old) for new, old in zip(summed, gradients, strict=True)])
        return sums

    def largest(self, value: int, step: int) -> int:
        """The largest of all processes' ``value``, asked for after so many steps.

        Raises:
            RankLost: names the processes that did not take part.
        """
        if self.store is None:
            return value
        numbers = torch.tensor([value], device=self.device)
        self.reduce(numbers, distributed.ReduceOp.MAX, step)
        return int(numbers)

    def reduce(self, numbers: torch.Tensor, operation: distributed.ReduceOp.RedOpType, step: int) -> None:
        """Combine the processes' ``numbers`` in place; RankLost where the exchange itself notices a lost process."""
        self.announce(step)
        try:
            distributed.all_reduce(numbers, op=operation)
        except RuntimeError as error:
            raise self.lost(step, error) from None

    def wait_for_first(self) -> None:
        """Return when the first process has arrived here; it may have waited for the lease of the run."""
        if self.store is None:
            return
        if self.is_first:
            self.store.set("first", "here")
        self.await_all(["first"], FIRST_S)

    def wait_for_all(self) -> None:
        """Return when all processes have arrived here, so that none ends while the first still writes."""
        self.meet("ended", FIRST_S)

    def meet_first(self) -> None:
        """The first process returns when all have arrived here, the others at once."""
        self.meet("came", SLOWEST_S if self.is_first else 0.0)

    def meet(self, where: str, limit_s: float) -> None:
        """Say that this process has arrived at a place, and wait up to ``limit_s`` for all; not at all if that is 0.

        Through the store, not the device, whose exchange has a shorter limit. torchrun ends this process if another one
        dies.
        """
        if self.store is None:
            return
        self.store.set(f"{where}{self.rank}", "here")
        if limit_s:
            self.await_all([f"{where}{rank}" for rank in range(self.count)], limit_s)

    def await_all(self, keys: list[str], limit_s: float) -> None:
        """Wait until the store has all keys; not by its own ``wait``, during which no signal is handled.

        Raises:
            RankLost: after ``limit_s``.
        """
        assert self.store is not None
        deadline = time.monotonic() + limit_s
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                absent = ", ".join(key for key in keys if not self.store.check([key]))
                what = f"waited {limit_s:.0f} s for other processes ({absent})"
                raise RankLost(f"rank {self.rank} of {self.count}", what, fix="start again, and see their logs")
            time.sleep(ASK_AGAIN_S)

    def announce(self, step: int) -> None:
        """Tell the others that this process has arrived at ``step``."""
        assert self.store is not None
        self.store.set(f"rank{self.rank}", f"{step} {socket.gethostname()} {os.getpid()}")

    def lost(self, step: int, error: Exception) -> RankLost:
        """The error that names the processes that did not arrive at ``step``, or that hang in it."""
        why = " ".join(str(error).split())[:120]
        if self.store is None:
            fix = "start again, it goes on from the last checkpoint; if it happens again, check the device"
            return RankLost(f"step {step} on {self.device}", why, fix=fix)
        self.store.set(f"left{self.rank}", str(step))
        behind = [f"rank {rank} {what}" for rank in range(self.count) if (what := self.behind(rank, step))]
        behind = behind or [f"rank {rank} {what}" for rank in range(self.count) if (what := self.hanging(rank))]
        return RankLost(
            f"rank {self.rank} of {self.count}, step {step}",
            f"lost contact with {', '.join(behind) or 'the others'} ({why})",
            fix="start again, it goes on from the last checkpoint; see the log of the lost process",
        )

    def one_has_died(self) -> bool:
        """Whether another process has certainly died; unknown of those on other hosts, and of those never seen."""
        if self.store is None:
            return False
        others = [f"rank{rank}" for rank in range(self.count) if rank != self.rank]
        seen = [self.store.get(name).decode().split() for name in others if self.store.check([name])]
        return any(has_died(host, int(pid)) for _, host, pid in seen)

    def behind(self, rank: int, step: int) -> str:
        """Which step another process announced last, if that is before ``step`` or the process has died since."""
        assert self.store is not None
        try:
            at, host, pid = self.store.get(f"rank{rank}").decode().split()
        except (RuntimeError, ValueError):
            return "(never seen)"
        if int(at) < step:
            return f"(host {host}, pid {pid}), last seen at step {at}"
        return f"(host {host}, pid {pid}), which has died" if has_died(host, int(pid)) else ""

    def hanging(self, rank: int) -> str:
        """Which process another one is, if it hangs in the step: it does not report the failure within ``ASK_S``."""
        assert self.store is not None
        try:
            self.store.get(f"left{rank}")
        except RuntimeError:
            _, host, pid = self.store.get(f"rank{rank}").decode().split()
            return f"(host {host}, pid {pid}), which hangs in the step"
        return ""


class Event(Protocol):
    """What the watch needs of a ``torch.cuda.Event``."""

    def query(self) -> bool:
        """Whether the device has come there."""


@dataclass
class Watched:
    """A step that the device has been given, or is being given."""

    step: int
    since: float
    """By ``time.monotonic``."""
    given: bool = False
    """Whether the host has given all of it."""
    event: Event | None = None
    """The device has come there when the step has ended; None where the host waits itself."""

    def has_ended(self) -> bool:
        """Whether nothing of it is left to wait for."""
        return self.given and (self.event is None or self.event.query())


class Watch:
    """Ends this process, and says why, when a step on a GPU does not end: a thread, for the host may be held up, too.

    Behind an exchange that another process has left, the host waits for its GPU without a limit, and can neither raise
    an error nor handle a signal. The limit is ``HANG_S``, or ``LATE_S`` where another process has died. Only for a GPU:
    on a CPU the exchange itself notices, and a step may take its time.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.record: Callable[[RankLost], None] | None = None
        """Called with the error before the process ends."""
        self.steps: deque[Watched] = deque()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        if self.ranks.device.type == "cuda":
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()

    @contextmanager
    def step(self, step: int) -> Iterator[Watched]:
        """Watch what the block gives the device, until its ``event``; without one until the end of the block."""
        watched = Watched(step, time.monotonic())
        if self.thread.is_alive():
            self.steps.append(watched)
        try:
            yield watched
        finally:
            watched.given = True

    def keep(self) -> None:
        """Look until the end."""
        while not self.over.wait(LOOK_S):
            if (error := self.look()) is not None:
                log.error("error: %s", error)
                try:
                    if self.record is not None:
                        self.record(error)
                finally:
                    end_process()

    def look(self) -> RankLost | None:
        """The error if the oldest step does not end."""
        while self.steps and self.steps[0].has_ended():
            self.steps.popleft()
        if not self.steps or self.over.is_set():
            return None
        oldest = self.steps[0]
        waited_s = time.monotonic() - oldest.since
        if waited_s <= HANG_S and not (waited_s > LATE_S and self.ranks.one_has_died()):
            return None
        return self.ranks.lost(oldest.step, TimeoutError(f"the device has not ended a step in {waited_s:.0f} s"))


def end_process() -> NoReturn:
    """End this process, although its main thread is held up."""
    os._exit(EXIT_BAD_INPUT)


def launched(name: str, default: str = "", is_allowed: Callable[[str], bool] = str.isdecimal) -> str:
    """What torchrun passes on, by default a number; InputError where it is missing or not allowed."""
    text = os.environ.get(name, default)
    if not is_allowed(text):
        fix = "start by torchrun, or unset WORLD_SIZE, RANK and LOCAL_RANK"
        raise InputError(
            f"{name} of the environment", f"is {text or 'missing'}", allowed="as torchrun sets it", fix=fix
        )
    return text


@contextmanager
def started(device: str) -> Iterator[Ranks]:
    """This process, connected with the others that torchrun started, if any.

    Args:
        device: cpu or cuda; each process of a machine takes a GPU of its own.

    Raises:
        InputError: fewer GPUs than processes, or an environment that torchrun did not make.
    """
    count, local = int(launched("WORLD_SIZE", "1")), int(launched("LOCAL_RANK", "0"))
    chosen = process_device(device, local)
    if count == 1:
        yield Ranks(0, 1, chosen)
        return
    rank = int(launched("RANK"))
    # torchrun itself serves the store, so it outlives any rank.
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = launched("MASTER_ADDR", is_allowed=bool), int(launched("MASTER_PORT"))
    store = TCPStore(address, port, count, rank == 0 and not served, timeout=timedelta(seconds=HANG_S))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefixed = PrefixStore(f"lvis_rcnn/{attempt}", store)
    # NCCL's own watchdog ends the process without our message, so that it gets more time than our watch.
    backend, limit_s = ("nccl", 1.2 * HANG_S) if chosen.type == "cuda" else ("gloo", HANG_S)
    distributed.init_process_group(
        backend, store=prefixed, rank=rank, world_size=count, timeout=timedelta(seconds=limit_s)
    )
    steps = PrefixStore(f"lvis_rcnn/{attempt}/steps", store)
    steps.set_timeout(timedelta(seconds=ASK_S))
    yield Ranks(rank, count, chosen, steps)
    # Not after an error: it would wait for a lost process.
    distributed.destroy_process_group()


def process_device(device: str, local: int) -> torch.device:
    """The device of process ``local`` of its machine."""
    if device != "cuda":
        return torch.device(device)
    visible = torch.cuda.device_count()
    if local >= visible:
        raise InputError(
            f"process {local} of this machine",
            f"has no GPU: {visible} are visible",
            allowed="as many processes on a machine as it has GPUs",
            fix="start torchrun with a smaller --nproc-per-node",
        )
    chosen = torch.device("cuda", local)
    torch.cuda.set_device(chosen)
    return chosen


def require_device(study: Study, study_file: Path) -> None:
    """Hold a GPU if the study computes on one, and refuse a machine without.

    Raises:
        InputError: names the study file.
    """
    if study.compute.device != "cuda":
        return
    hold_one_gpu()
    built = f"torch {torch.__version__}"
    built += " was built without CUDA" if torch.version.cuda is None else f" (CUDA {torch.version.cuda}) sees no GPU"
    if not torch.cuda.is_available():
        raise InputError(
            f"{study_file}: compute.device",
            f"is cuda, but {built}",
            allowed="cpu, or cuda where torch.cuda.is_available()",
            fix="run on a GPU node with a CUDA build of torch",
        )
    log.info("torch %s, CUDA %s, %s", torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
