"""The plots of a study from whatever exists, and the training curves. A plot without data says why."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel, known_models
from lvis_rcnn.reporting import plots_of
from lvis_rcnn.reporting.difference_plots import write_row_differences
from lvis_rcnn.reporting.figures import LEGEND_LINE, LINES, figure_file, legend_below, show_reason, style, write_reason
from lvis_rcnn.reporting.rows import TRAINED, Row, rows_of
from lvis_rcnn.reporting.score_plots import (
    CategoryFigures,
    write_ap_and_cost,
    write_ap_and_images,
    write_ap_by_group,
    write_calibration,
    write_precision_recall,
    write_sampling_figure,
)
from lvis_rcnn.runs.attempts import read_attempts
from lvis_rcnn.runs.paths import first_repeat_factors
from lvis_rcnn.runs.records import RunRecord, read_json_object, read_log
from lvis_rcnn.runs.shapes import RepeatFactors
from lvis_rcnn.runs.states import state_dirs
from lvis_rcnn.system.cli import InputError

# A smoothed value is the mean over this share of the log, but over at least so many lines, since the embedded studies
# log few; and over a quarter at most, or a short log would lose its shape.
SMOOTHED_SHARE, LEAST_SMOOTHED, MOST_SHARE = 0.04, 4, 0.25

AP_LABELS = {"bbox": "box AP, percent", "segm": "mask AP, percent"}
MANY_RUNS = 9
"""From this number of runs on, their lines get fewer markers."""
LOSS_PANELS = 3
"""Panels of losses beside each other."""


def write_plots(study: Study, study_file: Path, results: Path, out: Path) -> None:
    """Write the plots of a study, those of :func:`plots_of`, into ``out``.

    Args:
        study: what should have been run.
        study_file: its file, which its zoo is relative to.
        results: folder that all steps write into.
        out: folder of the plots.

    Raises:
        InputError: tables of repeat factors or of categories are damaged.
    """
    zoo = known_models(study, study_file)
    rows = [row for row in rows_of(study, results, zoo) if row.runs]
    histories = histories_of(study, results, zoo, rows)
    tables = first_repeat_factors(study, results)
    figures, image_counts = read_category_figures(tables) or (None, {})
    writers: dict[str, Callable[[], None]] = {
        "ap_by_group": lambda: write_ap_by_group(rows, out),
        "row_differences": lambda: write_row_differences(rows, out),
        "ap_and_images": lambda: write_ap_and_images(rows, image_counts, "segm", out),
        "ap_and_cost": lambda: write_ap_and_cost(rows, out),
        "precision_recall_box": lambda: write_precision_recall(rows, "bbox", out),
        "precision_recall_mask": lambda: write_precision_recall(rows, "segm", out),
        "training_curves": lambda: write_training_curves(histories, out),
        "training_losses": lambda: write_training_losses(histories, out),
        "repeat_factors": lambda: write_repeat_factors(figures, tables, out),
        "calibration": lambda: write_calibration(results / study.study / "calibration.csv", study.calibrations, out),
        "ap_and_steps": lambda: write_ap_and_steps(rows, out),
    }
    for name in plots_of(calibrated=bool(study.calibrations), on_the_way=study.evaluation.scores_on_the_way):
        writers[name]()


@dataclass(frozen=True)
class History:
    """What a training run has logged."""

    name: str
    lines: Sequence[Mapping[str, Any]]
    """The lines of its log, as ``training.log`` writes them."""
    restarts: Sequence[int]
    """Steps that were done when it was restarted."""
    place: int = 0
    """Position of its row in the study."""
    seed: int = 0

    def values(self, key: str) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
        """Steps and values of the lines that hold a number under ``key``."""
        found = [(line["step"], line[key]) for line in self.lines if isinstance(line.get(key), int | float)]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return steps, values


def histories_of(study: Study, results: Path, zoo: Mapping[str, ZooModel], rows: Sequence[Row]) -> list[History]:
    """What each training has logged, with its restarts; that of an unfinished run is read from its state folder."""
    histories = []
    for place, row in enumerate(row for row in rows if row.source == TRAINED):
        for run in row.runs:
            assert run.seed is not None
            if run.uses:
                continue
            state_dir, _ = state_dirs(study, results, row.name, run.seed, zoo)
            lines = read_log((state_dir or run.folder) / "log.json")
            attempts = read_attempts(state_dir) if state_dir else []
            restarts = [attempt.begin.step for attempt in attempts[1:]]
            histories.append(History(row.title, lines, restarts, place, run.seed))
    return histories


def read_category_figures(folder: Path) -> tuple[CategoryFigures, dict[int, int]] | None:
    """The sampler's figures of each category, and training images by category id; None where there are no tables."""
    try:
        with (folder / "categories.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        figures = CategoryFigures(
            frequencies=np.array([row["frequency"] for row in rows]),
            image_counts=np.array([int(row["image_count"]) for row in rows]),
            factors=np.array([float(row["factor"]) for row in rows]),
            instances_once=np.array([int(row["instance_count"]) for row in rows]),
            instances_oversampled=np.array([float(row["instances_in_epoch"]) for row in rows]),
        )
        return figures, {int(row["category_id"]): int(row["image_count"]) for row in rows}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        fix = "write them again with python -m lvis_rcnn repeat_factors"
        raise InputError(str(folder), f"no readable tables of repeat factors: {error!r}", fix=fix) from None


def write_repeat_factors(figures: CategoryFigures | None, tables: Path, out: Path) -> None:
    """Write repeat_factors.{png,svg} from the tables that the sampler wrote."""
    if figures is None:
        return write_reason(out / "repeat_factors", "no repeat factors have been computed")
    summary = read_json_object(tables / "summary.json", RepeatFactors)
    threshold = "no threshold" if summary.get("threshold") is None else f"threshold {summary['threshold']:g}"
    if (frequency := summary.get("frequency", "image")) != "image":
        threshold += f" on the {frequency} frequency"
    length, kept = summary.get("expected_epoch_length", 0), summary.get("images_kept", 0)
    write_sampling_figure(figures, f"{threshold}, an epoch of {length:,.0f} from {kept:,} images", out)


def write_training_curves(histories: Sequence[History], out: Path) -> None:
    """Write training_curves.{png,svg}: total loss, gradient norm, learning rate and speed of all runs."""
    if not any(history.lines for history in histories):
        return write_reason(out / "training_curves", "no training has logged a step yet")
    with figure_file(out / "training_curves", height_in=5.2) as figure:
        (loss, norm), (rate, speed) = figure.subplots(2, 2)
        draw_history(loss, histories, "loss", "total loss")
        label_runs(loss, histories)
        draw_restarts(loss, histories)
        draw_history(norm, histories, "grad_norm", "gradient norm")
        draw_history(rate, histories, "lr", "learning rate", smooth=False)
        draw_history(speed, histories, "images_per_s", "images per second")
        norm.set_yscale("log")
        for axis_format in (norm.yaxis.set_major_formatter, norm.yaxis.set_minor_formatter):
            axis_format(StrMethodFormatter("{x:g}"))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        begin_at_zero(speed)
        legend_below(figure, [loss])
        figure.suptitle(smoothing_sentence(histories))


def write_ap_and_steps(rows: Sequence[Row], out: Path) -> None:
    """Write ap_and_steps.{png,svg}: box and mask AP of weights that trainings kept, and of the final ones.

    A final AP is joined to the line only where it is of the same images.
    """
    histories = [
        History(row.title, so_far_lines(run), (), place, run.seed or 0)
        for place, row in enumerate(row for row in rows if row.source == TRAINED)
        for run in row.runs
        if run.so_far
    ]
    if not histories:
        return write_reason(out / "ap_and_steps", "no weights of an unfinished training are scored yet")
    with figure_file(out / "ap_and_steps", height_in=3.2) as figure:
        for axes, (name, label) in zip(figure.subplots(1, 2), AP_LABELS.items(), strict=True):
            for history in histories:
                look = look_of(history, histories)
                axes.plot(*history.values(name), **look, markersize=4)
                axes.plot(*history.values(f"final_{name}"), **look | {"linestyle": ""}, markersize=8, fillstyle="none")
            axes.set(xlabel="optimizer steps", ylabel=label)
            axes.set_xlim(left=0)
            begin_at_zero(axes)
        label_runs(axes, histories)
        if any(len(history.values(f"final_{name}")[0]) for history in histories for name in AP_LABELS):
            ring = {"linestyle": "", "marker": "o", "markersize": 8, "fillstyle": "none"}
            axes.plot([], [], color="0.3", **ring, label="final model")
        legend_below(figure, [axes])


def so_far_lines(run: RunRecord) -> list[dict[str, Any]]:
    """The AP of a run in percent, by steps, as a log has lines; that of its final model under names of its own."""
    lines: list[dict[str, Any]] = [{"step": point["step"], **percents(point)} for point in run.so_far]
    final = run.records.get("evaluate")
    if final and "steps" in run.records["train"]:
        steps, values = run.records["train"]["steps"], percents(final)
        is_on_the_line = final.get("images") == run.so_far[-1]["images"] and run.so_far[-1]["step"] < steps
        rings = {f"final_{name}": value for name, value in values.items()}
        lines.append({"step": steps, **(values if is_on_the_line else {}), **rings})
    return lines


def percents(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Box and mask AP of scores in percent; None where there is none."""
    found = {kind: scores.get(kind, {}).get("AP") for kind in AP_LABELS}
    return {kind: None if value is None else 100 * value for kind, value in found.items()}


def write_training_losses(histories: Sequence[History], out: Path) -> None:
    """Write training_losses.{png,svg}: a panel for each part of the loss that is logged."""
    if not any(history.lines for history in histories):
        return write_reason(out / "training_losses", "no training has logged a step yet")
    names = loss_names(histories)
    # One more panel for the legend.
    lines = -(-(len(names) + 1) // LOSS_PANELS)
    with figure_file(out / "training_losses", height_in=2.3 * lines) as figure:
        panels = figure.subplots(lines, LOSS_PANELS, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            draw_history(axes, histories, name, name)
            begin_at_zero(axes)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        label_runs(panels[-1], histories)
        panels[-1].legend(loc="center", handlelength=LEGEND_LINE)
        figure.suptitle(smoothing_sentence(histories))


def loss_names(histories: Sequence[History]) -> list[str]:
    """Names of the parts of the loss in the order of the logs; loss_spike is a mark, no loss."""
    names = (name for history in histories for line in history.lines for name in line)
    return [name for name in dict.fromkeys(names) if name.startswith("loss_") and name != "loss_spike"]


def draw_history(axes: Axes, histories: Sequence[History], key: str, label: str, smooth: bool = True) -> None:
    """A quantity of every run against steps: light as logged, bold smoothed."""
    # Backbones in turn, so that none hides the others.
    for number, history in enumerate(sorted(histories, key=lambda one: (one.seed, one.place))):
        steps, values = history.values(key)
        look = look_of(history, histories)
        if smooth:
            axes.plot(steps, values, color=look["color"], linewidth=0.6, alpha=0.4)
            values = smoothed(values)
        # A few markers per line, shifted from run to run, so that lines below others can be seen.
        apart = 0.15 if len(histories) < MANY_RUNS else 0.3
        every = (apart * (number + 0.5) / len(histories), apart)
        axes.plot(steps, values, **look, markersize=4, markevery=every)
    axes.set(xlabel="optimizer steps", ylabel=label)
    if not any(len(history.values(key)[0]) for history in histories):
        show_reason(axes, f"{label}: not logged")


def smoothed(values: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Centred moving average; near the ends over the lines there are, so that a constant stays constant."""
    half = width_of(len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means


def width_of(number: int) -> int:
    """Over how many lines a log of ``number`` lines is smoothed; odd."""
    lines = min(max(round(SMOOTHED_SHARE * number), LEAST_SMOOTHED), int(MOST_SHARE * number))
    return lines // 2 * 2 + 1


def smoothing_sentence(histories: Sequence[History]) -> str:
    """What light and bold lines are; the moving average of a longer log is over more lines."""
    widths = sorted({width_of(len(history.lines)) for history in histories if history.lines})
    return f"Light: raw; bold: moving average ({' or '.join(map(str, widths))} log lines)" if widths[-1] > 1 else ""


def look_of(history: History, histories: Sequence[History]) -> dict[str, Any]:
    """Style of a run: its backbone's or its seed's; among several of both, its backbone's with the line of its seed."""
    place, backbones, seeds = history.place, places_of(histories), seeds_of(histories)
    if len(seeds) == 1:
        return style(place)
    seed = seeds.index(history.seed)
    return style(seed) if len(backbones) == 1 else style(place) | {"linestyle": line_of(seed)}


def places_of(histories: Sequence[History]) -> dict[int, str]:
    """Names of backbones by their places."""
    return {history.place: history.name for history in histories}


def seeds_of(histories: Sequence[History]) -> list[int]:
    """The seeds of all runs, each once."""
    return sorted({history.seed for history in histories})


def line_of(seed: int) -> Any:
    """Line style of the seed at this place of the study."""
    return LINES[seed % len(LINES)]


def label_runs(axes: Axes, histories: Sequence[History]) -> None:
    """Legend entries: one per run, or one per backbone and one per seed where there are several of both."""
    backbones, seeds = places_of(histories), seeds_of(histories)
    if len(backbones) == 1 or len(seeds) == 1:
        for history in histories:
            name = f"{history.name}, seed {history.seed}" if len(seeds) > 1 else history.name
            axes.plot([], [], **look_of(history, histories), markersize=4, label=name)
        return
    for place, name in backbones.items():
        axes.plot([], [], **style(place) | {"linestyle": ""}, markersize=4, label=name)
    for number, seed in enumerate(seeds):
        axes.plot([], [], color="0.3", linestyle=line_of(number), label=f"seed {seed}")


def begin_at_zero(axes: Axes) -> None:
    """Start the y axis at 0, with room for markers at the top."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def draw_restarts(axes: Axes, histories: Sequence[History]) -> None:
    """Mark where runs were restarted, and the loss spikes that the log marks."""
    restarted = [(step, look_of(history, histories)["color"]) for history in histories for step in history.restarts]
    for step, colour in restarted:
        axes.axvline(step, color=colour, linewidth=0.8, linestyle=":", alpha=0.8)
    if restarted:
        at, colours = zip(*restarted, strict=True)
        axes.scatter(
            at, [0] * len(at), c=colours, marker="|", s=60, transform=axes.get_xaxis_transform(), clip_on=False
        )
        axes.plot([], [], color="0.3", linestyle=":", linewidth=0.8, label="restarted")
    spikes = [line for history in histories for line in history.lines if line.get("loss_spike")]
    if spikes:
        steps, losses = [line["step"] for line in spikes], [line["loss"] for line in spikes]
        axes.plot(steps, losses, linestyle="", marker="x", color="0.2", markersize=5, label="loss spike")
