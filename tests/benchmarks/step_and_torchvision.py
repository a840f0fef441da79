"""A training step of this project beside torchvision's Mask R-CNN in the loop of torchvision's reference scripts.

    python tests/benchmarks/step_and_torchvision.py [--device cpu] [--threads 2] [--backbones r50 x101_64x4d]
        [--images 2 16] [--precisions fp32 tf32 bf16] [--size 800 1067] [--steps 5] [--repeats 3] [--channels-last]
        [--groups-at-once 8 [--common-canvas]] [--workers 8]

On a CPU of two cores a block of two images takes some ten minutes at that size; ``--size 224 288`` or fewer repeats
make it short. Both start from the weights and see the images of network_and_torchvision.py: 1230 categories, 12
objects an image, a proposal head that finds them. ``here`` is ``training.step.take_step`` on groups of two images,
whose numbers are read one step late, as in training. ``torchvision`` is its model as it comes: images and targets
moved to the device, the sum of its losses asked for and looked at, backward, SGD. ``here, read`` (with ``--workers``)
has this project's loader before it: 480 x 640 JPEGs of 12 outlines at the six training scales up to 1333 pixels, so
images of other sizes.

Every figure is of a process of its own; the implementations take turns. Printed are the median seconds of a step
after two that are not counted (wall time, the device waited for), images a second, the CPU seconds of a step, and the
peak: of torch's allocator on a GPU, of the process's resident memory on a CPU. Each is the median of the repeats; the
ratios are to torchvision's.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.benchmarks.network_and_torchvision as network
from lvis_rcnn.config.schema import BACKBONES, Augmentation, Schedule
from lvis_rcnn.dataloader.batches import Batch, TrainingSteps, read_in_order
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataset.store import build_store
from lvis_rcnn.model.mask_rcnn import set_precision
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.setup import Passes, Training, peak_memory_bytes
from lvis_rcnn.training.solver import OPTIMIZERS, make_recipe
from lvis_rcnn.training.step import take_step

GROUP = 2
UNCOUNTED_STEPS = 2
SHORT_EDGES_PX = (640, 672, 704, 736, 768, 800)
NUM_FILES = 64


def our_steps(
    args: argparse.Namespace, state: dict[str, torch.Tensor], batches: Iterator[list[Batch]]
) -> Iterator[None]:
    """Steps as the trainer takes them: what came of one is read when the next is given."""
    device, stream = torch.device(args.device), stream_of(args.num_images)
    schedule = Schedule(
        images_per_step=args.num_images, optimizer="sgd", learning_rate=1e-6, weight_decay=1e-4, steps=1000,
        policy="one_cycle", warmup_steps=0,
    )  # fmt: skip
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = network.ours(state, args.backbone).to(device).to(memory_format=layout).train()
    optimizer = OPTIMIZERS["sgd"]([value for value in model.parameters() if value.requires_grad], schedule)
    study = SimpleNamespace(schedule=schedule, compute=SimpleNamespace(precision=args.precision))
    passes = Passes(args.precision, args.groups_at_once, args.common_canvas)
    run: Any = SimpleNamespace(recipe=make_recipe(schedule, stream), study=study, seed=0)
    training, pending = Training(run, Ranks(0, 1, device), model, optimizer, Progress(), passes), None
    for step, groups in enumerate(batches):
        moved = [group.to(device) for group in groups]
        queued = take_step(training, moved, step)
        if pending is not None:
            pending.values()
        pending = queued
        yield


def stock_steps(args: argparse.Namespace, state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Steps of torchvision's references/detection/engine.py."""
    device = torch.device(args.device)
    model = network.stock(state, args.backbone).to(device).train()
    optimizer = network.sgd(model)
    images, targets = network.scenes_for_stock(args.num_images, model)
    while True:
        moved = [image.to(device) for image in images]
        wanted = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            total = sum(model(moved, wanted).values())
        assert np.isfinite(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        yield


def stream_of(num_images: int) -> SampleStream:
    """Every file once an epoch, in steps of ``num_images``."""
    landscape = np.zeros(NUM_FILES, bool)
    return SampleStream(np.ones(NUM_FILES), "ceil", landscape, 0, group_size=GROUP, groups_per_step=num_images // GROUP)


def drawn_groups(args: argparse.Namespace) -> Iterator[list[Batch]]:
    """The same scenes at every step, in groups, to the nearest byte."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    whole = network.scenes_for_ours(args.num_images)
    groups = []
    for first in range(0, args.num_images, GROUP):
        own = slice(first, first + GROUP)
        pixels = as_bytes(whole.pixels[own]).contiguous(memory_format=layout)
        sizes = whole.sizes_hw[own]
        groups.append(Batch(pixels, sizes, sizes, whole.image_ids[own], whole.targets[own]))
    return itertools.repeat(groups)


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of a scene as those of a photograph."""
    return (pixels * 58 + 114).clamp(0, 255).to(torch.uint8)


def read_groups(args: argparse.Namespace, folder: Path) -> Iterator[list[Batch]]:
    """What this project's loader reads of drawn files, with workers."""
    write_files(folder)
    augmentation = Augmentation(short_edges_px=SHORT_EDGES_PX, long_edge_px=1333, flip_probability=0.5)
    stream = stream_of(args.num_images)
    numbers = range(args.num_images // GROUP)
    items = TrainingSteps(
        folder / "store", folder / "images", stream, augmentation, numbers, channels_last=args.channels_last
    )
    return read_in_order(items, range(10**6), args.workers, pinned=args.device == "cuda")


def write_files(folder: Path) -> None:
    """Scenes as JPEGs of 480 x 640, and the store of their outlines."""
    (folder / "images").mkdir()
    network.size_hw = (480, 640)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image in range(1, NUM_FILES + 1):
        pixels, boxes, outlines, labels = network.scene(image)
        painted = Image.fromarray(as_bytes(pixels).permute(1, 2, 0).numpy())
        painted.save(folder / "images" / f"{image:012}.jpg", quality=90)
        images.append(
            {"id": image, "height": 480, "width": 640, "file_name": f"{image:012}.jpg",
             "neg_category_ids": [], "not_exhaustive_category_ids": []}
        )  # fmt: skip
        for (x0, y0, x1, y1), (outline,), label in zip(boxes.tolist(), outlines, labels.tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label, "area": (x1 - x0) * (y1 - y0),
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [outline.tolist()]}
            )  # fmt: skip
    categories = [
        {"id": label, "name": f"c{label}", "synset": f"c{label}.n.01", "frequency": "f", "image_count": 101,
         "instance_count": 101}
        for label in range(1, network.CATEGORIES + 1)
    ]  # fmt: skip
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    build_store(file, folder / "store")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """In this process."""
    torch.set_num_threads(args.threads)
    set_precision(args.precision)
    state = network.sharpened(torch.load(args.weights, weights_only=True), "trained")
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "torchvision": lambda: stock_steps(args, state),
            "here": lambda: our_steps(args, state, drawn_groups(args)),
            "here, read": lambda: our_steps(args, state, read_groups(args, Path(folder))),
        }[args.measure]()
        seconds, cpu_s = [], []
        for _ in range(UNCOUNTED_STEPS + args.steps):
            began, cpu_began = time.perf_counter(), time.process_time()
            next(steps)
            wait_for(device)
            seconds.append(time.perf_counter() - began)
            cpu_s.append(time.process_time() - cpu_began)
    of_step = statistics.median(seconds[UNCOUNTED_STEPS:])
    return {
        "s a step": of_step,
        "images/s": args.num_images / of_step,
        "CPU s": statistics.median(cpu_s[UNCOUNTED_STEPS:]),
        "peak GB": peak_memory_bytes(device) / 2**30,
    }


def wait_for(device: torch.device) -> None:
    """Until it has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_own_process(
    args: argparse.Namespace, which: str, images: int, precision: str, weights: Path
) -> dict[str, float]:
    """:func:`measure` in a fresh process."""
    words = ["--measure", which, "--num-images", images, "--precision", precision, "--weights", weights]
    words += ["--backbone", args.backbone, "--device", args.device, "--threads", args.threads, "--steps", args.steps]
    words += ["--size", *args.size, "--workers", args.workers, "--groups-at-once", args.groups_at_once]
    words += [f"--{name}" for name in ("channels-last", "common-canvas") if vars(args)[name.replace("-", "_")]]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(args: argparse.Namespace, images: int, precision: str, weights: Path) -> None:
    """One block of the table: the implementations in turn."""
    names = ["torchvision", "here", *(["here, read"] if args.workers else [])]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name, found in runs.items():
            found.append(in_own_process(args, name, images, precision, weights))
    rows = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in runs.items()
    }
    layout = ", channels-last here" if args.channels_last else ""
    print(f"\n{args.backbone}, {images} images a step, {precision}{layout}")
    print(" " * 14 + "".join(f"{key:>12}" for key in rows["here"]) + f"{'speed':>12}{'memory':>12}")
    for name, row in rows.items():
        ratios = (
            row["images/s"] / rows["torchvision"]["images/s"],
            row["peak GB"] / rows["torchvision"]["peak GB"],
        )
        print(f"{name:14}" + "".join(f"{value:12.3f}" for value in (*row.values(), *ratios)), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", choices=BACKBONES, nargs="+", default=["r50", "x101_64x4d"])
    parser.add_argument("--images", type=int, nargs="+", default=[2, 16], help="images a step; even")
    parser.add_argument("--precisions", choices=["fp32", "tf32", "bf16"], nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--size", type=int, nargs=2, default=network.size_hw, metavar=("H", "W"), help="pixels of an image"
    )
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each implementation")
    parser.add_argument("--channels-last", action="store_true", help="compute.channels_last of a study, here")
    parser.add_argument("--groups-at-once", type=int, default=1, help="compute.groups_at_once of a study, here")
    parser.add_argument("--common-canvas", action="store_true", help="compute.common_canvas of a study, here")
    parser.add_argument("--workers", type=int, default=0, help="of the loader; 0 leaves its row out")
    hidden: dict[str, Callable[[str], object]] = {
        "measure": str, "backbone": str, "precision": str, "num-images": int, "weights": Path,
    }  # fmt: skip
    for name, kind in hidden.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    network.size_hw = tuple(args.size)
    if args.measure:
        print(json.dumps(measure(args)))
        return
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(
        f"{network.CATEGORIES} categories, {args.size[0]} x {args.size[1]} pixels, {device}, torch {torch.__version__}"
    )
    for args.backbone in args.backbones:  # noqa: B020
        with tempfile.TemporaryDirectory() as folder:
            torch.set_num_threads(args.threads)
            torch.save(network.weights(args.backbone), weights := Path(folder, "weights.pth"))
            for images, precision in itertools.product(args.images, args.precisions):
                compare(args, images, precision, weights)


if __name__ == "__main__":
    main()
