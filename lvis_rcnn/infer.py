"""Detections of a trained model on the validation images, streamed to disk as shards, and the inference speed.

Shards are written to a state folder as they are finished and keep what a kill would lose; a second start goes on
behind the last one. The clock is the page's (MMDetection, ``tools/benchmark.py`` of May 2020): batch 1, the first
images of each start not counted; inside are forward, NMS and pasting the masks to the original size on the host,
outside are reading and resizing the image and run-length encoding.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as rle
from torch.nn.functional import grid_sample
from tqdm import tqdm

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.checkpoints import load_model
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Study, load_study_for_step, settings_digest
from lvis_rcnn.data import Batch, TestImages, read_in_order
from lvis_rcnn.detections import Detections, concatenate, pack_rles, read_shard, shard_path, shards_of, write_shard
from lvis_rcnn.files import atomic_folder, sha256_of_file, sha256_of_json, write_json
from lvis_rcnn.finished_run import link
from lvis_rcnn.gradient_step import set_full_precision
from lvis_rcnn.model.detections import ImageDetections
from lvis_rcnn.model.mask_rcnn import MaskRcnn, detect
from lvis_rcnn.provenance import code_version, library_versions
from lvis_rcnn.train import network_settings, require_device

# Raised when a change of the code changes detections: older shards are then not reused.
INFERENCE_REVISION = 2

IMAGES_PER_SHARD = 64  # about 7 s at 10 images/s: little is lost by a kill
WARMUP_IMAGES = 5

FPS_DEFINITION = (
    "images a second at batch 1, fp32: forward, NMS, masks pasted to the original size on the host; "
    "without reading, resizing and run-length encoding"
)


@dataclass(frozen=True)
class Clock:
    """Times of one start: each image by the page's definition, and everything together."""

    image_s: list[float]
    whole_s: float
    images: int


def paste_mask(
    probabilities: Float[torch.Tensor, "28 28"], box_xyxy: Float[torch.Tensor, " 4"], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Bitmap of one mask at image size: bilinear at pixel centres inside the box's region, at least one half.

    MMDetection 3.3.0, ``fcn_mask_head.py`` (``_do_paste_mask`` with ``skip_empty``): the region is the box rounded
    outwards by one pixel, so no full-size float image is made.
    """
    x0, y0, x1, y1 = box_xyxy.tolist()
    left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
    right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
    bitmap = np.zeros((height, width), dtype=bool)
    columns = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
    rows = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    pasted = grid_sample(probabilities[None, None], grid[None].float(), align_corners=False)[0, 0]
    bitmap[top:bottom, left:right] = (pasted >= 0.5).numpy()
    return bitmap


def boxes_in_original(
    boxes_xyxy: Float[torch.Tensor, "d 4"], size_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Float[torch.Tensor, "d 4"]:
    """Boxes of the network's frame in pixels of the original image, each axis by its own factor."""
    scale = boxes_xyxy.new_tensor([size_hw[1] / original_hw[1], size_hw[0] / original_hw[0]] * 2)
    return boxes_xyxy / scale


def masks_of(
    found: ImageDetections, boxes_xyxy: Float[torch.Tensor, "d 4"], original_hw: tuple[int, int]
) -> list[Bool[np.ndarray, "h w"]]:
    """All masks of an image, pasted to its original size on the host."""
    probabilities = found.mask_logits.sigmoid().cpu()
    return [paste_mask(mask, box, *original_hw) for mask, box in zip(probabilities, boxes_xyxy.cpu(), strict=True)]


def image_detections(
    image_id: int,
    found: ImageDetections,
    boxes_xyxy: Float[torch.Tensor, "d 4"],
    masks: list[Bool[np.ndarray, "h w"]],
    category_ids: Int64[np.ndarray, " c"],
) -> Detections:
    """Detections of one image as flat arrays; ``category_ids[label - 1]`` is the id in the annotation file."""
    encoded = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    mask_sizes, rle_offsets, rle_counts = pack_rles(encoded)
    boxes = boxes_xyxy.cpu().numpy()
    return Detections(
        image_ids=np.full(len(boxes), image_id, dtype=np.int64),
        category_ids=category_ids[found.labels.cpu().numpy() - 1],
        scores=found.scores.cpu().numpy(),
        boxes_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32),
        mask_sizes=mask_sizes,
        rle_offsets=rle_offsets,
        rle_counts=rle_counts,
    )


def detect_timed(
    model: MaskRcnn, batch: Batch, original_hw: tuple[int, int], device: torch.device
) -> tuple[ImageDetections, Float[torch.Tensor, "d 4"], list[Bool[np.ndarray, "h w"]], float]:
    """Detections, their boxes and masks at original size, and the seconds by the page's definition."""
    synchronize(device)
    started = time.perf_counter()
    found = detect(model, batch.to(device))[0]
    boxes = boxes_in_original(found.boxes_xyxy, batch.sizes_hw[0], original_hw)
    masks = masks_of(found, boxes, original_hw)
    synchronize(device)
    return found, boxes, masks, time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def infer_shards(
    model: MaskRcnn, images: TestImages, shards_dir: Path, workers: int, device: torch.device, title: str
) -> None:
    """Write the shards that are missing; beside each its times, so that the speed survives a restart."""
    store = images.store
    shards = math.ceil(store.num_images / IMAGES_PER_SHARD)
    missing = [number for number in range(shards) if not shard_path(shards_dir, number).exists()]
    if len(missing) < shards:
        log.info("going on from shard %d of %d", missing[0] if missing else shards, shards)
    warmup = min(WARMUP_IMAGES, store.num_images - 1)
    # One reader for all shards: it reads ahead across their bounds.
    indices = [index for number in missing for index in images_of_shard(number, store)]
    batches = read_in_order(images, indices, workers, pinned=device.type == "cuda")
    with tqdm(total=store.num_images, desc=f"infer {title}", unit="image", disable=None) as bar:
        bar.update((shards - len(missing)) * IMAGES_PER_SHARD)
        for number in missing:
            skip = warmup if number == missing[0] else 0
            detections, clock = infer_images(model, store, images_of_shard(number, store), batches, device, skip, bar)
            write_json(shards_dir / f"shard-{number:05d}.clock.json", vars(clock))
            write_shard(shard_path(shards_dir, number), detections)


def images_of_shard(number: int, store: AnnotationStore) -> range:
    """Positions of the images of shard ``number``."""
    return range(number * IMAGES_PER_SHARD, min((number + 1) * IMAGES_PER_SHARD, store.num_images))


def infer_images(
    model: MaskRcnn,
    store: AnnotationStore,
    indices: range,
    batches: Iterator[Batch],
    device: torch.device,
    skip: int,
    bar: "tqdm[Any]",
) -> tuple[Detections, Clock]:
    """Detections of the images ``indices``, which come next in ``batches``; the first ``skip`` are not timed."""
    category_ids = np.array([category.id for category in store.categories], dtype=np.int64)
    parts, image_s = [], []
    started = time.perf_counter()
    for index in indices:
        batch = next(batches)
        original_hw = (int(store.heights[index]), int(store.widths[index]))
        found, boxes, masks, seconds = detect_timed(model, batch, original_hw, device)
        parts.append(image_detections(batch.image_ids[0], found, boxes, masks, category_ids))
        image_s.append(seconds)
        bar.update()
    whole_s = time.perf_counter() - started
    return concatenate(parts), Clock(image_s[skip:], whole_s, len(image_s))


def load_trained(study: Study, backbone: str, model_path: Path, store: AnnotationStore) -> MaskRcnn:
    """The trained network in evaluation mode.

    Raises:
        InputError: the model is not of this project, another backbone's, trained on other categories, or other
            settings.
    """
    state, meta = load_model(model_path)
    require_fit(str(model_path), backbone, meta, [category.name for category in store.categories])
    model = MaskRcnn(BACKBONES[backbone], store.num_labels, network_settings(study))
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(
            str(model_path),
            "its weights are those of another network",
            allowed=f"a model of the study's model.normalization, {study.model.normalization}",
            mend="train again, or name the model that was trained for this study",
        ) from None
    return model.eval()


def require_fit(where: str, backbone: str, meta: dict[str, Any], names: list[str]) -> None:
    """Refuse a model that was not trained for this backbone and these category names, in their order.

    Raises:
        InputError: says what it was trained for.
    """
    mend = "name the model that was trained for this study"
    if not {"backbone", "CLASSES"} <= set(meta):
        raise InputError(where, "says of itself nothing we know", allowed="a model.pth of lvis_rcnn.train", mend=mend)
    if meta["backbone"] != backbone:
        raise InputError(where, f"is a model of {meta['backbone']}", allowed=backbone, mend=mend)
    classes = list(meta["CLASSES"])
    if len(classes) != len(names):
        what = f"knows {len(classes)} categories"
        raise InputError(where, what, allowed=f"the {len(names)} of the annotations", mend=mend)
    for trained, name in zip(classes, names, strict=True):
        if trained != name:
            what = f"knows category {trained!r} in the place of {name!r}"
            raise InputError(where, what, allowed="the categories of the annotations, in their order", mend=mend)


def infer(
    study: Study, backbone: str, model_path: Path, store_path: Path, images_dir: Path, state_dir: Path, out_dir: Path
) -> None:
    """Write ``detections/`` and ``inference.json`` into ``out_dir``, from where an earlier start stopped.

    Unfinished work lives in a folder of ``state_dir`` named after the model, the settings and the annotations.
    """
    torch.set_num_threads(study.compute.threads)
    set_full_precision()
    device = torch.device(study.compute.device)
    test = study.inference
    on_gpu = device.type == "cuda"
    images = TestImages(store_path, images_dir, test.short_edge_px, test.long_edge_px, channels_last=on_gpu)
    model = load_trained(study, backbone, model_path, images.store)
    record = inference_record(study, images.store, sha256_of_file(model_path), device)
    identity = {"revision": INFERENCE_REVISION, **{key: record[key] for key in IDENTITY}}
    shards_dir = state_dir / f"infer-{sha256_of_json(identity)[:12]}"
    shards_dir.mkdir(parents=True, exist_ok=True)
    infer_shards(model.to(device), images, shards_dir, study.resources.loader_workers, device, backbone)
    export_shards(shards_dir, out_dir / "detections")
    detections = sum(len(read_shard(shard)) for shard in shards_of(out_dir / "detections"))
    write_json(out_dir / "inference.json", {**record, "detections": detections, **speed(shards_dir)})
    log.info("detected %d images with %s: %s", images.store.num_images, backbone, out_dir / "detections")


# What detections depend on: shards of another identity are never mixed in.
IDENTITY = ("settings_digest", "model_sha256", "annotations_sha256")


def inference_record(study: Study, store: AnnotationStore, model_sha256: str, device: torch.device) -> dict[str, Any]:
    """Everything that a reader of the table may ask about how a row was tested, but for the speed."""
    test = study.inference
    return {
        "format": "lvis_rcnn.inference",
        "version": 1,
        "study": study.study,
        "settings_digest": settings_digest(study, "infer"),
        "model_sha256": model_sha256,
        "annotations_sha256": store.annotations_sha256,
        "images": store.num_images,
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": study.compute.threads,
        "batch_size": 1,
        "precision": "fp32 without TF32",
        "resolution": f"short edge {test.short_edge_px} px, long edge at most {test.long_edge_px} px",
        "warmup_images": min(WARMUP_IMAGES, store.num_images - 1),
        "fps_definition": FPS_DEFINITION,
        "versions": library_versions(),
        "code_version": code_version(),
    }


def speed(shards_dir: Path) -> dict[str, float]:
    """Both speeds over all shards, whichever start wrote them."""
    clocks = [json.loads(path.read_text()) for path in sorted(shards_dir.glob("shard-*.clock.json"))]
    image_s = [seconds for clock in clocks for seconds in clock["image_s"]]
    images, whole_s = sum(clock["images"] for clock in clocks), sum(clock["whole_s"] for clock in clocks)
    return {"fps": len(image_s) / sum(image_s), "end_to_end_fps": images / whole_s}


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
    infer(study, args.backbone, args.model, args.store, args.images, state_dir, args.out)


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
