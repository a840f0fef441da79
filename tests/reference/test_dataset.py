"""Parsing, filtering, oversampling and order beside MMDetection's own on 100 images of LVIS v0.5.

The images' annotations are not part of this repository: what the figures hold of them stands for them (conftest.py).
Sets made up here have what these lack, and are checked against a plain reading of the same rules.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvis_rcnn.dataloader import repeat_factors as repeat_factors_module
from lvis_rcnn.dataloader.repeat_factors import repeat_factors
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataloader.transforms import rescaled_size_hw
from lvis_rcnn.dataset.store import build_store, image_candidates, open_store
from lvis_rcnn.dataset.versions import version_of
from tests.reference.golden_figures import arrays, table


def golden(name):
    return table("lvis_dataset.json.gz")[name]


def kept_images(store, **options):
    """Positions of the images that are trained on: indices of the published datasets count these only."""
    return np.flatnonzero(repeat_factors(store, 0.1, **options).image_factors)


def test_categories_and_images_are_in_the_order_of_the_file(golden_store):
    assert [category.id for category in golden_store.categories] == golden("cat_ids")
    corrected = {label: theirs for label, _, theirs in golden("class_name_mismatches")}
    names = [corrected.get(label, category.name) for label, category in enumerate(golden_store.categories)]
    assert names == golden("classes")
    assert golden_store.image_ids.tolist() == golden("test_img_ids")
    assert version_of(golden_store.categories).name == "v0.5"
    assert golden_store.num_images == golden("n_images_raw") == golden("n_test")
    assert len(golden_store.annotation_ids) == golden("n_annotations_raw")


def test_images_without_annotation_are_left_out_and_small_ones(golden_store, monkeypatch):
    kept = kept_images(golden_store)
    assert len(kept) == golden("n_train")
    assert golden_store.image_ids[kept].tolist() == [image["img_id"] for image in golden("train")]
    monkeypatch.setattr(repeat_factors_module, "MIN_EDGE_PX", 400)
    assert golden_store.image_ids[kept_images(golden_store)].tolist() == golden("train_img_ids_min_size_400")


def test_parsed_images(golden_store):
    found = [parsed(golden_store, image) for image in kept_images(golden_store).tolist()]
    assert found == golden("train")
    assert sum(len(image["labels"]) for image in found) == golden("n_annotations_kept")


def parsed(store, image):
    """An image as MMDetection parses it: boxes not clipped yet, labels from 0, no object to ignore."""
    annotations = store.annotations_of(image)
    rows = annotations.start + np.flatnonzero(store.is_trained[annotations])
    x, y, width, height = store.boxes_xywh[rows].T
    labels = (store.labels[rows] - 1).tolist()
    return {
        "img_id": int(store.image_ids[image]),
        "img_path": image_candidates(*store.image_name(image))[0],
        "height": int(store.heights[image]),
        "width": int(store.widths[image]),
        "bboxes": np.stack([x, y, x + width, y + height], axis=1).tolist(),
        "labels": labels,
        "ignore": [0] * len(rows),
        "cat_ids": labels,
    }


@pytest.mark.parametrize("threshold", ["0.001", "0.015", "0.05", "0.1", "0.5"])
def test_repeat_factors_and_indices(golden_store, threshold):
    expected = golden("class_balanced")[threshold]
    factors = repeat_factors(golden_store, float(threshold))
    kept = np.flatnonzero(factors.image_factors)
    assert factors.image_factors[kept].tolist() == expected["repeat_factors"]
    assert np.repeat(np.arange(len(kept)), factors.copies[kept]).tolist() == expected["repeat_indices"]
    assert factors.expected_epoch_length == expected["length"]


@pytest.mark.parametrize("epoch", [0, 1])
def test_order_and_batches(golden_store, epoch):
    """One rank; MMDetection names entries of the oversampled list, here images."""
    stream = SampleStream(
        factors=repeat_factors(golden_store, 0.1).image_factors,
        rounding="ceil",
        portrait=np.asarray(golden_store.widths < golden_store.heights),
        seed=0,
        group_size=2,
        groups_per_step=1,
    )
    entries = np.repeat(np.arange(golden_store.num_images), stream.copies_of_epoch(0))
    batches = golden("sampler")[f"seed0_epoch{epoch}_batches"]
    steps = range(stream.steps_before_epoch(epoch), stream.steps_before_epoch(epoch + 1))
    assert [stream.groups_of_step(step) for step in steps] == [[entries[batch].tolist()] for batch in batches]


@pytest.mark.parametrize("epoch", [0, 1])
def test_order_of_entries(epoch):
    """The permutation alone, which needs no annotations: entries as images of one orientation, one a group."""
    order = golden("sampler")[f"seed0_epoch{epoch}_order"]
    stream = SampleStream(np.ones(len(order)), "ceil", np.zeros(len(order), bool), 0, 1, 1)
    first = stream.steps_before_epoch(epoch)
    assert [stream.groups_of_step(first + step) for step in range(len(order))] == [[[entry]] for entry in order]


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_of_entries(epoch):
    """The buckets alone: which entries are upright is read off the batches, all but the last of one orientation."""
    order, batches = (golden("sampler")[f"seed0_epoch{epoch}_{name}"] for name in ("order", "batches"))
    portrait = orientations(order, batches)
    stream = SampleStream(np.ones(len(order)), "ceil", portrait, 0, 2, 1)
    first = stream.steps_before_epoch(epoch)
    assert [stream.groups_of_step(first + step) for step in range(len(batches))] == [[batch] for batch in batches]


def orientations(order, batches):
    """Which entries are upright, in one of the two readings that the batches allow.

    An entry either completes the batch that waits for it, or opens one: then it is not of the orientation of the batch
    that waits already.
    """
    batch_of = {entry: number for number, batch in enumerate(batches) for entry in batch}
    portrait = np.zeros(len(order), bool)
    waiting = {}  # orientation: the batch that has one entry so far
    for entry in order:
        of_waiting = [upright for upright, batch in waiting.items() if batch == batch_of[entry]]
        upright = of_waiting[0] if of_waiting else not next(iter(waiting), True)
        portrait[entry] = upright
        if of_waiting:
            del waiting[upright]
        else:
            waiting[upright] = batch_of[entry]
    return portrait


def test_rescaled_sizes():
    rows = arrays("pipeline_images")["size_table_h_w_long_short_newh_neww"].tolist()
    found = [(*rescaled_size_hw(h, w, short_px, long_px),) for h, w, long_px, short_px, _, _ in rows]
    assert found == [(new_h, new_w) for *_, new_h, new_w in rows]


# The same rules on sets made up here, read once more in plain Python.


@st.composite
def datasets(draw):
    """LVIS JSON of a few images: some without annotation, some small; annotations of all kinds that are left out."""
    images = []
    annotations = []
    for number in range(1, draw(st.integers(2, 9)) + 1):
        height, width = draw(st.tuples(*[st.sampled_from([20, 31, 32, 40, 60])] * 2))
        images.append(
            {"id": number * 7, "height": height, "width": width, "neg_category_ids": []}
            | {"not_exhaustive_category_ids": [], "coco_url": f"http://images.cocodataset.org/val2017/{number:012}.jpg"}
        )
        for _ in range(draw(st.integers(0, 4))):
            x, y = draw(st.tuples(st.integers(-3, width), st.integers(-3, height)))
            box = [x + 0.5, y + 0.5, *draw(st.tuples(*[st.sampled_from([0.9, 1, 2.5, 30])] * 2))]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number * 7, "category_id": draw(st.integers(1, 4))}
                | {"bbox": box, "area": draw(st.sampled_from([0, 0.5, 9, 9]))}
                | {"segmentation": [[1, 1, 5, 1, 5, 5]]}
                | dict.fromkeys(draw(st.sets(st.sampled_from(["iscrowd", "ignore", "neither", "none"]), max_size=1)), 1)
            )
    categories = [{"id": number, "name": f"thing {number}", "frequency": "c"} for number in range(1, 5)]
    return {"images": images, "annotations": annotations, "categories": categories}


sets = datasets().filter(lambda dataset: dataset["annotations"])


def instances(dataset, image):
    """What ``CocoDataset.parse_data_info`` of MMDetection 3.3.0 keeps of an image's annotations, crowds among them."""
    for one in dataset["annotations"]:
        if one["image_id"] != image["id"] or one.get("ignore", False):
            continue
        x1, y1, w, h = one["bbox"]
        inter_w = max(0, min(x1 + w, image["width"]) - max(x1, 0))
        inter_h = max(0, min(y1 + h, image["height"]) - max(y1, 0))
        if inter_w * inter_h == 0 or one["area"] <= 0 or w < 1 or h < 1:
            continue
        yield one


def plain_factors(dataset, threshold):
    """Factor of each image, 0 where it is dropped, read from the JSON as MMDetection's datasets do."""
    of_image = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    kept = [
        image for image in dataset["images"] if of_image[image["id"]] and min(image["height"], image["width"]) >= 32
    ]
    categories_of = {
        image["id"]: {annotation["category_id"] for annotation in instances(dataset, image)} for image in kept
    }
    factor_of = {}
    for category in range(1, 5):
        count = sum(category in categories for categories in categories_of.values())
        if count:
            factor_of[category] = max(1.0, math.sqrt(threshold / (count / len(kept))))
    return [
        max([1.0, *(factor_of[category] for category in categories_of[image["id"]])])
        if image["id"] in categories_of
        else 0.0
        for image in dataset["images"]
    ]


@settings(max_examples=25)
@given(sets, st.floats(0.01, 1))
def test_made_up_sets_have_the_factors_of_a_plain_reading(tmp_path_factory, dataset, threshold):
    expected = plain_factors(dataset, threshold)
    images = [image for image, factor in zip(dataset["images"], expected, strict=True) if factor]
    assume(not all(one.get("iscrowd") for image in images for one in instances(dataset, image)))
    folder = tmp_path_factory.mktemp("made_up")
    (folder / "set.json").write_text(json.dumps(dataset))
    build_store(folder / "set.json", folder / "store")
    factors = repeat_factors(open_store(folder / "store"), threshold)
    assert factors.image_factors.tolist() == expected
    assert factors.copies.tolist() == [math.ceil(factor) for factor in expected]


@settings(max_examples=25)
@given(sets)
def test_made_up_sets_are_parsed_as_by_a_plain_reading(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("made_up")
    (folder / "set.json").write_text(json.dumps(dataset))
    build_store(folder / "set.json", folder / "store")
    store = open_store(folder / "store")
    for number, image in enumerate(dataset["images"]):
        usable = [annotation for annotation in instances(dataset, image) if not annotation.get("iscrowd", False)]
        found = parsed(store, number)
        assert found["labels"] == [annotation["category_id"] - 1 for annotation in usable]
        assert found["img_path"] == image["coco_url"].removeprefix("http://images.cocodataset.org/")
        expected = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in usable)]
        assert found["bboxes"] == expected
