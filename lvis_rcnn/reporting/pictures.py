"""What a run detects, as pictures: ground truth beside detections, and the objects that it misses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lvis_rcnn.dataset.detections import Detections, read_shards
from lvis_rcnn.dataset.images import ImageFiles, read_image_bgr
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.dataset.rle import pixels_of_runs
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.reporting.drawing import (
    BLACK,
    COLOURS,
    RARE_MARK,
    WHITE,
    Colour,
    Shown,
    captioned,
    draw_objects,
    sheet_of,
    write_picture,
)
from lvis_rcnn.reporting.figures import GROUPS
from lvis_rcnn.system.cli import InputError

FOUND_IOU = 0.5
"""IoU of boxes from which a detection of its category matches an object."""
NAMED_SCORE = 0.3
"""A missed object is named after a detection with at least this score: of up to 300 per image, most are noise."""
MOST_DETECTIONS = 20
"""Drawn on an image; more would hide it."""
OBJECT_COLOURS, NOT_JUDGED = COLOURS[:-1], COLOURS[-1]
RIGHT, WRONG = "✓ ", "✗ "
MISSES_OF_CATEGORY = 2
MISSES_IN_ROW, MISSES_SHOWN = 4, 12
TILE_PX = 240
LEAST_AROUND_PX = 24


@dataclass(frozen=True, eq=False)
class Scenes:
    """A split with its images and what was detected in them."""

    store: AnnotationStore
    files: ImageFiles
    found: Detections
    labels: Int64[np.ndarray, " d"]
    """Of each detection; 0 where its category is not in the store."""
    starts: Int64[np.ndarray, " ends"]
    """Detections of image i, best first: ``order[starts[i]:starts[i + 1]]``."""
    order: Int64[np.ndarray, " k"]

    def detections_of(self, image: int) -> Int64[np.ndarray, " m"]:
        """Rows of the detections of an image, best first."""
        return self.order[self.starts[image] : self.starts[image + 1]]

    def frequency(self, label: int) -> str:
        """Group of a category: r, c or f."""
        return self.store.categories[label - 1].frequency


def read_scenes(store: AnnotationStore, images_dir: Path, detections: Path) -> Scenes:
    """Open the images and the detections of a split.

    Raises:
        InputError: shards or zips of images are damaged or missing, or detections are of images of another split.
    """
    found = read_shards(detections)
    label_of = {category.id: label for label, category in enumerate(store.categories, start=1)}
    labels = np.array([label_of.get(category, 0) for category in found.category_ids.tolist()], np.int64)
    images = positions(store.image_ids, found.image_ids)
    if (images < 0).any():
        row = int(np.argmax(images < 0))
        raise InputError(
            str(detections),
            f"detections of {len(set(found.image_ids[images < 0].tolist())):,} images that {store.source_name} does not"
            f" have, the first is image {found.image_ids[row]}",
            allowed="detections of the images of this store",
            fix="name the store of the split that inference read",
        )
    order = np.lexsort((-found.scores, images))
    starts = np.searchsorted(images[order], np.arange(store.num_images + 1))
    return Scenes(store, ImageFiles(images_dir), found, labels, starts, order)


def pixels_rgb(scenes: Scenes, image: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at this position, as :func:`read_image_bgr` reads it."""
    store = scenes.store
    pixels = read_image_bgr(scenes.files.of(store, image), int(store.heights[image]), int(store.widths[image]))
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def mask_of_annotation(store: AnnotationStore, annotation: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The mask of an object in its image, as pycocotools draws it."""
    outline = store.outline_of(annotation)
    if isinstance(outline, np.ndarray):
        return pixels_of_runs(outline, size_hw)
    packed = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in outline], *size_hw))
    mask: np.ndarray = coco_mask.decode(packed)
    return mask


def xyxy(box_xywh: Sequence[float]) -> tuple[float, float, float, float]:
    """The same box by its corners."""
    x, y, width, height = (float(value) for value in box_xywh)
    return x, y, x + width, y + height


def shown_annotation(scenes: Scenes, row: int, size_hw: tuple[int, int], colour: Colour) -> Shown:
    """One annotated object."""
    store, label = scenes.store, int(scenes.store.labels[row])
    mask = mask_of_annotation(store, row, size_hw)
    name = store.categories[label - 1].name
    return Shown(xyxy(store.boxes_xywh[row].tolist()), mask, name, colour, scenes.frequency(label))


def shown_detection(scenes: Scenes, row: int, colour: Colour, mark: str = "") -> Shown:
    """One detection; its box alone where inference left out its mask, which scoring does not need."""
    label = int(scenes.labels[row])
    text = f"{mark}{scenes.store.categories[label - 1].name} {scenes.found.scores[row]:.2f}"
    found = scenes.found
    mask = coco_mask.decode(found.rle(row)) if found.has_mask[row] else np.zeros(found.mask_sizes[row], np.uint8)
    return Shown(xyxy(found.boxes_xywh[row].tolist()), mask, text, colour, scenes.frequency(label))


def missed(scenes: Scenes) -> Bool[np.ndarray, " A"]:
    """Whether no detection of an object's category matches it, at any score; in the order of the store."""
    store, found = scenes.store, scenes.found
    misses = np.ones(len(store.annotation_ids), bool)
    for image in tqdm(range(store.num_images), desc="looking for misses", unit="image", disable=None):
        rows, detections = store.annotations_of(image), scenes.detections_of(image)
        if rows.start == rows.stop or not len(detections):
            continue
        overlaps = box_overlaps(found.boxes_xywh[detections], store.boxes_xywh[rows])
        same = scenes.labels[detections][:, None] == store.labels[rows]
        misses[rows] = ~((overlaps >= FOUND_IOU) & same).any(axis=0)
    return misses


def box_overlaps(ours_xywh: np.ndarray, theirs_xywh: np.ndarray) -> Float64[np.ndarray, "a b"]:
    """IoU of every two boxes."""
    first, second = (np.asarray(boxes, np.float64) for boxes in (ours_xywh, theirs_xywh))
    overlaps: np.ndarray = coco_mask.iou(first, second, np.zeros(len(second), np.uint8))
    return overlaps


def misses_sheet(scenes: Scenes, misses: Bool[np.ndarray, " A"], group: str) -> Image.Image:
    """The largest missed objects of a frequency group, few of each category, with what was detected in their place."""
    store = scenes.store
    of_group = np.array([False, *(category.frequency == group for category in store.categories)])[store.labels]
    rows = np.flatnonzero(misses & of_group)
    name, number = GROUPS[group][0], int(of_group.sum())
    if not len(rows):
        none = f"none of {number} objects of {name} categories was missed"
        return sheet_of([none if number else f"no objects of {name} categories"], [])
    tiles = [miss_tile(scenes, row) for row in worst(store, rows)]
    shown = f"the {len(tiles)} largest are shown, {MISSES_OF_CATEGORY} of each category first"
    title = [
        f"{len(rows)} of {number} objects of {name} categories were missed",
        f"no detection of the right category with IoU >= {FOUND_IOU:g} at any score"
        f"; {shown if len(tiles) < len(rows) else 'all are shown'}",
        f"detected as: what overlaps it most, with IoU >= {FOUND_IOU:g}, of detections of any category with score >= "
        f"{NAMED_SCORE:g}",
        f"closest detection: the highest IoU of these where all are below {FOUND_IOU:g}, too little to count as found",
    ]
    rows_of_tiles = [tiles[at : at + MISSES_IN_ROW] for at in range(0, len(tiles), MISSES_IN_ROW)]
    return sheet_of(title, [captioned(*zip(*of_row, strict=True)) for of_row in rows_of_tiles])


def worst(store: AnnotationStore, rows: Int64[np.ndarray, " k"]) -> list[int]:
    """The largest of these objects, ``MISSES_OF_CATEGORY`` of each category before more of any."""
    by_size: list[int] = rows[np.argsort(-store.areas[rows], kind="stable")].tolist()
    seen: Counter[int] = Counter()
    first: list[int] = []
    for row in by_size:
        seen[int(store.labels[row])] += 1
        first += [row] if seen[int(store.labels[row])] <= MISSES_OF_CATEGORY else []
    return list(dict.fromkeys([*first, *by_size]))[:MISSES_SHOWN]


def miss_tile(scenes: Scenes, row: int) -> tuple[Image.Image, list[str]]:
    """A missed object with its surroundings; its caption says what the detection that overlaps it most is of."""
    store = scenes.store
    image = int(np.searchsorted(store.annotation_offsets, row, side="right")) - 1
    size_hw = (int(store.heights[image]), int(store.widths[image]))
    one = shown_annotation(scenes, row, size_hw, COLOURS[5])
    left, top, right, bottom = surroundings(one.box_xyxy, size_hw)
    picture = outlined(pixels_rgb(scenes, image)[top:bottom, left:right], one.mask[top:bottom, left:right], one.colour)
    width, height = store.boxes_xywh[row, 2:]
    lines = [one.label, f"image {store.image_ids[image]}, {width:.0f} x {height:.0f} px"]
    return picture, [*lines, detected_as(scenes, image, row)]


def outlined(pixels: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], colour: Colour) -> Image.Image:
    """A square tile of one object without a label, which its caption gives."""
    side = max(pixels.shape[:2])
    shown = pixels.copy()
    outlines, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    factor = TILE_PX / side
    size_wh = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    shown = cv2.resize(shown, size_wh, interpolation=cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA)
    larger = [np.round((outline + 0.5) * factor).astype(np.int32) for outline in outlines]
    for line, thickness in ((BLACK, 4), (colour, 2)):
        cv2.polylines(shown, larger, isClosed=True, color=line, thickness=thickness)
    tile = Image.new("RGB", (TILE_PX, TILE_PX), (235, 235, 235))
    tile.paste(Image.fromarray(shown), ((TILE_PX - size_wh[0]) // 2, (TILE_PX - size_wh[1]) // 2))
    return tile


def surroundings(box_xyxy: Sequence[float], size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box with half its longer side around it, at least 24 px, inside the image.

    At least one pixel; a box may lie outside its image.
    """
    left, top, right, bottom = box_xyxy
    around = max(LEAST_AROUND_PX, max(right - left, bottom - top) / 2)
    (height, width), ends = size_hw, (right + around + 1, bottom + around + 1)
    first = [int(np.clip(value - around, 0, edge - 1)) for value, edge in ((left, width), (top, height))]
    last = [int(np.clip(value, 1, edge)) for value, edge in zip(ends, (width, height), strict=True)]
    return first[0], first[1], last[0], last[1]


def detected_as(scenes: Scenes, image: int, row: int) -> str:
    """Category and score of the detection that overlaps an object most, of those with NAMED_SCORE or more."""
    detections = scenes.detections_of(image)
    detections = detections[(scenes.labels[detections] > 0) & (scenes.found.scores[detections] >= NAMED_SCORE)]
    if not len(detections):
        return f"no detection with score >= {NAMED_SCORE:g}"
    overlaps = box_overlaps(scenes.found.boxes_xywh[detections], scenes.store.boxes_xywh[row : row + 1])[:, 0]
    at = int(np.argmax(overlaps))
    if overlaps[at] < FOUND_IOU:
        # Rounded down, so that an IoU just below the limit is not shown as the limit.
        return f"closest detection: IoU {np.floor(100 * overlaps[at]) / 100:.2f}"
    best = detections[at]
    name = scenes.store.categories[int(scenes.labels[best]) - 1].name
    return f"detected as {name} {scenes.found.scores[best]:.2f}"


def judged(scenes: Scenes, image: int, detections: Sequence[int]) -> tuple[dict[int, int], set[int]]:
    """Which object each detection finds, best first as in scoring, and the detections that scoring does not judge.

    A detection finds an object of its category that no better one has found, that with the highest IoU of boxes, at
    least ``FOUND_IOU``. Not judged are those that find none where their category is neither annotated nor known to be
    absent, or not annotated exhaustively.

    Returns:
        Row in the store by row of the detection; rows of detections.
    """
    store, found = scenes.store, scenes.found
    place = store.annotations_of(image)
    objects = range(place.start, place.stop)
    overlaps = box_overlaps(found.boxes_xywh[detections], store.boxes_xywh[place]) if objects and detections else None
    verified = {*store.labels[place].tolist(), *store.negatives_of(image).tolist()}
    verified -= {*store.not_exhaustive_of(image).tolist()}
    finds: dict[int, int] = {}
    for at, row in enumerate(detections):
        free = [one for one in objects if store.labels[one] == scenes.labels[row] and one not in finds.values()]
        if overlaps is not None and free:
            iou, best = max((overlaps[at, one - place.start], one) for one in free)
            if iou >= FOUND_IOU:
                finds[row] = best
    return finds, {row for row in detections if row not in finds and int(scenes.labels[row]) not in verified}


def colours_of_objects(store: AnnotationStore, image: int) -> dict[int, Colour]:
    """A colour for each object of an image; those of one category differ, up to as many as there are colours."""
    place = store.annotations_of(image)
    rows = sorted(range(place.start, place.stop), key=lambda row: int(store.labels[row]))
    return {row: OBJECT_COLOURS[number % len(OBJECT_COLOURS)] for number, row in enumerate(rows)}


def annotated_objects(scenes: Scenes, image: int, colours: dict[int, Colour]) -> list[Shown]:
    """The ground truth of an image, large objects first, so that small ones are drawn over them."""
    store = scenes.store
    rows, size_hw = store.annotations_of(image), (int(store.heights[image]), int(store.widths[image]))
    by_size = rows.start + np.argsort(-store.areas[rows], kind="stable")
    return [shown_annotation(scenes, int(row), size_hw, colours[int(row)]) for row in by_size]


def pair(scenes: Scenes, image: int, least_score: float) -> list[Image.Image]:
    """An image with its ground truth and with its detections; a detection has the colour of the object it finds."""
    store, found = scenes.store, scenes.found
    rows = [int(row) for row in scenes.detections_of(image) if scenes.labels[row]]
    confident = [row for row in rows if found.scores[row] >= least_score]
    best, colours = confident[:MOST_DETECTIONS], colours_of_objects(store, image)
    finds, unjudged = judged(scenes, image, confident)

    def shown(row: int) -> Shown:
        if row in finds:
            return shown_detection(scenes, row, colours[finds[row]], RIGHT)
        return shown_detection(scenes, row, *((NOT_JUDGED, "? ") if row in unjudged else (WHITE, WRONG)))

    pixels = pixels_rgb(scenes, image)
    left = draw_objects(pixels, annotated_objects(scenes, image, colours))
    right = draw_objects(pixels, [shown(row) for row in best])
    wrong = len(confident) - len(finds) - len(unjudged)
    counts = f": {len(finds)} right, {wrong} wrong, {len(unjudged)} not judged" if confident else ""
    drawn = f"; the best {len(best)} are drawn" if len(best) < len(confident) else ""
    captions = [
        [f"image {store.image_ids[image]}: {len(colours)} objects", annotated_line(store, image)],
        [f"{len(confident)} detections with score >= {least_score:g}{counts}{drawn}", best_line(scenes, rows)],
    ]
    return captioned([left, right], captions)


def annotated_line(store: AnnotationStore, image: int) -> str:
    """The categories of which not every object in an image is annotated."""
    names = [store.categories[label - 1].name for label in store.not_exhaustive_of(image).tolist()]
    return f"not all annotated: {', '.join(names)}" if names else ""


def best_line(scenes: Scenes, rows: Sequence[int]) -> str:
    """How many detections there are at any score, the highest score, and how many have no mask."""
    if not rows:
        return "no detections at any score"
    bare = int((~scenes.found.has_mask[rows]).sum())
    masks = f"; {bare} have no mask, since scoring does not need it" if bare else ""
    return f"{len(rows)} at any score, the highest {scenes.found.scores[rows[0]]:.2f}{masks}"


def images_with_rare_objects(store: AnnotationStore, number: int) -> list[int]:
    """The images with most objects of rare categories; among equals, those with most objects."""
    order = np.lexsort((np.arange(store.num_images), -np.diff(store.annotation_offsets), -rare_objects(store)))
    return [int(image) for image in order[:number]]


def rare_objects(store: AnnotationStore) -> Int64[np.ndarray, " n"]:
    """Number of objects of rare categories in each image."""
    rare = np.array([False, *(category.frequency == "r" for category in store.categories)])
    image_of = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))
    return np.bincount(image_of[rare[store.labels]], minlength=store.num_images)


def how_chosen(store: AnnotationStore, images: Sequence[int]) -> str:
    """What :func:`images_with_rare_objects` have most of."""
    with_rare = int((rare_objects(store)[list(images)] > 0).sum())
    if not with_rare:
        return f"{of_images(len(images))} with most objects (none is of a rare category)"
    others = len(images) - with_rare
    return f"{of_images(with_rare)} with most rare objects" + (f", and {others} with most objects" if others else "")


def of_images(number: int) -> str:
    """So many images."""
    return f"{number} image{'s' * (number != 1)}"


def random_images(store: AnnotationStore, number: int, seed: int, without: Sequence[int]) -> list[int]:
    """Images other than ``without``, in the order of the store; a pure function of the arguments."""
    others = np.setdiff1d(np.arange(store.num_images), without)
    drawn = np.random.default_rng(seed).choice(others, min(number, len(others)), replace=False)
    return sorted(drawn.tolist())


def positions_of(store: AnnotationStore, image_ids: Sequence[int]) -> list[int]:
    """Positions of images in the store.

    Raises:
        InputError: an id is not in the store.
    """
    place = {image: at for at, image in enumerate(store.image_ids.tolist())}
    for image in image_ids:
        if image not in place:
            raise InputError(f"--show {image}", f"no image of {store.source_name}", allowed="ids of its images")
    return [place[image] for image in image_ids]


def write_pictures(scenes: Scenes, out: Path, shown: Sequence[int], number: int, seed: int, least_score: float) -> None:
    """Write all sheets, those of PICTURES, into ``out``.

    Args:
        scenes: the split and what was detected.
        out: folder.
        shown: positions of the chosen images; empty for those with most rare objects.
        number: images per sheet.
        seed: of the random images.
        least_score: detections below it are not drawn.

    Raises:
        InputError: an image cannot be read.
    """
    chosen = list(shown) or images_with_rare_objects(scenes.store, number)
    drawn = random_images(scenes.store, number, seed, chosen)
    how = f"{of_images(len(chosen))} chosen by id" if shown else how_chosen(scenes.store, chosen)
    no_more = " (there are no others)" if len(drawn) < number else ""
    at_random = f"{of_images(len(drawn))} drawn at random, seed {seed}{no_more}"
    sheets = {"chosen": (how, chosen), "random": (at_random, drawn)}
    for name, (which, images) in sheets.items():
        title = [
            f"Ground truth (left) and detections (right), {which}",
            f"{scenes.store.source_name}; {RARE_MARK} rare category; a detection has the colour of the object it finds",
            f"{RIGHT}right category, box IoU >= {FOUND_IOU:g}; {WRONG}wrong (white); ? not judged: its category is not"
            " verified here (grey)",
        ]
        write_picture(out / f"{name}.png", sheet_of(title, [pair(scenes, image, least_score) for image in images]))
    misses = missed(scenes)
    for group, (name, _, _) in GROUPS.items():
        write_picture(out / f"missed_{name}.png", misses_sheet(scenes, misses, group))
