"""The records of a file of a gigabyte, a few megabytes at a time.

The list of annotations is cut between two records, wherever the part before the cut is a complete list of JSON values:
text of which that is true cannot end inside a value. What stands around the list is then read with a mark in its
place, so that both together say what the whole file says, and each byte is parsed once.
"""

import hashlib
import mmap
import re
import secrets
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from lvis_rcnn.command import InputError

# Bytes of annotations that are Python objects at the same time: about twice as many bytes.
PIECE = 1 << 21

# Bytes at the end of a piece among which a border of two records is looked for first.
TAIL = 1 << 13

BORDER = re.compile(rb"\}[ \t\r\n]*(,)[ \t\r\n]*\{")
LIST_OPENS = re.compile(rb'"annotations"[ \t\r\n]*:[ \t\r\n]*\[')
LIST_CLOSED = re.compile(r"trailing characters \(byte (\d+)\)")

Text = bytes | mmap.mmap | memoryview
Values = TypeVar("Values", bound=Sized)


def read_text(path: Path) -> bytes | mmap.mmap:
    """The file's bytes, mapped where it is a plain file.

    Raises:
        InputError: there is no such readable file.
    """
    try:
        with path.open("rb") as file:
            if path.is_file() and path.stat().st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except OSError as error:
        raise InputError(
            str(path), f"annotation file not readable: {error.strerror}", mend="name an LVIS-format JSON file"
        ) from None


def release(text: Text, start: int, end: int) -> None:
    """Give pages back that have been read; they would count as memory of this process."""
    if isinstance(text, mmap.mmap):
        first, last = (at // mmap.PAGESIZE * mmap.PAGESIZE for at in (start, end))
        if last > first:
            text.madvise(mmap.MADV_DONTNEED, first, last - first)


def sha256_of(text: Text) -> str:
    """Hex SHA-256 of the bytes."""
    digest = hashlib.sha256()
    view = memoryview(text)
    for start in range(0, len(text), PIECE):
        digest.update(view[start : start + PIECE])
        release(text, start, min(start + PIECE, len(text)))
    return digest.hexdigest()


class Pieces(Generic[Values]):
    """The values of a JSON list, piece by piece, each as ``read`` gives it; ``end`` is then behind its bracket.

    Args:
        read: makes the values of a text that is a JSON list, or raises ``msgspec.DecodeError``; its message has to be
            msgspec's where the list ends before the text.

    Raises:
        msgspec.DecodeError: no JSON, or (``ValidationError``) a value that is not as it should be. ``done`` values
            were read before.
    """

    def __init__(self, text: Text, start: int, read: Callable[[bytes], Values]) -> None:
        self.text = text
        self.view = memoryview(text)
        self.end = start
        self.done = 0
        self.read = read

    def __iter__(self) -> Iterator[Values]:
        """Read on from ``start``, which is behind the opening bracket."""
        size, closed = PIECE, False
        while not closed:
            limit = min(self.end + size, len(self.text))
            try:
                values, end, closed = self.read_piece(limit)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                if limit == len(self.text):
                    raise
                size *= 2  # the cut was no border of two values
                continue
            yield values
            release(self.text, self.end, end)
            self.end, self.done, size = end, self.done + len(values), PIECE

    def read_piece(self, limit: int) -> tuple[Values, int, bool]:
        """Values up to the last border before ``limit``, where they end, and whether the list ends with them."""
        border = last_border(self.text, self.end, limit) if limit < len(self.text) else None
        try:
            values = self.decode(border or limit, b"]" * (border is not None))
            return values, (border or limit - 1) + 1, border is None
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError as error:
            closed = LIST_CLOSED.search(str(error))
            if closed is None:
                raise
        end = self.end + int(closed[1]) - 2  # msgspec counts bytes from 1, and the bracket
        return self.decode(end, b""), end, True

    def decode(self, end: int, close: bytes) -> Values:
        """The values from where we are to ``end``."""
        return self.read(b"".join((b"[", self.view[self.end : end], close)))


def last_border(text: Text, start: int, limit: int) -> int | None:
    """Where the comma of the last border of two records before ``limit`` stands, if there is any."""
    for first in (max(start, limit - TAIL), start):
        commas = [found.start(1) for found in BORDER.finditer(text, first, limit)]
        if commas:
            return commas[-1]
    return None


def first_list(text: Text) -> int | None:
    """Where the first list named annotations begins, behind its bracket; not necessarily the file's own."""
    overlap = 1 << 10
    for start in range(0, len(text), PIECE):
        found = LIST_OPENS.search(text, start, min(start + PIECE + overlap, len(text)))
        if found:
            return found.end()
        release(text, start, min(start + PIECE, len(text)))
    return None


class Sections(msgspec.Struct):
    """Whether a list stands where it was taken from."""

    annotations: msgspec.Raw


def without_list(text: Text, start: int, end: int) -> bytes | None:
    """The file without the values of the list from ``start`` to ``end``; None unless it is the file's annotations.

    Another key of this name may follow and replace it, or the list may lie deeper.
    """
    mark = b'["' + secrets.token_hex(16).encode() + b'"]'
    rest = bytes(text[: start - 1]) + mark + bytes(text[end:])
    found = bytes(msgspec.json.decode(rest, type=Sections).annotations)
    return rest if found == mark else None
