"""Files appear whole or not at all: written beside their place, flushed to disk, renamed."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile

from lvis_rcnn.system.cli import InputError, log

T = TypeVar("T")

YOUNG_S = 1.0  # a younger temporary folder may not be locked yet


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes ``path``, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_named(path):
            yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes it private; results are for the group
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Let an error of writing, which does not say where, name ``path``; torch.save replaces it by one of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.filename is None:
            cause.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, on failure it is removed.

    Temporary folders of killed processes are removed first. A folder cannot replace a full one in one call, so an
    existing ``path`` is moved aside just before the rename: a process killed in between leaves neither. The folder
    that a link leads to is replaced, not the link.
    """
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with locked_folder(path) as temporary:
        with full_disk_named(path):
            yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        with locked_folder(path) as old:
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            sync(path.parent)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, locked while this process uses it, so that no other process considers it abandoned.

    What is left of it in the end is removed.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then no folder is considered abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def remove_abandoned(path: Path) -> None:
    """Remove temporary folders for ``path`` whose process was killed: those that no process holds locked."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if time.time() - folder.stat().st_mtime > YOUNG_S:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


@contextlib.contextmanager
def locked_part(path: Path) -> Iterator[FileIO]:
    """Yield ``path``'s ``.part`` file, open for appending, to one writer at a time; others wait.

    Unlike the file of :func:`atomic_file` it is kept when the process is killed: a download resumes from it, and other
    writers overwrite it, so kills never leave more than one. An empty one is removed.
    """
    part = part_of(path)
    while True:
        with opened_part(part) as file:
            lock(file, part)
            # The previous writer may have removed or renamed the file that was opened here.
            if not is_file_of(file, part):
                continue
            try:
                yield file
            finally:
                if file.seek(0, os.SEEK_END) == 0 and is_file_of(file, part):
                    part.unlink(missing_ok=True)
            return


def is_file_of(file: FileIO, path: Path) -> bool:
    """Whether ``path`` is the name of the open ``file`` (one call, since others rename and remove at any moment)."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def opened_part(part: Path) -> FileIO:
    """The file, created if missing; unbuffered, so that a kill loses nothing and closing writes nothing."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        return part.open("a+b", buffering=0)
    except OSError as error:
        raise InputError(str(part), f"cannot be written: {error.strerror}", fix="name another folder") from None


def append_to_part(file: FileIO, path: Path, chunk: bytes) -> None:
    """Write all of ``chunk``; InputError if the disk or the quota is full."""
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        fix = "make room and start again"
        raise InputError(str(part_of(path)), f"cannot be written: {error.strerror}", fix=fix) from None


def part_of(path: Path) -> Path:
    """The unfinished ``path``: same folder, so that it can be renamed."""
    return path.with_name(f"{path.name}.part")


def lock(file: FileIO, path: Path) -> None:
    """Wait until no other process has ``file`` locked; the lock ends with the process, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that writes %s", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        # Some cluster file systems are mounted without locks.
        log.warning("warning: %s cannot be locked (%s): let one process at a time write it", path, error.strerror)


def keep_part(file: FileIO, path: Path) -> None:
    """Flush the ``.part`` file of :func:`locked_part` to disk and rename it to ``path``."""
    os.fsync(file.fileno())
    os.replace(part_of(path), path)
    sync(path.parent)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise InputError if the disk of ``folder`` has fewer free bytes."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        what = f"{free_bytes / 1e9:,.2f} GB are free, {needed_bytes / 1e9:,.2f} GB are needed"
        raise InputError(str(folder), what, fix="free some, or name a folder on another disk")


def sync(path: Path) -> None:
    """Wait until the bytes (or, for a folder, the names) are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def modified_at(path: Path) -> float:
    """When a file was written, in Unix seconds; 0 where another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def stats_below(folder: Path) -> Iterator[os.stat_result]:
    """Size, links and times of each file below a folder, but those that another process removes meanwhile."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(os.path.join(place, name))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # of file names that are not UTF-8


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def opened_arrays(path: Path, kind: str, fix: str) -> Iterator[NpzFile]:
    """A NumPy archive; InputError, which says what ``kind`` of file it is, where it is missing or damaged."""
    try:
        with path.open("rb") as file, NpzFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise InputError(str(path), f"no such {kind}", fix=fix) from None
    except InputError:
        raise
    except Exception as error:  # one wrong byte makes zipfile, zlib and NumPy raise errors of ten kinds
        raise InputError(str(path), f"damaged {kind} ({error})", fix=fix) from None


def parsed(decode: Callable[..., T], text: bytes | str, **more: Any) -> T:
    """What a decoder of JSON makes of a text; ValueError, not RecursionError, where it is nested too deeply."""
    try:
        return decode(text, **more)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON (sorted keys, no blanks) of ``value``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ArrayFile:
    """A flat .npy array of known type that grows on disk; its length is written when it is closed.

    (npy-append-array does the same, as a dependency.)
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype = dtype
        self.file = path.open("w+b")
        self.restart()

    def append(self, values: np.ndarray) -> None:
        """Append ``values``."""
        self.file.write(values.astype(self.dtype, copy=False).data)
        self.length += len(values)

    def restart(self) -> None:
        """Remove all values."""
        self.file.truncate(0)
        self.length = 0
        self.write_header()

    def write_header(self) -> None:
        """Write the header with the present length; NumPy pads it, so its size does not depend on the length."""
        self.file.seek(0)
        header = {"descr": self.dtype, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.write_header()
        self.file.close()


def link(source: Path, target: Path) -> None:
    """Hard link, or copy on a file system without hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
