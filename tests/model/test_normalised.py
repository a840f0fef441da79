"""Predictors of normalised weights are MMDetection's: its figures of NormedLinear and NormedConv2d."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, linear

from lvis_rcnn.model.normalised import NormalisedLinear, normalised, unit
from tests.conftest import REPOSITORY

GOLDEN = np.load(REPOSITORY / "tests" / "golden" / "normed_predictors.npz")
OPTIONS = {"linear_power2_t5": (5, 2, 1e-3)}  # temperature, power, epsilon


def inputs(case):
    """Features, weights and bias from the seed, as the figures' rule says."""
    seed = int(GOLDEN[f"{case}/seed"])

    def normal(place, shape, scale):
        return torch.from_numpy((scale * np.random.RandomState(seed + place).standard_normal(shape)).astype(np.float32))

    weight, features = normal(0, GOLDEN[f"{case}/weight_shape"], 0.5), normal(1, GOLDEN[f"{case}/x_shape"], 1.0)
    features = features if case == "linear_power2_t5" else features.clamp(min=0)
    if case == "linear_zero_row":
        features[1] = 0
    bias = normal(2, (len(weight),), 0.1) if f"{case}/grad_bias" in GOLDEN else None
    return features.requires_grad_(), weight.requires_grad_(), None if bias is None else bias.requires_grad_()


def output(case, features, weight, bias):
    temperature, power, epsilon = OPTIONS.get(case, (20, 1, 1e-6))
    scaled = temperature * unit(features, 1, power, epsilon)
    if case.startswith("linear"):
        return linear(scaled, unit(weight, 1, power, epsilon), bias)
    dims = (1, 2, 3) if case.endswith("over_kernel") else 1
    return conv2d(scaled, unit(weight, dims), bias, padding=weight.shape[2] // 2)


@pytest.mark.parametrize("case", sorted({key.partition("/")[0] for key in GOLDEN}))
def test_outputs_and_gradients_are_mmdetections(case):
    features, weight, bias = inputs(case)
    found = output(case, features, weight, bias)
    np.testing.assert_allclose(found.detach(), GOLDEN[f"{case}/out"], atol=3e-5, rtol=0)
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    for name, value in {"x": features, "weight": weight, "bias": bias}.items():
        if value is not None:
            expected = GOLDEN[f"{case}/grad_{name}"]
            np.testing.assert_allclose(value.grad, expected, atol=3e-6 * np.abs(expected).max(), rtol=0)


def test_the_layer_is_the_function():
    features, weight, bias = inputs("linear")
    layer = NormalisedLinear(weight.shape[1], len(weight))
    assert layer.state_dict().keys() == torch.nn.Linear(2, 2).state_dict().keys()
    layer.load_state_dict({"weight": weight, "bias": bias})
    np.testing.assert_allclose(layer(features).detach(), GOLDEN["linear/out"], atol=3e-5, rtol=0)


def test_a_mask_predictor_of_chosen_rows_is_the_convolution():
    """Of 20 labels, only the row of each region's label is applied."""
    features, weight, bias = inputs("conv1x1")
    labels = torch.tensor([3, 17])
    scaled, rows = normalised(features, weight[labels, :, 0, 0])
    found = torch.einsum("nc,nchw->nhw", rows, scaled) + bias[labels, None, None]
    expected = GOLDEN["conv1x1/out"][[0, 1], labels]
    np.testing.assert_allclose(found.detach(), expected, atol=3e-5, rtol=0)


def test_longer_weights_change_nothing_but_by_the_bias():
    features, weight, bias = inputs("linear")
    layer = NormalisedLinear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    with torch.no_grad():
        before = layer(features)
        layer.weight *= torch.linspace(0.5, 30, len(weight))[:, None]
        torch.testing.assert_close(layer(3 * features), before, atol=1e-4, rtol=0)
        assert (before - bias).abs().max() <= 20 + 1e-4
