"""Plots with a point for each row of the table: AP by frequency group, and AP against what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes

from lvis_rcnn.figures import figure_file, legend_below, say_why, style, write_reason
from lvis_rcnn.table_rows import TRAINED, Row, cost_of, moments_of

KINDS = {"bbox": "box", "segm": "mask"}
GROUP_METRICS = {"AP": "all", "APr": "rare", "APc": "common", "APf": "frequent"}


@dataclass(frozen=True)
class Estimate:
    """A metric of a row in percent, and what is known of its uncertainty."""

    value: float
    low: float
    high: float
    basis: str
    """What the interval is; empty where there is none."""


def row_name(row: Row) -> str:
    """What a legend calls a row."""
    return row.title if row.source == TRAINED else f"{row.title}, {row.lr_schd}, published ({row.scored_on})"


def metrics_of(row: Row) -> list[dict[str, Any]]:
    """``metrics.json`` of each run of a row that is scored."""
    return [run.records["evaluate"] for run in row.runs if "evaluate" in run.records]


def estimate(row: Row, kind: str, name: str) -> Estimate | None:
    """A metric with its 95 % interval, of one run or of the mean over several; where there is none, with the spread."""
    found = moments_of(row, f"{KINDS[kind]}_{name}")
    if found["mean"] is None or not metrics_of(row):
        return None
    mean, seeds = 100 * found["mean"], sum(value is not None for value in found["seeds"].values())
    if bounds := found.get("interval"):
        of_seeds = f" and the spread of {seeds} seeds" if seeds > 1 else ""
        return Estimate(mean, 100 * bounds[0], 100 * bounds[1], f"95 % interval, over images{of_seeds}")
    if found["sd"] is None:
        return Estimate(mean, mean, mean, "")
    spread = 100 * found["sd"]
    return Estimate(mean, mean - spread, mean + spread, f"± standard deviation over {seeds} seeds")


def basis_sentence(estimates: Sequence[Estimate | None]) -> str:
    """What the error bars of a figure are."""
    found = dict.fromkeys(one.basis for one in estimates if one and one.basis)
    return f"Bars: {'; '.join(found)}" if found else "No intervals were recorded"


def draw_estimate(axes: Axes, x: float, one: Estimate, place: int, **more: Any) -> None:
    """A point with its error bar."""
    look = style(place)
    below_above = [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]]
    axes.errorbar(
        x, one.value, yerr=below_above if one.basis else None,
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
        # Only now: a limit that is set ends the scaling of all panels that share it.
        panels[0].set_ylim(bottom=0)
        legend_below(figure, panels)
        figure.suptitle(basis_sentence(estimates))


def on_frontier(costs: Float64[np.ndarray, " k"], gains: Float64[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Whether no other point costs no more and gains no less, one of both strictly."""
    no_dearer = costs[:, None] >= costs
    no_worse = gains[:, None] <= gains
    better = (costs[:, None] > costs) | (gains[:, None] < gains)
    return np.logical_not((no_dearer & no_worse & better).any(axis=1))


def write_ap_and_cost(rows: Sequence[Row], out: Path) -> None:
    """Write ap_and_cost.{png,svg}: who gains most for its time and memory stands on the frontier, filled."""
    if not any(map(metrics_of, rows)):
        return write_reason(out / "ap_and_cost", "no run is scored yet")
    with figure_file(out / "ap_and_cost", height_in=5.6) as figure:
        panels = figure.subplots(2, 2, sharey="row", sharex="col")
        costs = [cost_of(row) for row in rows]
        times = [None if cost.fps is None else 1000 / cost.fps for cost in costs]
        columns = [
            (times, "inference time, milliseconds an image", [cost.device for cost in costs]),
            ([cost.memory_gb for cost in costs], "training memory, GB", [cost.device for cost in costs]),
        ]
        estimates = []
        for line, (kind, word) in zip(panels, KINDS.items(), strict=True):
            gains = [estimate(row, kind, "AP") for row in rows]
            estimates += gains
            for axes, (of_rows, label, devices) in zip(line, columns, strict=True):
                draw_frontier(axes, rows, of_rows, gains)
                axes.set_xlabel(f"{label}\n({devices_sentence(devices)})" if axes in panels[-1] else "")
            line[0].set_ylabel(f"{word} AP, percent")
        legend_below(figure, panels.ravel())
        figure.suptitle(f"Filled, on the line: no other row is as good for less.\n{basis_sentence(estimates)}.")


def devices_sentence(devices: Sequence[str | None]) -> str:
    """Where a cost was measured; costs of different devices do not compare."""
    found = list(dict.fromkeys(device for device in devices if device))
    return f"{'devices differ: ' if len(found) > 1 else ''}{', '.join(found) or 'not measured'}"


def draw_frontier(
    axes: Axes, rows: Sequence[Row], costs: Sequence[float | None], gains: Sequence[Estimate | None]
) -> None:
    """One panel of points with the frontier through the best."""
    known = [
        (place, cost, gain)
        for place, (cost, gain) in enumerate(zip(costs, gains, strict=True))
        if cost is not None and gain is not None
    ]
    if not known:
        return say_why(axes, "not measured for any row that is scored")
    x, y = (np.array(values) for values in zip(*((cost, gain.value) for _, cost, gain in known), strict=True))
    frontier = on_frontier(x, y)
    order = np.flatnonzero(frontier)[np.argsort(x[frontier], kind="stable")]
    axes.plot(x[order], y[order], color="0.5", linewidth=1, linestyle="--", zorder=1, drawstyle="steps-post")
    for (place, cost, gain), on in zip(known, frontier, strict=True):
        colour = style(place)["color"]
        draw_estimate(axes, cost, gain, place, label=row_name(rows[place]), mfc=colour if on else "white", mec=colour)
    axes.margins(0.12)
