"""Train and test as on a GPU, on a machine without one: how often the host waits for it, and what it has to launch.

    python -m tests.emulated_gpu train [--groups 8] [--precision bf16] [--optimizer adamw] [--clip-norm 35]
        [--channels-last] [--steps 2] [--groups-at-once 1] [--common-canvas] [--landscape]
    python -m tests.emulated_gpu infer [--images 8] [--labels 1230] [--detections 300] [--masks scored]
        [--precision bf16]

``train`` is ``lvis_rcnn.train.train``, from the new network over some steps, each with a checkpoint, to the exported
files: the recipe of LVIS on drawn images of 64 pixels, with fewer regions. ``infer`` is ``Detector.detections`` on a
batch of one image, then on one of several, with a network that has learnt nothing, so that each image has as many
detections as are kept (a mask of each takes a CPU long). Printed is what each phase asks of the device, the lines that
ask for most of it first; helpers/emulated_device.py says what is counted and docs/performance.md what this cannot see.
Needs gcc, and torch built with CUDA.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:  # torch is imported beneath the stub only
    from tests.helpers.emulated_device import EmulatedGpu, Phase
    from tests.helpers.tiny_run import TinyData

STUB = Path(__file__).parent / "helpers" / "cuda_stub.c"
HAS_STUB = "LVIS_RCNN_CUDA_STUB"
KINDS = ("wait", "pageable copy", "mixed devices", "kernel", "bytes to device", "bytes to host", "convolution")


def stub_environment(folder: Path) -> dict[str, str]:
    """Compile the stub of CUDA; returns the environment of processes that shall find it in place of CUDA."""
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", STUB], check=True)
    libraries = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {**os.environ, HAS_STUB: "1", "LD_PRELOAD": str(folder / "libcuda.so.1"), "LD_LIBRARY_PATH": libraries}


def study_values(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of LVIS on tiny images: what is not given here is as it is for LVIS by default."""
    return {
        "model": {
            **{"weights": "imagenet", "normalization": "fixed_batch", "frozen_stages": 1, "anchor_scale": 4},
            **{"anchors_per_image": 256, "proposals_before_nms": 2000, "proposals_after_nms": 1000},
            "rois_per_image": 32,
        },
        "schedule": {
            **{"steps": args.steps, "images_per_step": 2 * args.groups, "normalisation_group": 2, "warmup_steps": 1},
            **{"optimizer": args.optimizer, "learning_rate": 1e-4, "weight_decay": 1e-4},
            "gradient_clip_norm": args.clip_norm,
        },
        "compute": {
            **{"device": "cuda", "precision": args.precision, "channels_last": args.channels_last},
            **{"groups_at_once": args.groups_at_once, "common_canvas": args.common_canvas},
        },
        "resources": {"log_every_steps": 1, "checkpoint_seconds": 1e-6},
        "inference": {
            **{"proposals_before_nms": 1000, "proposals_after_nms": 100, "score_threshold": 1e-4},
            **{"detections_per_image": args.detections, "masks": args.masks, "precision": args.precision},
        },
    }


@contextlib.contextmanager
def in_phases(gpu: "EmulatedGpu", phases: dict[str, tuple[Any, str]]) -> Iterator[None]:
    """Count each call of a function, named by who has it and its name there, as a phase."""

    def counted(name: str, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with gpu.phase(name):
                return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in phases.items():
            stack.enter_context(mock.patch.object(owner, attribute, counted(name, getattr(owner, attribute))))
        yield


def train(args: argparse.Namespace, folder: Path) -> "list[Phase]":
    """A whole training."""
    import torch

    from lvis_rcnn import train
    from lvis_rcnn.config.study import DEFAULT_ZOO
    from lvis_rcnn.config.zoo import load_zoo
    from lvis_rcnn.dataloader.batches import Batch
    from lvis_rcnn.training import setup
    from lvis_rcnn.training.distributed import Ranks
    from lvis_rcnn.training.recorder import Recorder
    from lvis_rcnn.training.run import Run
    from tests.helpers.emulated_device import GPU, emulated_gpu
    from tests.helpers.tiny_run import make_data, tiny_study

    data = make_data(folder, train_images=4 * args.groups * args.steps, val_images=1)
    if args.landscape:
        keep_landscape(data)
    study = tiny_study(folder, **study_values(args))
    zoo = load_zoo(DEFAULT_ZOO)
    run = Run(study, "r50", 0, data.train_store, data.images, data.repeat_factors, folder / "state", zoo)
    phases = {
        "prepare": (train, "prepared"),
        "batch to the device": (Batch, "to"),
        "step": (train, "take_step"),
        "checkpoint": (Recorder, "save"),
        "finish": (train, "finish"),
    }
    with (
        emulated_gpu() as gpu,
        mock.patch.object(setup, "load_initial_weights", return_value="none"),
        in_phases(gpu, phases),
    ):
        train.train(run, folder / "out", Ranks(0, 1, GPU))
    model = torch.load(folder / "out" / "model.pth", weights_only=True)
    assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in model["state_dict"].values())
    return gpu.phases


def keep_landscape(data: "TinyData") -> None:
    """Leave out the training images that are higher than wide."""
    from lvis_rcnn.dataloader.repeat_factors import repeat_factors
    from lvis_rcnn.dataset.store import build_store, open_store
    from lvis_rcnn.repeat_factors import write_factor_tables

    path = data.folder / "drawn" / "train.json"
    dataset = json.loads(path.read_text())
    images = [image for image in dataset["images"] if image["width"] >= image["height"]]
    kept = {image["id"] for image in images}
    annotations = [annotation for annotation in dataset["annotations"] if annotation["image_id"] in kept]
    path.write_text(json.dumps({**dataset, "images": images, "annotations": annotations}))
    for written in (data.train_store, data.repeat_factors):
        shutil.rmtree(written)
    build_store(path, data.train_store)
    store = open_store(data.train_store)
    write_factor_tables(store, repeat_factors(store, 0.3), data.repeat_factors)


def infer(args: argparse.Namespace, folder: Path) -> "list[Phase]":
    """Detections of a batch of one image, which makes what is then kept on the device, and of one of several."""
    import torch

    from lvis_rcnn.config.schema import BACKBONES
    from lvis_rcnn.dataloader.batches import TestImages
    from lvis_rcnn.dataset.store import build_store
    from lvis_rcnn.inference.detector import Detector
    from lvis_rcnn.model.mask_rcnn import MaskRcnn, set_precision
    from tests.helpers.emulated_device import GPU, emulated_gpu
    from tests.helpers.tiny_run import make_data, tiny_study

    data = make_data(folder, train_images=1, val_images=args.images)
    with_categories(folder / "drawn" / "val.json", args.labels)
    build_store(folder / "drawn" / "val.json", folder / "many.store")
    study = tiny_study(folder, **study_values(args))
    images = TestImages(folder / "many.store", data.images, 64, 96, channels_last=True)
    torch.manual_seed(0)
    set_precision("fp32")
    with emulated_gpu() as gpu:
        with gpu.phase("prepare"):
            model = MaskRcnn(BACKBONES["r50"], args.labels + 1, study.model).eval()
            model = model.to(GPU, memory_format=torch.channels_last)
        detector = Detector(model, images, GPU, study.inference)
        for count in (1, args.images):
            batch = images[range(count)].pin_memory()
            with gpu.phase("batch"):
                found = detector.detections(batch, range(count))
    assert [len(one) for one in found] == [args.detections] * args.images
    return gpu.phases


def with_categories(path: Path, count: int) -> None:
    """Add categories that no image has to an annotation file."""
    dataset = json.loads(path.read_text())
    last = dataset["categories"][-1]
    more = range(len(dataset["categories"]) + 1, count + 1)
    dataset["categories"] += [{**last, "id": last["id"] + number, "name": f"category {number}"} for number in more]
    path.write_text(json.dumps(dataset))


def as_json(phase: "Phase") -> dict[str, Any]:
    """A phase with its totals."""
    return {
        "phase": phase.name,
        **{kind: phase.count(kind) for kind in KINDS},
        "lines": [[*of, times] for of, times in phase.seen.most_common()],
    }


def report(phase: dict[str, Any], most_lines: int) -> str:
    """The totals of a phase, kernels by file, and what asks for most of each kind; kernels without their names."""
    totals = ", ".join(f"{phase[kind]:,} {kind}" for kind in KINDS[:-1] if phase[kind])
    text = [f"== {phase['phase']}: {totals or 'nothing'}"]
    files: Counter[str] = Counter()
    for kind, _, line, times in phase["lines"]:
        if kind == "kernel":
            files["gradients" if "(gradient" in line else line.split(":")[0]] += times
    text += [f"   kernels: {', '.join(f'{file} {times:,}' for file, times in files.most_common())}"] if files else []
    for kind in KINDS:
        rows: Counter[str] = Counter()
        for of, what, line, times in phase["lines"]:
            if of == kind:
                rows[line if kind == "kernel" else f"{what}  {line}"] += times
        text += [f"{times:10,} {kind}  {row}" for row, times in rows.most_common(most_lines)]
    return "\n".join(text)


def main() -> None:
    """Start again beneath the stub, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "infer"))
    parser.add_argument("--groups", type=int, default=8, help="normalisation groups of 2 images a step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--groups-at-once", type=int, help="of a pass; all where not given")
    parser.add_argument("--common-canvas", action="store_true")
    parser.add_argument("--landscape", action="store_true", help="train on images of one orientation")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--clip-norm", type=float)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--images", type=int, default=8, help="of a batch of inference")
    parser.add_argument("--labels", type=int, default=1230, help="of inference")
    parser.add_argument("--detections", type=int, default=300, help="of an image")
    parser.add_argument("--masks", choices=("all", "scored"), default="all")
    parser.add_argument("--most-lines", type=int, default=25, help="of a kind in a phase")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, too")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="emulated-gpu-"))
    try:
        if HAS_STUB not in os.environ:
            command = [sys.executable, "-m", "tests.emulated_gpu", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=stub_environment(folder), check=False).returncode)
        phases = [as_json(phase) for phase in {"train": train, "infer": infer}[args.what](args, folder)]
        print("\n".join(report(phase, args.most_lines) for phase in phases))
        if args.json:
            args.json.write_text(json.dumps(phases))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
