"""Every combination of classification and predictors takes a training step and detects, under the same names."""

import itertools

import pytest
import torch

from lvis_rcnn.config.schema import Inference
from lvis_rcnn.model.mask_rcnn import detect, losses
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.model.seesaw import counters_of
from tests.training.test_step import small_network, step_groups

TEST = Inference(short_edge_px=64, long_edge_px=64, score_threshold=1e-4, detections_per_image=20)
HEADS = list(itertools.product(("softmax", "seesaw"), ("linear", "normalised"), ("linear", "normalised")))


@pytest.mark.parametrize(
    "heads",
    [pytest.param(one, marks=[] if one[1] == one[2] else pytest.mark.slow) for one in HEADS],
)
def test_every_combination_is_trained_and_detects(heads):
    classification, box_classifier, mask_predictor = heads
    settings = {"classification": classification, "box_classifier": box_classifier, "mask_predictor": mask_predictor}
    model, group = small_network(**settings), step_groups()[0]
    values = losses(model, group, random_choice(torch.manual_seed(0)))
    sum(values.values()).backward()
    assert all(0 < value < 50 for value in values.values())
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert [name for name, value in trained.items() if value.grad is None or not value.grad.isfinite().all()] == []
    heads_of_model = model.roi_heads
    for layer in (heads_of_model.box_predictor.cls_score, heads_of_model.mask_predictor.mask_fcn_logits):
        assert layer.weight.grad.abs().sum() > 0
    outputs = 6 + (classification == "seesaw")
    assert len(heads_of_model.box_predictor.cls_score.bias) == outputs
    counters = counters_of(model)
    assert (counters is None) == (classification == "softmax")
    if counters is not None:
        assert counters.taken()[:, 1:].sum() > 0
    found = detect(model.eval(), group, TEST)
    assert all(((one.scores > 1e-4) & (one.scores <= 1)).all() and len(one.scores) for one in found)
    assert all(one.labels.min() >= 1 and one.labels.max() <= 5 for one in found)


def test_plain_heads_have_the_names_that_they_have_always_had():
    plain, other = small_network(), small_network(classification="seesaw", box_classifier="normalised")
    more = set(other.state_dict()) - set(plain.state_dict())
    assert more == {"roi_heads.box_predictor.counters.cum_samples"}
    assert set(plain.state_dict()) < set(other.state_dict())
