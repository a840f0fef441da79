"""An LVIS JSON file becomes flat, checked arrays, or one line that names the record that is wrong.

Types and ranges are declared once, in the records below, and checked by msgspec while it parses. Polygons, nine tenths
of the file, stay text until :func:`polygon_columns` turns them into arrays, a chunk at a time.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from jaxtyping import Float64, Int64
from msgspec import Meta
from tqdm import tqdm

from lvis_rcnn.command import InputError

Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
# Run-length masks count pixels in 32 bits, so an edge has 16.
EdgePx = Annotated[int, Meta(ge=1, le=65_535)]

# Annotations whose polygons are Python numbers at the same time: about 100 numbers of 32 bytes each.
CHUNK = 4_000


class Category(msgspec.Struct, frozen=True):
    """One category; its label is 1 + its position in the file."""

    id: Id
    name: Annotated[str, Meta(min_length=1)]
    frequency: Literal["r", "c", "f"]
    """Rare, common or frequent, as the file says; never derived from counts."""
    synset: str = ""


class ImageRecord(msgspec.Struct, gc=False):
    """One image as it stands in the file."""

    id: Id
    height: EdgePx
    width: EdgePx
    neg_category_ids: list[Id]
    not_exhaustive_category_ids: list[Id]
    coco_url: str | None = None
    file_name: str | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """One annotation as it stands in the file; its polygons stay text until they are needed."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)]
    segmentation: msgspec.Raw
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class AnnotationFile(msgspec.Struct):
    """What is read of an LVIS file; other keys (info, licenses) are skipped."""

    images: Annotated[list[ImageRecord], Meta(min_length=1)]
    annotations: Annotated[list[AnnotationRecord], Meta(min_length=1)]
    categories: Annotated[list[Category], Meta(min_length=1)]


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        InputError: there is no such readable file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path), f"annotation file not readable: {error.strerror}", mend="name an LVIS-format JSON file"
        ) from None


# Field -> what is allowed, how to mend it; for the line a person sees.
HELP = {
    "images": ("at least one image", "an LVIS file has images, annotations and categories"),
    "annotations": ("at least one annotation", "an LVIS file has images, annotations and categories"),
    "categories": ("at least one category", "an LVIS file has images, annotations and categories"),
    "id": ("a whole number from 1, each once", "number the records from 1"),
    "image_id": ("the id of an image of the file", "correct the id or remove the annotation"),
    "category_id": ("the id of a category of the file", "correct the id or remove the annotation"),
    "bbox": ("[x, y, width, height] in pixels, finite numbers", "write the box as COCO and LVIS do"),
    "area": ("mask area in pixels, a finite number from 0", "write the polygons' area"),
    "segmentation": ("a list of polygons [x0, y0, x1, y1, ...]", "write polygons; run-length masks are not read"),
    "coco_url": ("a text", "write the image's address, or leave it out and write file_name"),
    "file_name": ("a text", "write the image's name, relative to the folder of the images"),
    "height": ("1 to 65535 pixels, a whole number", "write the image's height"),
    "width": ("1 to 65535 pixels, a whole number", "write the image's width"),
    "neg_category_ids": ("a list of category ids", "write the categories known to be absent, or an empty list"),
    "not_exhaustive_category_ids": ("a list of category ids", "write an empty list if all objects are annotated"),
    "frequency": ("r, c or f", "add it: r for 1 to 10 training images, c for 11 to 100, f for more"),
    "name": ("a text", "name the category"),
}


def decode_file(data: bytes, where: str) -> AnnotationFile:
    """Parse and check types and ranges.

    Raises:
        InputError: no JSON, or a field of the wrong type or range; record and field are named.
    """
    try:
        return msgspec.json.decode(data, type=AnnotationFile)
    except msgspec.ValidationError as error:
        raise type_error(data, where, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mend = "the file is truncated or damaged: fetch or export it again"
        raise InputError(where, f"not readable as JSON: {error}", allowed="LVIS-format JSON", mend=mend) from None


def type_error(data: bytes, where: str, message: str) -> InputError:
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
    allowed, mend = HELP.get(field.partition("[")[0], ("LVIS-format JSON", "correct the record"))
    return InputError(where, what, allowed=allowed, mend=mend)


def problem_and_path(message: str) -> tuple[str, str]:
    """``Expected `int`, got `str` - at `$.images[3].id``` as ``expected int, got str`` and ``.images[3].id``."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    return problem[:1].lower() + problem[1:], path


def id_at(data: bytes, section: str, index: int) -> str:
    """`` (id 7)`` where the record that could not be read has an id, else nothing."""
    try:
        sections = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        record = msgspec.json.decode(msgspec.json.decode(sections[section], type=list[msgspec.Raw])[index])
        return f" (id {record['id']!r:.40})"
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""


def columns(records: AnnotationFile, where: str) -> dict[str, np.ndarray]:
    """All arrays of the store from checked records.

    Raises:
        InputError: records that contradict each other; the first one is named.
    """
    image_ids = integers(image.id for image in records.images)
    category_ids = integers(category.id for category in records.categories)
    check_unique(image_ids, where, "image")
    check_unique(category_ids, where, "category")
    check_unique(integers(annotation.id for annotation in records.annotations), where, "annotation")
    image_of = image_positions(records.annotations, image_ids, where)
    annotations = [records.annotations[k] for k in np.argsort(image_of, kind="stable")]
    image_of.sort()
    heights = integers(image.height for image in records.images)
    widths = integers(image.width for image in records.images)
    names = [(name or "").encode() for image in records.images for name in (image.coco_url, image.file_name)]
    check_names(names, image_ids, where)
    boxes_xywh = np.array([annotation.bbox for annotation in annotations], np.float64)
    check_annotations(annotations, boxes_xywh, heights[image_of], widths[image_of], where)
    negatives = [image.neg_category_ids for image in records.images]
    not_exhaustive = [image.not_exhaustive_category_ids for image in records.images]
    return {
        "image_ids": image_ids,
        "heights": heights,
        "widths": widths,
        "name_offsets": offsets(map(len, names)),
        "name_bytes": np.frombuffer(b"".join(names), np.uint8),
        "negative_offsets": offsets(map(len, negatives)),
        "negative_labels": list_labels(negatives, category_ids, image_ids, where, "neg_category_ids"),
        "not_exhaustive_offsets": offsets(map(len, not_exhaustive)),
        "not_exhaustive_labels": list_labels(
            not_exhaustive, category_ids, image_ids, where, "not_exhaustive_category_ids"
        ),
        "annotation_offsets": np.searchsorted(image_of, np.arange(len(image_ids) + 1)),
        "annotation_ids": integers(annotation.id for annotation in annotations),
        "labels": annotation_labels(annotations, category_ids, where),
        "boxes_xywh": boxes_xywh,
        "areas": np.array([annotation.area for annotation in annotations], np.float64),
        **polygon_columns(annotations, where),
    }


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def offsets(lengths: Iterable[int]) -> Int64[np.ndarray, " ends"]:
    """Where each of consecutive entries of these lengths begins, and the end."""
    return np.concatenate([[0], np.cumsum(integers(lengths))])


def positions(ids: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Index of each wanted id in ``ids``, -1 where it is not there."""
    order = np.argsort(ids)
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def image_positions(
    annotations: Sequence[AnnotationRecord], image_ids: Int64[np.ndarray, " n"], where: str
) -> Int64[np.ndarray, " A"]:
    """Position of each annotation's image; InputError for one that is not there."""
    found = positions(image_ids, integers(annotation.image_id for annotation in annotations))
    if (found < 0).any():
        bad = annotations[int(np.argmax(found < 0))]
        raise record_error(where, bad.id, "image_id", f"unknown image {bad.image_id}")
    return found


def annotation_labels(
    annotations: Sequence[AnnotationRecord], category_ids: Int64[np.ndarray, " c"], where: str
) -> Int64[np.ndarray, " A"]:
    """Label of each annotation; InputError for a category that is not there."""
    found = positions(category_ids, integers(annotation.category_id for annotation in annotations))
    if (found < 0).any():
        bad = annotations[int(np.argmax(found < 0))]
        raise record_error(where, bad.id, "category_id", f"unknown category {bad.category_id}")
    return found + 1


def list_labels(
    lists: Sequence[Sequence[int]],
    category_ids: Int64[np.ndarray, " c"],
    image_ids: Int64[np.ndarray, " n"],
    where: str,
    field: str,
) -> Int64[np.ndarray, " k"]:
    """Labels of all images' lists, one after the other; InputError for a category that is not there."""
    wanted = integers(chain.from_iterable(lists))
    found = positions(category_ids, wanted)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        image = int(np.searchsorted(offsets(map(len, lists)), at, side="right")) - 1
        raise InputError(
            f"{where}: image {image_ids[image]}",
            f"{field} names unknown category {wanted[at]}",
            allowed="ids of the file's categories",
            mend="remove it from the list or add the category",
        )
    return found + 1


def check_unique(ids: Int64[np.ndarray, " k"], where: str, kind: str) -> None:
    """Raise InputError for the first id that stands twice."""
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        again = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        allowed, mend = HELP["id"]
        raise InputError(f"{where}: {kind} {ids[again]}", f"{kind} id stands twice", allowed=allowed, mend=mend)


def check_names(names: Sequence[bytes], image_ids: Int64[np.ndarray, " n"], where: str) -> None:
    """Raise InputError for the first image that has neither of its two names."""
    nameless = [not (url or file) for url, file in zip(names[::2], names[1::2], strict=True)]
    if any(nameless):
        raise InputError(
            f"{where}: image {image_ids[nameless.index(True)]}",
            "has neither coco_url nor file_name",
            mend="add file_name, relative to the folder of the images",
        )


def record_error(where: str, annotation_id: int, field: str, what: str) -> InputError:
    """The error of one field of one annotation."""
    allowed, mend = HELP[field]
    return InputError(f"{where}: annotation {annotation_id}", what, allowed=allowed, mend=mend)


def check_annotations(
    annotations: Sequence[AnnotationRecord],
    boxes_xywh: Float64[np.ndarray, "A 4"],
    heights: Int64[np.ndarray, " A"],
    widths: Int64[np.ndarray, " A"],
    where: str,
) -> None:
    """Raise InputError for crowds, ignored objects, and boxes of negative size or wholly outside their image.

    A box without width or height passes: ``lvis`` scores it, and training leaves it out.
    """
    for annotation in annotations:
        if annotation.iscrowd or annotation.ignore:
            raise InputError(
                f"{where}: annotation {annotation.id}",
                "is marked iscrowd or ignore, which LVIS scoring does not know",
                allowed="no such mark, or 0",
                mend="remove the annotation and list its category in the image's not_exhaustive_category_ids",
            )
    x, y, w, h = boxes_xywh.T
    negative = (w < 0) | (h < 0)
    outside = (x >= widths) | (y >= heights) | (x + w <= 0) | (y + h <= 0)
    if (negative | outside).any():
        at = int(np.argmax(negative | outside))
        problem = "has a negative size" if negative[at] else f"is outside its {widths[at]} x {heights[at]} image"
        raise InputError(
            f"{where}: annotation {annotations[at].id}",
            f"bbox {boxes_xywh[at].tolist()} {problem}",
            allowed="[x, y, width, height] in pixels that overlaps the image",
            mend="correct the box or remove the annotation",
        )


def polygon_columns(annotations: Sequence[AnnotationRecord], where: str) -> dict[str, np.ndarray]:
    """Decode the polygons, a chunk of annotations at a time.

    Raises:
        InputError: no polygon, fewer than 6 or an odd count of numbers, anything that is no finite number.
    """
    decoder = msgspec.json.Decoder(list[list[list[float]]])
    polygons_each, numbers_each, coordinates = [], [], []
    for start in tqdm(range(0, len(annotations), CHUNK), "polygons", unit="chunk", disable=None):
        chunk = annotations[start : start + CHUNK]
        text = b"[" + b",".join(bytes(annotation.segmentation) for annotation in chunk) + b"]"
        try:
            decoded = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise next(filter(None, (polygon_error(annotation, where) for annotation in chunk))) from None
        numbers = integers(len(polygon) for polygons in decoded for polygon in polygons)
        polygons = integers(map(len, decoded))
        if not polygons.all() or (numbers < 6).any() or (numbers % 2).any():
            raise next(filter(None, (polygon_error(annotation, where) for annotation in chunk)))
        flat = chain.from_iterable(chain.from_iterable(decoded))
        coordinates.append(np.fromiter(flat, np.float64, count=int(numbers.sum())))
        numbers_each.append(numbers)
        polygons_each.append(polygons)
    return {
        "polygon_offsets": offsets(np.concatenate(polygons_each)),
        "coordinate_offsets": offsets(np.concatenate(numbers_each)),
        "coordinates": np.concatenate(coordinates),
    }


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
