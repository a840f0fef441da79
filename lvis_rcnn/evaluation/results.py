"""Detections of any detector as flat arrays: from a results file as the LVIS server takes it, or from shards.

A results file is a list of {"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation": RLE or
polygons}. It is read a few megabytes at a time, so that never all of its records are Python objects at once.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int64

from lvis_rcnn.dataset.detections import concatenate, read_shard, shards_of
from lvis_rcnn.dataset.json_text import Text, json_of, mended, read_text, without_halves
from lvis_rcnn.dataset.lookup import finder, positions
from lvis_rcnn.dataset.pieces import Pieces, sha256_of
from lvis_rcnn.dataset.records import Int64Number
from lvis_rcnn.evaluation.ground_truth import GroundTruth, column
from lvis_rcnn.evaluation.masks import (
    ALLOWED_MASKS,
    Masks,
    Rle,
    Segmentation,
    damaged,
    no_masks,
    packed_mask,
    wrong_size,
)
from lvis_rcnn.system.cli import InputError

Kind = Literal["bbox", "segm"]
KINDS: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
"""What can be scored, by the names of the COCO tools, and what a person calls it."""

ALL_KINDS: tuple[Kind, ...] = tuple(KINDS)
ALLOWED_SCORES = "a number that float64 holds exactly, as it does all whole ones up to 2^53"
CONTENT = "a folder of shards, or an LVIS results file (JSON)"
LIST_ALONE = "name the results file, or write its list of detections alone, without the object around it"


def kinds_present(boxes: Any, masks: Any) -> tuple[Kind, ...]:
    """The kinds that are not None."""
    return tuple(kind for kind, values in zip(KINDS, (boxes, masks), strict=True) if values is not None)


class Result(msgspec.Struct, frozen=True, gc=False):
    """One detection; boxes and polygons in pixels of the original image."""

    image_id: Int64Number
    category_id: Int64Number
    score: int | float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: Segmentation | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that it can be scored as."""
        return kinds_present(self.bbox, self.segmentation)


class BoxResult(Result, frozen=True, gc=False):
    """One detection of which the box is scored alone."""

    segmentation: Any = None


class MaskResult(Result, frozen=True, gc=False):
    """One detection of which the mask is scored alone."""

    bbox: Any = None


def type_of_results(kinds: Sequence[Kind]) -> type[Result]:
    """What checks of detections no more than ``kinds`` need."""
    return Result if len({*kinds}) != 1 else BoxResult if "bbox" in kinds else MaskResult


FIELDS = {
    "image_id": "image_id: a whole number of 64 bits",
    "category_id": "category_id: a whole number of 64 bits",
    "score": "score: a number",
    "bbox": "bbox: [x, y, width, height], four numbers",
    "segmentation": f"segmentation: {ALLOWED_MASKS}",
}

NO_MASK, NO_POLYGONS = msgspec.Raw(b"null"), msgspec.Raw(b"[]")
MASKS = msgspec.json.Decoder(list[Segmentation])


class ResultText(msgspec.Struct, frozen=True, gc=False):
    """One detection of a file; its mask stays text, since half of them or more are of cells that no score reads."""

    image_id: Int64Number
    category_id: Int64Number
    score: int | float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: msgspec.Raw = NO_MASK

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that it can be scored as."""
        return kinds_present(self.bbox, None if self.segmentation == NO_MASK else self.segmentation)


class MaskText(ResultText, frozen=True, gc=False):
    """The same where the mask is scored alone."""

    bbox: Any = None


Results = Sequence[Result | ResultText]


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """``d`` detections in the order of their file, which decides between equal scores."""

    where: str
    """Name of the file or folder, for messages."""
    image_ids: Int64[np.ndarray, " d"]
    category_ids: Int64[np.ndarray, " d"]
    scores: Float[np.ndarray, " d"]
    """float32 or float64, as they were written."""
    boxes_xywh: Float[np.ndarray, "d 4"] | None
    masks: Masks | None
    """Only those of verified cells (``GroundTruth.verified``) are read from files; the others are empty."""
    has_mask: Bool[np.ndarray, " d"] | None = None
    """Which detections have a mask; None where all do. See dataset.detections."""
    sha256: str = ""
    """Of the results file, as it was read; empty for shards."""

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.image_ids)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that can be scored."""
        return kinds_present(self.boxes_xywh, self.masks)

    def record(self, row: int) -> str:
        """Name of a detection, for messages."""
        return record_name(self.where, row, int(self.image_ids[row]), int(self.category_ids[row]))


def record_name(where: str, row: int, image_id: int, category_id: int) -> str:
    """Name of a detection, for messages."""
    return f"{where}: result {row} (image {image_id}, category {category_id})"


def read_detections(path: Path, truth: GroundTruth, kinds: Sequence[Kind] = ALL_KINDS) -> DetectionSet:
    """Detections of a folder of shards or of a results file, checked.

    Args:
        path: folder or file.
        truth: the annotations that they will be compared with.
        kinds: what is read, where it is there; the rest is neither read nor checked.

    Raises:
        InputError: the file or a shard is damaged, a record is not a detection, or as :func:`check_detections`.
    """
    detections = (
        detections_of_shards(path, truth, kinds) if os.path.isdir(path) else detections_of_file(path, truth, kinds)
    )
    check_detections(detections, truth)
    return detections


def detections_of_shards(folder: Path, truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections of a folder of shards."""
    images_of, categories_of = finder(truth.image_ids), finder(truth.category_ids)
    parts, lengths, counts = [], [np.zeros(1, np.int64)], bytearray()
    for path in shards_of(folder):
        part = read_shard(path, "segm" in kinds)
        verified = truth.is_verified(images_of(part.image_ids), categories_of(part.category_ids))
        lengths.append(np.where(verified, np.diff(part.rle_offsets), 0))
        bounds = part.rle_offsets[np.flatnonzero(np.diff(verified, prepend=False, append=False))].tolist()
        counts += b"".join(part.rle_counts.data[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True))
        # Those are the only counts that are kept, since memory that is touched first costs more than reading does.
        parts.append(replace(part, rle_offsets=np.zeros_like(part.rle_offsets), rle_counts=part.rle_counts[:0]))
    read = concatenate(parts)
    offsets = np.cumsum(np.concatenate(lengths))
    masks = Masks(read.mask_sizes.astype(np.int64), offsets, np.frombuffer(counts, np.uint8))
    has_mask = None if read.has_mask.all() else read.has_mask
    return DetectionSet(
        where=str(folder),
        image_ids=read.image_ids,
        category_ids=read.category_ids,
        scores=read.scores,
        boxes_xywh=read.boxes_xywh if "bbox" in kinds else None,
        masks=masks if "segm" in kinds else None,
        has_mask=has_mask,
    )


def detections_of_file(path: Path, truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections of a results file.

    Raises:
        InputError: no such file, it is not JSON, or a record is not a detection or not of the kinds of the first.
    """
    if path.suffix == ".npz":
        raise InputError(f"--detections {path}", "is one shard", allowed=CONTENT, fix=f"name its folder, {path.parent}")
    read = read_text(path, "--detections", CONTENT)
    columns = columns_of(json_of(read, str(path)), str(path), truth, kinds)
    # Of what was read: a file may be another a moment later, and a pipe cannot be read twice.
    return replace(columns.detections(), sha256=sha256_of(read))


def columns_of(text: Text, where: str, truth: GroundTruth, kinds: Sequence[Kind]) -> "Columns":
    """The records of a results file as arrays; InputError as :func:`detections_of_file`."""
    readings: list[Callable[[], Iterator[list[ResultText]]]] = [
        lambda: pieces_of(text, kinds),
        lambda: pieces_of(mended(text), kinds),
    ]
    for read in readings:
        columns = Columns(where, truth, kinds)
        try:
            for records in read():
                columns.add(records)
            return columns
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    columns = Columns(where, truth, kinds)
    columns.add(all_records(text, where, kinds))
    return columns


def pieces_of(text: Text, kinds: Sequence[Kind]) -> Iterator[list[ResultText]]:
    """The records of a JSON file; msgspec.DecodeError where it is not JSON, or a record is not a detection."""
    start = next((at for at in range(min(len(text), 1 << 10)) if text[at : at + 1] not in b" \t\r\n"), 0)
    if text[start : start + 1] != b"[":
        raise msgspec.DecodeError("no list")
    kind = ResultText if "bbox" in kinds else MaskText
    pieces = Pieces(text, start + 1, msgspec.json.Decoder(list[kind]).decode)  # type: ignore[valid-type]
    yield from pieces
    if bytes(text[pieces.end :]).strip(b" \t\r\n"):
        raise msgspec.DecodeError("trailing characters")


def all_records(text: Text, where: str, kinds: Sequence[Kind]) -> list[Result]:
    """The records of a file that is not as it should be, read at once and slowly, with an error that names the record.

    NaN is no JSON, but some tools write it, so that it passes here for the checks to name it.
    """
    try:
        records = json.loads(without_halves(bytes(text)), parse_float=number)
        if isinstance(records, dict):
            raise InputError(where, "is an object, no list", allowed=CONTENT, fix=LIST_ALONE)
        found: list[Result] = msgspec.convert(records, list[type_of_results(kinds)])  # type: ignore[misc]
        return found
    except msgspec.ValidationError as error:
        raise InputError(where, str(error), allowed=allowed_of(str(error), CONTENT), fix="correct the file") from None
    except (ValueError, RecursionError) as error:
        what, fix = f"not readable as JSON: {error}", "get the file again, or name another one"
        if "Extra data" in what and bytes(text[:32]).lstrip().startswith(b"{"):
            what, fix = "is several objects, no list", "write them as one list: jq -s . FILE > NEW"
        raise InputError(where, what, allowed=CONTENT, fix=fix) from None


def allowed_of(message: str, otherwise: str) -> str:
    """What the field that a message of msgspec names may be; ``otherwise`` where it names none."""
    field = re.search(r"at `\$[^.]*\.(\w+)", message)
    return FIELDS.get(field[1], otherwise) if field else otherwise


def number(text: str) -> int | float:
    """A number that is written with a fraction or an exponent; -0.0 keeps its sign."""
    value = float(text)
    return int(value) if value.is_integer() and str(value) != "-0.0" else value


def rounded(scores: Sequence[int | float]) -> int | None:
    """The place of the first whole number that float64 would round; ``lvis`` sorts by it as it is."""
    if {*map(type, scores)} <= {float}:
        return None
    whole = ((at, one) for at, one in enumerate(scores) if type(one) is int)
    return next((at for at, one in whole if abs(one) > 2**1000 or float(one) != one), None)


def detections_of(results: Sequence[Result], truth: GroundTruth, where: str = "results") -> DetectionSet:
    """Detections that are in memory, checked."""
    columns = Columns(where, truth)
    columns.add(results)
    detections = columns.detections()
    check_detections(detections, truth)
    return detections


class Columns:
    """Turns records into arrays, piece by piece."""

    def __init__(self, where: str, truth: GroundTruth, wanted: Sequence[Kind] = ALL_KINDS) -> None:
        self.where = where
        self.truth = truth
        self.images_of, self.categories_of = finder(truth.image_ids), finder(truth.category_ids)
        self.wanted = wanted
        self.count = 0
        self.kinds = tuple(wanted)
        self.has_outlines = False
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in ("images", "categories", "scores", "boxes")}
        self.sizes: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.counts = bytearray()

    def add(self, records: Results) -> None:
        """Append records.

        Raises:
            InputError: one is not of the kinds of the first, or a mask of a verified cell is damaged.
            msgspec.DecodeError: the text of such a mask is no mask.
        """
        if not records:
            return
        if not self.count:
            self.kinds = self.kinds_of(records[0])
        boxes, masks = (list(map(attrgetter(name), records)) for name in ("bbox", "segmentation"))
        lacking: dict[Kind, Callable[[], int]] = {
            "bbox": lambda: boxes.count(None),
            "segm": lambda: masks.count(None) + masks.count(NO_MASK),
        }
        if not self.kinds or any(lacking[kind]() != len(records) * (kind not in self.kinds) for kind in self.wanted):
            raise self.other_kinds(records)
        self.parts["images"].append(column(records, "image_id"))
        self.parts["categories"].append(column(records, "category_id"))
        scores = list(map(attrgetter("score"), records))
        if (at := rounded(scores)) is not None:
            record = record_name(self.where, self.count + at, records[at].image_id, records[at].category_id)
            raise InputError(record, f"score is {scores[at]!s:.40}", allowed=ALLOWED_SCORES)
        self.parts["scores"].append(np.fromiter(scores, np.float64, len(records)))
        if "bbox" in self.kinds:
            self.parts["boxes"].append(np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(records)))
        if "segm" in self.kinds:
            self.add_masks(masks)
            # Of a million masks this is asked once.
            self.has_outlines = self.has_outlines or masks.count(NO_POLYGONS) + masks.count([]) < len(records)
        self.count += len(records)

    def kinds_of(self, record: Result | ResultText) -> tuple[Kind, ...]:
        """The wanted kinds that a record has."""
        return tuple(kind for kind in record.kinds if kind in self.wanted)

    def add_masks(self, masks: Sequence[Any]) -> None:
        """Append the masks of the last records, or their texts: those of verified cells, and empty ones."""
        images = self.images_of(self.parts["images"][-1])
        verified = self.truth.is_verified(images, self.categories_of(self.parts["categories"][-1]))
        read = list(compress(masks, verified.tolist()))
        if read and isinstance(read[0], msgspec.Raw):
            read = MASKS.decode(b"[" + b",".join(read) + b"]")
        if not {type(mask) for mask in read} <= {Rle} or not {type(mask.counts) for mask in read} <= {str}:
            rows = np.flatnonzero(verified).tolist()
            read = [self.compressed(mask, row) for mask, row in zip(read, rows, strict=True)]
        texts = list(map(attrgetter("counts"), read))
        counts = "".join(texts).encode(errors="surrogatepass")
        each = list(map(len, texts))
        if sum(each) < len(counts):
            each = [len(text.encode(errors="surrogatepass")) for text in texts]
        sizes, lengths = self.truth.sizes_hw[images], np.zeros(len(masks), np.int64)
        sizes[verified] = np.fromiter(chain.from_iterable(map(attrgetter("size"), read)), np.int64).reshape(-1, 2)
        lengths[verified] = each
        self.sizes.append(sizes)
        self.lengths.append(lengths)
        self.counts += counts

    def compressed(self, mask: Segmentation, place: int) -> Rle:
        """A mask with compressed run lengths, drawn where it is polygons; ``place`` is that among the last records."""
        if isinstance(mask, Rle) and isinstance(mask.counts, str):
            return mask
        image_id, category_id = (int(self.parts[name][-1][place]) for name in ("images", "categories"))
        record = record_name(self.where, self.count + place, image_id, category_id)
        height, width = self.truth.sizes_hw[self.images_of(np.array([image_id]))[0]].tolist()
        return Rle((height, width), packed_mask(mask, (height, width), record)["counts"].decode())

    def other_kinds(self, records: Results) -> InputError:
        """The error that names the first record with other kinds than result 0, or with neither box nor mask."""
        place = next((at for at, record in enumerate(records) if self.kinds_of(record) != self.kinds or not self.kinds))
        mine, first = (" and ".join(kinds) or "neither" for kinds in (records[place].kinds, self.kinds))
        record = record_name(self.where, self.count + place, records[place].image_id, records[place].category_id)
        if not self.kinds:
            allowed = " or ".join("segmentation" if kind == "segm" else kind for kind in self.wanted)
            return InputError(record, f"has no {allowed}", fix="write it, or score another kind: --kinds")
        return InputError(record, f"has {mine}, result 0 has {first}", allowed="bbox, segm or both, the same in all")

    def detections(self) -> DetectionSet:
        """All of them; both kinds where there is none (AP 0), boxes where each has the segmentation []."""
        only_boxes = "bbox" in self.kinds and self.count > 0 and not self.has_outlines
        none = {"images": np.zeros(0, np.int64), "categories": np.zeros(0, np.int64)}
        joined = {name: np.concatenate([none.get(name, np.zeros(0)), *parts]) for name, parts in self.parts.items()}
        return DetectionSet(
            where=self.where,
            image_ids=joined["images"],
            category_ids=joined["categories"],
            scores=joined["scores"],
            boxes_xywh=joined["boxes"].reshape(-1, 4) if "bbox" in self.kinds else None,
            masks=self.masks() if "segm" in self.kinds and not only_boxes else None,
        )

    def masks(self) -> Masks:
        """All masks."""
        if not self.count:
            return no_masks()
        offsets = np.zeros(self.count + 1, np.int64)
        np.cumsum(np.concatenate(self.lengths), out=offsets[1:])
        return Masks(np.concatenate(self.sizes), offsets, np.frombuffer(self.counts, np.uint8))


def unknown_image(record: str) -> InputError:
    """The error for a detection in an image that the annotations do not have."""
    return InputError(record, "unknown image", allowed="an image id of the annotations")


def check_detections(detections: DetectionSet, truth: GroundTruth) -> None:
    """Refuse what the protocol would silently misread.

    Raises:
        InputError: an unknown image, a score or a box of a known category that is not finite, a mask of another size
            than its image, or one whose run lengths are damaged.
    """
    images = positions(truth.image_ids, detections.image_ids)
    if (images < 0).any():
        raise unknown_image(detections.record(int(np.argmax(images < 0))))
    wrong = ~np.isfinite(detections.scores)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(detections.record(row), f"score is {detections.scores[row]}", allowed="a finite number")
    if detections.boxes_xywh is not None:
        wrong = ~np.isfinite(detections.boxes_xywh).all(axis=1)
        wrong[wrong] = positions(truth.category_ids, detections.category_ids[wrong]) >= 0  # others are not looked at
        if wrong.any():
            row = int(np.argmax(wrong))
            what = f"bbox is {detections.boxes_xywh[row].tolist()}"
            raise InputError(detections.record(row), what, allowed="four finite numbers")
    if detections.masks is not None:
        sizes = truth.sizes_hw[images]
        wrong = (detections.masks.sizes_hw != sizes).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise wrong_size(detections.record(row), detections.masks.sizes_hw[row].tolist(), sizes[row].tolist())
        wrong = detections.masks.damaged()
        if wrong.any():
            raise damaged(detections.record(int(np.argmax(wrong))))
