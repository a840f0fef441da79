"""LVIS JSON becomes a memory-mapped store that every process shares.

A store is a folder of flat .npy arrays (values and offsets) and store.json. Images keep the order of the file,
annotations are grouped by image in that order. The numbers are those of the file: boxes and polygons are neither
clipped nor rounded; whoever uses them does that.

    python -m lvis_rcnn.annotations --annotations lvis_v1_train.json --out train.store
"""

import argparse
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from msgspec import Meta
from tqdm import tqdm

from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.files import atomic_folder, write_json

FORMAT = "lvis_rcnn.annotations"
VERSION = 1

Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
# Run-length masks count pixels in 32 bits, so an edge has 16.
EdgePx = Annotated[int, Meta(ge=1, le=65_535)]

# Annotations whose polygons are Python numbers at the same time: about 100 numbers of 32 bytes each.
CHUNK = 4_000
# x + width of two-decimal numbers may exceed the image by the rounding of the sum.
ROUNDING_PX = 1e-3


class Category(msgspec.Struct, frozen=True):
    """One category; its label is 1 + its position in the file."""

    id: Id
    name: Annotated[str, Meta(min_length=1)]
    frequency: Literal["r", "c", "f"]
    """Rare, common or frequent, as the file says; never derived from counts."""
    synset: str = ""


class ImageRecord(msgspec.Struct, gc=False):
    """One image as it stands in the file."""

    id: Id
    height: EdgePx
    width: EdgePx
    neg_category_ids: list[Id]
    not_exhaustive_category_ids: list[Id]
    coco_url: str | None = None
    file_name: str | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """One annotation as it stands in the file; its polygons stay text until they are needed."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)]
    segmentation: msgspec.Raw
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class AnnotationFile(msgspec.Struct):
    """What is read of an LVIS file; other keys (info, licenses) are skipped."""

    images: Annotated[list[ImageRecord], Meta(min_length=1)]
    annotations: Annotated[list[AnnotationRecord], Meta(min_length=1)]
    categories: Annotated[list[Category], Meta(min_length=1)]


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
    "polygon_offsets": "<i8",
    "coordinate_offsets": "<i8",
    "coordinates": "<f8",
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
    """Categories of which an image may show more than is annotated."""
    annotation_offsets: Int64[np.ndarray, " n+1"]
    annotation_ids: Int64[np.ndarray, " A"]
    labels: Int32[np.ndarray, " A"]
    """1 + position of the category in the file."""
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """As in the file; a box may overshoot its image."""
    areas: Float64[np.ndarray, " A"]
    """Mask area in pixels, as in the file."""
    polygon_offsets: Int64[np.ndarray, " A+1"]
    coordinate_offsets: Int64[np.ndarray, " P+1"]
    coordinates: Float64[np.ndarray, " numbers"]
    """x0, y0, x1, y1, ... of every polygon."""

    @property
    def num_images(self) -> int:
        """Images, with and without annotations."""
        return len(self.image_ids)

    @property
    def num_labels(self) -> int:
        """Categories and the background."""
        return len(self.categories) + 1

    def annotations_of(self, image: int) -> slice:
        """Where the annotations of the image at this position are."""
        return slice(int(self.annotation_offsets[image]), int(self.annotation_offsets[image + 1]))

    def polygons_of(self, annotation: int) -> list[Float64[np.ndarray, " numbers"]]:
        """The polygons (x0, y0, x1, y1, ...) of the annotation at this position; at least one of 6 numbers or more."""
        first, end = self.polygon_offsets[annotation], self.polygon_offsets[annotation + 1]
        offsets = self.coordinate_offsets[first : end + 1]
        return [self.coordinates[a:b] for a, b in pairwise(offsets)]

    def negatives_of(self, image: int) -> Int32[np.ndarray, " negatives"]:
        """Labels verified to be absent from this image."""
        return self.negative_labels[self.negative_offsets[image] : self.negative_offsets[image + 1]]

    def not_exhaustive_of(self, image: int) -> Int32[np.ndarray, " not_exhaustive"]:
        """Labels of which this image may show more than is annotated."""
        return self.not_exhaustive_labels[self.not_exhaustive_offsets[image] : self.not_exhaustive_offsets[image + 1]]

    def image_name(self, image: int) -> tuple[str, str]:
        """``coco_url`` and ``file_name`` of this image; one of them may be empty."""
        a, b, c = self.name_offsets[2 * image : 2 * image + 3]
        return self.name_bytes[a:b].tobytes().decode(), self.name_bytes[b:c].tobytes().decode()

    def image_path(self, image: int, images_dir: Path) -> Path:
        """The file of this image below ``images_dir``.

        Raises:
            InputError: none of the names that LVIS uses for this image is there; they are listed.
        """
        candidates = image_candidates(*self.image_name(image))
        for candidate in candidates:
            # os.path.isfile, since Path.is_file raises where a name is too long.
            if os.path.isfile(images_dir / candidate):
                return images_dir / candidate
        raise InputError(
            f"{self.source_name}: image {self.image_ids[image]}",
            f"not found in {images_dir}; tried {', '.join(candidates)}",
            mend="set the split's 'images' to the folder that holds the images, or add the missing file",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def image_candidates(coco_url: str, file_name: str) -> list[str]:
    """Names under which an image may lie, most reliable first, each once.

    LVIS v1 has no file_name; that of v0.5 is COCO_val2014_000000266409.jpg for val2017/000000266409.jpg.
    """
    parts = coco_url.split("/")
    names = ["/".join(parts[-2:]), parts[-1], file_name]
    if file_name.startswith("COCO_"):
        names.append(file_name[-16:])
    return list(dict.fromkeys(name for name in names if name))


def open_store(path: Path) -> AnnotationStore:
    """Open a store read-only, memory-mapped, in milliseconds.

    Raises:
        InputError: no store, one of another format or version, or an incomplete one.
    """
    mend = "build it again with python -m lvis_rcnn.annotations --annotations FILE.json --out STORE"
    try:
        info = msgspec.json.decode((path / "store.json").read_bytes(), type=StoreInfo)
    except OSError:
        raise InputError(str(path), "no annotation store here", mend=mend) from None
    except ValueError as error:
        raise InputError(str(path), f"store.json is not one of ours: {error}", mend=mend) from None
    if (info.format, info.version) != (FORMAT, VERSION):
        found, allowed = f"store of format {info.format} version {info.version}", f"{FORMAT} version {VERSION}"
        raise InputError(str(path), found, allowed=allowed, mend=mend)
    try:
        arrays = {name: load_array(path / f"{name}.npy", dtype, info.shapes[name]) for name, dtype in ARRAYS.items()}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(path), f"the store is incomplete: {error}", mend=mend) from None
    return AnnotationStore(
        path, info.source_name, info.annotations_sha256, info.counts, tuple(info.categories), **arrays
    )


def load_array(file: Path, dtype: str, shape: list[int]) -> np.ndarray:
    """Map one array; ValueError or OSError if it is not what store.json promises."""
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.dtype.str != dtype or list(array.shape) != shape:
        raise ValueError(f"{file.name} holds {array.dtype.str} {array.shape}, not {dtype} {tuple(shape)}")
    # A plain view of the mapping: slicing np.memmap costs several times more.
    return np.asarray(array)


def build_store(annotations: Path, out: Path) -> dict[str, int]:
    """Turn an LVIS-format JSON file (v0.5, v1 or one's own) into a store at ``out``; return its counts.

    Invariant: ``out`` is a complete store or untouched.

    Raises:
        InputError: the file is not readable, not of this format, or contradicts itself; the record is named.
    """
    if out.exists() and not (out / "store.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(str(out), "exists and is no annotation store", mend="name another folder or remove it")
    data = read_bytes(annotations)
    records = decode_file(data, str(annotations))
    arrays = columns(records, str(annotations))
    info = StoreInfo(
        format=FORMAT,
        version=VERSION,
        annotations_sha256=hashlib.sha256(data).hexdigest(),
        source_name=annotations.name,
        counts=count(arrays, records.categories),
        shapes={name: list(array.shape) for name, array in arrays.items()},
        categories=records.categories,
    )
    with atomic_folder(out) as folder:
        for name, dtype in ARRAYS.items():
            np.save(folder / f"{name}.npy", arrays[name].astype(dtype, copy=False))
        write_json(folder / "store.json", msgspec.to_builtins(info))
    return info.counts


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        InputError: there is no such readable file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path), f"annotation file not readable: {error.strerror}", mend="name an LVIS-format JSON file"
        ) from None


# Field -> what is allowed, how to mend it; for the line a person sees.
HELP = {
    "images": ("at least one image", "an LVIS file has images, annotations and categories"),
    "annotations": ("at least one annotation", "an LVIS file has images, annotations and categories"),
    "categories": ("at least one category", "an LVIS file has images, annotations and categories"),
    "id": ("a whole number from 1, each once", "number the records from 1"),
    "image_id": ("the id of an image of the file", "correct the id or remove the annotation"),
    "category_id": ("the id of a category of the file", "correct the id or remove the annotation"),
    "bbox": ("[x, y, width, height] in pixels, finite numbers", "write the box as COCO and LVIS do"),
    "area": ("mask area in pixels, a finite number from 0", "write the polygons' area"),
    "segmentation": ("a list of polygons [x0, y0, x1, y1, ...]", "write polygons; run-length masks are not read"),
    "height": ("1 to 65535 pixels, a whole number", "write the image's height"),
    "width": ("1 to 65535 pixels, a whole number", "write the image's width"),
    "neg_category_ids": ("a list of category ids", "write the categories known to be absent, or an empty list"),
    "not_exhaustive_category_ids": ("a list of category ids", "write an empty list if all objects are annotated"),
    "frequency": ("r, c or f", "add it: r for 1 to 10 training images, c for 11 to 100, f for more"),
    "name": ("a text", "name the category"),
}


def decode_file(data: bytes, where: str) -> AnnotationFile:
    """Parse and check types and ranges.

    Raises:
        InputError: no JSON, or a field of the wrong type or range; record and field are named.
    """
    try:
        return msgspec.json.decode(data, type=AnnotationFile)
    except msgspec.ValidationError as error:
        raise type_error(data, where, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mend = "the file is truncated or damaged: fetch or export it again"
        raise InputError(where, f"not readable as JSON: {error}", allowed="LVIS-format JSON", mend=mend) from None


def type_error(data: bytes, where: str, message: str) -> InputError:
    """The error for a message of msgspec (Expected int, got str - at $.images[3].id): adds the id, and help."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    section, _, rest = path.lstrip(".").partition("[")
    index, _, field = rest.partition("]")
    if index:
        where = f"{where}: {section}[{index}]{id_at(data, section, int(index))}"
    field = field.lstrip(".") or (problem.split()[-1] if "missing required field" in problem else section)
    what = problem.replace("Object missing required field", "missing field").replace("Expected", "expected")
    if "missing field" not in what and field:
        what = f"{field}: {what}"
    allowed, mend = HELP.get(field.split("[")[0], ("LVIS-format JSON", "correct the record"))
    return InputError(where, what, allowed=allowed, mend=mend)


def id_at(data: bytes, section: str, index: int) -> str:
    """`` (id 7)`` where the record that could not be read has an id, else nothing."""
    try:
        sections = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        record = msgspec.json.decode(msgspec.json.decode(sections[section], type=list[msgspec.Raw])[index])
        return f" (id {record['id']!r:.40})"
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""


def columns(records: AnnotationFile, where: str) -> dict[str, np.ndarray]:
    """All arrays of the store from checked records.

    Raises:
        InputError: records that contradict each other; the first one is named.
    """
    image_ids = integers(image.id for image in records.images)
    category_ids = integers(category.id for category in records.categories)
    check_unique(image_ids, where, "image")
    check_unique(category_ids, where, "category")
    check_unique(integers(annotation.id for annotation in records.annotations), where, "annotation")
    image_of = image_positions(records.annotations, image_ids, where)
    annotations = [records.annotations[k] for k in np.argsort(image_of, kind="stable")]
    image_of.sort()
    heights = integers(image.height for image in records.images)
    widths = integers(image.width for image in records.images)
    names = [(name or "").encode() for image in records.images for name in (image.coco_url, image.file_name)]
    check_names(names, image_ids, where)
    boxes_xywh = np.array([annotation.bbox for annotation in annotations], np.float64)
    check_annotations(annotations, boxes_xywh, heights[image_of], widths[image_of], where)
    negatives = [image.neg_category_ids for image in records.images]
    not_exhaustive = [image.not_exhaustive_category_ids for image in records.images]
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
        "annotation_offsets": np.searchsorted(image_of, np.arange(len(image_ids) + 1)),
        "annotation_ids": integers(annotation.id for annotation in annotations),
        "labels": annotation_labels(annotations, category_ids, where),
        "boxes_xywh": boxes_xywh,
        "areas": np.array([annotation.area for annotation in annotations], np.float64),
        **polygon_columns(annotations, where),
    }


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def offsets(lengths: Iterable[int]) -> Int64[np.ndarray, " k+1"]:
    """Where each of consecutive entries of these lengths begins, and the end."""
    return np.concatenate([[0], np.cumsum(integers(lengths))])


def positions(ids: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Index of each wanted id in ``ids``, -1 where it is not there."""
    order = np.argsort(ids)
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def check_unique(ids: Int64[np.ndarray, " k"], where: str, kind: str) -> None:
    """Raise InputError for the first id that stands twice."""
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        again = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        allowed, mend = HELP["id"]
        raise InputError(f"{where}: {kind} {ids[again]}", f"{kind} id stands twice", allowed=allowed, mend=mend)


def image_positions(
    annotations: Sequence[AnnotationRecord], image_ids: Int64[np.ndarray, " n"], where: str
) -> Int64[np.ndarray, " A"]:
    """Position of each annotation's image; InputError for one that is not there."""
    found = positions(image_ids, integers(annotation.image_id for annotation in annotations))
    if (found < 0).any():
        bad = annotations[int(np.argmax(found < 0))]
        raise record_error(where, bad.id, "image_id", f"unknown image {bad.image_id}")
    return found


def annotation_labels(
    annotations: Sequence[AnnotationRecord], category_ids: Int64[np.ndarray, " c"], where: str
) -> Int64[np.ndarray, " A"]:
    """Label of each annotation; InputError for a category that is not there."""
    found = positions(category_ids, integers(annotation.category_id for annotation in annotations))
    if (found < 0).any():
        bad = annotations[int(np.argmax(found < 0))]
        raise record_error(where, bad.id, "category_id", f"unknown category {bad.category_id}")
    return found + 1


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


def check_names(names: Sequence[bytes], image_ids: Int64[np.ndarray, " n"], where: str) -> None:
    """Raise InputError for the first image that has neither of its two names."""
    nameless = [not (url or file) for url, file in zip(names[::2], names[1::2], strict=True)]
    if any(nameless):
        raise InputError(
            f"{where}: image {image_ids[nameless.index(True)]}",
            "has neither coco_url nor file_name",
            mend="add file_name, relative to the folder of the images",
        )


def record_error(where: str, annotation_id: int, field: str, what: str) -> InputError:
    """The error of one field of one annotation."""
    allowed, mend = HELP[field]
    return InputError(f"{where}: annotation {annotation_id}", what, allowed=allowed, mend=mend)


def check_annotations(
    annotations: Sequence[AnnotationRecord],
    boxes_xywh: Float64[np.ndarray, "A 4"],
    heights: Int64[np.ndarray, " A"],
    widths: Int64[np.ndarray, " A"],
    where: str,
) -> None:
    """Raise InputError for crowds, ignored objects, and boxes that are empty or wholly outside their image."""
    for annotation in annotations:
        if annotation.iscrowd or annotation.ignore:
            raise InputError(
                f"{where}: annotation {annotation.id}",
                "is marked iscrowd or ignore, which LVIS scoring does not know",
                allowed="no such mark, or 0",
                mend="remove the annotation and list its category in the image's not_exhaustive_category_ids",
            )
    x, y, w, h = boxes_xywh.T
    empty = (w <= 0) | (h <= 0)
    outside = (x >= widths) | (y >= heights) | (x + w <= 0) | (y + h <= 0)
    if (empty | outside).any():
        at = int(np.argmax(empty | outside))
        problem = "has no positive size" if empty[at] else f"is outside its {widths[at]} x {heights[at]} image"
        raise InputError(
            f"{where}: annotation {annotations[at].id}",
            f"bbox {boxes_xywh[at].tolist()} {problem}",
            allowed="[x, y, width, height] in pixels that overlaps the image",
            mend="correct the box or remove the annotation",
        )


def polygon_columns(annotations: Sequence[AnnotationRecord], where: str) -> dict[str, np.ndarray]:
    """Decode the polygons, a chunk of annotations at a time.

    Raises:
        InputError: no polygon, fewer than 6 or an odd count of numbers, anything that is no finite number.
    """
    decoder = msgspec.json.Decoder(list[list[list[float]]])
    polygons_each, numbers_each, coordinates = [], [], []
    for start in tqdm(range(0, len(annotations), CHUNK), "polygons", unit="chunk", disable=None):
        chunk = annotations[start : start + CHUNK]
        text = b"[" + b",".join(bytes(annotation.segmentation) for annotation in chunk) + b"]"
        try:
            decoded = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise next(filter(None, (polygon_error(annotation, where) for annotation in chunk))) from None
        numbers = integers(len(polygon) for polygons in decoded for polygon in polygons)
        polygons = integers(map(len, decoded))
        if not polygons.all() or (numbers < 6).any() or (numbers % 2).any():
            raise next(filter(None, (polygon_error(annotation, where) for annotation in chunk)))
        flat = chain.from_iterable(chain.from_iterable(decoded))
        coordinates.append(np.fromiter(flat, np.float64, count=int(numbers.sum())))
        numbers_each.append(numbers)
        polygons_each.append(polygons)
    return {
        "polygon_offsets": offsets(np.concatenate(polygons_each)),
        "coordinate_offsets": offsets(np.concatenate(numbers_each)),
        "coordinates": np.concatenate(coordinates),
    }


def polygon_error(annotation: AnnotationRecord, where: str) -> InputError | None:
    """What is wrong with this annotation's polygons, if anything."""
    try:
        polygons = msgspec.json.decode(annotation.segmentation, type=list[list[float]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).replace("`", "").replace("$", "segmentation")
        is_mask = bytes(annotation.segmentation).lstrip().startswith(b"{")
        what = "segmentation is a run-length mask" if is_mask else reason
        return record_error(where, annotation.id, "segmentation", what)
    lengths = [len(polygon) for polygon in polygons]
    bad = [(n, length) for n, length in enumerate(lengths) if length < 6 or length % 2]
    if polygons and not bad:
        return None
    what = f"segmentation[{bad[0][0]}] has {bad[0][1]} numbers" if bad else "segmentation has no polygon"
    return InputError(
        f"{where}: annotation {annotation.id}",
        what,
        allowed="one or more polygons of an even count of at least 6 numbers",
        mend="correct the polygon or remove it",
    )


def count(arrays: dict[str, np.ndarray], categories: Sequence[Category]) -> dict[str, int]:
    """Figures of a split, for store.json and the preflight page."""
    sizes_each = np.diff(arrays["annotation_offsets"])
    x, y, w, h = arrays["boxes_xywh"].T
    widths, heights = np.repeat(arrays["widths"], sizes_each), np.repeat(arrays["heights"], sizes_each)
    overshoots = (x < 0) | (y < 0) | (x + w > widths + ROUNDING_PX) | (y + h > heights + ROUNDING_PX)
    groups = [category.frequency for category in categories]
    return {
        "images": len(sizes_each),
        "images_without_annotation": int((sizes_each == 0).sum()),
        "annotations": len(arrays["annotation_ids"]),
        "polygons": len(arrays["coordinate_offsets"]) - 1,
        "clipped_boxes": int(overshoots.sum()),
        "empty_masks": int((arrays["areas"] == 0).sum()),
        "categories": len(categories),
        "rare_categories": groups.count("r"),
        "common_categories": groups.count("c"),
        "frequent_categories": groups.count("f"),
    }


def step(args: argparse.Namespace) -> None:
    """Build one store."""
    counts = build_store(args.annotations, args.out)
    log.info(
        "%s: %s",
        args.out,
        ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()),
    )


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="LVIS-format JSON file")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    run_step(parser, step)


if __name__ == "__main__":
    main()
