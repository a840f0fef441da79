"""Which detections and objects the LVIS protocol evaluates: those of (image, category) pairs with verified annotations.

A federated dataset does not say of every category whether an image shows it. It does for the categories of an image's
objects and for those verified to be absent (Gupta et al. 2019, section 2.3); nothing else is evaluated. An (image,
category) pair is called a *cell*; about one in a hundred is evaluated.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.results import DetectionSet


@dataclass(frozen=True, eq=False)
class Objects:
    """``g`` objects that are evaluated, sorted by cell, within a cell in the order of the file."""

    rows: Int64[np.ndarray, " g"]
    """Position of each in the ground truth."""
    cells: Int64[np.ndarray, " g"]
    """category * images + image, ascending."""


@dataclass(frozen=True, eq=False)
class EvaluatedDetections:
    """``d`` detections that are evaluated, sorted by category, then by descending score.

    Equal scores are in the order of images, within an image in that of the file.
    """

    rows: Int64[np.ndarray, " d"]
    """Position of each in the detection set."""
    images: Int64[np.ndarray, " d"]
    categories: Int64[np.ndarray, " d"]
    not_exhaustive: Bool[np.ndarray, " d"]
    """Whether the image may show more objects of the category than are annotated."""
    by_cell: Int64[np.ndarray, " d"]
    """Indices of the same detections sorted by cell, then by descending score."""

    def cells(self, num_images: int) -> Int64[np.ndarray, " d"]:
        """The cell of each, category * images + image, in the order of ``by_cell``: ascending."""
        cells: np.ndarray = self.categories[self.by_cell] * num_images + self.images[self.by_cell]
        return cells

    def only(self, kept: Bool[np.ndarray, " d"]) -> "EvaluatedDetections":
        """Those that are ``kept``."""
        return EvaluatedDetections(
            rows=self.rows[kept],
            images=self.images[kept],
            categories=self.categories[kept],
            not_exhaustive=self.not_exhaustive[kept],
            by_cell=(np.cumsum(kept) - 1)[self.by_cell[kept[self.by_cell]]],
        )


def objects_of(truth: GroundTruth) -> Objects:
    """The objects that are evaluated: those of a positive, finite area."""
    rows = np.flatnonzero(truth.has_area)
    cells = truth.categories[rows] * len(truth.image_ids) + truth.images[rows]
    order = np.argsort(cells, kind="stable")
    return Objects(rows[order], cells[order])


def best_of_images(truth: GroundTruth, detections: DetectionSet, most: int) -> Bool[np.ndarray, " d"]:
    """Whether a detection is among the ``most`` best of its image, over all categories, known or not."""
    return within_cap(positions(truth.image_ids, detections.image_ids), detections.scores, most)


def evaluated_detections(
    truth: GroundTruth, detections: DetectionSet, best: Bool[np.ndarray, " d"]
) -> EvaluatedDetections:
    """Those of the ``best`` that lie in verified cells, including the ones without area, which are removed later."""
    images = positions(truth.image_ids, detections.image_ids)
    rows = np.flatnonzero(truth.is_verified(images, positions(truth.category_ids, detections.category_ids)) & best)
    order = np.argsort(images[rows], kind="stable")
    rows = rows[order]
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    categories = narrowed(positions(truth.category_ids, detections.category_ids[rows]))
    order = np.argsort(categories, kind="stable")
    rows, categories, images = rows[order], categories[order], narrowed(images[rows[order]])
    by_image = np.argsort(images, kind="stable")
    by_cell = by_image[np.argsort(categories[by_image], kind="stable")]
    not_exhaustive = truth.grid(truth.not_exhaustive)
    images, categories = images.astype(np.int64), categories.astype(np.int64)
    return EvaluatedDetections(rows, images, categories, not_exhaustive[images, categories], by_cell)


def within_cap(groups: Int64[np.ndarray, " d"], scores: Float[np.ndarray, " d"], most: int) -> Bool[np.ndarray, " d"]:
    """Whether a detection is among the ``most`` best of its group; among equal scores the earlier ones win."""
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


def narrowed(positions: Int64[np.ndarray, " k"]) -> np.ndarray:
    """The same numbers in 16 bits where they fit: NumPy sorts those ten times faster."""
    return positions.astype(np.uint16) if positions.max(initial=0) < 1 << 16 else positions
