"""Plots of scores: AP by frequency group, AP against cost, categories, precision and recall, repeat factors."""

import textwrap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lvis_rcnn.config.schema import Calibration
from lvis_rcnn.dataset.statistics import read_statistics
from lvis_rcnn.evaluation.calibration import logit_shifts, title_of
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.reporting.figures import GROUPS, figure_file, legend_below, show_reason, style, write_reason
from lvis_rcnn.reporting.notes import OTHER_WORK, places
from lvis_rcnn.reporting.rows import TRAINED, Row, kept_sentence

# 1,000 in place of 10^3 on a logarithmic axis.
PLAIN = FuncFormatter(lambda value, _: f"{value:,.0f}")

GROUP_METRICS = {"AP": "all", "APr": "rare", "APc": "common", "APf": "frequent"}


@dataclass(frozen=True)
class Estimate:
    """A metric of a row in percent, or its cost, and what is known of its uncertainty."""

    value: float
    low: float
    high: float
    basis: str
    """What the error bar is; empty where there is none."""

    @property
    def spread(self) -> tuple[float, float]:
        """The ends of the error bar; without one the number may be anything."""
        return (self.low, self.high) if self.basis else (-np.inf, np.inf)


def row_name(row: Row) -> str:
    """What a legend calls a row."""
    return row.title if row.source == TRAINED else f"{row.title}, {row.lr_schd}, published ({row.scored_on})"


def metrics_of(row: Row) -> list[dict[str, Any]]:
    """``metrics.json`` of each run of a row that is scored."""
    return [run.records["evaluate"] for run in row.runs if "evaluate" in run.records]


def estimate(row: Row, kind: Kind, name: str) -> Estimate | None:
    """A metric with its 95 % interval, of one run or of the mean over several, else with its standard deviation."""
    found = row.measure(f"{KINDS[kind]}_{name}")
    if found["mean"] is None or not metrics_of(row):
        return None
    mean, seeds = 100 * found["mean"], sum(value is not None for value in found["seeds"].values())
    if bounds := found.get("interval"):
        of_seeds = f" and {seeds} seeds" if seeds > 1 else ""
        return Estimate(mean, 100 * bounds[0], 100 * bounds[1], f"95 % interval (over images{of_seeds})")
    if found["sd"] is None:
        return Estimate(mean, mean, mean, "")
    spread = 100 * found["sd"]
    return Estimate(mean, mean - spread, mean + spread, f"± standard deviation over {seeds} seeds")


def basis_sentence(estimates: Sequence[Estimate | None]) -> str:
    """What the error bars of a figure are."""
    found = dict.fromkeys(one.basis for one in estimates if one and one.basis)
    return f"Error bars: {'; '.join(found)}" if found else "No intervals were recorded"


def set_title(figure: Figure, rows: Sequence[Row], *lines: str) -> None:
    """Lines above the panels, the last of which says whether the detector kept fewer detections than count."""
    if text := "\n".join(filter(None, [*lines, kept_sentence(rows)])):
        figure.suptitle(text)


def error_bar(one: Estimate) -> list[list[float]] | None:
    """Lengths below and above a point, as matplotlib takes them; None without a bar."""
    return [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]] if one.basis else None


def draw_estimate(axes: Axes, x: float, one: Estimate, place: int, **more: Any) -> None:
    """A point with its error bar."""
    look = style(place)
    axes.errorbar(
        x, one.value, yerr=error_bar(one),
        color=look["color"], marker=look["marker"], markersize=5, elinewidth=1.2, capsize=3, linestyle="", **more,
    )  # fmt: skip


def write_ap_by_group(rows: Sequence[Row], out: Path) -> None:
    """Write ap_by_group.{png,svg}: box and mask AP of all, rare, common and frequent categories, row by row."""
    if not any(map(metrics_of, rows)):
        return write_reason(out / "ap_by_group", "no run is scored yet")
    with figure_file(out / "ap_by_group", height_in=3.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        estimates = []
        for axes, (kind, word) in zip(panels, KINDS.items(), strict=True):
            for place, row in enumerate(rows):
                for group, name in enumerate(GROUP_METRICS):
                    one = estimate(row, kind, name)
                    estimates.append(one)
                    if one:
                        x = group + 0.7 * ((place + 0.5) / len(rows) - 0.5)
                        draw_estimate(axes, x, one, place, label=row_name(row) if not group else None)
            axes.set(ylabel=f"{word} AP, percent", xticks=range(len(GROUP_METRICS)), xlabel="categories")
            axes.set_xticklabels(GROUP_METRICS.values())
            axes.yaxis.set_tick_params(labelleft=True)
            axes.grid(axis="x", visible=False)
        # Last, since setting a limit ends the automatic scaling of all panels that share the axis.
        panels[0].set_ylim(bottom=0)
        legend_below(figure, panels)
        set_title(figure, rows, basis_sentence(estimates))


def cost_of(row: Row, name: str) -> Estimate | None:
    """Milliseconds of an image, their median between their quartiles, or memory in GB; None where there is none.

    Memory of a GPU, counted by torch's allocator, is the same in every measurement; resident memory is not.
    """
    if (mean := row.mean(name)) is None:
        return None
    if name == "memory_gb":
        return Estimate(mean, mean, mean, "" if row.way(name) else "exact")
    if not row.fps_quartiles:
        return Estimate(1000 / mean, 1000 / mean, 1000 / mean, "")
    first, median, third = (1000 * row.speed["image_s"][key] for key in ("first_quartile", "median", "third_quartile"))
    return Estimate(median, first, third, "of time, median and quartiles over images")


def on_frontier(
    costs: Sequence[Estimate], gains: Sequence[Estimate], sorts: Sequence[Hashable]
) -> tuple[Bool[np.ndarray, " k"], bool]:
    """Which points are not shown to be beaten, and whether these are a Pareto frontier that may be drawn.

    A point is beaten by one that costs less and gains more, both by more than the error bars. The others are a frontier
    where every two of them differ in both by more than these.

    Args:
        costs: of each point.
        gains: of each point.
        sorts: what each point is of; only those of the same sort are compared.
    """
    (cost_low, cost_high), (gain_low, gain_high) = (
        np.array([one.spread for one in estimates]).T for estimates in (costs, gains)
    )
    is_alike = np.array([[one == other for other in sorts] for one in sorts])
    is_cheaper = (cost_high[:, None] < cost_low) & is_alike
    is_better = gain_low[:, None] > gain_high
    unbeaten = ~(is_cheaper & is_better).any(axis=0)
    is_apart = (is_cheaper | is_cheaper.T) & (is_better | is_better.T) | np.eye(len(costs), dtype=bool)
    return unbeaten, bool(is_apart[np.ix_(unbeaten, unbeaten)].all())


# Of the line below an axis of half a figure's width.
LABEL_CHARACTERS = 48
COSTS = {"fps": "time of an image, milliseconds", "memory_gb": "training memory, GB"}


def write_ap_and_cost(rows: Sequence[Row], out: Path) -> None:
    """Write ap_and_cost.{png,svg}: AP against inference time and training memory; rows that are beaten are hollow."""
    if not any(map(metrics_of, rows)):
        return write_reason(out / "ap_and_cost", "no run is scored yet")
    with figure_file(out / "ap_and_cost", height_in=5.6) as figure:
        panels = figure.subplots(2, 2, sharey="row", sharex="col")
        for place, row in enumerate(rows):
            # Of no panel: a row may be hollow in one, and missing from another.
            look = style(place) | {"linestyle": "", "markersize": 5}
            panels[0, 0].plot([], [], **look, label=row_name(row) if metrics_of(row) else None)
        estimates = []
        for line, (kind, word) in zip(panels, KINDS.items(), strict=True):
            gains = [estimate(row, kind, "AP") for row in rows]
            estimates += gains
            for axes, (name, label) in zip(line, COSTS.items(), strict=True):
                draw_frontier(axes, rows, name, gains)
                where = textwrap.fill(f"({devices_sentence(rows, name)})", LABEL_CHARACTERS)
                axes.set_xlabel(f"{label}\n{where}" if axes in panels[-1] else "")
            # Once both panels are drawn, since setting a limit ends their automatic scaling; no AP is below 0.
            line[0].set_ylim(bottom=max(0.0, line[0].get_ylim()[0]))
            first = next((axes for axes in line if axes.axison), line[0])
            first.set_ylabel(f"{word} AP, percent")
            first.tick_params(labelleft=True)
        legend_below(figure, panels.ravel())
        ranks = "Hollow: beaten in AP and cost; dashed: frontier of rows that all differ (both beyond the error bars)"
        set_title(figure, rows, ranks, basis_sentence([*estimates, *(cost_of(row, "fps") for row in rows)]))


def devices_sentence(rows: Sequence[Row], name: str) -> str:
    """Where costs were measured, which can be compared on one device only, and which are not shown."""
    found = places(rows, name)
    text = f"{'devices differ: ' if len(found) > 1 else ''}{'; '.join(found) or 'not measured'}"
    hidden = [row.title for row in rows if row.other_work] if name == "fps" else []
    return f"{text}; {OTHER_WORK}: {', '.join(hidden)}" if hidden else text


def draw_frontier(axes: Axes, rows: Sequence[Row], name: str, gains: Sequence[Estimate | None]) -> None:
    """One panel of points, and their Pareto frontier where it is more than noise."""
    known = [
        (place, cost, gain)
        for place, (cost, gain) in enumerate(zip((cost_of(row, name) for row in rows), gains, strict=True))
        if cost is not None and gain is not None
    ]
    if not known:
        disturbed = name == "fps" and any(row.other_work for row in rows)
        return show_reason(
            axes, f"{OTHER_WORK} in all measurements" if disturbed else "not measured for any scored row"
        )
    at, costs, shown = zip(*known, strict=True)
    unbeaten, is_frontier = on_frontier(costs, shown, [(rows[k].place(name), rows[k].scored_on) for k in at])
    for (place, cost, gain), on in zip(known, unbeaten, strict=True):
        fill = style(place)["color"] if on else "white"
        draw_estimate(axes, cost.value, gain, place, xerr=error_bar(cost), markerfacecolor=fill)
    if is_frontier:
        points = sorted((cost.value, gain.value) for (_, cost, gain), on in zip(known, unbeaten, strict=True) if on)
        axes.plot(*np.transpose(points), color="0.5", linewidth=1, linestyle="--", zorder=1, drawstyle="steps-post")
    axes.margins(0.12)


def write_ap_and_images(rows: Sequence[Row], image_counts: Mapping[int, int], kind: Kind, out: Path) -> None:
    """Write ap_and_images.{png,svg}: AP of each category against its training images, a panel per row; group means.

    Args:
        rows: of the table.
        image_counts: training images of each category, by its id; empty where nothing was counted.
        kind: bbox or segm.
        out: folder.
    """
    shown = [row for row in rows if any(metrics.get("per_category") for metrics in metrics_of(row))]
    if not shown or not image_counts:
        reason = "no run is scored yet" if not shown else "the training images of each category are not counted yet"
        return write_reason(out / "ap_and_images", reason)
    lines, columns = -(-len(shown) // 2), min(len(shown), 2)
    with figure_file(out / "ap_and_images", height_in=2.6 * lines + 0.7) as figure:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, row in zip(panels, shown, strict=False):
            hidden = draw_categories(axes, category_aps(row, kind), image_counts)
            axes.set(title=row_name(row), ylabel=f"{KINDS[kind]} AP, percent")
            axes.set_xlabel("\n".join(["training images with the category", *hidden]))
        # Last, since setting a limit ends the automatic scaling of all panels that share the axis.
        panels[0].set_ylim(bottom=0, top=max(5, panels[0].get_ylim()[1]) / (1 - MEANS_SHARE))
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        set_title(figure, shown, "Lines, and the numbers above: means of the groups")
        legend_below(figure, panels)


def category_aps(row: Row, kind: Kind) -> dict[int, tuple[str, float | None]]:
    """Frequency and AP in percent of each category by its id, mean over the runs that define it."""
    found: dict[int, tuple[str, list[float]]] = {}
    for metrics in metrics_of(row):
        for category in metrics["per_category"]:
            values = found.setdefault(category["id"], (category["frequency"], []))[1]
            values += [] if category.get(kind) is None else [100 * category[kind]]
    return {of: (group, sum(values) / len(values) if values else None) for of, (group, values) in found.items()}


MEANS_SHARE = 0.12
"""Of the height of a panel, above all points: where the means of groups are written."""


def draw_categories(
    axes: Axes, aps: Mapping[int, tuple[str, float | None]], image_counts: Mapping[int, int]
) -> list[str]:
    """One panel: a point per category, and per group a line at the mean of all its categories.

    Returns:
        How many categories are not shown, and why.
    """
    for group, (name, colour, marker) in GROUPS.items():
        values = {of: ap for of, (frequency, ap) in aps.items() if frequency == group and ap is not None}
        placed = [(image_counts[of], ap) for of, ap in values.items() if image_counts.get(of)]
        if not placed:
            continue
        x, y = zip(*placed, strict=True)
        # Not clipped: half of a point at AP 0 is below the axis.
        axes.scatter(x, y, s=16, c=colour, marker=marker, alpha=0.6, linewidths=0, label=name, clip_on=False, zorder=3)
        mean, ends = sum(values.values()) / len(values), (min(x) / 1.15, max(x) * 1.15)
        axes.plot(ends, [mean, mean], color=colour, linewidth=2.2)
        at: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text(np.sqrt(ends[0] * ends[1]), 0.99, f"{mean:.1f}", color=colour, fontsize=8, fontweight="bold", **at)
    undefined = sum(ap is None for _, ap in aps.values())
    unplaced = sum(ap is not None and not image_counts.get(of) for of, (_, ap) in aps.items())
    axes.margins(y=0.05)
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter(PLAIN)
    notes = {"without validation objects": undefined, "without training images": unplaced}
    return [f"not shown: {number} {what}" for what, number in notes.items() if number]


IOUS = {"0.5": "IoU 0.5", "0.75": "IoU 0.75"}
MEMBERS = {"all": "all categories", **{group: f"{name} categories" for group, (name, _, _) in GROUPS.items()}}


def write_precision_recall(rows: Sequence[Row], kind: Kind, out: Path) -> None:
    """Write precision_recall_{box,mask}.{png,svg}: panels by frequency group and IoU, a line per row.

    A group has panels where something of it is found; the title names the others.
    """
    name, what = f"precision_recall_{KINDS[kind]}", {"bbox": "boxes", "segm": "masks"}[kind]
    curves = {row_name(row): curves_of_row(row, kind) for row in rows}
    if not any(curves.values()):
        return write_reason(out / name, f"no run has recorded curves of {what}")
    reach = {group: max(reach_of(curve, group) for curve in curves.values()) for group in MEMBERS}
    shown, empty = [group for group in MEMBERS if reach[group]], [group for group in MEMBERS if not reach[group]]
    if not shown:
        return write_reason(out / name, f"nothing is found at IoU 0.5: precision of {what} is 0 at every recall")
    with figure_file(out / name, height_in=1.6 * len(shown) + 1) as figure:
        panels = figure.subplots(len(shown), len(IOUS), sharex=True, sharey=True, squeeze=False)
        for line, group in zip(panels, shown, strict=True):
            for axes, (iou, title) in zip(line, IOUS.items(), strict=True):
                draw_precision(axes, curves, group, iou)
                axes.set_title(title if group == shown[0] else "")
            line[0].set_ylabel(f"{MEMBERS[group]}\nprecision")
        for axes in panels[-1]:
            axes.set(xlabel="recall", xlim=(0, min(1.0, 0.1 * np.ceil(10 * max(reach.values())))))
        mean_over = "categories and seeds" if any(len(metrics_of(row)) > 1 for row in rows) else "categories"
        lacking = [f"Nothing is found of: {', '.join(MEMBERS[group] for group in empty)}"] if empty else []
        set_title(figure, rows, f"Precision of {what} at each recall, mean over {mean_over}", *lacking)
        legend_below(figure, panels.ravel())


def reach_of(curve: Mapping[str, Any] | None, group: str) -> float:
    """The largest recall at which precision is above 0, at the lowest IoU; 0 where there is none, or no object."""
    if curve is None or curve[group]["0.5"] is None:
        return 0.0
    reached = np.flatnonzero(curve[group]["0.5"])
    return max(curve["recall"][reached[-1]], 0.1) if len(reached) else 0.0


def curves_of_row(row: Row, kind: Kind) -> dict[str, Any] | None:
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


def draw_precision(axes: Axes, curves: Mapping[str, Mapping[str, Any] | None], group: str, iou: str) -> None:
    """One panel, each line to where it reaches 0; the area under it is AP at this IoU."""
    for place, (label, curve) in enumerate(curves.items()):
        if curve is None or curve[group][iou] is None:
            continue
        precision = np.asarray(curve[group][iou])
        end = int(np.max(np.flatnonzero(precision), initial=0)) + 2
        look = style(place) | {"markersize": 3.5, "markevery": (0.03 * (1 + place), 0.25), "linewidth": 1.1}
        axes.plot(curve["recall"][:end], precision[:end], **look, label=label)
    axes.set(ylim=(0, 1.02))


@dataclass(frozen=True, eq=False)
class CategoryFigures:
    """What the plot of repeat factors shows; each array has one entry per category."""

    frequencies: np.ndarray
    """r, c or f."""
    image_counts: Int64[np.ndarray, " c"]
    factors: Float64[np.ndarray, " c"]
    instances_once: Int64[np.ndarray, " c"]
    """Instances of an epoch that draws each image once."""
    instances_oversampled: Float64[np.ndarray, " c"]


def write_sampling_figure(figures: CategoryFigures, title: str, out: Path) -> None:
    """Write repeat_factors.png and .svg into the folder ``out``; the same figures give the same bytes."""
    with figure_file(out / "repeat_factors", height_in=3.2) as figure:
        left, right = figure.subplots(1, 2)
        draw_factors(left, figures)
        draw_instances(right, figures)
        figure.suptitle(title)


def draw_factors(axes: Axes, figures: CategoryFigures) -> None:
    """Repeat factor against training images; a category without any has no place on the logarithmic axis."""
    if not figures.image_counts.any():
        return show_reason(axes, "no category has an image")
    scatter_by_group(axes, figures.frequencies, figures.image_counts, figures.factors)
    axes.set(xscale="log", xlabel="training images with the category", ylabel="repeat factor of the category")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.axhline(1, color="0.5", linewidth=0.8, zorder=0.9)
    axes.legend(title="categories")


def scatter_by_group(axes: Axes, frequencies: np.ndarray, counts: np.ndarray, values: np.ndarray) -> None:
    """A point for each category with a count above 0, in the colour of its frequency group."""
    for group, (name, colour, marker) in GROUPS.items():
        rows = (frequencies == group) & (counts > 0)
        axes.scatter(counts[rows], values[rows], s=18, c=colour, marker=marker, label=name, alpha=0.7, linewidths=0)


def write_calibration(table: Path, calibrations: Sequence[Calibration], out: Path) -> None:
    """Write calibration.{png,svg}: fractal dimensions, and by which factor each calibration changes scores.

    The factor is that of a score over the background's, exp of what is added to the logit.
    """
    if not table.exists():
        return write_reason(out / "calibration", "the training images of categories are not counted yet")
    seen = read_statistics(table)
    with figure_file(out / "calibration", height_in=3.2) as figure:
        left, *others = figure.subplots(1, 1 + len(calibrations))
        scatter_by_group(left, seen.frequencies, seen.instance_counts, seen.dimensions)
        left.set(xscale="log", xlabel="training objects", ylabel="fractal dimension of their centres")
        left.legend(title="categories")
        for axes, settings in zip(others, calibrations, strict=True):
            scatter_by_group(axes, seen.frequencies, seen.image_counts, np.exp(logit_shifts(settings, seen)))
            axes.set(xscale="log", yscale="log", xlabel="training images")
            axes.set(ylabel="factor of score over background's", title=title_of(settings))


def draw_instances(axes: Axes, figures: CategoryFigures) -> None:
    """Instances of one epoch by group, hollow without and filled with oversampling, and their ratio.

    Points, since a bar on a logarithmic axis has no length; a group without instances has no place on it.
    """
    for place, (group, (_, colour, marker)) in enumerate(GROUPS.items()):
        of_group = figures.frequencies == group
        first, second = figures.instances_once[of_group].sum(), figures.instances_oversampled[of_group].sum()
        if not first:
            axes.text(place, 0.02, "none", transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
            continue
        axes.plot([place, place], [first, second], color=colour, linewidth=1)
        axes.plot(place, first, marker, color=colour, markerfacecolor="white")
        axes.plot(place, second, marker, color=colour)
        where: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"x {second / first:.2f}", (place, np.sqrt(first * second)), fontsize=8, **where)
    axes.set(yscale="log", ylabel="instances per epoch\n(hollow: each image once)", xticks=range(len(GROUPS)))
    axes.set_xticklabels([name for name, _, _ in GROUPS.values()])
    axes.set_xlim(-0.5, len(GROUPS) - 0.3)
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
