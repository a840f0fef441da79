"""Differences between two rows as text and as plots: metrics with their intervals, and every category."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from tabulate import tabulate

from lvis_rcnn.evaluation.compare import Difference, ScoredRow, corrected, mean_categories
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.evaluation.uncertainty import FEWEST_SEEDS, resamples_text, uncapped
from lvis_rcnn.reporting.figures import GROUPS, figure_file, whole_words, write_reason
from lvis_rcnn.reporting.score_plots import GROUP_METRICS

MOST_CATEGORIES = 5
TITLE_CHARACTERS = 80
"""Per line; about 95 average letters are as wide as a figure."""
LABEL_CHARACTERS = 28
TITLES: dict[Kind, str] = {"bbox": "Boxes", "segm": "Masks"}


def category_changes(first: ScoredRow, second: ScoredRow, kind: Kind) -> list[tuple[str, float, float]]:
    """Name with frequency, and both AP, of every category that both define, by what it gained."""
    rows = zip(mean_categories(first, kind), mean_categories(second, kind), strict=True)
    both = [(f"{row['name'] or row['id']} ({row['frequency']})", row[kind], other[kind]) for row, other in rows]
    defined = [(name, one, other) for name, one, other in both if one is not None and other is not None]
    return sorted(defined, key=lambda row: row[2] - row[1])


def comparison_text(
    first: ScoredRow, second: ScoredRow, found: dict[Kind, dict[str, Difference]], resamples: int, seed: int
) -> str:
    """The whole comparison as text: metrics, categories, settings."""
    parts = ["\n".join(f"{name}: {', '.join(run.name for run in row)}" for name, row in (("A", first), ("B", second)))]
    titles = dict.fromkeys(run.metrics["title"] for run in (*first, *second) if "title" in run.metrics)
    parts += [f"Scored by: {', '.join(titles)}"] if titles else []
    p_values = corrected(found)
    for kind, metrics in found.items():
        of_kind = {name: p for (of, name), p in p_values.items() if of == kind}
        if "AR" in first[0].metrics[kind]:
            metrics = {uncapped(name): one for name, one in metrics.items()}
        parts += [f"{TITLES[kind]}\n{metrics_text(metrics, of_kind)}", categories_text(first, second, kind)]
    note = (
        "In percent; B - A with 95 % interval of its mean over sets of as many images, from "
        f"{resamples_text(resamples)} (seed {seed}). p: two-sided, only of box AP, mask AP and mask APr, after Holm's "
        f"correction for {len(p_values)} tests; {seeds_note(first, second)}."
    )
    return "\n\n".join([*parts, note, settings_text(first, second)])


def seeds_note(first: ScoredRow, second: ScoredRow) -> str:
    """How far the intervals include the variation between seeds, or why there are none."""
    if two := [name for name, row in zip("AB", (first, second), strict=True) if 1 < len(row) < FEWEST_SEEDS]:
        return f"no interval and no p: two seeds of {' and of '.join(two)} cannot show how much seeds vary"
    of_several = [f"{len(row)} of {name}" for name, row in zip("AB", (first, second), strict=True) if len(row) > 1]
    if not of_several:
        return "single runs: this is about these trained models, variation between seeds is not included"
    note = f"between-seed variance is included ({', '.join(of_several)}; ± is the standard deviation over seeds)"
    alone = [name for name, row in zip("AB", (first, second), strict=True) if len(row) == 1]
    return note + (f", but not of {alone[0]}, a single run" if alone else "")


def metrics_text(found: Mapping[str, Difference], p_values: Mapping[str, float]) -> str:
    """A table of metrics with their differences, and the p values of some."""
    rows = []
    for name, row in found.items():
        bounds = "-" if row.interval is None else f"{percent(row.interval[0], '+')} to {percent(row.interval[1], '+')}"
        p = p_text(p_values[name]) if name in p_values else ""
        values = [with_spread(row.first, row.first_sd), with_spread(row.second, row.second_sd)]
        rows.append([name, *values, percent(row.difference, "+"), bounds, p])
    headers = ["", "A", "B", "B - A", "95 % interval", "p"]
    return tabulate(rows, headers=headers, colalign=["left", *["right"] * 5], disable_numparse=True)


def p_text(p: float) -> str:
    """Two digits: more would change with the seed of the resamples."""
    return "< 0.01" if p < 0.005 else f"{p:.2f}"


def with_spread(value: float | None, spread: float | None) -> str:
    """A mean with its standard deviation where there is one."""
    return percent(value) + ("" if spread is None else f" ± {percent(spread)}")


def percent(value: float | None, sign: str = "") -> str:
    """A fraction in percent; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def categories_text(first: ScoredRow, second: ScoredRow, kind: Kind) -> str:
    """The categories that gained and lost most; no interval is given, since most have few objects."""
    changes = category_changes(first, second, kind)
    gained = [row for row in reversed(changes) if row[2] > row[1]][:MOST_CATEGORIES]
    lost = [row for row in changes if row[2] < row[1]][:MOST_CATEGORIES]
    lines = []
    for title, rows in (("gained most", gained), ("lost most", lost)):
        texts = [f"{name} {percent(one)} to {percent(other)}" for name, one, other in rows]
        lines.append(f"Categories that {title}: {', '.join(texts) or 'none'}")
    return "\n".join(lines)


def printed(value: Any) -> str:
    """A setting, a number in at most six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_text(first: ScoredRow, second: ScoredRow) -> str:
    """The settings in which the records differ; of several seeds every value that occurs."""
    keys = dict.fromkeys(key for run in (*first, *second) for key in run.settings)
    values = {
        key: [", ".join(dict.fromkeys(printed(run.settings.get(key, "-")) for run in row)) for row in (first, second)]
        for key in keys
    }
    rows = [[key, *of_rows] for key, of_rows in values.items() if of_rows[0] != of_rows[1]]
    if not rows:
        return "Settings: the same in all records."
    return tabulate(rows, headers=["Settings that differ", "A", "B"], disable_numparse=True)


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
