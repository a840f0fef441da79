"""What a pass does for all images at once is what the functions for one image do, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.model.backbone import folded, normalised_convolution
from lvis_rcnn.model.boxes import pyramid_anchors
from lvis_rcnn.model.matcher import random_choice, sample
from lvis_rcnn.model.roi_heads import level_of, region_features
from lvis_rcnn.model.rpn import Predictions, ProposalNetwork, proposals
from lvis_rcnn.model.together import (
    at_anchors_of_images,
    pooled,
    proposals_of_images,
    sample_together,
    truths_of,
)
from tests.model.test_one_pass import network, target

LEVELS_HW = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
    count=st.integers(1, 12),
    fraction=st.sampled_from([0.25, 0.5]),
)
def test_samples_are_those_of_one_image_after_the_other(widths, seed, count, fraction):
    random = torch.Generator().manual_seed(seed)
    tables = [torch.randint(-1, 3, size, generator=random) for size in widths]
    images = [row for table in tables for row in table]
    # Two neighbours are of one group, and share a generator.
    generators = [torch.Generator().manual_seed(number) for number in range(len(images))]
    found = sample_together(tables, [generators[at // 2] for at in range(len(images))], count, fraction)
    again = [random_choice(torch.Generator().manual_seed(number)) for number in range(len(images))]
    expected = [sample(row, count, fraction, again[at // 2]) for at, row in enumerate(images)]
    assert found.counts == [(len(positive), len(negative)) for positive, negative in expected]
    assert torch.equal(found.box_of, torch.cat([torch.cat(both) for both in expected]))
    rows = [torch.cat([torch.full_like(p, True), torch.full_like(n, False)]) for p, n in expected]
    assert torch.equal(found.positive, torch.cat(rows).nonzero()[:, 0])
    numbers = torch.arange(len(images)).repeat_interleave(torch.tensor([sum(both) for both in found.counts]))
    assert torch.equal(found.image_of, numbers)


def predictions(images, seed, spread=4.0):
    """Random ones; the third of the scores are saturated, so that many are equal."""
    random = torch.Generator().manual_seed(seed)
    numbers = [3 * height * width for height, width in LEVELS_HW]
    logits = [torch.randn(images, number, generator=random) * spread for number in numbers]
    return Predictions(
        pyramid_anchors(LEVELS_HW, 4.0, torch.device("cpu")),
        LEVELS_HW,
        [torch.where(level > spread / 2, 50.0, level) for level in logits],
        [torch.randn(images, number, 4, generator=random) for number in numbers],
    )


@pytest.mark.parametrize(("before", "after"), [(2000, 1000), (20, 30), (5, 3)])
def test_proposals_are_those_of_one_level_after_the_other(before, after):
    found = predictions(3, seed=before)
    sizes_hw = [(48, 64), (40, 50), (3, 64)]
    of_images = proposals_of_images(found, sizes_hw, before, after)
    for (boxes, scores), (expected, expected_scores) in zip(
        of_images, proposals(found, sizes_hw, before, after), strict=True
    ):
        # The last bit of exp depends on where in memory a number lies.
        torch.testing.assert_close(boxes, expected)
        torch.testing.assert_close(scores, expected_scores)
        assert len(expected) > 2


def test_the_head_at_anchors_of_several_images():
    torch.manual_seed(0)
    head = ProposalNetwork(8, 4.0)
    levels = [torch.randn(2, 8, *size_hw, requires_grad=True) for size_hw in LEVELS_HW]
    image_of, anchors = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 575, 700, 576, 774])
    found = at_anchors_of_images(head, levels, image_of, anchors)
    alone = [head.at_anchors([level[image] for level in levels], anchors[image_of == image]) for image in (0, 1)]
    weights = [torch.randn_like(values) for values in found]
    for ours, theirs in zip(found, map(torch.cat, zip(*alone, strict=True)), strict=True):
        torch.testing.assert_close(ours, theirs)
    gradients = [
        torch.autograd.grad(sum((own * weight).sum() for own, weight in zip(values, weights, strict=True)), levels)
        for values in (found, [torch.cat(parts) for parts in zip(*alone, strict=True)])
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_regions_of_several_canvases_are_pooled_in_their_own():
    random = torch.Generator().manual_seed(0)
    canvases = [
        [torch.randn(2, 4, 32 >> level, width >> level, generator=random) for level in range(4)] for width in (32, 64)
    ]
    corners = torch.rand(40, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=random) ** 3 * 900 + 1], dim=1)
    image_of, canvas_of = torch.arange(40) % 2, torch.arange(40) // 20
    keys = canvas_of * 4 + level_of(boxes)
    order = keys.argsort(stable=True)
    counts = [int((keys == key).sum()) for key in range(8)]
    found = pooled(canvases, torch.cat([image_of[:, None].float(), boxes], dim=1)[order], counts, 7)
    for canvas, levels in enumerate(canvases):
        here = canvas_of == canvas
        images = [boxes[here & (image_of == image)] for image in (0, 1)]
        expected = region_features(levels, images, 7)
        rows = torch.cat([torch.nonzero(here & (image_of == image))[:, 0] for image in (0, 1)])
        assert torch.equal(found[order.argsort()[rows]], expected)
    assert len({count for count in counts if count}) > 1
    assert pooled(canvases, torch.zeros(0, 5), [0] * 8, 7).shape == (0, 4, 7, 7)


def test_ground_truth_of_several_images_is_one_table():
    random = np.random.default_rng(0)
    targets = [target(random, (64, 64), count) for count in (2, 0, 3)]
    truths = truths_of(targets)
    assert (truths.counts, truths.first) == ([2, 0, 3], [0, 2, 2])
    assert [len(boxes) for boxes in truths.of_images] == truths.counts
    crops = [crop for own in targets for crop in own.masks.pixels.tensor_split(own.masks.offsets[1:-1])]
    for number, crop in enumerate(crop for crop in crops if len(crop)):
        begin, end = truths.masks.offsets[number : number + 2]
        assert torch.equal(truths.masks.pixels[begin:end], crop)


def test_gradients_of_several_passes_are_added_before_they_are_those_of_the_parameters():
    model = network()
    convolution, norm = model.backbone.body.layer3[0].conv2, model.backbone.body.layer3[0].bn2
    x = torch.randn(2, 256, 5, 6)
    parameters = [convolution.weight, norm.weight, norm.bias]
    alone = [
        torch.autograd.grad(normalised_convolution(convolution, norm, part[None]).square().sum(), parameters)
        for part in x
    ]
    with folded(model.backbone):
        sums = [normalised_convolution(convolution, norm, part[None]).square().sum() for part in x]
    assert not hasattr(convolution, "folded")
    together = torch.autograd.grad(sum(sums), parameters)
    for ours, theirs in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(ours, sum(theirs), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_folded_normalisation_in_double_precision():
    weight, scale, shift = (torch.randn(size, dtype=torch.double) for size in ((3, 2, 1, 1), (3,), (3,)))
    mean, variance = torch.randn(3).double(), torch.rand(3).double() + 0.5
    convolution, norm = torch.nn.Conv2d(2, 3, 1, bias=False).double(), torch.nn.BatchNorm2d(3).double().eval()
    for own, value in ((convolution.weight, weight), (norm.weight, scale), (norm.bias, shift)):
        own.data.copy_(value)
    norm.running_mean.copy_(mean), norm.running_var.copy_(variance)
    x = torch.randn(1, 2, 3, 3, dtype=torch.double, requires_grad=True)
    ours = torch.autograd.grad(
        normalised_convolution(convolution, norm, x).pow(3).sum(), [x, *convolution.parameters(), *norm.parameters()]
    )
    theirs = torch.autograd.grad(norm(convolution(x)).pow(3).sum(), [x, *convolution.parameters(), *norm.parameters()])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
