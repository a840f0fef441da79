"""What a training begins with: ImageNet weights of the body, a published COCO detector without its classes, or nothing.

The files are rows of the zoo. What a file brings is loaded strictly: no key is left over or missing unseen.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lvis_rcnn.command import InputError, log
from lvis_rcnn.mmdet_files import read_content, read_mmdet
from lvis_rcnn.mmdet_weights import COUNTER, Shapes, require_shapes, to_ours
from lvis_rcnn.zoo import ZooModel, initial_model, published_file

# Their rows are categories, so those of other categories are of no use.
CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits",
)


def load_initial_weights(
    model: nn.Module, backbone: str, kind: str, zoo: Mapping[str, ZooModel], weights_dir: Path
) -> str:
    """Load the weights that a training begins with; returns one sentence that says which.

    Args:
        model: A Mask R-CNN of ``lvis_rcnn.model``, as initialised; what no file brings stays so.
        backbone: Row of ``lvis_rcnn.backbones``.
        kind: Key of ``config.Model.weights``.
        zoo: The published models.
        weights_dir: Folder of published files; an absent one is fetched into it.

    Raises:
        InputError: the zoo has no row, the file cannot be had or is damaged, or its keys or shapes do not fit.
    """
    if kind == "none":
        return "initial weights: none, trained from scratch"
    if "backbone.body.bn1.running_mean" not in model.state_dict():
        raise InputError(
            "model.normalization",
            f"is group, but the {kind} weights belong to batch normalisation",
            allowed=f"fixed_batch or batch with {kind!r}",
            mend="take fixed_batch, or train from scratch with weights: none",
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
    """Load an ImageNet classifier without its last layer, ``fc``."""
    content = read_content(path, trust_pickle=False)
    bare = {key: value for key, value in content.get("state_dict", content).items() if not key.startswith("fc.")}
    load_strictly(model.get_submodule("backbone.body"), bare, {}, str(path), "a ResNet or ResNeXt of ImageNet")


def load_detector(model: nn.Module, path: Path) -> None:
    """Load a detector of other categories, and say which layers stay as they were initialised."""
    ours = to_ours(read_mmdet(path).state)
    shared = {key: value for key, value in ours.items() if not key.startswith(CLASS_LAYERS)}
    own = {key: value for key, value in model.state_dict().items() if key.startswith(CLASS_LAYERS)}
    load_strictly(model, shared, own, str(path), "a Mask R-CNN of this backbone")
    classes = len(ours[f"{CLASS_LAYERS[0]}.bias"]) - 1
    log.info("%s was trained on %d classes; made anew are %s", path.name, classes, ", ".join(CLASS_LAYERS))


def load_strictly(
    module: nn.Module, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], where: str, what_for: str
) -> None:
    """Load ``state`` into ``module``, which keeps ``own``; batch counters may be absent from ``state``.

    Raises:
        InputError: keys or shapes do not fit; nothing is loaded.
    """
    current = module.state_dict()
    expected: Shapes = {key: tuple(value.shape) for key, value in current.items() if key not in own}
    require_shapes(where, state, expected, what_for)
    counters = {key: value for key, value in current.items() if key.endswith(COUNTER)}
    module.load_state_dict({**counters, **state, **own})
