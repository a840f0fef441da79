"""Our scorer beside the lvis package: the same to the last bit, or not at all."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lvis_rcnn.official import difference, official_scores
from lvis_rcnn.results_file import Result, found_of
from lvis_rcnn.score import score
from lvis_rcnn.truth import parse_truth

LVIS_VAL_100 = Path(__file__).parents[2] / "shared" / "data" / "lvis_val_100.json"
SIDE_PX = 112


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def packed(box: list[float]) -> dict[str, Any]:
    """The pixels of a box, as the results of a detector hold them; none where it has no area."""
    pixels = np.zeros((SIDE_PX, SIDE_PX), np.uint8, order="F")
    x, y, width, height = (round(value) for value in box)
    pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = 1
    rle = coco_mask.encode(pixels)
    return {"size": [SIDE_PX, SIDE_PX], "counts": rle["counts"].decode()}


def results_of(records: list[dict[str, Any]]) -> list[Result]:
    return msgspec.convert(records, list[Result])


def disagreement(dataset: dict[str, Any], records: list[dict[str, Any]], kind: str, cap: int = 300) -> str:
    text = json.dumps(dataset).encode()
    truth = parse_truth(text, "truth.json")
    found = found_of(results_of(records), truth)
    return difference(score(truth, found, kind, cap), official_scores(text, found, kind, cap))


# Widths and heights whose products are the edges of the bins, a pixel beside them, and nothing.
SIZES_PX = [(32, 32), (31, 33), (33, 32), (96, 96), (95, 97), (96, 97), (10, 10), (10, 11), (8, 100), (0, 5), (4, 0)]
SHIFTS_PX = [0, 0, 0, 1, 2, -1, 5, 40]


@st.composite
def sets(draw) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """A small dataset, results for it, and how many of an image count.

    Seeded by one number: drawing every field by itself makes sets a hundred times slower, and no smaller.
    """
    pick = random.Random(draw(st.integers(0, 2**48)))
    num_images, num_categories = pick.choice([1, 1, 2, 3, 4]), pick.choice([1, 1, 2, 3, 5])
    image_ids, category_ids = pick.sample(range(1, 40), num_images), pick.sample(range(1, 40), num_categories)
    some = lambda: pick.sample(category_ids, pick.randint(0, num_categories))  # noqa: E731
    images = [
        {"id": number, "height": SIDE_PX, "width": SIDE_PX}
        | {"neg_category_ids": [*some(), 99], "not_exhaustive_category_ids": some() if pick.random() < 0.5 else []}
        for number in image_ids
    ]
    with_ignored = pick.random() < 0.3
    annotations = []
    for number in range(pick.choice([0, 1, 2, 4, 9])):
        width, height = pick.choice(SIZES_PX)
        box = [pick.choice([0, 0, 3, 14]), pick.choice([0, 0, 3, 14]), width, height]
        area = pick.choice([width * height] * 8 + [0, 1024, 9216, 500.5])
        record = {"id": number + 1, "image_id": pick.choice(image_ids), "category_id": pick.choice(category_ids)}
        record |= {"bbox": box, "area": area, "segmentation": rectangle(*box)}
        if with_ignored:
            record["ignore"] = pick.choice([0, 0, 1])
        annotations.append(record)
    categories = [{"id": number, "name": f"{number}", "frequency": pick.choice("rcf")} for number in category_ids]
    dataset = {"images": images, "annotations": pick.sample(annotations, len(annotations)), "categories": categories}
    scores = pick.choice([[0.5], [0.25, 0.5, 0.75], None])
    float32 = pick.random() < 0.3
    records = []
    for _ in range(pick.choice([0, 1, 3, 10, 30, 30, 350 if num_images == 1 else 60])):
        near = pick.choice(annotations) if annotations and pick.random() < 0.8 else None
        box = list(near["bbox"]) if near else [3, 3, *pick.choice(SIZES_PX)]
        if pick.random() < 0.15:
            box[2:] = pick.choice(SIZES_PX)
        box = [value + pick.choice(SHIFTS_PX) if place < 3 else value for place, value in enumerate(box)]
        value = pick.choice(scores) if scores else pick.random()
        record = {
            "image_id": near["image_id"] if near and pick.random() < 0.9 else pick.choice(image_ids),
            "category_id": near["category_id"] if near and pick.random() < 0.8 else pick.choice([*category_ids, 98]),
            "score": float(np.float32(value)) if float32 else value,
            "bbox": box,
            "segmentation": packed(box),
        }
        records += [record] * pick.choice([1, 1, 1, 2])
    return dataset, pick.sample(records, len(records)), pick.choice([300, 300, 1, 3, 10])


@settings(max_examples=150, deadline=None)
@given(sets(), st.sampled_from(["bbox", "segm"]))
def test_small_sets_score_as_in_the_lvis_package(made, kind):
    dataset, records, cap = made
    assert disagreement(dataset, records, kind, cap) == ""


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(sets())
def test_many_small_sets_score_as_in_the_lvis_package(made):
    dataset, records, cap = made
    assert disagreement(dataset, records, "bbox", cap) == ""
    assert disagreement(dataset, records, "segm", cap) == ""
