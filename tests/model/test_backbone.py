"""Four backbones: shapes, what is fixed and what is frozen."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.model import backbone
from lvis_rcnn.model.backbone import build_backbone
from tests.helpers.tiny_run import SMALLEST


def test_the_plain_bodies_are_torchvisions_resnets():
    with torch.device("meta"):
        for name, build in (("r50", resnet.resnet50), ("r101", resnet.resnet101)):
            ours = build_backbone(BACKBONES[name], "batch", 0).body.state_dict()
            theirs = {key: value for key, value in build().state_dict().items() if not key.startswith("fc.")}
            assert {key: value.shape for key, value in ours.items()} == {
                key: value.shape for key, value in theirs.items()
            }


# Xie et al. 2017, table 1 for 32x4d; 64 groups of 4 are twice as wide.
@pytest.mark.parametrize(("name", "widths"), [("x101_32x4d", (128, 1024)), ("x101_64x4d", (256, 2048))])
def test_widths_of_the_resnexts(name, widths):
    with torch.device("meta"):
        body = build_backbone(BACKBONES[name], "batch", 0).body
    first, last = body.layer1[0].conv2, body.layer4[2].conv2
    assert (first.weight.shape, last.weight.shape[0]) == ((widths[0], 4, 3, 3), widths[1])
    assert [len(body[stage]) for stage in backbone.STAGES] == [3, 4, 23, 3]
    assert (body.layer2[0].conv1.stride, body.layer2[0].conv2.stride) == ((1, 1), (2, 2))


def test_five_levels_of_256_channels():
    features = build_backbone(SMALLEST, "batch", 0).eval()(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in features.items()} == {
        "0": (1, 256, 16, 24),
        "1": (1, 256, 8, 12),
        "2": (1, 256, 4, 6),
        "3": (1, 256, 2, 3),
        "pool": (1, 256, 1, 2),
    }


# Named by the number of stages: the order of a set's text differs between the processes of pytest-xdist.
@pytest.mark.parametrize(
    ("stages", "trained"), [(0, {"conv1", "bn1"}), (1, set()), (2, set()), (4, set())], ids=["0", "1", "2", "4"]
)
def test_frozen_stages(stages, trained):
    with torch.device("meta"):
        body = build_backbone(SMALLEST, "batch", stages).body
    expected = trained | set(backbone.STAGES[stages:])
    assert {name.split(".")[0] for name, value in body.named_parameters() if value.requires_grad} == expected


def test_a_network_from_scratch_begins_as_its_shortcuts():
    body = build_backbone(SMALLEST, "batch", 0).body
    block = body.layer1[0].eval()
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), torch.relu(block.downsample(x)))


def test_group_normalisation_has_32_groups():
    with torch.device("meta"):
        body = build_backbone(SMALLEST, "group", 0).body
    norms = [part for part in body.modules() if isinstance(part, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32}
    assert not any(isinstance(part, nn.BatchNorm2d) for part in body.modules())


@pytest.mark.parametrize("size_hw", [(64, 96), (128, 64), (32, 32)])
@torch.no_grad()
def test_the_pyramid_of_inference_is_the_same_to_the_last_bit(size_hw):
    torch.manual_seed(0)
    whole = build_backbone(SMALLEST, "batch", 0).eval()
    pixels = torch.rand(2, 3, *size_hw)
    expected = list(whole(pixels).values())
    found = backbone.pyramid(whole, pixels)
    assert len(found) == len(expected) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
