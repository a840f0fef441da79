"""Several groups in one pass are what they are group by group: losses, gradients, sampled anchors and regions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from lvis_rcnn.config.schema import Seesaw
from lvis_rcnn.dataloader.batches import Batch, Target
from lvis_rcnn.dataloader.masks import mask_crops
from lvis_rcnn.model import matcher
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, losses
from lvis_rcnn.model.one_pass import canvases_of, losses_together
from lvis_rcnn.model.seesaw import counters_of
from tests.training.test_step import small_network

# Sizes before padding; the second group holds an image without an object, the last one image.
SIZES_HW = (((96, 128), (70, 128)), ((128, 64), (100, 96)), ((64, 64), (64, 33)), ((96, 160),))


def network(**heads):
    model = small_network(**heads)
    for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)  # scores and boxes that differ
    return model


def target(random, size_hw, count):
    """So many rectangles in an image."""
    height, width = size_hw
    upper_left = np.stack([random.integers(0, width - 24, count), random.integers(0, height - 24, count)], axis=1)
    boxes = np.concatenate([upper_left, upper_left + random.integers(8, 24, (count, 2))], axis=1)
    outlines = [[np.array([x0, y0, x1, y0, x1, y1], float)] for x0, y0, x1, y1 in boxes]
    labels = torch.from_numpy(random.integers(1, 6, count))
    crops = mask_crops(outlines, size_hw, size_hw, False)
    return Target(torch.from_numpy(boxes.astype(np.float32)).reshape(-1, 4), labels, crops)


def group_of(random, number, sizes_hw):
    height, width = (-(-max(edges) // 32) * 32 for edges in zip(*sizes_hw, strict=True))
    pixels = torch.from_numpy(random.normal(size=(len(sizes_hw), 3, height, width)).astype(np.float32))
    counts = [0 if number == 1 and place == 0 else 1 + 3 * place + number for place in range(len(sizes_hw))]
    targets = [target(random, size_hw, count) for size_hw, count in zip(sizes_hw, counts, strict=True)]
    return Batch(pixels, list(sizes_hw), list(sizes_hw), list(range(len(sizes_hw))), targets)


@pytest.fixture(scope="module")
def groups():
    random = np.random.default_rng(0)
    return [group_of(random, number, sizes_hw) for number, sizes_hw in enumerate(SIZES_HW)]


def gradient_of(model):
    found = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    model.zero_grad()
    return found


def group_by_group(model, groups):
    values = []
    for number, group in enumerate(groups):
        named = losses(model, group, matcher.random_choice(torch.Generator().manual_seed(number)), number)
        values.append(torch.stack([named[name] for name in LOSS_NAMES]))
    found = torch.stack(values)
    found.sum().backward()
    return found.detach(), gradient_of(model)


def in_one_pass(model, groups, common_canvas):
    generators = [torch.Generator().manual_seed(number) for number in range(len(groups))]
    found = losses_together(model, groups, generators, common_canvas, range(len(groups)))
    found.sum().backward()
    return found.detach(), gradient_of(model)


def equally_padded(groups):
    """The groups as batches of their common canvases."""
    padded = list(groups)
    for positions in canvases_of(groups, True):
        height, width = (max(groups[position].pixels.shape[axis] for position in positions) for axis in (2, 3))
        for position in positions:
            pixels = groups[position].pixels
            wider = pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
            padded[position] = replace(groups[position], pixels=wider)
    return padded


@pytest.mark.parametrize(
    ("count", "common_canvas"),
    [
        (2, False),
        (4, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, False), (1, True), (2, True), (4, False))),
    ],
)
def test_losses_and_gradients_are_those_of_group_by_group(groups, count, common_canvas):
    model = network()
    alone = equally_padded(groups[:count]) if common_canvas else groups[:count]
    expected, expected_gradient = group_by_group(model, alone)
    found, gradient = in_one_pass(model, groups[:count], common_canvas)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (gradient - expected_gradient).norm() < 1e-6 * expected_gradient.norm()
    assert (expected > 0).sum() > 4 * count


def test_seesaw_with_normalised_predictors_is_that_of_group_by_group(groups):
    """Each group sees the counts of the steps before and its own; two groups here have counters of their own."""
    heads = {"classification": "seesaw", "seesaw": Seesaw(counters=2), "box_classifier": "normalised"}
    model = network(**heads, mask_predictor="normalised")
    counters = counters_of(model)
    counters.cum_samples += torch.tensor([[0, 900, 30, 10, 1, 0], [9, 9, 9, 0, 0, 500]])
    expected, expected_gradient = group_by_group(model, groups[:2])
    of_labels = counters.taken()
    assert of_labels.sum(dim=1).min() > 0
    found, gradient = in_one_pass(model, groups[:2], False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()
    assert torch.equal(counters.taken(), of_labels)
