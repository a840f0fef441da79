"""Predictors of normalised weights and features (MMDetection 3.3.0, models/layers/normed_predictor.py).

    out = W' x' + b,   W'_o = W_o / (|W_o|^k + e),   x' = T x / (|x|^k + e)

With k = 1 a logit is T times the cosine of the angle between features and weights of a class: how long its weights
are, which grows with its number of training regions, does not matter. Published Seesaw models (arXiv 2008.10032) have
T = 20, k = 1 and e = 1e-6.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn
from torch.nn.functional import linear

TEMPERATURE = 20.0


def unit(
    values: Float[torch.Tensor, "*shape"], dims: int | Sequence[int], power: float = 1.0, epsilon: float = 1e-6
) -> Float[torch.Tensor, "*shape"]:
    """Values divided by (their norm over ``dims`` to the ``power``, and ``epsilon``); the gradient is of all of it."""
    norms: torch.Tensor = torch.linalg.vector_norm(values, dim=dims, keepdim=True)
    return values / (norms.pow(power) + epsilon)


class NormalisedLinear(nn.Linear):
    """A linear layer of normalised features and weights; its parameters have the names and shapes of a linear one."""

    def forward(self, features: Float[torch.Tensor, "n inputs"]) -> Float[torch.Tensor, "n outputs"]:
        """Logits; the bias is not scaled."""
        return linear(TEMPERATURE * unit(features, 1), unit(self.weight, 1), self.bias)


def unchanged(
    features: Float[torch.Tensor, "n c h w"], rows: Float[torch.Tensor, "n c"]
) -> tuple[Float[torch.Tensor, "n c h w"], Float[torch.Tensor, "n c"]]:
    """Features and weights of a plain predictor."""
    return features, rows


def normalised(
    features: Float[torch.Tensor, "n c h w"], rows: Float[torch.Tensor, "n c"]
) -> tuple[Float[torch.Tensor, "n c h w"], Float[torch.Tensor, "n c"]]:
    """Features of each cell and weights of each label, x' and W'."""
    return TEMPERATURE * unit(features, 1), unit(rows, 1)


# Names are those of model.box_classifier and model.mask_predictor in config/schema.py.
BOX_CLASSIFIERS: dict[str, type[nn.Linear]] = {"linear": nn.Linear, "normalised": NormalisedLinear}
MASK_PREDICTORS = {"linear": unchanged, "normalised": normalised}
