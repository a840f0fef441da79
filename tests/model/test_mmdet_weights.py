"""MMDetection's names and ours: the same tensors, only the classifier's rows in another order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.model.mmdet import backbone_of, layout, require_shapes, to_mmdet, to_ours
from lvis_rcnn.system.cli import InputError
from tests.helpers.flat_weights import flat_state, same
from tests.helpers.tiny_run import SMALLEST
from tests.reference.golden_figures import RECIPE, table

# One key of every row, with a number other than 0 where there are several.
PAIRS = {
    "backbone.layer3.5.bn2.running_var": "backbone.body.layer3.5.bn2.running_var",
    "backbone.layer2.0.downsample.1.bias": "backbone.body.layer2.0.downsample.1.bias",
    "neck.lateral_convs.3.conv.weight": "backbone.fpn.inner_blocks.3.0.weight",
    "neck.fpn_convs.2.conv.bias": "backbone.fpn.layer_blocks.2.0.bias",
    "rpn_head.rpn_conv.weight": "rpn.head.conv.0.0.weight",
    "rpn_head.rpn_cls.weight": "rpn.head.cls_logits.weight",
    "rpn_head.rpn_reg.bias": "rpn.head.bbox_pred.bias",
    "roi_head.bbox_head.fc_cls.bias": "roi_heads.box_predictor.cls_score.bias",
    "roi_head.bbox_head.fc_reg.weight": "roi_heads.box_predictor.bbox_pred.weight",
    "roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_head.fc6.weight",
    "roi_head.bbox_head.shared_fcs.1.bias": "roi_heads.box_head.fc7.bias",
    "roi_head.mask_head.convs.1.conv.weight": "roi_heads.mask_head.1.0.weight",
    "roi_head.mask_head.upsample.weight": "roi_heads.mask_predictor.conv5_mask.weight",
    "roi_head.mask_head.conv_logits.bias": "roi_heads.mask_predictor.mask_fcn_logits.bias",
}


def structure(name):
    """Keys and shapes of MMDetection's own state dict of 1230 classes, in its order."""
    return {key: tuple(shape) for key, shape in table(f"structure_{name}_lvis05.json.gz")["state_dict"].items()}


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS.items())
def test_names_by_hand(theirs, ours):
    assert list(to_mmdet({ours: torch.zeros(2)})) == [theirs]
    assert ours in to_ours({theirs: torch.zeros(2)})


@pytest.mark.parametrize("name", BACKBONES)
def test_keys_order_and_shapes_are_those_of_mmdetection(name):
    expected = structure(name)
    assert list(layout(BACKBONES[name], 1230).items()) == list(expected.items())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    assert shapes_of(to_ours(theirs)) == shapes_of(network_on_meta(BACKBONES[name], 1231, RECIPE).state_dict())


def test_the_background_moves_from_the_last_row_to_the_first_and_back():
    theirs = {
        "roi_head.bbox_head.fc_cls.weight": torch.tensor([[1.0, 1.5], [2.0, 2.5], [9.0, 9.5]]),
        "roi_head.bbox_head.fc_cls.bias": torch.tensor([1.0, 2.0, 9.0]),
        "roi_head.bbox_head.fc_reg.bias": torch.arange(8.0),
        "roi_head.mask_head.conv_logits.bias": torch.tensor([1.0, 2.0]),
    }
    ours = to_ours(theirs)
    assert ours["roi_heads.box_predictor.cls_score.weight"].tolist() == [[9.0, 9.5], [1.0, 1.5], [2.0, 2.5]]
    assert ours["roi_heads.box_predictor.cls_score.bias"].tolist() == [9.0, 1.0, 2.0]
    assert ours["roi_heads.box_predictor.bbox_pred.bias"].tolist() == list(range(8))
    assert ours["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [1.0, 2.0]
    assert same(to_mmdet(ours), theirs)


@pytest.mark.parametrize("name", BACKBONES)
def test_there_and_back_is_the_identity(name):
    theirs = flat_state(BACKBONES[name], 7)
    ours = to_ours(theirs)
    assert len(ours) == len(theirs)
    back = to_mmdet(ours)
    assert list(back) == list(theirs)
    assert same(back, theirs)
    assert same(to_ours(back), ours)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=40))
def test_every_bit_comes_back(bits):
    # NaN, infinity and -0 among them.
    rows = torch.tensor(bits, dtype=torch.int32).view(torch.float32)[:, None]
    ours = to_ours({"roi_head.bbox_head.fc_cls.weight": rows})
    (back,) = to_mmdet(ours).values()
    assert back.view(torch.int32).flatten().tolist() == bits
    assert same(to_ours({"roi_head.bbox_head.fc_cls.weight": back}), ours)


def test_absent_batch_counters_become_zero():
    whole = flat_state(BACKBONES["r50"], 3)
    old = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    assert len(whole) - len(old) == 53
    require_shapes("a.pth", old, layout(BACKBONES["r50"], 3), "R-50")
    ours = to_ours(old)
    counters = {key: value for key, value in ours.items() if key.endswith("num_batches_tracked")}
    assert ours.keys() == to_ours(whole).keys()
    assert len(counters) == 53
    assert all(value.dtype == torch.int64 and value.shape == () and value == 0 for value in counters.values())


def test_mean_and_deviation_of_the_pixels_are_left_out():
    pixels = {"data_preprocessor.mean": torch.zeros(3, 1, 1), "backbone.fc.bias": torch.ones(1000)}
    state = flat_state(BACKBONES["r50"], 3)
    require_shapes("a.pth", state | pixels, layout(BACKBONES["r50"], 3), "R-50")
    assert same(to_ours(state | pixels), to_ours(state))


def test_a_foreign_key_is_named_with_those_that_fit():
    with pytest.raises(InputError, match=r"mask_iou_head.fc.bias: .*allowed: .* backbone\., neck\.lateral_convs\.#\."):
        to_ours({"roi_head.mask_iou_head.fc.bias": torch.zeros(1)})
    with pytest.raises(InputError, match=r"state_dict: fc.bias: .*begin with backbone\.body\., backbone\.fpn\.inner"):
        to_mmdet({"fc.bias": torch.zeros(1)})


def test_what_does_not_fit_is_counted_and_the_first_named():
    expected = {"a": (2,), "b": (3, 1), "c": (), "n.num_batches_tracked": ()}
    fitting = {"a": torch.zeros(2), "b": torch.zeros(3, 1), "c": torch.tensor(0)}
    require_shapes("w.pth", fitting, expected, "R-50")
    wrong = {"a": torch.zeros(4), "b": torch.zeros(1, 3), **dict.fromkeys("wxyz", torch.zeros(1))}
    counts = r"1 missing \(c\), 4 unexpected \(w, x, y, …\), 2 of another shape"
    with pytest.raises(InputError, match=rf"w.pth: .*{counts} \(a \(4,\) instead of \(2,\), b \(1, 3\) instead.*R-50"):
        require_shapes("w.pth", wrong, expected, "R-50")
    with pytest.raises(InputError, match=r"do not fit: 1 of another shape \(c \(1,\) instead of \(\)\); allowed"):
        require_shapes("w.pth", fitting | {"c": torch.zeros(1)}, expected, "R-50")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("prefix", ["backbone.", "backbone.body.", ""])
def test_a_backbone_is_known_by_its_shapes(name, prefix):
    state = {
        key.replace("backbone.", prefix, 1): torch.empty(shape, device="meta") for key, shape in structure(name).items()
    }
    assert backbone_of(state, prefix) == name


def test_another_backbone_is_none_of_ours():
    assert backbone_of(flat_state(SMALLEST, 3), "backbone.") is None
    assert backbone_of(flat_state(BACKBONES["r50"], 3), "backbone.body.") is None
    cut = flat_state(BACKBONES["r101"], 3)
    del cut["backbone.layer3.22.conv2.weight"]
    assert backbone_of(cut, "backbone.") is None
