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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

YOUNG_S = 1.0


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes ``path``, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes it private; results are for the group
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, on failure it is removed.

    Whatever a killed process has left beside ``path`` is removed first. A folder cannot replace a full one in one
    call, so an existing ``path`` is put aside just before the rename: a process killed then leaves none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with locked_folder(path) as temporary:
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
    """A new folder beside ``path``, locked while this process works on it, so that no other takes it for abandoned.

    What is then left under its name is removed.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then none is taken for abandoned
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
                # One that is younger may be between its making and its lock.
                if time.time() - folder.stat().st_mtime > YOUNG_S:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


def sync(path: Path) -> None:
    """Wait until the bytes (or, for a folder, the names) are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON (sorted keys, no blanks) of ``value``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
