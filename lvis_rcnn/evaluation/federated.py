"""What the LVIS protocol judges: detections and objects of the (image, category) cells that were looked at.

A federated set does not say of every category whether an image shows it. It does of the categories of an image's
objects and of those verified to be absent (Gupta et al. 2019, section 2.3); nothing else is judged. That is about one
cell in a hundred.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from lvis_rcnn.evaluation.ground_truth import Truth, positions
from lvis_rcnn.evaluation.results import Found


@dataclass(frozen=True, eq=False)
class Objects:
    """``g`` objects that count, cell by cell, in each cell in the order of the file."""

    rows: Int64[np.ndarray, " g"]
    """Position of each in the truth."""
    cells: Int64[np.ndarray, " g"]
    """category * images + image, ascending."""


@dataclass(frozen=True, eq=False)
class Judged:
    """``d`` detections that count, category by category, in each by descending score.

    Equal scores stand in the order of images, inside an image in that of the file.
    """

    rows: Int64[np.ndarray, " d"]
    """Position of each among all that were found."""
    images: Int64[np.ndarray, " d"]
    categories: Int64[np.ndarray, " d"]
    not_exhaustive: Bool[np.ndarray, " d"]
    """Whether the image may show more objects of the category than are annotated."""
    by_cell: Int64[np.ndarray, " d"]
    """Indices of the same detections cell by cell, in each by descending score."""

    def cells(self, num_images: int) -> Int64[np.ndarray, " d"]:
        """The cell of each, category * images + image, in the order of ``by_cell``: ascending."""
        cells: np.ndarray = self.categories[self.by_cell] * num_images + self.images[self.by_cell]
        return cells

    def only(self, kept: Bool[np.ndarray, " d"]) -> "Judged":
        """Some of them."""
        return Judged(
            rows=self.rows[kept],
            images=self.images[kept],
            categories=self.categories[kept],
            not_exhaustive=self.not_exhaustive[kept],
            by_cell=(np.cumsum(kept) - 1)[self.by_cell[kept[self.by_cell]]],
        )


def objects_of(truth: Truth) -> Objects:
    """The objects of a dataset that count: one without area, or of no finite area, does not."""
    rows = np.flatnonzero((truth.areas > 0) & (truth.areas < np.inf))
    cells = truth.categories[rows] * len(truth.image_ids) + truth.images[rows]
    order = np.argsort(cells, kind="stable")
    return Objects(rows[order], cells[order])


def best_of_images(truth: Truth, found: Found, most: int) -> Bool[np.ndarray, " d"]:
    """Whether a detection is among the best of its image, over all categories, known or not."""
    return within_cap(positions(truth.image_ids, found.image_ids), found.scores, most)


def best_of_categories(truth: Truth, found: Found, most: int) -> Bool[np.ndarray, " d"]:
    """Whether a detection is among the best of its category, over all images."""
    # Unknown categories are never judged, so they may share a cap.
    return within_cap(positions(truth.category_ids, found.category_ids) + 1, found.scores, most)


def judged_detections(truth: Truth, objects: Objects, found: Found, best: Bool[np.ndarray, " d"]) -> Judged:
    """The detections that are judged, before those without area are left out: of the best those in cells looked at."""
    images = positions(truth.image_ids, found.image_ids)
    rows = np.flatnonzero(looked_for(truth, objects, images, positions(truth.category_ids, found.category_ids)))
    rows = rows[best[rows]]
    order = np.argsort(images[rows], kind="stable")
    rows = rows[order]
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    categories = small(positions(truth.category_ids, found.category_ids[rows]))
    order = np.argsort(categories, kind="stable")
    rows, categories, images = rows[order], categories[order], small(images[rows[order]])
    by_image = np.argsort(images, kind="stable")
    by_cell = by_image[np.argsort(categories[by_image], kind="stable")]
    unsure = grid(truth, truth.not_exhaustive)
    images, categories = images.astype(np.int64), categories.astype(np.int64)
    return Judged(rows, images, categories, unsure[images, categories], by_cell)


def looked_for(
    truth: Truth, objects: Objects, images: Int64[np.ndarray, " d"], categories: Int64[np.ndarray, " d"]
) -> Bool[np.ndarray, " d"]:
    """Whether it is known if the image shows the category; not for categories that are unknown (-1)."""
    verified = grid(truth, truth.negatives)
    verified[truth.images[objects.rows], truth.categories[objects.rows]] = True
    looked: np.ndarray = verified[images, categories] & (categories >= 0)
    return looked


def grid(truth: Truth, pairs: Int64[np.ndarray, "k 2"]) -> Bool[np.ndarray, "n c"]:
    """A cell each: whether it is among ``pairs``. One bit of truth in a byte: 24 MB at LVIS v1 val."""
    cells = np.zeros((len(truth.image_ids), len(truth.category_ids)), bool)
    cells[pairs[:, 0], pairs[:, 1]] = True
    return cells


def within_cap(groups: Int64[np.ndarray, " d"], scores: Float[np.ndarray, " d"], most: int) -> Bool[np.ndarray, " d"]:
    """Whether a detection is among the best of its group; of equal scores the earlier ones are."""
    kept = np.ones(len(groups), bool)
    too_many = np.bincount(groups) > most
    if too_many.any():
        rows = np.flatnonzero(too_many[groups])
        rows = rows[np.lexsort((-scores[rows], groups[rows]))]
        kept[rows[place_in_run(groups[rows]) >= most]] = False
    return kept


def place_in_run(values: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """0, 1, 2, ... in each run of equal values."""
    starts = run_starts(values)
    places: np.ndarray = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return places


def run_starts(values: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " runs"]:
    """Where each run of equal values begins."""
    if not len(values):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))


def small(positions: Int64[np.ndarray, " k"]) -> np.ndarray:
    """The same numbers in 16 bits where they fit: NumPy sorts those ten times faster."""
    return positions.astype(np.uint16) if positions.max(initial=0) < 1 << 16 else positions
