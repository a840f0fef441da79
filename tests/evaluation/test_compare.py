"""Runs, rows and studies beside each other: by hand, by a second computation, and the errors."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvis_rcnn import compare as compare_module
from lvis_rcnn import evaluate as evaluate_module
from lvis_rcnn.config.protocols import Protocol
from lvis_rcnn.evaluate import evaluate
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.bootstrap import SEED, image_weights, resampling_of, weighted_metrics
from lvis_rcnn.evaluation.compare import (
    compare,
    corrected,
    paired,
    read_scored,
    row_pairs,
    scored_rows,
    share_trainings,
)
from lvis_rcnn.evaluation.scoring import Scoring
from lvis_rcnn.evaluation.uncertainty import Sampled, t_quantile, t_tail
from lvis_rcnn.reporting.comparison import comparison_text, p_text
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import write_json
from tests.conftest import run_snakemake, write_study
from tests.evaluation.test_coco import coco
from tests.helpers.scored_boxes import BOAT, CUP, FAR, as_json, found, truth, write


@pytest.fixture(autouse=True)
def few_resamples_are_enough(monkeypatch):
    """Each takes milliseconds; how many are needed is test_uncertainty.py's matter."""
    monkeypatch.setattr("lvis_rcnn.evaluation.uncertainty.FEWEST_RESAMPLES", 10)


DATASET = truth((1, 1, CUP), (2, 1, CUP), (1, 3, BOAT), (2, 3, BOAT), negative={1: [2], 2: [2]})
WORSE = [found(1, 1, 0.5, *CUP), found(1, 1, 0.9, *FAR), found(2, 3, 0.8, *BOAT)]
BETTER = [found(1, 1, 0.5, *CUP), found(2, 1, 0.4, *CUP), found(2, 3, 0.8, *BOAT), found(1, 3, 0.9, *FAR)]


def scored(folder, results, dataset=DATASET, resamples=0, protocols=(), ids=None, **records):
    """A run's folder; with ``resamples`` their metrics are kept."""
    folder.mkdir(parents=True)
    annotations = write(folder / "truth.json", dataset)
    detections, matches = write(folder / "results.json", as_json(results)), folder / "matches.npz"
    scoring = Scoring(resamples=resamples, protocols=protocols, subset_files={"some": ids} if ids else {})
    metrics = evaluate(annotations, detections, scoring, matches)
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
        error = np.array(apart)[:, METRIC_NAMES.index("AP")].std(ddof=1)
        reach = t_quantile(0.975, 20) * error
        assert row.interval == pytest.approx((row.difference - reach, row.difference + reach))
        assert row.p == pytest.approx(2 * t_tail(abs(row.difference) / error, 20))
        assert compared[kind]["APc"].difference is None
        assert compared[kind]["APc"].p is None


def test_a_comparison_by_another_protocol_is_that_of_runs_scored_by_it(tmp_path, monkeypatch, capsys):
    some = [Protocol("some"), Protocol("some", is_fixed=True), Protocol(is_boundary=True)]
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "two.txt").write_text("2")
    folders = [
        scored(tmp_path / name, each, protocols=some, ids=tmp_path / "one.txt", resamples=resamples)
        for name, each, resamples in (("a", WORSE, 0), ("b", BETTER, 30))
    ]
    cut = {**DATASET, "images": DATASET["images"][:1]}
    cut["annotations"] = [one for one in DATASET["annotations"] if one["image_id"] == 1]
    alone = [
        read_scored(scored(tmp_path / name, [one for one in each if one.image_id == 1], cut))
        for name, each in (("c", WORSE), ("d", BETTER))
    ]
    expected = compare(*((run,) for run in alone), 20, SEED)
    for protocol in ("some", "some_fixed"):
        runs = [read_scored(folder, protocol) for folder in folders]
        assert compare(*((run,) for run in runs), 20, SEED) == expected
    run = [sys.executable, *map(str, folders), "--resamples", "12", "--protocol", "some_fixed"]
    monkeypatch.setattr(sys, "argv", run)
    compare_module.main()
    printed = capsys.readouterr().out
    assert "Scored by: some AP-fixed of 2 an image, some AP-fixed of 2 an image" not in printed
    assert "Scored by: some AP-fixed of 2 an image" in printed
    assert "AR@300" not in printed
    assert list(compare(*((read_scored(folder, "boundary"),) for folder in folders), 12, SEED)) == ["segm"]
    other = read_scored(scored(tmp_path / "e", WORSE, protocols=some, ids=tmp_path / "two.txt"), "some")
    with pytest.raises(InputError, match="the subset has other ids"):
        compare((read_scored(folders[0], "some"),), (other,), 12, SEED)
    with pytest.raises(InputError, match="was not scored by the protocol fixed; allowed: some, some_fixed, boundary"):
        read_scored(folders[0], "fixed")


def test_resamples_that_scoring_kept_are_not_made_again(tmp_path, monkeypatch):
    first, second = (read_scored(scored(tmp_path / name, each)) for name, each in (("a", WORSE), ("b", BETTER)))
    kept = [read_scored(scored(tmp_path / name, each, resamples=13)) for name, each in (("c", WORSE), ("d", BETTER))]
    made = compare((first,), (second,), 12, SEED)
    assert made["bbox"]["AP"].p is not None
    assert compare((kept[0],), (kept[1],), 14, SEED) == compare((first,), (second,), 14, SEED)
    assert compare((kept[0],), (kept[1],), 12, SEED + 1) == compare((first,), (second,), 12, SEED + 1)
    monkeypatch.setattr("lvis_rcnn.evaluation.compare.resampled_metrics", None)
    assert compare((kept[0],), (kept[1],), 12, SEED) == made


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = read_scored(scored(tmp_path / "a", WORSE))
    row = compare((run,), (run,), 12, 0)["bbox"]["AP"]
    assert (row.difference, row.interval, row.p) == (0, None, None)


def test_a_metric_that_only_one_run_defines_has_no_difference():
    one, other = np.full((2, 1, len(METRIC_NAMES)), 0.5)
    other[0, METRIC_NAMES.index("APr")] = np.nan
    samples = np.random.default_rng(0).normal(0.5, 0.1, (2, 1, 200, len(METRIC_NAMES)))
    rows = paired(Sampled(one, samples[0]), Sampled(other, samples[1]))
    assert (rows["APr"].first, rows["APr"].second, rows["APr"].difference, rows["APr"].p) == (0.5, None, None, None)
    low, high = rows["AP"].interval
    assert (rows["AP"].difference, low) == (0, pytest.approx(-high))


def test_p_is_that_of_the_primary_metrics_and_corrected(tmp_path):
    first, second = (read_scored(scored(tmp_path / name, each)) for name, each in (("a", WORSE), ("b", BETTER)))
    compared = compare((first,), (second,), 12, SEED)
    plain = {key: compared[key[0]][key[1]].p for key in (("bbox", "AP"), ("segm", "AP"), ("segm", "APr"))}
    found = corrected(compared)
    assert found.keys() == plain.keys()
    smallest = min(plain, key=plain.get)
    assert found[smallest] == pytest.approx(min(1, 3 * plain[smallest]))
    text = comparison_text((first,), (second,), compared, 12, SEED)
    with_p = [line.split()[0] for line in text.splitlines() if line.startswith("AP") and len(line.split()) >= 8]
    assert with_p == ["AP", "AP", "APr"]
    assert "after Holm's correction for 3 tests" in text


def test_two_results_files_are_compared_on_their_annotations(tmp_path, monkeypatch, capsys):
    scored_before = [scored(tmp_path / name, each) for name, each in (("a", WORSE), ("b", BETTER))]
    files = [scored_before[0] / "truth.json", *(folder / "results.json" for folder in scored_before)]

    def printed(*words):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, words), "--resamples", "12"])
        compare_module.main()
        return capsys.readouterr().out

    text = printed(*files, "--plot", tmp_path / "plots")
    assert text.splitlines()[:2] == [f"A: {files[1]}", f"B: {files[2]}"]
    assert (tmp_path / "plots" / "differences.png").exists()
    assert "Settings" not in text
    of_folders = printed(*scored_before)
    assert text.splitlines()[2:] == of_folders.splitlines()[2 : len(text.splitlines())]
    plain = write(tmp_path / "coco.json", coco(DATASET))
    assert printed(plain, *files[1:], "--coco-exhaustive").splitlines()[1] == f"B: {files[2]}"


def test_plots_of_a_scorer_alone_are_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_module, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["compare", "a", "b", "--plot", str(tmp_path / "plots")])
    with pytest.raises(SystemExit, match="2"):
        compare_module.main()
    line = "error: --plot: plots are not installed; fix: python -m pip install 'lvis-rcnn[train]'\n"
    assert capsys.readouterr().err == line


def test_what_evaluate_writes_is_what_compare_takes(tmp_path, monkeypatch, capsys):
    folder = scored(tmp_path / "a", WORSE)
    files = [folder / "truth.json", folder / "results.json", write(tmp_path / "better.json", as_json(BETTER))]
    outs = [tmp_path / "one.json", tmp_path / "two.json"]
    for results, out in zip(files[1:], outs, strict=True):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, [files[0], results, "--out", out])])
        evaluate_module.main()
    assert [path.name for path in sorted(tmp_path.glob("*.npz"))] == ["one.npz", "two.npz"]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, outs), "--resamples", "12"])
    compare_module.main()
    assert f"B: {outs[1]}" in capsys.readouterr().out


def test_the_command_prints_metrics_categories_and_settings(tmp_path, monkeypatch, capsys):
    same = {"study": "tiny", "backbone": "r50", "versions": {"torch": "2.15.0", "numpy": "2.4"}}
    other = {**same, "backbone": "r101", "versions": {"torch": "2.15.1", "numpy": "2.4"}, "elapsed_s": 4}
    first = scored(tmp_path / "a", WORSE, train=same)
    second = scored(tmp_path / "b", BETTER, train=other)
    monkeypatch.setattr(
        sys,
        "argv",
        ["compare", str(first), str(second / "metrics.json"), "--resamples", "5", "--plot", str(tmp_path)],
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
    assert all(words in text for words in ("5 resamples: too few for intervals", "seed 0", "single runs"))
    assert "train: backbone r50 r101" in lines
    assert "train: versions torch 2.15.0 2.15.1" in lines
    assert not any("study" in line or "elapsed" in line or "numpy" in line for line in lines)
    assert "thing 1" in (tmp_path / "category_differences.svg").read_text()
    assert (tmp_path / "category_differences.png").stat().st_size > 10_000


def test_more_resamples_than_say_something_new_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "a", "b", "--resamples", "2147483647"])
    with pytest.raises(SystemExit, match="2"):
        compare_module.main()
    assert capsys.readouterr().err.startswith("error: --resamples: is 2147483647; allowed: an integer from 1 to 100000")


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
        ("matches.npz", None, "matches.npz: no such file of match results; fix: score the detections again"),
        (
            "metrics.json",
            b'{"format": "lvis_rcnn.metrics", "version": 2}',
            "version 2; allowed: .* version 1",
        ),
        ("metrics.json", b"{}", "metrics.json: is no metrics.json; .*compare GT.json A.json B.json"),
        ("metrics.json", b"{", "metrics.json: not readable as JSON"),
        ("metrics.json", b"[" * 5000, "metrics.json: not readable as JSON"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metrics: metrics["bbox"].pop("AP"), r"damaged: Object missing required field `AP` - at `\$.bbox`"),
        (lambda metrics: metrics["segm"].update(AP="x"), r"damaged: Expected `float | null`, got `str`"),
        (lambda metrics: metrics.pop("segm"), "has no segm"),
        (lambda metrics: metrics.pop("per_category"), "damaged: Object missing required field `per_category`"),
        (lambda metrics: metrics["per_category"].pop(), "has other categories"),
        (
            lambda metrics: metrics.pop("detections_sha256"),
            "damaged: Object missing required field `detections_sha256`",
        ),
    ],
)
def test_metrics_of_another_shape_are_not_compared(tmp_path, change, message):
    file = scored(tmp_path / "a", WORSE) / "metrics.json"
    metrics = json.loads(file.read_text())
    change(metrics)
    write_json(file, metrics)
    with pytest.raises(InputError, match=rf"metrics.json: {message}.*; fix: score"):
        read_scored(file)


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


def test_a_row_of_seeds_is_their_mean_and_their_spread_widens_the_interval(tmp_path):
    for seed, results in enumerate([WORSE, BETTER, BETTER]):
        scored(tmp_path / "a" / f"seed{seed}", results, train={"seed": seed, "settings": {"sampling": {"rounding": 1}}})
        scored(tmp_path / "b" / f"seed{seed}", BETTER, train={"seed": seed, "settings": {"sampling": {"rounding": 2}}})
    ((first, second),) = row_pairs(tmp_path / "a", tmp_path / "b").values()
    found = compare(first, second, 12, 0)
    row = found["segm"]["AP"]
    values = [run.metrics["segm"]["AP"] for run in first]
    assert row.first == pytest.approx(sum(values) / 3)
    assert row.first_sd == pytest.approx(np.std(values, ddof=1))
    assert row.second_sd == 0
    text = comparison_text(first, second, found, 12, 0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "AP 54.37 ± 14.29 62.62 ± 0.00 +8.25" in "\n".join(lines)
    assert "between-seed variance is included (3 of A, 3 of B;" in " ".join(lines)
    assert "train: settings sampling rounding 1 2" in lines
    assert not any("train: seed" in line for line in lines)
    assert "3 of A" not in comparison_text(first[:1], second[:1], {}, 12, 0)
    two = compare(first[:2], second, 12, 0)["segm"]["AP"]
    assert (two.interval, two.p) == (None, None)
    assert "two seeds of A cannot show how much seeds vary" in comparison_text(first[:2], second, {}, 12, 0)


def test_rows_of_the_same_weights_are_compared_seed_by_seed(tmp_path):
    for seed, (one, other) in enumerate([(WORSE, BETTER), (BETTER, BETTER), (WORSE, BETTER)]):
        scored(tmp_path / "a" / f"seed{seed}", one, inference={"model_sha256": f"{seed}"})
        scored(tmp_path / "b" / f"seed{seed}", other, inference={"model_sha256": f"{seed}"})
        scored(tmp_path / "c" / f"seed{seed}", other, inference={"model_sha256": f"{seed + 1}"})
    ((first, second),) = row_pairs(tmp_path / "a", tmp_path / "b").values()
    ((_, others),) = row_pairs(tmp_path / "a", tmp_path / "c").values()
    assert (share_trainings(first, second), share_trainings(first, others)) == (True, False)
    by_seed, apart = (compare(first, row, 12, 0)["segm"]["AP"] for row in (second, others))
    differences = [b.metrics["segm"]["AP"] - a.metrics["segm"]["AP"] for a, b in zip(first, second, strict=True)]
    assert by_seed.difference == apart.difference == pytest.approx(np.mean(differences))
    assert by_seed.interval != apart.interval
    assert "both are of the same 3 trainings" in comparison_text(first, second, {}, 12, 0)
    assert "3 of A, 3 of B" in comparison_text(first, others, {}, 12, 0)


def test_what_trainings_add_to_both_rows_is_no_error_of_their_difference():
    random = np.random.default_rng(0)
    of_seed, of_images = random.normal(0, 0.1, (3, 1, 1)), random.normal(0, 0.01, (2, 3, 300, len(METRIC_NAMES)))
    rows = [Sampled(0.5 + of_seed[:, 0] + 0 * of_images[0, :, 0], 0.5 + of_seed + one) for one in of_images]
    widths = [np.ptp(paired(*rows, same_trainings=same)["AP"].interval) for same in (True, False)]
    assert widths[0] < widths[1] / 5


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
    for single in (tmp_path / "two/r101/seed0", tmp_path / "two/r101/seed0/metrics.json"):
        with pytest.raises(
            InputError, match=f"--only r50/seed0: is of several runs, and {single} is one; fix: leave it"
        ):
            row_pairs(tmp_path / "one", single, ["r50/seed0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: nothing in it is scored"):
        row_pairs(tmp_path / "one", tmp_path / "empty", ["r50/seed0"])


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


def test_a_printed_p_says_on_which_side_of_five_percent_it_is():
    printed = [p_text(p) for p in (0.0, 0.0049, 0.0449, 0.0496, 0.05, 0.0504, 1.0)]
    assert printed == ["< 0.01", "< 0.01", "0.04", "< 0.05", "0.05", "0.05", "1.00"]


def test_match_results_of_a_protocol_are_those_of_the_same_scoring(tmp_path):
    ours, other = (
        scored_files(tmp_path, name, protocols=["fixed"], detections_per_image=cap)
        for name, cap in (("a", 300), ("b", 1))
    )
    assert read_scored(ours, "fixed").matches.detections_per_image == 300
    other.with_suffix(".npz").replace(ours.with_suffix(".npz"))
    with pytest.raises(InputError, match=r"a\.npz: detections_per_image is not that of a\.json"):
        read_scored(ours, "fixed")


def scored_files(folder: Path, name: str, **options: Any) -> Path:
    """What ``evaluate --out folder/name.json`` writes for BETTER."""
    annotations, detections = write(folder / "truth.json", DATASET), write(folder / "dt.json", as_json(BETTER))
    metrics = evaluate(annotations, detections, Scoring(**options), folder / f"{name}.npz")
    write_json(folder / f"{name}.json", metrics)
    return folder / f"{name}.json"


def test_settings_are_those_of_the_named_file_and_not_of_a_run_beside_it(tmp_path):
    run = scored(tmp_path / "run", WORSE, train={"seed": 7})
    few, all_of_them = (scored_files(run, name, detections_per_image=cap) for name, cap in (("a", 1), ("b", 300)))
    assert read_scored(run).settings["train: seed"] == 7
    settings = [read_scored(file).settings for file in (few, all_of_them)]
    assert [one["metrics: detections_per_image"] for one in settings] == [1, 300]
    assert not any("train: seed" in one for one in settings)


def test_match_results_of_another_scoring_of_the_same_detections_are_refused(tmp_path):
    file, other = scored_files(tmp_path, "a"), scored_files(tmp_path, "b", detections_per_image=1)
    other.with_suffix(".npz").replace(file.with_suffix(".npz"))
    with pytest.raises(InputError, match=r"a\.npz: detections_per_image is not that of a\.json"):
        read_scored(file)
    file.with_suffix(".npz").unlink()
    with pytest.raises(InputError, match=r"a\.npz: no such file"):
        read_scored(file)
