"""The ``lvis`` package as the reference for our scorer, which agrees with it bit for bit.

This is the only module that imports ``lvis``.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvis_rcnn.dataset.polygons import of_three_points
from lvis_rcnn.dataset.rle import BASE, MORE
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, Scores
from lvis_rcnn.evaluation.masks import damaged, texts_fit
from lvis_rcnn.evaluation.results import DetectionSet, Kind
from lvis_rcnn.system.cli import log

# Rows that are turned into Python objects at a time.
ROWS_AT_ONCE = 1 << 14

# Of a whole number that Python reads: ``sys.get_int_max_str_digits()`` by default.
MOST_DIGITS = 4300


# Characters of compressed run lengths that another one of the same number follows.
NOT_LAST = bytes(range(BASE + MORE, BASE + 2 * MORE))


@dataclass(frozen=True, eq=False)
class OfficialScores:
    """Scores by ``lvis``, in the form of :class:`lvis_rcnn.evaluation.average_precision.Scores`."""

    precision: Float64[np.ndarray, "t r c z"]
    recall: Float64[np.ndarray, "t c z"]
    metrics: dict[str, float | None]


def official_scores(
    annotations: bytes, detections: DetectionSet, kind: Kind, detections_per_image: int
) -> OfficialScores:
    """Score with the ``lvis`` package, which takes 10 kB per detection, and hours where ours takes minutes.

    Given both, ``lvis`` would take the size of a mask from the area of its box, so it gets the mask alone.

    Args:
        annotations: JSON that was read as :class:`lvis_rcnn.evaluation.ground_truth.GroundTruth`.
        detections: checked detections.
        kind: bbox or segm.
        detections_per_image: at most so many of an image count, the best ones.
    """
    dataset = dataset_of(annotations)
    if kind == "segm":
        fill_empty_outlines(dataset)
    size = len(detections), len(dataset["images"]), len(dataset["categories"])
    log.info("the lvis package scores %d detections, %d images, %d categories, without showing progress", *size)
    # lvis cannot take an empty list. The protocol drops a detection without area, so this one counts as none.
    nothing = {
        "image_id": dataset["images"][0]["id"],
        "category_id": dataset["categories"][0]["id"],
        "score": 0.0,
        "bbox": [0.0, 0.0, 0.0, 0.0],
    }
    records = list(official_records(detections, kind)) or [nothing]
    with official_package() as lvis:
        # LVIS() takes only a path and would read the file a second time.
        truth = lvis.LVIS.__new__(lvis.LVIS)
        truth.logger = logging.getLogger("lvis.lvis")
        truth.dataset = dataset
        truth._create_index()
        evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, records, max_dets=detections_per_image), kind)
        evaluation.run()
    values = {name: float(evaluation.results[name]) for name in METRIC_NAMES}
    return OfficialScores(
        precision=evaluation.eval["precision"],
        recall=evaluation.eval["recall"],
        metrics={name: None if value == -1 else value for name, value in values.items()},
    )


def dataset_of(annotations: bytes) -> dict[str, Any]:
    """The file as Python objects; what Python refuses in keys that no score reads, our reader skips, so it is replaced.

    Such are bytes that are not UTF-8, and whole numbers of thousands of digits.
    """
    try:
        dataset: dict[str, Any] = json.loads(annotations)
    except ValueError:
        text = annotations.decode("utf-8-sig", errors="replace")
        dataset = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < MOST_DIGITS else 0)
    return dataset


def fill_empty_outlines(dataset: dict[str, Any]) -> None:
    """Leave out polygons of no pixel, and make empty masks of outlines without one: ``lvis`` reads the first."""
    sizes_hw = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        outline = annotation.get("segmentation")
        if isinstance(outline, list):
            annotation["segmentation"] = outline = of_three_points(outline)
        if outline in (None, []):
            height, width = sizes_hw[annotation["image_id"]]
            annotation["segmentation"] = {"size": [height, width], "counts": [height * width]}


def official_records(detections: DetectionSet, kind: Kind) -> Iterator[dict[str, Any]]:
    """Detections as ``lvis`` takes them, with nothing but what ``kind`` needs."""
    for start in range(0, len(detections), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(detections)))
        columns: list[list[Any]] = [detections.image_ids[rows].tolist(), detections.category_ids[rows].tolist()]
        columns.append(detections.scores[rows].tolist())
        if kind == "bbox":
            assert detections.boxes_xywh is not None
            name, shapes = "bbox", detections.boxes_xywh[rows].tolist()
        else:
            assert detections.masks is not None
            # A mask that inference left out is empty here; lvis ignores it, since its category is not verified.
            name, shapes = "segmentation", detections.masks.packed(rows)
            # lvis would never come back from comparing such a mask, and compares more of them than we do, but none that
            # has a single run, of background.
            runs_each = [len(shape["counts"].translate(None, NOT_LAST)) for shape in shapes]
            wrong = ~texts_fit(shapes) & (np.array(runs_each) > 1)
            if wrong.any():
                raise damaged(detections.record(int(rows[np.argmax(wrong)])))
        for image_id, category_id, value, shape in zip(*columns, shapes, strict=True):
            yield {"image_id": image_id, "category_id": category_id, "score": value, name: shape}


def difference(ours: Scores, theirs: OfficialScores) -> str:
    """The first thing that is not bit-identical; empty where everything is."""
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
    """The ``lvis`` package, made to work for the duration of the block.

    lvis 0.5.3 needs ``np.float``, which NumPy removed, warns through a deprecated method, and configures the root
    logger when imported; all three are restored afterwards. It imports OpenCV and matplotlib, hence only here, without
    the backend of a notebook that this process may have been started from.
    """
    backend = os.environ.pop("MPLBACKEND", None)
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
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
        if added:
            del vars(np)["float"]
