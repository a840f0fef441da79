"""Detections scored by several protocols at once: each detection is compared with each object once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from lvis_rcnn.config.protocols import Protocol
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.evaluation.average_precision import (
    Candidates,
    Scores,
    candidates_of,
    outcomes_of,
    scores_of,
)
from lvis_rcnn.evaluation.boundary import boundary_pairs
from lvis_rcnn.evaluation.federated import Objects, best_of_images, within_cap
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.iou import Pairs
from lvis_rcnn.evaluation.results import DetectionSet, Kind
from lvis_rcnn.evaluation.subsets import only_images
from lvis_rcnn.system.cli import log

DETECTIONS_PER_CATEGORY = 10_000
"""Of AP-fixed."""


def score_protocols(
    truth: GroundTruth,
    detections: DetectionSet,
    protocols: Sequence[Protocol],
    subsets: Mapping[str, Bool[np.ndarray, " n"]],
    detections_per_image: int = 300,
    processes: int = 1,
) -> Iterator[tuple[Protocol, Kind, Scores]]:
    """Score by each protocol what it scores: boxes and masks, as far as there are any, or masks alone.

    The scores of a subset are those of annotation and detection files without all other images, with ``==``.

    Args:
        truth: the annotations.
        detections: of images of ``truth``.
        protocols: at least one.
        subsets: whether each image is in a subset, by its name; the empty name is all images.
        detections_per_image: of protocols that are not AP-fixed.
        processes: number of processes that compare masks, at least 1; no result depends on it.

    Raises:
        InputError: a mask is damaged.
    """
    best = {one: best_of(one, truth, detections, subsets[one.subset], detections_per_image) for one in protocols}
    for kind in detections.kinds:
        of_kind = [one for one in protocols if kind == "segm" or not one.is_boundary]
        if not of_kind:
            continue
        of_any = np.logical_or.reduce([best[one] for one in of_kind])
        log.info("scoring %s of %d detections in %d images", kind, len(detections), len(truth.image_ids))
        candidates = {False: candidates_of(truth, detections, kind, of_any, processes=processes)}
        if bounded := [best[one] for one in of_kind if one.is_boundary]:
            log.info("comparing boundaries of masks")
            args = (truth, detections, candidates[False], np.logical_or.reduce(bounded), processes)
            candidates[True] = with_boundaries(*args)
        for one in of_kind:
            mine, inside = candidates[one.is_boundary], subsets[one.subset]
            mine = mine.only(best[one][mine.evaluated.rows])
            cut = truth if inside.all() else only_images(truth, inside)
            mine = mine if inside.all() else of_images(truth, mine, inside)
            yield one, kind, scores_of(outcomes_of(cut, detections, mine), cut.frequencies)


def best_of(
    protocol: Protocol,
    truth: GroundTruth,
    detections: DetectionSet,
    inside: Bool[np.ndarray, " n"],
    detections_per_image: int,
) -> Bool[np.ndarray, " d"]:
    """Whether a detection is in an image that is ``inside``, and among those that count there.

    AP-fixed counts the best 10,000 of a category, equal scores in the order of the file, also where the category is not
    verified: the cut comes before the federated filter (large-vocab-devil at 87dcb5e0, scripts/evaluate_ap_fixed.py).
    """
    best: np.ndarray = inside[positions(truth.image_ids, detections.image_ids)]
    if not protocol.is_fixed:
        best &= best_of_images(truth, detections, detections_per_image)
        return best
    rows = np.flatnonzero(best)
    # Unknown categories are never evaluated, so they may share a cap.
    categories = positions(truth.category_ids, detections.category_ids[rows]) + 1
    best[rows] = within_cap(categories, detections.scores[rows], DETECTIONS_PER_CATEGORY)
    return best


def with_boundaries(
    truth: GroundTruth,
    detections: DetectionSet,
    candidates: Candidates,
    best: Bool[np.ndarray, " d"],
    processes: int,
) -> Candidates:
    """The candidates, with overlaps that are also those of boundaries; only the ``best`` have any."""
    pairs, evaluated = candidates.pairs, candidates.evaluated
    some = best[evaluated.rows[evaluated.by_cell[pairs.detections]]]
    pairs = Pairs(pairs.detections[some], pairs.objects[some], pairs.overlaps[some])
    return replace(candidates, pairs=boundary_pairs(truth, candidates.objects, detections, evaluated, pairs, processes))


def of_images(truth: GroundTruth, candidates: Candidates, inside: Bool[np.ndarray, " n"]) -> Candidates:
    """Candidates of images that are ``inside``, as :func:`subsets.only_images` counts images and objects."""
    places, rows = np.cumsum(inside) - 1, candidates.objects.rows
    kept = inside[truth.images[rows]]
    of_objects = np.cumsum(inside[truth.images]) - 1
    cells = truth.categories[rows] * inside.sum() + places[truth.images[rows]]
    pairs = candidates.pairs
    return Candidates(
        objects=Objects(of_objects[rows[kept]], cells[kept]),
        evaluated=replace(candidates.evaluated, images=places[candidates.evaluated.images]),
        areas=candidates.areas,
        pairs=Pairs(pairs.detections, (np.cumsum(kept) - 1)[pairs.objects], pairs.overlaps),
    )
