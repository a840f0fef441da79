"""What a config of MMDetection says of the network is held to, and what of it cannot be read is said."""

import re

import pytest

from lvis_rcnn.model.mmdet import read_mmdet
from lvis_rcnn.model.mmdet_config import MmdetConfig, other_pixels, other_settings
from lvis_rcnn.system.cli import InputError
from tests.helpers.flat_weights import write_old
from tests.reference.golden_figures import table

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PIXELS = f"dict(type='DetDataPreprocessor', mean={MEAN}, std={STD}, bgr_to_rgb=True)"
LINES = "\n".join


def written(tmp_path, config, name="a.pth", key="config"):
    return write_old(tmp_path / name, {"meta": {key: config}, "state_dict": {}})


def refused(path, message):
    with pytest.raises(InputError, match=message):
        read_mmdet(path)


def model(*settings):
    return f"# scales\nmodel = dict(type='MaskRCNN', data_preprocessor={PIXELS}, {', '.join(settings)})\n"


OTHERS = [
    ("rpn_head=dict(anchor_generator=dict(scales=[4, 8]))", "model.rpn_head.anchor_generator.scales is [4, 8], not 8"),
    ("rpn_head=dict(anchor_scales=['8'])", "anchor_scales"),
    ("rpn_head=dict(anchor_generator=dict(scales=[0]))", "scales"),
    ("rpn_head=dict(anchor_generator=dict(type='LegacyAnchorGenerator'))", "type"),
    ("rpn_head=dict(anchor_generator=dict(ratios=(0.5, 1.0, 3.0)))", "ratios"),
    ("rpn_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128]))", "strides"),
    ("rpn_head=dict(anchor_generator=dict(centers=[(2, 2)]))", "centers"),
    ("rpn_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))", "target_stds"),
    ("rpn_head=dict(bbox_coder=dict(add_ctr_clamp=True))", "add_ctr_clamp"),
    ("roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1])))", "target_stds"),
    ("roi_head=dict(bbox_head=dict(bbox_coder=dict(clip_border=False)))", "clip_border"),
    ("roi_head=dict(bbox_head=[dict(target_means=[0, 0, 0, 0.5])])", "target_means"),
    ("roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(output_size=28)))", "output_size"),
    ("roi_head=dict(bbox_roi_extractor=dict(type='GenericRoIExtractor'))", "not SingleRoIExtractor"),
    ("roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)))", "sampling_ratio"),
    ("roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(aligned=False)))", "aligned"),
    ("roi_head=dict(bbox_roi_extractor=dict(finest_scale=28))", "finest_scale"),
    ("roi_head=dict(bbox_head=dict(bbox_coder=dict(clip_border=None)))", "clip_border is None, not True"),
    ("roi_head=dict(bbox_head=dict(reg_predictor_cfg=dict(type='NormedLinear')))", "not Linear"),
    ("roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(type='NormedLinear', power=2.0)))", "power"),
    ("roi_head=dict(mask_head=dict(predictor_cfg=dict(norm_over_kernel=True)))", "norm_over_kernel"),
    ("neck=dict(type='mmdet.PAFPN')", "model.neck.type is 'mmdet.PAFPN', not FPN"),
    ("neck=dict(act_cfg=dict(type='ReLU'))", "act_cfg"),
    ("backbone=dict(conv_cfg=dict(type='ConvWS'))", "conv_cfg.type"),
]


@pytest.mark.parametrize(("config", "said"), OTHERS)
@pytest.mark.parametrize("key", ["config", "cfg"])
def test_settings_that_no_shape_shows_are_held_to(tmp_path, config, said, key):
    message = rf"is another network: .*{re.escape(said)}.*; allowed: a Mask R-CNN with MMDetection's settings"
    refused(written(tmp_path, model(config), key=key), message)


SCALES = "dict(anchor_generator=dict(scales=[4]))"


@pytest.mark.parametrize(
    "config",
    [
        f"RPN = {SCALES}\n" + model("rpn_head=RPN"),
        "ANCHORS = dict(scales=[4])\n" + model("rpn_head=dict(anchor_generator=dict(**ANCHORS))"),
        model() + model(f"rpn_head={SCALES}"),
        "model: dict = " + model(f"rpn_head={SCALES}").partition(" = ")[2],
        '{"model": {"rpn_head": {"anchor_generator": {"scales": [4], "x": null}}}}',
        {"model": {"rpn_head": {"anchor_generator": {"scales": (4,)}}}},
    ],
)
def test_a_setting_is_read_however_plain_python_says_it(config):
    read = MmdetConfig({"config": config})
    assert read.anchor_scale == 4
    assert other_settings(read)[0] == []


def test_both_configs_of_a_file_are_read():
    usual = model("rpn_head=dict(anchor_generator=dict(scales=[8]))")
    for config, cfg in ((usual, model(f"rpn_head={SCALES}")), (model(f"rpn_head={SCALES}"), usual)):
        assert other_settings(MmdetConfig({"config": config, "cfg": cfg}))[0]


@pytest.mark.parametrize(
    "form", [str, lambda config: LINES(f"{key} = {value!r}" for key, value in config.items())], ids=["dict", "lines"]
)
def test_the_config_of_mmdetection_is_taken(form):
    text = form(table("config_r50_lvis05.json"))
    assert "anchor_generator" in text
    config = MmdetConfig({"cfg": text})
    assert other_settings(config) == ([], [])
    assert other_pixels(config) == ("", "")


@pytest.mark.parametrize(
    "config",
    [
        model("rpn_head=dict(anchor_scales=[8], anchor_strides=(4, 8, 16, 32, 64), loss_bbox=dict(type='L1Loss'))"),
        model("rpn_head=dict(anchor_generator=dict(strides=[(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]))"),
        model("roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(output_size=(7, 7), pool_mode=None)))"),
        model(f"rpn_head={SCALES}") + model(),
        f"teacher = dict(rpn_head={SCALES}, backbone=dict(style='caffe'))\n" + model(),
        f"img_norm_cfg = dict(mean={MEAN}, std={STD})\n" + model(),
        model().replace("bgr_to_rgb=True", "bgr_to_rgb=False, rgb_to_bgr=True"),
        '"""Seesaw"""\nfrom mmengine import read_base\nlr = 0.02 * 2\n' + model("train_cfg=dict(rcnn=1)"),
        "a = " + "+".join(["'x'"] * 400) + "\n" + model(),
        "root = 'data\\lvis'\n" + model(),
        "x = [1]\n" + "x = [x, x]\n" * 40 + model(),
    ],
)
def test_what_is_the_same_network_is_taken_without_a_note(config):
    config = MmdetConfig({"config": config})
    assert (other_settings(config), other_pixels(config)) == (([], []), ("", ""))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("no Python: [4", "is not Python: nothing of it but style caffe is checked"),
        (f"/a/b.py\n{model()}/a/c.py\n{model()}", "has `/a/c.py`, which is not checked"),
        ("a = " + "+".join(["'x'"] * 9000), "is not Python"),
        ("x = dict(a=1)\n" + "x = dict(a=x)\n" * 3000, "is not Python"),
        ("x = dict(a=1)\n" + "x = dict(a=x, b=x)\n" * 40, "has more than 10000 settings"),
        ("rpn_head = dict(anchor_scales=[4])", "names no model: its anchors"),
        (f"if True:\n    {model()[9:]}", "names no model.*has `if True: model"),
        (model("rpn_head=dict(anchor_scales=[size])"), r"model.rpn_head.anchor_scales by size, which is not checked"),
        (model("rpn_head=dict(target_stds=[1.0] * n)"), "model.rpn_head.target_stds by"),
        (model("rpn_head=dict([('anchor_scales', [4])])"), "model.rpn_head by dict"),
        (model("rpn_head=dict(**anchors)"), r"model.rpn_head.\*\* by anchors"),
        (model("neck=FPN" + "()" * 150), r"model.neck by FPN\(\)"),
        (model() + "model['rpn_head'].anchor_scales = sizes()", "has `model.* = sizes.*`, which is not checked"),
        (model() + f"model.update(rpn_head={SCALES})", "has `model.update"),
        ("_base_ = 'mask_rcnn.py'\n" + model(), "has `_base_ ="),
        (model("neck=dict(size=3)"), "says model.neck.size is 3, which is not checked"),
        (model("roi_head=dict(bbox_head=dict(loss_cls=dict(type='EQLv2')))"), "loss_cls.type is 'EQLv2'"),
        (model().replace(str(MEAN), "[0.485 * 255, 0, 0]"), "mean by 0.485"),
        ("train_pipeline = steps()\n" + model(), "train_pipeline by steps"),
    ],
)
def test_what_cannot_be_read_of_a_config_is_said(tmp_path, config, said):
    notes = "; ".join(read_mmdet(written(tmp_path, config)).notes)
    assert re.search(said, notes), notes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("img_norm_cfg = dict(mean=[0, 0, 0], std=[255, 255, 255])", "img_norm_cfg.mean is"),
        ({"a": [{"type": "Normalize", "std": [1.0, 1.0, 1.0]}]}, "a.std is"),
        ({"a": [[{"type": "Normalize", "std": "MEAN"}]]}, "a.std is 'MEAN'"),
        (model().replace(str(MEAN), "None"), "data_preprocessor.mean is None"),
        ("model = dict(data_preprocessor=dict(bgr_to_rgb=True))", "data_preprocessor.std is None"),
        ("MEAN = [0, 0, 0]\n" + model().replace(str(MEAN), "MEAN"), r"data_preprocessor.mean is \[0, 0, 0\]"),
    ],
)
def test_another_normalisation_is_refused(tmp_path, config, said):
    refused(written(tmp_path, config), rf"expects other pixels: .*{said}.*; allowed: RGB, mean \[123")


@pytest.mark.parametrize(
    ("config", "sign"),
    [
        ("model = dict(backbone=dict(style='caffe'))", "model.backbone.style is 'caffe'"),
        ("STYLE = 'caffe'\nmodel = dict(backbone=dict(style=STYLE))", "model.backbone.style is 'caffe'"),
        ('{"backbone": {"style": "caffe"}}', "backbone.style is 'caffe'"),
        ({"model": {"backbone": {"style": "caffe"}}}, "model.backbone.style is 'caffe'"),
        (b"model = dict(backbone=dict(style='caffe'))", "model.backbone.style is 'caffe'"),
        ('{"data_preprocessor": {"bgr_to_rgb": false}}', "data_preprocessor: bgr_to_rgb is not True"),
        (model().replace(", bgr_to_rgb=True", ""), "model.data_preprocessor: bgr_to_rgb is not True"),
        (model().replace("=True", "=0"), "model.data_preprocessor: bgr_to_rgb is not True"),
        ("img_norm_cfg = dict(mean=[103.5], to_rgb=False)", "img_norm_cfg: to_rgb is not True"),
        ("p = [dict(type='Normalize', to_rgb=False)]", "p: to_rgb is not True"),
        ("no Python [; backbone=dict(style='caffe')", "style='caffe'"),
        ("/a b/c.py\nmodel = dict(backbone=dict(style='caffe'))\n", "model.backbone.style is 'caffe'"),
    ],
)
@pytest.mark.parametrize("key", ["config", "cfg"])
def test_caffe_style_is_refused(tmp_path, config, sign, key):
    message = rf'are weights of "caffe" style \(its config says {sign}\): BGR pixels, another network; allowed: pytorch'
    refused(written(tmp_path, config, key=key), message)


def test_caffe_in_the_name_is_refused(tmp_path):
    refused(written(tmp_path, "", "mask_rcnn_r50_caffe_fpn.pth"), r'are weights of "caffe" style \(its name says so\)')
