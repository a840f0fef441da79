"""Detections that are given as arrays: a dictionary of them, or a single one as pycocotools takes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from lvis_rcnn.dataset.detections import pack_rles
from lvis_rcnn.evaluation.masks import Masks
from lvis_rcnn.evaluation.results import ALLOWED_SCORES, DetectionSet, Kind, rounded
from lvis_rcnn.system.cli import InputError

COLUMNS = ("image_id", "category_id", "score")
AS_COLUMNS = (
    f"a dictionary of arrays: {', '.join(COLUMNS)}, bbox [d, 4] and/or segmentation (a list of RLE or polygons)"
)
NUMBERS = "numbers, whole ones of 64 bits for ids"
AS_ARRAY = "an array [d, 7] of image_id, x, y, width, height, score, category_id"


def columns_of_array(array: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of an array as ``COCO.loadRes`` of pycocotools takes it; InputError for another shape.

    Of an array of records they are its fields.
    """
    if array.dtype.names:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or array.shape[1] != 7:
        raise InputError("detections", f"is an array {list(array.shape)}", allowed=AS_ARRAY)
    return {"image_id": array[:, 0], "bbox": array[:, 1:5], "score": array[:, 5], "category_id": array[:, 6]}


def of_columns(columns: Mapping[str, Any], kinds: Sequence[Kind]) -> DetectionSet:
    """Detections of a dictionary of arrays, without their masks.

    Raises:
        InputError: an array is missing, of another shape, or holds no numbers, or an id is no whole number.
    """
    given = {name: columns[name] for name in (*COLUMNS, "bbox") if columns.get(name) is not None}
    has_boxes = "bbox" in given
    if "bbox" not in kinds:
        given.pop("bbox", None)
    if lacking := [name for name in COLUMNS if name not in given]:
        fix = "of a list of detections in a dictionary give the list alone"
        raise InputError("detections", f"no {' and no '.join(lacking)}", allowed=AS_COLUMNS, fix=fix)
    if not has_boxes and columns.get("segmentation") is None:
        raise InputError("detections", "neither bbox nor segmentation", allowed=AS_COLUMNS)
    arrays = {name: numbers(name, values) for name, values in given.items()}
    count = arrays["score"].size
    for name, values in arrays.items():
        wanted = (count, 4) if name == "bbox" else (count,)
        if values.shape != wanted and (count or values.size):
            raise InputError("detections", f"{name} is {list(values.shape)}", allowed=f"{list(wanted)}")
    is_whole = arrays["score"].dtype.kind in "iu"
    scores = arrays["score"].tolist() if is_whole else given["score"] if isinstance(given["score"], list) else ()
    if (at := rounded(scores)) is not None:
        raise InputError("detections", f"score[{at}] is {scores[at]}", allowed=ALLOWED_SCORES)
    return DetectionSet(
        where="detections",
        image_ids=whole_numbers("image_id", arrays["image_id"]),
        category_ids=whole_numbers("category_id", arrays["category_id"]),
        scores=arrays["score"].astype(np.float32 if arrays["score"].dtype == np.float32 else np.float64).reshape(-1),
        boxes_xywh=arrays["bbox"].astype(np.float64).reshape(-1, 4) if "bbox" in arrays else None,
        masks=None,
    )


def numbers(name: str, values: Any) -> np.ndarray:
    """A column as an array; InputError unless it holds real numbers, none of them masked."""
    try:
        array = np.asarray(values)
        # As pandas keeps boxes: an array of lists.
        array = np.asarray(array.tolist()) if array.dtype == object else array
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError("detections", f"{name} is no array of numbers: {error}", allowed=AS_COLUMNS) from None
    if np.ma.is_masked(values):
        raise InputError("detections", f"{name} has masked values", allowed=NUMBERS)
    if array.size and array.dtype.kind not in "iuf":
        raise InputError("detections", f"{name}{first_odd(array)}", allowed=NUMBERS)
    return array if array.size else np.zeros(array.shape)


def first_odd(array: np.ndarray) -> str:
    """``[row] is value`` of the first value of a column that is no number of 64 bits."""
    values = array.ravel().tolist()
    odd = (at for at, one in enumerate(values) if type(one) not in (int, float) or not abs(one) < 2**63)
    at = next(odd, 0)
    row = f"[{at * len(array) // array.size}]" if array.ndim else ""
    return f"{row} is {values[at]!r:.40}"


def whole_numbers(name: str, values: np.ndarray) -> Int64[np.ndarray, " d"]:
    """Ids; InputError that names the first that is no whole number of 64 bits."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        fits = (values == np.floor(values)) & (np.abs(values) < 2.0**63)
    else:
        fits = values == values.astype(np.int64)
    if not fits.all():
        row = int(np.argmin(fits))
        raise InputError("detections", f"{name}[{row}] is {values[row]}", allowed="whole numbers of 64 bits")
    return values.astype(np.int64).reshape(-1)


def compressed_masks(rles: Sequence[Any]) -> Masks | None:
    """Masks with compressed run lengths, ``bytes`` or ``str``; None where one is anything else."""
    try:
        texts = [one["counts"].encode() if isinstance(one["counts"], str) else one["counts"] for one in rles]
        if not {type(text) for text in texts} <= {bytes}:
            return None
        packed = [{"size": one["size"], "counts": text} for one, text in zip(rles, texts, strict=True)]
        sizes, offsets, counts, _ = pack_rles(packed)
    except (TypeError, LookupError, ValueError):
        return None
    return Masks(sizes.astype(np.int64), offsets, counts)
