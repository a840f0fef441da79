"""Counts and fractal dimensions of categories: the authors' figures, by hand, in any order, and their table on disk."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lvis_rcnn.dataset.statistics import (
    category_statistics,
    fractal_dimensions,
    read_statistics,
    statistics_for,
    write_statistics,
)
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.system.cli import InputError
from tests.conftest import LONGTAIL, LVIS_VAL_100
from tests.evaluation.test_calibration import SOURCES, figures
from tests.helpers.small_dataset import build, small_dataset

TO_2 = pytest.approx(2, abs=1e-12)


def dimension_of(*centres_xy) -> float:
    """Of a single category."""
    return float(fractal_dimensions(np.array(centres_xy, float), np.zeros(len(centres_xy), np.int64), 1)[0])


@pytest.mark.parametrize("source", SOURCES)
def test_dimensions_are_the_authors(source):
    of = {key.removeprefix("boxes/"): value for key, value in figures(source, "fracal").items() if key[:5] == "boxes"}
    centres = np.stack([of["xmin"] + of["width"] / 2, of["ymin"] + of["height"] / 2], axis=1)
    categories = of["category"].astype(np.int64) - 1
    found = fractal_dimensions(centres, categories, len(of["dimension"]))
    assert found == pytest.approx(of["dimension"], abs=1e-6)
    shuffled = np.random.default_rng(0).permutation(len(centres))
    assert np.array_equal(fractal_dimensions(centres[shuffled], categories[shuffled], len(found)), found)


if LONGTAIL.exists() and LVIS_VAL_100.exists():

    def test_dimensions_of_100_images_of_lvis_are_the_authors(tmp_path):
        build_store(LVIS_VAL_100, tmp_path / "store")
        store = open_store(tmp_path / "store")
        in_order = np.argsort([category.id for category in store.categories])
        found = category_statistics(store).dimensions[in_order]
        assert found == pytest.approx(figures("whole", "fracal")["val100/dimension"], abs=1e-6)


def test_a_plane_a_line_and_a_point():
    ticks = (np.arange(64) + 0.5) / 64
    assert dimension_of(*[(x, y) for x in ticks for y in ticks]) == TO_2
    assert dimension_of(*[(x, 0.3) for x in ticks]) == pytest.approx(1)
    assert dimension_of(*[(0.3, 0.3)] * 50) == 1  # slope 0


def test_four_objects_by_hand():
    # One cell of 1 x 1, four, two or one of 2 x 2: slope log 4 / log 2, log 2 / log 2, 0.
    assert dimension_of((0.1, 0.1), (0.1, 0.9), (0.9, 0.1), (0.9, 0.9)) == TO_2
    assert dimension_of((0.1, 0.1), (0.1, 0.9), (0.1, 0.1), (0.1, 0.9)) == pytest.approx(1)
    assert dimension_of((0.1, 0.1), (0.1, 0.9), (0.9, 0.1)) == 1  # three are too few


def test_a_centre_outside_is_in_no_cell_but_counts():
    corners = [(0.1, 0.1), (0.1, 0.9), (0.9, 0.1)]
    assert dimension_of(*corners, (1.0, 0.9)) == pytest.approx(np.log(3) / np.log(2))
    assert dimension_of(*[(1.5, -0.1)] * 9) == 1


def test_a_centre_on_an_edge_belongs_to_the_cell_that_begins_there():
    assert dimension_of((0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)) == TO_2


def slope_of(centres) -> float:
    """The definition, cell by cell."""
    sides = range(1, int(len(centres) ** 0.5) + 1)
    counts = []
    for side in sides:
        step = 1 / side
        cells = [(i * step, (i + 1) * step, j * step, (j + 1) * step) for i in range(side) for j in range(side)]
        counts.append(sum(any(a <= x < b and c <= y < d for x, y in centres) for a, b, c, d in cells))
    return max(1.0, float(np.polyfit(np.log(sides), np.log(counts), 1)[0]))


@given(arrays(np.int64, (30, 2), elements=st.integers(0, 59)))
def test_any_centres_on_pixels_have_the_slope_of_the_definition(pixels):
    centres = [tuple(row) for row in (pixels / 60).tolist()]
    assert dimension_of(*centres) == pytest.approx(slope_of(centres), abs=1e-9)


def test_counts_are_those_of_all_annotations_and_images(tmp_path):
    store = build(tmp_path, small_dataset())
    found = category_statistics(store)
    images = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets)).tolist()
    labels = store.labels.tolist()
    for at in range(len(store.categories)):
        of_category = [image for image, label in zip(images, labels, strict=True) if label == at + 1]
        assert (found.instance_counts[at], found.image_counts[at]) == (len(of_category), len(set(of_category)))
    assert found.images == store.num_images


def test_the_table_on_disk_has_all_digits_and_belongs_to_its_categories(tmp_path):
    store, path = build(tmp_path, small_dataset()), tmp_path / "calibration.csv"
    written = category_statistics(store)
    write_statistics(path, store, written)
    read = read_statistics(path)
    assert all(np.array_equal(value, getattr(read, name)) for name, value in vars(written).items())
    assert statistics_for(path, read.names).images == store.num_images
    first, *others = read.names
    with pytest.raises(InputError, match=rf"calibration.csv: has category '{re.escape(first)}' in place of 'unicorn'"):
        statistics_for(path, ["unicorn", *others])
    with pytest.raises(InputError, match=r"has \d+ categories; allowed: the \d+ of the model, in their order"):
        statistics_for(path, others[:0])


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n", "name,frequency,images_of_split\nx,r,many\n"])
def test_a_damaged_table_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "calibration.csv").write_text(text)
    with pytest.raises(InputError, match=r"no readable statistics of categories: .*; fix: write it with python -m"):
        read_statistics(tmp_path / "calibration.csv")
