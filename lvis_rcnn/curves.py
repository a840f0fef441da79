"""Curves of runs: how losses, gradients and speed went while they trained, and precision against recall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from lvis_rcnn.figures import GROUPS, LEGEND_LINE, LINES, figure_file, legend_below, say_why, style, write_reason

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
IOUS = {"0.5": "IoU 0.5", "0.75": "IoU 0.75", "0.5:0.95": "IoU 0.5 to 0.95, mean"}
MEMBERS = {"all": "all categories", **{group: f"{name} categories" for group, (name, _, _) in GROUPS.items()}}


@dataclass(frozen=True)
class History:
    """What a training run has logged."""

    name: str
    lines: Sequence[Mapping[str, Any]]
    """Of its log, as ``lvis_rcnn.training_log.TrainingLog`` writes them."""
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


def write_precision_recall(
    curves: Mapping[str, Mapping[str, Any] | None], what: str, mean_over: str, name: str, out: Path
) -> None:
    """Write ``name``.{png,svg}: a row of panels a frequency group, a column an IoU, a line a row of the table.

    Args:
        curves: of each row by its name, as ``metrics.json`` has them under ``curves`` for boxes or masks; None where
            nothing has recorded them.
        what: boxes or masks, for the title.
        mean_over: what a line is the mean over, for the title.
        name: of the files.
        out: folder.
    """
    if not any(curves.values()):
        return write_reason(out / name, f"no run has recorded curves of {what}")
    with figure_file(out / name, height_in=7.4) as figure:
        panels = figure.subplots(len(MEMBERS), len(IOUS), sharex=True, sharey=True)
        for row, (group, members) in zip(panels, MEMBERS.items(), strict=True):
            for axes, (iou, title) in zip(row, IOUS.items(), strict=True):
                draw_precision(axes, curves, group, iou)
                axes.set_title(title if group == "all" else "")
            row[0].set_ylabel(f"{members}\nprecision")
        for axes in panels[-1]:
            axes.set_xlabel("recall")
        figure.suptitle(f"Precision of {what} at each recall, mean over {mean_over}")
        legend_below(figure, panels.ravel())


def draw_precision(axes: Axes, curves: Mapping[str, Mapping[str, Any] | None], group: str, iou: str) -> None:
    """One panel; the area under a line is its AP."""
    for place, (label, curve) in enumerate(curves.items()):
        if curve is None or curve[group][iou] is None:
            continue
        every = (0.03 * (1 + place), 0.25)
        look = style(place) | {"markersize": 3.5, "markevery": every, "linewidth": 1.1}
        axes.plot(curve["recall"], curve[group][iou], **look, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if not axes.lines:
        axes.text(0.5, 0.5, "no objects", ha="center", va="center", color="0.3")
