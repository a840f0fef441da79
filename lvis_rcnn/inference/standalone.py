"""A model without its study: its network, the names of its categories, and how an image reaches it.

A model.pth says its backbone, its categories and the settings of its network and test images. One that was trained
before models said their settings needs the inference.json of its run beside it, or its study. Published models and
those imported from MMDetection have the settings of the recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import ValidationError

from lvis_rcnn.config.schema import BACKBONES, Inference, Model
from lvis_rcnn.config.study import Study
from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.dataloader.transforms import padded_size_hw, rescaled_size_hw, write_rescaled
from lvis_rcnn.dataset.coco import strictly_or_mended
from lvis_rcnn.dataset.columns import check_unique
from lvis_rcnn.dataset.detections import Detections
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.dataset.records import Int64Number, integers
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.inference.detector import boxes_in_original, class_shifts, image_detections, on_host
from lvis_rcnn.model.class_names import name_notes
from lvis_rcnn.model.mask_rcnn import MaskRcnn, detect, network_on_meta, set_precision
from lvis_rcnn.model.mmdet import PUBLISHED, backbone_of, converted, read_mmdet
from lvis_rcnn.model.postprocess import ImageDetections
from lvis_rcnn.model.weight_files import OURS, Weights, heads_in, kind_of, read_content, require_finite, state_in
from lvis_rcnn.model.weights import require_fit
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Inference as InferenceRecord
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import sha256_of_file

# Test images of the recipe (MMDetection 3.3.0, configs/_base_/datasets/lvis_v0.5_instance.py).
RECIPE = Inference(short_edge_px=800, long_edge_px=1333, score_threshold=1e-4, detections_per_image=300)

# Settings of inference that are options here, or of no effect on one picture.
UNUSED = ("score_threshold", "detections_per_image", "masks", "batch_size")

# So many are kept before some categories are chosen from them.
BEFORE_CHOICE = 10_000


class NamedCategory(msgspec.Struct, frozen=True):
    """A category of an annotation file of LVIS or COCO; its label is 1 + its position."""

    id: Int64Number
    name: str


class CategoriesOnly(msgspec.Struct):
    """What is read of an annotation file."""

    categories: list[NamedCategory]


def read_categories(path: Path) -> list[NamedCategory]:
    """The categories of an annotation file, or of a store; InputError where it has none."""
    if (path / "store.json").is_file():
        return [NamedCategory(one.id, one.name) for one in open_store(path).categories]
    text = read_text(path, "--annotations", "an annotation file of LVIS or COCO, or a store")
    categories = strictly_or_mended(text, str(path), CategoriesOnly, {"categories": NamedCategory}).categories
    if not categories:
        raise InputError(str(path), "has no categories", fix="name the annotations that the model was trained for")
    check_unique(integers(one.id for one in categories), str(path), "category")
    return categories


@dataclass(frozen=True)
class Standalone:
    """A network in evaluation mode on its device, with all that detection needs."""

    model: MaskRcnn
    backbone: str
    categories: tuple[NamedCategory, ...]
    """In the order of its labels."""
    test: Inference
    device: torch.device
    shifts: Float[torch.Tensor, " k"] | None = None
    """As :func:`~lvis_rcnn.inference.detector.class_shifts`."""

    @torch.inference_mode()
    def detections(
        self, image_bgr: UInt8[np.ndarray, "h w 3"], image_id: int, wanted: Int64[torch.Tensor, " k"] | None
    ) -> Detections:
        """Detections of one image, best first, at most ``test.detections_per_image``, in its pixels.

        Args:
            image_bgr: as :func:`~lvis_rcnn.dataset.images.read_image_bgr` reads it.
            image_id: of the detections.
            wanted: labels of which there shall be detections; None for all.
        """
        batch = batch_of(image_bgr, image_id, self.test).to(self.device)
        all_kept = self.test if wanted is None else self.test.model_copy(update={"detections_per_image": BEFORE_CHOICE})
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.test.precision == "bf16"):
            found = detect(self.model, batch, all_kept, None if wanted is None else [wanted], self.shifts)
        best = with_masks(on_host(found)[0], self.test.detections_per_image)
        boxes = boxes_in_original(best.boxes_xyxy, batch.sizes_hw[0], batch.original_sizes_hw[0])
        ids = np.array([category.id for category in self.categories], np.int64)
        return image_detections(image_id, best, boxes, batch.original_sizes_hw[0], ids)


def batch_of(image_bgr: UInt8[np.ndarray, "h w 3"], image_id: int, test: Inference) -> Batch:
    """An image as the network sees it at test time."""
    height, width = image_bgr.shape[:2]
    size_hw = rescaled_size_hw(height, width, test.short_edge_px, test.long_edge_px)
    pixels = torch.zeros((1, 3, *padded_size_hw(size_hw)), dtype=torch.uint8)
    write_rescaled(image_bgr, size_hw, False, pixels[0])
    return Batch(pixels, [size_hw], [(height, width)], [image_id], [])


def with_masks(found: ImageDetections, most: int) -> ImageDetections:
    """The best detections that have a mask: those of the labels that were asked for."""
    rows = found.mask_rows[:most]
    boxes, labels, scores = found.boxes_xyxy[rows], found.labels[rows], found.scores[rows]
    return ImageDetections(boxes, labels, scores, torch.arange(len(rows)), found.mask_logits[:most])


def load_standalone(
    path: Path,
    device: torch.device,
    *,
    study: Study | None = None,
    categories: Sequence[NamedCategory] | None = None,
    calibration: Path | None = None,
    trust_pickle: bool = False,
) -> Standalone:
    """Read a model.pth, or a file of MMDetection 2.x or 3.x.

    Args:
        path: the file.
        device: where the network shall be.
        study: gives the settings of network and test images, where the file does not say them.
        categories: those of the model, in its order, whose ids detections shall have; by default the model's own names
            with ids from 1.
        calibration: table of the model's training split, where the settings calibrate scores.
        trust_pickle: as :func:`~lvis_rcnn.model.weight_files.read_content`.

    Raises:
        InputError: the file is none of these, does not say its categories or settings, or has other categories or
            settings; or ``calibration`` is missing or needless.
    """
    content = read_content(path, trust_pickle=trust_pickle)
    state = state_in(str(path), content) or {}
    meta = content["meta"] if isinstance(content.get("meta"), dict) else {}
    if kind_of(state, meta) == OURS:
        require_finite(str(path), state)
        backbone, names = named_by(str(path), meta, categories)
        heads = heads_in(str(path), meta)
    else:
        backbone, names, state, heads = read_published(path, categories, trust_pickle)
    model_settings, test = settings_of(path, meta, study)
    model_settings = model_settings.model_copy(update=heads)
    if categories is None:
        categories = [NamedCategory(label, name) for label, name in enumerate(names, start=1)]
    set_precision(test.precision)
    model = network_of(str(path), backbone, len(names) + 1, model_settings, state)
    shifts = class_shifts(test.calibration, calibration, names, model, device)
    return Standalone(model.to(device), backbone, tuple(categories), test, device, shifts)


def named_by(
    where: str, meta: dict[str, Any], categories: Sequence[NamedCategory] | None
) -> tuple[str, tuple[str, ...]]:
    """Backbone and category names of a model of ours; InputError unless they are those of ``categories``, if given."""
    classes = meta.get("CLASSES")
    names = [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []
    require_fit(where, meta["backbone"], meta, [one.name for one in categories] if categories else names)
    if meta["backbone"] not in list(BACKBONES):
        raise InputError(where, f"is a model of {meta['backbone']}", allowed=", ".join(BACKBONES))
    return meta["backbone"], tuple(names)


def read_published(
    path: Path, categories: Sequence[NamedCategory] | None, trust_pickle: bool
) -> tuple[str, tuple[str, ...], dict[str, torch.Tensor], dict[str, str]]:
    """Backbone, category names, weights and heads (:attr:`MmdetFile.heads`) of a file of MMDetection."""
    file = read_mmdet(path, trust_pickle=trust_pickle)
    backbone = backbone_of(file.state, "backbone.")
    if backbone is None:
        what = "has none of the backbones of this project"
        raise InputError(str(path), what, allowed=", ".join(one.title for one in BACKBONES.values()))
    names = tuple(one.name for one in categories) if categories else file.classes
    if names is None:
        fix = "name the annotation file that it was trained for: --annotations FILE"
        raise InputError(str(path), "does not name its categories", fix=fix)
    state = converted(file, backbone, len(names))
    for note in (*file.notes, *name_notes(str(file.path), file.classes, names)):
        log.info("note: %s", note)
    return backbone, names, state, file.heads


def settings_of(path: Path, meta: Mapping[str, Any], study: Study | None) -> tuple[Model, Inference]:
    """Settings of the network and of test images, from the file, the record beside it, its study, or the recipe."""
    settings: Any = meta.get("settings")
    where, own = path, None
    if settings is None:
        where = path.with_name("inference.json")
        beside = read_json_object(where, InferenceRecord)
        settings = beside.get("settings") if beside.get("model_sha256") == sha256_of_file(path) else None
    try:
        of_network, of_images = (json.dumps(settings[section]) for section in ("model", "inference"))
        own = Model.model_validate_json(of_network), Inference.model_validate_json(of_images)
    except (ValidationError, TypeError, KeyError):
        pass
    # A file of MMDetection says what differs from its recipe; no study does, whose anchors may be others.
    is_imported = settings is None and "run_digest" not in meta
    if study:
        if own:
            refuse_other_settings(str(where), own, study)
        return PUBLISHED if is_imported else study.model, study.inference
    if own or is_imported:
        return own or (PUBLISHED, RECIPE)
    what = "does not say the settings of its network and test images, nor does an inference.json beside it"
    fix = "put the inference.json of its run beside it, or name its study: --study FILE"
    raise InputError(str(path if settings is None else where), what, fix=fix)


def refuse_other_settings(where: str, own: tuple[Model, Inference], study: Study) -> None:
    """Refuse a study with other settings than those that a model says; it may calibrate one that is not calibrated."""
    pairs = {"model": (own[0], study.model), "inference": (own[1], study.inference)}
    differing = [
        f"{section}.{key} {value}, not {getattr(theirs, key)}"
        for section, (ours, theirs) in pairs.items()
        for key, value in ours
        if value != getattr(theirs, key) and key not in UNUSED and (key, value) != ("calibration", None)
    ]
    if differing:
        what = f"says its own settings, which are not those of study {study.study}: {'; '.join(differing)}"
        raise InputError(where, what, fix="leave --study out, or name the study that it was trained for")


def network_of(where: str, backbone: str, num_labels: int, settings: Model, state: Weights) -> MaskRcnn:
    """The network with its weights, in evaluation mode; InputError where they do not fit."""
    model = network_on_meta(BACKBONES[backbone], num_labels, settings)
    kinds = {key: value.dtype for key, value in model.state_dict().items()}
    own = {key: value.to(kinds.get(key, value.dtype)) for key, value in state.items()}
    try:
        # Without drawing initial weights first, which takes longer than all else before the first picture.
        model.load_state_dict(own, assign=True)
    except RuntimeError:
        what = f"its weights do not fit {BACKBONES[backbone].title} with {settings.normalization} normalisation"
        raise InputError(where, what, fix="name the study that it was trained for: --study FILE") from None
    return model.eval()
