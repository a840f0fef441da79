"""The records of a file of a gigabyte, a few megabytes at a time.

The list of annotations is cut between two records, wherever the part before the cut is a complete list of JSON values:
text of which that is true cannot end inside a value. What stands around the list is then read with a mark in its
place, so that both together say what the whole file says, and each byte is parsed once.
"""

import hashlib
import mmap
import re
import secrets
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter, truth
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import simdjson
from jaxtyping import Bool, Float64, Int64
from tqdm import tqdm

from lvis_rcnn.dataset.records import AnnotationRecord, Outlines, Text, integers, no_json, outlines_of, type_error
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import ArrayFile

# Bytes of annotations that are Python objects at the same time: about twice as many bytes.
PIECE = 1 << 21

# Bytes at the end of a piece among which a border of two records is looked for first.
TAIL = 1 << 13

BORDER = re.compile(rb"\}[ \t\r\n]*(,)[ \t\r\n]*\{")
LIST_OPENS = re.compile(rb'"annotations"[ \t\r\n]*:[ \t\r\n]*\[')
LIST_CLOSED = re.compile(r"trailing characters \(byte (\d+)\)")


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
            str(path), f"annotation file not readable: {error.strerror}", fix="name an LVIS-format JSON file"
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


IDS, OTHERS, MARKS = ("id", "image_id", "category_id"), ("area", "bbox", "segmentation"), ("iscrowd", "ignore")


@dataclass(frozen=True, eq=False)
class Rows:
    """Annotations in the order of the file, with the ids that stand there."""

    ids: Int64[np.ndarray, " A"]
    image_ids: Int64[np.ndarray, " A"]
    category_ids: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    areas: Float64[np.ndarray, " A"]
    marked: Bool[np.ndarray, " A"]
    """iscrowd or ignore."""
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.ids)


class Unusual(Exception):
    """The piece is not simply what nearly all are."""


# What simdjson and NumPy raise for a value that is missing, of another type, or too large; and for what is no JSON.
SURPRISES = (Unusual, LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError)


class PieceReader:
    """Reads pieces one after the other; its buffers are used again."""

    def __init__(self) -> None:
        self.parser = simdjson.Parser()

    def read(self, text: bytes) -> Rows | None:
        """The records of ``text``, a JSON list; None where it is no such list, or an unusual one."""
        try:
            return rows_of_piece(self.parser.parse(text), text)
        except SURPRISES:
            return None


@dataclass
class Fields:
    """What stands in the records, field by field. No container is kept for a record, so the garbage collector rests."""

    whole: dict[str, list[Any]]
    areas: list[Any]
    boxes: list[Any]
    """Buffers, as are the next."""
    coordinates: list[Any]
    polygons_each: list[int]
    numbers_each: list[int]


def rows_of_piece(records: Any, text: bytes) -> Rows:
    """All records. Nothing of the parser may outlive this call: the next piece overwrites it."""
    found = values(records)
    numbers_each, polygons_each = integers(found.numbers_each), integers(found.polygons_each)
    count = len(polygons_each)
    coordinates = np.frombuffer(b"".join(found.coordinates))
    # A buffer is flat whatever the depth of its lists. Strings cannot hide a bracket: no field of these is one.
    brackets = np.count_nonzero(np.frombuffer(text, np.uint8) == ord("["))
    if brackets != 1 + 2 * count + len(numbers_each) or {box.size for box in found.boxes} != {4 * 8}:
        raise Unusual
    if numbers_each.sum() != len(coordinates):
        raise Unusual
    columns = {name: whole(numbers) for name, numbers in found.whole.items()}
    marked = [columns.get(mark, np.zeros(count)).astype(bool) for mark in MARKS]
    rows = Rows(
        ids=columns["id"],
        image_ids=columns["image_id"],
        category_ids=columns["category_id"],
        boxes_xywh=np.frombuffer(b"".join(found.boxes)).reshape(count, 4),
        areas=reals(found.areas),
        marked=np.logical_or(*marked),
        outlines=polygons_only(polygons_each, numbers_each, coordinates),
    )
    if not in_range(rows):
        raise Unusual
    return rows


def values(records: Any) -> Fields:
    """The fields of all records; Unusual unless each has exactly the same ones, each once."""
    found = Fields({name: [] for name in (*IDS, *MARKS) if name in records[0]}, [], [], [], [], [])
    width = len(found.whole) + len(OTHERS)
    whole = [(name, column.append) for name, column in found.whole.items()]
    for record in records:
        if len(record) != width:
            raise Unusual
        for name, append in whole:
            append(record[name])
        found.areas.append(record["area"])
        found.boxes.append(record["bbox"].as_buffer(of_type="d"))
        outline = record["segmentation"]
        numbers = outline.as_buffer(of_type="d")
        found.coordinates.append(numbers)
        found.polygons_each.append(polygons := len(outline))
        # To go through the polygons costs as much as all the rest; most outlines have one.
        found.numbers_each.extend((numbers.size // 8,) if polygons == 1 else map(len, outline))
    return found


def whole(numbers: Sequence[Any]) -> Int64[np.ndarray, " k"]:
    """Whole numbers that are written as such."""
    if set(map(type, numbers)) != {int}:
        raise Unusual
    return integers(numbers)


def reals(numbers: Sequence[Any]) -> Float64[np.ndarray, " k"]:
    """Numbers."""
    if not set(map(type, numbers)) <= {int, float}:
        raise Unusual
    return np.fromiter(numbers, np.float64)


def polygons_only(
    polygons_each: Int64[np.ndarray, " A"],
    numbers_each: Int64[np.ndarray, " polygons"],
    coordinates: Float64[np.ndarray, " numbers"],
) -> Outlines:
    """Outlines without a mask."""
    none = integers(())
    return Outlines(polygons_each, numbers_each, coordinates, np.zeros_like(polygons_each), none.reshape(0, 2), none)


def in_range(rows: Rows) -> bool:
    """Whether every value is one that annotation_records.py allows."""
    numbers_each = rows.outlines.numbers_each
    ids = (rows.ids.min(), rows.image_ids.min(), rows.category_ids.min())
    outlines = rows.outlines.polygons_each.min() >= 1 and numbers_each.min() >= 6 and not (numbers_each % 2).any()
    return bool(min(ids) >= 1 and rows.areas.min() >= 0 and outlines)


AnyArrays = TypeVar("AnyArrays", Rows, Outlines)


@dataclass(frozen=True)
class OutlineFiles:
    """Where the two long arrays of all outlines are written."""

    coordinates: ArrayFile
    runs: ArrayFile

    def write(self, outlines: Outlines) -> Outlines:
        """Append them; what is left is short."""
        self.coordinates.append(outlines.coordinates)
        self.runs.append(outlines.runs)
        return replace(outlines, coordinates=np.zeros(0), runs=integers(()))

    def restart(self) -> None:
        """Forget all."""
        self.coordinates.restart()
        self.runs.restart()


class Records:
    """Reads the text of a piece: at once where it is as nearly all are, else record by record."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.reader = PieceReader()
        self.decoder = msgspec.json.Decoder(list[AnnotationRecord])

    def read(self, text: bytes) -> Rows | list[AnnotationRecord]:
        """``text`` is a JSON list.

        Raises:
            msgspec.DecodeError: it is none, or (``ValidationError``) one of something else.
        """
        rows = self.reader.read(text)
        return self.decoder.decode(text) if rows is None else rows

    def rows(self, found: Rows | list[AnnotationRecord]) -> Rows:
        """What was read, as arrays; InputError for polygons or masks that are none."""
        return found if isinstance(found, Rows) else rows_of_records(found, self.where)


def read_rows(pieces: Pieces[Rows | list[AnnotationRecord]], records: Records, files: OutlineFiles) -> Rows:
    """All annotations of ``pieces``; appends their outlines to ``files``.

    Raises:
        InputError: polygons or masks that are none.
        msgspec.DecodeError: from ``pieces``.
    """
    parts = []
    with tqdm(total=len(pieces.text), desc="annotations", unit="B", unit_scale=True, disable=None) as progress:
        for piece in pieces:
            rows = records.rows(piece)
            parts.append(replace(rows, outlines=files.write(rows.outlines)))
            progress.update(pieces.end - progress.n)
    return joined(parts)


def joined(parts: Sequence[AnyArrays]) -> AnyArrays:
    """Dataclasses of arrays, one behind the other."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(parts[0])):
        column: list[Any] = [getattr(part, name) for part in parts]
        found[name] = joined(column) if isinstance(column[0], Outlines) else np.concatenate(column)
    return type(parts[0])(**found)


def rows_of_records(records: Sequence[AnnotationRecord], where: str) -> Rows:
    """The same from one object a record; InputError for polygons or masks that are none."""
    boxes = np.fromiter(chain.from_iterable(field(records, "bbox")), np.float64, count=4 * len(records))
    marked = np.fromiter(map(truth, field(records, "iscrowd")), bool)
    return Rows(
        ids=integers(field(records, "id")),
        image_ids=integers(field(records, "image_id")),
        category_ids=integers(field(records, "category_id")),
        boxes_xywh=boxes.reshape(-1, 4),
        areas=np.fromiter(field(records, "area"), np.float64),
        marked=marked | np.fromiter(map(truth, field(records, "ignore")), bool),
        outlines=outlines_of(records, where),
    )


def field(records: Sequence[AnnotationRecord], name: str) -> Iterator[Any]:
    """One field of every record."""
    return map(attrgetter(name), records)


def read_all_rows(annotations: msgspec.Raw, text: Text, where: str, files: OutlineFiles) -> Rows:
    """The annotations of a file that is JSON, ``annotations`` of ``text``.

    Raises:
        InputError: the record that is wrong, and how.
    """
    records = Records(where)
    pieces = Pieces(memoryview(annotations), 1, records.read)
    try:
        if not bytes(annotations).startswith(b"["):
            msgspec.json.decode(annotations, type=list[AnnotationRecord])
        rows = read_rows(pieces, records, files)
        if not len(rows):
            raise msgspec.ValidationError("Expected `array` of length >= 1")
        return rows
    except msgspec.ValidationError as error:
        raise type_error(text, where, in_file(str(error), pieces.done)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


def in_file(message: str, before: int) -> str:
    """A message of msgspec about a piece, with the path of the record in the file: ``before`` precede the piece."""
    problem, _, path = message.partition(" - at `$")
    index, bracket, rest = path.removeprefix("[").partition("]")
    place = f"[{before + int(index)}{bracket}{rest}" if bracket else "`"
    return f"{problem} - at `$.annotations{place}"
