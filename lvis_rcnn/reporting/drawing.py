"""Objects on images: masks with outlines, boxes, and labels that nothing covers.

Small images are enlarged by an integer factor without interpolation, so that pixels stay visible and labels legible.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from lvis_rcnn.reporting.figures import whole_words
from lvis_rcnn.system.files import atomic_file

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of a picture; right and bottom are exclusive."""

# The colours of Okabe and Ito, with grey in place of black.
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (160, 160, 160),
)
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (90, 90, 90)
RARE_MARK = "★"

SHOWN_EDGE_PX = (460, 1000)
"""The long edge of an image is enlarged to at least the first, and shrunk to at most the second."""
MOST_LABELS = 40
LABELLED_SHARE = 0.25
"""At most so many labels, and on at most this part of a picture; more would hide it."""
LABEL_ORDER = "rcf"
"""Which objects get a label first, by frequency: rare ones are few, and what a reader looks for."""
LETTER_PX = 13
LINE_PX = 18
GAP_PX = 10


@dataclass(frozen=True, eq=False)
class Shown:
    """One object to draw."""

    box_xyxy: tuple[float, float, float, float]
    """In pixels of the image."""
    mask: UInt8[np.ndarray, "h w"]
    text: str
    colour: Colour
    frequency: str = "f"
    """Of its category: r, c or f."""

    @property
    def label(self) -> str:
        """Its text, with a mark where it is rare."""
        return f"{RARE_MARK} {self.text}" if self.is_rare else self.text

    @property
    def is_rare(self) -> bool:
        """Whether its category is."""
        return self.frequency == "r"


def factor_of(height: int, width: int) -> tuple[int, int]:
    """Integer factors by which an image is enlarged (first) and shrunk (second); at least one of them is 1."""
    longest = max(height, width)
    return max(1, -(-SHOWN_EDGE_PX[0] // longest)), max(1, -(-longest // SHOWN_EDGE_PX[1]))


def rescaled(pixels: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """An image or a mask in the size in which it is shown."""
    up, down = factor_of(*pixels.shape[:2])
    return np.repeat(np.repeat(pixels[::down, ::down], up, axis=0), up, axis=1)


@cache
def font(size_px: int = LETTER_PX, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)


def draw_objects(image_rgb: UInt8[np.ndarray, "h w 3"], objects: Sequence[Shown]) -> Image.Image:
    """The image with masks below boxes below labels, and a line that counts the objects without a label."""
    up, down = factor_of(*image_rgb.shape[:2])
    pixels = np.ascontiguousarray(rescaled(image_rgb))
    for one in objects:
        blend_mask(pixels, rescaled(one.mask), one.colour)
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    boxes = [scaled_box(one.box_xyxy, up / down, picture.size) for one in objects]
    for one, box in zip(objects, boxes, strict=True):
        pen.rectangle(box, outline=BLACK, width=4 if one.is_rare else 3)
        pen.rectangle(inset(box, 1), outline=one.colour, width=2 if one.is_rare else 1)
    unlabelled = len(objects) - draw_labels(pen, objects, boxes, picture.size)
    return footed(picture, f"{unlabelled} of {len(objects)} without a label") if unlabelled else picture


def draw_labels(
    pen: ImageDraw.ImageDraw, objects: Sequence[Shown], boxes: Sequence[Rectangle], canvas_wh: tuple[int, int]
) -> int:
    """Draw the labels of objects above the lines that lead to their boxes; return how many there was room for."""
    order = labelled(objects)
    areas = np.cumsum([width * height for width, height in (label_size(objects[at].label) for at in order)])
    order = order[: max(1, int((areas <= LABELLED_SHARE * canvas_wh[0] * canvas_wh[1]).sum()))]
    places = place_labels([boxes[at] for at in order], [label_size(objects[at].label) for at in order], canvas_wh)
    placed = [(objects[at], boxes[at], place) for at, place in zip(order, places, strict=True) if place is not None]
    for one, box, place in placed:
        draw_leader(pen, one.colour, place, box)
    for one, _, place in placed:
        draw_label(pen, one.label, one.colour, place)
    return len(placed)


def labelled(objects: Sequence[Shown]) -> list[int]:
    """Which objects get a label, those with the first choice of place first: rare, common, frequent, then as given."""
    order = sorted(range(len(objects)), key=lambda at: LABEL_ORDER.index(objects[at].frequency))
    return order[:MOST_LABELS]


def blend_mask(pixels: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], colour: Colour) -> None:
    """Tint a mask and draw its outline, black below the colour, so that it is visible on any background."""
    inside = mask > 0
    pixels[inside] = (0.7 * pixels[inside] + 0.3 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outlines, -1, BLACK, 3)
    cv2.drawContours(pixels, outlines, -1, colour, 2)


def scaled_box(box_xyxy: Sequence[float], factor: float, size_wh: tuple[int, int]) -> Rectangle:
    """A box in pixels of the picture, at least three pixels wide and high, and inside it."""
    width, height = size_wh
    left, top, right, bottom = (round(factor * value) for value in box_xyxy)
    left, top = min(max(left, 0), width - 4), min(max(top, 0), height - 4)
    return left, top, min(max(right, left + 3), width - 1), min(max(bottom, top + 3), height - 1)


def inset(box: Rectangle, by: int) -> Rectangle:
    """A box made smaller by so many pixels on each side."""
    left, top, right, bottom = box
    return left + by, top + by, max(right - by, left + by), max(bottom - by, top + by)


def label_size(text: str) -> tuple[int, int]:
    """Width and height of a label, with its margin."""
    return round(font().getlength(text)) + 6, LINE_PX


def place_labels(
    boxes: Sequence[Rectangle], sizes_wh: Sequence[tuple[int, int]], canvas_wh: tuple[int, int]
) -> list[Rectangle | None]:
    """Where labels are placed: at their box if there is room, else near it; None where the canvas is full.

    Invariant: no two overlap, and all lie on the canvas.
    """
    placed: list[Rectangle | None] = []
    for box, (width, height) in zip(boxes, sizes_wh, strict=True):
        taken = np.array([one for one in placed if one is not None], np.int64).reshape(-1, 4)
        free = (first_free(corners, (width, height), taken) for corners in candidates(box, (width, height), canvas_wh))
        corner = next((found for found in free if found is not None), None)
        placed.append(None if corner is None else (*corner, corner[0] + width, corner[1] + height))
    return placed


def candidates(
    box: Rectangle, size_wh: tuple[int, int], canvas_wh: tuple[int, int]
) -> Iterator[Int64[np.ndarray, "k 2"]]:
    """Upper left corners of a label on the canvas, best first: around its box, then everywhere, the nearest first."""
    (left, top, right, bottom), (width, height) = box, size_wh
    last = (canvas_wh[0] - width, canvas_wh[1] - height)
    if min(last) < 0:
        return
    around = [(left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom)]
    around += [(right, top), (left - width, top), (left, top), (right - width, top), (left, bottom - height)]
    yield np.array(around).clip(0, last)
    columns, rows = np.meshgrid(np.arange(0, last[0] + 1, height), np.arange(0, last[1] + 1, height // 2))
    grid = np.stack([columns.ravel(), rows.ravel()], axis=1)
    yield grid[np.argsort(((grid - (left, top)) ** 2).sum(axis=1), kind="stable")]


def first_free(
    corners: Int64[np.ndarray, "k 2"], size_wh: tuple[int, int], taken: Int64[np.ndarray, "m 4"]
) -> tuple[int, int] | None:
    """The first corner at which a label covers none of the rectangles that are taken."""
    ends = corners + size_wh
    covers = (corners[:, None] < taken[:, 2:]).all(axis=2) & (taken[:, :2] < ends[:, None]).all(axis=2)
    free = np.flatnonzero(covers.sum(axis=1) == 0)
    return (int(corners[free[0], 0]), int(corners[free[0], 1])) if len(free) else None


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Whether two rectangles share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_leader(pen: ImageDraw.ImageDraw, colour: Colour, place: Rectangle, box: Rectangle) -> None:
    """Draw a line from a label to its box where they do not touch."""
    left, top, right, bottom = place
    if not overlap((left - 3, top - 3, right + 3, bottom + 3), (box[0], box[1], box[2] + 1, box[3] + 1)):
        pen.line([((left + right) // 2, (top + bottom) // 2), (box[0], box[1])], fill=colour, width=1)


def draw_label(pen: ImageDraw.ImageDraw, text: str, colour: Colour, place: Rectangle) -> None:
    """Draw a label on its background."""
    left, top, right, bottom = place
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour, outline=BLACK)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((left + 3, top + LINE_PX // 2), text, fill=BLACK if brightness > 110 else WHITE, font=font(), anchor="lm")


def captioned(pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> list[Image.Image]:
    """Pictures of one row, each with its lines of text above it, wrapped to its width; all begin at the same height."""
    wrapped = [
        [part for line in lines for part in wrap(line, picture.width)]
        for picture, lines in zip(pictures, captions, strict=True)
    ]
    top = LINE_PX * max(map(len, wrapped), default=0)
    return [with_lines(picture, lines, top) for picture, lines in zip(pictures, wrapped, strict=True)]


def with_lines(picture: Image.Image, lines: Sequence[str], top: int) -> Image.Image:
    """A picture below ``top`` pixels for lines of text."""
    sheet = Image.new("RGB", (picture.width, picture.height + top), WHITE)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((0, LINE_PX * number + LINE_PX // 2), line, fill=BLACK, font=font(), anchor="lm")
    sheet.paste(picture, (0, top))
    return sheet


def footed(picture: Image.Image, line: str) -> Image.Image:
    """A picture with a line of text below it, cut to its width."""
    sheet = Image.new("RGB", (picture.width, picture.height + LINE_PX), WHITE)
    sheet.paste(picture, (0, 0))
    at = (0, picture.height + LINE_PX // 2)
    ImageDraw.Draw(sheet).text(at, cut(line, picture.width), fill=BLACK, font=font(), anchor="lm")
    return sheet


def cut(text: str, width_px: int) -> str:
    """As many words of a text as fit into this width."""
    return whole_words(text, lambda part: font().getlength(part) <= width_px)


def wrap(text: str, width_px: int) -> list[str]:
    """A text in lines of whole words; a word that is wider than a line is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font().getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines += [cut(word, width_px)]
    return lines[1:] if len(lines) > 1 and not lines[0] else lines


def sheet_of(title: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows and columns on white, below the lines of a title."""
    columns = max(map(len, rows), default=0)
    widths = [max(row[at].width for row in rows if at < len(row)) + GAP_PX for at in range(columns)]
    longest = max((round(font(bold=True).getlength(line)) + GAP_PX for line in title), default=0)
    heights = [max(one.height for one in row) + GAP_PX for row in rows]
    head = GAP_PX + LINE_PX * len(title) + (GAP_PX if title else 0)
    sheet = Image.new("RGB", (max(sum(widths), longest) + GAP_PX, head + sum(heights)), WHITE)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        y = GAP_PX + LINE_PX * number + LINE_PX // 2
        pen.text((GAP_PX, y), line, fill=BLACK if not number else GREY, font=font(bold=not number), anchor="lm")
    top = head
    for row, height in zip(rows, heights, strict=True):
        left = GAP_PX
        for one, width in zip(row, widths, strict=False):
            sheet.paste(one, (left, top))
            left += width
        top += height
    return sheet


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all; the same picture gives the same bytes."""
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", optimize=False)
