"""Each operation of the network beside MMDetection's own (tests/golden/ops.npz and the isolated heads)."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import nms

from lvis_rcnn.model.boxes import (
    ROI_STDS,
    RPN_STDS,
    STRIDES_PX,
    anchors_in_image,
    base_anchors,
    clip,
    decode,
    encode,
    pairwise_iou,
    pyramid_anchors,
)
from lvis_rcnn.model.matcher import ROI_THRESHOLDS, RPN_THRESHOLDS, assign
from lvis_rcnn.model.postprocess import Candidates, best_of_each_label, detect_boxes, detect_masks
from lvis_rcnn.model.roi_heads import level_of, region_features
from lvis_rcnn.model.rpn import proposals
from tests.helpers.bitmaps import paste_mask
from tests.reference.golden_figures import RECIPE, TEST, arrays, network, uniform

CPU = torch.device("cpu")


def ops(name):
    return torch.from_numpy(arrays("ops")[name])


def levels_hw():
    return [tuple(size) for size in arrays("ops")["anchor_featmap_sizes"].tolist()]


def test_anchors():
    for stride, expected in zip(STRIDES_PX, ops("anchor_base"), strict=True):
        assert torch.equal(base_anchors(8.0 * stride, torch.device("cpu")), expected)
    levels = pyramid_anchors(levels_hw(), 8.0, CPU)
    assert [len(level) for level in levels] == ops("anchor_level_sizes").tolist()
    assert torch.equal(torch.cat(levels), ops("anchor_grid"))


def test_anchors_in_the_padding_of_a_smaller_image_are_left_out():
    inside = anchors_in_image(levels_hw(), tuple(ops("anchor_valid_pad_shape").tolist()), CPU)
    assert torch.equal(torch.cat(inside), ops("anchor_valid_flags"))


@pytest.mark.parametrize(("name", "stds"), [("rpn", RPN_STDS), ("rcnn", ROI_STDS)])
def test_boxes_and_deltas(name, stds):
    boxes, deltas = ops("coder_boxes"), ops("coder_deltas")
    assert_close(encode(boxes, ops("coder_gts"), stds), ops(f"coder_{name}_encode"), atol=1e-5, rtol=1e-5)
    moved = decode(boxes, deltas, stds)
    assert_close(moved, ops(f"coder_{name}_decode_noclip"), atol=1e-4, rtol=1e-6)
    clipped = clip(moved, tuple(ops("coder_max_shape_hw").tolist()))
    assert_close(clipped, ops(f"coder_{name}_decode"), atol=1e-4, rtol=1e-6)


def test_deltas_of_every_class():
    deltas = ops("coder_deltas_20classes").reshape(-1, 4)
    moved = decode(ops("coder_boxes").repeat_interleave(20, dim=0), deltas, ROI_STDS)
    clipped = clip(moved, tuple(ops("coder_max_shape_hw").tolist()))
    assert_close(clipped.reshape(-1, 80), ops("coder_rcnn_decode_20classes"), atol=1e-4, rtol=1e-6)


def test_overlaps():
    assert_close(pairwise_iou(ops("assign_gts"), ops("assign_proposals")), ops("assign_iou"), atol=1e-6, rtol=0)


def test_anchors_are_assigned():
    assert assign(ops("anchor_grid"), ops("assign_gts"), RPN_THRESHOLDS).tolist() == ops("assign_rpn_gt_inds").tolist()


def test_regions_are_assigned():
    boxes, truths = ops("assign_proposals"), ops("assign_gts")
    assert assign(boxes, truths, ROI_THRESHOLDS).tolist() == ops("assign_rcnn_gt_inds").tolist()
    assert assign(boxes, truths[:0], ROI_THRESHOLDS).tolist() == ops("assign_rcnn_no_gt_inds").tolist()


def test_levels():
    assert level_of(ops("level_boxes")).tolist() == ops("level_of_box").tolist()


@pytest.mark.parametrize("size", [7, 14])
def test_region_align(size):
    # 1/4 is the scale of P2, and every region of the figures is small enough to be read there.
    feature = ops("roialign_feat").clone().requires_grad_()
    rois = ops("roialign_rois")
    pooled = torch.cat(
        [
            region_features([feature[int(image) : int(image) + 1]], [box[None]], size)
            for image, box in zip(rois[:, 0], rois[:, 1:], strict=True)
        ]
    )
    assert_close(pooled, ops(f"roialign_out{size}"), atol=1e-5, rtol=0)
    (pooled * torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape)).sum().backward()
    assert_close(feature.grad, ops(f"roialign_grad{size}"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("iou", [50, 70])
def test_plain_nms(iou):
    kept = nms(ops("nms_boxes"), ops("nms_scores"), iou / 100)
    assert kept.tolist() == ops(f"nms_keep_{iou}").tolist()


def per_label(candidates, iou, count):
    """NMS label by label, then the best: what the words say."""
    kept = []
    for label in candidates.labels.unique():
        rows = (candidates.labels == label).nonzero()[:, 0]
        kept.append(rows[nms(candidates.boxes_xyxy[rows], candidates.scores[rows], iou)])
    rows = torch.cat(kept)
    return candidates[rows[candidates.scores[rows].argsort(descending=True, stable=True)[:count]]]


@pytest.mark.parametrize("variant", ["c20", "c1230"])
@pytest.mark.parametrize(("form", "suffix"), [("exact", "_no_offset"), ("offset", "")])
def test_nms_of_many_labels(variant, form, suffix):
    boxes, scores = ops(f"mcnms_{variant}_boxes"), ops(f"mcnms_{variant}_scores")[:, :-1]
    rows, labels = (scores > 1e-4).nonzero().unbind(1)
    candidates = Candidates(boxes[rows], labels + 1, scores[rows, labels])
    found = best_of_each_label(candidates, TEST.model_copy(update={"nms": form}))
    expected = ops(f"mcnms_{variant}_dets{suffix}")
    # The last places may tie.
    assert torch.equal(found.scores, expected[:, 4])
    clear = found.scores > found.scores[-1]
    assert torch.equal(found.boxes_xyxy[clear], expected[clear][:, :4])
    assert (found.labels[clear] - 1).tolist() == ops(f"mcnms_{variant}_labels{suffix}")[clear].tolist()
    independent = per_label(candidates, 0.5, 300)
    assert torch.equal(found.scores, independent.scores)


def test_masks_are_pasted():
    height, width = arrays("ops")["paste_hw"].tolist()
    probabilities, boxes = ops("paste_prob"), ops("paste_boxes")
    pasted = np.stack([paste_mask(mask, box, height, width) for mask, box in zip(probabilities, boxes, strict=True)])
    # Where the probability is not within rounding of one half.
    clear = np.abs(arrays("ops")["paste_full_f16"].astype(np.float32) - 0.5) > 1e-3
    assert (pasted == arrays("ops")["paste_cpu_masks"])[clear].all()
    assert (pasted == arrays("ops")["paste_full_masks"])[clear].all()
    assert (pasted != arrays("ops")["paste_cpu_masks"]).sum() == 0


# The heads of variant c20 on features that are functions of their names: no error of the trunk can hide one here.
LEVEL_SIZES = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))


def isolated(name):
    return torch.from_numpy(arrays("isolated_c20")[name])


def made_up_features():
    return [
        torch.from_numpy((np.sqrt(3) * uniform(f"synthetic.P{level}", (1, 256, *size))).astype(np.float32))
        for level, size in enumerate(LEVEL_SIZES, start=2)
    ]


def as_sets_close(found, found_scores, expected, expected_scores, atol_px=0.01, atol=2e-4):
    """Each box has a partner of the same score within rounding: order is not stable under it."""
    assert len(found) == len(expected)
    distances = (found[:, None] - expected[None]).abs().amax(dim=2)
    partners = distances + 1e3 * ((found_scores[:, None] - expected_scores[None]).abs() > atol)
    assert partners.min(dim=0).values.max() < atol_px
    assert partners.min(dim=1).values.max() < atol_px


@torch.no_grad()
def test_proposals_of_made_up_features():
    predictions = network().eval().rpn(made_up_features())
    for level, (logits, deltas, (height, width)) in enumerate(
        zip(predictions.logits, predictions.deltas, LEVEL_SIZES, strict=True), start=2
    ):
        expected = isolated(f"rpn_cls_P{level}").permute(0, 2, 3, 1).reshape(1, -1)
        assert_close(logits, expected, atol=2e-4, rtol=0)
        expected = isolated(f"rpn_reg_P{level}").permute(0, 2, 3, 1).reshape(1, height * width * 3, 4)
        assert_close(deltas, expected, atol=2e-4, rtol=0)
    height, width = isolated("meta_img_shape").tolist()
    ((boxes, scores),) = proposals(predictions, [(height, width)], 1000, 1000)
    as_sets_close(boxes, scores, isolated("proposals"), isolated("proposal_scores"))


@torch.no_grad()
def test_heads_on_given_regions():
    features, heads, rois = made_up_features(), network().eval().roi_heads, isolated("rois")
    assert level_of(rois).tolist() == isolated("roi_levels").tolist()
    cells = region_features(features, [rois], 7)
    assert_close(cells[:, :8], isolated("roi_feats7"), atol=1e-5, rtol=0)
    assert_close(region_features(features, [rois], 14)[:, :4], isolated("roi_feats14"), atol=1e-5, rtol=0)
    hidden = heads.box_head(cells)
    # MMDetection's background is the last column.
    assert_close(heads.box_predictor.cls_score(hidden).roll(-1, dims=1), isolated("cls_score"), atol=2e-4, rtol=0)
    assert_close(heads.box_predictor.bbox_pred(hidden), isolated("bbox_pred"), atol=2e-4, rtol=0)
    masks = heads.mask_head(region_features(features, [rois[:12]], 14))
    for label in range(1, 21):
        logits = heads.mask_predictor(masks, torch.full((12,), label))
        assert_close(logits, isolated("mask_logits_head")[:, label - 1], atol=2e-4, rtol=0)


@torch.no_grad()
def test_detections_in_given_regions():
    features, heads = made_up_features(), network().eval().roi_heads
    height, width = isolated("meta_img_shape").tolist()
    (found,) = detect_boxes(heads, features, [isolated("rois")], [(height, width)], TEST)
    scale = torch.from_numpy(arrays("isolated_c20")["meta_scale_factor"]).float().repeat(2)
    boxes = found.boxes_xyxy / scale
    as_sets_close(boxes, found.scores, isolated("det_boxes"), isolated("det_scores"))
    assert ((found.labels - 1).bincount(minlength=20) == isolated("det_labels").bincount(minlength=20)).all()
    probabilities = detect_masks(heads, features, [found])[0].sigmoid()
    height, width = isolated("meta_ori_shape").tolist()
    expected = arrays("isolated_c20")["det_masks"]
    distances = (boxes[:, None] - isolated("det_boxes")[None]).abs().amax(dim=2)
    partners = (distances + 1e3 * (found.labels[:, None] - 1 != isolated("det_labels")[None])).argmin(dim=1)
    for mask, box, partner in zip(probabilities, boxes, partners, strict=True):
        assert (paste_mask(mask, box, height, width) != expected[partner]).sum() <= 6


def test_recipe_is_that_of_the_configuration():
    from tests.reference.golden_figures import table

    model = table("config_r50_lvis05.json")["model"]
    train, test = model["train_cfg"], model["test_cfg"]
    assert (train["rpn"]["sampler"]["num"], train["rcnn"]["sampler"]["num"]) == (256, 512)
    assert (RECIPE.anchors_per_image, RECIPE.rois_per_image) == (256, 512)
    for settings, proposals_of in ((RECIPE, train["rpn_proposal"]), (TEST, test["rpn"])):
        assert settings.proposals_before_nms == proposals_of["nms_pre"]
        assert settings.proposals_after_nms == proposals_of["max_per_img"]
    assert (TEST.score_threshold, TEST.detections_per_image) == (
        test["rcnn"]["score_thr"],
        test["rcnn"]["max_per_img"],
    )
    for thresholds, assigner in (
        (RPN_THRESHOLDS, train["rpn"]["assigner"]),
        (ROI_THRESHOLDS, train["rcnn"]["assigner"]),
    ):
        assert (thresholds.positive, thresholds.negative) == (assigner["pos_iou_thr"], assigner["neg_iou_thr"])
        assert thresholds.low_quality == assigner["min_pos_iou"]
        assert assigner["match_low_quality"]
