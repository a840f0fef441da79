"""Checked records become the arrays of a store, or an error that names the first record that contradicts another."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int64

from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.dataset.records import HELP, LvisFile, Outlines, Rows, integers, known, record_error, refuse_id_0
from lvis_rcnn.system.cli import InputError


def columns(file: LvisFile, rows: Rows, where: str) -> dict[str, np.ndarray]:
    """The arrays of a store, except the coordinates and runs of the outlines; annotations are grouped by image.

    Raises:
        InputError: records that contradict each other; the first one is named.
    """
    images = file.images
    image_ids = integers(image.id for image in images)
    category_ids = integers(category.id for category in file.categories)
    for ids, kind in ((image_ids, "image"), (category_ids, "category"), (rows.ids, "annotation")):
        check_unique(ids, where, kind)
    refuse_id_0(rows.ids, where)
    heights, widths = integers(image.height for image in images), integers(image.width for image in images)
    names = [(name or "").encode() for image in images for name in (image.coco_url, image.file_name)]
    check_names(names, image_ids, where)
    image_of = known(image_ids, rows.image_ids, rows.ids, "image_id", where)
    category_of = known(category_ids, rows.category_ids, rows.ids, "category_id", where)
    check_annotations(rows, heights[image_of], widths[image_of], where)
    negatives = [image.neg_category_ids for image in images]
    not_exhaustive = [image.not_exhaustive_category_ids for image in images]
    order = np.argsort(image_of, kind="stable")
    return {
        "image_ids": image_ids,
        "heights": heights,
        "widths": widths,
        "name_offsets": offsets(map(len, names)),
        "name_bytes": np.frombuffer(b"".join(names), np.uint8),
        "negative_offsets": offsets(map(len, negatives)),
        "negative_labels": list_labels(negatives, category_ids, image_ids, where, "neg_category_ids"),
        "not_exhaustive_offsets": offsets(map(len, not_exhaustive)),
        "not_exhaustive_labels": list_labels(
            not_exhaustive, category_ids, image_ids, where, "not_exhaustive_category_ids"
        ),
        "annotation_offsets": np.searchsorted(image_of[order], np.arange(len(image_ids) + 1)),
        "annotation_ids": rows.ids[order],
        "labels": category_of[order] + 1,
        "boxes_xywh": rows.boxes_xywh[order],
        "areas": rows.areas[order],
        "first_polygons": ends(rows.outlines.polygons_each)[:-1][order],
        "polygon_counts": rows.outlines.polygons_each[order],
        "coordinate_offsets": ends(rows.outlines.numbers_each),
        **masks_of(rows.outlines, order),
        # Stores of nearly all files have no marks, LVIS has none.
        **({"marks": rows.marks[order]} if rows.marks.any() else {}),
    }


def masks_of(outlines: Outlines, order: Int64[np.ndarray, " A"]) -> dict[str, np.ndarray]:
    """Which annotations, in the store's order, have a run-length mask, and the position of its runs."""
    counts = outlines.runs_each[order]
    masked = np.flatnonzero(counts)
    return {
        "masked_annotations": masked,
        "first_runs": ends(outlines.runs_each)[:-1][order][masked],
        "run_counts": counts[masked],
    }


def ends(lengths: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k+1"]:
    """Start of each of consecutive entries of these lengths, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)])


def offsets(lengths: Iterable[int]) -> Int64[np.ndarray, " ends"]:
    """:func:`ends` of lengths that are Python numbers."""
    return ends(integers(lengths))


def list_labels(
    lists: Sequence[Sequence[int]],
    category_ids: Int64[np.ndarray, " c"],
    image_ids: Int64[np.ndarray, " n"],
    where: str,
    field: str,
) -> Int64[np.ndarray, " k"]:
    """Labels of all images' lists, concatenated; InputError for a category that the file does not have."""
    wanted = integers(chain.from_iterable(lists))
    found = positions(category_ids, wanted)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        image = int(np.searchsorted(offsets(map(len, lists)), at, side="right")) - 1
        raise InputError(
            f"{where}: image {image_ids[image]}",
            f"{field} names unknown category {wanted[at]}",
            allowed="ids of the file's categories",
            fix="remove it from the list or add the category",
        )
    return found + 1


def check_unique(ids: Int64[np.ndarray, " k"], where: str, kind: str) -> None:
    """Raise InputError for the first repeated id."""
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        again = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        allowed, fix = HELP["id"]
        raise InputError(f"{where}: {kind} {ids[again]}", f"{kind} id is repeated", allowed=allowed, fix=fix)


def check_names(names: Sequence[bytes], image_ids: Int64[np.ndarray, " n"], where: str) -> None:
    """Raise InputError for the first image that has neither of its two names."""
    nameless = [not (url or file) for url, file in zip(names[::2], names[1::2], strict=True)]
    if any(nameless):
        raise InputError(
            f"{where}: image {image_ids[nameless.index(True)]}",
            "has neither coco_url nor file_name",
            fix="add file_name, relative to the folder of the images",
        )


def check_annotations(
    rows: Rows, heights: Int64[np.ndarray, " A"], widths: Int64[np.ndarray, " A"], where: str
) -> None:
    """Raise InputError for a mask of another size than its image, or a box of negative size.

    Crowds and boxes without width or height or outside their image are accepted: ``lvis`` scores them, and training
    leaves them out (:func:`~lvis_rcnn.dataset.store.untrained`).
    """
    masked = np.flatnonzero(rows.outlines.runs_each)
    other = (rows.outlines.mask_sizes_hw != np.stack([heights[masked], widths[masked]], axis=1)).any(axis=1)
    if other.any():
        at = int(masked[np.argmax(other)])
        found = rows.outlines.mask_sizes_hw[np.argmax(other)]
        what = f"segmentation: a mask of size {found.tolist()} in an image of {[int(heights[at]), int(widths[at])]}"
        raise record_error(where, int(rows.ids[at]), "segmentation", what)
    negative = (rows.boxes_xywh[:, 2:] < 0).any(axis=1)
    if negative.any():
        at = int(np.argmax(negative))
        raise record_error(where, int(rows.ids[at]), "bbox", f"bbox {rows.boxes_xywh[at].tolist()} has a negative size")
