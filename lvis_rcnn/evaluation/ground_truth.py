"""What the LVIS protocol reads of an annotation file, as flat arrays.

Unlike the store of dataset.store it takes any file in the LVIS format: names of images may be missing, and an
annotation may be marked ``ignore``. Segmentations stay JSON until masks are compared.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.dataset.records import Int64Number, known, positions
from lvis_rcnn.system.cli import InputError


class TruthImage(msgspec.Struct, frozen=True, gc=False):
    """What the protocol reads of an image."""

    id: Int64Number
    height: Int64Number
    width: Int64Number
    neg_category_ids: list[Int64Number]
    not_exhaustive_category_ids: list[Int64Number]


class TruthAnnotation(msgspec.Struct, frozen=True, gc=False):
    """What the protocol reads of an annotation."""

    id: Int64Number
    image_id: Int64Number
    category_id: Int64Number
    area: float
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw
    ignore: float | bool | None = 0


class TruthCategory(msgspec.Struct, frozen=True):
    """What the protocol reads of a category."""

    id: Int64Number
    frequency: Literal["r", "c", "f"]
    name: str = ""


class TruthFile(msgspec.Struct, frozen=True):
    """What the protocol reads of an LVIS annotation file."""

    images: list[TruthImage]
    annotations: list[TruthAnnotation]
    categories: list[TruthCategory]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """``n`` images, ``c`` categories and ``g`` objects; images and categories are sorted by id, as in ``lvis``."""

    where: str
    """Name of the file, for messages."""
    image_ids: Int64[np.ndarray, " n"]
    sizes_hw: Int64[np.ndarray, "n 2"]
    category_ids: Int64[np.ndarray, " c"]
    labels: Int64[np.ndarray, " c"]
    """1 + position of each category in the file."""
    names: tuple[str, ...]
    frequencies: tuple[str, ...]
    """r, c or f of each category."""
    negatives: Int64[np.ndarray, "k 2"]
    """(image, category), as positions: the category is verified to be absent."""
    not_exhaustive: Int64[np.ndarray, "m 2"]
    """(image, category), as positions: there may be more objects than are annotated."""
    annotation_ids: Int64[np.ndarray, " g"]
    images: Int64[np.ndarray, " g"]
    """Position of the image of each object; objects are in the order of the file."""
    categories: Int64[np.ndarray, " g"]
    boxes_xywh: Float64[np.ndarray, "g 4"]
    areas: Float64[np.ndarray, " g"]
    ignored: Bool[np.ndarray, " g"]
    outlines: Sequence[msgspec.Raw]
    """JSON of each object's segmentation."""


def read_annotations(path: Path) -> bytes:
    """The bytes of an annotation file; InputError where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except OSError as error:
        raise InputError(str(path), f"not readable: {error.strerror}") from None


def parse_truth(text: bytes, where: str) -> GroundTruth:
    """Parse an LVIS v0.5 or v1 annotation file, or any in that format; ``where`` names it in messages.

    Raises:
        InputError: it is not JSON, a key is missing or of another type, an id is duplicate or an annotation's is 0, or
            an annotation refers to an unknown image or category; the record is named.
    """
    try:
        file = msgspec.json.decode(text, type=TruthFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise what_is_wrong(text, where) from None
    if not file.images or not file.categories:
        raise InputError(where, "no images or no categories", fix="name an LVIS annotation file")
    return truth_of(file, where)


def what_is_wrong(text: bytes, where: str) -> InputError:
    """The error for a file that msgspec does not read. NaN is not JSON, but some tools write it."""
    try:
        dataset = json.loads(text)
    except (ValueError, RecursionError) as error:
        return InputError(where, f"not readable as JSON: {error}", fix="get the file again")
    try:
        for annotation in dataset["annotations"] if isinstance(dataset, dict) and "annotations" in dataset else ():
            annotation["segmentation"] = msgspec.Raw(msgspec.json.encode(annotation["segmentation"]))
    except (KeyError, TypeError, ValueError):
        pass  # the conversion names what is missing
    try:
        file = msgspec.convert(dataset, TruthFile)
    except msgspec.ValidationError as error:
        return InputError(where, str(error), fix="correct the file")
    for annotation in file.annotations:
        numbers = (annotation.area, *annotation.bbox)
        if not np.isfinite(numbers).all():
            what = f"area and bbox are {[*numbers]}"
            return InputError(f"{where}: annotation {annotation.id}", what, allowed="finite numbers")
    return InputError(where, "holds NaN, infinity or another number that is not JSON", fix="write finite numbers")


def truth_of(file: TruthFile, where: str) -> GroundTruth:
    """The arrays of checked records.

    Raises:
        InputError: an id is duplicate or an annotation's is 0, or an annotation refers to an unknown image or category.
    """
    image_ids, image_order = ascending_ids(file.images, f"{where}: images")
    category_ids, category_order = ascending_ids(file.categories, f"{where}: categories")
    images = [file.images[at] for at in image_order]
    categories = [file.categories[at] for at in category_order]
    annotations = file.annotations
    annotation_ids = column(annotations, "id")
    ascending_ids(annotations, f"{where}: annotations")
    if (annotation_ids == 0).any():
        # lvis writes the id of the matched annotation, or 0: this object would never be found.
        raise InputError(f"{where}: annotation 0", "id 0 is reserved for 'unmatched'", fix="renumber from 1")
    boxes = np.fromiter(chain.from_iterable(a.bbox for a in annotations), np.float64, 4 * len(annotations))
    return GroundTruth(
        where=where,
        image_ids=image_ids,
        sizes_hw=np.stack([column(images, "height"), column(images, "width")], axis=1),
        category_ids=category_ids,
        labels=category_order + 1,
        names=tuple(category.name for category in categories),
        frequencies=tuple(category.frequency for category in categories),
        negatives=listed([image.neg_category_ids for image in images], category_ids),
        not_exhaustive=listed([image.not_exhaustive_category_ids for image in images], category_ids),
        annotation_ids=annotation_ids,
        images=known(image_ids, column(annotations, "image_id"), annotation_ids, "image_id", where),
        categories=known(category_ids, column(annotations, "category_id"), annotation_ids, "category_id", where),
        boxes_xywh=boxes.reshape(-1, 4),
        areas=np.fromiter((a.area for a in annotations), np.float64, len(annotations)),
        ignored=np.fromiter((bool(a.ignore) for a in annotations), bool, len(annotations)),
        outlines=[a.segmentation for a in annotations],
    )


def column(records: Sequence[Any], name: str) -> Int64[np.ndarray, " k"]:
    """One integer field of each record."""
    return np.fromiter(map(attrgetter(name), records), np.int64, len(records))


def ascending_ids(records: Sequence[Any], where: str) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """The ids in ascending order, and the position of the record of each; InputError for a duplicate id."""
    ids = column(records, "id")
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        raise InputError(where, f"duplicate id {ids[twice[0]]}", fix="give each its own id")
    return ids, order


def listed(lists: Iterable[list[int]], category_ids: Int64[np.ndarray, " c"]) -> Int64[np.ndarray, "k 2"]:
    """(image, category) of every entry, without categories that the file does not have."""
    lists = list(lists)
    lengths = [len(entries) for entries in lists]
    found = positions(category_ids, np.fromiter(chain.from_iterable(lists), np.int64, sum(lengths)))
    pairs = np.stack([np.repeat(np.arange(len(lists)), lengths), found], axis=1)
    return pairs[found >= 0]
