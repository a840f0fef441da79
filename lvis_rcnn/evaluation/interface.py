"""Scoring from Python: annotations and detections as files, dictionaries or arrays.

    from lvis_rcnn.evaluation.interface import Scoring, evaluate

    metrics = evaluate("lvis_v1_val.json", "results.json", Scoring(resamples=1000))
    metrics["bbox"]["AP"], metrics["intervals"]["bbox"]["AP"]

Classes that are called as those of the ``lvis`` package are in :mod:`lvis_rcnn.evaluation.lvis_api`.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lvis_rcnn.dataset.detections import pack_rles, sha256_of_shards
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.evaluation.coco import RULES, lvis_text
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.masks import Masks
from lvis_rcnn.evaluation.results import (
    ALL_KINDS,
    Columns,
    DetectionSet,
    Kind,
    Result,
    check_detections,
    read_detections,
)
from lvis_rcnn.evaluation.scoring import Annotations, Scoring, score_detections
from lvis_rcnn.system.cli import InputError

AnyAnnotations = str | os.PathLike[str] | Mapping[str, Any]
AnyDetections = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | np.ndarray

# Dictionaries that become records at a time.
RECORDS_AT_ONCE = 1 << 14

COLUMNS = ("image_id", "category_id", "score")
AS_COLUMNS = f"a dictionary of arrays: {', '.join(COLUMNS)}, bbox [d, 4] and/or segmentation (a list of RLE)"
AS_ARRAY = "an array [d, 7] of image_id, x, y, width, height, score, category_id"


def evaluate(
    ground_truth: AnyAnnotations,
    detections: AnyDetections,
    scoring: Scoring | None = None,
    *,
    coco_exhaustive: bool = False,
) -> dict[str, Any]:
    """Score detections by the LVIS protocol; the value is that of metrics.json (see ``lvis_rcnn evaluate --help``).

    Args:
        ground_truth: LVIS annotations: a path, or what its JSON holds.
        detections: a results file or a folder of shards, by its path; a list of dictionaries as such a file holds
            them, whose RLE may be those of pycocotools and whose numbers may be NumPy's; a dictionary of arrays
            image_id, category_id, score, bbox [d, 4] and segmentation (a list of compressed RLE), of which one of the
            last two may be missing; or an array [d, 7] as pycocotools takes it: image_id, x, y, width, height, score,
            category_id. Boxes are x, y, width, height in pixels.
        scoring: how they are scored; by default both kinds, 300 detections of an image, no intervals.
        coco_exhaustive: take plain COCO annotations (:mod:`lvis_rcnn.evaluation.coco`).

    Raises:
        InputError: a file is missing or damaged, or a record is not as the protocol needs it; it is named.
    """
    scoring = scoring or Scoring()
    annotations = annotations_of(ground_truth, coco_exhaustive)
    kinds = scoring.kinds or kinds_of_truth(annotations.truth)
    return score_detections(annotations, any_detections(detections, annotations.truth, kinds), scoring)[0]


def kinds_of_truth(truth: GroundTruth) -> tuple[Kind, ...]:
    """What can be scored on these annotations."""
    return ALL_KINDS if truth.has_masks else ("bbox",)


def annotations_of(ground_truth: AnyAnnotations, coco_exhaustive: bool = False) -> Annotations:
    """The annotations of a file, or of what its JSON holds; arguments and errors as :func:`evaluate`."""
    if isinstance(ground_truth, Mapping):
        text, where = json_text(ground_truth), "annotations"
    else:
        path = Path(ground_truth)
        text, where = bytes(read_text(path, "--annotations", "an LVIS annotation file (JSON)")), str(path)
    sha256 = hashlib.sha256(text).hexdigest()
    if coco_exhaustive:
        text = lvis_text(text, where)
    return Annotations(parse_truth(text, where), text, sha256, RULES if coco_exhaustive else "")


def json_text(dataset: Mapping[str, Any]) -> bytes:
    """Annotations as text; their numbers may be NumPy's, and run lengths the bytes of pycocotools."""
    annotations = [
        plain(one) if isinstance(one.get("segmentation"), Mapping) else one for one in dataset.get("annotations", ())
    ]
    return msgspec.json.encode({**dataset, "annotations": annotations}, enc_hook=lambda value: value.tolist())


def any_detections(detections: AnyDetections, truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections in any form that :func:`evaluate` takes; of ``kinds`` those that they have."""
    if isinstance(detections, str | os.PathLike):
        path = Path(detections)
        found = read_detections(path, truth, kinds)
        return found if found.sha256 else replace(found, sha256=sha256_of_shards(path))
    if isinstance(detections, np.ndarray):
        found = of_columns(columns_of_array(detections), kinds)
    elif isinstance(detections, Mapping):
        found = of_columns(detections, kinds)
    else:
        found = of_records(detections, truth, kinds)
    check_detections(found, truth)
    return found


def of_records(records: Sequence[Mapping[str, Any]], truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections that are dictionaries."""
    columns = Columns("detections", truth, kinds)
    for start in range(0, len(records), RECORDS_AT_ONCE):
        columns.add(results_of(records[start : start + RECORDS_AT_ONCE], start))
    return columns.detections()


def results_of(records: Sequence[Mapping[str, Any]], start: int) -> list[Result]:
    """Checked records; ``start`` is the place of the first. InputError for one that is no detection."""
    try:
        return msgspec.convert(records, list[Result])
    except msgspec.ValidationError:
        checked = []
    for place, record in enumerate(records, start):
        try:
            checked.append(msgspec.convert(plain(record), Result))
        except msgspec.ValidationError as error:
            allowed = "image_id, category_id, score, bbox and/or segmentation, as in an LVIS results file"
            raise InputError(f"detections: result {place}", str(error), allowed=allowed) from None
    return checked


def plain(value: Any) -> Any:
    """A value as JSON has it, of NumPy, torch or pycocotools."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.tolist() if hasattr(value, "tolist") else value


def columns_of_array(array: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of an array as ``COCO.loadRes`` of pycocotools takes it."""
    if array.ndim != 2 or array.shape[1] != 7:
        raise InputError("detections", f"is an array {list(array.shape)}", allowed=AS_ARRAY)
    return {"image_id": array[:, 0], "bbox": array[:, 1:5], "score": array[:, 5], "category_id": array[:, 6]}


def of_columns(columns: Mapping[str, Any], kinds: Sequence[Kind]) -> DetectionSet:
    """Detections that are arrays.

    Raises:
        InputError: an array is missing or of another shape, or an id is no whole number.
    """
    given = {name: values for name, values in columns.items() if values is not None}
    if lacking := [name for name in COLUMNS if name not in given]:
        raise InputError("detections", f"no {' and no '.join(lacking)}", allowed=AS_COLUMNS)
    rles = given.pop("segmentation", None)
    arrays = {name: np.asarray(given[name]) for name in (*COLUMNS, "bbox") if name in given}
    for name, values in arrays.items():
        wanted = (len(arrays["score"]), 4) if name == "bbox" else (len(arrays["score"]),)
        if values.shape != wanted:
            raise InputError("detections", f"{name} is {list(values.shape)}", allowed=f"{list(wanted)}")
        if name.endswith("id") and (values != values.astype(np.int64)).any():
            raise InputError("detections", f"{name} is {values.dtype}", allowed="whole numbers")
    if (rles is None and "bbox" not in arrays) or (rles is not None and len(rles) != len(arrays["score"])):
        what = "neither bbox nor segmentation" if rles is None else f"{len(rles)} masks of {len(arrays['score'])}"
        raise InputError("detections", what, allowed=AS_COLUMNS)
    return DetectionSet(
        where="detections",
        image_ids=arrays["image_id"].astype(np.int64),
        category_ids=arrays["category_id"].astype(np.int64),
        scores=arrays["score"].astype(np.float32 if arrays["score"].dtype == np.float32 else np.float64),
        boxes_xywh=arrays["bbox"].astype(np.float64) if "bbox" in arrays and "bbox" in kinds else None,
        masks=masks_of(rles) if rles is not None and "segm" in kinds else None,
    )


def masks_of(rles: Sequence[Mapping[str, Any]]) -> Masks:
    """Compressed run-length masks, whose text may be ``bytes`` or ``str``."""
    texts = [one["counts"].encode() if isinstance(one["counts"], str) else one["counts"] for one in rles]
    packed = [{"size": one["size"], "counts": text} for one, text in zip(rles, texts, strict=True)]
    sizes, offsets, counts, _ = pack_rles(packed)
    return Masks(sizes.astype(np.int64), offsets, counts)
