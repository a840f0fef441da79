"""Decides what each image of the embedded dataset shows, before anything is drawn."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lvis_rcnn.mini_categories import CATEGORIES
from lvis_rcnn.mini_random import Stream, words

TRAIN, VAL = "train", "val"

# Parts of the keys of random streams: planning and drawing, and each split, have numbers of their own.
PLAN, DRAW = 1, 2
SPLIT_KEYS = {TRAIN: 1, VAL: 2}

CATEGORY_COUNTS_ARE_FOR = {TRAIN: 480, VAL: 100}
"""Sizes of the splits that the columns ``train_images`` and ``val_images`` of the categories speak of."""

EMPTY_EVERY = 40
"""One image of this many shows nothing but its background."""

CROWD_EVERY = 9
"""One image of this many shows a crowd of one category and annotates half of it."""

IMAGE_SIZES = ((128, 96), (136, 102), (144, 96), (120, 100), (112, 112), (128, 100), (96, 128), (100, 120))
"""Width and height, pixels."""

MOST_CATEGORIES = 8
"""Categories that an image shows at most; binds where a split has fewer images than categories."""

NEGATIVES = (3, 5)
"""Fewest and most categories that an image lists as absent."""


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
    """Decide what each image of a split shows; costs no drawing."""
    stream = Stream(seed, PLAN, SPLIT_KEYS[split])
    shown = categories_of_images(stream, split, num_images)
    listed_absent = [0] * len(CATEGORIES)
    return [plan_image(stream, present, listed_absent) for present in shown]


def categories_of_images(stream: Stream, split: str, num_images: int) -> list[list[int]]:
    """Give each category to as many images as its row says, fuller and emptier images mixed, some left empty."""
    places = np.array([index for index in range(num_images) if index % EMPTY_EVERY != EMPTY_EVERY // 4])
    capacities = np.array([stream.between(2, 7) for _ in places])
    filled = np.zeros(len(places), dtype=np.int64)
    shown: list[list[int]] = [[] for _ in range(num_images)]
    for category in range(len(CATEGORIES)):
        # Emptier images first, but not strictly, lest categories that follow each other share no image.
        luck = (words(stream, len(places)) >> np.uint64(53)).astype(np.int64)
        order = np.argsort(filled * 4096 // capacities + luck, kind="stable")
        chosen = order[filled[order] < MOST_CATEGORIES][: images_wanted(category, split, num_images)]
        filled[chosen] += 1
        for index in places[chosen]:
            shown[index].append(category)
    return shown


def images_wanted(category: int, split: str, num_images: int) -> int:
    """Images of a split of ``num_images`` that shall show a category: the row's count, scaled, at least 1."""
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
