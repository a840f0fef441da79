"""How often, and where in its images, a split shows each category: what calibration corrects scores by.

All annotations of the split count, as in LVIS's own ``image_count``, also the few that are not trained on.

The fractal dimension says how objects of a category spread over the image: 2 where their centres are everywhere, 1
where they lie on a line. By box counting (Alexandridis et al. 2025, arXiv 2410.11774; kostas1515/FRACAL at 3543fe46,
``stat_files/calculate_fractality.py``):

    k(d) = cells of a d x d grid over the image that contain the centre of a box     d = 1 .. min(64, floor(sqrt(n)))
    dimension = slope of the least-squares line of log k(d) on log d                 n = objects of the category

It is at least 1, and 1 for fewer than 4 objects. A centre outside of its image is in no cell, but counts in n.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import atomic_file

# Cells on a side of the finest grid, and objects of which a line has two points.
MOST_CELLS, LEAST_OBJECTS = 64, 4

COLUMNS = ("category_id", "name", "frequency", "image_count", "instance_count", "images_of_split", "fractal_dimension")


@dataclass(frozen=True, eq=False)
class CategoryStatistics:
    """Counts of a split, and those of each of its categories, in the order of the store."""

    names: tuple[str, ...]
    frequencies: np.ndarray
    """r, c or f."""
    images: int
    """All images, also those without annotations."""
    image_counts: Int64[np.ndarray, " c"]
    instance_counts: Int64[np.ndarray, " c"]
    dimensions: Float64[np.ndarray, " c"]
    """Fractal dimensions, at least 1."""


def category_statistics(store: AnnotationStore) -> CategoryStatistics:
    """Count the categories of a split, and measure how they spread."""
    num_categories = len(store.categories)
    images = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))
    categories = store.labels.astype(np.int64) - 1
    pairs = np.sort(images * num_categories + categories)
    once = pairs[np.diff(pairs, prepend=-1) > 0]
    sizes_wh = np.stack([store.widths, store.heights], axis=1)[images]
    centres = (store.boxes_xywh[:, :2] + store.boxes_xywh[:, 2:] / 2) / sizes_wh
    return CategoryStatistics(
        names=tuple(category.name for category in store.categories),
        frequencies=np.array([category.frequency for category in store.categories]),
        images=store.num_images,
        image_counts=np.bincount(once % num_categories, minlength=num_categories),
        instance_counts=np.bincount(categories, minlength=num_categories),
        dimensions=fractal_dimensions(centres, categories, num_categories),
    )


def fractal_dimensions(
    centres_xy: Float64[np.ndarray, "A 2"], categories: Int64[np.ndarray, " A"], num_categories: int
) -> Float64[np.ndarray, " c"]:
    """The fractal dimension of each category.

    Args:
        centres_xy: centres of boxes as fractions of width and height of their images; 0 to below 1 is inside.
        categories: of the boxes, from 0.
        num_categories: ``c``.
    """
    counts = np.bincount(categories, minlength=num_categories)
    finest = np.minimum(MOST_CELLS, np.sqrt(counts).astype(np.int64))
    sides = np.arange(1, max(finest.max(initial=0), 1) + 1)
    inside = ((centres_xy >= 0) & (centres_xy < 1)).all(axis=1)
    cells = [occupied_cells(centres_xy[inside], categories[inside], num_categories, int(side)) for side in sides]
    # A category without a centre inside has slope 0, and so dimension 1.
    x, y = np.log(sides)[:, None], np.log(np.maximum(cells, 1))
    used = sides[:, None] <= finest
    from_mean = (x - (used * x).sum(axis=0) / np.maximum(finest, 1)) * used
    slopes = (from_mean * y).sum(axis=0) / np.where(counts < LEAST_OBJECTS, 1, (from_mean**2).sum(axis=0))
    return np.where(counts < LEAST_OBJECTS, 1.0, np.maximum(slopes, 1.0))


def occupied_cells(
    centres_xy: Float64[np.ndarray, "A 2"], categories: Int64[np.ndarray, " A"], num_categories: int, side: int
) -> Int64[np.ndarray, " c"]:
    """How many cells of a ``side`` x ``side`` grid hold a centre of each category; all centres are inside."""
    # The authors' edges, multiples of a rounded 1 / side: centres on an edge are common where coordinates are pixels.
    edges = np.append(np.arange(side) * (1 / side), np.inf)
    cells = (centres_xy * side).astype(np.int64)
    cells -= centres_xy < edges[cells]
    cells += centres_xy >= edges[cells + 1]
    columns, rows = cells.T
    occupied = np.zeros((num_categories, side * side), bool)
    occupied[categories, rows * side + columns] = True
    counts: np.ndarray = occupied.sum(axis=1)
    return counts


def write_statistics(path: Path, store: AnnotationStore, statistics: CategoryStatistics) -> None:
    """Write a line for each category; dimensions have all their digits."""
    numbers = (statistics.image_counts, statistics.instance_counts, statistics.dimensions)
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one, images, instances, dimension in zip(
            store.categories, *(values.tolist() for values in numbers), strict=True
        ):
            writer.writerow([one.id, one.name, one.frequency, images, instances, statistics.images, dimension])


FIX = "write it with python -m lvis_rcnn calibrate --store STORE, of the split that the model was trained on"


def read_statistics(path: Path) -> CategoryStatistics:
    """What :func:`write_statistics` wrote; InputError where the file is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return CategoryStatistics(
            names=tuple(row["name"] for row in rows),
            frequencies=np.array([row["frequency"] for row in rows]),
            images=int(rows[0]["images_of_split"]),
            image_counts=np.array([int(row["image_count"]) for row in rows]),
            instance_counts=np.array([int(row["instance_count"]) for row in rows]),
            dimensions=np.array([float(row["fractal_dimension"]) for row in rows]),
        )
    except (OSError, LookupError, TypeError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise InputError(str(path), f"no readable statistics of categories: {reason}", fix=FIX) from None


def statistics_for(path: Path, names: Sequence[str]) -> CategoryStatistics:
    """:func:`read_statistics`, which refuses those of other categories than these, or in another order."""
    found = read_statistics(path)
    if found.names != tuple(names):
        differ = next((pair for pair in zip(found.names, names, strict=False) if pair[0] != pair[1]), None)
        what = f"category {differ[0]!r} in place of {differ[1]!r}" if differ else f"{len(found.names)} categories"
        raise InputError(str(path), f"has {what}", allowed=f"the {len(names)} of the model, in their order", fix=FIX)
    return found
