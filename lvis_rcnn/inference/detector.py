"""A trained network and its detections, in pixels of the original images, as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from lvis_rcnn.config.schema import Calibration, Inference
from lvis_rcnn.config.study import Study
from lvis_rcnn.dataloader.batches import Batch, TestImages
from lvis_rcnn.dataset.detections import Detections
from lvis_rcnn.dataset.statistics import statistics_for
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.evaluation.calibration import logit_shifts
from lvis_rcnn.inference.paste import pasted_crops, run_length_texts
from lvis_rcnn.model.mask_rcnn import PRECISIONS, MaskRcnn, detect, set_precision
from lvis_rcnn.model.postprocess import ImageDetections
from lvis_rcnn.model.weights import load_trained
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.checkpoint import on_cpu

MASKS = {
    "all": "all",
    "scored": "scored: only of categories that are known to be in the image or not, which are all that AP depends on",
}


def boxes_in_original(
    boxes_xyxy: Float[torch.Tensor, "d 4"], size_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Float[torch.Tensor, "d 4"]:
    """Boxes in the network's frame, rescaled to pixels of the original image, each axis by its own factor."""
    scale = boxes_xyxy.new_tensor([size_hw[1] / original_hw[1], size_hw[0] / original_hw[0]] * 2)
    return boxes_xyxy / scale


def scored_labels(store: AnnotationStore, image: int) -> Int64[np.ndarray, " k"]:
    """Labels that are known to be in the image at this index of the store or not: the only ones that are scored."""
    labels = np.concatenate([store.labels[store.annotations_of(image)], store.negatives_of(image)])
    return np.unique(labels).astype(np.int64)


def on_host(per_image: Sequence[ImageDetections]) -> list[ImageDetections]:
    """The same with all but the masks in CPU memory; the host waits once for a GPU."""
    copies = on_cpu([(found.boxes_xyxy, found.labels, found.scores, found.mask_rows) for found in per_image])
    return [
        ImageDetections(boxes, labels, scores, rows, found.mask_logits)
        for (boxes, labels, scores, rows), found in zip(copies, per_image, strict=True)
    ]


def image_detections(
    image_id: int,
    detections: ImageDetections,
    boxes_xyxy: Float[torch.Tensor, "d 4"],
    original_hw: tuple[int, int],
    category_ids: Int64[np.ndarray, " c"],
) -> Detections:
    """Detections of one image as flat arrays; ``boxes_xyxy`` and masks in pixels of the original image.

    ``detections`` are those of :func:`on_host`. ``category_ids[label - 1]`` is the id in the annotation file.
    """
    probabilities = detections.mask_logits.float().sigmoid()
    crops = pasted_crops(probabilities, boxes_xyxy[detections.mask_rows], original_hw)
    offsets, counts = run_length_texts(crops, len(probabilities), original_hw)
    rows, boxes = detections.mask_rows.numpy(), boxes_xyxy.numpy()
    lengths = np.zeros(len(boxes), np.int64)
    lengths[rows] = np.diff(offsets)
    return Detections(
        image_ids=np.full(len(boxes), image_id, dtype=np.int64),
        category_ids=category_ids[detections.labels.numpy() - 1],
        scores=detections.scores.float().numpy(),
        boxes_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32),
        mask_sizes=np.full((len(boxes), 2), original_hw, np.int32),
        rle_offsets=np.concatenate([[0], lengths.cumsum()]),
        rle_counts=counts,
        has_mask=lengths > 0,
    )


@dataclass(frozen=True)
class Detector:
    """A trained network on its device, the images it is tested on, and the settings."""

    model: MaskRcnn
    images: TestImages
    device: torch.device
    test: Inference
    shifts: Float[torch.Tensor, " k"] | None = None
    """As :func:`class_shifts`."""

    def detect(self, batch: Batch, positions: Sequence[int]) -> list[ImageDetections]:
        """Detections in the network's frame; ``positions`` are the indices of the batch's images in the store."""
        mask_labels = None
        if self.test.masks == "scored":
            mask_labels = [torch.from_numpy(scored_labels(self.images.store, image)) for image in positions]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.test.precision == "bf16"):
            return detect(self.model, batch.to(self.device), self.test, mask_labels, self.shifts)

    @torch.inference_mode()
    def detections(self, batch: Batch, positions: Sequence[int]) -> list[Detections]:
        """The same in pixels of the original images, as flat arrays."""
        category_ids = np.array([category.id for category in self.images.store.categories], dtype=np.int64)
        per_image = on_host(self.detect(batch, positions))
        boxes = [
            boxes_in_original(detections.boxes_xyxy, *sizes)
            for detections, *sizes in zip(per_image, batch.sizes_hw, batch.original_sizes_hw, strict=True)
        ]
        return [
            image_detections(*image, category_ids)
            for image in zip(batch.image_ids, per_image, boxes, batch.original_sizes_hw, strict=True)
        ]


def class_shifts(
    settings: Calibration | None, table: Path | None, names: Sequence[str], model: MaskRcnn, device: torch.device
) -> Float[torch.Tensor, " k"] | None:
    """What calibration adds to the logits of background, first, and categories; None where scores stay as they are.

    Args:
        settings: the study's ``inference.calibration``.
        table: what the step ``calibrate`` wrote of the split that the model was trained on.
        names: of the model's categories.
        model: the network.
        device: of its logits.

    Raises:
        InputError: one of settings and table is given without the other, the table is of other categories, or the model
            is no softmax over background and categories.
    """
    if settings is None and table is None:
        return None
    if settings is None or table is None:
        what = "is needed for inference.calibration" if settings else "is given, but the settings have no calibration"
        fix = "write it with python -m lvis_rcnn calibrate" if settings else "leave it out, or name a study that has"
        raise InputError("--calibration", what, allowed="both or neither", fix=fix)
    classification = model.settings.classification
    if classification != "softmax":
        what = f"is undefined for this model, whose classification is {classification}"
        raise InputError("inference.calibration", what, allowed="null", fix="leave it out, or name another model")
    shifts = logit_shifts(settings, statistics_for(table, names))
    return torch.tensor([0.0, *shifts.tolist()], device=device)


def make_detector(
    study: Study,
    backbone: str,
    model_path: Path,
    store_path: Path,
    images_dir: Path,
    device: torch.device,
    calibration: Path | None = None,
) -> Detector:
    """The trained network on its device with a study's test settings.

    ``calibration`` is the table of :func:`class_shifts`; InputError as there and as :func:`load_trained`.
    """
    torch.set_num_threads(study.compute.threads)
    test, on_gpu = study.inference, device.type == "cuda"
    set_precision(test.precision)
    images = TestImages(store_path, images_dir, test.short_edge_px, test.long_edge_px, channels_last=on_gpu)
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    names = [category.name for category in images.store.categories]
    model = load_trained(study.model, backbone, model_path, images.store)
    shifts = class_shifts(test.calibration, calibration, names, model, device)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    return Detector(model, images, device, test, shifts)


def conditions(study: Study, device: torch.device) -> dict[str, Any]:
    """Device, threads, precision and image size of inference, as recorded."""
    test = study.inference
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": study.compute.threads,
        "precision": PRECISIONS[test.precision],
        "resolution": f"short edge {test.short_edge_px} px, long edge at most {test.long_edge_px} px",
    }
