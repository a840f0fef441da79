"""Plots say what the records say, are the same every time, and say why where there is nothing to draw."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import lvis_rcnn.reporting.comparison as difference_plots
import lvis_rcnn.reporting.plots as plots
import lvis_rcnn.reporting.score_plots as row_plots
from lvis_rcnn.config.study import Study
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, RECALLS, UNDEFINED, ap_of_categories, mean_curves
from lvis_rcnn.evaluation.compare import Difference
from lvis_rcnn.reporting import PLOTS
from lvis_rcnn.reporting.comparison import (
    paired_categories,
    row_path,
    short_names,
    write_category_differences,
    write_metric_differences,
)
from lvis_rcnn.reporting.figures import figure_file, style
from lvis_rcnn.reporting.plots import (
    History,
    curves_of,
    draw_history,
    histories_of,
    read_category_figures,
    smoothed,
    width_of,
    write_plots,
    write_precision_recalls,
    write_training_curves,
    write_training_losses,
)
from lvis_rcnn.reporting.rows import cost_of, rows_of
from lvis_rcnn.reporting.score_plots import (
    Estimate,
    basis_sentence,
    category_aps,
    devices_sentence,
    draw_precision,
    estimate,
    on_frontier,
    write_ap_and_images,
    write_ap_by_group,
)
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY
from tests.steps.test_report import NOW_S, put, put_metrics, put_run, study_with

CATEGORIES = [
    {"id": 5, "name": "kite", "frequency": "r", "bbox": 0.1, "segm": 0.2},
    {"id": 2, "name": "cup", "frequency": "r", "bbox": 0.3, "segm": 0.4},
    {"id": 9, "name": "bear", "frequency": "c", "bbox": None, "segm": None},
    {"id": 7, "name": "tree", "frequency": "f", "bbox": 0.5, "segm": 0.75},
]


def curve() -> dict[str, Any]:
    falling = {iou: (1 - RECALLS).tolist() for iou in ("0.5", "0.75", "0.5:0.95")}
    return {"recall": RECALLS.tolist(), "all": falling, "r": dict.fromkeys(falling), "c": falling, "f": falling}


def put_everything(results: Path, study: Study, seed: int = 0, ap: float = 0.25, **metrics: Any) -> Path:
    """A finished run with all that plots read."""
    folder = put_run(results, study, seed=seed)
    curves = {kind: curve() for kind in ("bbox", "segm")}
    put_metrics(folder, ap, **{"per_category": CATEGORIES, "curves": curves, **metrics})
    lines = [
        {"step": step, "loss": 3.0 / step, "lr": 0.1, "loss_cls": 1 / step, "grad_norm": 2.0, "images_per_s": 4.0}
        for step in range(1, 61)
    ]
    state = results / "state" / study.study / "r50" / f"seed{seed}" / "abc"
    put(state / "progress.json", {"step": 60, "steps": 60, "updated_at": NOW_S, "state": "done"})
    put(state / "log.json", "".join(json.dumps(line) + "\n" for line in lines))
    begin = {"event": "begin", "started_at": 0.0, "host": "h", "pid": 1, "job": None, "code_version": "x", "version": 1}
    starts = [{**begin, "attempt": number, "step": at} for number, at in ((1, 0), (2, 20))]
    put(state / "attempts.jsonl", "".join(json.dumps(start) + "\n" for start in starts))
    header = "category_id,name,frequency,image_count,instance_count,factor,instances_in_epoch\n"
    table = "5,kite,r,3,4,2.0,8.0\n2,cup,r,9,9,1.5,18.0\n9,bear,c,50,60,1.0,60.0\n7,tree,f,200,300,1.0,300.0\n"
    put(results / study.study / "repeat_factors" / "categories.csv", header + table)
    summary = {"threshold": 0.3, "expected_epoch_length": 99, "images_kept": 80}
    put(results / study.study / "repeat_factors" / "summary.json", summary)
    return folder


def drawn(results: Path, study: Study, out: Path) -> dict[str, str]:
    """The texts of all plots of a study, by name."""
    write_plots(study, Path("study.yaml"), results, out, NOW_S)
    assert {path.stem for path in out.glob("*.png")} == {path.stem for path in out.glob("*.svg")} == {*PLOTS}
    return {path.stem: path.read_text() for path in out.glob("*.svg")}


def says(svg: str, words: str) -> bool:
    return f"<!-- {words} -->" in svg


@pytest.mark.slow
def test_a_finished_study_has_every_plot_the_same_every_time_whatever_a_user_has_set(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    texts = drawn(tmp_path, study, tmp_path / "once")
    for name, words in (
        ("training_curves", "total loss"),
        ("training_curves", "started again"),
        ("training_losses", "loss of categories"),
        ("repeat_factors", "threshold 0.3, an epoch of 99 from 80 images"),
        ("ap_and_images", "training images with the category"),
        ("ap_by_group", "mask AP, percent"),
        ("ap_and_cost", "inference time, milliseconds an image"),
        ("ap_and_cost", "training memory, GB"),
        ("precision_recall_box", "Precision of boxes at each recall, mean over categories"),
        ("precision_recall_mask", "no objects"),
    ):
        assert says(texts[name], words), (name, words)
    assert all(says(texts[name], "R-50-FPN") for name in {*PLOTS} - {"repeat_factors"})
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "none"}):
        drawn(tmp_path, study, tmp_path / "again")
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_bars_of_groups_stand_at_the_mean_of_their_categories(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    rows = rows_of(study, tmp_path, {}, NOW_S)
    counted = read_category_figures(tmp_path / "mini" / "repeat_factors")
    assert counted is not None
    write_ap_and_images(rows, counted[1], "segm", tmp_path)
    text = (tmp_path / "ap_and_images.svg").read_text()
    assert says(text, "30.0")  # 20 and 40
    assert says(text, "75.0")
    assert says(text, "not shown: 1 without validation objects")


def test_plots_of_nothing_say_why(tmp_path):
    texts = drawn(tmp_path, study_with(), tmp_path / "plots")
    for name, words in (
        ("training_curves", "no training has logged a step yet"),
        ("repeat_factors", "no repeat factors were computed"),
        ("ap_and_images", "no run is scored yet"),
        ("ap_and_cost", "no run is scored yet"),
        ("precision_recall_mask", "no run has recorded curves of masks"),
    ):
        assert says(texts[name], words), name


def test_a_scored_run_without_the_sampler_says_what_is_missing(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    (tmp_path / "mini" / "repeat_factors" / "categories.csv").unlink()
    assert read_category_figures(tmp_path / "mini" / "repeat_factors") is None
    write_ap_and_images(rows_of(study, tmp_path, {}, NOW_S), {}, "segm", tmp_path)
    text = (tmp_path / "ap_and_images.svg").read_text()
    assert says(text, "nothing says how many training images categories have")


def test_damaged_tables_of_repeat_factors_are_an_error(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    put(tmp_path / "mini" / "repeat_factors" / "categories.csv", "category_id\n1\n")
    with pytest.raises(InputError, match=r"no readable tables of repeat factors: KeyError.*lvis_rcnn.repeat_factors"):
        read_category_figures(tmp_path / "mini" / "repeat_factors")


def test_restarts_and_lines_of_a_run_under_way_come_from_its_state(tmp_path):
    study = study_with()
    folder = put_everything(tmp_path, study)
    (folder / "train.json").unlink()
    (history,) = histories_of(study, tmp_path, {}, rows_of(study, tmp_path, {}, NOW_S))
    assert (history.name, history.restarts, len(history.lines)) == ("R-50-FPN", [20], 60)


def test_a_run_whose_state_is_gone_is_drawn_from_its_results(tmp_path):
    study = study_with()
    put(put_run(tmp_path, study) / "log.json", '{"step": 7, "loss": 1.0}\n')
    (history,) = histories_of(study, tmp_path, {}, rows_of(study, tmp_path, {}, NOW_S))
    assert [values.tolist() for values in history.values("loss")] == [[7.0], [1.0]]
    assert [len(values) for values in history.values("grad_norm")] == [0, 0]


def test_a_gradient_that_was_not_finite_leaves_a_gap(tmp_path):
    lines = [{"step": 1, "loss": 2.0, "grad_norm": None}, {"step": 2, "loss": 1.0, "grad_norm": 3.0}]
    history = History("R-50-FPN", lines, [])
    assert [values.tolist() for values in history.values("grad_norm")] == [[2.0], [3.0]]
    write_training_curves([history], tmp_path)
    assert says((tmp_path / "training_curves.svg").read_text(), "learning rate: not logged")


def test_intervals_are_drawn_where_they_are_recorded(tmp_path):
    study = study_with()
    intervals = {"resamples": 1000, "level": 0.95, "segm": {"AP": [0.1, 0.2]}}
    segm = {**dict.fromkeys(METRIC_NAMES, 0.15), "APr": None}
    put_everything(tmp_path, study, segm=segm, intervals=intervals)
    (row,) = rows_of(study, tmp_path, {}, NOW_S)
    basis = "95 % interval, over images"
    assert estimate(row, "segm", "AP") == Estimate(15.0, 10.0, 20.0, basis)
    assert estimate(row, "segm", "APf") == Estimate(15.0, 15.0, 15.0, "")
    assert estimate(row, "segm", "APr") is None
    for folder in ("once", "again"):
        write_ap_by_group([row], tmp_path / folder)
    assert says((tmp_path / "once" / "ap_by_group.svg").read_text(), f"Bars: {basis}")
    for name in ("ap_by_group.svg", "ap_by_group.png"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_seeds_become_mean_and_deviation(tmp_path):
    study = study_with(seeds=(0, 1, 2))
    for seed, ap in enumerate((0.10, 0.12, 0.14)):
        put_everything(tmp_path, study, seed=seed, ap=ap)
    (row,) = rows_of(study, tmp_path, {}, NOW_S)
    found = estimate(row, "bbox", "AP")
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((12.0, 10.0, 14.0))
    assert basis_sentence([found, None]) == "Bars: ± standard deviation over 3 seeds"
    assert basis_sentence([None]) == "No intervals were recorded"


def test_costs_name_their_devices_and_say_where_these_differ(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    (row,) = rows_of(study, tmp_path, {}, NOW_S)
    cost = cost_of(row)
    assert (cost.memory_gb, cost.fps, cost.device) == (0.876, 12.345, "cpu")
    assert devices_sentence(["cpu", None, "cpu"]) == "cpu"
    assert devices_sentence(["cpu", "H100"]) == "devices differ: cpu, H100"
    assert devices_sentence([None]) == "not measured"


def test_the_ap_of_a_category_is_the_mean_over_the_runs_that_define_it(tmp_path):
    study = study_with(seeds=(0, 1))
    put_everything(tmp_path, study)
    second = [{**CATEGORIES[0], "segm": 0.4}, {**CATEGORIES[1], "segm": None}, *CATEGORIES[2:]]
    put_everything(tmp_path, study, seed=1, per_category=second)
    (row,) = rows_of(study, tmp_path, {}, NOW_S)
    aps = category_aps(row, "segm")
    assert {key: None if ap is None else round(ap, 6) for key, (_, ap) in aps.items()} == {5: 30, 2: 40, 9: None, 7: 75}


def test_differences_are_of_categories_that_both_runs_define(tmp_path):
    before = CATEGORIES
    after = [{**category, "segm": 0.5} for category in CATEGORIES]
    pairs = paired_categories(before, after, "segm")
    assert [(name, group) for name, group, _ in pairs] == [("kite", "r"), ("cup", "r"), ("tree", "f")]
    assert [change for *_, change in pairs] == pytest.approx([30, 10, -25])
    write_category_differences(before, after, ("A", "B"), "segm", tmp_path)
    text = (tmp_path / "category_differences.svg").read_text()
    assert says(text, "mask AP of each category, B minus A")
    assert text.count("<!-- difference of mask AP, points -->") == 2
    assert says(text, "rare: mean +20.0, 2 of 2 gain")
    write_category_differences(before, [], ("A", "B"), "segm", tmp_path)
    assert says((tmp_path / "category_differences.svg").read_text(), "no category has mask AP in both")


def test_differences_of_metrics_are_shown_with_their_intervals(tmp_path):
    sure = Difference(0.1, 0.2, 0.1, (0.05, 0.15), 0.01, None, None)
    unsure = Difference(0.1, 0.2, 0.1, (-0.05, 0.25), 0.2, None, None)
    undefined = Difference(None, 0.2, None, None, None, None, None)
    metrics = {"AP": sure, "APr": unsure, "APc": undefined, "APf": sure}
    write_metric_differences({"bbox": metrics, "segm": metrics}, ("A", "B"), tmp_path)
    text = (tmp_path / "differences.svg").read_text()
    assert says(text, "B minus A, with 95 % intervals")
    assert says(text, "difference of mask AP, points")
    assert text.count("<!-- +10.0 -->") == 6


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


def test_curves_of_several_seeds_are_their_mean_and_the_title_says_so(tmp_path, monkeypatch):
    study = study_with(seeds=(0, 1))
    put_everything(tmp_path, study)
    halved = {**curve(), "all": {iou: (0.5 - 0.5 * RECALLS).tolist() for iou in ("0.5", "0.75", "0.5:0.95")}}
    put_everything(tmp_path, study, seed=1, curves={"bbox": halved, "segm": halved})
    (row,) = rows_of(study, tmp_path, {}, NOW_S)
    found = curves_of(row, "segm")
    assert found is not None
    assert found["all"]["0.5"] == pytest.approx(0.75 * (1 - RECALLS))
    assert (found["c"]["0.5"], found["r"]["0.5"]) == (pytest.approx(1 - RECALLS), None)
    titles = []
    monkeypatch.setattr(plots, "write_precision_recall", lambda curves, *words: titles.append(words[:2]))
    write_precision_recalls([row], tmp_path)
    assert titles == [("boxes", "categories and seeds"), ("masks", "categories and seeds")]


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points=POINTS)
def test_the_frontier_is_what_nothing_beats(points):
    costs, gains = np.array(points, np.float64).T
    expected = [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]
    assert on_frontier(costs, gains).tolist() == expected


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_smoothing_is_the_mean_of_the_neighbours(values):
    half = width_of(len(values)) // 2
    expected = [np.mean(values[max(at - half, 0) : at + half + 1]) for at in range(len(values))]
    np.testing.assert_allclose(smoothed(np.array(values)), expected, atol=1e-6)


def test_only_the_shortest_logs_are_not_smoothed():
    assert [width_of(number) for number in (3, 7, 8, 16, 26, 50, 200, 1000)] == [1, 1, 3, 5, 5, 5, 9, 41]


def test_a_short_log_is_shown_smoothed_and_the_titles_say_over_how_much(tmp_path):
    logged = History("R-50-FPN", [{"step": step, "loss": float(step % 2), "loss_cls": 1.0} for step in range(26)], [])
    axes = Figure().subplots()
    draw_history(axes, [logged], "loss", "total loss")
    raw, strong = axes.lines
    assert (raw.get_alpha(), strong.get_alpha()) == (0.4, None)
    assert (np.ptp(raw.get_ydata()), np.ptp(strong.get_ydata()[2:-2])) == pytest.approx((1, 0.2))
    write_training_curves([logged], tmp_path)
    write_training_losses([logged], tmp_path)
    for name in ("training_curves", "training_losses"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert says(text, "Pale: as logged. Strong: mean over 5 lines of the log.")


def looks_of(histories: list[History]) -> list[tuple[str, str, str]]:
    """Colour, marker and line of each run."""
    axes = Figure().subplots()
    draw_history(axes, histories, "loss", "total loss")
    return [(line.get_color(), line.get_marker(), str(line._unscaled_dash_pattern)) for line in axes.lines[1::2]]  # type: ignore[attr-defined]


def test_every_run_looks_different_and_the_legend_says_how(tmp_path):
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    several = [History(f"net {place}", lines, [], place, seed) for place in range(4) for seed in range(5)]
    assert len(set(looks_of(several))) == 20
    assert len({look[:2] for look in looks_of(several)}) == 4
    assert len({look[2] for look in looks_of(several)}) == 5
    for at in range(3):
        assert len({look[at] for look in looks_of(several[:5])}) == 5
    for histories, said in (
        (several, ("net 3", "seed 4")),
        (several[:5], ("net 0, seed 4",)),
        (several[:1], ("net 0",)),
    ):
        write_training_curves(histories, tmp_path)
        assert all(says((tmp_path / "training_curves.svg").read_text(), words) for words in said)


@settings(max_examples=20)
@given(data=st.data(), categories=st.integers(1, 6))
def test_the_mean_curve_has_the_ap_of_its_categories_as_its_mean(data, categories):
    values = data.draw(st.lists(st.sampled_from([UNDEFINED, 0.0, 0.25, 1.0]), min_size=categories, max_size=categories))
    frequencies = data.draw(st.lists(st.sampled_from("rcf"), min_size=categories, max_size=categories))
    precision = np.empty((10, 101, categories, 4))
    precision[:] = np.array(values)[:, None]
    precision[3:, :, np.array(values) > 0] *= 0.5
    curves = mean_curves(precision, frequencies)
    aps = ap_of_categories(precision)
    for group, of_ious in curves.items():
        members = [ap for ap, of in zip(aps, frequencies, strict=True) if ap is not None and group in ("all", of)]
        if not members:
            assert set(of_ious.values()) == {None}
            continue
        assert np.mean(of_ious["0.5:0.95"]) == pytest.approx(np.mean(members), abs=1e-5)
        assert np.mean(of_ious["0.5"]) == pytest.approx(
            np.mean([v for v, of in zip(values, frequencies, strict=True) if v > UNDEFINED and group in ("all", of)]),
            abs=1e-5,
        )


def test_a_row_without_curves_does_not_give_its_colour_to_the_next():
    axes = Figure().subplots()
    draw_precision(axes, {"first": None, "second": curve()}, "all", "0.5")
    assert [line.get_color() for line in axes.lines] == [style(1)["color"]]
    draw_precision(Figure().subplots(), {"first": None}, "all", "0.5")


def test_the_command_draws_without_torch(tmp_path):
    (tmp_path / "results").mkdir()
    code = "import sys; from lvis_rcnn import report; report.main(); sys.exit('torch' in sys.modules)"

    def call(results: str) -> subprocess.CompletedProcess[str]:
        study = str(REPOSITORY / "configs" / "smoke.yaml")
        words = ["--study", study, "--results", str(tmp_path / results), "--out", str(tmp_path / "out")]
        command = [sys.executable, "-c", code, "plots", *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    done = call("results")
    assert (done.returncode, done.stderr.splitlines()[-1].split(": ")[0]) == (0, "wrote the plots of smoke")
    done = call("nowhere")
    assert done.returncode == 2
    assert "nowhere: no such folder; fix: name the folder the steps wrote into" in done.stderr


def test_panels_that_share_a_scale_hold_the_points_of_all(tmp_path, monkeypatch):
    study = study_with(backbones=["r50"])
    folder = put_run(tmp_path, study, ap=0.1)
    high = {**dict.fromkeys(METRIC_NAMES, 0.9)}
    put_metrics(folder, ap=0.1, segm=high)
    limits = []
    monkeypatch.setattr(row_plots, "legend_below", lambda figure, panels: limits.append(panels[1].get_ylim()))
    write_ap_by_group(rows_of(study, tmp_path, {}, NOW_S), tmp_path)
    ((low, top),) = limits
    assert low == 0
    assert top > 90
