"""The records of an LVIS JSON file: types, ranges, and the error that names a wrong record.

Types and ranges are declared once, in the structs below, and checked by msgspec while it parses. Of a key that is
repeated in a record the last one counts, as for every JSON reader that LVIS files meet.
"""

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float64, Int64, UInt8
from msgspec import Meta

from lvis_rcnn.dataset.rle import check_runs, runs_of_text
from lvis_rcnn.system.cli import InputError

Text = bytes | mmap.mmap | memoryview


# Of what is trained on; scoring takes any Int64Number as an id, as the lvis package does.
Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Int64Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# Run-length masks count pixels in 32 bits, so an edge has 16.
EdgePx = Annotated[int, Meta(ge=1, le=65_535)]


class Category(msgspec.Struct, frozen=True):
    """One category; its label is 1 + its position in the file."""

    id: Id
    name: Annotated[str, Meta(min_length=1)]
    frequency: Literal["r", "c", "f"]
    """Rare, common or frequent, as the file says; never derived from counts."""
    synset: str = ""


class ImageRecord(msgspec.Struct, gc=False):
    """One image of the file."""

    id: Id
    height: EdgePx
    width: EdgePx
    neg_category_ids: list[Id]
    not_exhaustive_category_ids: list[Id]
    coco_url: str | None = None
    file_name: str | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """One annotation of the file; its outline stays text until it is needed."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)]
    segmentation: msgspec.Raw
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class LvisFile(msgspec.Struct):
    """An LVIS file; other keys (info, licenses) are skipped. The annotations stay text."""

    images: Annotated[list[ImageRecord], Meta(min_length=1)]
    annotations: msgspec.Raw
    categories: Annotated[list[Category], Meta(min_length=1)]


# Field -> what is allowed and how to fix it, for error messages.
HELP = {
    "images": ("at least one image", "an LVIS file has images, annotations and categories"),
    "annotations": ("at least one annotation", "an LVIS file has images, annotations and categories"),
    "categories": ("at least one category", "an LVIS file has images, annotations and categories"),
    "id": ("a whole number from 1, each once", "number the records from 1"),
    "image_id": ("the id of an image of the file", "correct the id or remove the annotation"),
    "category_id": ("the id of a category of the file", "correct the id or remove the annotation"),
    "bbox": ("[x, y, width, height] in pixels, finite numbers", "write the box as COCO and LVIS do"),
    "area": ("mask area in pixels, a finite number from 0", "write the polygons' area"),
    "segmentation": (
        "a list of polygons [x0, y0, x1, y1, ...], or a mask {size: [height, width], counts: runs}",
        "write polygons or a run-length mask of the image's size",
    ),
    "coco_url": ("a text", "write the image's address, or leave it out and write file_name"),
    "file_name": ("a text", "write the image's name, relative to the folder of the images"),
    "height": ("1 to 65535 pixels, a whole number", "write the image's height"),
    "width": ("1 to 65535 pixels, a whole number", "write the image's width"),
    "neg_category_ids": ("a list of category ids", "write the categories known to be absent, or an empty list"),
    "not_exhaustive_category_ids": ("a list of category ids", "write an empty list if all objects are annotated"),
    "frequency": ("r, c or f", "add it: r for 1 to 10 training images, c for 11 to 100, f for more"),
    "name": ("a text", "name the category"),
}


def read_lvis_file(text: Text, where: str) -> LvisFile:
    """Parse all but the annotations, and check types and ranges.

    Raises:
        InputError: no JSON, or a field of the wrong type or range; record and field are named.
    """
    try:
        return msgspec.json.decode(text, type=LvisFile)
    except msgspec.ValidationError as error:
        raise type_error(text, where, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


def no_json(where: str, error: Exception) -> InputError:
    """The error for text that is no JSON."""
    fix = "the file is truncated or damaged: fetch or export it again"
    return InputError(where, f"not readable as JSON: {error}", allowed="LVIS-format JSON", fix=fix)


def type_error(data: Text, where: str, message: str) -> InputError:
    """The error for a message of msgspec; adds the record's id, and help for its field."""
    problem, path = problem_and_path(message)
    section, _, rest = path.lstrip(".").partition("[")
    index, _, rest = rest.partition("]")
    if index:
        where = f"{where}: {section}[{index}]{id_at(data, section, int(index))}"
    absent = problem.removeprefix("object missing required field ")
    if absent != problem:
        field, what = absent, f"missing field {absent}"
    else:
        field = rest.lstrip(".") if index else section
        what = f"{field}: {problem}" if field else problem
    allowed, fix = HELP.get(field.partition("[")[0], ("LVIS-format JSON", "correct the record"))
    return InputError(where, what, allowed=allowed, fix=fix)


def problem_and_path(message: str) -> tuple[str, str]:
    """``Expected `int`, got `str` - at `$.images[3].id``` as ``expected int, got str`` and ``.images[3].id``."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    return problem[:1].lower() + problem[1:], path


def id_at(data: Text, section: str, index: int) -> str:
    """`` (id 7)`` where the record that could not be read has an id, else nothing."""
    try:
        sections = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        record = msgspec.json.decode(msgspec.json.decode(sections[section], type=list[msgspec.Raw])[index])
        return f" (id {record['id']!r:.40})"
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""


def record_error(where: str, annotation_id: int, field: str, what: str) -> InputError:
    """The error of one field of one annotation."""
    allowed, fix = HELP[field]
    return InputError(f"{where}: annotation {annotation_id}", what, allowed=allowed, fix=fix)


# Ids in a range of this length are looked up in a table, which is four times faster; others by bisection.
TABLE = 1 << 21


def positions(ids: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Index of each wanted id in ``ids``, which has at least one and each once; -1 for an id that is not in it."""
    lowest, highest = int(ids.min()), int(ids.max())
    if highest - lowest < TABLE:
        table = np.full(highest - lowest + 2, -1)
        table[ids - lowest] = np.arange(len(ids))
        inside = (wanted >= lowest) & (wanted <= highest)
        return table[np.where(inside, wanted - lowest, -1)]
    order = np.argsort(ids)
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def known(
    ids: Int64[np.ndarray, " k"],
    wanted: Int64[np.ndarray, " A"],
    annotation_ids: Int64[np.ndarray, " A"],
    field: str,
    where: str,
) -> Int64[np.ndarray, " A"]:
    """Position in ``ids`` of what ``field`` of each annotation names; InputError for an id that is not in it."""
    found = positions(ids, wanted)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        what = f"unknown {field.removesuffix('_id')} {wanted[at]}"
        raise record_error(where, int(annotation_ids[at]), field, what)
    return found


LISTS_OF_POLYGONS = msgspec.json.Decoder(list[list[list[float]]])
POLYGONS = msgspec.json.Decoder(list[list[float]])


class RunLengthMask(msgspec.Struct):
    """A mask as pycocotools writes it: ``size`` (height, width), ``counts`` as numbers or as compressed text."""

    size: tuple[EdgePx, EdgePx]
    counts: str | list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]


MASK = msgspec.json.Decoder(RunLengthMask)


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of consecutive annotations: each has polygons, or the runs of a mask."""

    polygons_each: Int64[np.ndarray, " A"]
    numbers_each: Int64[np.ndarray, " polygons"]
    coordinates: Float64[np.ndarray, " numbers"]
    runs_each: Int64[np.ndarray, " A"]
    mask_sizes_hw: Int64[np.ndarray, "masks 2"]
    runs: Int64[np.ndarray, " runs"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Annotations in the order of the file, with the file's ids."""

    ids: Int64[np.ndarray, " A"]
    image_ids: Int64[np.ndarray, " A"]
    category_ids: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    areas: Float64[np.ndarray, " A"]
    marks: UInt8[np.ndarray, " A"]
    """See :func:`marks_of`."""
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.ids)


CROWD, IGNORED = 1, 2


def marks_of(crowds: Sequence[Any] | np.ndarray, ignored: Sequence[Any] | np.ndarray) -> UInt8[np.ndarray, " A"]:
    """``CROWD`` or ``IGNORED`` of annotations by their keys iscrowd and ignore, the latter first; 0 of all others."""
    marks: np.ndarray = np.where(np.array(ignored, bool), IGNORED, np.where(np.array(crowds, bool), CROWD, 0))
    return marks.astype(np.uint8)


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def outlines_of(records: Sequence[AnnotationRecord], where: str) -> Outlines:
    """Polygons and masks of these annotations.

    Raises:
        InputError: no polygon, fewer than 6 or an odd count of numbers, a value that is no finite number; a mask whose
            runs do not fill it.
    """
    is_mask = [bytes(record.segmentation).lstrip().startswith(b"{") for record in records]
    polygons = polygons_of([r for r, masked in zip(records, is_mask, strict=True) if not masked], where)
    masks = [mask_of(record, where) for record, masked in zip(records, is_mask, strict=True) if masked]
    flat = chain.from_iterable(chain.from_iterable(polygons))
    return Outlines(
        polygons_each=spread(integers(map(len, polygons)), ~np.array(is_mask, bool)),
        numbers_each=integers(len(polygon) for one in polygons for polygon in one),
        coordinates=np.fromiter(flat, np.float64),
        runs_each=spread(integers(len(runs) for _, runs in masks), np.array(is_mask, bool)),
        mask_sizes_hw=integers(chain.from_iterable(size for size, _ in masks)).reshape(-1, 2),
        runs=np.concatenate([integers(()), *(runs for _, runs in masks)]),
    )


def spread(counts: Int64[np.ndarray, " k"], where: np.ndarray) -> Int64[np.ndarray, " A"]:
    """``counts`` where the mask is set, 0 elsewhere."""
    found = np.zeros(len(where), np.int64)
    found[where] = counts
    return found


def polygons_of(records: Sequence[AnnotationRecord], where: str) -> list[list[list[float]]]:
    """Polygons of annotations without a mask; InputError for the first wrong one."""
    text = b"[" + b",".join(record.segmentation for record in records) + b"]"
    try:
        polygons = LISTS_OF_POLYGONS.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        polygons = []
    wrong = not all(polygons) or any(len(polygon) < 6 or len(polygon) % 2 for one in polygons for polygon in one)
    if wrong or len(polygons) != len(records):
        raise next(filter(None, (polygon_error(record, where) for record in records)))
    return polygons


def polygon_error(record: AnnotationRecord, where: str) -> InputError | None:
    """The error for this annotation's polygons; None where they are right."""
    try:
        polygons = POLYGONS.decode(record.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        return record_error(where, record.id, "segmentation", f"segmentation{path}: {problem}")
    lengths = [len(polygon) for polygon in polygons]
    bad = [(n, length) for n, length in enumerate(lengths) if length < 6 or length % 2]
    if polygons and not bad:
        return None
    what = f"segmentation[{bad[0][0]}] has {bad[0][1]} numbers" if bad else "segmentation has no polygon"
    return InputError(
        f"{where}: annotation {record.id}",
        what,
        allowed="one or more polygons of an even count of at least 6 numbers",
        fix="correct the polygon or remove it",
    )


def mask_of(record: AnnotationRecord, where: str) -> tuple[tuple[int, int], Int64[np.ndarray, " runs"]]:
    """Size and runs of this annotation's mask."""
    try:
        mask = MASK.decode(record.segmentation)
        runs = runs_of_text(mask.counts.encode()) if isinstance(mask.counts, str) else integers(mask.counts)
        check_runs(runs, mask.size)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        raise record_error(where, record.id, "segmentation", f"segmentation{path}: {problem}") from None
    except ValueError as error:
        raise record_error(where, record.id, "segmentation", f"segmentation: the run-length mask {error}") from None
    return mask.size, runs
