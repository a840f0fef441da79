"""Detections of a dataset as shards; a new start writes those that are missing."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvis_rcnn.dataloader.batches import Batch, read_in_order
from lvis_rcnn.dataset.detections import Detections, concatenate, read_shard, shard_path, shards_of, write_shard
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.inference.detector import Detector
from lvis_rcnn.system.cli import log
from lvis_rcnn.system.files import atomic_folder, link, write_json

IMAGES_PER_SHARD = 64  # about 7 s at 10 images/s: little is lost by a kill


@dataclass(frozen=True)
class Clock:
    """How long the images of a shard took."""

    whole_s: float
    images: int


def infer_shards(
    detector: Detector, shards_dir: Path, batch_size: int, workers: int, title: str, numbers: Sequence[int]
) -> None:
    """Write those of the shards ``numbers`` that are missing, each with a file that says how long it took."""
    store = detector.images.store
    missing = [number for number in numbers if not shard_path(shards_dir, number).exists()]
    if len(missing) < len(numbers):
        log.info("going on: %d of %d shards exist", len(numbers) - len(missing), len(numbers))
    of_shards = [detector.images.batches(images_of_shard(number, store), batch_size) for number in missing]
    # One reader for all shards, so that it also reads ahead from one shard to the next.
    indices = [batch for batches in of_shards for batch in batches]
    batches = read_in_order(detector.images, indices, workers, pinned=detector.device.type == "cuda")
    total = sum(len(images_of_shard(number, store)) for number in numbers)
    with tqdm(total=total, desc=f"infer {title}", unit="image", disable=None) as bar:
        bar.update(total - sum(map(len, indices)))
        for number, positions in zip(missing, of_shards, strict=True):
            detections, clock = infer_images(detector, positions, batches, bar)
            write_json(shards_dir / f"shard-{number:05d}.clock.json", vars(clock))
            write_shard(shard_path(shards_dir, number), detections)


def number_of_shards(store: AnnotationStore) -> int:
    """How many shards hold all images of the store."""
    return math.ceil(store.num_images / IMAGES_PER_SHARD)


def images_of_shard(number: int, store: AnnotationStore) -> range:
    """Indices in the store of the images of shard ``number``."""
    return range(number * IMAGES_PER_SHARD, min((number + 1) * IMAGES_PER_SHARD, store.num_images))


def infer_images(
    detector: Detector, positions: list[list[int]], batches: Iterator[Batch], bar: "tqdm[Any]"
) -> tuple[Detections, Clock]:
    """Detections of the images at ``positions``, in the order of the store; ``batches`` yields their batches."""
    of_image: dict[int, Detections] = {}
    began = time.perf_counter()
    for batch_positions in positions:
        of_image |= zip(batch_positions, detector.detections(next(batches), batch_positions), strict=True)
        bar.update(len(batch_positions))
    seconds = time.perf_counter() - began
    return concatenate([of_image[image] for image in sorted(of_image)]), Clock(seconds, len(of_image))


def count_detections(detections_dir: Path) -> dict[str, int]:
    """How many detections the shards hold, and how many of them have a mask; one shard in memory at a time."""
    counts = {"detections": 0, "detections_with_mask": 0}
    for path in shards_of(detections_dir):
        shard = read_shard(path, with_masks=False)
        counts["detections"] += len(shard)
        counts["detections_with_mask"] += int(shard.has_mask.sum())
    return counts


def images_per_second(shards_dir: Path) -> float:
    """Mean speed over all shards, including those of earlier starts."""
    clocks = [json.loads(path.read_text()) for path in sorted(shards_dir.glob("shard-*.clock.json"))]
    return float(sum(clock["images"] for clock in clocks) / sum(clock["whole_s"] for clock in clocks))


def export_shards(shards_dir: Path, out_dir: Path) -> None:
    """Hard links to all shards in a folder that appears at once; copies where the file system has no links."""
    with atomic_folder(out_dir) as folder:
        for shard in shards_of(shards_dir):
            link(shard, folder / shard.name)
