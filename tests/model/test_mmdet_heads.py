"""Files of MMDetection with other heads, Seesaw and normalised predictors: read for what they are, and written so."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from lvis_rcnn import weights as weights_module
from lvis_rcnn.config.schema import BACKBONES, Seesaw
from lvis_rcnn.inference.standalone import RECIPE, load_standalone
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.model.mmdet import PUBLISHED, MmdetFile, converted, read_mmdet, write_mmdet
from lvis_rcnn.model.normalised import NormalisedLinear
from lvis_rcnn.model.weights import load_model
from lvis_rcnn.system.cli import InputError
from tests.helpers.flat_weights import flat_state, same, write_old

R50 = BACKBONES["r50"]
NAMES = ("bear", "cup", "kite")
SEESAW = PUBLISHED.model_copy(update={"classification": "seesaw"})
COUNTS = "roi_head.bbox_head.loss_cls.cum_samples"
# As configs/seesaw_loss/ of MMDetection says it, its spelling included.
BOX = "bbox_head=dict(cls_predictor_cfg=dict(type='NormedLinear', tempearture=20), loss_cls=dict(type='SeesawLoss'))"
MASK = "mask_head=dict(predictor_cfg=dict(type='NormedConv2d', tempearture=20))"
NORMALISED_BOX = {"classification": "seesaw", "box_classifier": "normalised"}


def seesaw_state():
    state = flat_state(R50, 3, SEESAW)
    return {**state, COUNTS: torch.tensor([30.0, 20.0, 10.0, 2.0**24 + 2])}


def file_of(config, state=None):
    return MmdetFile(
        Path("seesaw.pth"), "", seesaw_state() if state is None else state, {"config": config, "CLASSES": NAMES}
    )


def test_names_shapes_and_order_of_rows():
    state = seesaw_state()
    keys = list(state)
    assert keys.index(COUNTS) < keys.index("roi_head.bbox_head.fc_cls.weight")
    assert (state[COUNTS].shape, state["roi_head.bbox_head.fc_cls.bias"].shape) == ((4,), (5,))
    file = file_of(f"model = dict({BOX})", state)
    assert file.num_categories == 3
    ours = converted(file, "r50", 3)
    # MMDetection: classes, object, background. Here the background is the first.
    assert ours["roi_heads.box_predictor.cls_score.bias"].tolist() == [4, 0, 1, 2, 3]
    counts = ours["roi_heads.box_predictor.counters.cum_samples"]
    assert (counts.dtype, counts.tolist()) == (torch.int64, [[2**24 + 2, 30, 20, 10]])
    assert ours.keys() == network_on_meta(R50, 4, SEESAW).state_dict().keys()


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (f"model = dict({BOX})", NORMALISED_BOX),
        (f"model = dict({BOX}, {MASK})", {**NORMALISED_BOX, "mask_predictor": "normalised"}),
        ("model = dict(loss_cls=dict(type='SeesawLoss'))", {"classification": "seesaw"}),
        ("work_dir = 'NormedLinear'; model = dict(loss_cls=dict(type='SeesawLoss'))", {"classification": "seesaw"}),
        ({"model": {"cls_predictor_cfg": {"type": "NormedLinear", "tempearture": 20}}}, NORMALISED_BOX),
    ],
)
def test_heads_are_told_by_weights_and_config(config, heads):
    assert file_of(config).heads == heads


def test_a_plain_file_has_plain_heads_and_the_cosine_classifier_alone_is_known():
    plain = flat_state(R50, 3)
    assert file_of("model = dict()", plain).heads == {}
    assert file_of("", plain).heads == {}
    cosine = file_of("model = dict(cls_predictor_cfg=dict(type='NormedLinear', tempearture=20))", plain)
    assert cosine.heads == {"box_classifier": "normalised"}
    assert same(converted(cosine, "r50", 3), converted(file_of("", plain), "r50", 3))


@pytest.mark.parametrize("config", ["", "not Python: [", "work_dir = 'NormedLinear'"])
def test_seesaw_without_a_config_is_refused(config):
    with pytest.raises(InputError, match="of Seesaw loss and no config names its model: are its pred"):
        converted(file_of(config), "r50", 3)


def test_another_temperature_is_refused(tmp_path):
    meta = {"config": f"T = 16\nmodel = dict({BOX.replace('20', 'T')})", "CLASSES": NAMES}
    path = write_old(tmp_path / "theirs.pth", {"meta": meta, "state_dict": seesaw_state()})
    with pytest.raises(InputError, match=r"bbox_head.cls_predictor_cfg.tempearture is 16, not 20"):
        read_mmdet(path)


@pytest.mark.parametrize("mask", ["", f", {MASK}"])
def test_import_detect_and_export_as_commands(tmp_path, monkeypatch, mask):
    heads = NORMALISED_BOX | ({"mask_predictor": "normalised"} if mask else {})
    meta = {"config": f"model = dict({BOX}{mask})", "CLASSES": NAMES, "mmdet_version": "2.22.0"}
    path = write_old(tmp_path / "theirs.pth", {"meta": meta, "state_dict": seesaw_state()})
    model, back = tmp_path / "model.pth", tmp_path / "back.pth"
    for words in (
        ["import", path, "--backbone", "r50", "--categories", 3, "--out", model],
        ["export", model, "--out", back],
    ):
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, words)])
        weights_module.main()
    assert load_model(model)[1]["heads"] == heads
    written = read_mmdet(back)
    assert same(written.state, seesaw_state())
    assert written.heads == heads
    assert "p=0.8, q=2.0, eps=0.01, num_classes=3" in written.config.texts[0]
    ast.parse(written.config.texts[0])
    for file in (path, model, back):
        network = load_standalone(file, torch.device("cpu"))
        assert isinstance(network.model.roi_heads.box_predictor.cls_score, NormalisedLinear)
        assert network.model.roi_heads.box_predictor.classification == "seesaw"
        assert network.model.roi_heads.mask_predictor.kind == ("normalised" if mask else "linear")
        assert network.test == RECIPE


def test_a_trained_model_is_written_with_what_its_study_said(tmp_path):
    settings = SEESAW.model_copy(update={"seesaw": Seesaw(mitigation=0.5), "mask_predictor": "normalised"})
    file = file_of("model = dict(loss_cls=dict(type='SeesawLoss'))")
    state = converted(file, "r50", 3)
    # Several counters are processes of MMDetection, of which the first is saved.
    counts = state["roi_heads.box_predictor.counters.cum_samples"]
    state["roi_heads.box_predictor.counters.cum_samples"] = torch.cat([counts, counts + 5])
    meta = {"backbone": "r50", "CLASSES": NAMES, "settings": {"model": settings.model_dump(mode="json")}}
    written = read_mmdet(write_mmdet(tmp_path / "a.pth", state, meta, publish=False))
    assert same(written.state, file.state)
    assert written.heads == {"classification": "seesaw", "mask_predictor": "normalised"}
    assert "p=0.5, q=2.0" in written.config.texts[0]


@pytest.mark.parametrize(
    "odd", [{"mitigation": float("nan")}, {"compensation": -1.0}, {"epsilon": "x"}, {"z": 1}, None]
)
def test_a_model_that_says_odd_factors_is_not_written(tmp_path, odd):
    state = converted(file_of("model = dict(loss_cls=dict(type='SeesawLoss'))"), "r50", 3)
    meta = {"backbone": "r50", "CLASSES": NAMES, "settings": {"model": {"classification": "seesaw", "seesaw": odd}}}
    with pytest.raises(InputError, match=r"model: says of its Seesaw loss: .*; allowed: mitigation and compensation, "):
        write_mmdet(tmp_path / "a.pth", state, meta, publish=False)
    assert list(tmp_path.iterdir()) == []
