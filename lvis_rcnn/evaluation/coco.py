"""COCO annotations as LVIS-format ones, for data in which every category is annotated in every image.

The protocol stays that of LVIS, so that the result is no COCO AP: at most 300 detections of an image count, crowd
regions match nothing, and rare, common and frequent categories have their own AP.
"""

import math
from collections import Counter, defaultdict
from itertools import chain
from typing import Any

import msgspec

from lvis_rcnn.dataset.json_text import json_of, mended
from lvis_rcnn.dataset.records import Int64Number, Sections, no_json, type_error
from lvis_rcnn.dataset.versions import frequency_group
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
    height: Int64Number
    width: Int64Number
    coco_url: msgspec.Raw = msgspec.Raw(b"null")
    neg_category_ids: Any = None


class CocoAnnotation(TruthAnnotation, frozen=True, gc=False, omit_defaults=True):
    """What is read of an annotation."""

    iscrowd: float | bool | None = 0


class CocoCategory(msgspec.Struct, frozen=True):
    """What is read of a category."""

    id: Int64Number
    name: str = ""


class CocoFile(msgspec.Struct, frozen=True):
    """What is read of a COCO annotation file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


SECTIONS: Sections = {"images": CocoImage, "annotations": CocoAnnotation, "categories": CocoCategory}


def lvis_text(text: bytes, where: str) -> bytes:
    """A COCO annotation file in the format of LVIS.

    Categories that an image has no annotation of are negative there, those with a crowd region are not exhaustive
    there, and the crowd regions themselves are ignored. A category is rare if up to 10 images of the file have it,
    common up to 100, else frequent, as LVIS counts its training images. An annotation with an area of 0 has that of its
    box, since converters of boxes write 0, and ``lvis`` would drop it.

    Raises:
        InputError: it is no COCO annotation file, or one of LVIS.
    """
    file = coco_file(text, where)
    if any(image.neg_category_ids is not None for image in file.images):
        fix = "leave out --coco-exhaustive (in Python coco_exhaustive)"
        raise InputError(where, "images have neg_category_ids, as those of LVIS", fix=fix)
    present: defaultdict[int, set[int]] = defaultdict(set)
    crowds: defaultdict[int, set[int]] = defaultdict(set)
    annotations = [with_area(one) for one in file.annotations]
    for annotation in annotations:
        present[annotation.image_id].add(annotation.category_id)
        if annotation.iscrowd:
            crowds[annotation.image_id].add(annotation.category_id)
    counts = Counter(chain.from_iterable(present.values()))
    ids = [category.id for category in file.categories]
    lvis = TruthFile(
        images=[
            TruthImage(
                image.id,
                image.height,
                image.width,
                neg_category_ids=[number for number in ids if number not in present[image.id]],
                not_exhaustive_category_ids=sorted(crowds[image.id]),
                coco_url=image.coco_url,
            )
            for image in file.images
        ],
        annotations=[msgspec.structs.replace(one, ignore=1, iscrowd=0) if one.iscrowd else one for one in annotations],
        categories=[TruthCategory(one.id, frequency_group(counts[one.id]), one.name) for one in file.categories],
    )
    return msgspec.json.encode(lvis)


def with_area(annotation: CocoAnnotation) -> CocoAnnotation:
    """The annotation with the area of its box, if it has none."""
    return annotation if annotation.area else msgspec.structs.replace(annotation, area=math.prod(annotation.bbox[2:]))


def coco_file(text: bytes, where: str) -> CocoFile:
    """The records of a COCO annotation file; InputError where it is none."""
    content = json_of(text, where)
    try:
        return msgspec.json.decode(content, type=CocoFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = mended(content)
    try:
        return msgspec.json.decode(content, type=CocoFile)
    except msgspec.ValidationError as error:
        raise type_error(content, where, str(error), SECTIONS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None
