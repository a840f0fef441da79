"""The records of an LVIS JSON file: types, ranges, and the error that names a wrong record.

Types and ranges are declared once, in the structs below, and checked by msgspec while it parses. Of a key that is
repeated in a record the last one counts, as for every JSON reader that LVIS files meet.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float64, Int64, UInt8
from msgspec import Meta

from lvis_rcnn.dataset.json_text import Text, decoded, decoded_list, decoded_record, value_at
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.dataset.polygons import ALLOWED, is_bitmap, miscounted, of_three_points, too_large
from lvis_rcnn.dataset.rle import check_runs, runs_of_text
from lvis_rcnn.system.cli import InputError

# Any id that the lvis package takes; only that of an annotation must not be 0 (see refuse_id_0).
Int64Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# Run-length masks count pixels in 32 bits, so an edge has 16.
EdgePx = Annotated[int, Meta(ge=1, le=65_535)]


class Category(msgspec.Struct, frozen=True):
    """One category; its label is 1 + its position in the file."""

    id: Int64Number
    name: Annotated[str, Meta(min_length=1)]
    frequency: Literal["r", "c", "f"]
    """Rare, common or frequent, as the file says; never derived from counts."""
    synset: Any = ""
    """A text in LVIS; other data write null, or a list of them."""


class ImageRecord(msgspec.Struct, gc=False):
    """One image of the file."""

    id: Int64Number
    height: EdgePx
    width: EdgePx
    neg_category_ids: list[Int64Number]
    not_exhaustive_category_ids: list[Int64Number]
    coco_url: str | None = None
    file_name: str | None = None


class UnlabelledImage(ImageRecord, gc=False):
    """One image of a test set, whose lists are not published."""

    neg_category_ids: list[Int64Number] = []
    not_exhaustive_category_ids: list[Int64Number] = []


class AnnotationRecord(msgspec.Struct, gc=False):
    """One annotation of the file; its outline stays text until it is needed."""

    id: Int64Number
    image_id: Int64Number
    category_id: Int64Number
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)]
    segmentation: msgspec.Raw
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0


class LvisFile(msgspec.Struct):
    """An LVIS file; other keys (info, licenses) are skipped. The annotations stay text."""

    images: Annotated[Sequence[ImageRecord], Meta(min_length=1)]
    categories: Annotated[list[Category], Meta(min_length=1)]
    annotations: msgspec.Raw


class UnlabelledFile(LvisFile):
    """A test set: without annotations, or with an empty list of them."""

    images: Annotated[Sequence[UnlabelledImage], Meta(min_length=1)]
    annotations: msgspec.Raw = msgspec.Raw(b"[]")


Sections = Mapping[str, type[msgspec.Struct]]

# Sections that are decoded with the file; the annotations are read piece by piece.
RECORDS = ("images", "categories")

# What the records of each section are, to name the keys that they lack.
SECTIONS: Sections = {"images": ImageRecord, "annotations": AnnotationRecord, "categories": Category}
UNLABELLED_SECTIONS: Sections = {"images": UnlabelledImage, "categories": Category}


class FileFormat(NamedTuple):
    """A format of annotation files: how all but the annotations is read, and which keys records need."""

    read: Callable[[Text, str], LvisFile]
    sections: Sections


# Annotations with the same error that are named.
NAMED = 5

# Field -> what is allowed and how to fix it, for error messages.
HELP = {
    "images": ("at least one image", "an LVIS file has images, annotations and categories"),
    "annotations": ("a list of annotations", "an LVIS file has images, annotations and categories"),
    "categories": ("at least one category", "an LVIS file has images, annotations and categories"),
    "id": ("a whole number of 64 bits, each once", "write a number without quotes, also where it is referred to"),
    "image_id": ("the id of an image of the file", "correct the id or remove the annotation"),
    "category_id": ("the id of a category of the file", "correct the id or remove the annotation"),
    "bbox": ("[x, y, width, height] in pixels, finite numbers", "write the box as COCO and LVIS do"),
    "area": ("mask area in pixels, a finite number from 0", "write the polygons' area"),
    "segmentation": (
        "one or more polygons [x0, y0, x1, y1, ...], each of an even count of numbers, one at least of 6, or a mask"
        f" {{size: [height, width], counts: runs}}; {ALLOWED}",
        "write polygons or a run-length mask of the image's size, or remove the annotation",
    ),
    "ignore": ("0 or 1", "correct the mark"),
    "iscrowd": ("0 or 1", "correct the mark"),
    "coco_url": ("a text", "write the image's address, or leave it out and write file_name"),
    "file_name": ("a text", "write the image's name, relative to the folder of the images"),
    "height": ("1 to 65535 pixels, a whole number", "write the image's height"),
    "width": ("1 to 65535 pixels, a whole number", "write the image's width"),
    "neg_category_ids": ("a list of category ids", "write the categories known to be absent, or an empty list"),
    "not_exhaustive_category_ids": ("a list of category ids", "write an empty list if all objects are annotated"),
    "neg_category_ids[]": ("the id of a category of the file", "correct the id"),
    "not_exhaustive_category_ids[]": ("the id of a category of the file", "correct the id"),
    "frequency": ("r, c or f", "add it: r for 1 to 10 training images, c for 11 to 100, f for more"),
    "name": ("a text", "name the category"),
}


def read_lvis_file(text: Text, where: str) -> LvisFile:
    """Parse all but the annotations, and check types and ranges; a test set has none, and its lists may be missing.

    Raises:
        InputError: no JSON, or a field of the wrong type or range; record and field are named.
    """
    sections = SECTIONS
    try:
        if not has_annotations(text):
            sections = UNLABELLED_SECTIONS
            return decoded(text, UnlabelledFile, RECORDS)
        return decoded(text, LvisFile, RECORDS)
    except msgspec.ValidationError as error:
        raise plain_coco(text, where, str(error), sections) or type_error(text, where, str(error), sections) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


LVIS = FileFormat(read_lvis_file, SECTIONS)


def has_annotations(text: Text) -> bool:
    """Whether a file has annotations; msgspec.DecodeError where it is no JSON object."""
    annotations = decoded_record(text).get("annotations", msgspec.Raw(b"[]"))
    return b"".join(bytes(memoryview(annotations)[:64]).split()) != b"[]"


def no_json(where: str, error: Exception) -> InputError:
    """The error for text that is no JSON."""
    fix = "correct the file there, or, if it is truncated or damaged, fetch or export it again"
    if isinstance(error, UnicodeDecodeError):
        fix = "write it as UTF-8, as iconv -f LATIN1 -t UTF-8 FILE > NEW does, or fetch or export it again"
    return InputError(where, f"not readable as JSON: {error}", allowed="LVIS-format JSON", fix=fix)


def type_error(data: Text, where: str, message: str, sections: Sections = SECTIONS) -> InputError:
    """The error for a message of msgspec; adds the record's id, and help for its field.

    Args:
        data: the file.
        where: its name.
        message: of msgspec.
        sections: what the records of each section are; of keys that they lack all are named.
    """
    problem, path = problem_and_path(message)
    lacking = lacking_keys(data, sections) if problem.startswith("object missing required field ") else []
    if lacking:
        return missing_error(data, where, lacking)
    section, _, rest = path.lstrip(".").partition("[")
    index, _, rest = rest.partition("]")
    if index:
        where = record_name(data, where, section, int(index))
    field = rest.lstrip(".") if index else section
    problem = problem_of(problem, data, path)
    name, entry, _ = field.partition("[")
    other = ("LVIS-format JSON", "correct the record" if path else "name an LVIS annotation file")
    allowed, fix = HELP.get(f"{name}[]" * bool(entry)) or HELP.get(name) or other
    return InputError(where, f"{field}: {problem}" if field else problem, allowed=allowed, fix=fix)


def record_name(data: Text, where: str, section: str, index: int) -> str:
    """Name of a record that could not be read, with its id if it has one."""
    record_id = value_at(data, f"{section}[{index}].id")
    return f"{where}: {section}[{index}]" + (f" (id {record_id!r:.40})" if record_id is not None else "")


def problem_of(problem: str, data: Text, path: str) -> str:
    """A problem of msgspec, in which what :func:`lvis_rcnn.dataset.json_text.mended` writes for NaN is named."""
    if problem.endswith(("got str", "invalid enum value ''")) and value_at(data, path) == "":
        return problem.removesuffix("str").replace("''", "") + "NaN, infinity or an empty text"
    return problem


class Lacking(NamedTuple):
    """A key that some of the records of a section lack, or, without ``indices``, a section that the file lacks."""

    name: str
    section: str
    indices: list[int]
    num_records: int

    def __str__(self) -> str:
        many = f" (in {len(self.indices):,} of {self.num_records:,} {self.section})"
        return self.name + many * (len(self.indices) > 1)


def lacking_keys(data: Text, sections: Sections) -> list[Lacking]:
    """All required keys that a file or its records lack."""
    file, lacking = decoded_record(data), []
    for section, kind in sections.items():
        if section not in file:
            lacking.append(Lacking(section, section, [], 0))
            continue
        found: dict[str, list[int]] = {field.name: [] for field in msgspec.structs.fields(kind) if field.required}
        records = entries(decoded_list, file[section])
        for index, record in enumerate(records):
            for name in found.keys() - entries(decoded_record, record, found):
                found[name].append(index)
        lacking += [Lacking(name, section, indices, len(records)) for name, indices in found.items() if indices]
    return lacking


def entries(decode: Callable[[msgspec.Raw], Any], value: msgspec.Raw, otherwise: Any = ()) -> Any:
    """A decoded list or record; ``otherwise`` where it is none."""
    try:
        return decode(value)
    except (ValueError, RecursionError):
        return otherwise


def missing_error(data: Text, where: str, lacking: Sequence[Lacking]) -> InputError:
    """The error that names all missing keys."""
    if len(lacking) == 1:
        (one,) = lacking
        where = record_name(data, where, one.section, one.indices[0]) if one.indices else where
        return InputError(where, f"missing field {one}", allowed=HELP[one.name][0], fix=HELP[one.name][1])
    fix = "; ".join(f"{one.name}: {HELP[one.name][1]}" for one in lacking)
    return InputError(where, f"missing fields {', '.join(map(str, lacking))}", allowed="LVIS-format JSON", fix=fix)


def plain_coco(text: Text, where: str, message: str, sections: Sections) -> InputError | None:
    """The error for a file that lacks nothing but what LVIS adds to COCO, and everywhere; None for any other.

    Categories of COCO's form may have a frequency.
    """
    lacking = lacking_keys(text, sections) if "missing required field" in message else []
    added = {"neg_category_ids", "not_exhaustive_category_ids", "frequency"}
    names = [one.name for one in lacking if len(one.indices) == one.num_records]
    if not added - {"frequency"} <= {*names} <= added or len(lacking) != len(names):
        return None
    what = f"COCO annotations: no {', no '.join(names)}, which LVIS has"
    fix = (
        "add them, or, if every category is annotated in every image, --coco-exhaustive (in a study exhaustive: true of"
        " the split, in Python coco_exhaustive)"
    )
    return InputError(where, what, allowed="LVIS-format JSON", fix=fix)


def problem_and_path(message: str) -> tuple[str, str]:
    """``Expected `int`, got `str` - at `$.images[3].id``` as ``expected int, got str`` and ``.images[3].id``."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    return problem[:1].lower() + problem[1:], path


def record_error(where: str, annotation_id: int, field: str, what: str) -> InputError:
    """The error of one field of one annotation."""
    allowed, fix = HELP[field]
    return InputError(f"{where}: annotation {annotation_id}", what, allowed=allowed, fix=fix)


def refuse_id_0(annotation_ids: Int64[np.ndarray, " A"], where: str) -> None:
    """Raise InputError for an annotation with the id 0: ``lvis`` writes the id of a matched annotation, or 0."""
    if (annotation_ids == 0).any():
        raise InputError(
            f"{where}: annotation 0",
            "id 0 is reserved for 'unmatched', so that this object would never be found",
            allowed="any other whole number as an annotation's id; images and categories may have 0",
            fix="renumber the annotations from 1",
        )


def known(
    ids: Int64[np.ndarray, " k"],
    wanted: Int64[np.ndarray, " A"],
    annotation_ids: Int64[np.ndarray, " A"],
    field: str,
    where: str,
) -> Int64[np.ndarray, " A"]:
    """Position in ``ids`` of what ``field`` of each annotation names; InputError for an id that is not in it."""
    found = positions(ids, wanted)
    if (found < 0).any():
        at, others = int(np.argmax(found < 0)), int((found < 0).sum()) - 1
        what = f"unknown {field.removesuffix('_id')} {wanted[at]}" + f" (and {others:,} more annotations)" * bool(
            others
        )
        raise record_error(where, int(annotation_ids[at]), field, what)
    return found


LISTS_OF_POLYGONS = msgspec.json.Decoder(list[list[list[float]]])
POLYGONS = msgspec.json.Decoder(list[list[float]])


class RunLengthMask(msgspec.Struct):
    """A mask as pycocotools writes it: ``size`` (height, width), ``counts`` as numbers or as compressed text."""

    size: tuple[EdgePx, EdgePx]
    counts: str | list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]


MASK = msgspec.json.Decoder(RunLengthMask)


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of consecutive annotations: each has polygons, or the runs of a mask."""

    polygons_each: Int64[np.ndarray, " A"]
    numbers_each: Int64[np.ndarray, " polygons"]
    coordinates: Float64[np.ndarray, " numbers"]
    runs_each: Int64[np.ndarray, " A"]
    mask_sizes_hw: Int64[np.ndarray, "masks 2"]
    runs: Int64[np.ndarray, " runs"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Annotations in the order of the file, with the file's ids."""

    ids: Int64[np.ndarray, " A"]
    image_ids: Int64[np.ndarray, " A"]
    category_ids: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    areas: Float64[np.ndarray, " A"]
    marks: UInt8[np.ndarray, " A"]
    """See :func:`marks_of`."""
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.ids)


CROWD, IGNORED = 1, 2


def marks_of(crowds: Sequence[Any] | np.ndarray, ignored: Sequence[Any] | np.ndarray) -> UInt8[np.ndarray, " A"]:
    """``CROWD`` or ``IGNORED`` of annotations by their keys iscrowd and ignore, the latter first; 0 of all others."""
    marks: np.ndarray = np.where(np.array(ignored, bool), IGNORED, np.where(np.array(crowds, bool), CROWD, 0))
    return marks.astype(np.uint8)


def integers(values: Iterable[int]) -> Int64[np.ndarray, " k"]:
    """Python whole numbers as an array."""
    return np.fromiter(values, np.int64)


def outlines_of(records: Sequence[AnnotationRecord], where: str) -> Outlines:
    """Polygons and masks of these annotations.

    Raises:
        InputError: no polygon of 6 numbers or more, one of an odd count, a value that is no finite number or too large
            to draw; a mask whose runs do not fill it.
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
    """``counts`` where the mask is set, 0 elsewhere."""
    found = np.zeros(len(where), np.int64)
    found[where] = counts
    return found


def polygons_of(records: Sequence[AnnotationRecord], where: str) -> list[list[list[float]]]:
    """Polygons of annotations without a mask; InputError for the first wrong one."""
    text = b"[" + b",".join(record.segmentation for record in records) + b"]"
    try:
        polygons = LISTS_OF_POLYGONS.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        polygons = []
    wrong = not all(polygons) or any(map(is_bitmap, polygons))
    wrong = wrong or any(miscounted(one) is not None for one in polygons)
    polygons = [of_three_points(one) for one in polygons]
    if wrong or len(polygons) != len(records) or any(map(too_large, chain.from_iterable(polygons))):
        first, *others = [record for record in records if polygon_problem(record)]
        more = f" (also annotations {', '.join(str(record.id) for record in others[:NAMED])}" * bool(others)
        more += f" and {len(others) - NAMED:,} more" * (len(others) > NAMED) + ")" * bool(others)
        raise record_error(where, first.id, "segmentation", f"{polygon_problem(first)}{more}")
    return polygons


def polygon_problem(record: AnnotationRecord) -> str:
    """What is wrong with this annotation's polygons; empty where they are right."""
    try:
        polygons = POLYGONS.decode(record.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem, path = problem_and_path(str(error))
        return f"segmentation{path}: {problem_of(problem, bytes(record.segmentation), path)}"
    if not polygons:
        return "segmentation has no polygon"
    if is_bitmap(polygons):
        return f"segmentation is a bitmap of {len(polygons)} x {len(polygons[0])} pixels"
    if (at := miscounted(polygons)) is not None:
        return f"segmentation[{at}] has {len(polygons[at])} numbers"
    whys = (f"segmentation[{n}] {why}" for n, one in enumerate(polygons) if (why := too_large(one)))
    return next(whys, "")


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
