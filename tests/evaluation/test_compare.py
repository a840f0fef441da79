"""Runs, rows and studies beside each other: by hand, by a second computation, and the errors."""

import copy
import sys

import numpy as np
import pytest

from lvis_rcnn import compare as compare_module
from lvis_rcnn.evaluate import evaluate
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.bootstrap import SEED, image_weights, resampling_of, seed_noise, weighted_metrics
from lvis_rcnn.evaluation.compare import compare, p_value, paired, read_scored, row_pairs, scored_rows
from lvis_rcnn.reporting.comparison import comparison_text
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import write_json
from tests.conftest import run_snakemake, write_study
from tests.helpers.scored_boxes import BOAT, CUP, FAR, as_json, found, truth, write

DATASET = truth((1, 1, CUP), (2, 1, CUP), (1, 3, BOAT), (2, 3, BOAT), negative={1: [2], 2: [2]})
WORSE = [found(1, 1, 0.5, *CUP), found(1, 1, 0.9, *FAR), found(2, 3, 0.8, *BOAT)]
BETTER = [found(1, 1, 0.5, *CUP), found(2, 1, 0.4, *CUP), found(2, 3, 0.8, *BOAT), found(1, 3, 0.9, *FAR)]


def scored(folder, results, dataset=DATASET, resamples=0, **records):
    """A run's folder; with ``resamples`` their metrics are kept."""
    folder.mkdir(parents=True)
    annotations = write(folder / "truth.json", dataset)
    detections, matches = write(folder / "results.json", as_json(results)), folder / "matches.npz"
    metrics = evaluate(annotations, detections, 300, resamples=resamples, matches=matches)
    write_json(folder / "metrics.json", metrics)
    for name, record in records.items():
        write_json(folder / f"{name}.json", record)
    return folder


def test_the_difference_is_that_of_the_same_resamples(tmp_path):
    first, second = read_scored(scored(tmp_path / "a", WORSE)), read_scored(scored(tmp_path / "b", BETTER))
    compared = compare((first,), (second,), 30, 5)
    for kind in ("bbox", "segm"):
        resampling = [resampling_of(run.matches.outcomes[kind], run.matches.frequencies) for run in (first, second)]
        weights = [image_weights(2, 5, number) for number in range(30)]
        apart = [weighted_metrics(resampling[1], each) - weighted_metrics(resampling[0], each) for each in weights]
        row = compared[kind]["AP"]
        assert (row.first, row.second) == (first.metrics[kind]["AP"], second.metrics[kind]["AP"])
        assert row.difference == row.second - row.first
        values = np.array(apart)[:, METRIC_NAMES.index("AP")]
        low, high = np.percentile(values, [2.5, 97.5])
        assert row.interval == pytest.approx((2 * row.difference - high, 2 * row.difference - low))
        assert compared[kind]["APc"].difference is None
        assert compared[kind]["APc"].p is None


def test_resamples_that_scoring_kept_are_not_made_again(tmp_path, monkeypatch):
    first, second = (read_scored(scored(tmp_path / name, each)) for name, each in (("a", WORSE), ("b", BETTER)))
    kept = [read_scored(scored(tmp_path / name, each, resamples=9)) for name, each in (("c", WORSE), ("d", BETTER))]
    made = compare((first,), (second,), 8, SEED)
    assert compare((kept[0],), (kept[1],), 10, SEED) == compare((first,), (second,), 10, SEED)
    assert compare((kept[0],), (kept[1],), 8, SEED + 1) == compare((first,), (second,), 8, SEED + 1)
    monkeypatch.setattr("lvis_rcnn.evaluation.compare.resampled_metrics", None)
    assert compare((kept[0],), (kept[1],), 8, SEED) == made


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = read_scored(scored(tmp_path / "a", WORSE))
    row = compare((run,), (run,), 10, 0)["bbox"]["AP"]
    assert (row.difference, row.interval, row.p) == (0, (0, 0), 1)


@pytest.mark.parametrize(
    ("difference", "values", "expected"),
    [
        (1.0, [1.0] * 99, 0.02),
        (1.0, [1.0] * 98 + [2.5], 0.04),
        (-1.0, [-1.0] * 999, 0.002),
        (0.1, [-1.0] * 40 + [1.0] * 59, 0.82),
        (0.0, [0.0] * 5, 1),
    ],
)
def test_p_by_hand(difference, values, expected):
    assert p_value(difference, np.array([*values, np.nan])) == pytest.approx(expected)


def test_a_metric_that_only_one_run_defines_has_no_difference():
    one, other = np.full((2, 1, len(METRIC_NAMES)), 0.5)
    other[0, METRIC_NAMES.index("APr")] = np.nan
    rows = paired(one, other, np.full((4, len(METRIC_NAMES)), 0.25))
    assert (rows["APr"].first, rows["APr"].second, rows["APr"].difference, rows["APr"].p) == (0.5, None, None, None)
    assert rows["AP"].interval == (-0.25, -0.25)


def test_the_command_prints_metrics_categories_and_settings(tmp_path, monkeypatch, capsys):
    same = {"study": "tiny", "backbone": "r50", "versions": {"torch": "2.15.0", "numpy": "2.4"}}
    other = {**same, "backbone": "r101", "versions": {"torch": "2.15.1", "numpy": "2.4"}, "elapsed_s": 4}
    first = scored(tmp_path / "a", WORSE, train=same)
    second = scored(tmp_path / "b", BETTER, train=other)
    monkeypatch.setattr(
        sys,
        "argv",
        ["compare", str(first), str(second / "metrics.json"), "--resamples", "20", "--plot", str(tmp_path)],
    )
    compare_module.main()
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:2] == [f"A: {first}", f"B: {second / 'metrics.json'}"]
    rows = [line for line in lines if line.startswith("AP ")]
    assert len(rows) == 2
    assert rows[0].startswith("AP 37.87 62.62 +24.75 ")
    assert "Categories that gained most: thing 1 (r) 25.25 to 100.00" in lines
    assert "Categories that lost most: thing 3 (f) 50.50 to 25.25" in lines
    assert all(words in text for words in ("20 resamples: too few to rely on", "seed 0", "single runs"))
    assert "train: backbone r50 r101" in lines
    assert "train: versions torch 2.15.0 2.15.1" in lines
    assert not any("study" in line or "elapsed" in line or "numpy" in line for line in lines)
    assert "thing 1" in (tmp_path / "category_differences.svg").read_text()
    assert (tmp_path / "category_differences.png").stat().st_size > 10_000


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    first = scored(tmp_path / "a", WORSE)
    other = copy.deepcopy(DATASET)
    other["images"][0]["neg_category_ids"] = []
    second = scored(tmp_path / "b", WORSE, other)
    with pytest.raises(InputError, match=r"b: was scored on other annotations than .*a"):
        compare((read_scored(first),), (read_scored(second),), 5, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: nothing in it is scored"):
        scored_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("matches.npz", b"", "matches.npz: damaged file of match results"),
        ("matches.npz", None, "matches.npz: no such file of match results; fix: .* --matches"),
        (
            "metrics.json",
            b'{"format": "lvis_rcnn.metrics", "version": 2}',
            "version 2; allowed: .* version 1",
        ),
        ("metrics.json", b"{", "metrics.json: not readable as JSON"),
        ("metrics.json", None, "metrics.json: no such file; fix: name the folder of a scored run"),
    ],
)
def test_damaged_records_of_a_run_are_named(tmp_path, file, content, message):
    run = scored(tmp_path / "a", WORSE)
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_scored(run / "metrics.json")


def test_match_results_of_other_annotations_are_refused(tmp_path):
    first, second = scored(tmp_path / "a", WORSE), scored(tmp_path / "b", WORSE, truth((1, 1, CUP)))
    (second / "matches.npz").write_bytes((first / "matches.npz").read_bytes())
    with pytest.raises(InputError, match=r"b/matches.npz: annotations_sha256 is not that of metrics.json"):
        read_scored(second)


def test_boxes_alone_and_masks_alone_are_not_compared(tmp_path):
    first, second = ((read_scored(scored(tmp_path / name, WORSE)),) for name in "ab")
    del first[0].matches.outcomes["segm"]
    assert "Boxes" in comparison_text(first, second, compare(first, second, 3, 0), 3, 0)
    del second[0].matches.outcomes["bbox"]
    with pytest.raises(InputError, match=r"b: has segm, .*a has bbox; allowed: boxes, or masks, of all runs"):
        compare(first, second, 3, 0)


def test_the_noise_of_seeds_is_students_t():
    # 97.5 % of t with 2 degrees of freedom is 4.3027, of t with 1 is 12.706.
    metrics = np.array([[0.1, 0.3], [0.2, 0.3], [0.3, 0.3]])
    noise = seed_noise(metrics, 100_000, np.random.default_rng(0))
    assert np.percentile(noise[:, 0], 97.5) == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=0.03)
    assert not noise[:, 1].any()
    two = seed_noise(metrics[:2], 100_000, np.random.default_rng(0))
    assert np.percentile(two[:, 0], 97.5) == pytest.approx(12.706 * np.sqrt(0.005) / np.sqrt(2), rel=0.05)
    assert not seed_noise(metrics[:1], 5, np.random.default_rng(0)).any()


def test_a_row_of_seeds_is_their_mean_and_their_spread_widens_the_interval(tmp_path):
    for seed, results in enumerate([WORSE, BETTER]):
        scored(tmp_path / "a" / f"seed{seed}", results, train={"seed": seed, "settings": {"sampling": {"rounding": 1}}})
        scored(tmp_path / "b" / f"seed{seed}", BETTER, train={"seed": seed, "settings": {"sampling": {"rounding": 2}}})
    ((first, second),) = row_pairs(tmp_path / "a", tmp_path / "b").values()
    row = compare(first, second, 60, 0)["segm"]["AP"]
    values = [run.metrics["segm"]["AP"] for run in first]
    assert row.first == pytest.approx(sum(values) / 2)
    assert row.first_sd == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert row.second_sd == 0
    alone = compare(first[:1], second[:1], 60, 0)["segm"]["AP"].interval
    assert row.interval[1] - row.interval[0] > 2 * (alone[1] - alone[0])
    text = comparison_text(first, second, compare(first, second, 5, 0), 5, 0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "AP 50.25 ± 17.50 62.62 ± 0.00 +12.38" in "\n".join(lines)
    assert "between-seed variance is included (2 of A, 2 of B;" in " ".join(lines)
    assert "train: settings sampling rounding 1 2" in lines
    assert not any("train: seed" in line for line in lines)
    assert "2 of A" not in comparison_text(first[:1], second, {}, 5, 0)


def test_studies_are_compared_row_by_row(tmp_path):
    for name in (
        "one/r50/seed0",
        "one/r101/seed0",
        "one/published/m",
        "two/r50/seed0",
        "two/r50/seed10",
        "two/x/seed0",
    ):
        scored(tmp_path / name, WORSE)
    for name in ("one", "two"):
        (tmp_path / name / "plots").mkdir()
    assert list(scored_rows(tmp_path / "one")) == ["r101", "r50", "published/m"]
    pairs = row_pairs(tmp_path / "one", tmp_path / "two")
    assert {name: (len(first), len(second)) for name, (first, second) in pairs.items()} == {"r50": (1, 2)}
    with pytest.raises(InputError, match=r"two: has no row in common with .*r101: r50, x; there one row; allowed"):
        row_pairs(tmp_path / "one" / "r101", tmp_path / "two")


def test_of_a_study_only_the_runs_asked_for_are_compared_and_the_text_goes_to_a_file(tmp_path, monkeypatch, capsys):
    for name in ("one/r50/seed0", "two/r50/seed0", "two/r50/seed1", "two/r101/seed0"):
        scored(tmp_path / name, WORSE)
    words = [str(tmp_path / "one"), str(tmp_path / "two"), "--only", "r50/seed0", "--out", str(tmp_path / "said.txt")]
    monkeypatch.setattr(sys, "argv", ["compare", *words, "--resamples", "3"])
    compare_module.main()
    assert capsys.readouterr().out == ""
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert lines[1] == f"B: {tmp_path / 'two' / 'r50' / 'seed0' / 'metrics.json'}"
    assert lines[-1] == "Settings: the same in all records."
    assert "Settings: the same in all records." in (tmp_path / "said.html").read_text()
    with pytest.raises(
        InputError,
        match=r"r50/seed2: is no scored run of .*two; allowed: r101/seed0, r50/seed0, ",
    ):
        row_pairs(tmp_path / "one", tmp_path / "two", ["r50/seed0", "r50/seed2"])


@pytest.mark.slow
def test_the_workflow_compares_what_was_scored(tmp_path):
    study = write_study(tmp_path / "tiny.yaml", study="tiny", report={"compare_with": "before"})
    scored(tmp_path / "results/before/r50/seed0", WORSE)
    for seed in (0, 1):  # the study names one of them
        scored(tmp_path / f"results/tiny/r50/seed{seed}", BETTER)
    folder = "results/tiny/comparison"
    ended = run_snakemake(f"{folder}/comparison.txt", "--cores", "1", "--configfile", study, cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert ended.jobs() == {"compare": 1}
    text = (tmp_path / folder / "comparison.txt").read_text()
    assert text.startswith(
        "A: results/before/r50/seed0/metrics.json\nB: results/tiny/r50/seed0/metrics.json\n\nBoxes\n"
    )
    assert {file.name for file in (tmp_path / folder).iterdir()} == {
        *("comparison.txt", "comparison.html", "differences.png", "differences.svg"),
        *("category_differences.png", "category_differences.svg"),
    }
