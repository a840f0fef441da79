"""The objects that no detection found, as contact sheets: which are missed, and what they were taken for."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.drawing import BLACK, COLOURS, Colour, captioned, sheet_of
from lvis_rcnn.scenes import Scenes, read_rgb, shown_annotation

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}

# An object is found if a detection of its category overlaps it by this.
FOUND_IOU = 0.5

# Only a detection from this score says what an object was taken for: of up to 300 an image, most are noise.
NAMED_SCORE = 0.3

MISSES_OF_CATEGORY = 2
MISSES_IN_ROW, MISSES_SHOWN = 4, 12
TILE_PX = 240
LEAST_AROUND_PX = 24


def missed(scenes: Scenes) -> Bool[np.ndarray, " A"]:
    """Whether an object was found by no detection of its category, whatever the score; in the order of the store."""
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
    """The largest missed objects of a frequency group, few of each category, with what was found in their place."""
    store = scenes.store
    of_group = np.array([False, *(category.frequency == group for category in store.categories)])[store.labels]
    rows = np.flatnonzero(misses & of_group)
    name, number = GROUPS[group], int(of_group.sum())
    title = [f"{len(rows)} of {number} objects of {name} categories were missed"]
    if not len(rows):
        title[0] = f"no objects of {name} categories" if not number else f"none of {number} {name} objects was missed"
        return sheet_of(title, [])
    title.append(
        f"no detection of their category, however unsure, overlaps them by IoU {FOUND_IOU:g}; the largest are shown"
    )
    title.append(
        f"taken for: the detection with a score of {NAMED_SCORE:g} or more that overlaps them most, "
        f"by IoU {FOUND_IOU:g} at least"
    )
    tiles = [miss_tile(scenes, row) for row in worst(store, rows)]
    return sheet_of(title, [tiles[at : at + MISSES_IN_ROW] for at in range(0, len(tiles), MISSES_IN_ROW)])


def worst(store: AnnotationStore, rows: Int64[np.ndarray, " k"]) -> list[int]:
    """The largest of these objects, at most ``MISSES_OF_CATEGORY`` of one category."""
    kept: list[int] = []
    for row in rows[np.argsort(-store.areas[rows], kind="stable")].tolist():
        if sum(store.labels[other] == store.labels[row] for other in kept) < MISSES_OF_CATEGORY:
            kept.append(row)
    return kept[:MISSES_SHOWN]


def miss_tile(scenes: Scenes, row: int) -> Image.Image:
    """A missed object with its surroundings, and what the best overlapping detection took it for."""
    store = scenes.store
    image = int(np.searchsorted(store.annotation_offsets, row, side="right")) - 1
    size_hw = (int(store.heights[image]), int(store.widths[image]))
    one = shown_annotation(scenes, row, size_hw, COLOURS[5])
    left, top, right, bottom = surroundings(one.box_xyxy, size_hw)
    picture = outlined(read_rgb(scenes, image)[top:bottom, left:right], one.mask[top:bottom, left:right], one.colour)
    width, height = store.boxes_xywh[row, 2:]
    lines = [
        f"{one.label}, {width:.0f} x {height:.0f} px",
        f"image {store.image_ids[image]}",
    ]
    return captioned(picture, [*lines, taken_for(scenes, image, row)])


def outlined(pixels: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], colour: Colour) -> Image.Image:
    """A square of one object, without a label, which its caption is."""
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
    """Left, top, right and bottom of a box with half its longer side around it, at least 24 px, inside the image."""
    left, top, right, bottom = box_xyxy
    around = max(LEAST_AROUND_PX, max(right - left, bottom - top) / 2)
    x = [int(np.clip(value, 0, size_hw[1])) for value in (left - around, right + around + 1)]
    y = [int(np.clip(value, 0, size_hw[0])) for value in (top - around, bottom + around + 1)]
    return x[0], y[0], x[1], y[1]


def taken_for(scenes: Scenes, image: int, row: int) -> str:
    """What the detection that overlaps an object most says it is, of those that are sure enough to be named."""
    detections = scenes.detections_of(image)
    detections = detections[(scenes.labels[detections] > 0) & (scenes.found.scores[detections] >= NAMED_SCORE)]
    if not len(detections):
        return "nothing sure in the image"
    overlaps = box_overlaps(scenes.found.boxes_xywh[detections], scenes.store.boxes_xywh[row : row + 1])[:, 0]
    at = int(np.argmax(overlaps))
    if overlaps[at] < FOUND_IOU:
        # Rounded down: what is below a half must not read as one.
        return f"nothing there (best IoU {np.floor(100 * overlaps[at]) / 100:.2f})"
    best = detections[at]
    name = scenes.store.categories[int(scenes.labels[best]) - 1].name
    return f"taken for {name} {scenes.found.scores[best]:.2f}"
