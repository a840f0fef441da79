"""Inference beside torchvision's stock Mask R-CNN, split into the network and what follows it.

    python tests/benchmarks/inference_and_torchvision.py [--weights FILE] [--size 800 1067] [--threads 1] [--repeats 1]

Weights, images and the two states of the label scores are those of network_and_torchvision.py: 1230 categories,
threshold 1e-4, up to 300 detections. ``--weights`` keeps the weights, which take minutes to fit, from one call to the
next. Both sides end with the run-length encoded masks of one image: what a results file holds. Post-processing is
everything but convolutions, linear layers and RoIAlign: scores to candidates, decoding, NMS, pasting, encoding (on our
side by inference.detector, on the other by torchvision's ``paste_masks_in_image``, a threshold and pycocotools).

Each figure comes from a process of its own; the second of two images counts. Printed are CPU seconds an image and peak
resident memory, medians of the repeats, and the ratios of torchvision's to ours.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torchvision.models.detection import roi_heads as stock_roi_heads

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.benchmarks.network_and_torchvision as shared
from lvis_rcnn.inference import detector
from lvis_rcnn.model import mask_rcnn, postprocess


class Stopwatch:
    """CPU seconds of stages; a stage that another one interrupts does not count its time."""

    def __init__(self) -> None:
        self.seconds = {"network": 0.0, "nms": 0.0, "masks": 0.0}
        self.stages = ["network"]
        self.since = time.process_time()

    def book(self) -> None:
        """Count what has passed for the stage that runs."""
        now = time.process_time()
        self.seconds[self.stages[-1]] += now - self.since
        self.since = now

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count calls of ``owner.name`` as ``stage``."""
        function = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            self.book()
            self.stages.append(stage)
            try:
                return function(*given, **named)
            finally:
                self.book()
                self.stages.pop()

        setattr(owner, name, timed)


def our_inference(watch: Stopwatch, state: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One image through this project."""
    model, batch = shared.ours(state, "r50").eval(), shared.scenes_for_ours(1)
    heads = model.roi_heads
    watch.wrap(mask_rcnn, "proposals", "nms")
    watch.wrap(mask_rcnn, "detect_boxes", "nms")
    watch.wrap(postprocess, "region_features", "network")
    for layer in (heads.box_head, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        watch.wrap(layer, "forward", "network")
    watch.wrap(detector, "image_detections", "masks")
    category_ids = np.arange(1, shared.CATEGORIES + 1)

    @torch.inference_mode()
    def infer() -> None:
        (found,) = mask_rcnn.detect(model, batch, shared.TEST)
        detector.image_detections(0, found, found.boxes_xyxy, shared.size_hw, category_ids)

    return infer


def stock_inference(watch: Stopwatch, state: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The same through torchvision."""
    model = shared.stock(state, "r50").eval()
    images, _ = shared.scenes_for_stock(1, model)
    watch.wrap(model.rpn, "filter_proposals", "nms")
    watch.wrap(model.roi_heads, "postprocess_detections", "nms")
    watch.wrap(stock_roi_heads, "maskrcnn_inference", "masks")
    watch.wrap(model.transform, "postprocess", "masks")
    encoder = argparse.Namespace(encode=encoded)
    watch.wrap(encoder, "encode", "masks")

    @torch.inference_mode()
    def infer() -> None:
        encoder.encode(model(images)[0]["masks"])

    return infer


def encoded(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Run lengths of torchvision's masks, as its reference evaluation makes them."""
    bitmaps = masks.numpy() >= 0.5
    return [rle.encode(np.array(mask[0, :, :, None], dtype=np.uint8, order="F"))[0] for mask in bitmaps]


def measure(which: str, scores: str, threads: int, weights_file: Path) -> dict[str, float]:
    """In this process: one warm-up, then one measured image."""
    torch.set_num_threads(threads)
    state = shared.sharpened(torch.load(weights_file, weights_only=True), scores)
    watch = Stopwatch()
    infer = {"ours": our_inference, "stock": stock_inference}[which](watch, state)
    del state
    infer()
    watch.seconds = dict.fromkeys(watch.seconds, 0.0)
    watch.since = time.process_time()
    infer()
    watch.book()
    seconds = watch.seconds
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    after = seconds["nms"] + seconds["masks"]
    return {**seconds, "post-processing": after, "whole": seconds["network"] + after, "peak GB": peak_gb}


def in_own_process(args: argparse.Namespace, which: str, scores: str, weights_file: Path) -> dict[str, float]:
    """:func:`measure` in a fresh process."""
    words = ["--measure", which, scores, "--weights", str(weights_file), "--threads", str(args.threads)]
    words += ["--size", *map(str, args.size)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(args: argparse.Namespace, weights_file: Path) -> None:
    """Measure in turns, print one table."""
    if not weights_file.exists():
        torch.set_num_threads(args.threads)
        torch.save(shared.weights("r50"), weights_file)
    height, width = args.size
    print(f"r50, {shared.CATEGORIES} categories, {height} x {width} pixels, threads {args.threads}; CPU s an image")
    for scores in args.scores:
        runs: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
        for _ in range(args.repeats):
            for which, found in runs.items():
                found.append(in_own_process(args, which, scores, weights_file))
        rows = {
            which: {key: statistics.median(one[key] for one in found) for key in found[0]}
            for which, found in runs.items()
        }
        rows["ratio"] = {key: rows["stock"][key] / max(rows["ours"][key], 1e-9) for key in rows["ours"]}
        print("".join([f"{'':18}", *(f"{key:>17}" for key in rows["ours"])]))
        for which, row in rows.items():
            print(f"{scores} {which}".ljust(18) + "".join(f"{value:17.3f}" for value in row.values()), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="keep the fitted weights here, or take them")
    parser.add_argument("--size", type=int, nargs=2, default=shared.size_hw, metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--scores", choices=shared.SHARPNESS, nargs="+", default=list(shared.SHARPNESS))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shared.size_hw = tuple(args.size)
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.measure[1], args.threads, args.weights)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, args.weights or Path(folder, "weights.pth"))


if __name__ == "__main__":
    main()
