"""The annotation store: one split of a dataset as memory-mapped arrays that every process shares.

A store is a folder of flat .npy arrays (values and offsets) and store.json. Images keep the order of the file,
annotations are grouped by image in that order; their outlines keep the order of the file. The numbers are those of
the file: boxes and polygons are neither clipped nor rounded, which is left to whoever uses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64, UInt8, UInt32

from lvis_rcnn.dataset.coco import COCO, arrays_as_lvis, image_counts_of
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.dataset.pieces import sha256_of
from lvis_rcnn.dataset.reader import OutlineFiles, read_file
from lvis_rcnn.dataset.records import CROWD, IGNORED, LVIS, Category
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import ArrayFile, atomic_folder, parsed, write_json

FORMAT = "lvis_rcnn.annotations"
VERSION = 3

# The polygons of an object (x0, y0, x1, y1, ...), or the run lengths of its mask.
Outline = list[Float64[np.ndarray, " _"]] | UInt32[np.ndarray, " runs"]

# x + width of two-decimal numbers may exceed the image by the rounding of the sum.
ROUNDING_PX = 1e-3


class StoreInfo(msgspec.Struct):
    """store.json."""

    format: str
    version: int
    annotations_sha256: str
    source_name: str
    counts: dict[str, int]
    shapes: dict[str, list[int]]
    categories: list[Category]


# The arrays of a store and their types on disk, in the order of AnnotationStore's fields.
ARRAYS = {
    "image_ids": "<i8",
    "heights": "<i4",
    "widths": "<i4",
    "name_offsets": "<i8",
    "name_bytes": "|u1",
    "negative_offsets": "<i8",
    "negative_labels": "<i4",
    "not_exhaustive_offsets": "<i8",
    "not_exhaustive_labels": "<i4",
    "annotation_offsets": "<i8",
    "annotation_ids": "<i8",
    "labels": "<i4",
    "boxes_xywh": "<f8",
    "areas": "<f8",
    "first_polygons": "<i8",
    "polygon_counts": "<i4",
    "coordinate_offsets": "<i8",
    "masked_annotations": "<i8",
    "first_runs": "<i8",
    "run_counts": "<i4",
    "coordinates": "<f8",
    "runs": "<u4",
    "marks": "|u1",
}


@dataclass(frozen=True, eq=False)
class AnnotationStore:
    """A dataset split, memory-mapped and read-only; made by :func:`open_store`.

    ``x_offsets[i]:x_offsets[i + 1]`` are the entries of ``x`` that belong to item i. Pickling keeps the path only, so
    a worker opens the same pages again instead of receiving a copy.
    """

    path: Path
    source_name: str
    """Name of the annotation file, for messages."""
    annotations_sha256: str
    """Digest of the annotation file."""
    counts: dict[str, int]
    categories: tuple[Category, ...]

    image_ids: Int64[np.ndarray, " n"]
    heights: Int32[np.ndarray, " n"]
    widths: Int32[np.ndarray, " n"]
    name_offsets: Int64[np.ndarray, " 2*n+1"]
    name_bytes: UInt8[np.ndarray, " bytes"]
    """coco_url and file_name of each image, UTF-8."""
    negative_offsets: Int64[np.ndarray, " n+1"]
    negative_labels: Int32[np.ndarray, " negatives"]
    """Categories verified to be absent from an image."""
    not_exhaustive_offsets: Int64[np.ndarray, " n+1"]
    not_exhaustive_labels: Int32[np.ndarray, " not_exhaustive"]
    """Categories of which an image may show more objects than are annotated."""
    annotation_offsets: Int64[np.ndarray, " n+1"]
    annotation_ids: Int64[np.ndarray, " A"]
    labels: Int32[np.ndarray, " A"]
    """1 + position of the category in the file."""
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """As in the file; a box may overshoot its image."""
    areas: Float64[np.ndarray, " A"]
    """Mask area in pixels, as in the file."""
    first_polygons: Int64[np.ndarray, " A"]
    """Position of each annotation's first polygon; polygons and masks keep the order of the file."""
    polygon_counts: Int32[np.ndarray, " A"]
    """0 where there is a mask."""
    coordinate_offsets: Int64[np.ndarray, " polygon_ends"]
    masked_annotations: Int64[np.ndarray, " m"]
    """Positions of the annotations that have a run-length mask and no polygon, ascending."""
    first_runs: Int64[np.ndarray, " m"]
    run_counts: Int32[np.ndarray, " m"]
    coordinates: Float64[np.ndarray, " numbers"]
    """x0, y0, x1, y1, ... of every polygon."""
    runs: UInt32[np.ndarray, " runs"]
    """Lengths of the runs of every mask, column by column, background first."""
    marks: UInt8[np.ndarray, " A"]
    """See :func:`~lvis_rcnn.dataset.records.marks_of`; on disk only where an annotation has one."""

    @property
    def num_images(self) -> int:
        """Images, with and without annotations."""
        return len(self.image_ids)

    @property
    def num_labels(self) -> int:
        """Categories and the background."""
        return len(self.categories) + 1

    def annotations_of(self, image: int) -> slice:
        """Positions of the annotations of the image at this position."""
        return slice(int(self.annotation_offsets[image]), int(self.annotation_offsets[image + 1]))

    def untrained(self) -> dict[str, Bool[np.ndarray, " A"]]:
        """:func:`untrained` of all annotations."""
        images = np.repeat(np.arange(self.num_images), np.diff(self.annotation_offsets))
        return untrained(self.boxes_xywh, self.areas, self.marks, self.heights[images], self.widths[images])

    @cached_property
    def is_trained(self) -> Bool[np.ndarray, " A"]:
        """Which annotations are trained on; found once, a byte of each is kept."""
        found: np.ndarray = ~np.logical_or.reduce([*self.untrained().values()])
        return found

    @property
    def is_scored(self) -> Bool[np.ndarray, " A"]:
        """Which annotations ``lvis`` scores."""
        unscored = [is_so for reason, is_so in self.untrained().items() if UNTRAINED[reason] == NEITHER]
        found: np.ndarray = np.logical_not(np.logical_or.reduce(unscored))
        return found

    def outline_of(self, annotation: int) -> Outline:
        """Outline of the annotation at this position: one or more polygons, or the runs of a mask of its image."""
        at = int(np.searchsorted(self.masked_annotations, annotation))
        if at < len(self.masked_annotations) and self.masked_annotations[at] == annotation:
            return self.runs[self.first_runs[at] : self.first_runs[at] + self.run_counts[at]]
        first = self.first_polygons[annotation]
        offsets = self.coordinate_offsets[first : first + self.polygon_counts[annotation] + 1]
        return [self.coordinates[a:b] for a, b in pairwise(offsets)]

    def negatives_of(self, image: int) -> Int32[np.ndarray, " negatives"]:
        """Labels verified to be absent from this image."""
        return self.negative_labels[self.negative_offsets[image] : self.negative_offsets[image + 1]]

    def not_exhaustive_of(self, image: int) -> Int32[np.ndarray, " not_exhaustive"]:
        """Labels of which this image may show more objects than are annotated."""
        return self.not_exhaustive_labels[self.not_exhaustive_offsets[image] : self.not_exhaustive_offsets[image + 1]]

    def image_name(self, image: int) -> tuple[str, str]:
        """``coco_url`` and ``file_name`` of this image; one of them may be empty."""
        a, b, c = self.name_offsets[2 * image : 2 * image + 3]
        return self.name_bytes[a:b].tobytes().decode(), self.name_bytes[b:c].tobytes().decode()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def image_candidates(coco_url: str, file_name: str) -> list[str]:
    """File names that an image may have, most reliable first, each once.

    LVIS v1 has no file_name; that of v0.5 is COCO_val2014_000000266409.jpg for val2017/000000266409.jpg.
    """
    parts = coco_url.split("/")
    names = ["/".join(parts[-2:]), parts[-1], file_name]
    if file_name.startswith("COCO_"):
        names.append(file_name[-16:])
    if "\\" in file_name:  # as written on Windows
        names.append(file_name.replace("\\", "/"))
    return list(dict.fromkeys(name for name in names if name))


def open_store(path: Path) -> AnnotationStore:
    """Open a store read-only, memory-mapped, in milliseconds.

    Raises:
        InputError: no store, one of another format or version, or an incomplete one.
    """
    fix = "build it again with python -m lvis_rcnn store --annotations FILE.json --out STORE"
    try:
        info = parsed(msgspec.json.decode, (path / "store.json").read_bytes(), type=StoreInfo)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(str(path), "no annotation store here", fix=fix) from None
    except OSError as error:
        raise InputError(str(path), f"not readable: {error.strerror}", fix="let this process read it") from None
    except ValueError as error:
        raise InputError(str(path), f"store.json is not that of a store: {error}", fix=fix) from None
    if (info.format, info.version) != (FORMAT, VERSION):
        found, allowed = f"store of format {info.format} version {info.version}", f"{FORMAT} version {VERSION}"
        raise InputError(str(path), found, allowed=allowed, fix=fix)
    try:
        wanted = {name: dtype for name, dtype in ARRAYS.items() if name != "marks" or name in info.shapes}
        arrays = {name: load_array(path / f"{name}.npy", dtype, info.shapes[name]) for name, dtype in wanted.items()}
        arrays.setdefault("marks", np.zeros(len(arrays["labels"]), np.uint8))
        check_arrays(arrays, len(info.categories))
    except (OSError, EOFError, ValueError, LookupError) as error:
        raise InputError(str(path), f"the store is incomplete: {error}", fix=fix) from None
    return AnnotationStore(
        path, info.source_name, info.annotations_sha256, info.counts, tuple(info.categories), **arrays
    )


def check_arrays(arrays: dict[str, np.ndarray], categories: int) -> None:
    """Raise ValueError for arrays that contradict each other, as in a store that was edited: milliseconds of LVIS."""
    for name in ("labels", "negative_labels", "not_exhaustive_labels"):
        labels = arrays[name]
        if len(labels) and not 1 <= labels.min() <= labels.max() <= categories:
            raise ValueError(f"{name}.npy holds {labels.min()} to {labels.max()}, not 1 to {categories}")
    images = len(arrays["image_ids"])
    polygons = len(arrays["coordinate_offsets"]) - 1
    for name, of, count in (
        ("annotation_offsets", "labels", images),
        ("negative_offsets", "negative_labels", images),
        ("not_exhaustive_offsets", "not_exhaustive_labels", images),
        ("name_offsets", "name_bytes", 2 * images),
        ("coordinate_offsets", "coordinates", polygons),
    ):
        ends = arrays[name]
        if len(ends) != count + 1 or (ends[0], ends[-1]) != (0, len(arrays[of])) or (np.diff(ends) < 0).any():
            raise ValueError(f"{name}.npy are not the ends of {of}.npy")


def load_array(file: Path, dtype: str, shape: list[int]) -> np.ndarray:
    """Map one array; ValueError or OSError if it does not match store.json."""
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.dtype.str != dtype or list(array.shape) != shape:
        raise ValueError(f"{file.name} holds {array.dtype.str} {array.shape}, not {dtype} {tuple(shape)}")
    # A plain view of the mapping: slicing np.memmap costs several times more.
    return np.asarray(array)


def build_store(
    annotations: Path, out: Path, *, coco_exhaustive: bool = False, frequencies: Path | None = None
) -> dict[str, int]:
    """Turn an LVIS-format JSON file (v0.5, v1 or one's own) into a store at ``out``; return its counts.

    Invariant: ``out`` is a complete store or untouched.

    Args:
        annotations: the file.
        out: folder of the store.
        coco_exhaustive: take plain COCO annotations, by the rules of coco.py.
        frequencies: COCO file whose images count for frequencies; by default the file itself.

    Raises:
        InputError: the file is not readable, not of this format, or contradicts itself; the record is named.
    """
    image_counts = image_counts_of(frequencies, coco_exhaustive)
    if out.exists() and not (out / "store.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(str(out), "exists and is no annotation store", fix="name another folder or remove it")
    text = read_text(annotations, "--annotations", "an LVIS annotation file (JSON)")
    with atomic_folder(out) as folder:
        with (
            ArrayFile(folder / "coordinates.npy", ARRAYS["coordinates"]) as coordinates,
            ArrayFile(folder / "runs.npy", ARRAYS["runs"]) as runs,
        ):
            files = OutlineFiles(coordinates, runs)
            arrays, categories = read_file(text, str(annotations), files, COCO if coco_exhaustive else LVIS)
        if coco_exhaustive:
            arrays, categories = arrays_as_lvis(arrays, categories, image_counts)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        info = StoreInfo(
            format=FORMAT,
            version=VERSION,
            annotations_sha256=sha256_of(text),
            source_name=annotations.name,
            counts=count(arrays, categories),
            shapes={**shapes, "coordinates": [coordinates.length], "runs": [runs.length]},
            categories=categories,
        )
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(ARRAYS[name], copy=False))
        write_json(folder / "store.json", msgspec.to_builtins(info))
    return info.counts


# Why an annotation is not trained on, and whether it is scored: ``lvis`` knows ignore, but not iscrowd.
NEITHER = "neither trained on nor scored"
UNTRAINED = {
    "with area 0": NEITHER,
    "with a box below one pixel": "scored, but not trained on",
    "with a box outside the image": "scored, but not trained on",
    "marked iscrowd": "scored as any object, but not trained on",
    "marked ignore (plain COCO: iscrowd)": NEITHER,
}


def untrained(
    boxes_xywh: Float64[np.ndarray, "a 4"],
    areas: Float64[np.ndarray, " a"],
    marks: UInt8[np.ndarray, " a"],
    heights: Int[np.ndarray, " a"],
    widths: Int[np.ndarray, " a"],
) -> dict[str, Bool[np.ndarray, " a"]]:
    """Which annotations are not trained on, by the reasons of ``UNTRAINED``; heights and widths of their images.

    MMDetection 3.3.0, ``mmdet/datasets/coco.py`` (``parse_data_info``, also that of LVIS). A crowd becomes an ignored
    box there, which no assigner of the recipe reads (``ignore_iof_thr=-1``).
    """
    x, y, w, h = boxes_xywh.T
    outside = (x >= widths) | (y >= heights) | (x + w <= 0) | (y + h <= 0)
    reasons = (areas <= 0, (w < 1) | (h < 1), outside, marks == CROWD, marks == IGNORED)
    return dict(zip(UNTRAINED, reasons, strict=True))


@np.errstate(over="ignore")
def count(arrays: dict[str, np.ndarray], categories: Sequence[Category]) -> dict[str, int]:
    """Counts of a split, for store.json and the preflight page."""
    sizes_each = np.diff(arrays["annotation_offsets"])
    x, y, w, h = arrays["boxes_xywh"].T
    widths, heights = np.repeat(arrays["widths"], sizes_each), np.repeat(arrays["heights"], sizes_each)
    marks = arrays.get("marks", np.zeros(len(x), np.uint8))
    unused = untrained(arrays["boxes_xywh"], arrays["areas"], marks, heights, widths)
    outside = unused["with a box outside the image"]
    unusual = {"boxes_outside": outside, "crowds": marks == CROWD, "ignored": marks == IGNORED}
    overshoots = (x < 0) | (y < 0) | (x + w > widths + ROUNDING_PX) | (y + h > heights + ROUNDING_PX)
    groups = [category.frequency for category in categories]
    return {
        "images": len(sizes_each),
        "images_without_annotation": int((sizes_each == 0).sum()),
        "annotations": len(arrays["annotation_ids"]),
        "polygons": len(arrays["coordinate_offsets"]) - 1,
        "run_length_masks": len(arrays["masked_annotations"]),
        "clipped_boxes": int((overshoots & ~outside).sum()),
        "empty_masks": int((arrays["areas"] == 0).sum()),
        "categories": len(categories),
        "rare_categories": groups.count("r"),
        "common_categories": groups.count("c"),
        "frequent_categories": groups.count("f"),
        **{name: int(found.sum()) for name, found in unusual.items() if found.any()},
    }
