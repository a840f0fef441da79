"""COCO annotations as LVIS-format ones, for data in which every category is annotated in every image.

The rules are those of dataset/coco.py. The protocol stays that of LVIS, so that the result is no COCO AP: at most 300
detections of an image count, crowd regions match nothing, and rare, common and frequent categories have their own AP.
"""

from typing import Any

import msgspec
import numpy as np

from lvis_rcnn.dataset.coco import CountedImages, areas_above_0, cells_of, refuse_lvis, strictly_or_mended
from lvis_rcnn.dataset.records import Int64Number, Sections, integers, known
from lvis_rcnn.evaluation.ground_truth import TruthAnnotation, TruthCategory, TruthFile, TruthImage
from lvis_rcnn.system.cli import InputError

RULES = (
    " of COCO annotations (every category exhaustive in every image, except where it has a crowd region; rare, common,"
    " frequent: in up to 10, up to 100, more images of this file)"
)
"""What such a result adds to the name of the protocol; part of metrics.json, so its wording is fixed."""


class CocoImage(msgspec.Struct, frozen=True, gc=False):
    """What is read of an image."""

    id: Int64Number
    height: Any = msgspec.UNSET
    width: Any = msgspec.UNSET
    coco_url: msgspec.Raw = msgspec.Raw(b"null")
    neg_category_ids: Any = None


class CocoAnnotation(TruthAnnotation, frozen=True, gc=False, omit_defaults=True):
    """What is read of an annotation."""

    iscrowd: float | bool | None = 0


class CocoCategory(msgspec.Struct, frozen=True):
    """What is read of a category."""

    id: Int64Number
    name: Any = ""


class CocoFile(msgspec.Struct, frozen=True):
    """What is read of a COCO annotation file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


SECTIONS: Sections = {"images": CocoImage, "annotations": CocoAnnotation, "categories": CocoCategory}


def lvis_text(text: bytes, where: str, counted: CountedImages | None = None) -> bytes:
    """A COCO annotation file in the format of LVIS.

    ``counted`` are the training images, for frequencies; by default those of the file.

    Raises:
        InputError: it is no COCO annotation file, or one of LVIS, or ``counted`` are of other categories.
    """
    file = strictly_or_mended(text, where, CocoFile, SECTIONS)
    refuse_lvis(where, (image.neg_category_ids for image in file.images))
    if not file.images or not file.categories:
        raise InputError(where, "no images or no categories", fix="name a COCO annotation file")
    annotations, count = file.annotations, len(file.annotations)
    image_ids, category_ids = (integers(one.id for one in section) for section in (file.images, file.categories))
    numbers = integers(one.id for one in annotations)
    images = known(image_ids, integers(one.image_id for one in annotations), numbers, "image_id", where)
    categories = known(category_ids, integers(one.category_id for one in annotations), numbers, "category_id", where)
    is_crowd = np.fromiter((bool(one.iscrowd) for one in annotations), bool, count)
    cells = cells_of(images, categories, is_crowd, (len(image_ids), len(category_ids)))
    areas = areas_above_0(
        np.fromiter((one.area for one in annotations), np.float64, count),
        np.array([one.bbox for one in annotations], np.float64).reshape(-1, 4),
    )
    groups = cells.frequencies(file.categories, counted)
    lvis = TruthFile(
        images=[
            TruthImage(
                image.id,
                image.height,
                image.width,
                neg_category_ids=category_ids[~cells.present[at]].tolist(),
                not_exhaustive_category_ids=category_ids[cells.crowded[at]].tolist(),
                coco_url=image.coco_url,
            )
            for at, image in enumerate(file.images)
        ],
        annotations=[
            msgspec.structs.replace(one, area=area, **({"ignore": 1, "iscrowd": 0} if one.iscrowd else {}))
            for one, area in zip(annotations, areas.tolist(), strict=True)
        ],
        categories=[TruthCategory(one.id, group, one.name) for one, group in zip(file.categories, groups, strict=True)],
    )
    return msgspec.json.encode(lvis)
