"""What oversampling does, as a picture: the factor of each category, and the instances that an epoch gains by it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes

from lvis_rcnn.figures import GROUPS, figure_file, say_why


@dataclass(frozen=True, eq=False)
class CategoryFigures:
    """What the picture shows of each category; everything has one entry a category."""

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
    """Category frequency against factor; categories without an image have no place on a logarithmic axis."""
    if not figures.image_counts.any():
        return say_why(axes, "no category has an image")
    for group, (name, colour, marker) in GROUPS.items():
        of_group = (figures.frequencies == group) & (figures.image_counts > 0)
        counts, factors = figures.image_counts[of_group], figures.factors[of_group]
        axes.scatter(counts, factors, s=18, c=colour, marker=marker, label=name, alpha=0.7, linewidths=0)
    axes.set(xscale="log", xlabel="training images with the category", ylabel="repeat factor of the category")
    axes.axhline(1, color="0.5", linewidth=0.8, zorder=0.9)
    axes.legend(title="categories")


def draw_instances(axes: Axes, figures: CategoryFigures) -> None:
    """Instances of one epoch, without and with oversampling, by group: the bars say what is gained."""
    positions = np.arange(len(GROUPS))
    before, after = (
        np.array([values[figures.frequencies == group].sum() for group in GROUPS])
        for values in (figures.instances_once, figures.instances_oversampled)
    )
    colours = [colour for _, colour, _ in GROUPS.values()]
    axes.bar(positions - 0.2, before, 0.38, color=colours, alpha=0.35, label="each image once")
    axes.bar(positions + 0.2, after, 0.38, color=colours, label="oversampled")
    for position, first, second in zip(positions, before, after, strict=True):
        gain = f"x {second / first:.2f}" if first else "none"
        axes.annotate(gain, (position + 0.2, max(second, 1)), ha="center", va="bottom", fontsize=8)
    axes.set(yscale="log", ylabel="instances in an epoch\n(pale: each image once)", xticks=positions)
    axes.set_xticklabels([name for name, _, _ in GROUPS.values()])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
