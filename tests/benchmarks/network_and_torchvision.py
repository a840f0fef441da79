"""Time and memory of this network beside torchvision's stock Mask R-CNN: same weights, same images, 1230 categories.

    python tests/benchmarks/network_and_torchvision.py [--backbone r50] [--threads 2] [--repeats 3] [--size 800 1067]

R-50-FPN on the CPU in float32; images of 800 x 1067 pixels (a COCO image of 480 x 640 at test size), or of another
size, with 12 objects each, the mean of LVIS. A training step is losses, backward and SGD on two images; inference is
one image, up to 300 detections above 1e-4, masks pasted to the image. Each figure comes from a process of its own, and
the two implementations take turns. Printed are CPU and wall seconds an image (medians of the repeats), the peak
resident memory, how much of it is above the memory before the first image (weights and libraries), and the ratios of
ours to torchvision's.

The proposal head has been fitted to the scenes, so that proposals lie on objects as a trained network's do (about 65
positive regions an image); all other weights are random. Two states of the label scores are measured, since they decide
how many candidates NMS meets: ``trained`` (a softmax about as sharp as a trained network's) and ``untrained`` (uniform:
all 1.2 million pairs of region and label are above 1e-4).
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

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.config.schema import BACKBONES, Inference, Model
from lvis_rcnn.dataloader.batches import Batch, Target
from lvis_rcnn.dataloader.masks import mask_crops
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.inference.detector import image_detections
from lvis_rcnn.model.mask_rcnn import MaskRcnn, detect, losses
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.model.rpn import rpn_losses

CATEGORIES = 1230
size_hw = (800, 1067)
OBJECTS = 12
SETTINGS = Model(weights="imagenet", normalization="fixed_batch", frozen_stages=1)
TEST = Inference(short_edge_px=800, long_edge_px=1333, score_threshold=1e-4, detections_per_image=300)

# Label weights over their initial ones: a region then has about 17, or all 1230, labels above 1e-4.
SHARPNESS = {"trained": 150.0, "untrained": 1.0}
FIT_STEPS = 150


def weights(backbone: str) -> dict[str, torch.Tensor]:
    """Our state dict: random, but for a proposal head that has seen the scenes, so that proposals lie on objects.

    Only its last layers are fitted, on features that stay: this takes two minutes.
    """
    torch.manual_seed(0)
    model = MaskRcnn(BACKBONES[backbone], CATEGORIES + 1, SETTINGS)
    for name, value in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(value, 0.2)  # activations neither die nor grow
    batch, head = scenes_for_ours(2), model.rpn.head
    with torch.no_grad():
        features = list(model.eval().backbone(batch.pixels).values())
    optimizer = torch.optim.Adam([*head.cls_logits.parameters(), *head.bbox_pred.parameters()], lr=0.01)
    choose = random_choice(torch.Generator().manual_seed(0))
    truths, canvases_hw = [target.boxes_xyxy for target in batch.targets], [padded_size_hw(size_hw)] * 2
    for _ in range(FIT_STEPS):
        descend(optimizer, list(rpn_losses(model.rpn, features, truths, canvases_hw, 256, choose).values()))
    fitted = {name: value for name, value in model.state_dict().items() if name.startswith("rpn.head.")}
    torch.manual_seed(0)
    state = MaskRcnn(BACKBONES[backbone], CATEGORIES + 1, SETTINGS).state_dict()
    return {**state, **{name: value for name, value in model.state_dict().items() if "bn3" in name}, **fitted}


def sharpened(state: dict[str, torch.Tensor], scores: str) -> dict[str, torch.Tensor]:
    """The state with label scores of one of ``SHARPNESS``."""
    name = "roi_heads.box_predictor.cls_score.weight"
    return {**state, name: state[name] * SHARPNESS[scores]}


def ours(state: dict[str, torch.Tensor], backbone: str) -> MaskRcnn:
    """This project's network."""
    model = MaskRcnn(BACKBONES[backbone], CATEGORIES + 1, SETTINGS)
    model.load_state_dict(state)
    return model


def stock(state: dict[str, torch.Tensor], backbone: str) -> MaskRCNN:
    """torchvision's network as it comes, but for the sizes of the recipe; unused background rows are zero."""
    row = BACKBONES[backbone]
    body = ResNet(
        Bottleneck,
        list(row.blocks),
        groups=row.groups,
        width_per_group=row.width_per_group,
        norm_layer=FrozenBatchNorm2d,
    )
    for part in (body.conv1, body.bn1, body.layer1):
        part.requires_grad_(False)
    layers = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
    model = MaskRCNN(
        BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 256),
        CATEGORIES + 1,
        min_size=size_hw[0],
        max_size=1333,
        rpn_post_nms_top_n_train=SETTINGS.proposals_after_nms,
        box_score_thresh=TEST.score_threshold,
        box_detections_per_img=TEST.detections_per_image,
    )
    padded = dict(state)
    for name, rows in (("box_predictor.bbox_pred", 4), ("mask_predictor.mask_fcn_logits", 1)):
        for kind in ("weight", "bias"):
            value = padded[f"roi_heads.{name}.{kind}"]
            padded[f"roi_heads.{name}.{kind}"] = torch.cat([value.new_zeros(rows, *value.shape[1:]), value])
    wanted = model.state_dict()
    model.load_state_dict({name: padded[name] for name in wanted})
    return model


def scene(seed: int) -> tuple[torch.Tensor, np.ndarray, list[list[np.ndarray]], torch.Tensor]:
    """Pixels of N(0, 1), smooth; boxes (xyxy), outlines and labels of objects of 20 to 400 pixels."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(1, 3, 25, 34)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, size_hw, mode="bicubic")[0] * 0.3
    sides = np.exp(random.uniform(np.log(20), np.log(400), (OBJECTS, 2)))
    corners = random.uniform(0, 1, (OBJECTS, 2)) * (np.array(size_hw[::-1]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.5 + 0.5
    outlines = [[(corner + circle * side).reshape(-1)] for corner, side in zip(corners, sides, strict=True)]
    labels = torch.from_numpy(random.integers(1, CATEGORIES + 1, OBJECTS))
    for x0, y0, x1, y1 in boxes.astype(int):
        pixels[:, y0:y1, x0:x1] = torch.from_numpy(random.normal(size=(3, 1, 1)).astype(np.float32)) * 2
    return pixels, boxes.astype(np.float32), outlines, labels


def scenes_for_ours(count: int) -> Batch:
    """Scenes as our loader gives them: padded, masks as crops."""
    pixels, targets = torch.zeros(count, 3, *padded_size_hw(size_hw)), []
    for seed, place in enumerate(pixels):
        scene_pixels, boxes, outlines, labels = scene(seed)
        place[:, : size_hw[0], : size_hw[1]] = scene_pixels
        targets.append(Target(torch.from_numpy(boxes), labels, mask_crops(outlines, size_hw, size_hw, False)))
    return Batch(pixels, [size_hw] * count, [size_hw] * count, list(range(count)), targets)


def scenes_for_stock(count: int, model: MaskRCNN) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The same scenes for torchvision's transform, which normalises; masks as bitmaps."""
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (model.transform.image_mean, model.transform.image_std)
    )
    images, targets = [], []
    for seed in range(count):
        pixels, boxes, outlines, labels = scene(seed)
        crops = mask_crops(outlines, size_hw, size_hw, False)
        masks = torch.zeros(OBJECTS, *size_hw, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1), start, end in zip(
            masks, crops.frames_xyxy.tolist(), crops.offsets[:-1], crops.offsets[1:], strict=True
        ):
            mask[y0:y1, x0:x1] = crops.pixels[start:end].reshape(y1 - y0, x1 - x0)
        images.append(pixels * std + mean)
        targets.append({"boxes": torch.from_numpy(boxes), "labels": labels, "masks": masks})
    return images, targets


def our_work(mode: str, state: dict[str, torch.Tensor], backbone: str) -> Callable[[], None]:
    """One training step or one inference of this project."""
    model = ours(state, backbone)
    if mode == "train":
        batch, optimizer = scenes_for_ours(2), sgd(model.train())

        def step() -> None:
            parts = losses(model, batch, random_choice(torch.Generator().manual_seed(0)))
            descend(optimizer, list(parts.values()))

        return step
    batch = scenes_for_ours(1)
    model.eval()

    def infer() -> None:
        (found,) = detect(model, batch, TEST)
        image_detections(0, found, found.boxes_xyxy, size_hw, np.arange(1, CATEGORIES + 1))

    return infer


def stock_work(mode: str, state: dict[str, torch.Tensor], backbone: str) -> Callable[[], None]:
    """The same of torchvision."""
    model = stock(state, backbone)
    if mode == "train":
        (images, targets), optimizer = scenes_for_stock(2, model), sgd(model.train())
        return lambda: descend(optimizer, list(model(images, targets).values()))
    images, _ = scenes_for_stock(1, model)
    model.eval()

    def infer() -> None:
        with torch.no_grad():
            (found,) = model(images)
        _ = found["masks"] >= 0.5

    return infer


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer at a rate that leaves the weights about as they are."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9, weight_decay=1e-4)


def descend(optimizer: torch.optim.Optimizer, parts: list[torch.Tensor]) -> None:
    """One optimizer step on the sum of the losses."""
    optimizer.zero_grad(set_to_none=True)
    torch.stack(parts).sum().backward()
    optimizer.step()


def measure(which: str, mode: str, scores: str, backbone: str, threads: int, weights_file: Path) -> dict[str, float]:
    """In this process: one warm-up, then one measured run."""
    torch.set_num_threads(threads)
    state = sharpened(torch.load(weights_file, weights_only=True), scores)
    work = {"ours": our_work, "stock": stock_work}[which](mode, state, backbone)
    del state
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    work()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = 2 if mode == "train" else 1
    return {
        "cpu_s": cpu_s / images,
        "wall_s": wall_s / images,
        "peak_gb": peak_kb / 2**20,
        "above_gb": (peak_kb - before_kb) / 2**20,
    }


def in_own_process(*words: str) -> dict[str, float]:
    """:func:`measure` in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--measure", *words], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Command line."""
    global size_hw
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="r50")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scores", choices=SHARPNESS, nargs="+", default=list(SHARPNESS))
    parser.add_argument("--size", type=int, nargs=2, default=size_hw, metavar=("H", "W"), help="pixels of an image")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size_hw = tuple(args.size)
    if args.measure:
        which, mode, scores, backbone, threads, file = args.measure
        print(json.dumps(measure(which, mode, scores, backbone, int(threads), Path(file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(args.threads)
        torch.save(weights(args.backbone), file := Path(folder, "weights.pth"))
        compare(args, file)


def compare(args: argparse.Namespace, weights_file: Path) -> None:
    """Measure in turn, print one table."""
    print(f"{args.backbone}, {CATEGORIES} categories, {size_hw[0]} x {size_hw[1]} pixels, {args.threads} threads")
    print(f"{'':24}{'CPU s/image':>14}{'wall s/image':>14}{'peak GB':>10}{'above GB':>10}")
    for mode in ("train", "infer"):
        for scores in args.scores if mode == "infer" else args.scores[:1]:
            runs: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
            for _ in range(args.repeats):
                for which, found in runs.items():
                    words: tuple[str, ...] = (which, mode, scores, args.backbone, str(args.threads), str(weights_file))
                    words += ("--size", *map(str, args.size))
                    found.append(in_own_process(*words))
            median = {
                which: {key: statistics.median(one[key] for one in found) for key in found[0]}
                for which, found in runs.items()
            }
            median["ratio"] = {key: median["ours"][key] / median["stock"][key] for key in median["ours"]}
            for which, row in median.items():
                print(
                    f"{mode} {scores} {which}".ljust(24)
                    + f"{row['cpu_s']:14.2f}{row['wall_s']:14.2f}{row['peak_gb']:10.2f}{row['above_gb']:10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
