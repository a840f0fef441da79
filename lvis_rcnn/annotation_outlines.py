"""Segmentations become arrays, of any spelling that is JSON; or one line that names the record that is wrong.

The common spelling, a piece of the file at a time, is read by annotation_pieces.py in a quarter of the time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Float64, Int64
from msgspec import Meta

from lvis_rcnn.annotation_records import AnnotationRecord, EdgePx, problem_and_path, record_error
from lvis_rcnn.command import InputError
from lvis_rcnn.run_lengths import check_runs, runs_of_text

LISTS_OF_POLYGONS = msgspec.json.Decoder(list[list[list[float]]])
POLYGONS = msgspec.json.Decoder(list[list[float]])


class RunLengthMask(msgspec.Struct):
    """A mask as pycocotools writes it: ``size`` (height, width), ``counts`` as numbers or as compressed text."""

    size: tuple[EdgePx, EdgePx]
    counts: str | list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]


MASK = msgspec.json.Decoder(RunLengthMask)


@dataclass(frozen=True, eq=False)
class Outlines:
    """What consecutive annotations show: each has polygons, or the runs of a mask."""

    polygons_each: Int64[np.ndarray, " A"]
    numbers_each: Int64[np.ndarray, " polygons"]
    coordinates: Float64[np.ndarray, " numbers"]
    runs_each: Int64[np.ndarray, " A"]
    mask_sizes_hw: Int64[np.ndarray, "masks 2"]
    runs: Int64[np.ndarray, " runs"]


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def outlines_of(records: Sequence[AnnotationRecord], where: str) -> Outlines:
    """Polygons and masks of these annotations.

    Raises:
        InputError: no polygon, fewer than 6 or an odd count of numbers, anything that is no finite number; a mask whose
            runs do not fill it.
    """
    is_mask = [bytes(record.segmentation).lstrip().startswith(b"{") for record in records]
    polygons = polygons_of([r for r, masked in zip(records, is_mask, strict=True) if not masked], where)
    masks = [mask_of(record, where) for record, masked in zip(records, is_mask, strict=True) if masked]
    flat = chain.from_iterable(chain.from_iterable(polygons))
    return Outlines(
        polygons_each=spread(integers(map(len, polygons)), ~np.array(is_mask, bool)),
        numbers_each=integers(len(polygon) for one in polygons for polygon in one),
        coordinates=np.fromiter(flat, np.float64),
        runs_each=spread(integers(len(runs) for _, runs in masks), np.array(is_mask, bool)),
        mask_sizes_hw=integers(chain.from_iterable(size for size, _ in masks)).reshape(-1, 2),
        runs=np.concatenate([integers(()), *(runs for _, runs in masks)]),
    )


def spread(counts: Int64[np.ndarray, " k"], where: np.ndarray) -> Int64[np.ndarray, " A"]:
    """``counts`` in the places that are marked, 0 elsewhere."""
    found = np.zeros(len(where), np.int64)
    found[where] = counts
    return found


def polygons_of(records: Sequence[AnnotationRecord], where: str) -> list[list[list[float]]]:
    """Polygons of annotations that should have some; InputError for the first that is wrong."""
    text = b"[" + b",".join(record.segmentation for record in records) + b"]"
    try:
        polygons = LISTS_OF_POLYGONS.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        polygons = []
    wrong = not all(polygons) or any(len(polygon) < 6 or len(polygon) % 2 for one in polygons for polygon in one)
    if wrong or len(polygons) != len(records):
        raise next(filter(None, (polygon_error(record, where) for record in records)))
    return polygons


def polygon_error(record: AnnotationRecord, where: str) -> InputError | None:
    """What is wrong with this annotation's polygons, if anything."""
    try:
        polygons = POLYGONS.decode(record.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        return record_error(where, record.id, "segmentation", f"segmentation{path}: {problem}")
    lengths = [len(polygon) for polygon in polygons]
    bad = [(n, length) for n, length in enumerate(lengths) if length < 6 or length % 2]
    if polygons and not bad:
        return None
    what = f"segmentation[{bad[0][0]}] has {bad[0][1]} numbers" if bad else "segmentation has no polygon"
    return InputError(
        f"{where}: annotation {record.id}",
        what,
        allowed="one or more polygons of an even count of at least 6 numbers",
        mend="correct the polygon or remove it",
    )


def mask_of(record: AnnotationRecord, where: str) -> tuple[tuple[int, int], Int64[np.ndarray, " runs"]]:
    """Size and runs of this annotation's mask."""
    try:
        mask = MASK.decode(record.segmentation)
        runs = runs_of_text(mask.counts.encode()) if isinstance(mask.counts, str) else integers(mask.counts)
        check_runs(runs, mask.size)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        raise record_error(where, record.id, "segmentation", f"segmentation{path}: {problem}") from None
    except ValueError as error:
        raise record_error(where, record.id, "segmentation", f"segmentation: the run-length mask {error}") from None
    return mask.size, runs
