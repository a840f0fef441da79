"""The table of methods: how much each row differs from the baseline of its study."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvis_rcnn.config.study import Study
from lvis_rcnn.evaluation.metrics import METRIC_NAMES
from lvis_rcnn.evaluation.uncertainty import Sampled, estimates
from lvis_rcnn.reporting.differences import difference_of, is_shown_best, paired_tests
from lvis_rcnn.reporting.methods import methods_cells, methods_note
from lvis_rcnn.reporting.rows import Row, kept_sentence, rows_of
from lvis_rcnn.runs.states import states_of, work_left
from tests.helpers.study_records import (
    put_infer,
    put_measured,
    put_metrics,
    put_run,
    study_with,
    written,
)
from tests.reporting.test_table import put_resampled, resampled

ROWS: dict[str, Any] = {
    "plain": {"backbone": "r50", "title": "plain", "sampling": {"oversample_threshold": None}},
    "rfs": {"backbone": "r50", "title": "RFS"},
    "few": {"backbone": "r50", "title": "RFS, 5 detections", "inference": {"detections_per_image": 5}},
}
APS = {"plain": 0.2, "rfs": 0.22, "few": 0.201}


def put_rows(results: Path, seeds: int = 1, **changes: Any) -> Study:
    """Every row of ``ROWS`` with each seed, scored, whose resamples move together but for 0.002."""
    report = {"baseline": "plain"}
    study = study_with((), tuple(range(seeds)), rows=ROWS, report=report, **changes)
    together = resampled(0, 0.03)
    for place, (row, ap) in enumerate(APS.items()):
        own = study.of_row(row)
        for seed in range(seeds):
            folder = results / study.study / row / f"seed{seed}"
            if study.trained_as(row) == row:
                put_run(results, own, row, seed)
            else:
                folder.mkdir(parents=True)
                put_infer(folder, own)
                put_measured(folder.parent, own)
            # Rows of one training move together from seed to seed, too.
            value = ap + 0.01 * seed * (-1 if row == "plain" else 1)
            same = dict.fromkeys(METRIC_NAMES, value)
            intervals = {"resamples": 1000, "bbox": {}, "segm": {}}
            put_metrics(folder, bbox=same, segm=same, intervals=intervals, detections_sha256="d")
            put_resampled(folder, together + np.roll(resampled(value, 0.002), 100 * place + 10 * seed, axis=0))
    return study


def rows_in(results: Path, study: Study) -> dict[str, Row]:
    return {row.name: row for row in rows_of(study, results, {})}


def test_a_line_for_each_other_row_with_what_is_shown(tmp_path: Path) -> None:
    study = put_rows(tmp_path)
    page = written(tmp_path, study)
    text = page.read_text()
    assert text.splitlines()[2].startswith("| Row ")
    # A standard deviation of 0.2 points in each row is 0.28 of a difference; times t of 20 degrees of freedom, 0.59.
    shown = "| +2.0 [+1.4, +2.6] * | +2.0 [+1.4, +2.6] * | +2.0 [+1.4, +2.6] * | +2.0 [+1.4, +2.6] |"
    assert f"| RFS {shown}" in squeezed(text)
    assert re.search(r"\| RFS, 5 detections \| \+0\.1 \[-0\.\d, \+0\.\d\] \|", squeezed(text))
    assert "Differences to plain in points, with 95 % intervals over images (one run each" in text
    assert "Holm's correction for 6 tests; other columns are not tested." in text
    assert "Shown to differ" not in text
    records = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert "baseline" not in records[0]
    found = records[1]["baseline"]
    assert (found["row"], found["mask_AP"]["difference"]) == ("plain", pytest.approx(0.02))
    assert found["mask_AP"]["p"] < 0.001 < records[2]["baseline"]["mask_AP"]["p"]
    with page.with_suffix(".csv").open(newline="") as file:
        assert [line["title"] for line in csv.DictReader(file)] == ["plain", "RFS", "RFS, 5 detections"]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_only_the_baseline_is_tested_against(tmp_path: Path) -> None:
    rows = list(rows_in(tmp_path, put_rows(tmp_path)).values())
    tests = paired_tests(rows)
    assert {frozenset((test.better.name, test.worse.name)) for test in tests} == {
        frozenset(("plain", "rfs")),
        frozenset(("plain", "few")),
    }


def test_rows_that_are_not_scored_yet_count_among_the_tests(tmp_path: Path) -> None:
    study = put_rows(tmp_path)
    (tmp_path / "mini" / "few" / "seed0" / "metrics.json").unlink()
    rows = rows_in(tmp_path, study)
    tests = paired_tests(list(rows.values()))
    assert [(test.better.name, test.worse.name, test.family) for test in tests] == [("rfs", "plain", 6)] * 3
    only = estimates(rows["rfs"].sampled["segm"], rows["plain"].sampled["segm"])["APr"]
    assert only is not None
    assert [test.p for test in tests] == pytest.approx([6 * only.p] * 3)


def test_rows_of_one_training_are_compared_seed_by_seed(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, put_rows(tmp_path, seeds=3))
    rfs, few = rows["rfs"].sampled["segm"], rows["few"].sampled["segm"]
    found = difference_of(rows["few"], rows["rfs"], "segm")["AP"]
    apart = estimates(Sampled(few.metrics - rfs.metrics, few.samples - rfs.samples))["AP"]
    assert found == apart
    # What seeds add to both is no error of their difference.
    independent = estimates(few, rfs)["AP"]
    assert found is not None
    assert independent is not None
    assert found.value == pytest.approx(independent.value)
    assert found.error < independent.error / 3
    assert (
        difference_of(rows["rfs"], rows["plain"], "segm")["AP"] == estimates(rfs, rows["plain"].sampled["segm"])["AP"]
    )


def test_a_baseline_that_is_not_scored_has_no_table(tmp_path: Path) -> None:
    study = put_rows(tmp_path)
    (tmp_path / "mini" / "plain" / "seed0" / "metrics.json").unlink()
    rows = list(rows_in(tmp_path, study).values())
    assert methods_cells(rows) == []
    assert methods_note(rows) == "Nothing is compared until plain, the baseline, is scored with its resamples."
    table = written(tmp_path, study).read_text()
    assert "waiting for scoring" in table
    assert methods_note(rows) in table


def test_no_row_is_bold_where_rows_are_tested_against_a_baseline_alone(tmp_path: Path) -> None:
    rows = list(rows_in(tmp_path, put_rows(tmp_path)).values())
    best = replace(next(iter(paired_tests(rows))), p=0.0)
    assert not is_shown_best(best.better, [best.better, best.worse], best.name, [best])
    unnamed = [replace(row, is_baseline=False) for row in (best.better, best.worse)]
    test = replace(best, better=unnamed[0], worse=unnamed[1])
    assert is_shown_best(unnamed[0], unnamed, best.name, [test])


def test_what_is_said_of_seeds_is_that_of_the_runs_that_are_scored(tmp_path: Path) -> None:
    study = put_rows(tmp_path, seeds=3)
    note = methods_note(list(rows_in(tmp_path, study).values()))
    assert "over images and seeds," in note
    for seed in (1, 2):
        (tmp_path / "mini" / "rfs" / f"seed{seed}" / "metrics.json").unlink()
    note = methods_note(list(rows_in(tmp_path, study).values()))
    assert "other seeds may differ" in note


def test_rows_that_keep_unlike_numbers_of_detections_are_said_in_one_sentence(tmp_path: Path) -> None:
    study = put_rows(tmp_path)
    kept = study.inference.detections_per_image
    said = f"The detector kept at most 5 to {kept} detections an image; 300 would count"
    assert kept_sentence(list(rows_in(tmp_path, study).values())) == said


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    study = put_rows(tmp_path, seeds=2)
    rows = list(rows_in(tmp_path, study).values())
    assert methods_cells(rows) == []
    assert methods_note(rows) == "No difference to plain has an interval: two seeds have none."


def test_a_shared_training_is_planned_and_counted_once(tmp_path: Path) -> None:
    study = put_rows(tmp_path)
    assert work_left(study, states_of(study, tmp_path, {}, {})) == []
    (tmp_path / "mini" / "rfs" / "seed0" / "train.json").unlink()
    states = {state.row: state for state in states_of(study, tmp_path, {}, {})}
    assert [states[row].state for row in ROWS] == ["done", "not started", "not started"]
    left = {work.state.row: work for work in work_left(study, list(states.values()))}
    assert left["rfs"].training.startswith("fresh")
    assert (left["few"].training, left["few"].seconds) == ("that of rfs", 0.0)
