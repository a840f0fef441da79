"""A piece of annotation records becomes arrays in one pass, without a Python object for a coordinate.

A gigabyte of annotations holds 110 million numbers; as Python floats they cost 15 s and 3 GB. simdjson copies the
numbers of an outline into one buffer, each correctly rounded: bit for bit what ``float`` gives. A piece with anything
unusual in it (a further key, a key that stands twice, a mask, a value of another type or out of range) is left to
annotation_rows.py, which reads record by record and says what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simdjson
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.annotation_outlines import Outlines, integers

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
class Values:
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


def values(records: Any) -> Values:
    """The fields of all records; Unusual unless each has exactly the same ones, each once."""
    found = Values({name: [] for name in (*IDS, *MARKS) if name in records[0]}, [], [], [], [], [])
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
