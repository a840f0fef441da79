"""Save and restore a run: its two newest checkpoints, each complete, whatever happens while one is written.

A checkpoint is ``step00001200-<digest>.pth``, a file of ``torch.save``. The digest, the first 16 hex digits of the
SHA-256 of its bytes, is part of the name, so that both appear in one rename and damage is recognised. Until then the
file is ``.step00001200-<random>.part``, which the next start removes.
"""

import contextlib
import copy
import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lvis_rcnn.model.weights import save_model
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import sha256_of_file, sync

CHECKPOINT = re.compile(r"step[0-9]{8,}-[0-9a-f]{16}\.pth")
TEMPORARY = re.compile(r"\.step[0-9]{8,}-[a-z0-9_]{8}\.part")
DIGEST_DIGITS = 16


class FolderLost(InputError):
    """The folder of this run is another trainer's or deleted, so this one must not save any more."""


class Saver:
    """Saves the checkpoints of a run; for the one process that holds its folder.

    The two newest checkpoints are kept. A save that fails (full disk, I/O error, no permission) is a warning and leaves
    the folder as it was: the training goes on, and the next save tries again. Incomplete files of killed processes are
    removed when a saver is made.

    Args:
        folder: state folder of the run.
        saved_step: step of the checkpoint that the run goes on from, 0 if there is none; it is kept until two are
            newer, a damaged newer one is not.
        background: write in a thread, from a copy in CPU memory.
        why_not_held: why this process no longer holds the folder, empty while it does; called just before a checkpoint
            gets its name; if it raises an OSError, the save has failed.
    """

    def __init__(
        self,
        folder: Path,
        saved_step: int,
        *,
        background: bool = False,
        why_not_held: Callable[[], str] = str,
    ) -> None:
        self.folder = folder
        self.saved_step = saved_step
        self.asked_step = saved_step
        self.background = background
        self.why_not_held = why_not_held
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None
        remove(folder, is_temporary)

    @property
    def is_writing(self) -> bool:
        """Whether a save in the background is not done; the next one would wait for it."""
        return self.writing is not None and not self.writing.done()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a state for :func:`load_checkpoint`; :meth:`wait` returns whether it is on disk.

        ``state`` may change as soon as this returns, also in the background. It waits for the save before. A step that
        is saved already is not saved again.

        Args:
            step: optimizer steps done, 1 or more.
            state: containers of tensors, numbers and text, as ``torch.load(weights_only=True)`` reads them.

        Raises:
            FolderLost: the folder is no longer held, at this save or the one before.
        """
        self.wait()
        self.asked_step = step
        if step == self.saved_step:
            return
        if not self.background:
            self.write(step, state)
            return
        with self.failure_is_a_warning(step):
            self.writing = self.writer.submit(self.write, step, on_cpu(state))

    def keep(self, path: Path, weights: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Write weights that stay, in turn with the checkpoints, so that those of a step are there before its state.

        A failure is a warning. Arguments as :func:`save_model`; ``weights`` may change as soon as this returns.

        Raises:
            FolderLost: the folder was no longer held at the save before.
        """
        self.wait()
        if self.background:
            self.writing = self.writer.submit(self.write_kept, path, on_cpu(weights), meta)
        else:
            self.write_kept(path, weights, meta)

    def write_kept(self, path: Path, weights: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Write the weights, unless the folder is no longer held."""
        try:
            if not self.why_not_held():
                save_model(path, weights, meta)
        except Exception as error:
            what = f"warning: {path} cannot be written ({reason_of(error)})"
            log.warning("%s: these weights will not be scored; training goes on", what)

    def wait(self) -> bool:
        """Wait for the last :meth:`save`, and return whether its state is on disk.

        Raises:
            FolderLost: the folder was no longer held.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()
        return self.saved_step == self.asked_step

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; once it is on disk, remove all but it and the one before."""
        with self.failure_is_a_warning(step):
            newest = write_checkpoint(self.folder, step, state, self.why_not_held)
            before, self.saved_step = self.saved_step, step
            remove_older(newest, before)

    @contextlib.contextmanager
    def failure_is_a_warning(self, step: int) -> Iterator[None]:
        """No error of a save may end a week of training."""
        try:
            yield
        except FolderLost:
            raise
        except Exception as error:
            last = f"the last one is of step {self.saved_step}" if self.saved_step else "there is none yet"
            log.warning(
                "warning: no checkpoint of step %d could be saved in %s (%s); training goes on, the next save tries "
                "again, %s",
                *(step, self.folder, reason_of(error), last),
            )


def load_checkpoint(folder: Path, run: str | None = None) -> dict[str, Any] | None:
    """The state of the newest undamaged checkpoint of a run, on the CPU; None where nothing was saved yet.

    Nothing is written or removed, so that every process of a run can load. A damaged newer one is a warning.

    Args:
        folder: state folder of the run.
        run: what ``run`` of the state must be, if it has it, as states of earlier versions have not; None for any.

    Raises:
        InputError: all checkpoints are damaged; beginning again without a word might lose a week of training.
        OSError: the folder cannot be read.
    """
    damaged: list[str] = []
    for path in sorted(filter(is_checkpoint, files_of(folder)), key=step_of, reverse=True):
        try:
            state = read_checkpoint(path, run)
        except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            damaged.append(f"{path.name} cannot be used ({reason_of(error)})")
            continue
        for what in damaged:
            log.warning("warning: %s/%s; the one before is used, %s", folder, what, path.name)
        return state
    if damaged:
        fix = "restore one from a backup, or delete the folder to train from the beginning"
        raise InputError(str(folder), f"all checkpoints are damaged: {', '.join(damaged)}", fix=fix)
    return None


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is done; its model stays."""
    remove(folder, lambda path: is_checkpoint(path) or is_temporary(path))


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], why_not_held: Callable[[], str]) -> Path:
    """Write a checkpoint to disk and return its path; after an error nothing of it is left.

    Raises:
        FolderLost: the folder is no longer held.
        OSError: it could not be written; also other errors of ``torch.save``.
    """
    handle, name = tempfile.mkstemp(prefix=f".step{step:08d}-", suffix=".part", dir=folder)
    temporary = path = Path(name)
    try:
        digest = write_state(handle, state)
        if why := why_not_held():
            fix = "end the other trainer, if there is one, and start this one again"
            raise FolderLost(str(folder), f"{why} before step {step} was saved", fix=fix)
        path = folder / f"step{step:08d}-{digest[:DIGEST_DIGITS]}.pth"
        os.replace(temporary, path)
        sync(folder)
    except BaseException:
        for left in (temporary, path):
            with contextlib.suppress(OSError):
                left.unlink()
        raise
    return path


def write_state(handle: int, state: dict[str, Any]) -> str:
    """Write ``state`` to an open file, sync and close it; returns the SHA-256 of the bytes that were to be written."""
    try:
        os.fchmod(handle, 0o644)  # mkstemp makes it private; the group may read results
        file = DigestingFile(handle)
        torch.save(state, file)  # type: ignore[arg-type]  # it writes and flushes, nothing else
        os.fsync(handle)
        return file.sha256.hexdigest()
    finally:
        os.close(handle)


class DigestingFile:
    """What ``torch.save`` needs of a file; it hashes the bytes while they are written."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.sha256 = hashlib.sha256()

    def write(self, chunk: memoryview) -> int:
        """Write all of ``chunk``."""
        self.sha256.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self.handle, rest) :]
        return len(chunk)

    def flush(self) -> None:
        """Nothing is buffered."""


def read_checkpoint(path: Path, run: str | None) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises:
        ValueError: its bytes are not those that were written, or another run wrote it.
        OSError: it cannot be read; also other errors of ``torch.load``.
    """
    if sha256_of_file(path)[:DIGEST_DIGITS] != path.stem.rpartition("-")[2]:
        raise ValueError("damaged: its bytes are not those that were written")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if run is not None and state.get("run", run) != run:
        raise ValueError("it is of another run")
    return state


def on_cpu(value: Any) -> Any:
    """A deep copy with every tensor in CPU memory, in containers of the same types; the host waits for a GPU once."""
    copied = copying_to_cpu(value)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copied


def copying_to_cpu(value: Any) -> Any:
    """:func:`on_cpu` before copies from a GPU have ended; torch makes them into pinned memory, which it keeps."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # not a new dict: a model's state_dict has the versions of its modules as attribute
        copied.update((key, copying_to_cpu(entry)) for key, entry in value.items())
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(copying_to_cpu(entry) for entry in value)
    return value


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the name of a checkpoint."""
    return CHECKPOINT.fullmatch(path.name) is not None


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of a checkpoint that is being written."""
    return TEMPORARY.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """Optimizer steps done in a checkpoint."""
    return int(path.stem.removeprefix("step").partition("-")[0])


def files_of(folder: Path) -> list[Path]:
    """Entries of a folder; none if it does not exist.

    Not by glob, for which a folder that cannot be read is empty.
    """
    try:
        return [folder / name for name in os.listdir(folder)]
    except FileNotFoundError:
        return []


def remove_older(newest: Path, step_before: int) -> None:
    """Remove older checkpoints than the newest and the one before it.

    Those of later steps are kept: they are of another trainer, if this one has lost the folder without knowing it.
    """

    def is_older(path: Path) -> bool:
        return path != newest and is_checkpoint(path) and step_before != step_of(path) <= step_of(newest)

    remove(newest.parent, is_older)


def remove(folder: Path, unwanted: Callable[[Path], bool]) -> None:
    """Remove the files of a folder that are ``unwanted``; failing to is a warning."""
    with kept_with_a_warning(folder):
        for path in filter(unwanted, files_of(folder)):
            with kept_with_a_warning(path):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def kept_with_a_warning(path: Path) -> Iterator[None]:
    """An error while removing files must not end a training."""
    try:
        yield
    except OSError as error:
        log.warning("warning: old checkpoints cannot be removed: %s (%s)", path, reason_of(error))


def reason_of(error: Exception) -> str:
    """One line; the system's message if there is one, also if torch replaced the OSError by its own."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(error, ValueError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
