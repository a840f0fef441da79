"""Pages of one file each that need no network: tables that sort and search, legible on a telephone and in the dark."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --pale: #5c5c5c; --line: #d9d9d9; --page: #fff; --head: #f3f3f3;
  --bar: #cfe3f1; --rare: #a54400; --common: #00568a; --frequent: #006b4c; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --pale: #a9a9a9; --line: #3a3a3a; --page: #161616;
  --head: #242424; --bar: #17405c; --rare: #ff9b57; --common: #6db9ee; --frequent: #4fd1a5; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { max-width: 75ch; margin: .4rem 0; } p.pale, .count { color: var(--pale); }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .7rem 0; }
input, select, th button { font: inherit; color: inherit; }
input, select { padding: .3rem .5rem; border: 1px solid var(--line); border-radius: 4px; background: var(--page); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; max-width: max-content; }
.sortable .wide { max-height: 85vh; overflow: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--head); position: sticky; top: 0; z-index: 1; vertical-align: bottom;
  min-width: 4.5rem; max-width: 9rem; }
th button { border: 0; background: none; padding: 0; font-weight: 600; text-align: inherit;
  cursor: pointer; }
th button::after { content: "\\a0\\2195"; color: var(--pale); }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
td.number, th.number { text-align: right; }
td.bar { background: linear-gradient(to right, var(--bar) var(--part), transparent var(--part)); }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--page); overflow-wrap: break-word;
  min-width: 7rem; max-width: 11rem; }
th:first-child { background: var(--head); z-index: 2; }
.rare { color: var(--rare); } .common { color: var(--common); } .frequent { color: var(--frequent); }
pre { overflow-x: auto; font-size: 13px; line-height: 1.35; }
"""

# Cells carry what they sort by; what is missing stays last either way.
JS = """
for (const box of document.querySelectorAll('.sortable')) {
  const body = box.querySelector('tbody'), heads = [...box.querySelectorAll('th')];
  const search = box.querySelector('input'), choice = box.querySelector('select'), count = box.querySelector('.count');
  const key = (row, at) => row.cells[at].dataset.by ?? row.cells[at].textContent;
  heads.forEach((head, at) => head.querySelector('button').addEventListener('click', () => {
    const number = head.matches('.number, .by_number');
    const last = head.getAttribute('aria-sort');
    const up = last ? last !== 'ascending' : !number;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a, at), key(b, at)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = number ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...rows);
  }));
  const filter = () => {
    const words = search.value.toLowerCase(), group = choice ? choice.value : '';
    let shown = 0;
    for (const row of body.rows) {
      const fits = row.textContent.toLowerCase().includes(words) && (!group || row.dataset.group === group);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown + ' of ' + body.rows.length;
  };
  search.addEventListener('input', filter);
  if (choice) choice.addEventListener('change', filter);
  filter();
}
"""

MISSING = "-"
Value = str | float | int | None


class Best(str):
    """Text that stands out."""


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


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page; ``parts`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{JS}</script>\n</body>\n</html>\n"
    )


def paragraph(text: str, pale: bool = False) -> str:
    """A paragraph of plain text."""
    opening = '<p class="pale">' if pale else "<p>"
    return f"{opening}{html.escape(text)}</p>"


def heading(text: str) -> str:
    """A heading of a part."""
    return f"<h2>{html.escape(text)}</h2>"


def plain_text(text: str) -> str:
    """Text in its own lines and columns."""
    return f"<pre>{html.escape(text)}</pre>"


def table(columns: Sequence[Column], rows: Sequence[Sequence[Value]]) -> str:
    """A table that stays as it is."""
    body = "\n".join(table_row(columns, row) for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{heads(columns, "{}")}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def sortable_table(
    columns: Sequence[Column], rows: Sequence[Sequence[Value]], what: str, groups: Sequence[str] = ()
) -> str:
    """A table that sorts by a click on a head, and searches.

    Args:
        columns: of the table.
        rows: a value each; None is missing and sorts last.
        what: what a row is, in the plural.
        groups: values of the second column that rows can be narrowed to; none for no choice.
    """
    body = "\n".join(table_row(columns, row, str(row[1]) if groups else "") for row in rows)
    options = "".join(f'<option value="{name}">{name} only</option>' for name in groups)
    choice = f'<select aria-label="group"><option value="">all {what}</option>{options}</select>' if groups else ""
    head = heads(columns, '<button type="button">{}</button>')
    return (
        f'<div class="sortable"><div class="controls"><input type="search" placeholder="search {what}" '
        f'aria-label="search {what}">{choice}<span class="count" role="status"></span></div>\n'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></div>'
    )


def heads(columns: Sequence[Column], inside: str) -> str:
    """The cells of the first line."""
    return "".join(
        f'<th scope="col"{kind_of(column)}>{inside.format(html.escape(column.title))}</th>' for column in columns
    )


def kind_of(column: Column) -> str:
    """What a head says of its column: how it is set and sorted."""
    if column.decimals is not None:
        return ' class="number"'
    return ' class="by_number"' if column.by_number else ""


def table_row(columns: Sequence[Column], row: Sequence[Value], group: str = "") -> str:
    """One line."""
    mark = f' data-group="{group}"' if group else ""
    cells = "".join(cell(column, value, group) for column, value in zip(columns, row, strict=True))
    return f"<tr{mark}>{cells}</tr>"


def cell(column: Column, value: Value, group: str = "") -> str:
    """One cell: text, or a number with what it sorts by."""
    if column.decimals is None:
        text = html.escape("" if value is None else str(value))
        text = f"<strong>{text}</strong>" if isinstance(value, Best) else text
        by = f' data-by="{leading_number(str(value))}"' if column.by_number else ""
        return f'<td class="{group}">{text}</td>' if group and text == group else f"<td{by}>{text}</td>"
    if value is None:
        return f'<td class="number" data-by="">{MISSING}</td>'
    number = float(value)
    part = "" if column.full is None else f' style="--part:{100 * number / column.full:.0f}%"'
    bar = "" if column.full is None else " bar"
    return f'<td class="number{bar}" data-by="{number:.6g}"{part}>{number:,.{column.decimals}f}</td>'


UNITS = {"": 1, "k": 1e3, "M": 1e6}


def leading_number(text: str) -> str:
    """The number that a text begins with, 9.5 of ``9.5 ± 0.2`` and 2400000 of ``2.40 M``; empty where there is none."""
    found = re.match(r"(-?\d+(?:\.\d+)?)(?: ([kM])\b)?", text)
    return "" if found is None else f"{float(found[1]) * UNITS[found[2] or '']:.6g}"
