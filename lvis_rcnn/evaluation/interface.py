"""Scoring from Python: annotations and detections as files, dictionaries or arrays.

    from lvis_rcnn.evaluation.interface import Scoring, evaluate

    metrics = evaluate("lvis_v1_val.json", "results.json", Scoring(resamples=1000))
    metrics["bbox"]["AP"], metrics["intervals"]["bbox"]["AP"]

Classes that are called as those of the ``lvis`` package are in :mod:`lvis_rcnn.evaluation.lvis_api`.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lvis_rcnn.dataset.coco import image_counts_of
from lvis_rcnn.dataset.detections import sha256_of_shards
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.evaluation.arrays import AS_ARRAY, AS_COLUMNS, COLUMNS, columns_of_array, compressed_masks, of_columns
from lvis_rcnn.evaluation.coco import RULES, lvis_text
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.masks import Masks
from lvis_rcnn.evaluation.results import (
    ALL_KINDS,
    Columns,
    DetectionSet,
    Kind,
    Result,
    allowed_of,
    check_detections,
    read_detections,
    type_of_results,
)
from lvis_rcnn.evaluation.scoring import Annotations, Scoring, score_detections
from lvis_rcnn.system.cli import InputError

AnyAnnotations = str | os.PathLike[str] | Mapping[str, Any]
AnyDetections = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Mapping[str, Any] | np.ndarray

# Dictionaries that become records at a time.
RECORDS_AT_ONCE = 1 << 14

AS_ANNOTATIONS = "the path of an LVIS annotation file (JSON), or the dictionary that it holds"
AS_DETECTIONS = f"a path; a list of dictionaries, as in an LVIS results file; {AS_COLUMNS}; {AS_ARRAY}"


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
            image_id, category_id, score, bbox [d, 4] and segmentation (a list of RLE or polygons), of which one of
            the last two may be missing; or an array [d, 7] as pycocotools takes it: image_id, x, y, width, height,
            score, category_id. Boxes are x, y, width, height in pixels.
        scoring: how they are scored; by default both kinds, 300 detections of an image, no intervals.
        coco_exhaustive: take plain COCO annotations (:mod:`lvis_rcnn.evaluation.coco`).

    Raises:
        InputError: a file is missing or damaged, or a record is not as the protocol needs it; it is named.
    """
    scoring = scoring or Scoring()
    if not isinstance(scoring, Scoring):
        raise InputError("scoring", f"is a {type(scoring).__name__}", allowed="Scoring(...) of lvis_rcnn.evaluation")
    annotations = annotations_of(ground_truth, coco_exhaustive, kinds=scoring.kinds)
    kinds = scoring.kinds or kinds_of_truth(annotations.truth)
    return score_detections(annotations, any_detections(detections, annotations.truth, kinds), scoring)[0]


def kinds_of_truth(truth: GroundTruth) -> tuple[Kind, ...]:
    """What can be scored on these annotations."""
    return ALL_KINDS if truth.has_masks else ("bbox",)


def annotations_of(
    ground_truth: AnyAnnotations,
    coco_exhaustive: bool = False,
    frequencies: Path | None = None,
    kinds: Sequence[Kind] = (),
) -> Annotations:
    """The annotations of a file, or of what its JSON holds; arguments and errors as :func:`evaluate`.

    ``frequencies`` is the COCO file whose images count for frequencies; by default the annotations themselves.
    ``kinds`` are those that are scored, if that is known.
    """
    if isinstance(ground_truth, Mapping):
        text, where = json_text(ground_truth), "annotations"
    else:
        path = path_of(ground_truth)
        text, where = bytes(read_text(path, "--annotations", "an LVIS annotation file (JSON)")), str(path)
    sha256 = hashlib.sha256(text).hexdigest()
    rules, image_counts = "", image_counts_of(frequencies, coco_exhaustive)
    if coco_exhaustive:
        text = lvis_text(text, where, image_counts)
        rules = RULES.replace("of this file", f"of {frequencies.name}") if frequencies else RULES
    return Annotations(parse_truth(text, where, kinds), text, sha256, rules)


def path_of(ground_truth: Any) -> Path:
    """The path of an annotation file; InputError for what is none."""
    if not isinstance(ground_truth, str | os.PathLike):
        raise InputError("annotations", f"is {type(ground_truth).__name__}", allowed=AS_ANNOTATIONS)
    return Path(ground_truth)


def json_text(dataset: Mapping[str, Any], where: str = "annotations") -> bytes:
    """Annotations as text; their numbers may be NumPy's, and run lengths the bytes of pycocotools.

    Raises:
        InputError: something in them is nothing that JSON has.
    """
    records = dataset.get("annotations")
    try:
        if isinstance(records, list | tuple):
            dataset = {**dataset, "annotations": [with_plain_mask(one) for one in records]}
        text = msgspec.json.encode({**dataset}, enc_hook=as_list)
        # NaN may have become null, which may stand for nothing: it becomes what it does in a file.
        return msgspec.json.encode(plain({**dataset}, nan=""), enc_hook=as_list) if b"null" in text else text
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InputError(where, f"not to be written as JSON: {error}", allowed=AS_ANNOTATIONS) from None


def with_plain_mask(record: Any) -> Any:
    """An annotation whose run-length mask, if it has one, is as JSON has it."""
    return plain(record) if isinstance(record, Mapping) and isinstance(record.get("segmentation"), Mapping) else record


def as_list(value: Any) -> Any:
    """An array or a number of NumPy or torch as JSON has it; TypeError for anything else."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"it holds {type(value).__name__}")
    is_bitmap = getattr(value, "ndim", 0) > 1 and str(value.dtype).endswith("bool")
    return (value * 1 if is_bitmap else value).tolist()


def held(detections: Any) -> Any:
    """Detections that can be read more than once: a list in place of a generator or another iterable.

    Raises:
        InputError: they are nothing that :func:`evaluate` takes.
    """
    if isinstance(detections, np.ndarray) and detections.dtype == object and detections.ndim == 1:
        return detections.tolist()  # as np.load returns a list of dictionaries
    if isinstance(detections, str | os.PathLike | np.ndarray | Mapping | list):
        return detections
    if hasattr(detections, "to_dict"):
        fix = 'give its to_dict("records"), or its to_dict("list")'
        raise InputError("detections", f"is a {type(detections).__name__}", allowed=AS_DETECTIONS, fix=fix)
    if not isinstance(detections, Iterable):
        raise InputError("detections", f"is {type(detections).__name__}", allowed=AS_DETECTIONS)
    return list(detections)


def any_detections(detections: AnyDetections, truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections in any form that :func:`evaluate` takes; of ``kinds`` those that they have."""
    if isinstance(detections, str | os.PathLike):
        path = Path(detections)
        found = read_detections(path, truth, kinds)
        return found if found.sha256 else replace(found, sha256=sha256_of_shards(path))
    given = held(detections)
    if isinstance(given, np.ndarray):
        given = columns_of_array(given)
    if isinstance(given, Mapping):
        given = read_columns(given)
        found = of_columns(given, kinds)
        if given.get("segmentation") is not None and "segm" in kinds:
            found = replace(found, masks=masks_of(given["segmentation"], found, truth))
    else:
        found = of_records(given, truth, kinds)
    check_detections(found, truth)
    return found


def read_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are read; InputError for one that NumPy does not load, of Python objects in an .npz."""
    try:
        return {name: columns[name] for name in (*COLUMNS, "bbox", "segmentation") if name in columns}
    except ValueError as error:
        raise InputError("detections", str(error), allowed=AS_COLUMNS) from None


def masks_of(column: Any, found: DetectionSet, truth: GroundTruth) -> Masks:
    """The masks of detections that are arrays: compressed run lengths, or anything that a results file may hold.

    Raises:
        InputError: not one for each detection, or one is no mask.
    """
    masks = list(column) if isinstance(column, Iterable) else []
    if len(masks) != len(found):
        raise InputError("detections", f"{len(masks)} masks of {len(found)}", allowed=AS_COLUMNS)
    compressed = compressed_masks(masks)
    if compressed is not None:
        return compressed
    ids = zip(found.image_ids.tolist(), found.category_ids.tolist(), masks, strict=True)
    records = [{"image_id": image, "category_id": of, "score": 0.0, "segmentation": one} for image, of, one in ids]
    read = of_records(records, truth, ("segm",)).masks
    assert read is not None
    return read


def of_records(records: Sequence[Mapping[str, Any]], truth: GroundTruth, kinds: Sequence[Kind]) -> DetectionSet:
    """Detections that are dictionaries."""
    columns = Columns("detections", truth, kinds)
    for start in range(0, len(records), RECORDS_AT_ONCE):
        columns.add(results_of(records[start : start + RECORDS_AT_ONCE], start, type_of_results(kinds)))
    return columns.detections()


def results_of(records: Sequence[Mapping[str, Any]], start: int, kind: type[Result]) -> list[Result]:
    """Checked records; ``start`` is the place of the first. InputError for one that is no detection."""
    try:
        return msgspec.convert(records, list[kind])  # type: ignore[valid-type]
    except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeEncodeError):
        checked = []
    for place, record in enumerate(records, start):
        try:
            checked.append(msgspec.convert(plain(record), kind))
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            allowed = "image_id, category_id, score, bbox and/or segmentation, as in an LVIS results file"
            allowed = allowed_of(str(error), allowed)
            raise InputError(f"detections: result {place}", str(error), allowed=allowed) from None
    return checked


def plain(value: Any, nan: str | None = None) -> Any:
    """A value as JSON has it, of NumPy, torch, pandas (which writes ids as 1.0) or pycocotools.

    ``nan`` stands for NaN and infinity (:func:`~lvis_rcnn.dataset.json_text.mended`); they stay where it is None.
    """
    value = as_list(value) if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(inner, nan) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, nan) for inner in value]
    if isinstance(value, bytes | bytearray):
        return value.decode("latin-1")
    if isinstance(value, str):  # half of a pair of escapes becomes what it does in a file
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if nan is not None and isinstance(value, float) and not math.isfinite(value):
        return nan
    # As the reader of files: a larger number may stand for another one.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
