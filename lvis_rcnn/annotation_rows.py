"""All annotation records become rows of arrays, a piece of the file at a time; outlines go to disk at once.

Beyond one piece, an annotation keeps about 100 bytes of memory, whatever the length of its outline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter, truth
from typing import Any, TypeVar

import msgspec
import numpy as np
from tqdm import tqdm

from lvis_rcnn.annotation_outlines import Outlines, integers, outlines_of
from lvis_rcnn.annotation_pieces import PieceReader, Rows
from lvis_rcnn.annotation_records import AnnotationRecord, no_json, type_error
from lvis_rcnn.annotation_text import Pieces, Text
from lvis_rcnn.array_file import ArrayFile

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
