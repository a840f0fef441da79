"""MMDetection's Mask R-CNN weights under our names and back, with a strict report of what does not fit.

Both name the same tensors; only the classifier's rows differ in order: MMDetection has the background last, we have it
first. Names and shapes are those of MMDetection 2.x and 3.x, which are the same.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from lvis_rcnn.backbones import BACKBONES, Backbone
from lvis_rcnn.command import InputError

Weights = Mapping[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

# How names of MMDetection (left) begin here (right), in MMDetection's order; # is a number.
KEY_MAP = (
    ("backbone.", "backbone.body."),
    ("neck.lateral_convs.#.conv.", "backbone.fpn.inner_blocks.#.0."),
    ("neck.fpn_convs.#.conv.", "backbone.fpn.layer_blocks.#.0."),
    ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
    ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
    ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
    ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),  # rows rolled by one: the background
    ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
    ("roi_head.bbox_head.shared_fcs.0.", "roi_heads.box_head.fc6."),
    ("roi_head.bbox_head.shared_fcs.1.", "roi_heads.box_head.fc7."),
    ("roi_head.mask_head.convs.#.conv.", "roi_heads.mask_head.#.0."),
    ("roi_head.mask_head.upsample.", "roi_heads.mask_predictor.conv5_mask."),
    ("roi_head.mask_head.conv_logits.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
CLASSIFIER = "roi_heads.box_predictor.cls_score."
IGNORED = "data_preprocessor."  # mean and std of 3.x, which the pixel chain has
COUNTER = "num_batches_tracked"  # of batch normalisation: old files lack it, nothing reads it

NAMED_KEYS = 3


def patterns(side: int) -> tuple[re.Pattern[str], ...]:
    """The prefixes of one column of ``KEY_MAP``."""
    return tuple(re.compile(re.escape(row[side]).replace(r"\#", r"(\d+)")) for row in KEY_MAP)


PATTERNS = (patterns(0), patterns(1))


def renamed(key: str, source: int) -> tuple[int, str]:
    """Place of a key's row in ``KEY_MAP``, and its name in the other column.

    Raises:
        InputError: no row begins like it.
    """
    for place, pattern in enumerate(PATTERNS[source]):
        found = pattern.match(key)
        if found:
            number = found[1] if found.groups() else ""
            return place, KEY_MAP[place][1 - source].replace("#", number) + key[found.end() :]
    allowed = ", ".join(row[source] for row in KEY_MAP)
    raise InputError(f"state_dict: {key}", "is no key of this Mask R-CNN", allowed=f"keys that begin with {allowed}")


def to_ours(state: Weights) -> dict[str, torch.Tensor]:
    """MMDetection's tensors under our names, the background's row first; absent batch counters become 0.

    Raises:
        InputError: a key is not MMDetection's.
    """
    ours = {}
    for key, value in state.items():
        if key.startswith(IGNORED):
            continue
        _, name = renamed(key, 0)
        ours[name] = value.roll(1, 0) if name.startswith(CLASSIFIER) else value
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
        value = state[key]
        theirs[places[key][1]] = value.roll(-1, 0) if key.startswith(CLASSIFIER) else value
    return theirs


def layout(backbone: Backbone, num_categories: int) -> Shapes:
    """Keys and shapes of MMDetection's state dict, in its order."""
    return {**body_layout(backbone), **head_layout(num_categories)}


def body_layout(backbone: Backbone) -> Shapes:
    """Keys and shapes of a body: convolutions without bias, each with a batch normalisation."""
    pairs: list[tuple[str, str, tuple[int, ...]]] = [("conv1", "bn1", (64, 3, 7, 7))]
    inputs = 64
    for stage, blocks in enumerate(backbone.blocks):
        width_per_group, outputs = backbone.width_per_group * 2**stage, 256 * 2**stage
        width = width_per_group * backbone.groups
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            pairs.append((f"{name}.conv1", f"{name}.bn1", (width, inputs, 1, 1)))
            pairs.append((f"{name}.conv2", f"{name}.bn2", (width, width_per_group, 3, 3)))
            pairs.append((f"{name}.conv3", f"{name}.bn3", (outputs, width, 1, 1)))
            if block == 0:
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1", (outputs, inputs, 1, 1)))
            inputs = outputs
    shapes: Shapes = {}
    for convolution, norm, shape in pairs:
        shapes[f"backbone.{convolution}.weight"] = shape
        shapes |= {f"backbone.{norm}.{key}": shape[:1] for key in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"backbone.{norm}.{COUNTER}"] = ()
    return shapes


def head_layout(num_categories: int) -> Shapes:
    """Keys and shapes of everything above the body: layers with a bias."""
    weights = {
        **{f"neck.lateral_convs.{level}.conv": (256, 256 * 2**level, 1, 1) for level in range(4)},
        **{f"neck.fpn_convs.{level}.conv": (256, 256, 3, 3) for level in range(4)},
        "rpn_head.rpn_conv": (256, 256, 3, 3),
        "rpn_head.rpn_cls": (3, 256, 1, 1),
        "rpn_head.rpn_reg": (12, 256, 1, 1),
        "roi_head.bbox_head.fc_cls": (num_categories + 1, 1024),
        "roi_head.bbox_head.fc_reg": (4 * num_categories, 1024),
        "roi_head.bbox_head.shared_fcs.0": (1024, 256 * 7 * 7),
        "roi_head.bbox_head.shared_fcs.1": (1024, 1024),
        **{f"roi_head.mask_head.convs.{layer}.conv": (256, 256, 3, 3) for layer in range(4)},
        "roi_head.mask_head.upsample": (256, 256, 2, 2),
        "roi_head.mask_head.conv_logits": (num_categories, 256, 1, 1),
    }
    shapes: Shapes = {}
    for name, shape in weights.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def require_shapes(where: str, state: Weights, expected: Shapes, what_for: str) -> None:
    """Refuse a state dict whose keys or shapes are not exactly those expected; batch counters may be absent.

    Raises:
        InputError: says how many keys are missing, unexpected or of another shape, and the first of each.
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
    told = [f"{len(keys)} {kind} ({shortened(keys)})" for kind, keys in groups.items() if keys]
    if told:
        raise InputError(where, f"keys do not fit: {', '.join(told)}", allowed=what_for, mend="name another file")


def shortened(names: Sequence[str]) -> str:
    """The first few names."""
    more = ", …" if len(names) > NAMED_KEYS else ""
    return ", ".join(names[:NAMED_KEYS]) + more


def backbone_of(state: Weights, prefix: str) -> str | None:
    """The row of ``lvis_rcnn.backbones`` whose body has these shapes; None if it is no row's.

    Args:
        state: Weights of a body, perhaps among others.
        prefix: What stands before ``conv1.weight``.
    """
    found = {key: tuple(value.shape) for key, value in state.items()}
    for name, backbone in BACKBONES.items():
        expected = {key: shape for key, shape in body_layout(backbone).items() if key.endswith("conv2.weight")}
        body = {key.replace("backbone.", prefix, 1): shape for key, shape in expected.items()}
        same_depth = len(body) == sum(key.startswith(prefix) and key.endswith("conv2.weight") for key in found)
        if same_depth and all(found.get(key) == shape for key, shape in body.items()):
            return name
    return None
