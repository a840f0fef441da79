"""The cells of the results table as they are printed: the page's columns in its order, then ours."""

import pandas as pd

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.runs import MEASURES
from lvis_rcnn.table_rows import PUBLISHED, Link, Row, cell, download, is_best, moments_of, published_value

# What stands behind numbers that were measured elsewhere than the first of their column.
MARKS = ("", "†", "‡", "§")
OF_DEVICE = ("memory_gb", "fps")
PUBLISHERS = "the publisher's GPUs"

# The page's columns in its order; Download stands between the two.
PAGE_COLUMNS = {"memory_gb": "Mem (GB)", "fps": "Inf time (fps)", "box_AP": "box AP", "mask_AP": "mask AP"}
FURTHER_COLUMNS = {"mask_APr": "APr", "mask_APc": "APc", "mask_APf": "APf", "images_seen": "Images seen"}


def cells(rows: list[Row], link: Link | None = None, marked: bool = False) -> pd.DataFrame:
    """The printed table; with ``link`` it has the column Download, with published models what a row is of.

    ``marked``: the best AP among rows of the same data stands between two asterisks.
    """
    lines = []
    for row in rows:
        line = {"Backbone": row.title, "Style": BACKBONES[row.backbone].style, "Lr schd": row.lr_schd}
        if any(other.model for other in rows):
            line |= {"Scored on": row.scored_on, "Source": row.source}
        line |= {title: printed(row, rows, name, marked) for name, title in PAGE_COLUMNS.items()}
        if link:
            line["Download"] = download(row, link)
        further = FURTHER_COLUMNS | hours_column(rows)
        line |= {title: printed(row, rows, name, marked) for name, title in further.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def hours_column(rows: list[Row]) -> dict[str, str]:
    """What a training took, with all its starts: CPU-hours where no GPU took part."""
    took = {name: [moments_of(row, name)["mean"] for row in rows] for name in ("gpu_hours", "cpu_hours")}
    by_cpu = any(took["cpu_hours"]) and not any(took["gpu_hours"])
    return {"cpu_hours": "CPU-hours"} if by_cpu else {"gpu_hours": "GPU-hours"}


def printed(row: Row, rows: list[Row], name: str, marked: bool) -> str:
    """A cell; ``marked``: the best AP among rows of the same data stands in bold."""
    text = cell(row, name) + mark(rows, row, name)
    return f"**{text}**" if marked and "AP" in name and is_best(row, rows, name) else text


def place_of(row: Row, name: str) -> str | None:
    """Where memory or speed of a row was measured; None where there is no number."""
    if row.source == PUBLISHED:
        return PUBLISHERS if published_value(row, name) is not None else None
    return row.measured_on if row.runs_of(name)[0].value(MEASURES[name]) is not None else None


def places(rows: list[Row]) -> list[str]:
    """Every place where memory or speed was measured; the first needs no mark."""
    return list(dict.fromkeys(place for row in rows for name in OF_DEVICE if (place := place_of(row, name))))


def mark(rows: list[Row], row: Row, name: str) -> str:
    """What tells a number of another device from the others of its column."""
    place = place_of(row, name) if name in OF_DEVICE else None
    return MARKS[min(places(rows).index(place), len(MARKS) - 1)] if place else ""
