"""Models on disk: model.pth, trained or imported, and the published weights that a training begins with.

Published weights are an ImageNet classifier for the body, or a COCO detector without its class layers; their files are
rows of the zoo. Loading is strict: a missing, unexpected or misshapen key is an error.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lvis_rcnn.config.schema import BACKBONES, Model
from lvis_rcnn.config.zoo import ZooModel, initial_model, published_file
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.mmdet import COUNTER, Shapes, read_mmdet, require_shapes, to_ours
from lvis_rcnn.model.weight_files import freed, heads_in, read_content, require_finite, state_in
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import atomic_file

MODEL = "a model.pth of lvis_rcnn.train or weights import"


def save_model(path: Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write a model.pth: weights, without optimizer, and ``meta``, which says what they are."""
    # Given a path, torch would write its name into the file, and that of a temporary file differs each time.
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"meta": meta, "state_dict": state_dict}, file)


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and meta of a model.pth.

    Raises:
        InputError: the file is missing, damaged or no model.pth, or its weights are not all numbers.
    """
    if not os.path.exists(path):
        raise InputError(str(path), "no such model", fix="train it first")
    if path.is_dir():
        raise InputError(str(path), "is a folder", allowed=MODEL, fix=f"name {path / 'model.pth'}")
    content = read_content(path, trust_pickle=False)
    state, meta = state_in(str(path), {"state_dict": content.get("state_dict")}), content.get("meta")
    if state is None or not isinstance(meta, dict):
        what = "does not hold a state_dict of weights, and meta"
        raise InputError(str(path), what, allowed=MODEL, fix="train again, or name another file")
    require_finite(str(path), state)
    return state, meta


# Their rows are the categories of the dataset: those of another dataset do not fit.
CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.counters",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits",
)


def load_initial_weights(
    model: nn.Module, backbone: str, kind: str, zoo: Mapping[str, ZooModel], weights_dir: Path
) -> str:
    """Load the weights that a training begins with; returns a sentence that says which.

    Args:
        model: a Mask R-CNN, as initialised; layers that are not in the file stay so.
        backbone: row of ``config.schema.BACKBONES``.
        kind: imagenet, coco or none.
        zoo: the published models.
        weights_dir: folder of published files; a missing one is downloaded into it.

    Raises:
        InputError: the zoo has no such model, the file cannot be downloaded or is damaged, or its keys or shapes do not
            fit.
    """
    if kind == "none":
        return "initial weights: none, trained from scratch"
    if "backbone.body.bn1.running_mean" not in model.state_dict():
        raise InputError(
            "model.normalization",
            f"is group, but the {kind} weights belong to batch normalisation",
            allowed=f"fixed_batch or batch with {kind!r}",
            fix="take fixed_batch, or train from scratch with weights: none",
        )
    row = initial_model(zoo, kind, backbone)
    path = published_file(row, weights_dir)
    if kind == "imagenet":
        load_body(model, path)
        what = "the body"
    else:
        load_detector(model, path)
        what = "all but the class layers"
    return f"initial weights: {what} of {row.name}, {row.file_name}, from {row.url}"


def load_body(model: nn.Module, path: Path) -> None:
    """Load an ImageNet classifier but for its last layer, ``fc``."""
    content = read_content(path, trust_pickle=False)
    state, _ = freed(state_in(str(path), content) or {})
    require_finite(str(path), state)
    bare = {key: value for key, value in state.items() if not key.startswith("fc.")}
    load_strictly(model.get_submodule("backbone.body"), bare, {}, str(path), "a ResNet or ResNeXt of ImageNet")


def load_detector(model: nn.Module, path: Path) -> None:
    """Load a detector of other categories, and log which layers stay as they were initialised."""
    ours = to_ours(read_mmdet(path).state)
    shared = {key: value for key, value in ours.items() if not key.startswith(CLASS_LAYERS)}
    initialised = {key: value for key, value in model.state_dict().items() if key.startswith(CLASS_LAYERS)}
    load_strictly(model, shared, initialised, str(path), "a Mask R-CNN of this backbone")
    classes = len(ours[f"{CLASS_LAYERS[0]}.bias"]) - 1
    layers = dict.fromkeys(layer for layer in CLASS_LAYERS for key in initialised if key.startswith(layer))
    log.info("%s was trained on %d classes; not loaded from it: %s", path.name, classes, ", ".join(layers))


def load_strictly(
    module: nn.Module, state: dict[str, torch.Tensor], kept: dict[str, torch.Tensor], where: str, what_for: str
) -> None:
    """Load ``state`` into ``module``, which keeps its values ``kept``; batch counters may be absent from ``state``.

    Raises:
        InputError: keys or shapes do not fit; nothing is loaded.
    """
    current = module.state_dict()
    expected: Shapes = {key: tuple(value.shape) for key, value in current.items() if key not in kept}
    require_shapes(where, state, expected, what_for)
    counters = {key: value for key, value in current.items() if key.endswith(COUNTER)}
    module.load_state_dict({**counters, **state, **kept})


def load_trained(settings: Model, backbone: str, model_path: Path, store: AnnotationStore) -> MaskRcnn:
    """The trained network in evaluation mode.

    Raises:
        InputError: it is no model.pth, or a model of another backbone, other categories or another normalization.
    """
    state, meta = load_model(model_path)
    require_fit(str(model_path), backbone, meta, [category.name for category in store.categories])
    # An imported model says what its heads are; the study says so of those that it trains.
    settings = settings.model_copy(update=heads_in(str(model_path), meta))
    model = MaskRcnn(BACKBONES[backbone], store.num_labels, settings)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(
            str(model_path),
            "its weights do not fit the network",
            allowed=f"a model of the study's model.normalization, {settings.normalization}, and classification, "
            f"{settings.classification}",
            fix="train again, or name the model that was trained for this study",
        ) from None
    return model.eval()


def require_fit(where: str, backbone: str, meta: dict[str, Any], names: list[str]) -> None:
    """Refuse a model that was not trained for this backbone and these category names in this order.

    Raises:
        InputError: says what it was trained for.
    """
    fix = "name the model that was trained for this study"
    if "backbone" not in meta or not isinstance(meta.get("CLASSES"), (list, tuple)):
        raise InputError(where, "does not say what it was trained for", allowed=MODEL, fix=fix)
    if meta["backbone"] != backbone:
        raise InputError(where, f"is a model of {meta['backbone']}", allowed=backbone, fix=fix)
    classes = list(meta["CLASSES"])
    if len(classes) != len(names):
        what = f"has {len(classes)} categories"
        raise InputError(where, what, allowed=f"the {len(names)} of the annotations", fix=fix)
    for trained, name in zip(classes, names, strict=True):
        if trained != name:
            what = f"has category {trained!r} in place of {name!r}"
            raise InputError(where, what, allowed="the categories of the annotations, in their order", fix=fix)
