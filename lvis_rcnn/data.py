"""Images and targets: what one normalisation group is trained on, one image is tested on, and the readers of both.

Which images a step sees, and how each is flipped and scaled, are pure functions of (seed, step): nothing has to be
saved to resume, and any number of loader workers gives the same batches.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch.utils.data import DataLoader, Dataset

from lvis_rcnn.annotations import AnnotationStore, open_store
from lvis_rcnn.command import InputError
from lvis_rcnn.image_files import ImageFiles
from lvis_rcnn.mask_crops import MaskCrops, mask_crops
from lvis_rcnn.pixels import network_pixels, read_image_bgr, rescaled_size_hw
from lvis_rcnn.repeat_factors import usable_annotations
from lvis_rcnn.sample_stream import SampleStream

Item = TypeVar("Item")


@dataclass(frozen=True)
class Target:
    """Ground truth of one image, in the frame of the network's input."""

    boxes_xyxy: Float[torch.Tensor, "a 4"]
    labels: Int64[torch.Tensor, " a"]
    masks: MaskCrops


@dataclass(frozen=True)
class Batch:
    """Images that pass through the network together, padded to one size: a normalisation group, or one test image.

    ``sizes_hw`` are the sizes before padding, ``original_sizes_hw`` those before rescaling. ``targets`` is empty at
    test time.
    """

    pixels: Float[torch.Tensor, "n 3 h w"]
    sizes_hw: list[tuple[int, int]]
    original_sizes_hw: list[tuple[int, int]]
    image_ids: list[int]
    targets: list[Target]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image."""

    short_edges_px: tuple[int, ...]
    long_edge_px: int
    flip_probability: float


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


def read_target(store: AnnotationStore, image: int, size_hw: tuple[int, int], flip: bool) -> Target:
    """Ground truth of one image. An image may end with no object."""
    original_hw = original_size_hw(store, image)
    rows = usable_annotations(store, store.annotations_of(image))
    boxes = target_boxes_xyxy(store.boxes_xywh[rows], original_hw, size_hw, flip)
    kept = proper(boxes)
    masks = mask_crops([store.polygons_of(int(row)) for row in rows[kept]], original_hw, size_hw, flip)
    labels = store.labels[rows[kept]].astype(np.int64)
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(labels), masks)


def original_size_hw(store: AnnotationStore, image: int) -> tuple[int, int]:
    """Annotated size of an image."""
    return int(store.heights[image]), int(store.widths[image])


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


class TrainingSteps(Dataset[list[Batch]]):
    """Item k is optimizer step k: its normalisation groups, each a batch. Workers open the store by its path."""

    def __init__(self, store_path: Path, images_dir: Path, stream: SampleStream, augmentation: Augmentation) -> None:
        self.store = open_store(store_path)
        self.files = ImageFiles(images_dir)
        self.stream = stream
        self.augmentation = augmentation

    def __getitem__(self, step: int) -> list[Batch]:
        """Read the images of ``step``; their scales and flips come from (seed, step, place in the step)."""
        groups = self.stream.groups_of_step(step)
        return [self.read_group(images, [self.stream.seed, step, number]) for number, images in enumerate(groups)]

    def read_group(self, images: list[int], key: list[int]) -> Batch:
        """One normalisation group; ``key`` is what its random numbers are made of."""
        samples = [self.read_sample(image, [*key, place]) for place, image in enumerate(images)]
        pixels, sizes_hw, targets = (list(column) for column in zip(*samples, strict=True))
        original_sizes_hw = [original_size_hw(self.store, image) for image in images]
        image_ids = [int(self.store.image_ids[image]) for image in images]
        return Batch(stack(pixels), sizes_hw, original_sizes_hw, image_ids, targets)

    def read_sample(self, image: int, key: list[int]) -> tuple[torch.Tensor, tuple[int, int], Target]:
        """One augmented image with its size before padding and its target."""
        random = np.random.default_rng(key)
        short_edge_px = int(random.choice(self.augmentation.short_edges_px))
        flip = bool(random.random() < self.augmentation.flip_probability)
        height, width = original_size_hw(self.store, image)
        size_hw = rescaled_size_hw(height, width, short_edge_px, self.augmentation.long_edge_px)
        image_bgr = read_image_bgr(self.files.of(self.store, image), height, width)
        return network_pixels(image_bgr, size_hw, flip), size_hw, read_target(self.store, image, size_hw, flip)


class TestImages(Dataset[Batch]):
    """Item i is image i of the store as a batch of one, without target."""

    def __init__(self, store_path: Path, images_dir: Path, short_edge_px: int, long_edge_px: int) -> None:
        self.store = open_store(store_path)
        self.files = ImageFiles(images_dir)
        self.short_edge_px = short_edge_px
        self.long_edge_px = long_edge_px

    def __getitem__(self, image: int) -> Batch:
        """Read one image at the test size."""
        height, width = original_size_hw(self.store, image)
        size_hw = rescaled_size_hw(height, width, self.short_edge_px, self.long_edge_px)
        image_bgr = read_image_bgr(self.files.of(self.store, image), height, width)
        pixels = network_pixels(image_bgr, size_hw, flip=False)
        return Batch(pixels[None], [size_hw], [(height, width)], [int(self.store.image_ids[image])], [])


@dataclass(frozen=True)
class Unreadable:
    """What a worker process sends in place of an item that it cannot read."""

    message: str
    """Of the InputError."""


class Carried(Dataset[Item | Unreadable], Generic[Item]):
    """Items, or what is wrong with them: an InputError raised in a worker would arrive as a traceback."""

    def __init__(self, items: Dataset[Item]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Item | Unreadable:
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
    sys.excepthook = report_unless_parent_left
    cv2.setNumThreads(0)


def report_unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error of a worker, but not that its parent ended while it was being handed a tensor.

    The thread that hands over (``multiprocessing.resource_sharer``) would print a traceback behind the one line of
    an interrupted step.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def read_in_order(items: Dataset[Item], indices: Sequence[int], workers: int) -> Iterator[Item]:
    """Items of ``indices`` in that order, read ahead by ``workers`` processes (0: in this one).

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
