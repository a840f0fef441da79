"""The ``lvis`` package beside our scorer: the reference, in every bit.

It is the only module that imports ``lvis``.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, Scores
from lvis_rcnn.evaluation.results import Found, Kind
from lvis_rcnn.system.cli import log

# Rows that are Python objects at the same time while records are made.
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class OfficialScores:
    """What ``lvis`` says, in the form of :class:`lvis_rcnn.evaluation.average_precision.Scores`."""

    precision: Float64[np.ndarray, "t r c z"]
    recall: Float64[np.ndarray, "t c z"]
    metrics: dict[str, float | None]


def official_scores(annotations: bytes, found: Found, kind: Kind, detections_per_image: int) -> OfficialScores:
    """Score by the ``lvis`` package: 10 kB for each detection, and hours where ours takes minutes.

    A mask beside a box would be binned by the box's area, so the box is left out.

    Args:
        annotations: text of a file that was read as :class:`lvis_rcnn.evaluation.ground_truth.Truth`.
        found: checked detections.
        kind: bbox or segm.
        detections_per_image: the best this many of an image count.
    """
    dataset = json.loads(annotations)
    size = len(found), len(dataset["images"]), len(dataset["categories"])
    log.info(
        "the lvis package is at work on %d detections, %d images, %d categories; it says nothing until its end", *size
    )
    # lvis cannot take an empty list. A detection without area is dropped by the protocol, so it stands for none.
    nothing = {
        "image_id": dataset["images"][0]["id"],
        "category_id": dataset["categories"][0]["id"],
        "score": 0.0,
        "bbox": [0.0, 0.0, 0.0, 0.0],
    }
    records = list(official_records(found, kind)) or [nothing]
    with official_package() as lvis:
        # LVIS() takes only a path, and would read the file a second time.
        truth = lvis.LVIS.__new__(lvis.LVIS)
        truth.logger = logging.getLogger("lvis.lvis")
        truth.dataset = dataset
        truth._create_index()
        judge = lvis.LVISEval(truth, lvis.LVISResults(truth, records, max_dets=detections_per_image), kind)
        judge.run()
    values = {name: float(judge.results[name]) for name in METRIC_NAMES}
    return OfficialScores(
        precision=judge.eval["precision"],
        recall=judge.eval["recall"],
        metrics={name: None if value == -1 else value for name, value in values.items()},
    )


def official_records(found: Found, kind: Kind) -> Iterator[dict[str, Any]]:
    """Detections as ``lvis`` takes them, with nothing but what ``kind`` needs."""
    for start in range(0, len(found), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(found)))
        columns: list[list[Any]] = [found.image_ids[rows].tolist(), found.category_ids[rows].tolist()]
        columns.append(found.scores[rows].tolist())
        if kind == "bbox":
            assert found.boxes_xywh is not None
            name, shapes = "bbox", found.boxes_xywh[rows].tolist()
        else:
            assert found.masks is not None
            # Of a mask that was left out lvis sees no pixel. It never looks: the category is none of the image's.
            name, shapes = "segmentation", found.masks.packed(rows)
        for image_id, category_id, value, shape in zip(*columns, shapes, strict=True):
            yield {"image_id": image_id, "category_id": category_id, "score": value, name: shape}


def difference(ours: Scores, theirs: OfficialScores) -> str:
    """What is not the same to the last bit; empty where nothing is."""
    for name, value in theirs.metrics.items():
        if ours.metrics[name] != value:
            return f"{name} is {ours.metrics[name]} by us, {value} by lvis"
    for name in ("precision", "recall"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if not np.array_equal(mine, other):
            return f"{name} differs in {np.count_nonzero(mine != other)} of {other.size} places"
    return ""


@contextlib.contextmanager
def official_package() -> Iterator[Any]:
    """The ``lvis`` package, for as long as the block lasts.

    lvis 0.5.3 needs ``np.float``, which NumPy dropped, warns through a deprecated method, and configures the root
    logger when imported; all three are put back. The import draws in OpenCV and matplotlib, so it waits until here.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    added = "float" not in vars(np)
    if added:
        vars(np)["float"] = float
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("lvis").setLevel(logging.ERROR)
            import lvis

            yield lvis
    finally:
        root.handlers[:], root.level = handlers, level
        if added:
            del vars(np)["float"]
