"""Plots show what the records say, are the same every time, and say why where there is nothing to draw."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lvis_rcnn.config.study import Study, read_yaml
from lvis_rcnn.dataset.statistics import category_statistics, write_statistics
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, RECALLS, UNDEFINED, ap_of_categories, mean_curves
from lvis_rcnn.reporting import plots, plots_of, score_plots
from lvis_rcnn.reporting.figures import style
from lvis_rcnn.reporting.plots import (
    History,
    draw_history,
    histories_of,
    read_category_figures,
    smoothed,
    width_of,
    write_plots,
    write_training_curves,
    write_training_losses,
)
from lvis_rcnn.reporting.rows import rows_of
from lvis_rcnn.reporting.score_plots import (
    CategoryFigures,
    Estimate,
    basis_sentence,
    category_aps,
    cost_of,
    curves_of_row,
    devices_sentence,
    draw_frontier,
    draw_instances,
    draw_precision,
    estimate,
    on_frontier,
    reach_of,
    write_ap_and_cost,
    write_ap_and_images,
    write_ap_by_group,
    write_precision_recall,
    write_sampling_figure,
)
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY
from tests.helpers.small_dataset import build, small_dataset
from tests.helpers.study_records import (
    CATEGORIES,
    MINI,
    curve,
    point,
    put,
    put_everything,
    put_infer,
    put_measured,
    put_metrics,
    put_run,
    put_so_far,
    put_speed,
    put_train,
    shows,
    study_with,
)


def drawn(results: Path, study: Study, out: Path) -> dict[str, str]:
    """The texts of all plots of a study, by name."""
    write_plots(study, Path("study.yaml"), results, out)
    names = {*plots_of(calibrated=bool(study.calibrations), on_the_way=False)}
    assert {path.stem for path in out.glob("*.png")} == {path.stem for path in out.glob("*.svg")} == names
    return {path.stem: path.read_text() for path in out.glob("*.svg")}


def of_points(results: Path, study: Study, out: Path) -> str:
    """The text of the plot of AP against steps."""
    write_plots(study, Path("study.yaml"), results, out)
    assert {path.stem for path in out.glob("*.png")} == {*plots_of(calibrated=False, on_the_way=True)}
    return (out / "ap_and_steps.svg").read_text()


@pytest.mark.slow
def test_a_study_with_points_has_a_plot_of_ap_against_steps(tmp_path):
    study = study_with(evaluation={"score_at_steps": [20, 40]})
    assert shows(of_points(tmp_path, study, tmp_path / "none"), "no weights of an unfinished training are scored yet")
    put_everything(tmp_path, study, images=100)
    put_train(tmp_path, study, steps=60)
    put_so_far(tmp_path, study, point(study, 20, 0.1), point(study, 40, 0.2))
    text = of_points(tmp_path, study, tmp_path / "some")
    assert all(shows(text, words) for words in ("R-50-FPN", "box AP, percent", "mask AP, percent", "final model"))


@pytest.mark.parametrize(("images", "joined"), [(100, True), (5000, False)])
def test_the_final_model_is_joined_to_points_of_the_same_images(tmp_path, images, joined):
    study = study_with(evaluation={"score_at_steps": [20, 40]})
    folder = put_train(tmp_path, study, steps=60, run_digest="abc")
    put_infer(folder, study)
    put_metrics(folder, 0.3, images=images)
    put_so_far(tmp_path, study, point(study, 20, 0.1), point(study, 40, 0.2))
    (row,) = rows_of(study, tmp_path, {})
    lines = plots.so_far_lines(row.runs[0])
    assert [(line["step"], line.get("bbox"), line.get("segm")) for line in lines[:2]] == [(20, 10, 5), (40, 20, 10)]
    assert (lines[2]["step"], lines[2]["final_bbox"], lines[2]["final_segm"]) == (60, 30, 15)
    assert (lines[2].get("bbox") == 30) == joined


@pytest.mark.slow
def test_a_finished_study_has_every_plot_the_same_every_time_whatever_a_user_has_set(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    texts = drawn(tmp_path, study, tmp_path / "once")
    for name, words in (
        *(("training_curves", "total loss"), ("training_curves", "restarted"), ("training_losses", "loss_cls")),
        ("repeat_factors", "threshold 0.3, an epoch of 99 from 80 images"),
        *(("ap_and_images", "training images with the category"), ("ap_by_group", "mask AP, percent")),
        *(("ap_and_cost", "time of an image, milliseconds"), ("ap_and_cost", "training memory, GB")),
        ("precision_recall_box", "Precision of boxes at each recall, mean over categories"),
        ("precision_recall_mask", "Nothing is found of: rare categories"),
        ("row_differences", "fewer than two rows can be compared: scored, with resamples"),
    ):
        assert shows(texts[name], words), (name, words)
    assert all(shows(texts[name], "R-50-FPN") for name in {*texts} - {"repeat_factors", "row_differences"})
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "none"}):
        drawn(tmp_path, study, tmp_path / "again")
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_lines_of_groups_stand_at_the_mean_of_their_categories(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    rows = rows_of(study, tmp_path, {})
    counted = read_category_figures(tmp_path / "mini" / "repeat_factors")
    assert counted is not None
    write_ap_and_images(rows, counted[1], "segm", tmp_path)
    text = (tmp_path / "ap_and_images.svg").read_text()
    assert shows(text, "30.0")  # 20 and 40
    assert shows(text, "75.0")
    assert shows(text, "not shown: 1 without validation objects")


def test_plots_of_nothing_say_why(tmp_path):
    texts = drawn(tmp_path, study_with(), tmp_path / "plots")
    for name, words in (
        ("training_curves", "no training has logged a step yet"),
        ("repeat_factors", "no repeat factors have been computed"),
        ("ap_and_images", "no run is scored yet"),
        ("ap_and_cost", "no run is scored yet"),
        ("precision_recall_mask", "no run has recorded curves of masks"),
    ):
        assert shows(texts[name], words), name


def test_calibration_has_a_plot_where_scores_are_calibrated(tmp_path):
    inference = {**read_yaml(MINI)["inference"], "calibration": {"method": "norcal", "gamma": 0.6}}
    study = study_with(inference=inference)
    assert shows(
        drawn(tmp_path, study, tmp_path / "plots")["calibration"],
        "the training images of categories are not counted yet",
    )
    store = build(tmp_path, small_dataset())
    write_statistics(tmp_path / "mini" / "calibration.csv", store, category_statistics(store))
    text = drawn(tmp_path, study, tmp_path / "plots")["calibration"]
    assert shows(text, "NorCal, gamma 0.6")
    assert shows(text, "fractal dimension of their centres")
    (tmp_path / "mini" / "calibration.csv").write_text("name\n")
    with pytest.raises(InputError, match="no readable statistics of categories"):
        drawn(tmp_path, study, tmp_path / "plots")


def test_a_scored_run_without_the_sampler_says_what_is_missing(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    (tmp_path / "mini" / "repeat_factors" / "categories.csv").unlink()
    assert read_category_figures(tmp_path / "mini" / "repeat_factors") is None
    write_ap_and_images(rows_of(study, tmp_path, {}), {}, "segm", tmp_path)
    assert "the training images of each category" in (tmp_path / "ap_and_images.svg").read_text()


def test_damaged_tables_of_repeat_factors_are_an_error(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    put(tmp_path / "mini" / "repeat_factors" / "categories.csv", "category_id\n1\n")
    with pytest.raises(InputError, match=r"tables of repeat factors: KeyError.*lvis_rcnn repeat_factors"):
        read_category_figures(tmp_path / "mini" / "repeat_factors")


def test_restarts_and_lines_of_a_run_under_way_come_from_its_state(tmp_path):
    study = study_with()
    folder = put_everything(tmp_path, study)
    (folder / "train.json").unlink()
    (history,) = histories_of(study, tmp_path, {}, rows_of(study, tmp_path, {}))
    assert (history.name, history.restarts, len(history.lines)) == ("R-50-FPN", [20], 60)


def test_a_run_whose_state_is_gone_is_drawn_from_its_results(tmp_path):
    study = study_with()
    put(put_run(tmp_path, study) / "log.json", '{"step": 7, "loss": 1.0}\n')
    (history,) = histories_of(study, tmp_path, {}, rows_of(study, tmp_path, {}))
    assert [values.tolist() for values in history.values("loss")] == [[7.0], [1.0]]
    assert [len(values) for values in history.values("grad_norm")] == [0, 0]


def test_a_gradient_that_was_not_finite_leaves_a_gap(tmp_path):
    lines = [{"step": 1, "loss": 2.0, "grad_norm": None}, {"step": 2, "loss": 1.0, "grad_norm": 3.0}]
    history = History("R-50-FPN", lines, [])
    assert [values.tolist() for values in history.values("grad_norm")] == [[2.0], [3.0]]
    write_training_curves([history], tmp_path)
    assert shows((tmp_path / "training_curves.svg").read_text(), "learning rate: not logged")


def test_intervals_are_drawn_where_they_are_recorded(tmp_path):
    study = study_with()
    intervals = {"resamples": 1000, "level": 0.95, "segm": {"AP": [0.1, 0.2]}}
    segm = {**dict.fromkeys(METRIC_NAMES, 0.15), "APr": None}
    put_everything(tmp_path, study, segm=segm, intervals=intervals)
    (row,) = rows_of(study, tmp_path, {})
    basis = "95 % interval (over images)"
    assert estimate(row, "segm", "AP") == Estimate(15.0, 10.0, 20.0, basis)
    assert estimate(row, "segm", "APf") == Estimate(15.0, 15.0, 15.0, "")
    assert estimate(row, "segm", "APr") is None
    write_ap_by_group([row], tmp_path)
    text = (tmp_path / "ap_by_group.svg").read_text()
    assert shows(text, f"Error bars: {basis}")
    kept = study.inference.detections_per_image
    assert shows(text, f"The detector kept at most {kept} detections an image; 300 would count")


def test_seeds_become_mean_and_deviation(tmp_path):
    study = study_with(seeds=(0, 1, 2))
    for seed, ap in enumerate((0.10, 0.12, 0.14)):
        put_everything(tmp_path, study, seed=seed, ap=ap)
    (row,) = rows_of(study, tmp_path, {})
    found = estimate(row, "bbox", "AP")
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((12.0, 10.0, 14.0))
    assert basis_sentence([found, None]) == "Error bars: ± standard deviation over 3 seeds"
    assert basis_sentence([None]) == "No intervals were recorded"


def test_costs_name_their_devices_and_say_where_these_differ_or_other_work_ran(tmp_path):
    study = study_with(("r50", "r101", "x101_32x4d"))
    assert devices_sentence(rows_of(study, tmp_path, {}), "fps") == "not measured"
    for backbone in study.backbones:
        put_run(tmp_path, study, backbone)
        put_speed(tmp_path / "mini" / backbone, study, (500, 550, 600))
    assert devices_sentence(rows_of(study, tmp_path, {}), "fps") == "cpu, CPU time"
    assert devices_sentence(rows_of(study, tmp_path, {}), "memory_gb") == "cpu, resident memory"
    put_measured(tmp_path / "mini" / "r50", study, device="H100")
    put_speed(tmp_path / "mini" / "r101", study, (500, 550, 600), other_cores=2.0)
    rows = rows_of(study, tmp_path, {})
    assert devices_sentence(rows, "fps") == "devices differ: H100; cpu, CPU time; other work ran: R-101-FPN"
    assert devices_sentence(rows, "memory_gb") == "devices differ: H100; cpu, resident memory"
    # Without quartiles, or of resident memory, a cost has no error bar and ranks nothing; a GPU's memory is exact.
    assert [cost_of(row, "fps") for row in rows[:2]] == [
        Estimate(1000 / 12.345, 1000 / 12.345, 1000 / 12.345, ""),
        None,
    ]
    # A few slow images take the mean out of the quartiles, and not the median, which is drawn.
    put_speed(tmp_path / "mini" / "x101_32x4d", study, (500, 550, 600), fps=1 / 0.7)
    timed = cost_of(rows_of(study, tmp_path, {})[2], "fps")
    assert timed is not None
    assert (timed.low, timed.value, timed.high) == pytest.approx((500, 550, 600))
    memory = [cost_of(row, "memory_gb") for row in rows]
    assert [one.spread for one in memory if one] == [(0.876, 0.876), (-np.inf, np.inf), (-np.inf, np.inf)]


def test_what_stands_below_an_axis_is_no_wider_than_it(tmp_path):
    study = study_with(("r50", "r101", "x101_32x4d", "x101_64x4d"))
    for backbone in study.backbones:
        put_run(tmp_path, study, backbone)
        put_speed(tmp_path / "mini" / backbone, study, (500, 550, 600), other_cores=2.0 * (backbone != "r50"))
    write_ap_and_cost(rows_of(study, tmp_path, {}), tmp_path)
    text = (tmp_path / "ap_and_cost.svg").read_text()
    for line in ("(cpu, CPU time; other work ran: R-101-FPN,", "X-101-32x4d-FPN, X-101-64x4d-FPN)"):
        assert shows(text, line)


@pytest.mark.parametrize(
    ("others", "reason"), [(2.0, "other work ran in all measurements"), (None, "not measured for")]
)
def test_a_panel_without_a_speed_says_why(tmp_path, others, reason):
    study = study_with(("r50",))
    put_run(tmp_path, study, "r50")
    if others:
        put_speed(tmp_path / "mini" / "r50", study, (500, 550, 600), other_cores=others)
    axes = Figure().subplots()
    scored = Estimate(1, 2, 3, "") if others else None
    draw_frontier(axes, rows_of(study, tmp_path, {}), "fps", [scored])
    assert reason in " ".join(text.get_text() for text in axes.texts)


def test_the_ap_of_a_category_is_the_mean_over_the_runs_that_define_it(tmp_path):
    study = study_with(seeds=(0, 1))
    put_everything(tmp_path, study)
    second = [{**CATEGORIES[0], "segm": 0.4}, {**CATEGORIES[1], "segm": None}, *CATEGORIES[2:]]
    put_everything(tmp_path, study, seed=1, per_category=second)
    (row,) = rows_of(study, tmp_path, {})
    aps = category_aps(row, "segm")
    assert {key: None if ap is None else round(ap, 6) for key, (_, ap) in aps.items()} == {5: 30, 2: 40, 9: None, 7: 75}


def test_curves_of_several_seeds_are_their_mean_and_the_title_says_so(tmp_path):
    study = study_with(seeds=(0, 1))
    put_everything(tmp_path, study)
    halved = {**curve(), "all": {iou: (0.5 - 0.5 * RECALLS).tolist() for iou in ("0.5", "0.75", "0.5:0.95")}}
    put_everything(tmp_path, study, seed=1, curves={"bbox": halved, "segm": halved})
    (row,) = rows_of(study, tmp_path, {})
    found = curves_of_row(row, "segm")
    assert found is not None
    assert found["all"]["0.5"] == pytest.approx(0.75 * (1 - RECALLS))
    assert (found["c"]["0.5"], found["r"]["0.5"]) == (pytest.approx(1 - RECALLS), None)
    write_precision_recall([row], "segm", tmp_path)
    text = (tmp_path / "precision_recall_mask.svg").read_text()
    assert shows(text, "Precision of masks at each recall, mean over categories and seeds")


def bars(*ends: tuple[float, float]) -> list[Estimate]:
    return [Estimate((low + high) / 2, low, high, "bar") for low, high in ends]


BARS = st.tuples(st.integers(0, 12), st.integers(0, 4)).map(lambda found: (found[0], sum(found)))
POINTS = st.lists(st.tuples(BARS, BARS, st.sampled_from("ab")), min_size=1, max_size=8)


@given(points=POINTS)
def test_a_point_is_beaten_only_where_both_differences_exceed_the_error_bars(points):
    costs, gains, sorts = zip(*points, strict=True)
    unbeaten, is_frontier = on_frontier(bars(*costs), bars(*gains), sorts)

    def beats(one, other):
        return one[2] == other[2] and one[0][1] < other[0][0] and one[1][0] > other[1][1]

    assert unbeaten.tolist() == [not any(beats(other, one) for other in points) for one in points]
    kept = sorted(one for one, on in zip(points, unbeaten, strict=True) if on)
    # A frontier rises from point to point, its error bars apart on both axes; else nothing is drawn.
    rises = all(
        one[2] == other[2] and one[0][1] < other[0][0] and one[1][1] < other[1][0] for one, other in pairwise(kept)
    )
    assert is_frontier == rises


def test_points_without_error_bars_rank_nothing():
    costs, gains = [Estimate(cost, cost, cost, "") for cost in (1, 2)], bars((5, 6), (1, 2))
    assert on_frontier(costs, gains, "aa")[0].tolist() == [True, True]
    assert on_frontier(costs, gains, "aa")[1] is False
    assert on_frontier(bars((1, 1), (2, 2)), gains, "aa")[0].tolist() == [True, False]


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
        assert shows(text, "Light: raw; bold: moving average (5 log lines)")


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
        assert all(shows((tmp_path / "training_curves.svg").read_text(), words) for words in said)


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


def axes_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> list[Axes]:
    """The panels that a plot was drawn on."""
    seen: list[Axes] = []
    monkeypatch.setattr(score_plots, "legend_below", lambda figure, panels: seen.extend(panels))
    draw()
    return seen


def test_precision_has_panels_only_where_something_is_found(tmp_path, monkeypatch):
    study, zero = study_with(), dict.fromkeys(("0.5", "0.75", "0.5:0.95"), [0.0] * len(RECALLS))
    early = {iou: np.where(RECALLS < 0.31, 0.5, 0).tolist() for iou in zero}
    lines = {**curve(), "all": early, "c": zero, "f": early}
    put_everything(tmp_path, study, curves={"bbox": lines, "segm": {**lines, "all": zero, "f": zero}})
    rows = rows_of(study, tmp_path, {})
    panels = axes_of(tmp_path, monkeypatch, lambda: write_precision_recall(rows, "bbox", tmp_path))
    assert [axes.get_ylabel() for axes in panels[::2]] == [
        "all categories\nprecision",
        "frequent categories\nprecision",
    ]
    assert panels[0].get_xlim() == pytest.approx((0, 0.3))
    # The line ends where it reaches 0.
    assert max(panels[0].lines[0].get_xdata()) == pytest.approx(0.31)
    assert shows(
        (tmp_path / "precision_recall_box.svg").read_text(), "Nothing is found of: rare categories, common categories"
    )
    write_precision_recall(rows, "segm", tmp_path)
    assert "nothing is found at IoU 0.5" in (tmp_path / "precision_recall_mask.svg").read_text()


def test_no_axis_of_ap_begins_below_0(tmp_path, monkeypatch):
    study = study_with()
    intervals = {"resamples": 1000, "level": 0.95, **{kind: {"AP": [0.0, 0.004]} for kind in ("bbox", "segm")}}
    low = dict.fromkeys(METRIC_NAMES, 0.002)
    categories = [{**one, "segm": 0.0, "bbox": 0.0} for one in CATEGORIES]
    put_everything(tmp_path, study, bbox=low, segm=low, intervals=intervals, per_category=categories)
    rows = rows_of(study, tmp_path, {})
    for draw in (
        lambda: write_ap_and_cost(rows, tmp_path),
        lambda: write_ap_by_group(rows, tmp_path),
        lambda: write_ap_and_images(rows, {5: 3, 2: 9, 7: 200}, "segm", tmp_path),
    ):
        panels = axes_of(tmp_path, monkeypatch, draw)
        assert {axes.get_ylim()[0] for axes in panels if axes.axison} == {0}


def test_means_of_groups_are_written_above_all_points(tmp_path, monkeypatch):
    study = study_with()
    put_everything(tmp_path, study, per_category=[{**one, "segm": 0.9} for one in CATEGORIES])
    rows, counts = rows_of(study, tmp_path, {}), {5: 3, 2: 9, 9: 50, 7: 200}
    panels = axes_of(tmp_path, monkeypatch, lambda: write_ap_and_images(rows, counts, "segm", tmp_path))
    assert [text.get_text() for text in panels[0].texts] == ["90.0"] * 3
    low, top = panels[0].get_ylim()
    assert (90 - low) / (top - low) < 0.88


def test_a_row_without_curves_does_not_give_its_colour_to_the_next():
    axes = Figure().subplots()
    draw_precision(axes, {"first": None, "second": curve()}, "all", "0.5")
    assert [line.get_color() for line in axes.lines] == [style(1)["color"]]
    assert reach_of(None, "all") == 0


def test_panels_that_share_a_scale_hold_the_points_of_all(tmp_path, monkeypatch):
    study = study_with(backbones=["r50"])
    folder = put_run(tmp_path, study, ap=0.1)
    high = {**dict.fromkeys(METRIC_NAMES, 0.9)}
    put_metrics(folder, ap=0.1, segm=high)
    limits = []
    monkeypatch.setattr(score_plots, "legend_below", lambda figure, panels: limits.append(panels[1].get_ylim()))
    write_ap_by_group(rows_of(study, tmp_path, {}), tmp_path)
    ((low, top),) = limits
    assert low == 0
    assert top > 90


def test_a_loss_that_is_added_has_a_panel_and_a_mark_in_the_log_has_none(tmp_path):
    line = {"step": 1, "loss": 2.0, "loss_cls": 1.0, "loss_new": 1.0, "loss_spike": True}
    write_training_losses([History("net", [line, line | {"step": 2}], [])], tmp_path)
    text = (tmp_path / "training_losses.svg").read_text()
    assert [shows(text, name) for name in ("loss_cls", "loss_new", "loss_spike")] == [True, True, False]


FIGURES = CategoryFigures(
    frequencies=np.array(["r", "c", "f", "r"]),
    image_counts=np.array([3, 40, 400, 0]),
    factors=np.array([4.5, 1.2, 1.0, 1.0]),
    instances_once=np.array([10, 100, 1000, 0]),
    instances_oversampled=np.array([45.0, 130.0, 1100.0, 0.0]),
)


def test_the_sampler_has_points_and_no_bars_on_its_logarithmic_axis():
    axes = Figure().subplots()
    draw_instances(axes, FIGURES)
    assert axes.get_yscale() == "log"
    assert list(axes.patches) == []
    points = [tuple(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 1]
    assert points == [(10,), (45,), (100,), (130,), (1000,), (1100,)]
    empty = dataclasses.replace(FIGURES, instances_once=np.array([0, 100, 1000, 0]))
    axes = Figure().subplots()
    draw_instances(axes, empty)
    assert [text.get_text() for text in axes.texts] == ["none", "x 1.30", "x 1.10"]


def test_the_plot_of_the_sampler_shows_the_gains_and_is_the_same_every_time(tmp_path):
    for folder in ("once", "again"):
        write_sampling_figure(FIGURES, "train.json: threshold 0.001", tmp_path / folder)
    for name in ("repeat_factors.png", "repeat_factors.svg"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    text = (tmp_path / "once" / "repeat_factors.svg").read_text()
    for words in ("train.json: threshold 0.001", "x 4.50", "x 1.30", "x 1.10", "rare", "common", "frequent"):
        assert shows(text, words)
    with Image.open(tmp_path / "once" / "repeat_factors.png") as picture:
        assert picture.size == (1152, 512)


OFFICIAL = "from lvis_rcnn.evaluation.official import official_package as it\nwith it(): pass"


@pytest.mark.parametrize("code", ["import lvis_rcnn.reporting.score_plots", OFFICIAL])
def test_the_backend_of_a_notebook_is_not_looked_for(code):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
