"""Plain COCO annotations as LVIS ones, for data in which every category is annotated in every image.

The one place of these rules, which the store and the scorer share:

* a category that an image has no annotation of is verified to be absent there;
* a category with a crowd region in an image is not exhaustive there, and the region is neither trained on nor scored;
* a category is rare, common or frequent by the images that have an annotation of it, in LVIS's bins (versions.py);
* an annotation with an area of 0 has that of its box, since converters of boxes write 0, and ``lvis`` would drop it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64
from msgspec import Meta

from lvis_rcnn.dataset.columns import ends
from lvis_rcnn.dataset.json_text import Text, decoded, json_of, mended, read_text
from lvis_rcnn.dataset.records import (
    CROWD,
    IGNORED,
    RECORDS,
    AnnotationRecord,
    Category,
    EdgePx,
    FileFormat,
    ImageRecord,
    Int64Number,
    LvisFile,
    Sections,
    no_json,
    type_error,
)
from lvis_rcnn.dataset.versions import frequency_group
from lvis_rcnn.system.cli import InputError

Frequency = Literal["r", "c", "f"]
AnyFile = TypeVar("AnyFile", bound=msgspec.Struct)


@dataclass(frozen=True, eq=False)
class Cells:
    """What is annotated in each image, by category."""

    present: Bool[np.ndarray, "n c"]
    """Whether there is an annotation. A byte per cell: 9 MB at COCO train2017."""
    crowded: Bool[np.ndarray, "n c"]
    """Whether there is a crowd region."""

    def frequencies(self, categories: Sequence[Any], counted: "CountedImages | None") -> list[Frequency]:
        """The group of each category: by the images that are ``counted``, or else those of this file."""
        counts = self.present.sum(axis=0).tolist() if counted is None else counted.of_each(categories)
        return [frequency_group(count) for count in counts]


def cells_of(
    images: Int64[np.ndarray, " A"],
    categories: Int64[np.ndarray, " A"],
    is_crowd: Bool[np.ndarray, " A"],
    shape: tuple[int, int],
) -> Cells:
    """The cells of annotations whose images and categories are positions below ``shape``."""
    cells = Cells(np.zeros(shape, bool), np.zeros(shape, bool))
    cells.present[images, categories] = True
    cells.crowded[images[is_crowd], categories[is_crowd]] = True
    return cells


def areas_above_0(
    areas: Float64[np.ndarray, " A"], boxes_xywh: Float64[np.ndarray, "A 4"]
) -> Float64[np.ndarray, " A"]:
    """Areas, and those of the boxes where they are 0."""
    found: np.ndarray = np.where(areas == 0, boxes_xywh[:, 2] * boxes_xywh[:, 3], areas)
    return found


def arrays_as_lvis(
    arrays: Mapping[str, np.ndarray], categories: Sequence[Category], counted: "CountedImages | None"
) -> tuple[dict[str, np.ndarray], list[Category]]:
    """The arrays of a store and its categories, with what LVIS adds; ``counted`` as :meth:`Cells.frequencies`."""
    sizes_each = np.diff(arrays["annotation_offsets"])
    marks = arrays.get("marks", np.zeros(len(arrays["labels"]), np.uint8))
    images = np.repeat(np.arange(len(sizes_each)), sizes_each)
    cells = cells_of(images, arrays["labels"] - 1, marks == CROWD, (len(sizes_each), len(categories)))
    added = {
        **listed("negative", ~cells.present),
        **listed("not_exhaustive", cells.crowded),
        "areas": areas_above_0(arrays["areas"], arrays["boxes_xywh"]),
        **({"marks": np.where(marks == CROWD, IGNORED, marks)} if marks.any() else {}),
    }
    groups = cells.frequencies(categories, counted)
    with_groups = [msgspec.structs.replace(one, frequency=group) for one, group in zip(categories, groups, strict=True)]
    return {**arrays, **added}, with_groups


def listed(name: str, cells: Bool[np.ndarray, "n c"]) -> dict[str, np.ndarray]:
    """The categories that are set in each image, as two arrays of a store."""
    return {f"{name}_offsets": ends(cells.sum(axis=1)), f"{name}_labels": np.nonzero(cells)[1] + 1}


class CocoImage(msgspec.Struct, gc=False):
    """An image of a COCO file."""

    id: Int64Number
    height: EdgePx
    width: EdgePx
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: Any = None


class CocoCategory(msgspec.Struct, frozen=True):
    """A category of a COCO file."""

    id: Int64Number
    name: Annotated[str, Meta(min_length=1)]


class CocoFile(msgspec.Struct):
    """All but the annotations of a COCO file, which stay text; a test set has none."""

    images: Annotated[list[CocoImage], Meta(min_length=1)]
    categories: Annotated[list[CocoCategory], Meta(min_length=1)]
    annotations: msgspec.Raw = msgspec.Raw(b"[]")


SECTIONS: Sections = {"images": CocoImage, "annotations": AnnotationRecord, "categories": CocoCategory}


def read_coco_file(text: Text, where: str) -> LvisFile:
    """All but the annotations of a COCO file, without what :func:`arrays_as_lvis` adds.

    Raises:
        InputError: it is no COCO annotation file, or one of LVIS.
    """
    try:
        file = decoded(text, CocoFile, RECORDS)
    except msgspec.ValidationError as error:
        raise type_error(text, where, str(error), SECTIONS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None
    refuse_lvis(where, (image.neg_category_ids for image in file.images))
    images = [ImageRecord(one.id, one.height, one.width, [], [], one.coco_url, one.file_name) for one in file.images]
    return LvisFile(images, [Category(one.id, one.name, "r") for one in file.categories], file.annotations)


COCO = FileFormat(read_coco_file, SECTIONS)


def refuse_lvis(where: str, negatives: Iterable[Any]) -> None:
    """Raise InputError if an image says which categories are absent from it, as those of LVIS do."""
    if any(one is not None for one in negatives):
        fix = "leave out --coco-exhaustive (exhaustive in a study, coco_exhaustive in Python)"
        raise InputError(where, "images have neg_category_ids, as those of LVIS", fix=fix)


def strictly_or_mended(text: Text, where: str, kind: type[AnyFile], sections: Sections) -> AnyFile:
    """The records of a JSON file of this kind; InputError where it is none, even if mended (json_text.py)."""
    content = json_of(text, where)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = mended(content)
    try:
        return decoded(content, kind, sections)
    except msgspec.ValidationError as error:
        raise type_error(content, where, str(error), sections) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


class Counted(msgspec.Struct, gc=False):
    """What is counted of an annotation."""

    image_id: Int64Number
    category_id: Int64Number


class CountedCategory(msgspec.Struct, frozen=True):
    """What tells whether a category is one of other annotations."""

    id: Int64Number
    name: Any = ""


class CountedFile(msgspec.Struct):
    """What is counted of a COCO file."""

    annotations: list[Counted]
    categories: list[CountedCategory]


@dataclass(frozen=True)
class CountedImages:
    """How many images of a COCO file have an annotation of each category."""

    where: str
    names: Mapping[int, str]
    """Of all categories, by their ids."""
    counts: Mapping[int, int]
    """By the ids of the categories that have any."""

    def of_each(self, categories: Sequence[Any]) -> list[int]:
        """The images of categories, which have an id and a name.

        Raises:
            InputError: one is not a category of the file, so that it would count as rare.
        """
        for one in categories:
            name = self.names.get(one.id)
            if name is None or (name and one.name and name != str(one.name)):
                what = f"category {one.id} of the annotations, {one.name!r:.40}, is " + (
                    f"{name!r:.40} here" if name else "not here"
                )
                allowed = "COCO annotations with the same categories, of the training images"
                raise InputError(
                    self.where, what, allowed=allowed, fix="name the training annotations of this data set"
                )
        return [self.counts.get(one.id, 0) for one in categories]


def image_counts_of(path: Path | None, coco_exhaustive: bool) -> CountedImages | None:
    """What is counted of a COCO file; None without one.

    Raises:
        InputError: there is no such file, it is no COCO annotation file or has no annotations, or other annotations are
            not COCO's.
    """
    if path is None:
        return None
    where, content = f"--frequencies {path}", "the COCO annotations of the training images (JSON)"
    if not coco_exhaustive:
        raise InputError(where, "is for plain COCO annotations", fix="add --coco-exhaustive")
    text = read_text(path, "--frequencies", content)
    sections: Sections = {"annotations": Counted, "categories": CountedCategory}
    file = strictly_or_mended(text, str(path), CountedFile, sections)
    if not file.annotations:
        raise InputError(where, "has no annotations, so that every category would be rare", allowed=content)
    pairs = np.array([(one.category_id, one.image_id) for one in file.annotations], np.int64).reshape(-1, 2)
    ids, counts = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
    names = {one.id: str(one.name) for one in file.categories}
    return CountedImages(where, names, dict(zip(ids.tolist(), counts.tolist(), strict=True)))
