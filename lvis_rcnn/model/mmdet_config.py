"""The config in a file of MMDetection: what is read from it, and what is written.

It says what changes what weights compute, but not their names or shapes. MMDetection saves it merged, as plain values;
what others wrote by hand is read as far as it is plain, and what is not is said.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lvis_rcnn import __version__
from lvis_rcnn.config.schema import Backbone, Model
from lvis_rcnn.dataloader.transforms import MEAN_RGB, STD_RGB
from lvis_rcnn.model.normalised import TEMPERATURE
from lvis_rcnn.model.weight_files import first_names, is_scale, seesaw_in

Table = tuple[tuple[str, tuple[Any, ...] | set[Any]], ...]

# Settings of a model (the end of their place in a config, of 2.0 to 3.x) and their value in
# configs/_base_/models/mask-rcnn_r50_fpn.py of MMDetection 3.3.0, or the default of its layers, which is what this
# network computes with. A set has several values that are the same here.
ANCHORS = r"rpn_head\.(anchor_generator\.|anchor_)"
COMPUTED: Table = (
    (rf"{ANCHORS}type", {"AnchorGenerator"}),
    (rf"{ANCHORS}scales_per_octave", (1,)),
    (rf"{ANCHORS}ratios", (0.5, 1, 2)),
    (rf"{ANCHORS}(strides|base_sizes)", (4, 8, 16, 32, 64)),
    (rf"{ANCHORS}center_offset", (0,)),
    (rf"{ANCHORS}centers", (None,)),
    (rf"{ANCHORS}scale_major", (True,)),
    (r"bbox_coder\.type", {"DeltaXYWHBBoxCoder"}),
    (r"bbox_coder\.clip_border", (True,)),
    (r"bbox_coder\.add_ctr_clamp", (False,)),
    (r"\btarget_means", (0, 0, 0, 0)),
    (r"rpn_head\.(bbox_coder\.)?target_stds", (1, 1, 1, 1)),
    (r"bbox_head\.(bbox_coder\.)?target_stds", (0.1, 0.1, 0.2, 0.2)),
    (r"roi_extractor\.type", {"SingleRoIExtractor"}),
    (r"roi_extractor\.featmap_strides", (4, 8, 16, 32)),
    (r"roi_extractor\.finest_scale", (56,)),
    (r"roi_layer\.type", {"RoIAlign"}),
    (r"bbox_roi_extractor\.roi_layer\.(output|out)_size", (7,)),
    (r"mask_roi_extractor\.roi_layer\.(output|out)_size", (14,)),
    (r"roi_layer\.(sampling_ratio|sample_num)", (0,)),
    (r"roi_layer\.aligned", (True,)),
    (r"roi_layer\.pool_mode", ("avg",)),
    (r"\bcls_predictor_cfg\.type", {"Linear", "NormedLinear"}),
    (r"\breg_predictor_cfg\.type", {"Linear"}),
    (r"mask_head\.predictor_cfg\.type", {"Conv", "Conv2d", "NormedConv2d"}),
    (r"predictor_cfg\.tempearture", (TEMPERATURE,)),
    (r"predictor_cfg\.power", (1,)),
    (r"predictor_cfg\.eps", (1e-6,)),
    (r"predictor_cfg\.norm_over_kernel", (False,)),
    (r"backbone\.strides", (1, 2, 2, 2)),
    (r"backbone\.dilations", (1, 1, 1, 1)),
    (r"backbone\.out_indices", (0, 1, 2, 3)),
    (r"neck\.type", {"FPN"}),
    (r"neck\.num_outs", (5,)),
    (r"neck\.act_cfg(\.type)?", (None,)),
    (r"neck\.(add_extra_convs|relu_before_extra_convs)", (False,)),
    (r"neck\.upsample_cfg\.mode", ("nearest",)),
    (r"\bnorm_cfg\.eps", (1e-5,)),
    (r"\bnorm_cfg\.type", {"BN", "BN2d", "BatchNorm2d", "SyncBN", "MMSyncBN", "SyncBatchNorm"}),
    (r"\bconv_cfg\.type", {"Conv", "Conv2d"}),
)
ANCHORS_OF_RECIPE: float = Model.model_fields["anchor_scale"].default
ANCHOR_SCALE = rf"{ANCHORS}(scales|octave_base_scale)"
# Others may be the same network under another name, or almost: what is not as here is a note.
USUAL: Table = (
    (r"^model\.type", {"MaskRCNN", "TwoStageDetector"}),
    (r"backbone\.type", {"ResNet", "ResNeXt"}),
    (r"rpn_head\.type", {"RPNHead"}),
    (r"roi_head\.type", {"StandardRoIHead"}),
    (r"bbox_head\.type", {"BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead"}),
    (r"mask_head\.type", {"FCNMaskHead"}),
    (r"bbox_head\.loss_cls\.type", {"CrossEntropyLoss", "SeesawLoss"}),
    (r"data_preprocessor\.type", {"DetDataPreprocessor"}),
    (r"data_preprocessor\.pad_size_divisor", (32,)),
    (r"data_preprocessor\.pad_value", (0,)),
)
# Settings of a model that shapes show, or that are of training, of which detections are kept, or of how fast it is.
OTHER = re.compile(
    r"\.((train|test|init)_cfg|pretrained|loss_\w+|data_preprocessor|upsample_cfg|dcn|stage_with_dcn|plugins)(\.|$)"
    r"|\.(depth|num_stages|stem_channels|base_channels|deep_stem|avg_down|groups|base_width|frozen_stages|norm_eval"
    r"|momentum|requires_grad|with_cp|zero_init_residual|style|start_level|end_level|(\w+_)?(in|out)_channels|feat_channels"
    r"|no_norm_on_lateral|contract_dilation|num_\w+|with_\w+|roi_feat_size|(reg_)?class_agnostic|reg_decoded_bbox"
    r"|ctr_clamp|_scope_)$"
)
IN_MODEL = r"^(model\.(.+\.)?)?"
PIXELS = re.compile(r"(^|\.)(img_norm_cfg|data_preprocessor)(\.|$)|(^|\.)(\w*pipeline|mean|std|\w*to_rgb)$")
CAFFE = re.compile(r"""['"]?style['"]?\s*[=:]\s*['"]caffe['"]|\w*to_rgb['"]?\s*[=:]\s*[Ff]alse""")
EARLY_PATH = re.compile(r"(?m)^/.*\.py\r?$")
MOST_SETTINGS = 10_000  # of MMDetection's there are about 500; names that stand for each other may make any number


@dataclass(frozen=True)
class Unread:
    """An expression that is more than plain values."""

    text: str


@dataclass(frozen=True)
class MmdetConfig:
    """What the configs of a file say, texts of Python or dictionaries, named as in 2.x (config) or 3.x (cfg)."""

    meta: dict[str, Any] = field(repr=False)

    @cached_property
    def texts(self) -> list[str]:
        """The configs, of which most files have one."""
        given = [self.meta.get(key) for key in ("config", "cfg")]
        return [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in given if one]

    @cached_property
    def readings(self) -> list["Reading | None"]:
        """What is read of each text; None of one that is not Python."""
        return [reading_of(text) for text in self.texts]

    @property
    def places(self) -> list[tuple[str, Any]]:
        """Places (``model.neck.type``) and their values, dictionaries too, of all texts."""
        return [one for reading in self.readings if reading for one in reading.places]

    @property
    def notes(self) -> list[str]:
        """What was not read."""
        found = []
        for reading in self.readings:
            if reading is None:
                found.append("its config is not Python: nothing of it but style caffe is checked")
                continue
            if len(reading.places) == MOST_SETTINGS:
                found.append(f"its config has more than {MOST_SETTINGS} settings, of which the first are checked")
            if "model" not in dict(reading.places):
                found.append("its config names no model: its anchors, box coding and region sizes are not checked")
            if reading.skipped:
                skipped = first_names([f"`{one:.60}`" for one in reading.skipped])
                found.append(f"its config has {skipped}, which is not checked")
        return found

    @cached_property
    def model(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Places of the settings of its model, and their values without the nesting of lists."""
        plain_values = [
            (place, flat(value)) for place, value in self.places if place.startswith("model.") and is_plain(value)
        ]
        return [(place, value) for place, value in plain_values if value]

    @property
    def names_model(self) -> bool:
        """Whether it has a model that was read."""
        return any(place == "model" and isinstance(value, dict) for place, value in self.places)

    @property
    def anchor_scale(self) -> float:
        """Side of an anchor over the stride of its level, as it is said last, or the recipe's."""
        said = [value[0] for place, value in self.model if re.search(ANCHOR_SCALE + "$", place) and len(value) == 1]
        return next((float(scale) for scale in reversed(said) if is_scale(scale)), ANCHORS_OF_RECIPE)

    def has(self, place: str, wanted: str) -> bool:
        """Whether a setting of its model, whose place ends so, has this value."""
        return any(re.search(place + "$", found) and equal(value, {wanted}) for found, value in self.model)


class Reading(NamedTuple):
    """What is read of a text."""

    places: list[tuple[str, Any]]
    skipped: list[str]
    """Statements."""


def reading_of(text: str) -> Reading | None:
    """What the names in a config stand for at its end; None where it is not Python."""
    named: dict[str, Any] = {"true": True, "false": False, "null": None}  # JSON is read, too
    # Early files of MMDetection hold the path of each config before its text; mmcv merges the models of several.
    skipped = EARLY_PATH.findall(text)[1:]
    text = EARLY_PATH.sub("", text.removeprefix("\ufeff"))
    try:
        with warnings.catch_warnings(action="ignore"):  # of a path with single backslashes
            statements = ast.parse(text).body
        skipped += [source(text, one) for one in statements if not is_read(one, named, text)]
        return Reading(list(islice(nodes(named, ""), MOST_SETTINGS)), skipped)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_read(statement: ast.stmt, named: dict[str, Any], text: str) -> bool:
    """Whether a statement says nothing, or something that is then in ``named``."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != "_base_":
            named[name] = plain(value, named, text)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            named[name] = plain(value, named, text)
        case ast.Expr(value=value) if isinstance(whole := plain(value, named, text), dict):
            named.update(whole)
        case _:
            return isinstance(statement, ast.Import | ast.ImportFrom) or is_constant(statement)
    return True


def is_constant(statement: ast.stmt) -> bool:
    """Whether a statement is a text, as at the start of a file."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def source(text: str, node: ast.AST) -> str:
    """The text of a node in one line."""
    return " ".join((ast.get_source_segment(text, node) or "").split())


def plain(node: ast.expr, named: dict[str, Any], text: str) -> Any:
    """The value of an expression of dictionaries, lists, constants and ``named``; Unread for any other."""
    match node:
        case ast.Call(func=ast.Name(id="dict" | "ConfigDict"), args=[], keywords=keywords):
            return merged([(one.arg, plain(one.value, named, text)) for one in keywords])
        case ast.Dict(keys=keys, values=values):
            wholes = (key and plain(key, named, text) for key in keys)
            return merged(list(zip(wholes, (plain(value, named, text) for value in values), strict=True)))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [plain(part, named, text) for part in parts]
        case ast.Name(id=name) if name in named:
            return named[name]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return Unread(source(text, node))


def merged(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """A dictionary of keys and values; a key of None is ``**value``."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key is None and isinstance(value, dict):
            found |= value
        else:
            found["**" if key is None or isinstance(key, Unread) else str(key)] = value
    return found


def nodes(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All places in dictionaries, and their values; dictionaries in lists have the place of the list."""
    yield place, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from nodes(part, f"{place}.{key}" if place else key)
    for part in flat(value) if isinstance(value, list) else ():
        if isinstance(part, (dict, Unread)):
            yield from nodes(part, place)


def flat(value: Any) -> tuple[Any, ...]:
    """A value, or those in a list of lists."""

    def parts(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            for part in value:
                yield from parts(part)
        else:
            yield value

    return tuple(islice(parts(value), MOST_SETTINGS))


def is_plain(value: Any) -> bool:
    """Whether a value is a constant, or a list of such."""
    return not any(isinstance(one, (dict, Unread)) for one in flat(value))


def equal(value: tuple[Any, ...], wanted: tuple[Any, ...] | set[Any]) -> bool:
    """Whether a value is one of a set, in any package, or the wanted one, alone or for height and width.

    None stands for the default of a layer, but where it is taken for False.
    """
    if isinstance(wanted, set):
        return len(value) == 1 and (value[0] is None or str(value[0]).rpartition(".")[2] in wanted)
    return value in (wanted, tuple(one for one in wanted for _ in "hw")) or (value == (None,) and wanted != (True,))


def wanted_of(place: str, table: Table) -> tuple[Any, ...] | set[Any] | None:
    """The row of a table for a place; None without one."""
    return next((wanted for pattern, wanted in table if re.search(pattern + "$", place)), None)


def other_settings(config: MmdetConfig) -> tuple[list[str], list[str]]:
    """What a config says that is another network: settings of ``COMPUTED``; and notes on what is not known here."""
    differing, unknown = [], []
    computed = ((ANCHOR_SCALE, (config.anchor_scale,)), *COMPUTED)
    for place, value in config.model:
        said = f"{place} is {(value[0] if len(value) == 1 else list(value))!r:.60}"
        if (wanted := wanted_of(place, computed)) is not None:
            if not equal(value, wanted):
                many = sorted(wanted) if isinstance(wanted, set) else [list(wanted) if len(wanted) > 1 else wanted[0]]
                differing.append(f"{said}, not {' or '.join(map(str, many))}")
        elif (usual := wanted_of(place, USUAL)) is not None:
            unknown += [] if equal(value, usual) else [said]
        elif value != (None,) and not OTHER.search(place):
            unknown.append(said)
    unknown += [
        f"{place} by {value.text:.40}"
        for place, value in config.places
        if isinstance(value, Unread) and (place.startswith("model") or PIXELS.search(place))
    ]
    notes = [f"its config says {first_names(unknown)}, which is not checked"] if unknown else []
    return differing, [*config.notes, *notes]


def other_pixels(config: MmdetConfig) -> tuple[str, str]:
    """What a config says of pixels of style caffe, and of another mean or deviation; empty where it does not."""
    # Of a text that is not Python, too; nothing else is found in one.
    unread = (text for text, reading in zip(config.texts, config.readings, strict=True) if reading is None)
    caffe, others = [found[0] for text in unread if (found := CAFFE.search(text))], []
    for place, value in config.places:
        if re.search(IN_MODEL + r"backbone\.style$", place) and is_plain(value) and value not in ("pytorch", None):
            caffe.append(f"{place} is {value!r:.40}")
        if isinstance(value, dict) and (defaults := pixel_defaults(place, value)):
            given = {**defaults, **value}
            # Either of 3.x turns the channels.
            turns = {key: given[key] for key in ("bgr_to_rgb", "rgb_to_bgr", "to_rgb") if key in given}
            caffe += [] if any(turns.values()) else [f"{place}: {next(iter(turns))} is not True"]
            numbers = {key: given[key] for key in ("mean", "std") if key in given}
            others += [f"{place}.{key} is {one!r:.60}" for key, one in numbers.items() if not is_usual(key, one)]
    return first_names(caffe), first_names(others)


def pixel_defaults(place: str, value: dict[str, Any]) -> dict[str, Any]:
    """What MMDetection takes where a dictionary that turns pixels into numbers does not say it; empty for others."""
    kind = str(value.get("type")).rpartition(".")[2]
    if re.search(IN_MODEL + r"data_preprocessor$", place) and "data_preprocessor" not in value:
        return {"bgr_to_rgb": False, "mean": None, "std": None}
    return {"to_rgb": True} if kind == "Normalize" or place.endswith("img_norm_cfg") else {}


def is_usual(key: str, value: Any) -> bool:
    """Whether a mean or deviation is this network's, or cannot be read, which is a note."""
    usual = {"mean": MEAN_RGB, "std": STD_RGB}[key]
    values = flat(value)
    return not is_plain(value) or (
        set(map(type, values)) <= {int, float} and len(values) == 3 and np.allclose(values, usual, atol=0.01)
    )


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
    scale = heads.get("anchor_scale", ANCHORS_OF_RECIPE)
    config = (
        f"model = dict(type='MaskRCNN', backbone=dict(type='{kind}', depth={depth}{groups}, style='pytorch'), "
        f"rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[{scale}], "
        "ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])), "
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
