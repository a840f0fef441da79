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

from lvis_rcnn.dataloader.repeat_factors import (
    FREQUENCIES,
    ROUNDINGS,
    category_factors,
    counted_annotations,
    read_sampling,
    repeat_factors,
    summary,
)
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.repeat_factors import write_factor_tables
from lvis_rcnn.system.cli import InputError

COUNTS = Path(__file__).parents[1] / "golden"


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
    assert factors.image_factors.tolist()[-3:] == [math.sqrt(5), 0, 0]
    assert factors.expected_epoch_length == 14
    assert factors.instance_counts.tolist() == [10, 2, 1]
    assert factors.instances_in_epoch.tolist() == [2 + 6 + 2 * 2, 2 * 2, 3]
    figures = summary(factors)
    assert (figures["instances"], figures["instances_in_epoch"]) == (13, 19)
    assert (figures["images"], figures["images_kept"], figures["images_dropped"]) == (12, 10, 2)
    assert (figures["images_without_annotation"], figures["images_too_small"]) == (1, 1)
    assert (figures["repeated_categories"], figures["repeated_images"], figures["why_none"]) == (2, 3, None)


def test_tables_have_every_image_and_come_back(tmp_path):
    store = store_of(tmp_path, BY_HAND, SIZES)
    factors = repeat_factors(store, 0.5)
    write_factor_tables(store, factors, tmp_path / "factors")
    sampling = read_sampling(tmp_path / "factors")
    assert (sampling.factors.tolist(), sampling.rounding) == (factors.image_factors.tolist(), "ceil")
    with (tmp_path / "factors" / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert [int(row["image_id"]) for row in images] == store.image_ids.tolist()
    assert [int(row["copies"]) for row in images] == factors.copies.tolist()
    with (tmp_path / "factors" / "categories.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert last == {
        "category_id": "3",
        "name": "name 3",
        "frequency": "r",
        "image_count": "1",
        "instance_count": "1",
        "image_frequency": "0.1",
        "factor": repr(math.sqrt(5)),
        "instances_in_epoch": "3.0",
    }
    written = json.loads((tmp_path / "factors" / "summary.json").read_text())
    assert written["frequency"] == "image"
    assert (written["threshold"], written["rounding"], written["exponent"]) == (0.5, "ceil", 0.5)
    assert (written["expected_epoch_length"], written["images_seen_in_2x"]) == (14, 24 * 14)


def test_it_says_why_nothing_is_repeated(tmp_path):
    store = store_of(tmp_path, BY_HAND, SIZES)
    off = repeat_factors(store, None)
    assert off.copies.tolist() == [1] * 10 + [0, 0]
    assert summary(off)["why_none"] == "oversampling is off (no threshold)"
    low = repeat_factors(store, 0.1)
    assert low.expected_epoch_length == 10
    assert "1 of 10 images, a fraction of 0.1; only categories below the threshold 0.1" in summary(low)["why_none"]
    instances = summary(repeat_factors(store, 0.05, frequency="instance_aware"))["why_none"]
    assert instances.startswith("the lowest instance_aware frequency of a category is 0.0877; only")  # 130 ** -0.5


@pytest.mark.parametrize("threshold", [0.1, None])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": 0}, "2 with area 0, 1 in images with an edge below 32 pixels; allowed: .* fix: correct the ann"),
        ({"bbox": [5, 5, 0.9, 4]}, "2 with a box below one pixel, 1 in images"),
        ({"bbox": [40, 5, 4, 4]}, "2 with a box outside the image, 1 in images"),
        ({"iscrowd": 1}, "2 marked iscrowd, 1 in images"),
        ({"ignore": 1, "area": 0}, "2 with area 0, 2 marked ignore .*, 1 in images"),
        ({"bbox": [0.1, 0.2, 0.9, 0.5], "area": 0.4}, "all boxes lie between 0 and 1, .*; fix: multiply boxes and"),
    ],
)
def test_nothing_left_to_train_on_is_one_error_with_its_causes(tmp_path, changes, message, threshold):
    """The first image is too small, the second has objects that cannot be trained on, of which there are two."""
    dataset = json.loads((store_of(tmp_path, [[1], [2, 3]], [(31, 31), (40, 40)]).path.parent / "a.json").read_text())
    for annotation in dataset["annotations"][0 if "lie between" in message else 1 :]:
        annotation.update(changes)
    (tmp_path / "a.json").write_text(json.dumps(dataset))
    build_store(tmp_path / "a.json", tmp_path / "a.store")
    with pytest.raises(InputError, match=f"a.json: none of 3 annotations can be trained on: {message}"):
        repeat_factors(open_store(tmp_path / "a.store"), threshold)


def image_counts_of_lvis(version):
    with (COUNTS / f"lvis_{version}_train_counts.csv").open(newline="") as rows:
        return np.array([int(row["image_count"]) for row in csv.DictReader(rows)])


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
    """Of the official counts of images; leaving images without annotation out first turns 11 copies into 10."""
    factors = category_factors(image_counts_of_lvis(version) / num_images, 1e-3)
    assert int((factors > 1).sum()) == repeated
    assert factors.max() == pytest.approx(largest, abs=5e-4)


@pytest.mark.parametrize(("version", "num_images", "longest"), [("v0.5", 56_740, 73_068), ("v1", 99_388, 125_959)])
def test_longest_epoch_of_lvis(version, num_images, longest):
    """Reached if no image held two repeated categories; a log of the v1 run shows 7,674 steps of 16, 122,784 images."""
    image_counts = image_counts_of_lvis(version)
    copies = ROUNDINGS["ceil"](category_factors(image_counts / num_images, 1e-3), 0, 0)
    assert num_images + int(((copies - 1) * image_counts).sum()) == longest


def test_factor_of_a_category_in_ten_images():
    ten = np.array([10])
    assert category_factors(ten / 57_263, 1e-3)[0] == pytest.approx(2.393, abs=5e-4)
    assert category_factors(ten / 100_170, 1e-3)[0] == pytest.approx(3.165, abs=5e-4)


@pytest.mark.parametrize(("exponent", "expected"), [(0.5, [1, 2, 4]), (1.0, [1, 4, 16]), (0.25, [1, 2**0.5, 2])])
def test_exponents(exponent, expected):
    assert category_factors(np.array([100, 20, 5]) / 320, 0.25, exponent).tolist() == expected


# Figures of detectron2 and of two programs for IRFS (shared/golden/longtail, of which these are a part).
GOLDEN = np.load(COUNTS / "repeat_factors.npz")
KINDS = {"rfs": ("image", 0.5), "rfs_linear": ("image", 1.0), "irfs": ("instance_aware", 0.5)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", ["0.001", "0.01"])
def test_factors_of_lvis_are_those_of_others(kind, threshold):
    with (COUNTS / "lvis_v0.5_train_counts.csv").open(newline="") as rows:
        counts = [(int(row["image_count"]), int(row["instance_count"])) for row in csv.DictReader(rows)]
    images, instances = np.array(counts).T
    assert instances.sum() == GOLDEN["v0.5/boxes"]
    frequency, exponent = KINDS[kind]
    frequencies = FREQUENCIES[frequency](images, int(GOLDEN["v0.5/images"]), instances)
    found = category_factors(frequencies, float(threshold), exponent)
    assert found == pytest.approx(GOLDEN[f"v0.5/t{threshold}/{kind}"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", ["0.05", "0.3"])
def test_factors_of_images_are_those_of_others(tmp_path, kind, threshold):
    """Through a store. It leaves empty images out, which the figures count: that is another threshold."""
    num_images = int(GOLDEN["small/num_images"])
    categories_of_images = [[] for _ in range(num_images)]
    for image, category in zip(GOLDEN["small/object_image"], GOLDEN["small/object_category"], strict=True):
        categories_of_images[image].append(int(category) + 1)
    store = store_of(tmp_path, categories_of_images, num_categories=len(GOLDEN["small/image_count"]))
    ratio = num_images / sum(map(bool, categories_of_images))
    frequency, exponent = KINDS[kind]
    equal = float(threshold) * (ratio if frequency == "image" else ratio**0.5)
    factors = repeat_factors(store, equal, exponent=exponent, frequency=frequency)
    found = np.maximum(factors.image_factors, 1)
    expected = GOLDEN[f"small/t{threshold}/{kind}_images"]
    assert found == pytest.approx(expected, rel=1e-6 if expected.dtype == np.float32 else 1e-9)
    if kind == "irfs":
        assert np.maximum(factors.copies, 1).tolist() == GOLDEN[f"small/t{threshold}/irfs_images_ceil"].tolist()


def test_of_two_categories_in_equally_many_images_the_one_with_fewer_objects_is_repeated_more(tmp_path):
    """By hand: 6 images, 12 objects; categories 1 and 2 are in two images each, with 4 objects and with 2."""
    store = store_of(tmp_path, [[1, 1], [1, 1], [2], [2], [3] * 3, [3] * 3])
    factors = repeat_factors(store, 0.5, frequency="instance_aware")
    fractions = [math.sqrt(1 / 3 * 1 / 3), math.sqrt(1 / 3 * 1 / 6), math.sqrt(1 / 3 * 1 / 2)]
    assert factors.category_frequencies.tolist() == pytest.approx(fractions)
    assert factors.category_factors.tolist() == pytest.approx([math.sqrt(0.5 / one) for one in fractions])
    assert repeat_factors(store, 0.5).category_factors.tolist() == [math.sqrt(0.5 / (1 / 3))] * 3
    write_factor_tables(store, factors, tmp_path)
    with (tmp_path / "categories.csv").open(newline="") as file:
        column = [float(row["instance_aware_frequency"]) for row in csv.DictReader(file)]
    assert column == factors.category_frequencies.tolist()


@pytest.mark.parametrize(
    ("change", "usable"),
    [
        ({}, True),
        ({"area": 0}, False),
        ({"area": 1e-9}, True),
        ({"bbox": [10, 10, 0.99, 4]}, False),
        ({"bbox": [10, 10, 4, 0.99]}, False),
        ({"bbox": [10, 10, 1, 1]}, True),
        ({"bbox": [-3, -3, 4, 4]}, True),
        ({"bbox": [59.5, 39.5, 4, 4]}, True),
    ],
)
def test_usable_annotations_by_hand(tmp_path, change, usable):
    store = one_changed(tmp_path, change)
    assert store.is_trained.tolist() == [True, usable, True]
    assert store.is_trained is store.is_trained  # found once, not for each image
    assert counted_annotations(store).tolist() == ([0, 1, 2] if usable else [0, 2])


def one_changed(folder, change):
    """Three images of 40 x 60, each with one annotation; that of the middle one is changed."""
    store_of(folder, [[1], [2], [2]], [(40, 60)] * 3)
    content = json.loads((folder / "a.json").read_text())
    content["annotations"][1].update(change)
    (folder / "a.json").write_text(json.dumps(content))
    build_store(folder / "a.json", folder / "a.store")
    return open_store(folder / "a.store")


def test_an_image_whose_annotations_are_all_unusable_is_drawn_once_and_counts_for_no_category(tmp_path):
    """MMDetection 3.3.0; counting it would give categories other frequencies, forgetting it shifts all factors."""
    factors = repeat_factors(one_changed(tmp_path, {"area": 0}), 1.0)
    assert factors.image_counts.tolist() == [1, 1, 0]
    assert factors.images_kept == 3
    assert factors.image_factors.tolist() == [math.sqrt(3), 1, math.sqrt(3)]


@settings(max_examples=40)
@given(st.lists(st.floats(1, 9), min_size=1, max_size=30), st.integers(0, 99), st.integers(0, 99))
def test_stochastic_copies_are_one_of_two_neighbours(numbers, seed, epoch):
    factors = np.array([0.0, *numbers])
    copies = ROUNDINGS["stochastic"](factors, seed, epoch)
    assert ((copies == np.floor(factors)) | (copies == np.ceil(factors))).all()
    assert np.array_equal(copies, ROUNDINGS["stochastic"](factors, seed, epoch))


def test_stochastic_copies_are_right_on_average_and_differ_between_epochs_and_seeds():
    factors = np.repeat([1.0, 1.25, 2.9], 20_000)
    copies = ROUNDINGS["stochastic"](factors, 3, 5)
    # Four standard deviations of the mean of 20,000 draws are 0.0141 at the most.
    assert copies.reshape(3, -1).mean(axis=1) == pytest.approx([1, 1.25, 2.9], abs=0.0142)
    for other in (ROUNDINGS["stochastic"](factors, 3, 6), ROUNDINGS["stochastic"](factors, 4, 5)):
        # Two draws of probability p differ with 2 p (1 - p): 0.375 and 0.18 here.
        assert (copies != other).mean() == pytest.approx((0 + 0.375 + 0.18) / 3, abs=0.006)


lists = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=12).filter(any)
thresholds = st.floats(1e-4, 1)


@settings(max_examples=40)
@given(lists, thresholds, thresholds)
def test_invariants(tmp_path_factory, categories_of_images, one, other):
    store = store_of(tmp_path_factory.mktemp("store"), categories_of_images)
    low, high = (repeat_factors(store, threshold) for threshold in sorted([one, other]))
    present = [bool(categories) for categories in categories_of_images]
    for factors in (low, high):
        assert len(factors.copies) == len(factors.image_factors) == store.num_images
        assert (factors.copies > 0).tolist() == (factors.image_factors >= 1).tolist() == present
        assert factors.expected_epoch_length == factors.copies.sum() >= factors.images_kept == sum(present)
        assert (factors.category_factors >= 1).all()
        for categories, factor in zip(categories_of_images, factors.image_factors, strict=True):
            assert factor == max((factors.category_factors[c - 1] for c in categories), default=0)
        drawn = [c for c_of, copies in zip(categories_of_images, factors.copies, strict=True) for c in c_of * copies]
        assert factors.instances_in_epoch.tolist() == [drawn.count(category) for category in (1, 2, 3)]
    assert (low.category_factors <= high.category_factors).all()
    assert (low.copies <= high.copies).all()


@settings(max_examples=40)
@given(lists, thresholds, st.sampled_from(sorted(ROUNDINGS)), st.floats(0.1, 2), st.sampled_from(sorted(FREQUENCIES)))
def test_factors_come_back_to_the_last_digit(
    tmp_path_factory, categories_of_images, threshold, rounding, exponent, frequency
):
    folder = tmp_path_factory.mktemp("store")
    store = store_of(folder, categories_of_images)
    factors = repeat_factors(store, threshold, rounding, exponent, frequency)
    write_factor_tables(store, factors, folder)
    sampling = read_sampling(folder)
    assert (sampling.factors.tolist(), sampling.rounding) == (factors.image_factors.tolist(), rounding)


@pytest.mark.parametrize(
    ("images", "figures"),
    [
        (None, '{"rounding": "ceil"}'),
        ("", '{"rounding": "ceil"}'),
        ("image_id,factor\n1,1.0\n", '{"rounding": "ceil"}'),
        ("image_id,factor,copies\n1,x,1\n", '{"rounding": "ceil"}'),
        ("image_id,factor,copies\n1,1.0,1\n2,1.0,0\n", '{"rounding": "ceil"}'),  # dropped, but with a factor
        ("image_id,factor,copies\n1,inf,1\n", '{"rounding": "ceil"}'),
        ("image_id,factor,copies\n1,0.5,1\n", '{"rounding": "ceil"}'),
        ("\0" * 200_000, '{"rounding": "ceil"}'),  # as a disk that failed leaves a file
        ("image_id,factor,copies\n1,0.0,0\n", '{"rounding": "ceil"}'),
        ("image_id,factor,copies\n1,1.0,1\n", None),
        ("image_id,factor,copies\n1,1.0,1\n", "{}"),
        ("image_id,factor,copies\n1,1.0,1\n", '{"rounding": "down"}'),
        ("image_id,factor,copies\n1,1.0,1\n", "no json"),
    ],
)
def test_foreign_tables_are_refused(tmp_path, images, figures):
    for name, text in (("images.csv", images), ("summary.json", figures)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"no readable tables of repeat factors: .*fix: write it again"):
        read_sampling(tmp_path)


def test_tables_of_ours_written_by_hand_are_read(tmp_path):
    (tmp_path / "images.csv").write_text("image_id,factor,copies\n1,1.5,2\n2,0.0,0\n")
    (tmp_path / "summary.json").write_text('{"rounding": "stochastic"}')
    sampling = read_sampling(tmp_path)
    assert (sampling.factors.tolist(), sampling.rounding) == ([1.5, 0], "stochastic")


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
    root = Path(__file__).parents[2]
    good = subprocess.run([*command, "--threshold", "0.5"], capture_output=True, text=True, cwd=root, check=True)
    assert [path.name for path in sorted((tmp_path / "o").iterdir())] == [
        *("categories.csv", "images.csv", "repeat_factors.png", "repeat_factors.svg", "summary.json")
    ]
    assert "10 of 12 images, an epoch of 14; 2 categories repeated, largest factor 2.236" in good.stderr
    options = ["--threshold", "0.5", "--rounding", "stochastic", "--exponent", "1", "--frequency", "image"]
    other = subprocess.run([*command, *options], capture_output=True, text=True, cwd=root, check=True)
    # 7 + 2.5 + 2.5 + 5
    assert "an epoch of 17.0 on average (stochastic rounding); 2 categories repeated" in other.stderr
    figures = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (figures["rounding"], figures["exponent"], figures["expected_epoch_length"]) == ("stochastic", 1, 17)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "images.csv: No such file or directory"),
        ({"images.csv": "image_id,copies\n1,2\n"}, "no 'factor'"),
        ({"images.csv": "image_id,factor,copies\n1,1.5,2\n"}, "summary.json: No such file or directory"),
    ],
)
def test_a_folder_without_repeat_factors_says_what_it_lacks(tmp_path, files, reason):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"no readable tables of repeat factors: {reason}; fix: write it again"):
        read_sampling(tmp_path)
