"""Reads an LVIS annotation file: its annotations piece by piece, each byte parsed once.

The annotations of nearly all files are *regular*: every record has the same keys, polygons, and numbers in range. A
piece that is regular is read by simdjson field by field; any other, and any file that is not as it should be, by
msgspec record by record, which names what is wrong. The rest of the file is read with a mark in place of the list, so
that both together are the whole file.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
import numpy as np
import simdjson
from jaxtyping import Int64
from tqdm import tqdm

from lvis_rcnn.dataset.columns import columns
from lvis_rcnn.dataset.json_text import Text, json_of, last_of_repeated, mended
from lvis_rcnn.dataset.pieces import PIECE, Pieces, release
from lvis_rcnn.dataset.polygons import any_bitmap, surely_drawable
from lvis_rcnn.dataset.records import (
    AnnotationRecord,
    Category,
    FileFormat,
    Outlines,
    Rows,
    integers,
    marks_of,
    no_json,
    outlines_of,
    type_error,
)
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import ArrayFile

LIST_OPENS = re.compile(rb'"annotations"[ \t\r\n]*:[ \t\r\n]*\[')
IDS, OTHERS, MARKS = ("id", "image_id", "category_id"), ("area", "bbox", "segmentation"), ("iscrowd", "ignore")

# Errors that may be those of NaN, or of a whole number that is written as 1.0.
MENDABLE = re.compile("not readable as JSON|got float")

AnyArrays = TypeVar("AnyArrays", Rows, Outlines)


@dataclass(frozen=True)
class OutlineFiles:
    """The files that the two long arrays of all outlines are written to."""

    coordinates: ArrayFile
    runs: ArrayFile

    def restart(self) -> None:
        """Remove what an earlier reading, which failed, has written."""
        self.coordinates.restart()
        self.runs.restart()

    def write(self, outlines: Outlines) -> Outlines:
        """Append them; returns the short arrays."""
        self.coordinates.append(outlines.coordinates)
        self.runs.append(outlines.runs)
        return replace(outlines, coordinates=np.zeros(0), runs=integers(()))


def read_file(
    text: Text, where: str, files: OutlineFiles, kind: FileFormat
) -> tuple[dict[str, np.ndarray], list[Category]]:
    """All arrays of the store but the outlines, which are written to ``files``; and the categories.

    Raises:
        InputError: no JSON, a field of the wrong type or range, or records that contradict each other; the first one
            is named.
    """
    text = json_of(text, where)
    try:
        return read_strictly(text, where, files, kind)
    except InputError as error:
        if not MENDABLE.search(str(error)):
            raise
    return read_strictly(mended(text), where, files, kind)


def read_strictly(
    text: Text, where: str, files: OutlineFiles, kind: FileFormat
) -> tuple[dict[str, np.ndarray], list[Category]]:
    """The same without mending anything."""
    try:
        found = streamed(text, where, files, kind)
    except (InputError, msgspec.DecodeError, ValueError, RecursionError):
        # Only the whole file can tell which record is wrong: the list that was streamed may not be its annotations.
        found = None
    if found is None:
        file = kind.read(text, where)
        rows = read_all_rows(file.annotations, text, where, files, kind)
        found = columns(file, rows, where), file.categories
    return found


def streamed(
    text: Text, where: str, files: OutlineFiles, kind: FileFormat
) -> tuple[dict[str, np.ndarray], list[Category]] | None:
    """The same of a file that is as it should be, each byte parsed once; None or an error for any other."""
    start = first_list(text)
    if start is None:
        return None
    pieces = Pieces(text, start, AnnotationReader(where).read)
    rows = read_rows(pieces, files)
    mark = b'["' + secrets.token_hex(16).encode() + b'"]'
    file = kind.read(bytes(text[: start - 1]) + mark + bytes(text[pieces.end :]), where)
    # The list may be nested deeper, or another one of this name may follow and replace it.
    if bytes(file.annotations) != mark:
        return None
    return columns(file, rows, where), file.categories


def first_list(text: Text) -> int | None:
    """The byte after the bracket of the first list named annotations, which may not be the file's own."""
    overlap = 1 << 10
    for start in range(0, len(text), PIECE):
        found = LIST_OPENS.search(text, start, min(start + PIECE + overlap, len(text)))
        if found:
            return found.end()
        release(text, start, min(start + PIECE, len(text)))
    return None


def read_rows(pieces: Pieces[Rows], files: OutlineFiles) -> Rows:
    """All annotations of ``pieces``; their outlines are then all that ``files`` have.

    Raises:
        InputError: wrong polygons or masks.
        msgspec.DecodeError: from ``pieces``.
    """
    files.restart()
    parts = []
    with tqdm(total=len(pieces.text), desc="annotations", unit="B", unit_scale=True, disable=None) as progress:
        for rows in pieces:
            parts.append(replace(rows, outlines=files.write(rows.outlines)))
            progress.update(pieces.end - progress.n)
    return joined(parts)


def joined(parts: Sequence[AnyArrays]) -> AnyArrays:
    """Dataclasses of arrays, concatenated field by field."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(parts[0])):
        column: list[Any] = [getattr(part, name) for part in parts]
        found[name] = joined(column) if isinstance(column[0], Outlines) else np.concatenate(column)
    return type(parts[0])(**found)


def read_all_rows(annotations: msgspec.Raw, text: Text, where: str, files: OutlineFiles, kind: FileFormat) -> Rows:
    """The annotations of a file that is JSON, ``annotations`` of ``text``.

    Raises:
        InputError: the record that is wrong, and how.
    """
    pieces = Pieces(memoryview(annotations), 1, AnnotationReader(where).read)
    try:
        if not bytes(annotations).startswith(b"["):
            msgspec.json.decode(annotations, type=list[AnnotationRecord])
        return read_rows(pieces, files)
    except msgspec.ValidationError as error:
        raise type_error(text, where, in_file(str(error), pieces.done), kind.sections) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


def in_file(message: str, before: int) -> str:
    """A message of msgspec about a piece, with the record's path in the file: ``before`` records precede the piece."""
    problem, _, path = message.partition(" - at `$")
    index, bracket, rest = path.removeprefix("[").partition("]")
    place = f"[{before + int(index)}{bracket}{rest}" if bracket else "`"
    return f"{problem} - at `$.annotations{place}"


class IrregularError(Exception):
    """The piece is not regular."""


# What simdjson and NumPy raise for a value that is missing, of another type or too large, and for what is no JSON.
IRREGULAR = (IrregularError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError)


class AnnotationReader:
    """Reads pieces one after the other; its buffers are reused."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.parser = simdjson.Parser()
        self.decoder = msgspec.json.Decoder(list[AnnotationRecord])

    def read(self, text: bytes) -> Rows:
        """The annotations of a JSON list.

        Raises:
            msgspec.DecodeError: no JSON list, or (``ValidationError``) a wrong record.
            InputError: wrong polygons or masks.
        """
        rows = self.read_regular(text)
        return rows_of_records(self.records(text), self.where) if rows is None else rows

    def records(self, text: bytes) -> list[AnnotationRecord]:
        """The annotations of any JSON list, one by one; errors as of :meth:`read`."""
        try:
            return self.decoder.decode(text)
        except msgspec.ValidationError:
            return self.decoder.decode(last_of_repeated(text))

    def read_regular(self, text: bytes) -> Rows | None:
        """The annotations of a JSON list that is regular; None for any other text."""
        try:
            return regular_rows(self.parser.parse(text), text)
        except IRREGULAR:
            return None


@dataclass
class Fields:
    """The records of a piece field by field: without a container per record the garbage collector has nothing to do."""

    whole: dict[str, list[Any]]
    areas: list[Any]
    boxes: list[Any]
    """Buffers, like ``coordinates``."""
    coordinates: list[Any]
    polygons_each: list[int]
    numbers_each: list[int]


def regular_rows(records: Any, text: bytes) -> Rows:
    """All records, copied: the next piece overwrites the parser's buffers. IrregularError and others: see IRREGULAR."""
    found = fields_of(records)
    numbers_each, polygons_each = integers(found.numbers_each), integers(found.polygons_each)
    count = len(polygons_each)
    coordinates = np.frombuffer(b"".join(found.coordinates))
    # A buffer is flat however deep its lists are nested, so brackets are counted; no field is a text that may have one.
    brackets = np.count_nonzero(np.frombuffer(text, np.uint8) == ord("["))
    if brackets != 1 + 2 * count + len(numbers_each) or {box.size for box in found.boxes} != {4 * 8}:
        raise IrregularError
    if numbers_each.sum() != len(coordinates):
        raise IrregularError
    if not set(map(type, found.areas)) <= {int, float}:
        raise IrregularError
    wholes = {name: whole(numbers) for name, numbers in found.whole.items()}
    none = integers(())
    rows = Rows(
        ids=wholes["id"],
        image_ids=wholes["image_id"],
        category_ids=wholes["category_id"],
        boxes_xywh=np.frombuffer(b"".join(found.boxes)).reshape(count, 4),
        areas=np.fromiter(found.areas, np.float64),
        marks=marks_of(*(wholes.get(mark, np.zeros(count)) for mark in MARKS)),
        outlines=Outlines(
            polygons_each, numbers_each, coordinates, np.zeros_like(polygons_each), none.reshape(0, 2), none
        ),
    )
    if not in_range(rows):
        raise IrregularError
    return rows


def fields_of(records: Any) -> Fields:
    """The fields of all records; IrregularError unless all have exactly the same, each once."""
    found = Fields({name: [] for name in (*IDS, *MARKS) if name in records[0]}, [], [], [], [], [])
    width = len(found.whole) + len(OTHERS)
    whole = [(name, column.append) for name, column in found.whole.items()]
    for record in records:
        if len(record) != width:
            raise IrregularError
        for name, append in whole:
            append(record[name])
        found.areas.append(record["area"])
        found.boxes.append(record["bbox"].as_buffer(of_type="d"))
        outline = record["segmentation"]
        numbers = outline.as_buffer(of_type="d")
        found.coordinates.append(numbers)
        found.polygons_each.append(polygons := len(outline))
        # Iterating over the polygons costs as much as everything else; most outlines have one.
        found.numbers_each.extend((numbers.size // 8,) if polygons == 1 else map(len, outline))
    return found


def whole(numbers: Sequence[Any]) -> Int64[np.ndarray, " k"]:
    """Numbers that are written without a fraction; IrregularError for any other."""
    if set(map(type, numbers)) != {int}:
        raise IrregularError
    return integers(numbers)


def in_range(rows: Rows) -> bool:
    """Whether every value is one that AnnotationRecord allows."""
    numbers_each = rows.outlines.numbers_each
    outlines = rows.outlines.polygons_each.min() >= 1 and numbers_each.min() >= 6 and not (numbers_each % 2).any()
    small = surely_drawable(int(numbers_each.max()), float(np.abs(rows.outlines.coordinates).max()))
    if not (rows.areas.min() >= 0 and outlines and small):
        return False
    return not any_bitmap(rows.outlines.polygons_each, numbers_each, rows.outlines.coordinates)


def rows_of_records(records: Sequence[AnnotationRecord], where: str) -> Rows:
    """Arrays of records that are Python objects; InputError for wrong polygons or masks."""

    def field(name: str) -> Iterator[Any]:
        return map(attrgetter(name), records)

    boxes = np.fromiter(chain.from_iterable(field("bbox")), np.float64, count=4 * len(records))
    return Rows(
        ids=integers(field("id")),
        image_ids=integers(field("image_id")),
        category_ids=integers(field("category_id")),
        boxes_xywh=boxes.reshape(-1, 4),
        areas=np.fromiter(field("area"), np.float64),
        marks=marks_of(*(list(field(mark)) for mark in MARKS)),
        outlines=outlines_of(records, where),
    )
