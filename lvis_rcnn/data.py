"""Images and targets: the published pixel chain through mmcv, batches, and the sample stream.

Which images a step sees, and how each is flipped and scaled, are pure functions of (seed, step): nothing has to be
saved to resume, and any number of loader workers gives the same batches.

Pixels follow MMDetection 3.3.0: decode to BGR bytes, rescale bytes bilinearly, flip, normalise to RGB, pad with
zeros to a multiple of 32, then to the largest image of the batch.
"""

import importlib
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from pycocotools import mask as rle
from torch.utils.data import DataLoader, Dataset

from lvis_rcnn.annotations import AnnotationStore, open_store
from lvis_rcnn.command import InputError


def import_mmcv() -> Any:
    """Import mmcv, though another process may be writing a cache that it reads.

    It draws in yapf, which writes a grammar into the user's cache folder, in place, at its first import after an
    installation: jobs that start side by side, or after a kill, meet half a file. They make their own.
    """
    try:
        return importlib.import_module("mmcv")
    except (EOFError, pickle.UnpicklingError):
        before = dict(os.environ)
        try:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = folder
                return importlib.import_module("mmcv")
        finally:
            os.environ.clear()
            os.environ.update(before)


mmcv = import_mmcv()

MEAN_RGB = np.array([123.675, 116.28, 103.53])
STD_RGB = np.array([58.395, 57.12, 57.375])
PAD_MULTIPLE_PX = 32  # the stride of the coarsest level that the FPN upsamples from


@dataclass(frozen=True)
class Target:
    """Ground truth of one image, in the frame of the network's input."""

    boxes_xyxy: Float[torch.Tensor, "a 4"]
    labels: Int64[torch.Tensor, " a"]
    masks: UInt8[torch.Tensor, "a h w"]


@dataclass(frozen=True)
class Batch:
    """Images of one step, padded to one size.

    ``sizes_hw`` are the sizes before padding; ``targets`` is empty at test time.
    """

    pixels: Float[torch.Tensor, "n 3 h w"]
    sizes_hw: list[tuple[int, int]]
    image_ids: list[int]
    targets: list[Target]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image."""

    short_edges_px: tuple[int, ...]
    long_edge_px: int
    flip_probability: float


def epoch_images(copies: Int64[np.ndarray, " n"], seed: int, epoch: int) -> Int64[np.ndarray, " e"]:
    """Positions of the images of one epoch: each image ``copies`` times, shuffled by (seed, epoch)."""
    repeated = np.repeat(np.arange(len(copies)), copies)
    return np.random.default_rng([seed, epoch]).permutation(repeated)


def images_of_step(copies: Int64[np.ndarray, " n"], seed: int, step: int, images_per_step: int) -> list[int]:
    """Positions of the images of one optimizer step, a window of the endless stream of epochs."""
    epoch_length = int(copies.sum())
    first = step * images_per_step
    stream = range(first, first + images_per_step)
    epochs = {position // epoch_length for position in stream}
    shuffled = {epoch: epoch_images(copies, seed, epoch) for epoch in epochs}
    return [int(shuffled[position // epoch_length][position % epoch_length]) for position in stream]


def read_image_bgr(path: Path, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image as OpenCV does (EXIF orientation applied).

    Raises:
        InputError: the file is missing, truncated, or not of the annotated size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", mend="restore the file") from None
    # OpenCV asserts on an empty buffer.
    image: np.ndarray | None = mmcv.imfrombytes(content, flag="color") if content else None
    if image is None:
        raise InputError(str(path), "is no complete image", mend="copy the file again")
    if image.shape[:2] != (height, width):
        raise InputError(
            str(path),
            f"is {image.shape[1]} x {image.shape[0]} pixels",
            allowed=f"{width} x {height}, as annotated",
            mend="use the images that belong to the annotations",
        )
    return image


def rescaled_size_hw(height: int, width: int, short_edge_px: int, long_edge_px: int) -> tuple[int, int]:
    """Size after rescaling to a short edge without exceeding the long edge, rounded as MMDetection does."""
    factor = min(long_edge_px / max(height, width), short_edge_px / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def network_pixels(image_bgr: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int], flip: bool) -> torch.Tensor:
    """Rescale, flip, normalise and pad one image; float32 ``3 h w``."""
    image = mmcv.imresize(image_bgr, (size_hw[1], size_hw[0]), interpolation="bilinear")
    if flip:
        image = mmcv.imflip(image)
    image = mmcv.imnormalize(image.astype(np.float32), MEAN_RGB, STD_RGB, to_rgb=True)
    image = mmcv.impad_to_multiple(image, PAD_MULTIPLE_PX)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def usable_annotations(store: AnnotationStore, image: int) -> Int64[np.ndarray, " a"]:
    """Annotations of an image that are trained on: area above 0, box at least 1 px a side and touching the image.

    MMDetection 3.3.0, ``mmdet/datasets/lvis.py`` (``parse_data_info``).
    """
    rows = np.arange(*store.annotations_of(image).indices(len(store.annotation_ids)))
    x, y, width, height = store.boxes_xywh[rows].T
    overlap_w = np.minimum(x + width, store.widths[image]) - np.maximum(x, 0)
    overlap_h = np.minimum(y + height, store.heights[image]) - np.maximum(y, 0)
    inside = (overlap_w > 0) & (overlap_h > 0)
    kept: np.ndarray = rows[inside & (store.areas[rows] > 0) & (width >= 1) & (height >= 1)]
    return kept


def target_boxes_xyxy(
    boxes_xywh: Float[np.ndarray, "a 4"], original_hw: tuple[int, int], size_hw: tuple[int, int], flip: bool
) -> Float[np.ndarray, "a 4"]:
    """Boxes in the rescaled, flipped image, clipped to it; float32 as in the published chain."""
    scale = np.array([size_hw[1] / original_hw[1], size_hw[0] / original_hw[0]] * 2, dtype=np.float32)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1).astype(np.float32)
    boxes *= scale
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, size_hw[1])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, size_hw[0])
    if flip:
        boxes[:, [0, 2]] = size_hw[1] - boxes[:, [2, 0]]
    return boxes


def target_mask(
    polygons: list[np.ndarray], original_hw: tuple[int, int], size_hw: tuple[int, int], flip: bool
) -> UInt8[np.ndarray, "h w"]:
    """Bitmap of one object at original size, then rescaled by nearest neighbour and flipped."""
    encoded = rle.frPyObjects([polygon.tolist() for polygon in polygons], *original_hw)
    mask: np.ndarray = mmcv.imresize(rle.decode(rle.merge(encoded)), (size_hw[1], size_hw[0]), interpolation="nearest")
    return np.ascontiguousarray(mask[:, ::-1]) if flip else mask


def read_target(
    store: AnnotationStore, image: int, size_hw: tuple[int, int], padded_hw: tuple[int, int], flip: bool
) -> Target:
    """Ground truth of one image; masks lie on the padded canvas. An image may end with no object."""
    original_hw = (int(store.heights[image]), int(store.widths[image]))
    rows = usable_annotations(store, image)
    boxes = target_boxes_xyxy(store.boxes_xywh[rows], original_hw, size_hw, flip)
    masks = np.zeros((len(rows), *padded_hw), dtype=np.uint8)
    for mask, row in zip(masks, rows, strict=True):
        mask[: size_hw[0], : size_hw[1]] = target_mask(store.polygons_of(int(row)), original_hw, size_hw, flip)
    labels = store.labels[rows].astype(np.int64)
    kept = proper(boxes)
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(labels[kept]), torch.from_numpy(masks[kept]))


def proper(boxes_xyxy: Float[np.ndarray, "a 4"]) -> Bool[np.ndarray, " a"]:
    """Boxes that still have an area after clipping; a side of zero has no regression target."""
    return (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])


def stack(images: list[torch.Tensor]) -> Float[torch.Tensor, "n 3 h w"]:
    """Pad each image with zeros, right and below, to the largest height and width, and stack them."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = torch.zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


class TrainingSteps(Dataset[Batch]):
    """Item k is the whole batch of optimizer step k; workers open the store by its path."""

    def __init__(
        self,
        store_path: Path,
        images_dir: Path,
        copies: Int64[np.ndarray, " n"],
        augmentation: Augmentation,
        seed: int,
        images_per_step: int,
    ) -> None:
        self.store = open_store(store_path)
        self.images_dir = images_dir
        self.copies = copies
        self.augmentation = augmentation
        self.seed = seed
        self.images_per_step = images_per_step

    def __getitem__(self, step: int) -> Batch:
        """Read the images of ``step``; their scale and flip come from (seed, position in the stream)."""
        images = images_of_step(self.copies, self.seed, step, self.images_per_step)
        first = step * self.images_per_step
        samples = [self.read_sample(image, first + offset) for offset, image in enumerate(images)]
        pixels, sizes_hw, targets = (list(column) for column in zip(*samples, strict=True))
        return Batch(stack(pixels), sizes_hw, [int(self.store.image_ids[image]) for image in images], targets)

    def read_sample(self, image: int, position: int) -> tuple[torch.Tensor, tuple[int, int], Target]:
        """One augmented image with its size before padding and its target."""
        random = np.random.default_rng([self.seed, 1, position])
        short_edge_px = int(random.choice(self.augmentation.short_edges_px))
        flip = bool(random.random() < self.augmentation.flip_probability)
        height, width = int(self.store.heights[image]), int(self.store.widths[image])
        size_hw = rescaled_size_hw(height, width, short_edge_px, self.augmentation.long_edge_px)
        image_bgr = read_image_bgr(self.store.image_path(image, self.images_dir), height, width)
        pixels = network_pixels(image_bgr, size_hw, flip)
        target = read_target(self.store, image, size_hw, (pixels.shape[1], pixels.shape[2]), flip)
        return pixels, size_hw, target


class TestImages(Dataset[Batch]):
    """Item i is image i of the store as a batch of one, without target."""

    def __init__(self, store_path: Path, images_dir: Path, short_edge_px: int, long_edge_px: int) -> None:
        self.store = open_store(store_path)
        self.images_dir = images_dir
        self.short_edge_px = short_edge_px
        self.long_edge_px = long_edge_px

    def __getitem__(self, image: int) -> Batch:
        """Read one image at the test size."""
        height, width = int(self.store.heights[image]), int(self.store.widths[image])
        size_hw = rescaled_size_hw(height, width, self.short_edge_px, self.long_edge_px)
        image_bgr = read_image_bgr(self.store.image_path(image, self.images_dir), height, width)
        pixels = network_pixels(image_bgr, size_hw, flip=False)
        return Batch(pixels[None], [size_hw], [int(self.store.image_ids[image])], [])


@dataclass(frozen=True)
class Unreadable:
    """What a worker process sends in place of a batch that it cannot read."""

    message: str
    """Of the InputError."""


class Carried(Dataset[Batch | Unreadable]):
    """Items, or what is wrong with them: an InputError raised in a worker would arrive as a traceback."""

    def __init__(self, items: Dataset[Batch]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Batch | Unreadable:
        """Item ``index``, or why there is none."""
        try:
            return self.items[index]
        except InputError as error:
            return Unreadable(str(error))


def start_worker(worker: int) -> None:
    """Leave signals to the parent, which saves and ends its workers, and threads to the number of workers.

    A cluster and a terminal signal all processes of a job at once; a parent without workers could not finish its step.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


def read_in_order(items: Dataset[Batch], indices: Sequence[int], workers: int) -> Iterator[Batch]:
    """Batches of ``indices`` in that order, read ahead by ``workers`` processes (0: in this one).

    Raises:
        InputError: of the item whose turn it is.
    """
    loader = DataLoader(
        Carried(items), batch_size=None, sampler=list(indices), num_workers=workers, worker_init_fn=start_worker
    )
    for item in loader:
        if isinstance(item, Unreadable):
            raise InputError(*item.message.split(": ", 1))  # joined again with ": "
        yield item
