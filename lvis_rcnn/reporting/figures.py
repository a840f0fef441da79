"""How every plot looks and is written: as SVG and as PNG, the same bytes for the same data.

The colours are those of Okabe and Ito, which colour-blind people can distinguish; markers and line styles differ too.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lvis_rcnn.system.files import atomic_file

# Printed across two columns of a page, letters are as large as those of a caption.
WIDTH_IN = 7.2
PIXELS_PER_INCH = 160
LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "lvis_rcnn",
}
# In letter widths: enough to distinguish dashes from dots.
LEGEND_LINE = 3.2

GROUPS = {
    "r": ("rare", "#D55E00", "o"),
    "c": ("common", "#0072B2", "s"),
    "f": ("frequent", "#009E73", "^"),
}

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = (
    *("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))),
    *((0, (9, 3)), (0, (1, 4)), (0, (3, 4)), (0, (9, 2, 3, 2))),
)


def style(place: int) -> dict[str, Any]:
    """Colour, marker and line of row ``place`` of a table, for ``Axes.plot``; the first 504 differ."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


@contextmanager
def figure_file(stem: Path, height_in: float, width_in: float = WIDTH_IN) -> Iterator[Figure]:
    """A figure to draw on; leaving the block writes ``stem``.png and ``stem``.svg, each whole or not at all.

    A user's own matplotlibrc has no effect.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOK)
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure
        # Laid out once for both files: it takes as long as drawing one.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with atomic_file(stem.with_name(f"{stem.name}.{suffix}")) as temporary:
                figure.savefig(temporary, format=suffix, dpi=PIXELS_PER_INCH, metadata=metadata)


def write_reason(stem: Path, reason: str) -> None:
    """Write ``stem``.png and ``stem``.svg that show why there is no plot."""
    with figure_file(stem, height_in=1.0) as figure:
        show_reason(figure.subplots(), reason)


def show_reason(axes: Axes, reason: str) -> None:
    """Show in place of a panel why there is none."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, color="0.3", transform=axes.transAxes)


def whole_words(text: str, fits: Callable[[str], bool]) -> str:
    """A text, or as many of its words as fit, or of a single long word as many letters; what is cut ends in …."""
    if fits(text):
        return text
    words = [found.start() for found in re.finditer(r"[ _]", text)]
    cuts = [*reversed(words), *range(len(text) - 1, 0, -1)]
    return next((kept for at in cuts if fits(kept := text[:at].rstrip(" _,;:") + "…")), "…")


def legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, below them, each label once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        longest = max(map(len, handles))
        columns = max(1, min(4, 100 // (longest + 8)))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, handlelength=LEGEND_LINE)
