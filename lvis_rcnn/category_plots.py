"""A plot with a point for each category: AP against training images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lvis_rcnn.figures import GROUPS, figure_file, legend_below, write_reason
from lvis_rcnn.row_plots import KINDS, metrics_of, row_name
from lvis_rcnn.table_rows import Row


def write_ap_and_images(rows: Sequence[Row], image_counts: Mapping[int, int], kind: str, out: Path) -> None:
    """Write ap_and_images.{png,svg}: AP of each category against its training images, a panel a row, group means.

    Args:
        rows: of the table.
        image_counts: training images of each category, by its id; empty where nothing was counted.
        kind: bbox or segm.
        out: folder.
    """
    shown = [row for row in rows if any(metrics.get("per_category") for metrics in metrics_of(row))]
    if not shown or not image_counts:
        reason = "no run is scored yet" if not shown else "nothing says how many training images categories have"
        return write_reason(out / "ap_and_images", reason)
    lines, columns = -(-len(shown) // 2), min(len(shown), 2)
    with figure_file(out / "ap_and_images", height_in=2.6 * lines + 0.7) as figure:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, row in zip(panels, shown, strict=False):
            draw_categories(axes, category_aps(row, kind), image_counts)
            axes.set(
                title=row_name(row), ylabel=f"{KINDS[kind]} AP, percent", xlabel="training images with the category"
            )
        # Only now: a limit that is set ends the scaling of all panels that share it.
        panels[0].set_ylim(bottom=-3, top=max(5, panels[0].get_ylim()[1]))
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        legend_below(figure, panels)


def category_aps(row: Row, kind: str) -> dict[int, tuple[str, float | None]]:
    """Frequency and AP in percent of each category by its id, mean over the runs that define it."""
    found: dict[int, tuple[str, list[float]]] = {}
    for metrics in metrics_of(row):
        for category in metrics["per_category"]:
            values = found.setdefault(category["id"], (category["frequency"], []))[1]
            values += [] if category.get(kind) is None else [100 * category[kind]]
    return {of: (group, sum(values) / len(values) if values else None) for of, (group, values) in found.items()}


def draw_categories(axes: Axes, aps: Mapping[int, tuple[str, float | None]], image_counts: Mapping[int, int]) -> None:
    """One panel: a point a category, a bar a group at the mean of all its categories."""
    for group, (name, colour, marker) in GROUPS.items():
        values = {of: ap for of, (frequency, ap) in aps.items() if frequency == group and ap is not None}
        placed = [(image_counts[of], ap) for of, ap in values.items() if image_counts.get(of)]
        if not placed:
            continue
        x, y = zip(*placed, strict=True)
        axes.scatter(x, y, s=16, c=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
        mean = sum(values.values()) / len(values)
        axes.plot([min(x) / 1.15, max(x) * 1.15], [mean, mean], color=colour, linewidth=2.2)
        backed = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.5}
        where: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        look: dict[str, Any] = {"color": colour, "fontsize": 8, "fontweight": "bold", "bbox": backed}
        axes.annotate(f"{mean:.1f}", (max(x) * 1.15, mean), **where, **look)
    undefined = sum(ap is None for _, ap in aps.values())
    unplaced = sum(ap is not None and not image_counts.get(of) for of, (_, ap) in aps.items())
    notes = {"without validation objects": undefined, "without training images": unplaced}
    text = "\n".join(f"not shown: {number} {what}" for what, number in notes.items() if number)
    axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", fontsize=7, color="0.35")
    axes.margins(y=0.12)
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
