"""Annotation records become rows of arrays, a piece of the file at a time; coordinates go to disk at once.

Beyond one piece, an annotation keeps 80 bytes of memory, whatever the length of its outline.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, truth
from typing import Any, BinaryIO

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64
from tqdm import tqdm

from lvis_rcnn.annotation_records import (
    AnnotationRecord,
    no_json,
    problem_and_path,
    record_error,
    type_error,
)
from lvis_rcnn.annotation_text import Pieces, Text
from lvis_rcnn.command import InputError
from lvis_rcnn.polygon_text import Polygons, Unread, read_polygons

LISTS_OF_POLYGONS = msgspec.json.Decoder(list[list[list[float]]])


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
    polygons_each: Int64[np.ndarray, " A"]
    numbers_each: Int64[np.ndarray, " polygons"]
    """The numbers themselves are in the file of coordinates."""


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def read_rows(pieces: Pieces, where: str, coordinates: BinaryIO) -> Rows:
    """All annotations of ``pieces``; appends their numbers to ``coordinates``.

    Raises:
        InputError: no annotation, or polygons that are none.
        msgspec.DecodeError: from ``pieces``.
    """
    parts = []
    with tqdm(total=len(pieces.text), desc="annotations", unit="B", unit_scale=True, disable=None) as progress:
        for records in pieces:
            polygons = polygons_of(records, where)
            coordinates.write(polygons.coordinates.astype("<f8", copy=False).data)
            parts.append(columns_of(records, polygons))
            progress.update(pieces.end - progress.n)
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def columns_of(records: Sequence[AnnotationRecord], polygons: Polygons) -> tuple[np.ndarray, ...]:
    """The fields of ``Rows``, in their order."""
    boxes = np.fromiter(chain.from_iterable(field(records, "bbox")), np.float64, count=4 * len(records))
    marked = np.fromiter(map(truth, field(records, "iscrowd")), bool)
    return (
        integers(field(records, "id")),
        integers(field(records, "image_id")),
        integers(field(records, "category_id")),
        boxes.reshape(-1, 4),
        np.fromiter(field(records, "area"), np.float64),
        marked | np.fromiter(map(truth, field(records, "ignore")), bool),
        polygons.polygons_each,
        polygons.numbers_each,
    )


def field(records: Sequence[AnnotationRecord], name: str) -> Iterator[Any]:
    """One field of every record."""
    return map(attrgetter(name), records)


def read_all_rows(annotations: msgspec.Raw, text: Text, where: str, coordinates: BinaryIO) -> Rows:
    """The annotations of a file that is JSON, ``annotations`` of ``text``.

    Raises:
        InputError: the record that is wrong, and how.
    """
    pieces = Pieces(memoryview(annotations), 1, AnnotationRecord)
    try:
        if not bytes(annotations).startswith(b"["):
            msgspec.json.decode(annotations, type=list[AnnotationRecord])
        rows = read_rows(pieces, where, coordinates)
        if not len(rows.ids):
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


def polygons_of(annotations: Sequence[AnnotationRecord], where: str) -> Polygons:
    """Polygons of these annotations.

    Raises:
        InputError: no polygon, fewer than 6 or an odd count of numbers, anything that is no finite number.
    """
    if not annotations:
        return Polygons(integers(()), integers(()), np.zeros(0))
    try:
        polygons = read_polygons(list(field(annotations, "segmentation")))
    except Unread:
        polygons = decoded_polygons(annotations, where)
    lengths = polygons.numbers_each
    if not polygons.polygons_each.all() or (lengths < 6).any() or (lengths % 2).any():
        raise first_error(annotations, where)
    return polygons


def decoded_polygons(annotations: Sequence[AnnotationRecord], where: str) -> Polygons:
    """The same for any spelling, by way of Python numbers: four times the time."""
    text = b"[" + b",".join(field(annotations, "segmentation")) + b"]"
    try:
        decoded = LISTS_OF_POLYGONS.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise first_error(annotations, where) from None
    numbers_each = integers(len(polygon) for polygons in decoded for polygon in polygons)
    flat = chain.from_iterable(chain.from_iterable(decoded))
    return Polygons(integers(map(len, decoded)), numbers_each, np.fromiter(flat, np.float64))


def first_error(annotations: Sequence[AnnotationRecord], where: str) -> InputError:
    """What is wrong with the first of these whose polygons are none."""
    return next(filter(None, (polygon_error(annotation, where) for annotation in annotations)))


def polygon_error(annotation: AnnotationRecord, where: str) -> InputError | None:
    """What is wrong with this annotation's polygons, if anything."""
    try:
        polygons = msgspec.json.decode(annotation.segmentation, type=list[list[float]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        is_mask = bytes(annotation.segmentation).lstrip().startswith(b"{")
        what = "segmentation is a run-length mask" if is_mask else f"segmentation{path}: {problem}"
        return record_error(where, annotation.id, "segmentation", what)
    lengths = [len(polygon) for polygon in polygons]
    bad = [(n, length) for n, length in enumerate(lengths) if length < 6 or length % 2]
    if polygons and not bad:
        return None
    what = f"segmentation[{bad[0][0]}] has {bad[0][1]} numbers" if bad else "segmentation has no polygon"
    return InputError(
        f"{where}: annotation {annotation.id}",
        what,
        allowed="one or more polygons of an even count of at least 6 numbers",
        mend="correct the polygon or remove it",
    )
