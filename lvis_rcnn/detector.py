"""A trained network and what it finds in an image, at original size, as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.checkpoints import load_model
from lvis_rcnn.command import InputError
from lvis_rcnn.config import Study
from lvis_rcnn.data import Batch, TestImages
from lvis_rcnn.detections import Detections
from lvis_rcnn.finished_run import PRECISIONS
from lvis_rcnn.gradient_step import set_full_precision
from lvis_rcnn.model.detections import ImageDetections
from lvis_rcnn.model.mask_rcnn import MaskRcnn, detect
from lvis_rcnn.paste import pasted_crops, run_length_texts
from lvis_rcnn.run_start import network_settings

MASKS = {
    "all": "all",
    "scored": "scored: only of categories that are known to be in the image or not, which are all that AP depends on",
}


def boxes_in_original(
    boxes_xyxy: Float[torch.Tensor, "d 4"], size_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Float[torch.Tensor, "d 4"]:
    """Boxes of the network's frame in pixels of the original image, each axis by its own factor."""
    scale = boxes_xyxy.new_tensor([size_hw[1] / original_hw[1], size_hw[0] / original_hw[0]] * 2)
    return boxes_xyxy / scale


def scored_labels(store: AnnotationStore, image: int) -> Int64[np.ndarray, " k"]:
    """Labels of which it is known whether the image at this position shows them: all that the protocol looks at."""
    negative = slice(*store.negative_offsets[image : image + 2].tolist())
    labels = np.concatenate([store.labels[store.annotations_of(image)], store.negative_labels[negative]])
    return np.unique(labels).astype(np.int64)


def image_detections(
    image_id: int,
    found: ImageDetections,
    boxes_xyxy: Float[torch.Tensor, "d 4"],
    original_hw: tuple[int, int],
    category_ids: Int64[np.ndarray, " c"],
) -> Detections:
    """Detections of one image as flat arrays; ``boxes_xyxy`` and masks in pixels of the original image.

    ``category_ids[label - 1]`` is the id in the annotation file.
    """
    probabilities = found.mask_logits.float().sigmoid()
    crops = pasted_crops(probabilities, boxes_xyxy[found.mask_rows], original_hw)
    offsets, counts = run_length_texts(crops, len(probabilities), original_hw)
    rows, boxes = found.mask_rows.cpu().numpy(), boxes_xyxy.cpu().numpy()
    lengths = np.zeros(len(boxes), np.int64)
    lengths[rows] = np.diff(offsets)
    return Detections(
        image_ids=np.full(len(boxes), image_id, dtype=np.int64),
        category_ids=category_ids[found.labels.cpu().numpy() - 1],
        scores=found.scores.float().cpu().numpy(),
        boxes_xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32),
        mask_sizes=np.full((len(boxes), 2), original_hw, np.int32),
        rle_offsets=np.concatenate([[0], lengths.cumsum()]),
        rle_counts=counts,
        has_mask=lengths > 0,
    )


@dataclass(frozen=True)
class Detector:
    """A trained network, what it looks at and how."""

    model: MaskRcnn
    images: TestImages
    device: torch.device
    masks: str = "all"
    """Key of ``MASKS``."""
    precision: str = "fp32"
    """Key of ``finished_run.PRECISIONS``."""

    def detect(self, batch: Batch, positions: Sequence[int]) -> list[ImageDetections]:
        """What the network finds in a batch of the images at these positions of the store."""
        wanted = None
        if self.masks == "scored":
            labels = (scored_labels(self.images.store, image) for image in positions)
            wanted = [torch.from_numpy(one).to(self.device) for one in labels]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return detect(self.model, batch.to(self.device), wanted)

    @torch.inference_mode()
    def detections(self, batch: Batch, positions: Sequence[int]) -> list[Detections]:
        """The same at original size, as flat arrays."""
        category_ids = np.array([category.id for category in self.images.store.categories], dtype=np.int64)
        found = self.detect(batch, positions)
        boxes = [
            boxes_in_original(one.boxes_xyxy, *sizes)
            for one, *sizes in zip(found, batch.sizes_hw, batch.original_sizes_hw, strict=True)
        ]
        return [
            image_detections(*one, category_ids)
            for one in zip(batch.image_ids, found, boxes, batch.original_sizes_hw, strict=True)
        ]


def make_detector(
    study: Study, backbone: str, model_path: Path, store_path: Path, images_dir: Path, device: torch.device
) -> Detector:
    """The trained network on its device, as a study tests it; InputError as :func:`load_trained`."""
    torch.set_num_threads(study.compute.threads)
    set_full_precision()
    test, on_gpu = study.inference, device.type == "cuda"
    images = TestImages(store_path, images_dir, test.short_edge_px, test.long_edge_px, channels_last=on_gpu)
    model = load_trained(study, backbone, model_path, images.store).to(device)
    return Detector(model, images, device, test.masks, test.precision)


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


def conditions(study: Study, device: torch.device) -> dict[str, Any]:
    """What inference ran on, and at which precision and size."""
    test = study.inference
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": study.compute.threads,
        "precision": PRECISIONS[test.precision],
        "resolution": f"short edge {test.short_edge_px} px, long edge at most {test.long_edge_px} px",
    }
