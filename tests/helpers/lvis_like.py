"""Annotations like those of LVIS v0.5, drawn by random numbers: what the tests need of the real ones, anywhere.

The 1,230 categories are the real ones with their frequencies. Objects follow their long tail: a few categories have
most of them, rare ones one or two. Images have lists of absent categories (negative) and of those that are not
exhaustively annotated; some have no object, a few have 60. Objects have one to seven parts, some cut by the edge of the
image; coordinates have two decimals, as in the real files.
"""

import csv
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CATEGORY_COUNTS = Path(__file__).parents[1] / "golden" / "lvis_v0.5_train_counts.csv"
SIZES_HW = [(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (333, 500), (640, 640), (205, 316)]
PARTS = [1] * 9 + [2, 2, 3, 4, 7]


def write_lvis_like(path: Path, images: int = 25, seed: int = 0) -> Path:
    """Write the annotations of so many images; the same arguments give the same bytes."""
    path.write_text(json.dumps(lvis_like(images, seed)))
    return path


@cache
def categories_of_lvis() -> list[dict[str, Any]]:
    """The categories of LVIS v0.5 in the order of their ids, with the counts of its training split."""
    with CATEGORY_COUNTS.open(newline="") as file:
        whole = ("id", "image_count", "instance_count")
        return [row | {key: int(row[key]) for key in whole} for row in csv.DictReader(file)]


def lvis_like(images: int, seed: int) -> dict[str, Any]:
    """A dataset as JSON holds it; annotations stand in no order."""
    random = np.random.default_rng(seed)
    categories = categories_of_lvis()
    # The square root keeps the long tail, and lets rare categories occur in few images.
    weights = np.sqrt([category["image_count"] for category in categories])
    ids = random.choice(600_000, images, replace=False) + 1
    records = [image_record(random, number, int(image_id)) for number, image_id in enumerate(ids)]
    annotations = []
    for number, image in enumerate(records):
        present = random.choice(len(categories), random.integers(1, 8), replace=False, p=weights / weights.sum()) + 1
        absent = np.setdiff1d(random.choice(len(categories), 15, replace=False) + 1, present)
        image["neg_category_ids"] = absent[: random.integers(0, 15)].tolist()
        if random.random() < 0.2:
            image["not_exhaustive_category_ids"] = present[: random.integers(1, 3)].tolist()
        if number % 12 == 7:
            continue
        count = 60 if number % 20 == 3 else min(int(random.geometric(0.12)), 40)
        annotations += [object_record(random, image, int(random.choice(present))) for _ in range(count)]
    for annotation_id, place in enumerate(random.permutation(len(annotations)).tolist(), start=1):
        annotations[place]["id"] = annotation_id
    annotations.sort(key=lambda annotation: annotation["id"])
    return {"info": {"version": "v0.5"}, "images": records, "annotations": annotations, "categories": categories}


def image_record(random: np.random.Generator, number: int, image_id: int) -> dict[str, Any]:
    """An image of COCO's validation split, without its lists."""
    height, width = SIZES_HW[number % len(SIZES_HW)] if number % 3 else random.integers(200, 641, 2).tolist()
    names = {
        "coco_url": f"http://images.cocodataset.org/val2017/{image_id:012}.jpg",
        "file_name": f"COCO_val2014_{image_id:012}.jpg",
    }
    lists: dict[str, Any] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {"id": image_id, "height": height, "width": width, **names, **lists}


def object_record(random: np.random.Generator, image: dict[str, Any], category_id: int) -> dict[str, Any]:
    """An object of one or more parts, from 2 pixels to nearly the whole image."""
    height, width = image["height"], image["width"]
    radius = min(height, width) / 2 * math.exp(random.uniform(-4.5, -0.3))
    centre = random.uniform(radius, [width - radius, height - radius])
    parts = [
        part_outline(random, centre + random.normal(0, radius, 2) * bool(place), radius / (1 + place), (width, height))
        for place in range(random.choice(PARTS))
    ]
    points = np.concatenate(parts)
    low, high = points.min(axis=0), points.max(axis=0)
    return {
        "id": 0,
        "image_id": image["id"],
        "category_id": category_id,
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": round(sum(map(area, parts)), 2),
        "segmentation": [part.ravel().tolist() for part in parts],
    }


def part_outline(
    random: np.random.Generator, centre: np.ndarray, radius: float, size_wh: tuple[int, int]
) -> np.ndarray:
    """Points of a jagged star around ``centre``, cut at the edges of the image."""
    count = int(random.integers(4, 60))
    angles = np.sort(random.uniform(0, 2 * math.pi, count))
    spokes = radius * random.uniform(0.5, 1, count)
    points = centre + np.stack([spokes * np.cos(angles), spokes * np.sin(angles)], axis=1)
    return np.round(np.clip(points, 0, size_wh), 2)


def area(points: np.ndarray) -> float:
    """Pixels within an outline."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
