"""Detections of any detector as flat arrays: from a results file as the LVIS server takes it, or from shards.

A results file is a list of {"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation": RLE or
polygons}. It is read a few megabytes at a time, so that its records are never all Python objects at once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int64
from msgspec import Meta

from lvis_rcnn.dataset.detections import read_shards
from lvis_rcnn.dataset.reader import Pieces, read_text
from lvis_rcnn.dataset.records import Text
from lvis_rcnn.evaluation.ground_truth import Truth, positions
from lvis_rcnn.evaluation.masks import Masks, Rle, Segmentation, damaged, no_masks, packed_mask, wrong_size
from lvis_rcnn.system.cli import InputError

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, Kind] = ("bbox", "segm")

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Result(msgspec.Struct, frozen=True, gc=False):
    """One detection; boxes and polygons in pixels of the original image."""

    image_id: Id
    category_id: Id
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: Segmentation | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """``d`` detections in the order of their file, which decides among equal scores."""

    where: str
    """Name of the file or folder, for messages."""
    image_ids: Int64[np.ndarray, " d"]
    category_ids: Int64[np.ndarray, " d"]
    scores: Float[np.ndarray, " d"]
    """float32 or float64, as they were written."""
    boxes_xywh: Float[np.ndarray, "d 4"] | None
    masks: Masks | None
    has_mask: Bool[np.ndarray, " d"] | None = None
    """Which detections have one, where not all do: see dataset.detections."""

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.image_ids)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that can be scored."""
        present = {"bbox": self.boxes_xywh is not None, "segm": self.masks is not None}
        return tuple(kind for kind in KINDS if present[kind])

    def record(self, row: int) -> str:
        """Name of a detection, for messages."""
        return record_name(self.where, row, int(self.image_ids[row]), int(self.category_ids[row]))


def record_name(where: str, row: int, image_id: int, category_id: int) -> str:
    """How messages name a detection."""
    return f"{where}: result {row} (image {image_id}, category {category_id})"


def read_found(path: Path, truth: Truth, with_masks: bool = True) -> Found:
    """Detections of a folder of shards or of a results file, checked.

    Args:
        path: folder or file.
        truth: what they are to be compared with.
        with_masks: whether masks of shards are read too.

    Raises:
        InputError: damaged, a record is not a detection, or as :func:`check_found`.
    """
    found = found_in_shards(path, with_masks) if path.is_dir() else found_in_file(path, truth)
    check_found(found, truth)
    return found


def found_in_shards(folder: Path, with_masks: bool) -> Found:
    """Detections of a folder of shards."""
    read = read_shards(folder, with_masks)
    masks = Masks(read.mask_sizes.astype(np.int64), read.rle_offsets, read.rle_counts) if with_masks else None
    has_mask = None if read.has_mask.all() else read.has_mask
    return Found(str(folder), read.image_ids, read.category_ids, read.scores, read.boxes_xywh, masks, has_mask)


def found_in_file(path: Path, truth: Truth) -> Found:
    """Detections of a results file.

    Raises:
        InputError: no such file, no JSON, a record is not a detection or not of the kinds of the first.
    """
    if not path.is_file():
        raise InputError(str(path), "no such file")
    text = read_text(path)
    columns = Columns(str(path), truth)
    try:
        for records in pieces_of(text):
            columns.add(records)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Only the file as a whole can say what is wrong; NaN is none of JSON, but people's tools write it.
        columns = Columns(str(path), truth)
        columns.add(all_records(path))
    return columns.found()


def pieces_of(text: Text) -> Iterator[list[Result]]:
    """The records of a file that is JSON; msgspec.DecodeError where it is none, or a record is not a detection."""
    start = next((at for at in range(min(len(text), 1 << 10)) if text[at : at + 1] not in b" \t\r\n"), 0)
    if text[start : start + 1] != b"[":
        raise msgspec.DecodeError("no list")
    pieces = Pieces(text, start + 1, msgspec.json.Decoder(list[Result]).decode)
    yield from pieces
    if bytes(text[pieces.end :]).strip(b" \t\r\n"):
        raise msgspec.DecodeError("trailing characters")


def all_records(path: Path) -> list[Result]:
    """The same, all at once and slowly, with the error that names the record."""
    try:
        return msgspec.convert(json.loads(path.read_bytes()), list[Result])
    except msgspec.ValidationError as error:
        raise InputError(str(path), str(error), fix="correct the file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"not readable as JSON: {error}", fix="get the file again") from None


def found_of(results: Sequence[Result], truth: Truth, where: str = "results") -> Found:
    """Detections that are in memory, checked."""
    columns = Columns(where, truth)
    columns.add(results)
    found = columns.found()
    check_found(found, truth)
    return found


class Columns:
    """Records become arrays, piece by piece."""

    def __init__(self, where: str, truth: Truth) -> None:
        self.where = where
        self.truth = truth
        self.count = 0
        self.kinds: tuple[Kind, ...] = KINDS
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in ("images", "categories", "scores", "boxes")}
        self.sizes: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.counts: list[bytes] = []

    def add(self, records: Sequence[Result]) -> None:
        """Append some; InputError for one that is not of the kinds of the first, or whose mask is none."""
        if not records:
            return
        if not self.count:
            self.kinds = kinds_of(records[0])
        boxes, masks = field(records, "bbox"), field(records, "segmentation")
        if not all_alike(boxes, "bbox" in self.kinds) or not all_alike(masks, "segm" in self.kinds) or not self.kinds:
            raise self.other_kinds(records)
        number = len(records)
        self.parts["images"].append(np.fromiter(field(records, "image_id"), np.int64, number))
        self.parts["categories"].append(np.fromiter(field(records, "category_id"), np.int64, number))
        self.parts["scores"].append(np.fromiter(field(records, "score"), np.float64, number))
        if "bbox" in self.kinds:
            self.parts["boxes"].append(np.fromiter(chain.from_iterable(boxes), np.float64, 4 * number))
        if "segm" in self.kinds:
            self.add_masks(records)
        self.count += number

    def add_masks(self, records: Sequence[Result]) -> None:
        """Append the masks of ``records``."""
        packed = [
            (record.segmentation.size, record.segmentation.counts.encode())
            if isinstance(record.segmentation, Rle) and isinstance(record.segmentation.counts, str)
            else self.drawn(record, self.count + place)
            for place, record in enumerate(records)
        ]
        self.sizes.append(np.array([size for size, _ in packed], np.int64).reshape(-1, 2))
        self.lengths.append(np.fromiter((len(counts) for _, counts in packed), np.int64, len(packed)))
        self.counts.append(b"".join(counts for _, counts in packed))

    def drawn(self, result: Result, row: int) -> tuple[Sequence[int], bytes]:
        """Size and compressed run lengths of a mask that is polygons or a list of run lengths."""
        record = record_name(self.where, row, result.image_id, result.category_id)
        image = int(positions(self.truth.image_ids, np.array([result.image_id]))[0])
        if image < 0:
            raise unknown_image(record)
        height, width = self.truth.sizes_hw[image].tolist()
        segmentation = result.segmentation
        assert segmentation is not None
        packed = packed_mask(segmentation, (height, width), record)
        return packed["size"], packed["counts"]

    def other_kinds(self, records: Sequence[Result]) -> InputError:
        """The line for the first that is not of the kinds of the first of all."""
        place = next((at for at, record in enumerate(records) if kinds_of(record) != self.kinds or not self.kinds), 0)
        kinds = " and ".join(kinds_of(records[place])) or "nothing"
        record = record_name(self.where, self.count + place, records[place].image_id, records[place].category_id)
        return InputError(record, f"has {kinds}, result 0 has {' and '.join(self.kinds) or 'nothing'}")

    def found(self) -> Found:
        """All of them; both kinds where there is none, since nothing found is AP 0."""
        none = {"images": np.zeros(0, np.int64), "categories": np.zeros(0, np.int64)}
        joined = {name: np.concatenate([none.get(name, np.zeros(0)), *parts]) for name, parts in self.parts.items()}
        return Found(
            where=self.where,
            image_ids=joined["images"],
            category_ids=joined["categories"],
            scores=joined["scores"],
            boxes_xywh=joined["boxes"].reshape(-1, 4) if "bbox" in self.kinds else None,
            masks=self.masks() if "segm" in self.kinds else None,
        )

    def masks(self) -> Masks:
        """All masks."""
        if not self.count:
            return no_masks()
        offsets = np.zeros(self.count + 1, np.int64)
        np.cumsum(np.concatenate(self.lengths), out=offsets[1:])
        return Masks(np.concatenate(self.sizes), offsets, np.frombuffer(b"".join(self.counts), np.uint8))


def field(records: Sequence[Result], name: str) -> list[Any]:
    """One field of every record."""
    return list(map(attrgetter(name), records))


def all_alike(values: list[Any], present: bool) -> bool:
    """Whether all values are there, or none is."""
    absent = values.count(None)
    return absent == (0 if present else len(values))


def kinds_of(result: Result) -> tuple[Kind, ...]:
    """The kinds that a record can be scored as."""
    present = {"bbox": result.bbox is not None, "segm": result.segmentation is not None}
    return tuple(kind for kind in KINDS if present[kind])


def unknown_image(record: str) -> InputError:
    """The line for a detection in an image that the annotations do not have."""
    return InputError(record, "unknown image", allowed="an image id of the annotations")


def check_found(found: Found, truth: Truth) -> None:
    """Refuse what the protocol would misread without a word.

    Raises:
        InputError: an unknown image, a score or box that is no number, a mask of another size than its image, or one
            that is no run lengths.
    """
    images = positions(truth.image_ids, found.image_ids)
    if (images < 0).any():
        raise unknown_image(found.record(int(np.argmax(images < 0))))
    wrong = ~np.isfinite(found.scores)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(found.record(row), f"score is {found.scores[row]}", allowed="a finite number")
    if found.boxes_xywh is not None:
        wrong = ~np.isfinite(found.boxes_xywh).all(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            what = f"bbox is {found.boxes_xywh[row].tolist()}"
            raise InputError(found.record(row), what, allowed="four finite numbers")
    if found.masks is not None:
        sizes = truth.sizes_hw[images]
        wrong = (found.masks.sizes_hw != sizes).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise wrong_size(found.record(row), found.masks.sizes_hw[row].tolist(), sizes[row].tolist())
        wrong = found.masks.damaged()
        if wrong.any():
            raise damaged(found.record(int(np.argmax(wrong))))
