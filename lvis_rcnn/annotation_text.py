"""The records of a file of a gigabyte, a few megabytes at a time.

The list of annotations is cut between two records, wherever the part before the cut is a complete list of JSON values:
text of which that is true cannot end inside a value. What stands around the list is then read with a mark in its
place, so that both together say what the whole file says, and each byte is parsed once.
"""

import hashlib
import mmap
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lvis_rcnn.command import InputError

# Bytes of annotations that are Python objects at the same time: about twice as many bytes.
PIECE = 1 << 21

# Bytes at the end of a piece among which a border of two records is looked for first.
TAIL = 1 << 16

BORDER = re.compile(rb"\}[ \t\r\n]*(,)[ \t\r\n]*\{")
LIST_OPENS = re.compile(rb'"annotations"[ \t\r\n]*:[ \t\r\n]*\[')
LIST_CLOSED = re.compile(r"trailing characters \(byte (\d+)\)")

Text = bytes | mmap.mmap | memoryview


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
    for start in range(0, len(text), PIECE):
        digest.update(text[start : start + PIECE])
        release(text, start, start + PIECE)
    return digest.hexdigest()


class Pieces:
    """The values of a JSON list, piece by piece, each a list of ``kind``; ``end`` is then behind its bracket.

    Raises:
        msgspec.DecodeError: no JSON, or (``ValidationError``) a value that is not of the kind. ``done`` values were
            read before.
    """

    def __init__(self, text: Text, start: int, kind: type) -> None:
        self.text = text
        self.end = start
        self.done = 0
        self.decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]

    def __iter__(self) -> Iterator[list]:  # type: ignore[type-arg]
        """Read on from ``start``, which is behind the opening bracket."""
        size = PIECE
        while True:
            piece = self.text[self.end : self.end + size]
            last = self.end + size >= len(self.text)
            try:
                values, length, closed = self.read_piece(bytes(piece), last)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                if last:
                    raise
                size *= 2  # the cut was no border of two values
                continue
            yield values
            release(self.text, self.end, self.end + length)
            self.end, self.done, size = self.end + length, self.done + len(values), PIECE
            if closed:
                return

    def read_piece(self, piece: bytes, last: bool) -> tuple[list, int, bool]:  # type: ignore[type-arg]
        """Values of the longest piece that ends at a border, its length, and whether the list ends with it."""
        border = None if last else last_border(piece)
        cut = piece if border is None else piece[:border]
        try:
            values = self.decoder.decode(b"[" + cut + b"]" * (border is not None))
            return values, len(cut) + (border is not None), border is None
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError as error:
            closed = LIST_CLOSED.search(str(error))
            if closed is None:
                raise
        length = int(closed[1]) - 2  # msgspec counts bytes from 1, and the bracket
        return self.decoder.decode(b"[" + piece[:length]), length, True


def last_border(piece: bytes) -> int | None:
    """Where the comma of the last border stands, if there is any."""
    for start in (max(0, len(piece) - TAIL), 0):
        commas = [found.start(1) for found in BORDER.finditer(piece, start)]
        if commas:
            return commas[-1]
    return None


def first_list(text: Text) -> int | None:
    """Where the first list named annotations begins, behind its bracket; not necessarily the file's own."""
    overlap = 1 << 10
    for start in range(0, len(text), PIECE):
        found = LIST_OPENS.search(bytes(text[start : start + PIECE + overlap]))
        if found:
            return start + found.end()
        release(text, start, start + PIECE)
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
