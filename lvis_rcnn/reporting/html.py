"""Pages of one file each that need no network: tables that sort and search, legible on a telephone and in the dark.

A page is a template of the folder templates/, and so are style and behaviour; here is what they cannot say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

MISSING = "-"
Value = str | float | int | None
"""Of a cell; a Markup is HTML already."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    decimals: int | None = None
    """Of numbers; None for text."""
    full: float | None = None
    """The number that a bar over the whole cell stands for; None for no bars."""
    by_number: bool = False
    """Whether texts sort by the number that they begin with."""
    is_group: bool = False
    """Whether its texts are frequency groups, by which rows can be selected."""

    @property
    def kind(self) -> str | None:
        """Class of its head: how the column is set and sorted."""
        return "number" if self.decimals is not None else "by_number" if self.by_number else None


def cell(column: Column, value: Value) -> tuple[dict[str, str | None], str]:
    """Attributes and text of a cell: a text, or a number with what it sorts by."""
    if column.decimals is None:
        text = "" if value is None else value if isinstance(value, Markup) else str(value)
        by = leading_number(Markup(text).striptags()) if column.by_number else None
        return {"class": text if column.is_group else None, "data-by": by}, text
    if value is None:
        return {"class": "number", "data-by": ""}, MISSING
    number = float(value)
    bar = {} if column.full is None else {"class": "number bar", "style": f"--part:{100 * number / column.full:.0f}%"}
    return {"class": "number", "data-by": f"{number:.6g}", **bar}, f"{number:,.{column.decimals}f}"


def cells(columns: Sequence[Column], row: Sequence[Value]) -> list[tuple[dict[str, str | None], str]]:
    """A line of a table."""
    return [cell(column, value) for column, value in zip(columns, row, strict=True)]


UNITS = {"": 1, "k": 1e3, "M": 1e6}


def leading_number(text: str) -> str:
    """The number that a text begins with, 9.5 of ``9.5 ± 0.2`` and 2400000 of ``2.40 M``; empty where there is none."""
    found = re.match(r"(-?\d+(?:\.\d+)?)(?: ([kM])\b)?", text)
    return "" if found is None else f"{float(found[1]) * UNITS[found[2] or '']:.6g}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals |= {"cells": cells, "missing": MISSING}


def page(template: str, title: str, **values: Any) -> str:
    """A whole page from ``template``.html and what it shows."""
    return TEMPLATES.get_template(f"{template}.html").render(title=title, **values)


def text_page(title: str, text: str, why_none: str = "") -> str:
    """A page of plain text in its own lines and columns, or the reason why there is none."""
    return page("text", title, text=text, why_none=why_none)
