"""Plots of differences show what differs between two rows, in titles that name both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lvis_rcnn.evaluation.compare import Difference
from lvis_rcnn.reporting import difference_plots
from lvis_rcnn.reporting.difference_plots import (
    paired_categories,
    row_path,
    short_names,
    write_category_differences,
    write_metric_differences,
)
from lvis_rcnn.reporting.figures import figure_file
from tests.helpers.study_records import CATEGORIES, shows


def test_differences_are_of_categories_that_both_runs_define(tmp_path):
    before = CATEGORIES
    after = [{**category, "segm": 0.5} for category in CATEGORIES]
    pairs = paired_categories(before, after, "segm")
    assert [(name, group) for name, group, _ in pairs] == [("kite", "r"), ("cup", "r"), ("tree", "f")]
    assert [change for *_, change in pairs] == pytest.approx([30, 10, -25])
    write_category_differences(before, after, ("A", "B"), "segm", tmp_path)
    text = (tmp_path / "category_differences.svg").read_text()
    assert shows(text, "mask AP of each category, B minus A")
    assert text.count("<!-- difference of mask AP, points -->") == 2
    assert shows(text, "rare: mean +20.0, 2 of 2 gain")
    write_category_differences(before, [], ("A", "B"), "segm", tmp_path)
    assert shows((tmp_path / "category_differences.svg").read_text(), "no category has mask AP in both")


def test_differences_of_metrics_are_shown_with_their_intervals(tmp_path):
    sure = Difference(0.1, 0.2, 0.1, (0.05, 0.15), 0.01, None, None)
    unsure = Difference(0.1, 0.2, 0.1, (-0.05, 0.25), 0.2, None, None)
    undefined = Difference(None, 0.2, None, None, None, None, None)
    metrics = {"AP": sure, "APr": unsure, "APc": undefined, "APf": sure}
    write_metric_differences({"bbox": metrics, "segm": metrics}, ("A", "B"), tmp_path)
    text = (tmp_path / "differences.svg").read_text()
    assert shows(text, "B minus A, with 95 % intervals")
    assert shows(text, "difference of mask AP, points")
    assert text.count("<!-- +10.0 -->") == 6


def test_a_long_name_is_cut_between_words(tmp_path):
    long = {**CATEGORIES[0], "name": "coaster_(for_a_glass_or_a_cup_of_tea)"}
    write_category_differences([long], [long], ("A", "B"), "segm", tmp_path)
    assert shows((tmp_path / "category_differences.svg").read_text(), "coaster_(for_a_glass_or_a… (r)")


RUNS = "results/lvis_v0.5/x101_64x4d/seed0", "results/lvis_v0.5/x101_32x4d/seed0"
FAR_APART = "/home/someone/of/a/very/long/name/one/results/mini/r50", f"/data/{'long' * 40}/results/mini/r50"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (RUNS, ("x101_64x4d/seed0", "x101_32x4d/seed0")),
        (("results/a/r50", "results/b/r50"), ("a/r50", "b/r50")),
        (("a", "b"), ("a", "b")),
        (("a/r50", "a/r50"), ("r50", "r50")),
        (("a", "a/r50"), ("a", "a/r50")),
    ],
)
def test_titles_name_what_differs(paths, names):
    assert short_names(*map(Path, paths)) == names


@pytest.mark.parametrize(
    ("compared", "run", "expected"),
    [
        ("results/a", "results/a/r50/seed0/metrics.json", "results/a/r50"),
        ("results/a", "results/a/published/m/metrics.json", "results/a/published/m"),
        ("results/a/r50", "results/a/r50/seed0/metrics.json", "results/a/r50"),
        ("results/a/r50/seed0", "results/a/r50/seed0", "results/a/r50/seed0"),
    ],
)
def test_of_a_study_the_row_is_named(compared, run, expected):
    assert row_path(compared, run) == Path(expected)


@pytest.mark.parametrize("paths", [RUNS, FAR_APART])
def test_titles_of_differences_stay_inside_the_figure(tmp_path, paths, monkeypatch):
    figures = []

    @contextmanager
    def kept(*args: Any) -> Iterator[Figure]:
        with figure_file(*args) as figure:
            yield figure
            figures.append(figure)

    monkeypatch.setattr(difference_plots, "figure_file", lambda stem, height_in: kept(stem, height_in))
    names = short_names(*map(Path, paths))
    one = Difference(0.1, 0.2, 0.1, (0.05, 0.15), 0.01, None, None)
    write_metric_differences({"segm": dict.fromkeys(("AP", "APr", "APc", "APf"), one)}, names, tmp_path)
    write_category_differences(CATEGORIES, CATEGORIES, names, "segm", tmp_path)
    for figure in figures:
        extent = figure.get_tightbbox()
        assert (extent.x0 >= 0, extent.y0 >= 0) == (True, True)
        assert (extent.x1 <= figure.get_figwidth(), extent.y1 <= figure.get_figheight()) == (True, True)
    assert len(figures) == 2
