"""A split, its photographs and what was found in them: what pictures are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from pycocotools import mask as coco_mask

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.command import InputError
from lvis_rcnn.detections import Detections, read_shards
from lvis_rcnn.drawing import Colour, Shown
from lvis_rcnn.image_files import ImageFiles
from lvis_rcnn.run_lengths import pixels_of_runs


@dataclass(frozen=True, eq=False)
class Scenes:
    """A split with its images and what was found in them."""

    store: AnnotationStore
    files: ImageFiles
    found: Detections
    labels: Int64[np.ndarray, " d"]
    """Of each detection; 0 where the store does not know its category."""
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
    """Open what pictures are made of.

    Raises:
        InputError: shards or zips of images are damaged or missing.
    """
    found = read_shards(detections)
    label_of = {category.id: label for label, category in enumerate(store.categories, start=1)}
    labels = np.array([label_of.get(category, 0) for category in found.category_ids.tolist()], np.int64)
    place = {image: at for at, image in enumerate(store.image_ids.tolist())}
    images = np.array([place.get(image, -1) for image in found.image_ids.tolist()], np.int64)
    order = np.lexsort((-found.scores, images))
    starts = np.searchsorted(images[order], np.arange(store.num_images + 1))
    return Scenes(store, ImageFiles(images_dir), found, labels, starts, order)


def read_rgb(scenes: Scenes, image: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image.

    Raises:
        InputError: it is missing, no image, or not of the annotated size.
    """
    file, store = scenes.files.of(scenes.store, image), scenes.store
    content = np.frombuffer(file.read(), np.uint8)
    decoded: np.ndarray | None = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    expected = (int(store.heights[image]), int(store.widths[image]))
    if decoded is None or decoded.shape[:2] != expected:
        found = "is no image" if decoded is None else f"is {decoded.shape[1]} x {decoded.shape[0]} pixels"
        mend = "use the images that belong to the annotations"
        raise InputError(str(file), found, allowed=f"an image of {expected[1]} x {expected[0]}", mend=mend)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


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


def shown_detection(scenes: Scenes, row: int, colour: Colour) -> Shown:
    """One detection; where inference left out its mask, which no score reads, its box alone."""
    label = int(scenes.labels[row])
    text = f"{scenes.store.categories[label - 1].name} {scenes.found.scores[row]:.2f}"
    found, without = scenes.found, np.zeros(scenes.found.mask_sizes[row], np.uint8)
    mask = coco_mask.decode(found.rle(row)) if found.has_mask[row] else without
    return Shown(xyxy(scenes.found.boxes_xywh[row].tolist()), mask, text, colour, scenes.frequency(label))
