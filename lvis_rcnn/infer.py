"""Detections of a trained model on the validation images, streamed to disk as shards.

Shards are written to a state folder as they are finished and keep what a kill would lose; a second start goes on
with those that are missing. Several processes share the shards out; a shard depends on nothing but its images, so that
who makes it, and how often, changes no byte. How fast a row is, lvis_rcnn.measure says.

    python -m lvis_rcnn.infer --study configs/mini.yaml --backbone r50 --run r50/seed0 --model model.pth
        --store val.store --images IMAGES --state results/state --out results/mini/r50/seed0
    torchrun --standalone --nproc-per-node 4 -m -- lvis_rcnn.infer --study …     the same on four GPUs

(torchrun takes ``--log`` and ``--run`` for its own words unless ``--`` stands before the module.)
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.command import log, run_step, step_parser
from lvis_rcnn.config import Study, load_study_for_step, settings_digest, settings_of_step
from lvis_rcnn.data import Batch, read_in_order
from lvis_rcnn.detections import Detections, concatenate, read_shard, shard_path, shards_of, write_shard
from lvis_rcnn.detector import MASKS, Detector, conditions, make_detector
from lvis_rcnn.files import atomic_folder, sha256_of_file, sha256_of_json, write_json
from lvis_rcnn.finished_run import link
from lvis_rcnn.provenance import code_version, library_versions
from lvis_rcnn.ranks import Ranks, require_device, started

# Raised when a change of the code changes detections: older shards are then not reused.
INFERENCE_REVISION = 3

IMAGES_PER_SHARD = 64  # about 7 s at 10 images/s: little is lost by a kill

END_TO_END = "images a second of one process: reading, resizing, forward, NMS, run-length encoded masks"


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


def infer(
    study: Study,
    backbone: str,
    model_path: Path,
    store_path: Path,
    images_dir: Path,
    state_dir: Path,
    out_dir: Path,
    ranks: Ranks,
) -> None:
    """Write ``detections/`` and ``inference.json`` into ``out_dir``, from where an earlier start stopped.

    Unfinished work lives in a folder of ``state_dir`` named after the model, the settings and the annotations.
    """
    detector = make_detector(study, backbone, model_path, store_path, images_dir, ranks.device)
    store = detector.images.store
    record = inference_record(study, store, sha256_of_file(model_path), ranks)
    identity = {"revision": INFERENCE_REVISION, **{key: record[key] for key in IDENTITY}}
    shards_dir = state_dir / f"infer-{sha256_of_json(identity)[:12]}"
    shards_dir.mkdir(parents=True, exist_ok=True)
    numbers = ranks.share_of(math.ceil(store.num_images / IMAGES_PER_SHARD))
    infer_shards(detector, shards_dir, study.inference.batch_size, study.resources.loader_workers, backbone, numbers)
    ranks.meet_first()
    if not ranks.is_first:
        return
    export_shards(shards_dir, out_dir / "detections")
    counts = count_detections(out_dir / "detections")
    write_json(out_dir / "inference.json", {**record, **counts, "end_to_end_fps": images_per_second(shards_dir)})
    log.info("detected %d images with %s: %s", store.num_images, backbone, out_dir / "detections")


# What detections depend on: shards of another identity are never mixed in.
IDENTITY = ("settings_digest", "model_sha256", "annotations_sha256")


def inference_record(study: Study, store: AnnotationStore, model_sha256: str, ranks: Ranks) -> dict[str, Any]:
    """Everything that a reader of the table may ask about how a row was tested, but for what was found."""
    return {
        "format": "lvis_rcnn.inference",
        "version": 2,
        "study": study.study,
        "settings_digest": settings_digest(study, "infer"),
        "settings": settings_of_step(study, "infer", with_defaults=True),
        "model_sha256": model_sha256,
        "annotations_sha256": store.annotations_sha256,
        "images": store.num_images,
        "masks": MASKS[study.inference.masks],
        **conditions(study, ranks.device),
        "ranks": ranks.count,
        "batch_size": study.inference.batch_size,
        "end_to_end_definition": END_TO_END,
        "versions": library_versions(),
        "code_version": code_version(),
    }


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


def step(args: argparse.Namespace) -> None:
    """Infer with the model that the arguments name."""
    study = load_study_for_step(args.study, "infer", args.settings_digest)
    require_device(study, args.study)
    state_dir = args.state / study.study / args.run
    with started(study.compute.device) as ranks:
        if not ranks.is_first:
            log.setLevel(logging.WARNING)
        infer(study, args.backbone, args.model, args.store, args.images, state_dir, args.out, ranks)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--settings-digest", metavar="HEX", help="refuse a study whose test settings changed")
    parser.add_argument("--backbone", choices=BACKBONES, required=True, help="row of the table")
    parser.add_argument("--run", required=True, metavar="NAME", help="folder of the run in its study, r50/seed0")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="model.pth of the training step")
    parser.add_argument(
        "--store", type=Path, required=True, metavar="DIR", help="annotation store of the validation split"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where unfinished work lives")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for detections/ and inference.json"
    )
    run_step(parser, step)


if __name__ == "__main__":
    main()
