"""The plots of a study from whatever exists, and the training curves. A plot that nothing can be drawn in says why."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.zoo import ZooModel, known_models
from lvis_rcnn.reporting.figures import LEGEND_LINE, LINES, figure_file, legend_below, say_why, style, write_reason
from lvis_rcnn.reporting.rows import TRAINED, Row, rows_of
from lvis_rcnn.reporting.score_plots import (
    IOUS,
    KINDS,
    MEMBERS,
    CategoryFigures,
    metrics_of,
    row_name,
    write_ap_and_cost,
    write_ap_and_images,
    write_ap_by_group,
    write_precision_recall,
    write_sampling_figure,
)
from lvis_rcnn.runs.attempts import read_attempts
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.states import state_dirs
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import read_json_lines

# A smoothed value is the mean over this share of a log, but over so many lines at least, since the embedded studies log
# few; and over a quarter at most, or a short log would lose its course.
SMOOTHED_SHARE, LEAST_SMOOTHED, MOST_SHARE = 0.04, 4, 0.25

MANY_RUNS = 9
"""From so many their lines get fewer markers."""

LOSSES = {
    "loss_rpn_cls": "RPN: object or not",
    "loss_rpn_bbox": "RPN: boxes",
    "loss_cls": "categories",
    "loss_bbox": "boxes",
    "loss_mask": "masks",
}


@dataclass(frozen=True)
class History:
    """What a training run has logged."""

    name: str
    lines: Sequence[Mapping[str, Any]]
    """Of its log, as ``training.log`` writes them."""
    restarts: Sequence[int]
    """Steps that were done when it was started again."""
    place: int = 0
    """Of its backbone in the study."""
    seed: int = 0

    def values(self, key: str) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
        """Steps and values of the lines that hold a number under ``key``."""
        found = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return steps, values


def smoothed(values: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Centred running mean; near the ends over what there is, so that a constant stays what it is."""
    half = width_of(len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means


def width_of(number: int) -> int:
    """Lines of a log of so many that one smoothed value is the mean of; odd."""
    lines = min(max(round(SMOOTHED_SHARE * number), LEAST_SMOOTHED), int(MOST_SHARE * number))
    return lines // 2 * 2 + 1


def smoothing_sentence(histories: Sequence[History]) -> str:
    """The same for a title; runs of several lengths have several."""
    widths = sorted({width_of(len(history.lines)) for history in histories if history.lines})
    if widths[-1] == 1:
        return ""
    return f"Pale: as logged. Strong: mean over {' or '.join(map(str, widths))} lines of the log."


def look_of(history: History, histories: Sequence[History]) -> dict[str, Any]:
    """Of a run among others: its backbone's or its seed's; of both several, the backbone's in the seed's line."""
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
    """How lines of the seed of this place are drawn, whatever the backbone."""
    return LINES[seed % len(LINES)]


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
        draw_history(speed, histories, "images_per_s", "images a second")
        norm.set_yscale("log")
        for axis_format in (norm.yaxis.set_major_formatter, norm.yaxis.set_minor_formatter):
            axis_format(StrMethodFormatter("{x:g}"))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        begin_at_zero(speed)
        legend_below(figure, [loss])
        figure.suptitle(smoothing_sentence(histories))


def write_training_losses(histories: Sequence[History], out: Path) -> None:
    """Write training_losses.{png,svg}: the parts of the loss, each of its own head."""
    if not any(history.lines for history in histories):
        return write_reason(out / "training_losses", "no training has logged a step yet")
    with figure_file(out / "training_losses", height_in=4.6) as figure:
        panels = figure.subplots(2, 3).ravel()
        for axes, (key, title) in zip(panels, LOSSES.items(), strict=False):
            draw_history(axes, histories, key, f"loss of {title}" if ":" not in title else f"loss, {title}")
            begin_at_zero(axes)
        panels[-1].set_axis_off()
        label_runs(panels[-1], histories)
        panels[-1].legend(loc="center", handlelength=LEGEND_LINE)
        figure.suptitle(smoothing_sentence(histories))


def draw_history(axes: Axes, histories: Sequence[History], key: str, label: str, smooth: bool = True) -> None:
    """A quantity of every run against steps: pale as logged, strong as smoothed."""
    # Backbones in turn, so that none hides the others.
    for number, history in enumerate(sorted(histories, key=lambda one: (one.seed, one.place))):
        steps, values = history.values(key)
        look = look_of(history, histories)
        if smooth:
            axes.plot(steps, values, color=look["color"], linewidth=0.6, alpha=0.4)
            values = smoothed(values)
        # A few markers a line, shifted from run to run, so that lines over one another show.
        apart = 0.15 if len(histories) < MANY_RUNS else 0.3
        every = (apart * (number + 0.5) / len(histories), apart)
        axes.plot(steps, values, **look, markersize=4, markevery=every)
    axes.set(xlabel="optimizer steps", ylabel=label)
    if not any(len(history.values(key)[0]) for history in histories):
        say_why(axes, f"{label}: not logged")


def label_runs(axes: Axes, histories: Sequence[History]) -> None:
    """What a legend says of runs: each by itself, or where both are several each backbone and each seed."""
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
    """Show the whole height of a quantity, with room for markers above it."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def draw_restarts(axes: Axes, histories: Sequence[History]) -> None:
    """Where runs were started again, on the lower edge; and where a loss stood out, as the log has marked it."""
    restarted = [(step, look_of(history, histories)["color"]) for history in histories for step in history.restarts]
    for step, colour in restarted:
        axes.axvline(step, color=colour, linewidth=0.8, linestyle=":", alpha=0.8)
    if restarted:
        at, colours = zip(*restarted, strict=True)
        axes.scatter(
            at, [0] * len(at), c=colours, marker="|", s=60, transform=axes.get_xaxis_transform(), clip_on=False
        )
        axes.plot([], [], color="0.3", linestyle=":", linewidth=0.8, label="started again")
    spikes = [line for history in histories for line in history.lines if line.get("loss_spike")]
    if spikes:
        steps, losses = [line["step"] for line in spikes], [line["loss"] for line in spikes]
        axes.plot(steps, losses, linestyle="", marker="x", color="0.2", markersize=5, label="loss spike")


def histories_of(study: Study, results: Path, zoo: Mapping[str, ZooModel], rows: Sequence[Row]) -> list[History]:
    """What each training has logged, with its restarts; a run that goes on is read in its state folder."""
    histories = []
    for place, row in enumerate(row for row in rows if row.source == TRAINED):
        for run in row.runs:
            assert run.seed is not None
            state_dir, _ = state_dirs(study, results, row.backbone, run.seed, zoo)
            lines = read_json_lines((state_dir or run.folder) / "log.json")
            attempts = read_attempts(state_dir) if state_dir else []
            restarts = [attempt.first_step for attempt in attempts[1:]]
            histories.append(History(row.title, lines, restarts, place, run.seed))
    return histories


def read_category_figures(folder: Path) -> tuple[CategoryFigures, dict[int, int]] | None:
    """What the sampler's tables say of each category, and the training images of each id; None where there are none."""
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
    except (OSError, KeyError, ValueError) as error:
        fix = "write them again with python -m lvis_rcnn repeat_factors"
        raise InputError(str(folder), f"no readable tables of repeat factors: {error!r}", fix=fix) from None


def write_plots(study: Study, study_file: Path, results: Path, out: Path, now_s: float) -> None:
    """Write every plot of a study into ``out``.

    Args:
        study: what should have been run.
        study_file: its file, which its zoo is relative to.
        results: folder that all steps write into.
        out: folder of the plots.
        now_s: Unix time; tells a live run from a dead one.

    Raises:
        InputError: tables of repeat factors are damaged.
    """
    zoo = known_models(study, study_file)
    rows = [row for row in rows_of(study, results, zoo, now_s) if row.runs]
    histories = histories_of(study, results, zoo, rows)
    write_training_curves(histories, out)
    write_training_losses(histories, out)
    counted = read_category_figures(results / study.study / "repeat_factors")
    write_repeat_factors(counted and counted[0], results / study.study / "repeat_factors", out)
    write_ap_and_images(rows, counted[1] if counted else {}, "segm", out)
    write_ap_by_group(rows, out)
    write_ap_and_cost(rows, out)
    write_precision_recalls(rows, out)


def write_precision_recalls(rows: Sequence[Row], out: Path) -> None:
    """Write precision_recall_box.{png,svg} and precision_recall_mask.{png,svg}."""
    mean_over = "categories and seeds" if any(len(metrics_of(row)) > 1 for row in rows) else "categories"
    for kind, word in KINDS.items():
        curves = {row_name(row): curves_of(row, kind) for row in rows}
        what = {"box": "boxes", "mask": "masks"}[word]
        write_precision_recall(curves, what, mean_over, f"precision_recall_{word}", out)


def curves_of(row: Row, kind: str) -> dict[str, Any] | None:
    """Curves of a row: the mean over its runs, so that the area under a line is the row's AP; None without any."""
    found = [metrics["curves"][kind] for metrics in metrics_of(row) if kind in metrics.get("curves", {})]
    if not found:
        return None
    lines = {group: {iou: mean_line([each[group][iou] for each in found]) for iou in IOUS} for group in MEMBERS}
    return {"recall": found[0]["recall"], **lines}


def mean_line(lines: Sequence[Sequence[float] | None]) -> list[float] | None:
    """Mean of lines, point by point; of those that are defined."""
    defined = [line for line in lines if line is not None]
    return np.mean(defined, axis=0).tolist() if defined else None


def write_repeat_factors(figures: CategoryFigures | None, folder: Path, out: Path) -> None:
    """Write repeat_factors.{png,svg} from the tables that the sampler wrote."""
    if figures is None:
        return write_reason(out / "repeat_factors", "no repeat factors were computed")
    said = read_json_object(folder / "summary.json")
    threshold = "no threshold" if said.get("threshold") is None else f"threshold {said['threshold']:g}"
    length = said.get("expected_epoch_length", 0)
    write_sampling_figure(
        figures, f"{threshold}, an epoch of {length:,.0f} from {said.get('images_kept', 0):,} images", out
    )
