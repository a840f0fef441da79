"""What is kept of a scored run: which detection of which image was right, wrong or did not count.

It is all that a metric needs, of these images or of any resample of them, and a fiftieth of the detections' bytes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from lvis_rcnn.match import Hits
from lvis_rcnn.score import Matches
from lvis_rcnn.truth import Truth


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcomes of boxes or masks: ``d`` detections and ``g`` objects, by category, detections by descending score.

    Equal scores stand in the order of images, inside an image in that of the file.
    """

    num_images: int
    starts: Int64[np.ndarray, " bounds"]
    """First detection of each category, and their number."""
    images: Int64[np.ndarray, " d"]
    """Position of each detection's image."""
    tied: Bool[np.ndarray, " d"]
    """Whether a detection has category, score and image of the one before it."""
    counts_alone: Bool[np.ndarray, "d z"]
    """Whether a detection is a false positive where it finds nothing; else it does not count."""
    hits: Hits
    """Those that found an object, in their order, at each threshold and size."""
    object_starts: Int64[np.ndarray, " bounds"]
    """First object of each category, and their number."""
    object_images: Int64[np.ndarray, " g"]
    object_counts: Bool[np.ndarray, "g z"]
    """Whether an object is of a size, and not ignored."""


def outcomes_of(matches: Matches, truth: Truth) -> Outcomes:
    """What is kept of who found what."""
    judged, hits = matches.judged, matches.hits
    order = np.argsort(hits.detections)
    bounds = np.arange(len(truth.category_ids) + 1)
    return Outcomes(
        num_images=len(truth.image_ids),
        starts=np.searchsorted(judged.categories, bounds),
        images=judged.images,
        tied=matches.tied,
        counts_alone=matches.counts_alone,
        hits=Hits(hits.detections[order], hits.matched[order], hits.on_ignored[order]),
        object_starts=np.searchsorted(matches.object_categories, bounds),
        object_images=matches.object_images,
        object_counts=matches.object_counts,
    )
