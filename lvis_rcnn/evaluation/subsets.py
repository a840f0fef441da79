"""Subsets of the images, by a rule or a file of ids: scored as if annotations and detections had no other image."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from lvis_rcnn.config.protocols import MINIVAL
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.system.cli import InputError, check_input

# Of LVIS v1 val those images keep COCO's split; the others are of train2017 (mdetr at ea09acc4, .github/lvis.md).
IN_MINIVAL = b"val2017"

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


def images_of_subset(truth: GroundTruth, subset: str, ids_file: Path | None) -> Bool[np.ndarray, " n"]:
    """Whether each image is in a subset.

    Args:
        truth: the annotations.
        subset: minival, or a name for the images of ``ids_file``; empty for all.
        ids_file: text with one image id a line, which is not read for minival.

    Raises:
        InputError: no image is, or the file is no list of ids of ``truth``.
    """
    if not subset:
        return np.ones(len(truth.image_ids), bool)
    if subset == MINIVAL:
        inside = np.array([IN_MINIVAL in bytes(url) for url in truth.coco_urls], bool)
        if not inside.any():
            what = "no image has val2017 in its coco_url, so that minival is empty"
            raise InputError(truth.where, what, fix="leave minival out, or name a file of image ids")
        return inside
    assert ids_file is not None
    ids = read_ids(ids_file)
    if (unknown := positions(truth.image_ids, ids) < 0).any():
        what = f"image id {ids[np.argmax(unknown)]} is not in {truth.where}"
        raise InputError(str(ids_file), what, allowed="ids of its images", fix="correct the file, or name another one")
    return np.isin(truth.image_ids, ids)


def read_ids(file: Path) -> Int64[np.ndarray, " k"]:
    """The image ids of a text file, one a line.

    Raises:
        InputError: no such file, a line is no integer of 64 bits, an id stands there twice, or there is none.
    """
    allowed = "a text file (UTF-8) with one image id a line"
    try:
        check_input(file)
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        if wrong := [line for line in lines if line and not WHOLE_NUMBER.fullmatch(line)]:
            raise ValueError(f"{wrong[0][:40]!r}")
        ids = np.array([int(line) for line in lines if line], np.int64)
    except OSError as error:
        fix = "name a file that can be read"
        raise InputError(str(file), f"not readable: {error.strerror}", allowed=allowed, fix=fix) from None
    except (ValueError, OverflowError) as error:
        raise InputError(str(file), f"no list of image ids: {error}", allowed=allowed, fix="correct the file") from None
    found, counts = np.unique(ids, return_counts=True)
    if not len(ids) or counts.max() > 1:
        what = f"image id {found[np.argmax(counts)]} stands there twice" if len(ids) else "is empty"
        raise InputError(str(file), what, allowed=allowed, fix="correct the file")
    return ids


def only_images(truth: GroundTruth, inside: Bool[np.ndarray, " n"]) -> GroundTruth:
    """The annotations with the images that are ``inside`` alone; the categories stay."""
    places = np.cumsum(inside) - 1
    of_objects = np.flatnonzero(inside[truth.images])
    cut = only_objects(truth, of_objects)
    pairs: dict[str, Any] = {}
    for name in ("negatives", "not_exhaustive"):
        listed = getattr(truth, name)
        listed = listed[inside[listed[:, 0]]]
        pairs[name] = np.stack([places[listed[:, 0]], listed[:, 1]], axis=1)
    return replace(
        cut,
        image_ids=truth.image_ids[inside],
        sizes_hw=truth.sizes_hw[inside],
        coco_urls=[url for url, kept in zip(truth.coco_urls, inside.tolist(), strict=False) if kept],
        images=places[cut.images],
        **pairs,
    )


def only_objects(truth: GroundTruth, rows: Int64[np.ndarray, " k"]) -> GroundTruth:
    """The annotations with the objects of ``rows`` alone."""
    columns = ("annotation_ids", "images", "categories", "boxes_xywh", "areas", "ignored")
    outlines = [truth.outlines[row] for row in rows.tolist()] if len(truth.outlines) else ()
    return replace(truth, outlines=outlines, **{name: getattr(truth, name)[rows] for name in columns})
