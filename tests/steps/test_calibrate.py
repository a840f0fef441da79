"""The step writes the statistics of a split as they are computed, and says what it found."""

import csv
import re
import sys

import numpy as np

from lvis_rcnn import calibrate
from lvis_rcnn.dataset.statistics import category_statistics, read_statistics
from tests.helpers.small_dataset import build, small_dataset


def test_the_step_writes_a_line_for_each_category(tmp_path, monkeypatch, capsys):
    dataset = small_dataset()
    dataset["categories"].append({"id": 2, "name": "never, seen", "frequency": "r"})
    store, out = build(tmp_path, dataset), tmp_path / "calibration.csv"
    monkeypatch.setattr(sys, "argv", ["calibrate", "--store", str(store.path), "--out", str(out)])
    calibrate.main()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["category_id"], row["name"], row["image_count"], row["instance_count"]) for row in rows] == [
        *(("20", "bear", "2", "2"), ("30", "cup", "1", "1"), ("10", "kite", "0", "0"), ("2", "never, seen", "0", "0"))
    ]
    assert {row["images_of_split"] for row in rows} == {"3"}
    assert np.array_equal(read_statistics(out).dimensions, category_statistics(store).dimensions)
    said = r"calibration.csv: 4 categories, 2 of them without images; fractal dimensions 1.00 to 1.00\n"
    assert re.search(said, capsys.readouterr().err)
