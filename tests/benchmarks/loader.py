"""Images a second and core of this loader beside torchvision's reference pipeline and MMDetection's order of work.

    python tests/benchmarks/loader.py --images PHOTOS --annotations PHOTOS/annotations/photos_train.json
        [--repeats 3] [--limit N]

``--images`` is a folder as a study names it (``train2017/``, ``val2017/`` or their zips), ``--annotations`` LVIS-form
JSON of it. One process, one thread. Every implementation turns the file of an image into what a network is trained on,
at the six short edges of the recipe and flipped at random, drawn once for all; they take turns at each image, the first
one another each time.

    ours         ``data.TrainingSteps``, a group of one image, and what the process of the network does with its bytes
    mmdetection  LoadImageFromFile to DetDataPreprocessor written out: decode, rescale, draw every polygon as a whole
                 bitmap, rescale the bitmaps, flip, normalise, pad
    torchvision  references/detection with v2: CocoDetection, masks of polygons, RandomShortestSize,
                 RandomHorizontalFlip, float, boxes sanitised; then normalised as its network does, not yet padded
    tv_tensor    the same with that reference's backend for tensors in place of Pillow's

Images without annotation are left out. Ours and ``mmdetection`` are compared in the warm-up: boxes, labels, every
pixel of the image and of every mask are equal. Printed are CPU ms an image (median of the repeats, each a mean over
the images), the smallest and largest repeat, images a second and core, and how many times faster ours is (smallest and
largest repeat).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from pycocotools import mask as rle
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.config.schema import Augmentation
from lvis_rcnn.dataloader.batches import Batch, TrainingSteps
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataloader.transforms import rescaled_size_hw
from lvis_rcnn.dataset.store import build_store, open_store
from tests.helpers.bitmaps import pasted

SHORT_EDGES_PX = (640, 672, 704, 736, 768, 800)
LONG_EDGE_PX = 1333


class Draw(NamedTuple):
    """What is done with an image in one repeat."""

    image: int
    short_edge_px: int
    flip: bool


def augmentation(short_edges_px: tuple[int, ...], flip_probability: float) -> Augmentation:
    """The recipe's but for these."""
    return Augmentation(short_edges_px=short_edges_px, long_edge_px=LONG_EDGE_PX, flip_probability=flip_probability)


class Ours:
    """This project's loader; what it would draw is given to it."""

    def __init__(self, store_path: Path, images_dir: Path) -> None:
        store = open_store(store_path)
        portrait = np.asarray(store.widths < store.heights)
        stream = SampleStream(np.ones(store.num_images), "ceil", portrait, 0, group_size=1, groups_per_step=1)
        self.steps = TrainingSteps(store_path, images_dir, stream, augmentation(SHORT_EDGES_PX, 0.5))

    def __call__(self, draw: Draw) -> Batch:
        self.steps.augmentation = augmentation((draw.short_edge_px,), float(draw.flip))
        return self.steps.read_group([draw.image], step=0, number=0).to(torch.device("cpu"))


class MMDetection:
    """The operations of MMDetection 3.3.0's pipeline in their order, on annotations that are already in memory."""

    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]

    def __init__(self, content: dict[str, Any], paths: list[Path]) -> None:
        self.images, self.paths = content["images"], paths
        self.annotations = annotations_by_image(content)
        self.label_of = {category["id"]: label for label, category in enumerate(content["categories"], start=1)}

    def __call__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        image = mmcv.imfrombytes(self.paths[draw.image].read_bytes(), flag="color")
        height, width = image.shape[:2]
        found = [one for one in self.annotations[draw.image] if is_used(one, height, width)]
        masks = [bitmap(one["segmentation"], height, width) for one in found]
        new_h, new_w = rescaled_size_hw(height, width, draw.short_edge_px, LONG_EDGE_PX)
        image = mmcv.imresize(image, (new_w, new_h), interpolation="bilinear")
        boxes = np.array([corners(one["bbox"]) for one in found], np.float32).reshape(-1, 4)
        boxes *= np.array([new_w / width, new_h / height] * 2, np.float32)
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, new_w)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, new_h)
        masks = [mmcv.imresize(mask, (new_w, new_h), interpolation="nearest") for mask in masks]
        if draw.flip:
            image = mmcv.imflip(image)
            boxes[:, [0, 2]] = new_w - boxes[:, [2, 0]]
            masks = [mmcv.imflip(mask) for mask in masks]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        pixels = (pixels[[2, 1, 0]].float() - self.mean) / self.std
        margins = (0, -new_w % 32, 0, -new_h % 32)
        pixels = torch.nn.functional.pad(pixels, margins)
        padded = [mmcv.impad(mask, shape=pixels.shape[1:], pad_val=0) for mask in masks]
        bitmaps = np.stack(padded) if padded else np.zeros((0, *pixels.shape[1:]), np.uint8)
        labels = torch.tensor([self.label_of[one["category_id"]] for one in found], dtype=torch.int64)
        return pixels, torch.from_numpy(boxes), labels, torch.from_numpy(bitmaps)


def annotations_by_image(content: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Annotations of each image, in the order of the file."""
    of_id: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        of_id[one["image_id"]].append(one)
    return [of_id[image["id"]] for image in content["images"]]


def is_used(one: dict[str, Any], height: int, width: int) -> bool:
    """Whether LVISDataset.parse_data_info keeps an annotation."""
    x, y, w, h = one["bbox"]
    inside = (min(x + w, width) - max(x, 0)) * (min(y + h, height) - max(y, 0))
    return bool(inside != 0 and one["area"] > 0 and w >= 1 and h >= 1)


def corners(box_xywh: list[float]) -> list[float]:
    """xyxy."""
    x, y, w, h = box_xywh
    return [x, y, x + w, y + h]


def bitmap(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """An object at the size of the image."""
    found: np.ndarray = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))
    return found


class Torchvision:
    """``references/detection`` with ``--use-v2``: get_coco and DetectionPresetTrain, at a given edge and flip."""

    def __init__(self, root: Path, annotations: Path, backend: str) -> None:
        self.dataset = wrap_dataset_for_transforms_v2(
            CocoDetection(str(root), str(annotations)), target_keys=("boxes", "labels", "masks")
        )
        self.backend = backend

    def __call__(self, draw: Draw) -> Any:
        return self.transform(draw)(*self.dataset[draw.image])

    def transform(self, draw: Draw) -> v2.Compose:
        """Its transforms with what they would draw."""
        first, last = ([v2.ToImage()], []) if self.backend == "tv_tensor" else ([], [v2.ToImage()])
        return v2.Compose(
            [
                *first,
                v2.RandomShortestSize(min_size=(draw.short_edge_px,), max_size=LONG_EDGE_PX),
                v2.RandomHorizontalFlip(p=float(draw.flip)),
                *last,
                v2.ToDtype(torch.float, scale=True),
                v2.ConvertBoundingBoxFormat("XYXY"),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )


def require_equal(ours: Batch, theirs: tuple[torch.Tensor, ...]) -> None:
    """Every bit of image, boxes, labels and masks."""
    pixels, boxes, labels, masks = theirs
    (target,), (size_hw,) = ours.targets, ours.sizes_hw
    assert torch.equal(ours.pixels[0], pixels), "pixels differ"
    assert torch.equal(target.boxes_xyxy, boxes), "boxes differ"
    assert torch.equal(target.labels, labels), "labels differ"
    height, width = size_hw
    assert torch.equal(torch.from_numpy(pasted(target.masks, size_hw)), masks[:, :height, :width]), "masks differ"
    assert not masks[:, height:].any()
    assert not masks[:, :, width:].any()


def with_local_names(content: dict[str, Any], store_path: Path, images_dir: Path) -> tuple[dict[str, Any], list[Path]]:
    """The file as CocoDetection wants it: paths below the folder; and these paths. Images must lie in folders."""
    steps, store = Ours(store_path, images_dir).steps, open_store(store_path)
    paths = [steps.files.of(store, image).path for image in range(store.num_images)]
    images = [
        {**image, "file_name": str(path.relative_to(images_dir))}
        for image, path in zip(content["images"], paths, strict=True)
    ]
    return {**content, "images": images}, paths


def implementations(annotations: Path, images_dir: Path, folder: Path) -> dict[str, Callable[[Draw], Any]]:
    """The four, on the same images in the order of their ids, which is CocoDetection's.

    Images without annotation are left out, as torchvision's reference does.
    """
    content = json.loads(annotations.read_bytes())
    annotated = {one["image_id"] for one in content["annotations"]}
    content["images"] = sorted((i for i in content["images"] if i["id"] in annotated), key=lambda image: image["id"])
    sorted_file, named_file, store = folder / "sorted.json", folder / "named.json", folder / "images.store"
    sorted_file.write_text(json.dumps(content))
    build_store(sorted_file, store)
    named, paths = with_local_names(content, store, images_dir)
    named_file.write_text(json.dumps(named))
    return {
        "ours": Ours(store, images_dir),
        "mmdetection": MMDetection(content, paths),
        "torchvision": Torchvision(images_dir, named_file, "pil"),
        "tv_tensor": Torchvision(images_dir, named_file, "tv_tensor"),
    }


def draws(images: int, seed: int) -> list[Draw]:
    """One of each image."""
    random = np.random.default_rng(seed)
    return [Draw(image, int(random.choice(SHORT_EDGES_PX)), bool(random.random() < 0.5)) for image in range(images)]


def cpu_seconds(work: dict[str, Callable[[Draw], Any]], todo: list[Draw]) -> dict[str, float]:
    """CPU seconds an image of each implementation; at each image another one begins."""
    names, sums = list(work), dict.fromkeys(work, 0.0)
    for turn, draw in enumerate(todo):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.process_time()
            work[name](draw)
            sums[name] += time.process_time() - started
    return {name: total / len(todo) for name, total in sums.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        work = implementations(args.annotations, args.images, Path(folder))
        images = len(work["torchvision"].dataset)  # type: ignore[attr-defined]
        images = min(images, args.limit or images)
        for draw in draws(images, seed=0):
            require_equal(work["ours"](draw), work["mmdetection"](draw))
            work["torchvision"](draw)
        report(images, [cpu_seconds(work, draws(images, seed)) for seed in range(1, args.repeats + 1)])


def report(images: int, repeats: list[dict[str, float]]) -> None:
    """Print the table."""
    print(f"{images} images, {len(repeats)} repeats; ours and mmdetection: every bit equal")
    print(f"{'':14}{'CPU ms/image':>14}{'min-max':>16}{'images/s/core':>16}{'ours is faster':>18}")
    for name in repeats[0]:
        ms = sorted(1000 * one[name] for one in repeats)
        ratios = sorted(one[name] / one["ours"] for one in repeats)
        median = statistics.median(ms)
        print(
            f"{name:14}{median:14.1f}{f'{ms[0]:.1f}-{ms[-1]:.1f}':>16}{1000 / median:16.1f}"
            f"{f'{ratios[0]:.2f}-{ratios[-1]:.2f} x':>18}"
        )


if __name__ == "__main__":
    main()
