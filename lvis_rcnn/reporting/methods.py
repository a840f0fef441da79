"""How much each row of a study differs from its baseline: the table of methods."""

from collections.abc import Sequence
from typing import Any

from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.evaluation.uncertainty import Estimate
from lvis_rcnn.reporting.differences import TESTED, PairTest, difference_of, paired_tests
from lvis_rcnn.reporting.rows import Row

# Columns of the table: what stands above each, and the kind and metric that it is of.
MEASURES: dict[str, tuple[str, Kind, str]] = {
    "box_AP": ("box AP", "bbox", "AP"),
    "mask_AP": ("mask AP", "segm", "AP"),
    "mask_APr": ("APr", "segm", "APr"),
    "mask_APc": ("APc", "segm", "APc"),
    "mask_APf": ("APf", "segm", "APf"),
}
OF_FIXED: dict[str, tuple[str, Kind, str]] = {
    "fixed_mask_AP": ("AP-fixed: mask AP", "segm", "AP"),
    "fixed_mask_APr": ("AP-fixed: APr", "segm", "APr"),
}
SHOWN = " *"
"""Behind a difference that its test shows."""


def baseline_of(rows: Sequence[Row]) -> Row | None:
    """The row that the others are compared with; None where the study names none, or it is not scored."""
    return next((row for row in rows if row.is_baseline and row.sampled), None)


def differences_to(baseline: Row, row: Row) -> dict[str, Estimate]:
    """How much a row exceeds the baseline in each measure that both have with an error, by the measure's name."""
    found = {}
    is_fixed = "fixed" in row.sampled_by and "fixed" in baseline.sampled_by
    for name, (_, kind, metric) in (MEASURES | OF_FIXED if is_fixed else MEASURES).items():
        protocol = "fixed" if name in OF_FIXED else ""
        if estimate := difference_of(row, baseline, kind, protocol).get(metric):
            found[name] = estimate
    return found


def methods_record(rows: Sequence[Row], row: Row) -> dict[str, Any]:
    """The differences of a row in table.json, as fractions, p uncorrected; empty where nothing is compared."""
    baseline = baseline_of(rows)
    if baseline is None or row is baseline or not row.sampled:
        return {}
    found = differences_to(baseline, row)
    of_measures = {
        name: {"difference": one.value, "interval": list(one.interval), "p": one.p} for name, one in found.items()
    }
    return {"baseline": {"row": baseline.name, **of_measures}} if found else {}


def methods_cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table of differences to the baseline in points of AP, a line for each other row; empty without a baseline."""
    baseline = baseline_of(rows)
    if baseline is None:
        return []
    tests = paired_tests(rows)
    others = [row for row in rows if row is not baseline and row.name and row.sampled]
    found = {row.name: differences_to(baseline, row) for row in others}
    measured = {name for of_row in found.values() for name in of_row}
    columns = {name: title for name, (title, *_) in (MEASURES | OF_FIXED).items() if name in measured}
    return [
        {f"minus {baseline.title}": row.title}
        | {title: cell(found[row.name].get(name), name, row, tests) for name, title in columns.items()}
        for row in others
        if columns
    ]


def cell(found: Estimate | None, name: str, row: Row, tests: Sequence[PairTest]) -> str:
    """A difference with its interval, marked where a test shows it."""
    if found is None:
        return "-"
    low, high = found.interval
    of_cell = [test for test in tests if test.name == name and (row is test.better or row is test.worse)]
    is_shown = any(test.is_shown for test in of_cell)
    return f"{100 * found.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{SHOWN if is_shown else ''}"


def methods_note(rows: Sequence[Row]) -> str:
    """How to read that table; empty where there is none."""
    baseline = baseline_of(rows)
    if baseline is None and (named := next((row for row in rows if row.is_baseline), None)):
        return f"Nothing is compared until {named.title}, the baseline, is scored with its resamples."
    if baseline is None:
        return ""
    if not methods_cells(rows):
        is_compared = any(row.sampled for row in rows if row.name and row is not baseline)
        return f"No difference to {baseline.title} has an interval: two seeds have none." if is_compared else ""
    family = max((test.family for test in paired_tests(rows)), default=0)
    measures = ", ".join(f"{KINDS[kind]} {metric}" for kind, metric in TESTED.values())
    single = [row.is_single for row in rows if row.name and row.sampled]
    over = "images" if any(single) else "images and seeds"
    if any(single):
        rest = "one run each" if all(single) else "of rows with several runs also over seeds; of a single run"
        over += f" ({rest}: other seeds may differ)"
    return (
        f"Differences to {baseline.title} in points, with 95 % intervals over {over}, not corrected for their"
        f" number.{SHOWN} marks what is shown to differ: {measures}, paired tests, p < 0.05 after Holm's"
        f" correction for {family} tests; other columns are not tested."
    )
