"""What the records of an LVIS JSON file may hold, and the line that names a record that is wrong.

Types and ranges are declared once, in the records below, and checked by msgspec while it parses. Of a key that stands
twice in a record, the last counts, as for every JSON reader that LVIS files meet.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lvis_rcnn.annotation_text import Text
from lvis_rcnn.command import InputError

Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
# Run-length masks count pixels in 32 bits, so an edge has 16.
EdgePx = Annotated[int, Meta(ge=1, le=65_535)]


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
    """One annotation as it stands in the file; its outline stays text until it is needed."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: Annotated[float, Meta(ge=0)]
    segmentation: msgspec.Raw
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class Sections(msgspec.Struct):
    """What is read of an LVIS file; other keys (info, licenses) are skipped. The annotations stay text."""

    images: Annotated[list[ImageRecord], Meta(min_length=1)]
    annotations: msgspec.Raw
    categories: Annotated[list[Category], Meta(min_length=1)]


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
    "segmentation": (
        "a list of polygons [x0, y0, x1, y1, ...], or a mask {size: [height, width], counts: runs}",
        "write polygons or a run-length mask of the image's size",
    ),
    "coco_url": ("a text", "write the image's address, or leave it out and write file_name"),
    "file_name": ("a text", "write the image's name, relative to the folder of the images"),
    "height": ("1 to 65535 pixels, a whole number", "write the image's height"),
    "width": ("1 to 65535 pixels, a whole number", "write the image's width"),
    "neg_category_ids": ("a list of category ids", "write the categories known to be absent, or an empty list"),
    "not_exhaustive_category_ids": ("a list of category ids", "write an empty list if all objects are annotated"),
    "frequency": ("r, c or f", "add it: r for 1 to 10 training images, c for 11 to 100, f for more"),
    "name": ("a text", "name the category"),
}


def read_sections(text: Text, where: str) -> Sections:
    """Parse all but the annotations, and check types and ranges.

    Raises:
        InputError: no JSON, or a field of the wrong type or range; record and field are named.
    """
    try:
        return msgspec.json.decode(text, type=Sections)
    except msgspec.ValidationError as error:
        raise type_error(text, where, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(where, error) from None


def no_json(where: str, error: Exception) -> InputError:
    """The error for text that is no JSON."""
    mend = "the file is truncated or damaged: fetch or export it again"
    return InputError(where, f"not readable as JSON: {error}", allowed="LVIS-format JSON", mend=mend)


def type_error(data: Text, where: str, message: str) -> InputError:
    """The error for a message of msgspec; adds the record's id, and help for its field."""
    problem, path = problem_and_path(message)
    section, _, rest = path.lstrip(".").partition("[")
    index, _, rest = rest.partition("]")
    if index:
        where = f"{where}: {section}[{index}]{id_at(data, section, int(index))}"
    absent = problem.removeprefix("object missing required field ")
    if absent != problem:
        field, what = absent, f"missing field {absent}"
    else:
        field = rest.lstrip(".") if index else section
        what = f"{field}: {problem}" if field else problem
    allowed, mend = HELP.get(field.partition("[")[0], ("LVIS-format JSON", "correct the record"))
    return InputError(where, what, allowed=allowed, mend=mend)


def problem_and_path(message: str) -> tuple[str, str]:
    """``Expected `int`, got `str` - at `$.images[3].id``` as ``expected int, got str`` and ``.images[3].id``."""
    problem, _, path = message.replace("`", "").partition(" - at $")
    return problem[:1].lower() + problem[1:], path


def id_at(data: Text, section: str, index: int) -> str:
    """`` (id 7)`` where the record that could not be read has an id, else nothing."""
    try:
        sections = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        record = msgspec.json.decode(msgspec.json.decode(sections[section], type=list[msgspec.Raw])[index])
        return f" (id {record['id']!r:.40})"
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""


def record_error(where: str, annotation_id: int, field: str, what: str) -> InputError:
    """The error of one field of one annotation."""
    allowed, mend = HELP[field]
    return InputError(f"{where}: annotation {annotation_id}", what, allowed=allowed, mend=mend)
