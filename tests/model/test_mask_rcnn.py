"""The network: published parameter counts, what learns and what does not, dense forms and the shorter ones."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import maskrcnn_resnet50_fpn

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.dataloader.batches import Batch, Target
from lvis_rcnn.dataloader.masks import mask_crops
from lvis_rcnn.model.backbone import normalised_convolution
from lvis_rcnn.model.boxes import pairwise_iou
from lvis_rcnn.model.mask_rcnn import MaskRcnn, detect, losses, network_on_meta
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.model.postprocess import Candidates, best_of_each_label
from lvis_rcnn.model.rpn import ProposalNetwork
from tests.helpers.tiny_run import SMALL, SMALL_TEST, SMALLEST

PUBLISHED = SMALL.model_copy(update={"normalization": "fixed_batch", "frozen_stages": 1})
LOSSES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
CATEGORIES = 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    return awake(MaskRcnn(SMALLEST, CATEGORIES + 1, SMALL))


def awake(model):
    """Let the blocks speak that begin as zero, so that gradients reach everything."""
    for name, value in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(value, 0.5)
    return model


def target(*boxes, size=(64, 64)):
    outlines = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)] for x0, y0, x1, y1 in boxes]
    labels = torch.arange(len(boxes)) % CATEGORIES + 1
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes_xyxy, labels, mask_crops(outlines, size, size, False))


def batch(*targets, sizes=None):
    pixels = torch.rand(len(targets), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sizes = sizes or [(64, 64)] * len(targets)
    return Batch(pixels, sizes, sizes, list(range(len(targets))), list(targets))


def chance(seed=0):
    return random_choice(torch.Generator().manual_seed(seed))


@pytest.fixture
def head_and_levels():
    """A proposal head whose values are no near-zeros, and the levels of one image, one of a single cell."""
    torch.manual_seed(2)
    network = ProposalNetwork(8, 4.0)
    for value in network.parameters():
        torch.nn.init.normal_(value)
    return network, [torch.randn(8, *size, requires_grad=True) for size in ((5, 7), (3, 4), (2, 2), (1, 1), (1, 1))]


def test_the_head_at_anchors_is_the_head_on_whole_levels(head_and_levels):
    network, levels = head_and_levels
    dense = network([level[None] for level in levels])
    logits, deltas = torch.cat(dense.logits, dim=1)[0], torch.cat(dense.deltas, dim=1)[0]
    chosen = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([chosen, chosen[:20]])  # whole levels with their borders; some twice
    at = network.at_anchors(levels, chosen)
    weights = torch.randn(len(chosen), 5)
    gradients = []
    for found_logits, found_deltas in (at, (logits[chosen], deltas[chosen])):
        total = (torch.cat([found_logits[:, None], found_deltas], dim=1) * weights).sum()
        gradients.append(torch.autograd.grad(total, [*levels, *network.parameters()], retain_graph=True))
    torch.testing.assert_close(at, (logits[chosen], deltas[chosen]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


def test_no_anchors_are_no_numbers_and_zero_gradients(head_and_levels):
    network, levels = head_and_levels
    logits, deltas = network.at_anchors(levels, torch.zeros(0, dtype=torch.int64))
    assert (logits.shape, deltas.shape) == ((0,), (0, 4))
    gradients = torch.autograd.grad(logits.sum() + deltas.sum(), [*levels, *network.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)


def test_under_autocast_the_head_learns_after_a_pass_without_gradient(head_and_levels):
    network, levels = head_and_levels
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            network([level[None] for level in levels])
        logits, deltas = network.at_anchors(levels, torch.arange(50))
    (logits.float().sum() + deltas.float().sum()).backward()
    assert all((value.grad != 0).any() for value in network.parameters())


TWO = (target((8, 8, 40, 40), (20, 30, 60, 60)), target((4, 30, 30, 60)))


# Published counts: torchvision has 4,357 more, for rows of the background that nothing reads.
@pytest.mark.parametrize(
    ("name", "parameters", "frozen"),
    [
        ("r50", 50_585_636, 225_344),
        ("r101", 69_577_764, 225_344),
        ("x101_32x4d", 69_206_308, 215_360),
        ("x101_64x4d", 108_483_876, 402_752),
    ],
)
def test_parameters_are_the_published_ones(name, parameters, frozen):
    model = network_on_meta(BACKBONES[name], 1231, PUBLISHED)
    counts = Counter()
    for value in model.parameters():
        counts[value.requires_grad] += value.numel()
    assert counts.total() == parameters
    assert counts[False] == frozen
    roots = ("backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.")
    assert all(key.startswith(roots) for key in model.state_dict())


def test_names_are_those_of_torchvision():
    with torch.device("meta"):
        ours = MaskRcnn(BACKBONES["r50"], 91, SMALL).state_dict()
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert ours.keys() == theirs.keys()
    differing = {key for key, value in ours.items() if value.shape != theirs[key].shape}
    assert differing == {
        f"roi_heads.{name}.{kind}"
        for name in ("box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        for kind in ("weight", "bias")
    }


def test_five_losses_whose_gradients_reach_every_parameter(model):
    torch.manual_seed(0)
    parts = losses(model.train(), batch(*TWO), chance())
    assert set(parts) == LOSSES
    assert all(torch.isfinite(value) and value > 0 for value in parts.values())
    sum(parts.values()).backward()
    for name, value in model.named_parameters():
        assert torch.isfinite(value.grad).all(), name
        # P5 and P6 get no region here: what no anchor or region of this batch touches has a gradient of zero.
        assert value.grad.any() or "fpn" in name, name


def test_fixed_statistics_stay_and_their_scales_learn():
    torch.manual_seed(0)
    model = awake(MaskRcnn(SMALLEST, CATEGORIES + 1, PUBLISHED)).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(losses(model, batch(*TWO), chance()).values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    body = model.backbone.body
    assert body.layer2[0].bn1.weight.grad.any()
    assert body.layer2[0].bn1.bias.grad.any()
    assert all(value.grad is None for part in (body.conv1, body.bn1, body.layer1) for value in part.parameters())


def test_only_statistics_of_frozen_stages_stay_with_batch_normalisation():
    model = MaskRcnn(SMALLEST, CATEGORIES + 1, SMALL.model_copy(update={"frozen_stages": 1})).train()
    body = model.backbone.body
    before = [norm.running_mean.clone() for norm in (body.bn1, body.layer1[0].bn1, body.layer2[0].bn1)]
    model.backbone(batch(*TWO).pixels)
    after = [norm.running_mean for norm in (body.bn1, body.layer1[0].bn1, body.layer2[0].bn1)]
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True, True, False]


def test_images_without_objects(model):
    for targets in ((target(),), (target(), TWO[0]), (target(), target())):
        parts = losses(model.train(), batch(*targets), chance())
        assert all(torch.isfinite(value) for value in parts.values())
        sum(parts.values()).backward()
    assert parts["loss_mask"] == 0
    assert parts["loss_bbox"] == 0


def test_detections_are_sorted_and_inside_the_image(model):
    model.eval()
    sizes = [(64, 64), (50, 40)]
    for found, (height, width) in zip(detect(model, batch(*TWO, sizes=sizes), SMALL_TEST), sizes, strict=True):
        assert 0 < len(found.scores) <= 10
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert ((found.labels >= 1) & (found.labels <= CATEGORIES)).all()
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= torch.tensor([width, height] * 2)).all()
        assert found.mask_logits.shape == (len(found.scores), 28, 28)


def test_a_batch_finds_what_its_images_find_alone(model):
    model.eval()
    both = batch(*TWO)
    for index, found in enumerate(detect(model, both, SMALL_TEST)):
        (alone,) = detect(model, replace(both, pixels=both.pixels[index : index + 1], sizes_hw=[(64, 64)]), SMALL_TEST)
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)


def test_nothing_above_the_threshold_is_no_error():
    model = MaskRcnn(SMALLEST, CATEGORIES + 1, SMALL).eval()
    (found,) = detect(model, batch(TWO[0]), SMALL_TEST.model_copy(update={"score_threshold": 1.0}))
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.mask_logits.shape == (0, 28, 28)


def test_a_label_alone_has_the_value_and_gradient_of_all_labels(model):
    predictor = model.roi_heads.mask_predictor
    features = torch.rand(7, 256, 14, 14, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([1, 5, 3, 3, 2, 5, 1])
    wanted = (torch.rand(7, 28, 28, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    found = {}
    for form in ("own", "all"):
        model.zero_grad()
        inputs = features.clone().requires_grad_()
        if form == "own":
            logits = predictor(inputs, labels)
        else:
            everything = predictor.mask_fcn_logits(torch.relu(predictor.conv5_mask(inputs)))
            logits = everything[torch.arange(7), labels - 1]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted).backward()
        gradients = [inputs.grad, *(value.grad.clone() for value in predictor.parameters())]
        found[form] = [logits.detach(), *gradients]
    for own, whole in zip(found["own"], found["all"], strict=True):
        torch.testing.assert_close(own, whole, rtol=1e-5, atol=1e-5)
    assert not found["own"][-2][3].any()  # label 4 is nobody's


@pytest.mark.parametrize("groups", [1, 4])
def test_a_normalised_convolution_is_the_two_layers(groups):
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(8, 12, 3, 2, 1, groups=groups, bias=False), torch.nn.BatchNorm2d(12).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(value)
    torch.nn.init.uniform_(norm.running_var, 0.1, 3)
    parameters = [convolution.weight, norm.weight, norm.bias]
    x, weights = torch.rand(2, 8, 11, 9, requires_grad=True), torch.rand(2, 12, 6, 5)
    found = []
    for apply in (lambda: normalised_convolution(convolution, norm, x), lambda: norm(convolution(x))):
        value = apply()
        found.append([value.detach(), *torch.autograd.grad((value.relu() * weights).sum(), [x, *parameters])])
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def all_candidates(count, labels, seed):
    """Overlapping boxes of a few labels, with scores that often tie."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2, generator=generator) * 20], dim=1)
    scores = (torch.rand(count, generator=generator) * 200).round() / 200
    return Candidates(boxes, torch.randint(1, labels + 1, (count,), generator=generator), scores)


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_best_candidates_are_enough(count, labels, wanted, seed):
    # Label by label over all candidates: nothing is cut, no box is shifted.
    candidates = all_candidates(count, labels, seed)
    kept = []
    for label in range(1, labels + 1):
        rows = (candidates.labels == label).nonzero()[:, 0]
        order = rows[candidates.scores[rows].argsort(descending=True, stable=True)]
        while len(order):
            kept.append(order[0])
            apart = pairwise_iou(candidates.boxes_xyxy[order[:1]], candidates.boxes_xyxy[order])[0] <= 0.5
            order = order[apart]
    rows = torch.stack(kept).sort().values
    rows = rows[candidates.scores[rows].argsort(descending=True, stable=True)][:wanted]
    found = best_of_each_label(candidates, SMALL_TEST.model_copy(update={"detections_per_image": wanted}))
    assert torch.equal(found.boxes_xyxy, candidates.boxes_xyxy[rows])
    assert torch.equal(found.labels, candidates.labels[rows])
