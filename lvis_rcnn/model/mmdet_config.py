"""The config in a file of MMDetection: what is read from it, and what is written.

It says what changes what weights compute, but not their names or shapes.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from lvis_rcnn import __version__
from lvis_rcnn.config.schema import Backbone
from lvis_rcnn.model.normalised import TEMPERATURE
from lvis_rcnn.model.weight_files import seesaw_in

# Settings (the end of their place in a config, of 2.0 to 3.x) and their value in configs/_base_/models/
# mask-rcnn_r50_fpn.py of MMDetection 3.3.0, which is what this network computes with.
ANCHORS = r"rpn_head\.(anchor_generator\.|anchor_)"
COMPUTED = (
    (rf"{ANCHORS}type", ("AnchorGenerator",)),
    (rf"{ANCHORS}(scales|octave_base_scale)", (8,)),
    (rf"{ANCHORS}ratios", (0.5, 1, 2)),
    (rf"{ANCHORS}(strides|base_sizes)", (4, 8, 16, 32, 64)),
    (rf"{ANCHORS}center_offset", (0,)),
    (r"bbox_coder\.type", ("DeltaXYWHBBoxCoder",)),
    (r"\btarget_means", (0, 0, 0, 0)),
    (r"rpn_head\.(bbox_coder\.)?target_stds", (1, 1, 1, 1)),
    (r"bbox_head\.(bbox_coder\.)?target_stds", (0.1, 0.1, 0.2, 0.2)),
    (r"roi_layer\.type", ("RoIAlign",)),
    (r"bbox_roi_extractor\.roi_layer\.(output|out)_size", (7,)),
    (r"mask_roi_extractor\.roi_layer\.(output|out)_size", (14,)),
    (r"roi_layer\.(sampling_ratio|sample_num)", (0,)),
    (r"roi_layer\.aligned", (True,)),
    (r"roi_layer\.pool_mode", ("avg",)),
    (r"roi_extractor\.featmap_strides", (4, 8, 16, 32)),
    (r"roi_extractor\.finest_scale", (56,)),
    (r"backbone\.strides", (1, 2, 2, 2)),
    (r"backbone\.dilations", (1, 1, 1, 1)),
    (r"neck\.upsample_cfg\.mode", ("nearest",)),
    (r"\bnorm_cfg\.eps", (1e-5,)),
    (r"\bconv_cfg\.type", ("Conv2d",)),
)


def config_of(meta: dict[str, Any]) -> str:
    """Text of the config of 2.x or 3.x, a text or a dictionary, without its comments; empty where there is none.

    A text that is not Python is returned as it is.
    """
    config = meta.get("config") or meta.get("cfg") or ""
    text = config.decode(errors="replace") if isinstance(config, bytes) else str(config)
    tree = parsed(text)
    return text if tree is None else ast.unparse(tree)


def parsed(config: str) -> ast.Module | None:
    """The tree of a config; None if it is not Python."""
    try:
        return ast.parse(config.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def other_settings(config: str) -> tuple[list[str], list[str]]:
    """What a config says of ``COMPUTED`` that is another value, and what of it cannot be read.

    MMDetection writes plain values; ``scales=sizes`` is of somebody else, and a text that is not Python, too.
    """
    tree = parsed(config)
    if tree is None:
        return [], ["its config is not Python: its anchors, box coding and region sizes are not checked"]
    differing, unread, said = [], [], list(leaves(tree, ""))
    for pattern, wanted in COMPUTED:
        for place, node in said:
            if re.search(pattern + "$", place):
                try:
                    value = ast.literal_eval(node)
                except (ValueError, TypeError):
                    unread.append(f"its config says {place} by {ast.unparse(node):.40}, which is not checked")
                    continue
                if not equal(value, wanted):
                    differing.append(
                        f"{place} is {value!r:.60}, not {wanted[0] if len(wanted) == 1 else list(wanted)!r}"
                    )
    return differing, unread


def equal(value: Any, wanted: tuple[Any, ...]) -> bool:
    """Whether a value is the one that is wanted, alone, in a list, or given for height and width."""
    flat = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return flat in (wanted, 2 * wanted, (None,))


def leaves(node: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    """Places (``model.rpn_head.anchor_generator.scales``) and values in a tree of dictionaries, or calls of dict."""
    named: list[tuple[Any, ast.AST]]
    match node:
        case ast.Module(body=statements):
            named = [("", one) for one in statements]
        case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.AST() as value):
            named = [(re.sub(r"\W+", ".", ast.unparse(target)).strip("."), value)]  # model['neck'], model.neck
        case ast.Expr(value=value):
            named = [("", value)]
        case ast.Call(keywords=[_, *_] as keywords):
            named = [(one.arg or "", one.value) for one in keywords]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            named = [(key.value if isinstance(key, ast.Constant) else "", value) for key, value in pairs]
        case ast.List(elts=parts) | ast.Tuple(elts=parts) if any(
            isinstance(one, (ast.Call, ast.Dict)) for one in parts
        ):
            named = [("", one) for one in parts]
        case _:
            yield place, node
            return
    for name, part in named:
        yield from leaves(part, f"{place}.{name}".strip("."))


def head_configs(classes: int, heads: dict[str, Any], meta: dict[str, Any]) -> tuple[str, str]:
    """Arguments of MMDetection's box and mask head that say what differs from the recipe, if anything."""
    box, mask = "", ""
    if "box_classifier" in heads:
        box += f", cls_predictor_cfg=dict(type='NormedLinear', tempearture={TEMPERATURE:g})"
    if "classification" in heads:
        seesaw = seesaw_in("model", meta)
        factors = f"p={seesaw.mitigation}, q={seesaw.compensation}, eps={seesaw.epsilon}"
        box += f", loss_cls=dict(type='SeesawLoss', {factors}, num_classes={classes}, loss_weight=1.0)"
    if "mask_predictor" in heads:
        mask = f", predictor_cfg=dict(type='NormedConv2d', tempearture={TEMPERATURE:g})"
    return box, mask


def mmdet_meta(
    backbone: Backbone, classes: tuple[str, ...], meta: dict[str, Any], heads: dict[str, Any]
) -> dict[str, Any]:
    """Meta for 3.x (cfg, dataset_meta) and for 2.x (CLASSES)."""
    box, mask = head_configs(len(classes), heads, meta)
    kind = "ResNet" if backbone.groups == 1 else "ResNeXt"
    depth = 3 * sum(backbone.blocks) + 2
    groups = "" if backbone.groups == 1 else f", groups={backbone.groups}, base_width={backbone.width_per_group}"
    config = (
        f"model = dict(type='MaskRCNN', backbone=dict(type='{kind}', depth={depth}{groups}, style='pytorch'), "
        f"roi_head=dict(bbox_head=dict(num_classes={len(classes)}{box}), "
        f"mask_head=dict(num_classes={len(classes)}{mask})))\n"
    )
    return {
        "cfg": config,
        "dataset_meta": {"classes": classes},
        "CLASSES": classes,
        "seed": meta.get("seed"),
        "iter": meta.get("steps"),
        "time": meta.get("time"),
        "written_by": f"lvis_rcnn {__version__}",
    }
