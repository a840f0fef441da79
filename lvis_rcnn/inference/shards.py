"""To be written."""

import json
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
    """How long a shard took."""

    whole_s: float
    images: int


def infer_shards(
    detector: Detector, shards_dir: Path, batch_size: int, workers: int, title: str, numbers: Sequence[int]
) -> None:
    """Write those of the shards ``numbers`` that are missing; beside each how long it took."""
    store = detector.images.store
    missing = [number for number in numbers if not shard_path(shards_dir, number).exists()]
    if len(missing) < len(numbers):
        log.info("going on: %d of %d shards are there", len(numbers) - len(missing), len(numbers))
    of_shards = [detector.images.batches(images_of_shard(number, store), batch_size) for number in missing]
    # One reader for all shards: it reads ahead across their bounds.
    indices = [batch for batches in of_shards for batch in batches]
    batches = read_in_order(detector.images, indices, workers, pinned=detector.device.type == "cuda")
    total = sum(len(images_of_shard(number, store)) for number in numbers)
    with tqdm(total=total, desc=f"infer {title}", unit="image", disable=None) as bar:
        bar.update(total - sum(map(len, indices)))
        for number, positions in zip(missing, of_shards, strict=True):
            detections, clock = infer_images(detector, positions, batches, bar)
            write_json(shards_dir / f"shard-{number:05d}.clock.json", vars(clock))
            write_shard(shard_path(shards_dir, number), detections)


def images_of_shard(number: int, store: AnnotationStore) -> range:
    """Positions of the images of shard ``number``."""
    return range(number * IMAGES_PER_SHARD, min((number + 1) * IMAGES_PER_SHARD, store.num_images))


def infer_images(
    detector: Detector, positions: list[list[int]], batches: Iterator[Batch], bar: "tqdm[Any]"
) -> tuple[Detections, Clock]:
    """Detections of the images at ``positions``, batch by batch the next of ``batches``; images in their order."""
    parts: dict[int, Detections] = {}
    began = time.perf_counter()
    for batch_positions in positions:
        found = detector.detections(next(batches), batch_positions)
        parts |= zip(batch_positions, found, strict=True)
        bar.update(len(batch_positions))
    return concatenate([parts[image] for image in sorted(parts)]), Clock(time.perf_counter() - began, len(parts))


def count_detections(detections_dir: Path) -> dict[str, int]:
    """How many detections the shards hold, and how many of them have a mask; one shard in memory at a time."""
    shards = [(len(shard), int(shard.has_mask.sum())) for shard in map(read_maskless, shards_of(detections_dir))]
    return {"detections": sum(count for count, _ in shards), "detections_with_mask": sum(masks for _, masks in shards)}


def read_maskless(path: Path) -> Detections:
    """A shard without its masks."""
    return read_shard(path, with_masks=False)


def images_per_second(shards_dir: Path) -> float:
    """Speed over all shards, whichever start wrote them."""
    clocks = [json.loads(path.read_text()) for path in sorted(shards_dir.glob("shard-*.clock.json"))]
    return float(sum(clock["images"] for clock in clocks) / sum(clock["whole_s"] for clock in clocks))


def export_shards(shards_dir: Path, out_dir: Path) -> None:
    """Hard links of all shards as one folder that appears whole; copies where the file system has no links."""
    with atomic_folder(out_dir) as folder:
        for shard in shards_of(shards_dir):
            link(shard, folder / shard.name)
