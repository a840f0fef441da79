"""An LVIS JSON file becomes flat, checked arrays, or one line that names the record that is wrong."""

from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec
import numpy as np
from jaxtyping import Int64

from lvis_rcnn.annotation_outlines import Outlines, integers
from lvis_rcnn.annotation_pieces import Rows
from lvis_rcnn.annotation_records import (
    HELP,
    Category,
    Sections,
    read_sections,
    record_error,
)
from lvis_rcnn.annotation_rows import OutlineFiles, Records, read_all_rows, read_rows
from lvis_rcnn.annotation_text import Pieces, Text, first_list, without_list
from lvis_rcnn.command import InputError


def read_file(text: Text, where: str, files: OutlineFiles) -> tuple[dict[str, np.ndarray], list[Category]]:
    """All arrays of the store but the outlines, which are appended to ``files``; and the categories.

    Raises:
        InputError: no JSON, a field of the wrong type or range, or records that contradict each other; the first one
            is named.
    """
    try:
        found = streamed(text, where, files)
    except (InputError, msgspec.DecodeError, ValueError, RecursionError):
        # Only the file as a whole can say which record is wrong: what was streamed may not be its annotations.
        found = None
    if found is None:
        files.restart()
        sections = read_sections(text, where)
        rows = read_all_rows(sections.annotations, text, where, files)
        found = columns(sections, rows, where), sections.categories
    return found


def streamed(text: Text, where: str, files: OutlineFiles) -> tuple[dict[str, np.ndarray], list[Category]] | None:
    """The same of a file that is as it should be, each byte parsed once; None or an error for another."""
    start = first_list(text)
    if start is None:
        return None
    records = Records(where)
    pieces = Pieces(text, start, records.read)
    rows = read_rows(pieces, records, files)
    rest = without_list(text, start, pieces.end)
    if rest is None or not len(rows):
        return None
    sections = read_sections(rest, where)
    return columns(sections, rows, where), sections.categories


def columns(sections: Sections, rows: Rows, where: str) -> dict[str, np.ndarray]:
    """The arrays from checked records.

    Raises:
        InputError: records that contradict each other; the first one is named.
    """
    images = sections.images
    image_ids = integers(image.id for image in images)
    category_ids = integers(category.id for category in sections.categories)
    for ids, kind in ((image_ids, "image"), (category_ids, "category"), (rows.ids, "annotation")):
        check_unique(ids, where, kind)
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
    }


def masks_of(outlines: Outlines, order: Int64[np.ndarray, " A"]) -> dict[str, np.ndarray]:
    """Which annotations, in the store's order, have a run-length mask, and where its runs are."""
    counts = outlines.runs_each[order]
    masked = np.flatnonzero(counts)
    return {
        "masked_annotations": masked,
        "first_runs": ends(outlines.runs_each)[:-1][order][masked],
        "run_counts": counts[masked],
    }


def ends(lengths: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k+1"]:
    """Where each of consecutive entries of these lengths begins, and the end."""
    return np.concatenate([[0], np.cumsum(lengths)])


def offsets(lengths: Iterable[int]) -> Int64[np.ndarray, " ends"]:
    """The same for lengths that are Python numbers."""
    return ends(integers(lengths))


def positions(ids: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Index of each wanted id in ``ids``, -1 where it is not there."""
    order = np.argsort(ids)
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def known(
    ids: Int64[np.ndarray, " k"],
    wanted: Int64[np.ndarray, " A"],
    annotation_ids: Int64[np.ndarray, " A"],
    field: str,
    where: str,
) -> Int64[np.ndarray, " A"]:
    """Position of what each annotation names; InputError for an id that is not there."""
    found = positions(ids, wanted)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        what = f"unknown {field.removesuffix('_id')} {wanted[at]}"
        raise record_error(where, int(annotation_ids[at]), field, what)
    return found


def list_labels(
    lists: Sequence[Sequence[int]],
    category_ids: Int64[np.ndarray, " c"],
    image_ids: Int64[np.ndarray, " n"],
    where: str,
    field: str,
) -> Int64[np.ndarray, " k"]:
    """Labels of all images' lists, one after the other; InputError for a category that is not there."""
    wanted = integers(chain.from_iterable(lists))
    found = positions(category_ids, wanted)
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        image = int(np.searchsorted(offsets(map(len, lists)), at, side="right")) - 1
        raise InputError(
            f"{where}: image {image_ids[image]}",
            f"{field} names unknown category {wanted[at]}",
            allowed="ids of the file's categories",
            mend="remove it from the list or add the category",
        )
    return found + 1


def check_unique(ids: Int64[np.ndarray, " k"], where: str, kind: str) -> None:
    """Raise InputError for the first id that stands twice."""
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        again = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        allowed, mend = HELP["id"]
        raise InputError(f"{where}: {kind} {ids[again]}", f"{kind} id stands twice", allowed=allowed, mend=mend)


def check_names(names: Sequence[bytes], image_ids: Int64[np.ndarray, " n"], where: str) -> None:
    """Raise InputError for the first image that has neither of its two names."""
    nameless = [not (url or file) for url, file in zip(names[::2], names[1::2], strict=True)]
    if any(nameless):
        raise InputError(
            f"{where}: image {image_ids[nameless.index(True)]}",
            "has neither coco_url nor file_name",
            mend="add file_name, relative to the folder of the images",
        )


def check_annotations(
    rows: Rows, heights: Int64[np.ndarray, " A"], widths: Int64[np.ndarray, " A"], where: str
) -> None:
    """Raise InputError for a crowd or ignored object, a mask of another size, a box of negative size or outside.

    A box without width or height passes: ``lvis`` scores it, and training leaves it out.
    """
    if rows.marked.any():
        raise InputError(
            f"{where}: annotation {rows.ids[np.argmax(rows.marked)]}",
            "is marked iscrowd or ignore, which LVIS scoring does not know",
            allowed="no such mark, or 0",
            mend="remove the annotation and list its category in the image's not_exhaustive_category_ids",
        )
    masked = np.flatnonzero(rows.outlines.runs_each)
    other = (rows.outlines.mask_sizes_hw != np.stack([heights[masked], widths[masked]], axis=1)).any(axis=1)
    if other.any():
        at = int(masked[np.argmax(other)])
        found = rows.outlines.mask_sizes_hw[np.argmax(other)]
        what = f"segmentation: a mask of size {found.tolist()} in an image of {[int(heights[at]), int(widths[at])]}"
        raise record_error(where, int(rows.ids[at]), "segmentation", what)
    x, y, w, h = rows.boxes_xywh.T
    negative = (w < 0) | (h < 0)
    outside = (x >= widths) | (y >= heights) | (x + w <= 0) | (y + h <= 0)
    if (negative | outside).any():
        at = int(np.argmax(negative | outside))
        problem = "has a negative size" if negative[at] else f"is outside its {widths[at]} x {heights[at]} image"
        raise InputError(
            f"{where}: annotation {rows.ids[at]}",
            f"bbox {rows.boxes_xywh[at].tolist()} {problem}",
            allowed="[x, y, width, height] in pixels that overlaps the image",
            mend="correct the box or remove the annotation",
        )
