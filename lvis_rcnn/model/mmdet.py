"""Weights of MMDetection: its names and ours, and its files, which are checked when read and written as published.

A published file is {"meta", "state_dict"} in the format of torch before 1.6, its name ending in the first 8 digits of
its SHA-256 (MMDetection, tools/model_converters/publish_model.py).
"""

import os
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from lvis_rcnn.config.schema import BACKBONES, HEADS, Backbone, Model
from lvis_rcnn.config.zoo import checked_sha256, digest_in_name
from lvis_rcnn.dataloader.transforms import NORMALISATION
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.model.mmdet_config import MmdetConfig, is_usual, mmdet_meta, other_pixels, other_settings
from lvis_rcnn.model.weight_files import (
    MMDET,
    MMDETECTION,
    OURS,
    UNKNOWN,
    Weights,
    first_names,
    freed,
    heads_in,
    kind_of,
    network_in,
    read_content,
    require_finite,
    state_in,
)
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import atomic_file, sha256_of_file

Shapes = dict[str, tuple[int, ...]]

# Prefixes of parameter names in MMDetection (left) and here (right), in MMDetection's order; # is a number.
KEY_MAP = (
    ("backbone.", "backbone.body."),
    ("neck.lateral_convs.#.conv.", "backbone.fpn.inner_blocks.#.0."),
    ("neck.fpn_convs.#.conv.", "backbone.fpn.layer_blocks.#.0."),
    ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
    ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
    ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
    (
        "roi_head.bbox_head.loss_cls.",
        "roi_heads.box_predictor.counters.",
    ),  # of Seesaw; rolled by one, and of one process
    ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),  # rows rolled by one: the background
    ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
    ("roi_head.bbox_head.shared_fcs.0.", "roi_heads.box_head.fc6."),
    ("roi_head.bbox_head.shared_fcs.1.", "roi_heads.box_head.fc7."),
    ("roi_head.mask_head.convs.#.conv.", "roi_heads.mask_head.#.0."),
    ("roi_head.mask_head.upsample.", "roi_heads.mask_predictor.conv5_mask."),
    ("roi_head.mask_head.conv_logits.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
CLASSIFIER = "roi_heads.box_predictor.cls_score."
COUNTS = "roi_heads.box_predictor.counters."
COUNTS_THERE = "roi_head.bbox_head.loss_cls.cum_samples"
IGNORED = ("data_preprocessor.", "backbone.fc.")  # mean and std of 3.x; what a classifier of ImageNet leaves
COUNTER = "num_batches_tracked"  # of batch normalisation: old files lack it, nothing reads it

# The published networks: the shapes do not depend on the rest of the section.
PUBLISHED = Model(weights="imagenet", normalization="fixed_batch", frozen_stages=1)

# Places in a config, and the layers there by which it says that predictors are normalised.
NORMALISED = {
    "box_classifier": (r"\bcls_predictor_cfg\.type", "NormedLinear"),
    "mask_predictor": (r"mask_head\.predictor_cfg\.type", "NormedConv2d"),
}


def patterns(side: int) -> tuple[re.Pattern[str], ...]:
    """The prefixes of one column of ``KEY_MAP``."""
    return tuple(re.compile(re.escape(row[side]).replace(r"\#", r"(\d+)")) for row in KEY_MAP)


PATTERNS = (patterns(0), patterns(1))


def renamed(key: str, source: int) -> tuple[int, str]:
    """Index of a key's row in ``KEY_MAP``, and the key in the other column's names; ``source`` is its own column.

    Raises:
        InputError: no row has its prefix.
    """
    for place, pattern in enumerate(PATTERNS[source]):
        if prefix := pattern.match(key):
            number = prefix[1] if prefix.groups() else ""
            return place, KEY_MAP[place][1 - source].replace("#", number) + key[prefix.end() :]
    allowed = ", ".join(row[source] for row in KEY_MAP)
    raise InputError(f"state_dict: {key}", "is not a key of this Mask R-CNN", allowed=f"keys that begin with {allowed}")


def to_ours(state: Weights) -> dict[str, torch.Tensor]:
    """MMDetection's tensors under our names, the background's row first; absent batch counters become 0.

    Raises:
        InputError: a key is not one of MMDetection's Mask R-CNN.
    """
    ours = {}
    for key, value in state.items():
        if key.startswith(IGNORED):
            continue
        _, name = renamed(key, 0)
        ours[name] = value.roll(1, 0) if name.startswith((CLASSIFIER, COUNTS)) else value
        if name.startswith(COUNTS):
            ours[name] = ours[name].long()[None]
        if key.endswith("running_var") and key.replace("running_var", COUNTER) not in state:
            ours[name.replace("running_var", COUNTER)] = torch.zeros((), dtype=torch.int64)
    return ours


def to_mmdet(state: Weights) -> dict[str, torch.Tensor]:
    """Our tensors under MMDetection's names and in its order, the background's row last; the inverse of ``to_ours``.

    Raises:
        InputError: a key is not ours.
    """
    places = {key: renamed(key, 1) for key in state}
    theirs = {}
    for key in sorted(state, key=lambda key: places[key][0]):
        value = state[key][0].float() if key.startswith(COUNTS) else state[key]
        theirs[places[key][1]] = value.roll(-1, 0) if key.startswith((CLASSIFIER, COUNTS)) else value
    return theirs


@cache
def layout(backbone: Backbone, num_categories: int, settings: Model = PUBLISHED) -> Shapes:
    """Keys and shapes of MMDetection's state dict, in its order."""
    network = network_on_meta(backbone, num_categories + 1, settings)
    return {key: tuple(value.shape) for key, value in to_mmdet(network.state_dict()).items()}


def require_shapes(where: str, state: Weights, expected: Shapes, what_for: str) -> None:
    """Refuse a state dict whose keys or shapes are not exactly those expected; batch counters may be missing.

    Raises:
        InputError: says how many keys are missing, unexpected or of another shape, and names the first of each.
    """
    found = {key: tuple(value.shape) for key, value in state.items() if not key.startswith(IGNORED)}
    missing = [key for key in expected if key not in found and not key.endswith(COUNTER)]
    unexpected = [key for key in found if key not in expected]
    differing = [
        f"{key} {shape} instead of {expected[key]}"
        for key, shape in found.items()
        if key in expected and shape != expected[key]
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": differing}
    problems = [f"{len(keys)} {kind} ({first_names(keys)})" for kind, keys in groups.items() if keys]
    if problems:
        raise InputError(where, f"keys do not fit: {', '.join(problems)}", allowed=what_for, fix="name another file")


def backbone_of(state: Weights, prefix: str) -> str | None:
    """The name of the backbone whose body has these shapes; None if there is none.

    Args:
        state: weights of a body, perhaps among others.
        prefix: of the body's keys, as in ``<prefix>conv1.weight``.
    """
    found = {key: tuple(value.shape) for key, value in state.items()}
    for name, backbone in BACKBONES.items():
        convolutions = {key: shape for key, shape in layout(backbone, 1).items() if key.endswith("conv2.weight")}
        body = {key.replace("backbone.", prefix, 1): shape for key, shape in convolutions.items()}
        same_depth = len(body) == sum(key.startswith(prefix) and key.endswith("conv2.weight") for key in found)
        if same_depth and all(found.get(key) == shape for key, shape in body.items()):
            return name
    return None


@dataclass(frozen=True)
class MmdetFile:
    """A file of MMDetection: its weights, and its meta, which describes them."""

    path: Path
    sha256: str
    state: dict[str, torch.Tensor]
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()
    """Of what surrounds the weights."""

    @property
    def notes(self) -> list[str]:
        """What was left out, and what of its config is not checked."""
        return [*self.left_out, *other_settings(self.config)[1]]

    @property
    def mmdet_version(self) -> str | None:
        """Version of MMDetection; files of 2.x name it."""
        return text_of(self.meta, "mmdet_version")

    @cached_property
    def config(self) -> MmdetConfig:
        """Of 2.x or 3.x."""
        return MmdetConfig(self.meta)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, of 2.x (CLASSES) or 3.x (dataset_meta); None where there are none.

        Raises:
            InputError: the lists of 2.x and 3.x differ.
        """
        found = self.meta.get("dataset_meta")
        data = found if isinstance(found, dict) else {}
        lists = (self.meta.get("CLASSES"), data.get("classes"), data.get("CLASSES"))
        said = {tuple(map(str, one)) for one in lists if isinstance(one, (list, tuple)) and one}
        if len(said) > 1:
            fix = "remove the one that is wrong from its meta"
            raise InputError(str(self.path), "names its classes twice (CLASSES, dataset_meta), not the same", fix=fix)
        return next(iter(said), None)

    @property
    def num_categories(self) -> int | None:
        """Rows of the classifier without background and, of Seesaw, object; None without a classifier."""
        bias = self.state.get("roi_head.bbox_head.fc_cls.bias")
        return None if bias is None else bias.numel() - (2 if COUNTS_THERE in self.state else 1)

    @property
    def heads(self) -> dict[str, Any]:
        """Settings of ``Model`` in which its heads and anchors differ from the recipe's: weights and config tell them.

        Raises:
            InputError: Seesaw without a config.
        """
        found: dict[str, Any] = {key: "normalised" for key, layer in NORMALISED.items() if self.config.has(*layer)}
        if self.config.anchor_scale != PUBLISHED.anchor_scale:
            found["anchor_scale"] = self.config.anchor_scale
        if COUNTS_THERE in self.state:
            if not self.config.names_model:
                what = "is of Seesaw loss and no config names its model: are its predictors normalised?"
                raise InputError(str(self.path), what, fix="name the published file, whose meta has the config")
            found["classification"] = "seesaw"
        return found


def text_of(meta: dict[str, Any], key: str) -> str | None:
    """A value of the meta if it is text."""
    value = meta.get(key)
    return value if isinstance(value, str) else None


def read_mmdet(path: Path, *, trust_pickle: bool = False) -> MmdetFile:
    """A file of MMDetection 2.x or 3.x, pytorch style; the bare state dict of one, too.

    Raises:
        InputError: as :func:`read_content`; its digest is not the one in its name; it has no state_dict; or its weights
            are of another program, of "caffe" style, of MMDetection 1.x, or not all numbers.
    """
    content = read_content(path, trust_pickle=trust_pickle)
    sha256 = checked_sha256(path, digest_in_name(path.name))
    found, meta = state_in(str(path), content), content.get("meta")
    if found is None:
        what = f"has no state_dict, but {first_names([str(key) for key in content]) or 'nothing'}"
        raise InputError(str(path), what, allowed="a checkpoint of MMDetection: meta and state_dict")
    state, notes = freed(found)
    file = MmdetFile(path, sha256, state, meta if isinstance(meta, dict) else {}, tuple(notes))
    refuse_others(file)
    refuse_other_pixels(file)
    refuse_other_settings(file)
    refuse_first_version(file)
    require_finite(str(path), state)
    return file


def refuse_others(file: MmdetFile) -> None:
    """Weights of other programs have other names, and are of other networks."""
    if (kind := kind_of(file.state, file.meta)) == OURS:
        fix = "use it as it is; weights export makes it a file of MMDetection"
        raise InputError(str(file.path), "is a model of lvis_rcnn already: nothing is to be imported", fix=fix)
    if kind not in (MMDET, UNKNOWN):
        allowed = "a Mask R-CNN of MMDetection"
        raise InputError(str(file.path), f"is {kind}, another network", allowed=allowed, fix=MMDETECTION)


def refuse_other_pixels(file: MmdetFile) -> None:
    """Style caffe needs BGR pixels that are not divided, and the stride in another convolution; others another mean."""
    caffe, others = other_pixels(file.config)
    mean = file.state.get("backbone.bn1.running_mean")
    # MMDetection, detectron2pytorch.py: Caffe's layers have no statistics, so 0 and 1 are written.
    is_converted = not file.config.texts and mean is not None and not mean.any()
    if caffe or is_converted or "_caffe_" in file.path.name:
        sign = f"its config says {caffe}" if caffe else "its name says so"
        sign = "the mean of its first layer is 0" if is_converted else sign
        what = f'are weights of "caffe" style ({sign}): BGR pixels, another network'
        raise InputError(str(file.path), what, allowed="pytorch style", fix="name a file without caffe in its name")
    kept = {key: file.state.get(f"data_preprocessor.{key}") for key in ("mean", "std")}
    own = {key: value.flatten().tolist() for key, value in kept.items() if value is not None}
    if said := [*filter(None, [others]), *(f"{key}={one}" for key, one in own.items() if not is_usual(key, one))]:
        what = f"expects other pixels: {', '.join(said)}"
        raise InputError(str(file.path), what, allowed=NORMALISATION, fix="take another one")


def refuse_other_settings(file: MmdetFile) -> None:
    """Settings that are in no name and no shape."""
    if differing := other_settings(file.config)[0]:
        allowed = "a Mask R-CNN with MMDetection's settings (configs/_base_/models/mask-rcnn_r50_fpn.py)"
        what = f"is another network: {first_names(differing)}"
        raise InputError(str(file.path), what, allowed=allowed, fix=MMDETECTION)


def refuse_first_version(file: MmdetFile) -> None:
    """MMDetection 1.x has the background first, predicts boxes for it too, and has other names."""
    version = file.mmdet_version or ""
    sizes = {key: value.numel() for key, value in file.state.items()}
    classifier, deltas = (sizes.get(f"roi_head.bbox_head.fc_{kind}.bias", 0) for kind in ("cls", "reg"))
    signs = {
        f"its mmdet_version is {version}": re.match(r"[01]\.", version),
        "its keys begin with bbox_head or mask_head": any(re.match(r"(bbox|mask)_head\.", key) for key in sizes),
        "it predicts boxes for the background": deltas == 4 * classifier > 0,
    }
    for sign, is_seen in signs.items():
        if is_seen:
            # Its truncate_*_channel keep weights [1:] but biases [:-1], and meta as it was.
            fix = (
                "name a file that 2.x or 3.x trained, as those in its model zoo, or train again; do not use its "
                "upgrade_model_version.py, which gives each class the box and mask biases of the class before it"
            )
            raise InputError(str(file.path), f"is a file of MMDetection 1.x: {sign}", allowed="2.x or 3.x", fix=fix)


def converted(file: MmdetFile, backbone: str, num_categories: int) -> dict[str, torch.Tensor]:
    """The weights of a file under our names.

    Raises:
        InputError: they are of another backbone or another number of classes, also than the file names, or keys or
            shapes do not fit.
    """
    where, found, classes = str(file.path), backbone_of(file.state, "backbone."), file.num_categories
    if found not in (None, backbone):
        raise InputError(where, f"is a model of {found}", allowed=backbone, fix=f"use --backbone {found}")
    if classes not in (None, num_categories):
        fix = "name the file, or the annotations, of the same dataset version"
        if (classes, num_categories) == (1230, 1203):
            fix = "use the file of August 2020: the first of LVIS v1 had 1230 classes by mistake (mmdetection#3593)"
        raise InputError(where, f"has {classes} classes", allowed=f"{num_categories}, as in the annotations", fix=fix)
    if file.classes is not None and classes not in (None, len(file.classes)):
        what = f"names {len(file.classes)} classes, but has weights of {classes}"
        raise InputError(where, what, fix="name another file")
    what_for = f"{BACKBONES[backbone].title}, {num_categories} classes"
    settings = PUBLISHED.model_copy(update=file.heads)
    require_shapes(where, file.state, layout(BACKBONES[backbone], num_categories, settings), what_for)
    return to_ours(file.state)


def write_mmdet(path: Path, state: Weights, meta: dict[str, Any], *, publish: bool) -> Path:
    """Write one of our models as a file that MMDetection 2.x and 3.x load; returns its path.

    Args:
        path: where to write.
        state: our weights.
        meta: of our model; ``backbone`` and ``CLASSES`` are needed.
        publish: append the first 8 digits of its SHA-256 to the name.

    Raises:
        InputError: the meta lacks one of the two, or keys or shapes are not those of MMDetection.
    """
    name, classes = meta.get("backbone"), meta.get("CLASSES")
    if name not in list(BACKBONES) or not isinstance(classes, (list, tuple)) or not {*map(type, classes)} <= {str}:
        what = "does not say its backbone and classes"
        raise InputError("model", what, allowed="a model.pth of lvis_rcnn.train or lvis_rcnn.weights import")
    backbone = BACKBONES[name]
    theirs, what_for = to_mmdet(state), f"{backbone.title}, {len(classes)} classes, with batch normalisation"
    heads = heads_of(meta)
    expected = layout(backbone, len(classes), PUBLISHED.model_copy(update=heads))
    require_shapes("model", theirs, expected, what_for)
    content = {
        "meta": mmdet_meta(backbone, tuple(classes), meta, heads),
        "state_dict": {key: theirs[key] for key in expected},
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary, _use_new_zipfile_serialization=False)
    if not publish:
        return path
    published = path.with_name(f"{path.stem}-{sha256_of_file(path)[:8]}.pth")
    os.replace(path, published)
    return published


def heads_of(meta: dict[str, Any]) -> dict[str, Any]:
    """Settings of ``Model`` in which heads and anchors of one of our models differ from the recipe's, by its meta.

    An imported model has those of its file, a trained one those of its study.
    """
    own = {key: value for key, value in network_in(meta).items() if key in (*HEADS, "anchor_scale")}
    given = heads_in("model", meta) or heads_in("model", {"heads": own})
    return {key: value for key, value in given.items() if value != getattr(PUBLISHED, key)}
