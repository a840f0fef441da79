"""What the LVIS protocol reads of an annotation file, as flat arrays.

Unlike the store of dataset.store it takes any file in the LVIS format: names of images may be missing, and an
annotation may be marked ``ignore``. Segmentations stay JSON until masks are compared, and may be missing until then.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.dataset.json_text import Text, decoded, decoded_record, json_of, mended
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.dataset.records import Int64Number, Sections, known, no_json, plain_coco, refuse_id_0, type_error
from lvis_rcnn.system.cli import InputError


class TruthImage(msgspec.Struct, frozen=True, gc=False):
    """What the protocol reads of an image."""

    id: Int64Number
    height: Int64Number
    width: Int64Number
    neg_category_ids: list[Int64Number]
    not_exhaustive_category_ids: list[Int64Number]
    coco_url: msgspec.Raw = msgspec.Raw(b"null")


class TruthAnnotation(msgspec.Struct, frozen=True, gc=False):
    """What the protocol reads of an annotation."""

    id: Int64Number
    image_id: Int64Number
    category_id: Int64Number
    area: float
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    ignore: float | bool | None = 0


class TruthCategory(msgspec.Struct, frozen=True):
    """What the protocol reads of a category."""

    id: Int64Number
    frequency: Literal["r", "c", "f"]
    name: Any = ""


class TruthFile(msgspec.Struct, frozen=True):
    """What the protocol reads of an LVIS annotation file."""

    images: list[TruthImage]
    annotations: list[TruthAnnotation]
    categories: list[TruthCategory]


NO_BOX = (math.nan,) * 4
BOX = msgspec.json.Decoder(tuple[float, float, float, float] | None)


class BareImage(TruthImage, frozen=True, gc=False, kw_only=True):
    """An image that may have no size, which boxes do not need."""

    height: Any = None
    width: Any = None


class BareAnnotation(TruthAnnotation, frozen=True, gc=False, kw_only=True):
    """An annotation that may have no box, which masks do not need."""

    bbox: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class BareFile(msgspec.Struct, frozen=True):
    """An annotation file that holds what one kind needs."""

    images: list[BareImage]
    annotations: list[BareAnnotation]
    categories: list[TruthCategory]


SECTIONS: Sections = {"images": TruthImage, "annotations": TruthAnnotation, "categories": TruthCategory}

# JSON of the segmentation of an object that has none, without blanks.
NO_SEGMENTATION = (b"", b"null", b"[]", b'""')


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
    """JSON of each object's segmentation; empty where the file has none."""
    coco_urls: Sequence[msgspec.Raw] = ()
    """JSON of each image's address; empty where the file has none."""

    @property
    def has_area(self) -> Bool[np.ndarray, " g"]:
        """Whether the area of an object is positive and finite; no other object is evaluated."""
        return (self.areas > 0) & (self.areas < np.inf)

    @cached_property
    def verified(self) -> Bool[np.ndarray, "n c"]:
        """Whether it is known if an image shows a category."""
        cells = self.grid(self.negatives)
        cells[self.images[self.has_area], self.categories[self.has_area]] = True
        return cells

    def is_verified(
        self, images: Int64[np.ndarray, " d"], categories: Int64[np.ndarray, " d"]
    ) -> Bool[np.ndarray, " d"]:
        """Whether each cell is verified; False for an unknown image or category (-1)."""
        found: np.ndarray = self.verified[images, categories] & (images >= 0) & (categories >= 0)
        return found

    def grid(self, pairs: Int64[np.ndarray, "k 2"]) -> Bool[np.ndarray, "n c"]:
        """Whether each cell is among ``pairs``. A byte per cell: 24 MB at LVIS v1 val."""
        cells = np.zeros((len(self.image_ids), len(self.category_ids)), bool)
        cells[pairs[:, 0], pairs[:, 1]] = True
        return cells

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation, or there is no object."""
        return not self.outlines or any(map(is_mask, self.outlines))


def is_mask(outline: msgspec.Raw) -> bool:
    """Whether a segmentation is there."""
    return b"".join(bytes(outline).split()) not in NO_SEGMENTATION


def parse_truth(text: bytes, where: str, kinds: Sequence[str] = ()) -> GroundTruth:
    """Parse an LVIS v0.5 or v1 annotation file, or any in that format; ``where`` names it in messages.

    What only another kind needs may be missing where ``kinds`` says what is scored.

    Raises:
        InputError: it is not JSON, a key is missing or of another type, an id is duplicate or an annotation's is 0, or
            an annotation refers to an unknown image or category; the record is named.
    """
    json_text = json_of(text, where)
    try:
        file = msgspec.json.decode(json_text, type=TruthFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        file = mended_file(json_text, where, kinds)
    if not file.images or not file.categories:
        raise InputError(where, "no images or no categories", fix="name an LVIS annotation file")
    return truth_of(file, where)


def mended_file(text: Text, where: str, kinds: Sequence[str]) -> TruthFile:
    """The records of a file that is not as it should be; InputError where it cannot be mended."""
    text = mended(text)
    try:
        sections = decoded_record(text)
        if "images" in sections and "annotations" not in sections:
            what = "has images but no annotations, as LVIS's test sets: nothing to score against"
            fix = "score on a validation split; export writes what the LVIS server scores"
            raise InputError(where, what, allowed="LVIS-format JSON with annotations", fix=fix)
        return decoded(text, TruthFile, SECTIONS)
    except msgspec.ValidationError as error:
        if bare := file_of_one_kind(text, kinds):
            return bare
        raise plain_coco(text, where, str(error), SECTIONS) or type_error(text, where, str(error), SECTIONS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


def file_of_one_kind(text: bytes, kinds: Sequence[str]) -> TruthFile | None:
    """The records of a file of boxes without sizes of images, which become 0, or of masks without boxes.

    None where neither can be scored.
    """
    try:
        file = decoded(text, BareFile, SECTIONS)
        read = BOX.decode if {*kinds} != {"segm"} else lambda box: None
        boxes = [read(annotation.bbox) or NO_BOX for annotation in file.annotations]
    except msgspec.DecodeError:
        return None
    edges = chain.from_iterable((image.height, image.width) for image in file.images)
    has_sizes = all(type(edge) is int and abs(edge) < 2**63 for edge in edges)
    has_boxes = all(box is not NO_BOX for box in boxes)
    has_masks = {*kinds} != {"bbox"} and any(is_mask(annotation.segmentation) for annotation in file.annotations)
    if not file.annotations or has_masks != has_sizes or has_masks == has_boxes:
        return None
    images = file.images if has_sizes else [msgspec.structs.replace(one, height=0, width=0) for one in file.images]
    with_boxes = [msgspec.structs.replace(one, bbox=box) for one, box in zip(file.annotations, boxes, strict=True)]
    return TruthFile([*images], [*with_boxes], file.categories)


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
    refuse_id_0(annotation_ids, where)
    boxes = np.fromiter(chain.from_iterable(a.bbox for a in annotations), np.float64, 4 * len(annotations))
    return GroundTruth(
        where=where,
        image_ids=image_ids,
        sizes_hw=np.stack([column(images, "height"), column(images, "width")], axis=1),
        category_ids=category_ids,
        labels=category_order + 1,
        names=tuple("" if category.name is None else str(category.name) for category in categories),
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
        coco_urls=[image.coco_url for image in images],
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
