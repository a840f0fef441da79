"""Scenes of the embedded dataset: LVIS in miniature, the same pixels and annotations on every machine.

The training split has a long tail: as in LVIS, some categories are frequent (in more than 100 images), some common
(11 to 100) and some rare (1 to 10). The validation split is flatter on purpose: at least 6 of 100 images show each
category, so that rare ones are measured on more than one object. As in LVIS, an image lists categories that are
verified as absent and categories of which only some instances are annotated; of every other category without an
annotation in the image nothing is known. Masks cover the visible part of an object.

First everything is planned (which image shows what), then drawn, then annotated from the pixels.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from tqdm import tqdm

from lvis_rcnn.dataset.mini.categories import CATEGORIES
from lvis_rcnn.dataset.mini.paint import BACKGROUNDS, Sprite, Stream, noise, paint_object, visible_polygons, words
from lvis_rcnn.dataset.versions import frequency_group

TRAIN, VAL = "train", "val"

# Parts of the keys of random streams: planning and drawing, and each split, have streams of their own.
PLAN, DRAW = 1, 2
SPLIT_KEYS = {TRAIN: 1, VAL: 2}

CATEGORY_COUNTS_ARE_FOR = {TRAIN: 480, VAL: 100}
"""Sizes of the splits for which the categories' columns ``train_images`` and ``val_images`` are."""

EMPTY_EVERY = 40
"""One in this many images shows only its background."""

CROWD_EVERY = 9
"""One in this many images shows a crowd of one category, half of it annotated."""

IMAGE_SIZES = ((128, 96), (136, 102), (144, 96), (120, 100), (112, 112), (128, 100), (96, 128), (100, 120))
"""Width and height, pixels."""

MOST_CATEGORIES = 8
"""Most categories that an image shows; matters if a split has fewer images than categories."""

NEGATIVES = (3, 5)
"""Fewest and most categories that an image lists as absent."""


PLACES_TRIED = 60
"""Random places that are tried for an object before it is left out."""

LEAST_SEEN_PERCENT = 65
"""An object may cover others only so far that this much of each stays visible."""

SHADOW_PX = 2
"""Offset of shadows to the right and down."""


class PlannedObject(NamedTuple):
    """One object of an image before it has a place."""

    category: int
    """Position in CATEGORIES."""
    size_px: int


class PlannedImage(NamedTuple):
    """What one image will show."""

    width: int
    height: int
    objects: tuple[PlannedObject, ...]
    """Large ones first: a small object lies on top of a large one."""
    negatives: tuple[int, ...]
    """Categories that are absent and listed so."""
    crowd: int | None
    """The category of which only half is annotated."""


def plan_split(seed: int, split: str, num_images: int) -> list[PlannedImage]:
    """Decide what each image of a split shows; draws nothing."""
    stream = Stream(seed, PLAN, SPLIT_KEYS[split])
    shown = categories_of_images(stream, split, num_images)
    listed_absent = [0] * len(CATEGORIES)
    return [plan_image(stream, present, listed_absent) for present in shown]


def categories_of_images(stream: Stream, split: str, num_images: int) -> list[list[int]]:
    """Assign each category to as many images as its row says; some images get more categories, some none."""
    places = np.array([index for index in range(num_images) if index % EMPTY_EVERY != EMPTY_EVERY // 4])
    capacities = np.array([stream.between(2, 7) for _ in places])
    filled = np.zeros(len(places), dtype=np.int64)
    shown: list[list[int]] = [[] for _ in range(num_images)]
    for category in range(len(CATEGORIES)):
        # Emptier images first, but not strictly, or consecutive categories would never share an image.
        luck = (words(stream, len(places)) >> np.uint64(53)).astype(np.int64)
        order = np.argsort(filled * 4096 // capacities + luck, kind="stable")
        chosen = order[filled[order] < MOST_CATEGORIES][: images_wanted(category, split, num_images)]
        filled[chosen] += 1
        for index in places[chosen]:
            shown[index].append(category)
    return shown


def images_wanted(category: int, split: str, num_images: int) -> int:
    """Number of images of a split of ``num_images`` that show a category: the row's count, scaled, at least 1."""
    row, base = CATEGORIES[category], CATEGORY_COUNTS_ARE_FOR[split]
    count = row.train_images if split == TRAIN else row.val_images
    return max(1, (2 * count * num_images + base) // (2 * base))


def plan_image(stream: Stream, present: Sequence[int], listed_absent: list[int]) -> PlannedImage:
    """Choose size, objects and negative list of one image; ``listed_absent`` counts how often each category was listed.

    Invariant: ``negatives`` and the categories of ``objects`` are disjoint.
    """
    width, height = stream.choice(IMAGE_SIZES)
    crowd = stream.choice(present) if present and stream.below(CROWD_EVERY) == 0 else None
    objects = [planned for category in present for planned in plan_objects(stream, category, category == crowd)]
    absent = [category for category in range(len(CATEGORIES)) if category not in present]
    luck = words(stream, len(CATEGORIES))
    absent.sort(key=lambda category: (listed_absent[category], luck[category]))
    negatives = sorted(absent[: stream.between(*NEGATIVES)])
    for category in negatives:
        listed_absent[category] += 1
    objects.sort(key=lambda planned: -planned.size_px)
    return PlannedImage(width, height, tuple(objects), tuple(negatives), crowd)


def plan_objects(stream: Stream, category: int, is_crowd: bool) -> list[PlannedObject]:
    """One or two objects of a category, or a crowd of small ones."""
    if is_crowd:
        return [PlannedObject(category, stream.between(12, 20)) for _ in range(stream.between(4, 6))]
    count = stream.choice((1, 1, 1, 1, 1, 2))
    return [PlannedObject(category, object_size_px(stream)) for _ in range(count)]


def object_size_px(stream: Stream) -> int:
    """Mostly 22 to 60 pixels; one object in 24 is tiny."""
    if stream.below(24) == 0:
        return stream.between(7, 9)
    return 22 + stream.below(20) + stream.below(20)


class VisibleObject(NamedTuple):
    """A drawn object and its visible pixels."""

    category: int
    mask: Bool[np.ndarray, "h w"]


def draw_image(
    seed: int, split: str, index: int, plan: PlannedImage
) -> tuple[UInt8[np.ndarray, "h w 3"], list[VisibleObject]]:
    """Draw one planned image; an object that fits nowhere without hiding another one is left out."""
    stream = Stream(seed, DRAW, SPLIT_KEYS[split], index)
    canvas = stream.choice(BACKGROUNDS)(stream, plan.height, plan.width)
    owners = np.zeros((plan.height, plan.width), dtype=np.int64)
    drawn: list[PlannedObject] = []
    areas_px: list[int] = []
    for planned in plan.objects:
        sprite = paint_object(stream, CATEGORIES[planned.category], planned.size_px)
        place = find_place(stream, owners, areas_px, sprite)
        if place is not None:
            drawn.append(planned)
            areas_px.append(stamp(canvas, owners, sprite, place, owner=len(drawn)))
    light = stream.between(226, 272)
    canvas = canvas * light // 256 + noise(stream, plan.height, plan.width)[:, :, None] // 40
    visible = [VisibleObject(planned.category, owners == owner) for owner, planned in enumerate(drawn, start=1)]
    return np.clip(canvas, 0, 255).astype(np.uint8), visible


def find_place(
    stream: Stream, owners: Int[np.ndarray, "h w"], areas_px: Sequence[int], sprite: Sprite
) -> tuple[int, int] | None:
    """Top and left of a place where the sprite leaves enough of every object visible; None if none is found.

    ``owners`` is the number of the object visible at each pixel, 0 for background; ``areas_px`` are the areas of
    objects 1, 2, ... when they were drawn.
    """
    (height, width), (sprite_h, sprite_w) = owners.shape, sprite.mask.shape
    for _ in range(PLACES_TRIED):
        top = stream.between(-(sprite_h // 10), height - sprite_h + sprite_h // 10)
        left = stream.between(-(sprite_w // 10), width - sprite_w + sprite_w // 10)
        image, patch = overlap(owners.shape, sprite.mask.shape, top, left)
        below = owners.copy()
        below[image][sprite.mask[patch]] = 0
        seen_px = np.bincount(below.ravel(), minlength=len(areas_px) + 1)[1:]
        if all(100 * seen >= LEAST_SEEN_PERCENT * area for seen, area in zip(seen_px, areas_px, strict=True)):
            return top, left
    return None


def overlap(
    image: tuple[int, ...], patch: tuple[int, ...], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the image and of the patch where a patch at ``top``, ``left`` lies on the image."""
    y0, y1 = max(top, 0), min(top + patch[0], image[0])
    x0, x1 = max(left, 0), min(left + patch[1], image[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def stamp(
    canvas: Int[np.ndarray, "h w 3"],
    owners: Int[np.ndarray, "h w"],
    sprite: Sprite,
    place: tuple[int, int],
    owner: int,
) -> int:
    """Paint a sprite and its shadow in place; returns the number of its pixels inside the image."""
    top, left = place
    image, patch = overlap(owners.shape, sprite.mask.shape, top + SHADOW_PX, left + SHADOW_PX)
    shade = sprite.mask[patch]
    canvas[image][shade] = canvas[image][shade] * 11 // 16
    image, patch = overlap(owners.shape, sprite.mask.shape, top, left)
    mask = sprite.mask[patch]
    canvas[image][mask] = sprite.colours[patch][mask]
    owners[image][mask] = owner
    return int(mask.sum())


def describe_image(
    image_id: int, split: str, plan: PlannedImage, visible: Sequence[VisibleObject], first_annotation_id: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The LVIS record of an image and those of its annotations.

    Invariant: a category is listed as not exhaustive exactly if some of its drawn objects are annotated and some are
    not.
    """
    crowd = [found for found in visible if found.category == plan.crowd]
    left_out = crowd[(len(crowd) + 1) // 2 :]
    annotated = [found for found in visible if not any(found is other for other in left_out)]
    annotations = [
        {"id": annotation_id, "image_id": image_id, "category_id": found.category + 1, **describe_mask(found.mask)}
        for annotation_id, found in enumerate(annotated, start=first_annotation_id)
    ]
    image = {
        "id": image_id,
        "width": plan.width,
        "height": plan.height,
        "file_name": f"{split}/{image_id:06d}.png",
        "license": 1,
        "neg_category_ids": [category + 1 for category in plan.negatives],
        "not_exhaustive_category_ids": sorted({found.category + 1 for found in left_out}),
    }
    return image, annotations


def describe_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Polygons along the pixels' outer edges, box (x, y, width, height) and area, all exact."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "segmentation": visible_polygons(mask),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
    }


def describe_categories(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The LVIS records of the categories, counted on the training split."""
    instances = Counter(annotation["category_id"] for annotation in annotations)
    pairs = {(annotation["category_id"], annotation["image_id"]) for annotation in annotations}
    images = Counter(category_id for category_id, _ in pairs)
    return [
        {
            "id": category_id,
            "name": row.name,
            "synset": row.synset,
            "synonyms": list(row.synonyms),
            "def": row.definition,
            "frequency": frequency_group(images[category_id]),
            "image_count": images[category_id],
            "instance_count": instances[category_id],
        }
        for category_id, row in enumerate(CATEGORIES, start=1)
    ]


def draw_split(
    folder: Path, seed: int, split: str, num_images: int, first_image_id: int, pixels: Any
) -> dict[str, list[dict[str, Any]]]:
    """Draw and write the images of a split; ``pixels`` is the digest that they are added to."""
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    plans = plan_split(seed, split, num_images)
    for index, plan in enumerate(tqdm(plans, desc=f"drawing {split}", unit="image", disable=None)):
        picture, visible = draw_image(seed, split, index, plan)
        image, found = describe_image(first_image_id + index, split, plan, visible, len(annotations) + 1)
        Image.fromarray(picture).save(folder / "images" / image["file_name"])
        pixels.update(f"{image['file_name']} {picture.shape}\n".encode() + picture.tobytes())
        images.append(image)
        annotations.extend(found)
    return {"images": images, "annotations": annotations}
