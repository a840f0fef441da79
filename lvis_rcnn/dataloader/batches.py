"""Batches of images with their targets, for training and testing, read ahead by worker processes.

Which images a step sees, and how each is flipped and scaled, are pure functions of (seed, step): nothing has to be
saved to resume, and any number of workers gives the same batches.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lvis_rcnn.config.schema import Augmentation
from lvis_rcnn.dataloader.masks import MaskCrops, mask_crops
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataloader.seeds import image_seed
from lvis_rcnn.dataloader.transforms import normalised, padded_size_hw, rescaled_size_hw, write_rescaled
from lvis_rcnn.dataset.images import ImageFiles, read_image_bgr
from lvis_rcnn.dataset.store import AnnotationStore, open_store
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.machine import SHARED_MEMORY, free_shared_memory

Item = TypeVar("Item")

# A study may skip a few broken images; so many in a row mean that all are broken.
BROKEN_IN_A_ROW = 20
# Of each worker.
ITEMS_AHEAD = 2


@dataclass(frozen=True)
class Target:
    """Ground truth of one image, in the frame of the network's input."""

    boxes_xyxy: Float[torch.Tensor, "a 4"]
    labels: Int64[torch.Tensor, " a"]
    masks: MaskCrops

    def mapped(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Target":
        """The same with every tensor moved elsewhere."""
        return Target(move(self.boxes_xyxy), move(self.labels), self.masks.mapped(move))


@dataclass(frozen=True)
class Batch:
    """Images that pass through the network together, padded to one size: a normalisation group, or test images.

    ``sizes_hw`` are the sizes before padding, ``original_sizes_hw`` those before rescaling. ``targets`` is empty at
    test time.
    """

    pixels: UInt8[torch.Tensor, "n 3 h w"] | Float32[torch.Tensor, "n 3 h w"]
    """R, G and B: bytes, 0 in the padding, until :meth:`to` makes the network's input of them."""
    sizes_hw: list[tuple[int, int]]
    original_sizes_hw: list[tuple[int, int]]
    image_ids: list[int]
    targets: list[Target]
    broken: tuple[str, ...] = ()
    """Errors of the images that were replaced by others."""

    def to(self, device: torch.device) -> "Batch":
        """What was read, on ``device`` and normalised; from pinned memory the copy is asynchronous."""
        moved = self.mapped(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, pixels=normalised(moved.pixels, self.sizes_hw))

    def pin_memory(self) -> "Batch":
        """The same in pinned memory; the DataLoader calls this."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def mapped(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same with every tensor moved elsewhere."""
        return replace(self, pixels=move(self.pixels), targets=[target.mapped(move) for target in self.targets])


@dataclass(frozen=True)
class Sample:
    """A decoded image and its augmentation."""

    image: int
    image_bgr: UInt8[np.ndarray, "h w 3"]
    size_hw: tuple[int, int]
    """After rescaling."""
    flip: bool


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
    """Ground truth of one image, which may have no object."""
    original_hw = original_size_hw(store, image)
    annotations = store.annotations_of(image)
    rows = annotations.start + np.flatnonzero(store.is_trained[annotations])
    boxes = target_boxes_xyxy(store.boxes_xywh[rows], original_hw, size_hw, flip)
    kept = has_area(boxes)
    masks = mask_crops([store.outline_of(int(row)) for row in rows[kept]], original_hw, size_hw, flip)
    labels = store.labels[rows[kept]].astype(np.int64)
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(labels), masks)


def original_size_hw(store: AnnotationStore, image: int) -> tuple[int, int]:
    """Annotated size of an image."""
    return int(store.heights[image]), int(store.widths[image])


def has_area(boxes_xyxy: Float[np.ndarray, "a 4"]) -> Bool[np.ndarray, " a"]:
    """Boxes with both sides above 0; others have no regression target."""
    return (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])


def batch_pixels(samples: Sequence[Sample], channels_last: bool) -> UInt8[torch.Tensor, "n 3 h w"]:
    """Bytes of images, each padded right and below with 0 to the largest height and width."""
    height, width = (max(edges) for edges in zip(*(padded_size_hw(sample.size_hw) for sample in samples), strict=True))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch = zero_bytes((len(samples), 3, height, width), layout)
    for row, sample in zip(batch, samples, strict=True):
        write_rescaled(sample.image_bgr, sample.size_hw, sample.flip, row)
    return batch


def zero_bytes(shape: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
    """A tensor of bytes; in a worker it is in shared memory, so that the parent gets it without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8, memory_format=layout).zero_()
    plan = torch.empty(shape, dtype=torch.uint8, memory_format=layout, device="meta")
    storage = torch.UntypedStorage._new_shared(plan.nbytes)  # new pages, which are 0
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, plan.shape, plan.stride())


class TrainingSteps(Dataset[list[Batch]]):
    """Item k is optimizer step k: its normalisation groups, or those of ``numbers``, each a batch."""

    def __init__(
        self,
        store_path: Path,
        images_dir: Path,
        stream: SampleStream,
        augmentation: Augmentation,
        numbers: Sequence[int] | None = None,
        channels_last: bool = False,
    ) -> None:
        self.store = open_store(store_path)
        _ = self.store.is_trained  # found here, so that forked workers share it
        self.files = ImageFiles(images_dir)
        self.stream = stream
        self.numbers = range(stream.groups_per_step) if numbers is None else numbers
        self.augmentation = augmentation
        self.channels_last = channels_last

    def __getitem__(self, step: int) -> list[Batch]:
        """Read the images of ``step``."""
        groups = self.stream.groups_of_step(step)
        return [self.read_group(groups[number], step, number) for number in self.numbers]

    def read_group(self, images: list[int], step: int, number: int) -> Batch:
        """Group ``number`` of a step."""
        broken: list[str] = []
        seeds = [image_seed(self.stream.seed, step, number, place) for place in range(len(images))]
        samples = [self.read_sample(image, seed, broken) for image, seed in zip(images, seeds, strict=True)]
        return Batch(
            batch_pixels(samples, self.channels_last),
            [sample.size_hw for sample in samples],
            [original_size_hw(self.store, sample.image) for sample in samples],
            [int(self.store.image_ids[sample.image]) for sample in samples],
            [read_target(self.store, sample.image, sample.size_hw, sample.flip) for sample in samples],
            tuple(broken),
        )

    def read_sample(self, image: int, seed: np.random.SeedSequence, broken: list[str]) -> Sample:
        """One image with its augmentation; ``broken`` as in :meth:`read_readable`."""
        random = np.random.default_rng(seed)
        short_edge_px = int(random.choice(self.augmentation.short_edges_px))
        flip = bool(random.random() < self.augmentation.flip_probability)
        image, image_bgr = self.read_readable(image, random, broken)
        size_hw = rescaled_size_hw(*original_size_hw(self.store, image), short_edge_px, self.augmentation.long_edge_px)
        return Sample(image, image_bgr, size_hw, flip)

    def read_readable(
        self, image: int, random: np.random.Generator, broken: list[str]
    ) -> tuple[int, UInt8[np.ndarray, "h w 3"]]:
        """Decode an image, or the first readable one of the replacements that ``random`` draws.

        The choice depends on the random numbers and the files alone. The errors of the others are added to ``broken``.

        Raises:
            InputError: the image cannot be read and the study does not skip broken images, or too many in a row.
        """
        for _ in range(BROKEN_IN_A_ROW):
            try:
                return image, read_image(self.store, self.files, image)
            except InputError as error:
                if not self.augmentation.skip_broken_images:
                    raise
                broken.append(str(error))
            image = self.stream.substitute(image, random)
        raise InputError(
            str(self.files.root),
            f"{BROKEN_IN_A_ROW} images in a row cannot be read, the last one: {broken[-1]}",
            fix="restore the images; augmentation.skip_broken_images is for a few broken ones",
        )


def read_image(store: AnnotationStore, files: ImageFiles, image: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode the image at this position of the store; InputError as :meth:`ImageFiles.of` and `read_image_bgr`."""
    return read_image_bgr(files.of(store, image), *original_size_hw(store, image))


class TestImages(Dataset[Batch]):
    """Item (i, j, ...) is a batch of the images i, j, ... of the store, without targets."""

    def __init__(
        self, store_path: Path, images_dir: Path, short_edge_px: int, long_edge_px: int, channels_last: bool = False
    ) -> None:
        self.store = open_store(store_path)
        self.files = ImageFiles(images_dir)
        self.short_edge_px = short_edge_px
        self.long_edge_px = long_edge_px
        self.channels_last = channels_last

    def __getitem__(self, images: Sequence[int]) -> Batch:
        """Read images at their test size."""
        samples = [
            Sample(image, read_image(self.store, self.files, image), self.size_hw(image), flip=False)
            for image in images
        ]
        return Batch(
            batch_pixels(samples, self.channels_last),
            [sample.size_hw for sample in samples],
            [original_size_hw(self.store, image) for image in images],
            [int(self.store.image_ids[image]) for image in images],
            [],
        )

    def size_hw(self, image: int) -> tuple[int, int]:
        """Test size of an image, before padding."""
        return rescaled_size_hw(*original_size_hw(self.store, image), self.short_edge_px, self.long_edge_px)

    def batches(self, images: Sequence[int], most: int) -> list[list[int]]:
        """``images`` in batches of at most ``most`` images of one padded size, sorted.

        An image has the same padding in its batch as alone, so its detections are the same, to the rounding of sums.
        """
        of_size: dict[tuple[int, int], list[int]] = {}
        for image in images:
            of_size.setdefault(padded_size_hw(self.size_hw(image)), []).append(image)
        return sorted(alike[at : at + most] for alike in of_size.values() for at in range(0, len(alike), most))


@dataclass(frozen=True)
class ReadError:
    """What a worker process sends in place of an item that it cannot read."""

    message: str
    """Of its InputError."""


class WithErrors(Dataset[Item | ReadError], Generic[Item]):
    """The items, or their errors as values: an InputError raised in a worker would arrive as a traceback."""

    def __init__(self, items: Dataset[Item]) -> None:
        self.items = items

    def __getitem__(self, index: Any) -> Item | ReadError:
        """Item ``index``, or its error."""
        try:
            return self.items[index]
        except InputError as error:
            return ReadError(str(error))


def start_worker(worker: int) -> None:
    """Let a worker ignore the signals that stop a job, and use one thread.

    A cluster and a terminal signal all processes of a job at once: the parent needs its workers to finish its step, and
    then ends them.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = report_unless_parent_left
    cv2.setNumThreads(0)


def report_unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error of a worker, unless its parent ended while it received a tensor.

    The thread that sends tensors (``multiprocessing.resource_sharer``) would print a traceback after the one line of an
    interrupted step.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def require_shared_memory(images: int, short_edge_px: int, long_edge_px: int, workers: int) -> None:
    """Refuse to begin where the items that workers read ahead may not fit into shared memory.

    A worker that finds it full is ended by a bus error, perhaps hours later, which says nothing. Containers have 64 MB
    where nothing else is asked for.

    Args:
        images: of an item; all of the largest size.
        short_edge_px: their largest short edge.
        long_edge_px: their largest long edge.
        workers: number of processes on this machine.

    Raises:
        InputError: says how many workers would do.
    """
    height, width = padded_size_hw((short_edge_px, long_edge_px))
    worker_mb = ITEMS_AHEAD * images * 3 * height * width / 1e6  # masks, some 10 % more, left out
    free = free_shared_memory()
    if free is None or workers * worker_mb <= (free_mb := free / 1e6):
        return
    raise InputError(
        str(SHARED_MEMORY),
        f"has {free_mb:,.0f} MB of shared memory free, and {workers} loader workers fill up to "
        f"{workers * worker_mb:,.0f} with images that they read ahead",
        allowed=f"{worker_mb:,.0f} MB for each worker",
        fix=f"set resources.loader_workers to {int(free_mb / worker_mb)}, or give the container more (--shm-size)",
    )


def read_in_order(items: Dataset[Item], indices: Sequence[Any], workers: int, pinned: bool = False) -> Iterator[Item]:
    """Items of ``indices`` in that order, read ahead by ``workers`` processes (0: in this one).

    Args:
        items: the dataset.
        indices: what is read.
        workers: number of processes.
        pinned: return items in pinned memory, which needs a GPU.

    Raises:
        InputError: the next item cannot be read.
    """
    loader = DataLoader(
        WithErrors(items),
        batch_size=None,
        sampler=list(indices),
        num_workers=workers,
        prefetch_factor=ITEMS_AHEAD if workers else None,
        worker_init_fn=start_worker,
        pin_memory=pinned,
    )
    for item in loader:
        if isinstance(item, ReadError):
            raise InputError(*item.message.split(": ", 1))  # joined again with ": "
        yield item
