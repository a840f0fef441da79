"""Detections of a dataset as shards; a new start makes only what no earlier one has saved.

A shard that takes long is saved in parts, which hold whole batches, so that its bytes are the same however often it was
interrupted. runs/inference.py says which files there are.
"""

import logging
import math
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lvis_rcnn.dataloader.batches import Batch, read_in_order, require_shared_memory
from lvis_rcnn.dataset.detections import (
    Detections,
    concatenate,
    read_shard,
    rows_between,
    shard_path,
    shards_of,
    write_shard,
)
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.inference.detector import Detector
from lvis_rcnn.runs.inference import inferred
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Clock, Part
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import atomic_folder, link, write_json

IMAGES_PER_SHARD = 64

# With the batch that is being made, at most a minute is made again after a kill, unless an image takes half of one.
SECONDS_BETWEEN_SAVES = 30.0

# Of the log, and of a console that is no terminal; longer where an inference takes hours: at most some hundred lines.
SECONDS_BETWEEN_LINES = 60.0
MOST_LINES = 100


@dataclass(frozen=True)
class Saved:
    """What is known of a shard."""

    of_image: Mapping[int, Detections]
    """By position in the store."""
    whole_s: float
    """How long these images took."""


class Reporter:
    """Tells how far an inference is: a bar on a terminal, lines now and then in the log and on other consoles."""

    def __init__(self, shards_dir: Path, title: str, bar: "tqdm[Any]") -> None:
        self.shards_dir = shards_dir
        self.title = title
        self.bar = bar
        self.due_s = time.monotonic() + SECONDS_BETWEEN_LINES

    def update(self, images: int) -> None:
        """Count more images that were made."""
        self.bar.update(images)
        if time.monotonic() >= self.due_s and log.isEnabledFor(logging.INFO):
            now = inferred(self.shards_dir)
            log.log(logging.DEBUG if sys.stderr.isatty() else logging.INFO, "inferring %s: %s", self.title, now)
            whole_s = now.images / now.images_per_s if now.images_per_s else 0.0
            self.due_s = time.monotonic() + max(SECONDS_BETWEEN_LINES, whole_s / MOST_LINES)


def infer_shards(
    detector: Detector,
    shards_dir: Path,
    batch_size: int,
    workers: int,
    title: str,
    numbers: Sequence[int],
    images: Sequence[int] | None = None,
) -> None:
    """Write those of the shards ``numbers`` that are missing, each with a file that says how long it took.

    ``images`` are the positions in the store of all that are in shards, ascending; None for the whole store.
    """
    store = detector.images.store
    images = range(store.num_images) if images is None else images
    of_shard = {number: images_of_shard(number, images) for number in numbers}
    missing = [number for number in numbers if not is_saved(shards_dir, number, store, of_shard[number])]
    for number in set(numbers) - set(missing):
        drop_parts(shards_dir, number)  # a kill after the shard was written may have left them
    saved = [saved_of_shard(shards_dir, number, store, of_shard[number]) for number in missing]
    in_batches = {number: detector.images.batches(of_shard[number], batch_size) for number in missing}
    of_shards = [
        [batch for batch in in_batches[number] if not done(batch, one)]
        for number, one in zip(missing, saved, strict=True)
    ]
    # One reader for all shards, so that it also reads ahead from one shard to the next.
    indices = [batch for batches in of_shards for batch in batches]
    require_shared_memory(batch_size, detector.images.short_edge_px, detector.images.long_edge_px, workers)
    batches = read_in_order(detector.images, indices, workers, pinned=detector.device.type == "cuda")
    total = sum(map(len, of_shard.values()))
    left = sum(map(len, indices))
    if left < total:
        log.info("going on: %d of %d images are saved", total - left, total)
    with tqdm(total=total, initial=total - left, desc=f"infer {title}", unit="image", disable=None) as bar:
        reporter = Reporter(shards_dir, title, bar)
        for number, positions, known in zip(missing, of_shards, saved, strict=True):
            infer_shard(detector, shards_dir, number, positions, batches, known, reporter)


def number_of_shards(num_images: int) -> int:
    """How many shards hold so many images."""
    return math.ceil(num_images / IMAGES_PER_SHARD)


def images_of_shard(number: int, images: Sequence[int]) -> Sequence[int]:
    """Those of ``images``, positions in the store, that are in shard ``number``."""
    return images[number * IMAGES_PER_SHARD : (number + 1) * IMAGES_PER_SHARD]


def is_saved(shards_dir: Path, number: int, store: AnnotationStore, images: Sequence[int]) -> bool:
    """Whether a shard is there with its clock, undamaged, and of its own images; otherwise it is made again."""
    path = shard_path(shards_dir, number)
    if not path.exists():
        return False
    try:
        found = read_shard(path)
    except InputError as error:
        log.warning("%s; it is made again", error)
        return False
    has_clock = bool(read_json_object(path.with_suffix(".clock.json"), Clock))
    return has_clock and bool(np.isin(found.image_ids, store.image_ids[list(images)]).all())


def done(batch: Sequence[int], saved: Saved) -> bool:
    """Whether all images of a batch are saved; one without the others would be made in another batch."""
    return saved.of_image.keys() >= set(batch)


def infer_shard(
    detector: Detector,
    shards_dir: Path,
    number: int,
    positions: list[list[int]],
    batches: Iterator[Batch],
    known: Saved,
    reporter: Reporter,
) -> None:
    """Make the images at ``positions``, whose batches come next, and write the shard, in the order of the store."""
    of_image, unsaved = dict(known.of_image), dict[int, Detections]()
    whole_s, began = known.whole_s, time.perf_counter()
    for batch in positions:
        unsaved |= zip(batch, detector.detections(next(batches), batch), strict=True)
        reporter.update(len(batch))
        seconds = time.perf_counter() - began
        if seconds >= SECONDS_BETWEEN_SAVES and batch != positions[-1]:
            write_part(shards_dir, number, Saved(unsaved, seconds))
            of_image, unsaved, whole_s, began = of_image | unsaved, {}, whole_s + seconds, time.perf_counter()
    of_image |= unsaved
    clock = {"whole_s": whole_s + time.perf_counter() - began, "images": len(of_image)}
    write_json(shards_dir / f"shard-{number:05d}.clock.json", clock)
    write_shard(shard_path(shards_dir, number), concatenate([of_image[image] for image in sorted(of_image)]))
    drop_parts(shards_dir, number)


def write_part(shards_dir: Path, number: int, part: Saved) -> None:
    """Save some images of a shard; the JSON file comes last and makes the part count."""
    name = f"part-{number:05d}-{secrets.token_hex(8)}"  # two starts on one folder may save the same images
    write_shard(shards_dir / f"{name}.npz", concatenate(list(part.of_image.values())))
    write_json(shards_dir / f"{name}.json", {"whole_s": part.whole_s, "positions": list(part.of_image)})


def saved_of_shard(shards_dir: Path, number: int, store: AnnotationStore, images: Sequence[int]) -> Saved:
    """The parts of a shard; one that is damaged, of other images, or just removed by another process does not count."""
    of_image, whole_s = dict[int, Detections](), 0.0
    for path in sorted(shards_dir.glob(f"part-{number:05d}-*.json")):
        record = read_json_object(path, Part)
        try:
            found = read_shard(path.with_suffix(".npz"))
        except InputError as error:
            log.debug("%s", error)
            continue
        positions = set(record.get("positions", ()))
        if positions <= of_image.keys() or not positions <= set(images):
            continue
        ids = store.image_ids[record["positions"]]
        if not np.isin(found.image_ids, ids).all():
            continue
        whole_s += record["whole_s"]
        rows = [np.flatnonzero(found.image_ids == image_id) for image_id in ids]
        spans = [(int(row[0]), int(row[-1]) + 1) if len(row) else (0, 0) for row in rows]
        of_image |= zip(record["positions"], (rows_between(found, *span) for span in spans), strict=True)
    return Saved(of_image, whole_s)


def drop_parts(shards_dir: Path, number: int) -> None:
    """Remove the parts of a shard that is complete."""
    for path in sorted(shards_dir.glob(f"part-{number:05d}-*")):
        path.unlink(missing_ok=True)


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
    clocks = [read_json_object(path, Clock) for path in sorted(shards_dir.glob("shard-*.clock.json"))]
    return float(sum(clock["images"] for clock in clocks) / sum(clock["whole_s"] for clock in clocks))


def export_shards(shards_dir: Path, out_dir: Path) -> None:
    """Hard links to all shards in a folder that appears at once; copies where the file system has no links."""
    with atomic_folder(out_dir) as folder:
        for shard in shards_of(shards_dir):
            link(shard, folder / shard.name)
