"""Plots of differences: of all rows of a study; of two rows, their metrics with intervals, and every category."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lvis_rcnn.evaluation.compare import Difference, ScoredRow, mean_categories
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.reporting.differences import TESTED, PairTest, paired_tests
from lvis_rcnn.reporting.figures import GROUPS, figure_file, whole_words, write_reason
from lvis_rcnn.reporting.rows import Row
from lvis_rcnn.reporting.score_plots import GROUP_METRICS, row_name

MOST_PAIRS = 45
"""Of rows in one figure: those of ten."""
TITLE_CHARACTERS = 80
"""Per line; about 95 average letters are as wide as a figure."""
LABEL_CHARACTERS = 28


def write_difference_plots(
    first: ScoredRow,
    second: ScoredRow,
    found: Mapping[Kind, Mapping[str, Difference]],
    names: tuple[str, str],
    out: Path,
) -> None:
    """Write differences.{png,svg} and category_differences.{png,svg}.

    Args:
        first: the runs of a row.
        second: those of another one.
        found: their differences by kind and metric.
        names: the paths that were compared: of runs, of rows, or of studies.
        out: folder.
    """
    names = short_names(row_path(names[0], first[0].name), row_path(names[1], second[0].name))
    write_metric_differences(found, names, out)
    kind: Kind = "segm" if "segm" in found else "bbox"
    write_category_differences(mean_categories(first, kind), mean_categories(second, kind), names, kind, out)


def write_row_differences(rows: Sequence[Row], out: Path) -> None:
    """Write row_differences.{png,svg}: the paired difference of every two rows, a panel for each tested metric."""
    tests = paired_tests(rows)
    if not tests:
        return write_reason(out / "row_differences", "fewer than two rows can be compared: scored, with resamples")
    at = {id(row): place for place, row in enumerate(rows)}
    # The later row minus the earlier, which is the larger backbone minus the smaller in the studies of configs/.
    pairs = sorted({tuple(sorted((at[id(test.better)], at[id(test.worse)]))) for test in tests})[:MOST_PAIRS]
    with figure_file(out / "row_differences", height_in=0.3 * len(pairs) + 1.3) as figure:
        panels = figure.subplots(1, len(TESTED), sharey=True)
        for axes, name in zip(panels, TESTED, strict=True):
            for test in (test for test in tests if test.name == name):
                first, second = at[id(test.worse)], at[id(test.better)]
                if (pair := (min(first, second), max(first, second))) in pairs:
                    draw_pair(axes, pairs.index(pair), test, 1 if first < second else -1)
            axes.axvline(0, color="0.4", linewidth=0.8)
            axes.set_xlabel(f"difference of\n{name.replace('_', ' ')}, points")
            axes.grid(axis="y", visible=False)
        labels = [f"{row_name(rows[second])}\nminus {row_name(rows[first])}" for first, second in pairs]
        panels[0].set_yticks(range(len(pairs)), labels, fontsize=7)
        panels[0].set_ylim(len(pairs) - 0.5, -0.5)
        how = f"filled: p < 0.05 after Holm's correction for {tests[0].family} tests"
        figure.suptitle(f"Differences over the same images, with 95 % intervals of each alone\n{how}")


def draw_pair(axes: Axes, place: int, test: PairTest, sign: int) -> None:
    """A point with its interval; black and filled where the difference is shown."""
    colour, ends = "black" if test.is_shown else "0.45", [sign * bound for bound in test.interval]
    axes.plot(ends, [place, place], color=colour, linewidth=1.4)
    axes.plot(sign * test.points, place, "o", color=colour, markersize=5, mfc=colour if test.is_shown else "white")


def row_path(compared: str, run: str) -> Path:
    """The path that was compared, extended to the row of ``run`` where it is a study's; without seeds."""
    below = Path(run).relative_to(compared).parts
    return Path(compared, *(part for part in below if part != "metrics.json" and not part.startswith("seed")))


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """Two paths without the folders that both begin with."""
    ours, theirs = first.parts, second.parts
    most = min(len(ours), len(theirs)) - 1
    shared = next((at for at in range(most) if ours[at] != theirs[at]), most)
    return "/".join(ours[shared:]), "/".join(theirs[shared:])


def title_of(text: str) -> str:
    """A title in as many lines as keep it inside the figure."""
    return textwrap.fill(text, TITLE_CHARACTERS)


def write_metric_differences(found: Mapping[Kind, Mapping[str, Difference]], names: tuple[str, str], out: Path) -> None:
    """Write differences.{png,svg}: AP of all, rare, common and frequent categories with intervals, a panel per kind."""
    with figure_file(out / "differences", height_in=2.4) as figure:
        panels = figure.subplots(1, len(found), sharex=True, squeeze=False)[0]
        for axes, (kind, metrics) in zip(panels, found.items(), strict=True):
            draw_intervals(axes, {word: metrics[name] for name, word in GROUP_METRICS.items()})
            axes.set(xlabel=f"difference of {KINDS[kind]} AP, points")
        figure.suptitle(title_of(f"{names[1]} minus {names[0]}, with 95 % intervals"))


def draw_intervals(axes: Axes, found: Mapping[str, Difference]) -> None:
    """A line for each difference; filled where its interval excludes 0."""
    colours = {name: colour for name, colour, _ in GROUPS.values()}
    for place, (word, one) in enumerate(found.items()):
        if one.difference is None or one.interval is None:
            continue
        low, high = (100 * bound for bound in one.interval)
        colour, value = colours.get(word, "black"), 100 * one.difference
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(value, place, "o", color=colour, markerfacecolor=colour if low > 0 or high < 0 else "white")
        axes.annotate(f"{value:+.1f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)


def write_category_differences(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    kind: Kind,
    out: Path,
) -> None:
    """Write category_differences.{png,svg}: how much the AP of each category differs, or why there is no plot.

    Left: all categories, ordered by their difference. Right: those that differ most, by name.

    Args:
        before: ``per_category`` of one metrics.json, or means of several.
        after: of another, scored on the same categories.
        names: what they are called.
        kind: bbox or segm.
        out: folder.
    """
    pairs = paired_categories(before, after, kind)
    if not pairs:
        return write_reason(out / "category_differences", f"no category has {KINDS[kind]} AP in both")
    with figure_file(out / "category_differences", height_in=4.8) as figure:
        left, right = figure.subplots(1, 2)
        draw_all_differences(left, pairs)
        draw_largest_differences(right, pairs)
        left.set_ylabel(f"difference of {KINDS[kind]} AP, points")
        right.set_xlabel(f"difference of {KINDS[kind]} AP, points")
        figure.suptitle(title_of(f"{KINDS[kind]} AP of each category, {names[1]} minus {names[0]}"))


def paired_categories(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], kind: Kind
) -> list[tuple[str, str, float]]:
    """(name, frequency, difference of AP in points) of the categories that both define, largest gain first."""
    old = {category["id"]: category.get(kind) for category in before}
    found = [
        (category["name"], category["frequency"], 100 * (category[kind] - old[category["id"]]))
        for category in after
        if category.get(kind) is not None and old.get(category["id"]) is not None
    ]
    return sorted(found, key=lambda pair: (-pair[2], pair[0]))


def draw_all_differences(axes: Axes, pairs: Sequence[tuple[str, str, float]]) -> None:
    """Every category, ordered by its difference; the legend gives the mean gain of each group."""
    for group, (name, colour, marker) in GROUPS.items():
        of_group = [(place, change) for place, (_, frequency, change) in enumerate(pairs) if frequency == group]
        if of_group:
            x, y = zip(*of_group, strict=True)
            label = f"{name}: mean {sum(y) / len(y):+.1f}, {sum(v > 0 for v in y)} of {len(y)} gain"
            axes.scatter(x, y, s=14, c=colour, marker=marker, alpha=0.7, linewidths=0, label=label)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_xlabel("categories, largest gain first")
    axes.margins(y=0.25)
    axes.legend(loc="upper right", handlelength=1)


def fits_label(name: str) -> bool:
    """Whether a name is short enough to stand beside an axis."""
    return len(name) <= LABEL_CHARACTERS


def draw_largest_differences(axes: Axes, pairs: Sequence[tuple[str, str, float]], most: int = 10) -> None:
    """The largest gains and losses, by name."""
    ends = list(pairs) if len(pairs) <= 2 * most else [*pairs[:most], *pairs[-most:]]
    places = range(len(ends))
    colours = [GROUPS[group][1] for _, group, _ in ends]
    axes.barh(places, [change for _, _, change in ends], color=colours, height=0.7)
    axes.set_yticks(places, [f"{whole_words(name, fits_label)} ({group})" for name, group, _ in ends])
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.grid(axis="y", visible=False)
