"""Measure memory and speed of a row of the table on one device that does nothing else.

    python -m lvis_rcnn measure --study configs/mini.yaml --row r50 --model model.pth --out measure.json …

Memory is the peak of training (MMDetection, ``docs/model_zoo.md``) in a few steps from the trained weights: those of
the first epoch whose batches are largest, with all images at the largest scale. Inference time is that of MMDetection's
``tools/benchmark.py`` of May 2020: one image at a time, without the first few, from the image on the host to the
bitmaps of all masks at original size on the host, without reading images. On a CPU the clock is the CPU time of the
process, which other work on the machine changes least; how much of that there was is recorded.

measure.json: {"format": "lvis_rcnn.measure", "version": 1, "study", "backbone", "settings_digest", "model_sha256",
"device", "threads", "versions", "code_version", "training", "inference"}. "training": {"memory_gb",
"definition", "steps", "images", "device", "threads", "ranks", "precision", "resolution"}, null for a model that
was not trained here. "inference": {"fps", "definition", "clock", "image_s", "cpu_per_wall", "cores", "other_cores",
"load_average", "end_to_end_fps", "end_to_end_definition", "images", "warmup_images", "batch_size", "masks",
"precision", "resolution"}. "clock" is "CPU time" or "wall time", and "image_s" the "first_quartile", "median" and
"third_quartile" over the images of an image's time by it. "cpu_per_wall" is the CPU time of all timed images over
their wall time, "other_cores" how many of the machine's "cores" other processes used meanwhile (null without /proc),
"load_average" that of the last minute before and after. Earlier records lack these keys and are of wall time. "masks"
is "all"; where it is missing, those of the study's inference.masks were timed.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lvis_rcnn.config.schema import Augmentation
from lvis_rcnn.config.study import Study, load_study_for_step, settings_digest
from lvis_rcnn.dataloader.batches import Batch, original_size_hw, read_in_order
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataloader.transforms import padded_size_hw, rescaled_size_hw
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.inference.detector import (
    Detector,
    boxes_in_original,
    conditions,
    image_detections,
    make_detector,
    on_host,
)
from lvis_rcnn.inference.paste import bitmaps, pasted_crops
from lvis_rcnn.model.weights import load_trained
from lvis_rcnn.runs.paths import row_of_run, runs_of
from lvis_rcnn.runs.records import CPU_TIME, WALL_TIME, other_work
from lvis_rcnn.system.cli import InputError, add_output, log, rate, run_step, step_parser
from lvis_rcnn.system.files import sha256_of_file, write_json
from lvis_rcnn.system.machine import cpu_s_of_others
from lvis_rcnn.system.provenance import code_version, library_versions
from lvis_rcnn.training.distributed import Ranks, Watch, process_device, require_device
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.run import Run, hardware
from lvis_rcnn.training.setup import batches_of, new_training, peak_memory_bytes, set_arithmetic
from lvis_rcnn.training.step import take_step

WARMUP_IMAGES = 5
QUARTILES = {"first_quartile": 0.25, "median": 0.5, "third_quartile": 0.75}

# The largest are searched among so many steps: 8,000 images of LVIS.
STEPS_SEARCHED = 500

# Seconds between two updates of the bar: the measurement must not wait for a terminal.
BAR_INTERVAL_S = 1

TIMED = (
    "one at a time: forward, NMS, bitmaps of all masks at original size on the host; without reading, resizing and "
    "run-length encoding"
)
FPS = {
    WALL_TIME: f"images a second, {TIMED}",
    CPU_TIME: f"images a second of CPU time of the process, all threads together, {TIMED}",
}
END_TO_END = "images a second: reading, resizing, forward, NMS, run-length encoded masks; without bitmaps"


@dataclass(frozen=True)
class TrainingData:
    """What a row is trained on."""

    store: Path
    images: Path
    repeat_factors: Path


@dataclass(frozen=True)
class TestData:
    """What a row is tested on, and the model."""

    model: Path
    store: Path
    images: Path
    calibration: Path | None = None
    """Output of calibrate, where the study calibrates scores."""


def measure(study: Study, backbone: str, test: TestData, data: TrainingData | None) -> dict[str, Any]:
    """The value of measure.json; ``data`` is None for a row that was trained elsewhere.

    Raises:
        InputError: the model is not of this study, or memory does not suffice.
    """
    device = process_device(study.compute.device, 0)
    # Training comes first: of the resident memory of a process only the peak so far is known.
    training = measured_training(study, backbone, test.model, data, device) if data else None
    detector = make_detector(study, backbone, test.model, test.store, test.images, device, test.calibration)
    # Of all masks, as MMDetection's, also where inference makes only those that are scored.
    detector = replace(detector, test=detector.test.model_copy(update={"masks": "all"}))
    where = conditions(study, device)
    return {
        "format": "lvis_rcnn.measure",
        "version": 1,
        "study": study.study,
        "backbone": backbone,
        "settings_digest": settings_digest(study, "measure"),
        "model_sha256": sha256_of_file(test.model),
        "device": where.pop("device"),
        "threads": where.pop("threads"),
        "versions": library_versions(),
        "code_version": code_version(),
        "training": training,
        "inference": {**measured_inference(study, backbone, detector), **where},
    }


def measured_training(
    study: Study, backbone: str, model_path: Path, data: TrainingData, device: torch.device
) -> dict[str, Any]:
    """Peak memory of a few of the largest steps."""
    largest = {"short_edges_px": (max(study.augmentation.short_edges_px),)}
    study = study.model_copy(update={"augmentation": study.augmentation.model_copy(update=largest)})
    run = Run(study, backbone, study.seeds[0], data.store, data.images, data.repeat_factors, Path(), {})
    set_arithmetic(run)
    network = load_trained(study.model, backbone, model_path, run.store)
    training, recipe = new_training(run, Ranks(0, 1, device), network), run.recipe
    at_once = training.passes.groups_at_once
    steps = largest_steps(recipe.stream, run.store, study.augmentation, recipe.steps, at_once)
    steps = steps[: study.measure.training_steps]
    images, of_steps = 0, zip(steps, batches_of(training, steps), strict=True)
    with Watch(training.ranks) as watch:
        for step, groups in tqdm(of_steps, f"measure memory {backbone}", len(steps), unit="step", disable=None):
            with watch.step(step):
                take_step(training, [group.to(device) for group in groups], step).values()
            images += sum(len(group.image_ids) for group in groups)
    log.info("trained %d steps of the largest images", len(steps))
    of_training = hardware(study, Progress(peak_memory_bytes=peak_memory_bytes(device), passes=str(training.passes)))
    return {
        "definition": of_training.pop("memory_definition"),
        **of_training,
        "steps": len(steps),
        "images": images,
    }


def largest_steps(
    stream: SampleStream, store: AnnotationStore, augmentation: Augmentation, steps: int, groups_at_once: int
) -> list[int]:
    """Steps in descending order of the padded pixels of their largest pass, which a device holds at a time."""

    def pixels(group: list[int]) -> int:
        sizes = [
            padded_size_hw(
                rescaled_size_hw(
                    *original_size_hw(store, image), augmentation.short_edges_px[0], augmentation.long_edge_px
                )
            )
            for image in group
        ]
        return len(group) * max(height for height, _ in sizes) * max(width for _, width in sizes)

    def largest_pass(step: int) -> int:
        groups = [pixels(group) for group in stream.groups_of_step(step) if group]
        return max(sum(groups[first : first + groups_at_once]) for first in range(0, len(groups), groups_at_once))

    return sorted(range(min(steps, STEPS_SEARCHED)), key=largest_pass, reverse=True)


@dataclass(frozen=True)
class Times:
    """Seconds of one image."""

    network_s: float
    bitmaps_s: float
    run_lengths_s: float
    cpu_s: float
    """CPU time of the process for network and bitmaps."""

    @property
    def wall_s(self) -> float:
        """What MMDetection's Inf time is of: network and bitmaps."""
        return self.network_s + self.bitmaps_s


def measured_inference(study: Study, backbone: str, detector: Detector) -> dict[str, Any]:
    """Speed with and without reading, over the first images of the validation split."""
    images = detector.images
    count = min(study.measure.images + WARMUP_IMAGES, images.store.num_images)
    warmup = min(WARMUP_IMAGES, count - 1)
    on_gpu = detector.device.type == "cuda"
    batches = read_in_order(images, [[image] for image in range(count)], study.resources.loader_workers, pinned=on_gpu)
    title = f"measure speed {backbone}"
    with tqdm(total=count, desc=title, unit="image", disable=None, mininterval=BAR_INTERVAL_S) as bar:
        times_of_images(detector, batches, range(warmup), bar)
        load, others_s, began = os.getloadavg()[0], cpu_s_of_others(), time.perf_counter()
        times = times_of_images(detector, batches, range(warmup, count), bar)
        whole_s, others_end_s = time.perf_counter() - began, cpu_s_of_others()
    return {
        **speed(times, WALL_TIME if on_gpu else CPU_TIME, whole_s),
        "cores": os.cpu_count(),
        "other_cores": None if others_s is None or others_end_s is None else (others_end_s - others_s) / whole_s,
        "load_average": [load, os.getloadavg()[0]],
        "images": len(times),
        "warmup_images": warmup,
        "batch_size": 1,
        "masks": detector.test.masks,
    }


def speed(times: Sequence[Times], clock: str, whole_s: float) -> dict[str, Any]:
    """Speed by one of the clocks of FPS, its spread over the images, and speed with reading, which is of wall time."""
    image_s = np.array([one.cpu_s if clock == CPU_TIME else one.wall_s for one in times])
    return {
        "fps": len(times) / image_s.sum(),
        "definition": FPS[clock],
        "clock": clock,
        "image_s": {name: np.quantile(image_s, share) for name, share in QUARTILES.items()},
        "cpu_per_wall": sum(one.cpu_s for one in times) / sum(one.wall_s for one in times),
        "end_to_end_fps": len(times) / (whole_s - sum(one.bitmaps_s for one in times)),
        "end_to_end_definition": END_TO_END,
    }


def times_of_images(detector: Detector, batches: Iterator[Batch], images: range, bar: "tqdm[Any]") -> list[Times]:
    """:func:`times_of` the images at these indices, whose batches come next."""
    times = []
    for image in images:
        times.append(times_of(detector, next(batches), image))
        bar.update()
    return times


@torch.inference_mode()
def times_of(detector: Detector, batch: Batch, image: int) -> Times:
    """Detect in one image, and make its masks as bitmaps, then as run lengths."""
    (size_hw,), (original_hw,) = batch.sizes_hw, batch.original_sizes_hw
    category_ids = np.array([category.id for category in detector.images.store.categories], dtype=np.int64)
    ends, cpu_s = [finished(detector.device)], time.process_time()
    (detections,) = on_host(detector.detect(batch, [image]))
    boxes = boxes_in_original(detections.boxes_xyxy, size_hw, original_hw)
    ends.append(finished(detector.device))
    probabilities = detections.mask_logits.float().sigmoid()
    bitmaps(pasted_crops(probabilities, boxes[detections.mask_rows], original_hw), len(probabilities), original_hw)
    ends.append(finished(detector.device))
    cpu_s = time.process_time() - cpu_s
    image_detections(batch.image_ids[0], detections, boxes, original_hw, category_ids)
    ends.append(finished(detector.device))
    network_s, bitmaps_s, run_lengths_s = (end - start for start, end in itertools.pairwise(ends))
    return Times(network_s, bitmaps_s, run_lengths_s, cpu_s)


def finished(device: torch.device) -> float:
    """Time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step(args: argparse.Namespace) -> None:
    """Measure the row that the arguments name."""
    study = load_study_for_step(args.study, "measure", args.settings_digest, args.row)
    rows = {row_of_run(run): backbone for run, backbone in runs_of(study, args.study).items()}
    if args.row not in rows:
        fix = "name one of them, or add it to the study"
        raise InputError(f"--row {args.row}", "is no row of the study", allowed=", ".join(rows), fix=fix)
    data = training_data(args.train_store, args.train_images, args.repeat_factors)
    require_device(study, args.study)
    test = TestData(args.model, args.val_store, args.val_images, args.calibration)
    record = measure(study, rows[args.row], test, data)
    write_json(args.out, record)
    log.info("%s on %s: %s", args.row, record["device"], sentence(record))
    if others := other_work(record["inference"]):
        log.warning("the table will not show this speed, since other work ran meanwhile: %s", others)


def training_data(store: Path | None, images: Path | None, repeat_factors: Path | None) -> TrainingData | None:
    """What the options of training name; None where none is given, InputError where some are missing."""
    if store and images and repeat_factors:
        return TrainingData(store, images, repeat_factors)
    if store or images or repeat_factors:
        what = "--train-store, --train-images and --repeat-factors belong together"
        raise InputError("memory of training", what, fix="name all three, or none to measure the speed only")
    return None


def sentence(record: Mapping[str, Any]) -> str:
    """The result as text."""
    training, inference = record["training"], record["inference"]
    memory = f"Mem {training['memory_gb']:.2f} GB, " if training else ""
    with_reading = f"{rate(inference['end_to_end_fps'])} images/s of wall time with reading"
    return f"{memory}{rate(inference['fps'])} images/s of {inference['clock']}, {with_reading}"


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--settings-digest", metavar="HEX", help="refuse a study whose settings changed")
    parser.add_argument("--row", required=True, metavar="NAME", help="row of the study, r50 or published/NAME")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="model.pth of a run of this row")
    parser.add_argument("--val-store", type=Path, required=True, metavar="DIR", help="store of the validation split")
    parser.add_argument("--val-images", type=Path, required=True, metavar="DIR", help="folder of its images")
    table = "output of calibrate, of the training split, where the study has an inference.calibration"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=table)
    training = parser.add_argument_group("training, for Mem", "all three; without them only the speed is measured")
    training.add_argument("--train-store", type=Path, metavar="DIR", help="store of the training split")
    training.add_argument("--train-images", type=Path, metavar="DIR", help="folder of its images")
    training.add_argument("--repeat-factors", type=Path, metavar="DIR", help="output of repeat_factors")
    add_output(parser, "--out", "measure.json to write", suffix=".json")
    run_step(parser, step)


if __name__ == "__main__":
    main()
