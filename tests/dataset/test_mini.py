"""The drawn dataset: the same everywhere, and like LVIS in everything the rest of the project reads."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from lvis_rcnn import draw
from lvis_rcnn.dataset.mini import scenes
from lvis_rcnn.dataset.mini.categories import CATEGORIES
from lvis_rcnn.dataset.mini.paint import Stream, noise, paint_object, visible_polygons
from lvis_rcnn.dataset.mini.scenes import TRAIN, VAL, plan_split
from tests.conftest import REPOSITORY

SMALL = (0, 40, 24)
FULL = (0, 480, 100)
# Digests of pixels and of annotations. They change only when the drawing is changed on purpose.
SMALL_DIGESTS = (
    "4f4ba9b2e5ffd5e3cb2a1297c05fdcd1dc6654c05b0253efc59c487910a8b1db",
    "1162546ce89d6b0e1cfcd55fe0dbc60f19dd8e3598f14fec24719ebc1897ca1c",
)
FULL_DIGESTS = (
    "c69912ee04db8c2a50324a3ecb67e184c93362ce170de21810b8eeff11b805ed",
    "681ef60041245e8ea4b8dbdb96702ac2c2b197f0171a36c63afe4973706b5377",
)


def draw_by_command(seed, num_train_images, num_val_images, out):
    """Draw as a user does; in a process of its own this is also free of the cost of shape checks."""
    sizes = ["--train-images", str(num_train_images), "--val-images", str(num_val_images)]
    command = [sys.executable, "-m", "lvis_rcnn.draw", "--seed", str(seed), *sizes, "--out", str(out)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of the small dataset."""
    return draw_by_command(*SMALL, tmp_path_factory.mktemp("mini") / "drawn")


@pytest.fixture(scope="module")
def splits(small):
    """Content of the two annotation files."""
    return {split: json.loads((small / f"{split}.json").read_text()) for split in (TRAIN, VAL)}


@pytest.fixture(scope="module")
def redrawn(splits):
    """Some images, with their annotations and what was really drawn, annotated or not."""
    seed, *sizes = SMALL
    found = []
    for split, size in zip((TRAIN, VAL), sizes, strict=True):
        plans = plan_split(seed, split, size)
        for index, (image, plan) in enumerate(zip(splits[split]["images"], plans, strict=True)):
            if index < 3 or image["not_exhaustive_category_ids"]:
                pixels, visible = scenes.draw_image(seed, split, index, plan)
                found.append((image, annotations_of(image, splits[split]), pixels, visible))
    return found


def annotations_of(image, content):
    return [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]


def rasterised(polygons, height, width):
    """The mask as pycocotools reads it."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def digests(manifest):
    return manifest["pixels_sha256"], manifest["annotations_sha256"]


def test_small_set_has_the_stored_digests(small):
    assert digests(json.loads((small / "manifest.json").read_text())) == SMALL_DIGESTS


@pytest.mark.slow
def test_full_set_has_the_stored_digests_and_its_categories(tmp_path):
    out = draw_by_command(*FULL, tmp_path / "drawn")
    manifest = json.loads((out / "manifest.json").read_text())
    assert digests(manifest) == FULL_DIGESTS
    assert manifest["categories"] == {"f": 10, "c": 9, "r": 7}
    annotations = json.loads((out / "val.json").read_text())["annotations"]
    shown = Counter(category for category, _ in {(entry["category_id"], entry["image_id"]) for entry in annotations})
    assert min(shown[category] for category in range(1, len(CATEGORIES) + 1)) >= 6


def test_another_seed_draws_other_pixels_and_annotations(tmp_path):
    first, second, third = (
        digests(draw.draw_dataset(seed, 1, 1, tmp_path / name)) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first == second
    assert first[0] != third[0]
    assert first[1] != third[1]


def test_random_words_are_those_of_splitmix64():
    stream = Stream()
    # First outputs of the reference implementation for seed 0.
    assert [stream.below(1 << 64) for _ in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_noise_of_an_array_equals_the_scalar_stream():
    key = Stream(5)
    scalar = Stream()
    scalar.state = Stream(5).below(1 << 64)
    expected = [(scalar.below(1 << 64) >> 56) - 128 for _ in range(12)]
    assert noise(key, 3, 4).ravel().tolist() == expected


@pytest.fixture(scope="module")
def full_plans():
    """Both splits at the size of the embedded study, planned and not drawn."""
    return {TRAIN: plan_split(0, TRAIN, FULL[1]), VAL: plan_split(0, VAL, FULL[2])}


def images_showing(plans):
    """For each category the number of images that show it."""
    return Counter(category for plan in plans for category in {planned.category for planned in plan.objects})


def test_all_frequency_groups_are_planned_at_full_size(full_plans):
    planned = images_showing(full_plans[TRAIN])
    groups = Counter(scenes.frequency_group(planned[category]) for category in range(len(CATEGORIES)))
    assert len(CATEGORIES) >= 24
    assert groups == {"f": 10, "c": 9, "r": 7}


def test_every_category_is_planned_in_at_least_six_validation_images(full_plans):
    shown = images_showing(full_plans[VAL])
    assert min(shown[category] for category in range(len(CATEGORIES))) >= 6


@pytest.mark.parametrize("split", [TRAIN, VAL])
def test_every_category_is_listed_as_absent_somewhere(full_plans, split):
    listed = {category for plan in full_plans[split] for category in plan.negatives}
    assert listed == set(range(len(CATEGORIES)))


@pytest.mark.parametrize(("count", "group"), [(1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_frequency_bins_are_those_of_lvis(count, group):
    assert scenes.frequency_group(count) == group


def test_categories_are_counted_on_the_training_split_and_equal_in_both_files(splits):
    assert splits[TRAIN]["categories"] == splits[VAL]["categories"]
    annotations = splits[TRAIN]["annotations"]
    for category in splits[TRAIN]["categories"]:
        images = [entry["image_id"] for entry in annotations if entry["category_id"] == category["id"]]
        assert category["instance_count"] == len(images)
        assert category["image_count"] == len(set(images))
        assert category["frequency"] == scenes.frequency_group(len(set(images)))


def test_categories_have_the_fields_of_lvis_and_distinct_names(splits):
    categories = splits[TRAIN]["categories"]
    fields = {"id", "name", "synset", "synonyms", "def", "frequency", "image_count", "instance_count"}
    assert all(set(category) == fields for category in categories)
    assert [category["id"] for category in categories] == list(range(1, len(CATEGORIES) + 1))
    assert len({category["name"] for category in categories}) == len(categories)


def test_ids_are_consecutive_and_images_are_on_disk(small, splits):
    image_ids = [image["id"] for content in splits.values() for image in content["images"]]
    assert image_ids == list(range(1, len(image_ids) + 1))
    for content in splits.values():
        assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        for image in content["images"]:
            with Image.open(small / "images" / image["file_name"]) as picture:
                assert (picture.size, picture.mode) == ((image["width"], image["height"]), "RGB")


def test_files_hold_exactly_the_drawn_pixels(small, redrawn):
    for image, _, pixels, _ in redrawn:
        with Image.open(small / "images" / image["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), pixels)


def test_polygons_boxes_and_areas_belong_together(splits):
    for content in splits.values():
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for entry in content["annotations"]:
            mask = rasterised(entry["segmentation"], *sizes[entry["image_id"]])
            rows, columns = mask.nonzero()
            x, y, width, height = entry["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert entry["area"] == mask.sum() > 0
            assert all(len(polygon) >= 6 for polygon in entry["segmentation"])


def test_polygons_are_exactly_the_visible_pixels(redrawn):
    for image, annotations, _, visible in redrawn:
        masks = [(found.category + 1, found.mask.tobytes()) for found in visible]
        for entry in annotations:
            mask = rasterised(entry["segmentation"], image["height"], image["width"])
            assert (entry["category_id"], mask.tobytes()) in masks


def test_visible_pixels_belong_to_one_object(redrawn):
    for _, _, _, visible in redrawn:
        for one, other in itertools.combinations(visible, 2):
            assert not (one.mask & other.mask).any()


def test_negative_lists_name_absent_categories_only(splits):
    for content in splits.values():
        for image in content["images"]:
            annotated = {entry["category_id"] for entry in annotations_of(image, content)}
            assert image["neg_category_ids"]
            assert not annotated & set(image["neg_category_ids"])


def test_absent_categories_are_not_drawn_without_annotation_either(redrawn):
    for image, annotations, _, visible in redrawn:
        drawn = {found.category + 1 for found in visible}
        assert drawn == {entry["category_id"] for entry in annotations}
        assert not drawn & set(image["neg_category_ids"])


def test_not_exhaustive_lists_name_exactly_what_is_annotated_in_part(redrawn):
    listed = []
    for image, annotations, _, visible in redrawn:
        drawn = Counter(found.category + 1 for found in visible)
        annotated = Counter(entry["category_id"] for entry in annotations)
        in_part = [category for category in drawn if 0 < annotated[category] < drawn[category]]
        assert image["not_exhaustive_category_ids"] == in_part
        listed += in_part
    assert listed


def test_empty_images_tiny_objects_parts_and_occlusion_exist(splits):
    for content in splits.values():
        assert any(not annotations_of(image, content) for image in content["images"])
    annotations = splits[TRAIN]["annotations"]
    kite = 1 + [row.name for row in CATEGORIES].index("kite")
    assert 0 < sum(entry["area"] < 64 for entry in annotations) < len(annotations) // 10
    assert any(len(entry["segmentation"]) >= 3 for entry in annotations if entry["category_id"] == kite)
    assert any(len(entry["segmentation"]) >= 2 for entry in annotations if entry["category_id"] != kite)


@pytest.mark.parametrize("position", range(len(CATEGORIES)), ids=[row.name for row in CATEGORIES])
def test_smallest_objects_have_pixels(position):
    stream = Stream(position)
    assert min(paint_object(stream, CATEGORIES[position], 7).mask.sum() for _ in range(8)) >= 4


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
@settings(max_examples=60)
def test_any_mask_survives_its_polygons(mask):
    polygons = visible_polygons(mask)
    if mask.any():
        assert np.array_equal(rasterised(polygons, *mask.shape), mask)
    else:
        assert polygons == []


def test_ring_is_cut_through_its_hole():
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert visible_polygons(ring) == [[0, 0, 1, 0, 1, 3, 0, 3], [1, 0, 3, 0, 3, 3, 1, 3, 1, 2, 2, 2, 2, 1, 1, 1]]


def test_interrupted_drawing_leaves_no_folder(tmp_path, monkeypatch):
    draw_image = scenes.draw_image

    def stops_in_validation(seed, split, index, plan):
        if split == VAL:
            raise KeyboardInterrupt
        return draw_image(seed, split, index, plan)

    monkeypatch.setattr(scenes, "draw_image", stops_in_validation)
    with pytest.raises(KeyboardInterrupt):
        draw.draw_dataset(0, 1, 1, tmp_path / "drawn")
    assert list(tmp_path.iterdir()) == []


def run_main(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["draw", *map(str, options)])
    draw.main()


def test_command_draws_and_draws_over_its_own_folder(tmp_path, monkeypatch):
    out: Path = tmp_path / "drawn"
    for seed in (0, 3):
        run_main(monkeypatch, "--seed", seed, "--train-images", 1, "--val-images", 1, "--out", out)
        assert json.loads((out / "manifest.json").read_text())["seed"] == seed
    assert {file.name for file in out.iterdir()} == draw.WRITTEN


def test_command_keeps_a_folder_with_other_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, "--seed", 0, "--train-images", 2, "--val-images", 1, "--out", tmp_path)
    assert "contains 'thesis.txt', which is not part of a drawn dataset" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()
