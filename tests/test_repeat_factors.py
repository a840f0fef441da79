import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.annotations import build_store, open_store
from lvis_rcnn.command import InputError
from lvis_rcnn.repeat_factors import category_factors, read_copies, repeat_factors, summary, write_repeat_factors

SHARED = Path(__file__).parents[2] / "shared" / "data"


def store_of(folder: Path, categories_of_images, sizes=None, num_categories=3):
    """A store in which image i (id 100 + i) has one annotation for each entry of its list of category ids."""
    sizes = sizes or [(40, 40)] * len(categories_of_images)
    images = [
        {"id": 100 + i, "height": h, "width": w, "file_name": f"{i}.png"}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for i, (h, w) in enumerate(sizes)
    ]
    pairs = [(i, category) for i, categories in enumerate(categories_of_images) for category in categories]
    annotations = [
        {"id": n, "image_id": 100 + i, "category_id": category, "bbox": [0, 0, 4, 4], "area": 8}
        | {"segmentation": [[0, 0, 4, 0, 4, 4]]}
        for n, (i, category) in enumerate(pairs, start=1)
    ]
    categories = [{"id": c, "name": f"name {c}", "frequency": "r"} for c in range(1, num_categories + 1)]
    source = folder / "a.json"
    source.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    build_store(source, folder / "a.store")
    return open_store(folder / "a.store")


# Ten images are kept: category 1 is in nine, twice in the first; 2 in two; 3 in one. The last two images are dropped.
BY_HAND = [[1, 1]] + [[1]] * 6 + [[1, 2], [1, 2], [3], [], [2, 3]]
SIZES = [(40, 40)] * 11 + [(31, 500)]


def test_by_hand(tmp_path):
    factors = repeat_factors(store_of(tmp_path, BY_HAND, SIZES), 0.5)
    assert factors.images_kept == 10
    assert factors.image_counts.tolist() == [9, 2, 1]
    assert factors.instance_counts.tolist() == [10, 2, 1]
    # max(1, sqrt(0.5 / 0.9)), sqrt(0.5 / 0.2), sqrt(0.5 / 0.1)
    assert factors.category_factors.tolist() == [1, math.sqrt(0.5 / 0.2), math.sqrt(0.5 / 0.1)]
    assert factors.copies.tolist() == [1] * 7 + [2, 2, 3, 0, 0]
    assert factors.epoch_length == 14
    figures = summary(factors)
    assert (figures["images"], figures["images_kept"], figures["images_dropped"]) == (12, 10, 2)
    assert (figures["images_without_annotation"], figures["images_too_small"]) == (1, 1)
    assert (figures["repeated_categories"], figures["repeated_images"], figures["why_none"]) == (2, 3, None)


def test_tables_have_every_image_and_come_back(tmp_path):
    store = store_of(tmp_path, BY_HAND, SIZES)
    factors = repeat_factors(store, 0.5)
    write_repeat_factors(store, factors, tmp_path / "factors")
    assert read_copies(tmp_path / "factors").tolist() == factors.copies.tolist()
    with (tmp_path / "factors" / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert [int(row["image_id"]) for row in images] == store.image_ids.tolist()
    assert [float(row["factor"]) for row in images] == factors.image_factors.tolist()
    with (tmp_path / "factors" / "categories.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert last == {
        "category_id": "3",
        "name": "name 3",
        "frequency": "r",
        "image_count": "1",
        "instance_count": "1",
        "factor": repr(math.sqrt(5)),
    }
    written = json.loads((tmp_path / "factors" / "summary.json").read_text())
    assert (written["threshold"], written["rounding"], written["epoch_length"]) == (0.5, "ceil", 14)


def test_it_says_why_nothing_is_repeated(tmp_path):
    store = store_of(tmp_path, BY_HAND, SIZES)
    off = repeat_factors(store, None)
    assert off.copies.tolist() == [1] * 10 + [0, 0]
    assert summary(off)["why_none"] == "oversampling is off (no threshold)"
    low = repeat_factors(store, 0.1)
    assert low.epoch_length == 10
    assert "1 of 10 images, a fraction of 0.1; only categories below the threshold 0.1" in summary(low)["why_none"]


def test_no_image_left(tmp_path):
    with pytest.raises(InputError, match=r"a.json: no image is left to train on; allowed: .* 32 pixels"):
        repeat_factors(store_of(tmp_path, [[1]], [(31, 31)]), 0.1)


@pytest.mark.parametrize(
    ("version", "num_images", "repeated", "largest"),
    [
        ("v0.5", 57_263, 831, 7.567),
        ("v0.5", 56_740, 829, 7.533),
        ("v1", 100_170, 798, 10.008),
        ("v1", 99_388, 796, 9.969),
    ],
)
def test_figures_of_lvis(version, num_images, repeated, largest):
    """lvis.md 1.4 and recipe.md 1.5 of the reference; filtering first turns 11 copies into 10."""
    file = SHARED / f"lvis_{version}_train_counts.csv"
    if not file.exists():
        pytest.skip("the shared reference data is not at hand")
    with file.open(newline="") as rows:
        image_counts = np.array([int(row["image_count"]) for row in csv.DictReader(rows)])
    factors = category_factors(image_counts, num_images, 1e-3)
    assert int((factors > 1).sum()) == repeated
    assert factors.max() == pytest.approx(largest, abs=5e-4)


def test_factor_of_a_category_in_ten_images():
    ten = np.array([10])
    assert category_factors(ten, 57_263, 1e-3)[0] == pytest.approx(2.393, abs=5e-4)
    assert category_factors(ten, 100_170, 1e-3)[0] == pytest.approx(3.165, abs=5e-4)


lists = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=12).filter(any)
thresholds = st.floats(1e-4, 1)


@settings(max_examples=40, deadline=None)
@given(lists, thresholds, thresholds)
def test_invariants(tmp_path_factory, categories_of_images, one, other):
    store = store_of(tmp_path_factory.mktemp("store"), categories_of_images)
    low, high = (repeat_factors(store, threshold) for threshold in sorted([one, other]))
    present = [bool(categories) for categories in categories_of_images]
    for factors in (low, high):
        assert len(factors.copies) == len(factors.image_factors) == store.num_images
        assert (factors.copies > 0).tolist() == present
        assert factors.epoch_length == factors.copies.sum() >= factors.images_kept == sum(present)
        assert (factors.category_factors >= 1).all()
        assert (factors.image_factors >= 1).all()
        for categories, factor in zip(categories_of_images, factors.image_factors, strict=True):
            assert factor == max([1.0, *(factors.category_factors[c - 1] for c in categories)])
    assert (low.category_factors <= high.category_factors).all()
    assert (low.copies <= high.copies).all()


@pytest.mark.parametrize("text", [None, "", "image_id,factor\n1,1.0\n", "image_id,factor,copies\n1,1.0,x\n"])
def test_a_foreign_table_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "images.csv").write_text(text)
    with pytest.raises(InputError, match=r"images.csv: no readable table of copies.*to mend: write it again"):
        read_copies(tmp_path)


def test_the_command(tmp_path):
    store_of(tmp_path, BY_HAND, SIZES)
    command = [
        sys.executable,
        "-m",
        "lvis_rcnn.repeat_factors",
        "--store",
        tmp_path / "a.store",
        "--out",
        tmp_path / "o",
    ]
    root = Path(__file__).parents[1]
    bad = subprocess.run([*command, "--threshold", "0"], capture_output=True, text=True, cwd=root, check=False)
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "error: --threshold: is 0; allowed: above 0, at most 1" in bad.stderr
    assert not (tmp_path / "o").exists()
    good = subprocess.run([*command, "--threshold", "0.5"], capture_output=True, text=True, cwd=root, check=True)
    assert "10 of 12 images, an epoch of 14; 2 categories repeated, largest factor 2.236" in good.stderr
