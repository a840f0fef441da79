"""How large a polygon may be to be drawn, and what is none.

pycocotools keeps every fifth of a pixel along an outline, counts them in 32 bits and checks nothing (cocoapi at
8c9bcc3c, ``rleFrPoly`` of maskApi.c), so that a larger polygon crashes its process; training draws as it does.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import numpy as np

FARTHEST_PX = 1_000_000
LONGEST_PX = 10_000_000
LEAST_ROWS = 4  # of a bitmap
LEAST_NUMBERS = 6  # of a polygon that covers pixels
ALLOWED = f"coordinates up to {FARTHEST_PX:,} and an outline up to {LONGEST_PX:,} pixels"

Polygon = TypeVar("Polygon", bound=Sequence[float])


def surely_drawable(most_numbers: int, farthest_px: float) -> bool:
    """Whether polygons of so many numbers at most, none farther from 0, are small, whatever their shape."""
    return farthest_px <= FARTHEST_PX and most_numbers * farthest_px <= LONGEST_PX


def of_three_points(polygons: Sequence[Polygon]) -> list[Polygon]:
    """The polygons that can cover pixels: MMDetection leaves out all others, and pycocotools finds no pixel in them."""
    return [polygon for polygon in polygons if len(polygon) >= LEAST_NUMBERS]


def miscounted(polygons: Sequence[Sequence[float]]) -> int | None:
    """The first polygon of an odd count of numbers, or, where none has three points, the first; None where all is well.

    pycocotools drops the last of an odd count, MMDetection the polygon; the former fails where none has three points.
    """
    odd = next((n for n, polygon in enumerate(polygons) if len(polygon) % 2), None)
    return 0 if odd is None and polygons and not of_three_points(polygons) else odd


def too_large(polygon: Sequence[float]) -> str:
    """Why a polygon cannot be drawn; empty where it can, or is left out."""
    if len(polygon) < LEAST_NUMBERS:
        return ""
    # Of numbers one of which is NaN, max and min may be others.
    if math.isnan(sum(polygon)):
        return "has a coordinate that is no finite number"
    farthest_px = max(max(polygon), -min(polygon))
    if surely_drawable(len(polygon), farthest_px):
        return ""
    if farthest_px > FARTHEST_PX:
        return f"has a coordinate of {farthest_px:g} pixels"
    points = np.reshape(polygon, (-1, 2))
    length_px = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    return f"has an outline of {length_px:,.0f} pixels" if length_px > LONGEST_PX else ""


def any_bitmap(polygons_each: np.ndarray, numbers_each: np.ndarray, coordinates: np.ndarray) -> bool:
    """Whether any of these outlines, each of one polygon or more, are rows of pixels."""
    ends, bounds = polygons_each.cumsum(), np.append(0, numbers_each.cumsum())
    starts = ends - polygons_each
    alike = np.minimum.reduceat(numbers_each, starts) == np.maximum.reduceat(numbers_each, starts)
    some = np.flatnonzero(alike & (polygons_each >= LEAST_ROWS))
    parts = (coordinates[bounds[starts[at]] : bounds[ends[at]]].reshape(polygons_each[at], -1) for at in some)
    return any(is_bitmap(part.tolist()) for part in parts)


def is_bitmap(rows: Sequence[Sequence[float]]) -> bool:
    """Whether these are rows of pixels, which as polygons would be next to nothing: equally long, 0 and one number."""
    return len(rows) >= LEAST_ROWS and len({*map(len, rows)}) == 1 and len({0, *chain.from_iterable(rows)}) <= 2
