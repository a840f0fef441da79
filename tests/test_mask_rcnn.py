"""The network: published parameter counts, what learns and what does not, and torchvision's own losses."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import SMALLEST
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.data import Batch, Target
from lvis_rcnn.model import mask_rcnn
from lvis_rcnn.model.backbone import build_backbone
from lvis_rcnn.model.mask_rcnn import MaskRcnn, Settings, detect, losses

SETTINGS = Settings(
    weights="none",
    normalization="batch",
    frozen_stages=0,
    anchor_scale=4.0,
    anchors_per_image=64,
    rois_per_image=16,
    roi_positive_fraction=0.25,
    proposals_before_nms=(100, 80),
    proposals_after_nms=(50, 40),
    score_threshold=0.01,
    nms_iou=0.5,
    detections_per_image=10,
)
PUBLISHED = replace(SETTINGS, normalization="fixed_batch", frozen_stages=1)
LOSSES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
CATEGORIES = 5


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return awake(MaskRcnn(SMALLEST, CATEGORIES + 1, SETTINGS))


def awake(model):
    """Let the blocks speak that begin as zero, so that gradients reach everything."""
    for name, value in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(value, 0.5)
    return model


def target(*boxes, size=(64, 64)):
    masks = np.zeros((len(boxes), *size), dtype=np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(len(boxes)) % CATEGORIES + 1
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, torch.from_numpy(masks))


def batch(*targets, sizes=None):
    pixels = torch.rand(len(targets), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return Batch(pixels, sizes or [(64, 64)] * len(targets), list(range(len(targets))), list(targets))


TWO = (target((8, 8, 40, 40), (20, 30, 60, 60)), target((4, 30, 30, 60)))


# recipe: published counts, whose predictors have no row for the background: 4,357 parameters less.
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
    with torch.device("meta"):
        model = MaskRcnn(BACKBONES[name], 1231, PUBLISHED)
    counts = Counter()
    for value in model.parameters():
        counts[value.requires_grad] += value.numel()
    assert counts.total() == parameters + 4_357
    assert counts[False] == frozen
    roots = ("backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.")
    assert all(key.startswith(roots) for key in model.state_dict())


def test_names_are_those_of_torchvision():
    with torch.device("meta"):
        ours = MaskRcnn(BACKBONES["r50"], 91, SETTINGS).state_dict()
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_five_losses_whose_gradients_reach_every_parameter(model):
    torch.manual_seed(0)
    parts = losses(model.train(), batch(*TWO))
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
    sum(losses(model, batch(*TWO)).values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    body = model.backbone.body
    assert body.layer2[0].bn1.weight.grad.any()
    assert body.layer2[0].bn1.bias.grad.any()
    assert all(value.grad is None for part in (body.conv1, body.bn1, body.layer1) for value in part.parameters())


def test_only_statistics_of_frozen_stages_stay_with_batch_normalisation():
    model = MaskRcnn(SMALLEST, CATEGORIES + 1, replace(SETTINGS, frozen_stages=1)).train()
    body = model.backbone.body
    before = [norm.running_mean.clone() for norm in (body.bn1, body.layer1[0].bn1, body.layer2[0].bn1)]
    model.backbone(batch(*TWO).pixels)
    after = [norm.running_mean for norm in (body.bn1, body.layer1[0].bn1, body.layer2[0].bn1)]
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True, True, False]


def test_images_without_objects(model):
    for targets in ((target(),), (target(), TWO[0]), (target(), target())):
        parts = losses(model.train(), batch(*targets))
        assert all(torch.isfinite(value) for value in parts.values())
        sum(parts.values()).backward()
    assert parts["loss_mask"] == 0
    assert parts["loss_bbox"] == 0


def test_detections_are_sorted_and_inside_the_image(model):
    model.eval()
    sizes = [(64, 64), (50, 40)]
    for found, (height, width) in zip(detect(model, batch(*TWO, sizes=sizes)), sizes, strict=True):
        assert 0 < len(found.scores) <= 10
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert ((found.labels >= 1) & (found.labels <= CATEGORIES)).all()
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= torch.tensor([width, height] * 2)).all()
        assert found.mask_probabilities.shape == (len(found.scores), 28, 28)
        assert ((found.mask_probabilities >= 0) & (found.mask_probabilities <= 1)).all()


def test_a_batch_finds_what_its_images_find_alone(model):
    model.eval()
    both = batch(*TWO)
    for index, found in enumerate(detect(model, both)):
        (alone,) = detect(model, replace(both, pixels=both.pixels[index : index + 1], sizes_hw=[(64, 64)]))
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)


def test_nothing_above_the_threshold_is_no_error():
    model = MaskRcnn(SMALLEST, CATEGORIES + 1, replace(SETTINGS, score_threshold=1.0)).eval()
    (found,) = detect(model, batch(TWO[0]))
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.mask_probabilities.shape == (0, 28, 28)


def test_scales_do_not_depend_on_the_first_image(model):
    # Padding makes this one 2.5 times as high: torchvision's guess of the scales would be 1/2 to 1/16, for good.
    detect(model.eval(), batch(target(), sizes=[(25, 25)]))
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        sides = torch.tensor([10.0, 111, 113, 223, 225, 447, 449, 2000])
        boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
        assert pool.map_levels([boxes]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.fixture
def torchvisions(model):
    """torchvision's own Mask R-CNN with the same weights."""
    theirs = MaskRCNN(
        build_backbone(SMALLEST, "none", "batch", 0),
        num_classes=CATEGORIES + 1,
        rpn_anchor_generator=AnchorGenerator(
            tuple((4 * stride,) for stride in mask_rcnn.STRIDES_PX), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=80,
        rpn_post_nms_top_n_test=40,
        box_batch_size_per_image=16,
        box_positive_fraction=0.25,
        box_score_thresh=0.01,
        box_nms_thresh=0.5,
        box_detections_per_img=10,
    )
    theirs.load_state_dict(model.state_dict())
    return theirs


def test_losses_are_those_of_torchvision(model, torchvisions):
    data = batch(*TWO)
    torch.manual_seed(7)
    ours = losses(model.train(), data)
    torch.manual_seed(7)
    torchvisions.train()
    images = ImageList(data.pixels, data.sizes_hw)
    targets = [{"boxes": one.boxes_xyxy, "labels": one.labels, "masks": one.masks} for one in data.targets]
    features = torchvisions.backbone(images.tensors)
    proposals, rpn = torchvisions.rpn(images, features, targets)
    _, heads = torchvisions.roi_heads(features, proposals, images.image_sizes, targets)
    theirs = {mask_rcnn.LOSS_NAMES[name]: value for name, value in {**rpn, **heads}.items()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in LOSSES)


def test_detections_are_those_of_torchvision(model, torchvisions):
    data = batch(TWO[0])
    (ours,) = detect(model.eval(), data)
    images = ImageList(data.pixels, data.sizes_hw)
    with torch.no_grad():
        features = torchvisions.eval().backbone(images.tensors)
        proposals, _ = torchvisions.rpn(images, features)
        (theirs,), _ = torchvisions.roi_heads(features, proposals, images.image_sizes)
    assert torch.equal(ours.boxes_xyxy, theirs["boxes"])
    assert torch.equal(ours.labels, theirs["labels"])
    assert torch.equal(ours.scores, theirs["scores"])
    assert torch.equal(ours.mask_probabilities, theirs["masks"][:, 0])
