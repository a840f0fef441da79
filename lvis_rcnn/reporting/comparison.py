"""Differences between two rows as text: metrics with their intervals, and the categories that changed most."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from lvis_rcnn.evaluation.compare import Difference, ScoredRow, corrected, mean_categories, share_trainings
from lvis_rcnn.evaluation.results import Kind
from lvis_rcnn.evaluation.uncertainty import FEWEST_SEEDS, resamples_text, uncapped

MOST_CATEGORIES = 5
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
    settings = [settings_text(first, second)] if any(run.settings for run in (*first, *second)) else []
    return "\n\n".join([*parts, note, *settings])


def seeds_note(first: ScoredRow, second: ScoredRow) -> str:
    """How far the intervals include the variation between seeds, or why there are none."""
    if two := [name for name, row in zip("AB", (first, second), strict=True) if 1 < len(row) < FEWEST_SEEDS]:
        return f"no interval and no p: two seeds of {' and of '.join(two)} cannot show how much seeds vary"
    of_several = [f"{len(row)} of {name}" for name, row in zip("AB", (first, second), strict=True) if len(row) > 1]
    if not of_several:
        return "single runs: this is about these trained models, variation between seeds is not included"
    if share_trainings(first, second):
        return f"both are of the same {len(first)} trainings, compared seed by seed (±: standard deviation over seeds)"
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
    """Two digits, since more would change with the seed of the resamples; "0.05" is never less than that."""
    rounded = "< 0.01" if p < 0.005 else f"{p:.2f}"
    return "< 0.05" if rounded == "0.05" and p < 0.05 else rounded


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
