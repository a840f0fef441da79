"""The arithmetic of a training step, beside what torch counts and what others have measured."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lvis_rcnn.config.schema import BACKBONES, Backbone, Model
from lvis_rcnn.config.study import load_study
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.runs.price import (
    DEVICES,
    body_macs,
    estimated_hours,
    mean_image_px,
    region_macs,
    step_flops,
    training_flops,
)
from tests.conftest import REPOSITORY, write_study

LVIS = load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml")
# 32 divides both, so that no level rounds its size up.
HEIGHT, WIDTH = 256, 384


def counted(call) -> int:
    """Floating-point operations of a call as torch counts them, on the meta device."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [pytest.param("r50"), pytest.param("x101_64x4d", marks=pytest.mark.slow)])
def test_a_body_has_the_operations_that_torch_counts(name):
    model = network_on_meta(BACKBONES[name], 27, LVIS.model)
    image = torch.empty(1, 3, HEIGHT, WIDTH, device="meta")
    with torch.no_grad():
        of_torch = counted(lambda: model.backbone.body(image))
    assert 2 * HEIGHT * WIDTH * sum(body_macs(BACKBONES[name])) == pytest.approx(of_torch, rel=1e-9)


def test_a_step_has_the_operations_that_torch_counts():
    """Forward and backward of body and pyramid, whose proposal head and regions are counted apart."""
    model = network_on_meta(BACKBONES["r50"], 27, LVIS.model).train()
    image = torch.empty(1, 3, HEIGHT, WIDTH, device="meta")

    def body_and_pyramid():
        sum(level.sum() for level in model.backbone(image).values()).backward()

    with torch.no_grad():
        levels = list(model.backbone(image).values())
        proposals = counted(lambda: model.rpn.head(levels))
        heads = model.roi_heads
        box = counted(lambda: heads.box_head(torch.empty(1, 256, 7, 7, device="meta")))
        mask = counted(
            lambda: heads.mask_predictor.conv5_mask(heads.mask_head(torch.empty(1, 256, 14, 14, device="meta")))
        )
    regions = LVIS.model.rois_per_image * (box + LVIS.model.roi_positive_fraction * mask)
    assert 2 * region_macs(LVIS.model) == pytest.approx(regions, rel=1e-9)
    whole = counted(body_and_pyramid) + proposals + 3 * regions
    # The first trained layers need no gradient of their input: 0.2 % here.
    assert training_flops(BACKBONES["r50"], LVIS.model, HEIGHT * WIDTH) == pytest.approx(whole, rel=0.005)


# facebookresearch/detectron2, MODEL_ZOO.md: s a step of 16 images on 8 V100, LVIS v0.5.
ON_8_V100 = {
    "r50": (BACKBONES["r50"], 0.292),
    "r101": (BACKBONES["r101"], 0.371),
    "x101_32x8d": (Backbone("", "", (3, 4, 23, 3), groups=32, width_per_group=8), 0.712),
}


@pytest.mark.parametrize(("name", "error"), [("r50", 0.02), ("r101", 0.03), ("x101_32x8d", 0.25)])
def test_the_estimate_of_a_gpu_is_as_far_from_the_published_speed_as_the_documentation_says(name, error):
    backbone, seconds = ON_8_V100[name]
    flops = 16 * training_flops(backbone, LVIS.model, mean_image_px(LVIS.augmentation))
    assert flops / (8 * DEVICES["cuda"].flops_per_s) == pytest.approx(seconds, rel=error)


@pytest.mark.parametrize(
    ("name", "minutes"), [("r50", 10.2), ("r101", 12.4), ("x101_32x4d", 13.7), ("x101_64x4d", 18.3)]
)
def test_the_estimate_of_a_cpu_is_within_15_percent_of_trainings_that_were_timed(name, minutes):
    """260 steps of 4 images of 96 x 128 pixels in the mean, with 32 regions each, on one core."""
    settings = LVIS.model.model_copy(update={"frozen_stages": 0, "rois_per_image": 32})
    flops = 260 * 4 * training_flops(BACKBONES[name], settings, 96 * 128)
    assert flops / DEVICES["cpu"].flops_per_s / 60 == pytest.approx(minutes, rel=0.15)


def test_sizes_are_those_of_the_study_and_the_long_edge_is_a_limit(tmp_path):
    edges = {"short_edges_px": [300, 600], "long_edge_px": 700}
    study = load_study(write_study(tmp_path / "study.yaml", augmentation=edges))
    assert mean_image_px(study.augmentation) == (300 * 400 + 600 * 700) / 2


def test_hours_are_those_of_all_steps():
    assert estimated_hours(LVIS, "r50", 3600) == pytest.approx(step_flops(LVIS, "r50") / DEVICES["cuda"].flops_per_s)


def test_frozen_stages_cost_their_forward_pass_only():
    settings = {key: LVIS.model.model_copy(update={"frozen_stages": key}) for key in (0, 1, 4)}
    flops = {key: training_flops(BACKBONES["r50"], one, 1e6) for key, one in settings.items()}
    stem, first, *others = body_macs(BACKBONES["r50"])
    assert flops[0] - flops[1] == pytest.approx(4e6 * (stem + first))
    assert flops[1] - flops[4] == pytest.approx(4e6 * sum(others))


def test_fewer_masks_cost_less():
    half = LVIS.model.model_copy(update={"roi_positive_fraction": 0.125})
    assert isinstance(half, Model)
    assert region_macs(half) < region_macs(LVIS.model)
