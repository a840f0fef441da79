"""A ResNet or ResNeXt body under a feature pyramid, with the recipe's normalisation and freezing.

Feature Pyramid Networks (Lin et al. 2017): levels P2 to P5 with 256 channels each, and P6 by subsampling P5.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.nn.functional import batch_norm, conv2d, interpolate, relu
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet

from lvis_rcnn.config.schema import Backbone

FPN_CHANNELS = 256
STAGES = ("layer1", "layer2", "layer3", "layer4")


class FixedStatisticsBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's bottleneck; each convolution and its normalisation are one NormalisedConvolution."""

    def forward(self, x: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n d _ _"]:
        """Output of the block."""
        shortcut = x if self.downsample is None else normalised_convolution(self.downsample[0], self.downsample[1], x)
        out = relu(normalised_convolution(self.conv1, self.bn1, x), inplace=True)
        out = relu(normalised_convolution(self.conv2, self.bn2, out), inplace=True)
        return relu(normalised_convolution(self.conv3, self.bn3, out).add_(shortcut), inplace=True)


def normalised_convolution(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Float[torch.Tensor, "n c h w"]
) -> Float[torch.Tensor, "n d _ _"]:
    """Convolution, then normalisation with the stored statistics."""
    sizes = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    layers = (convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, sizes)
    if not torch.is_grad_enabled():
        return two_layers(x, *layers)
    folded = getattr(convolution, "folded", None) or fold([(convolution, norm)])[0]
    output: torch.Tensor = NormalisedConvolution.apply(x, *folded, layers)
    return output


def two_layers(x: torch.Tensor, *layers: Any) -> torch.Tensor:
    """``scale * (conv(x, W) - mean) / deviation + shift``."""
    weight, scale, shift, mean, variance, eps, sizes = layers
    return batch_norm(conv2d(x, weight, None, *sizes), mean, variance, scale, shift, eps=eps)


class NormalisedConvolution(torch.autograd.Function):
    """:func:`two_layers` as one operation, the value bit for bit.

    The gradient is equal to rounding, but does not need the output of the convolution: it is that of ``conv(x, F) + b``
    with F = W * scale / deviation. So the graph keeps 1 GB less for two images of 800 x 1067 through R-50. Those of W,
    scale and shift follow from those of F and b in :class:`Fold`.
    """

    @staticmethod
    def forward(ctx, x, folded, bias, factor, layers):  # type: ignore[no-untyped-def]
        """Both layers; ``folded`` and ``bias`` stand for F and b, and only their gradients are used."""
        ctx.input_type, kind = x.dtype, x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # as the convolution would, but saved in that type
        weight, *_, ctx.sizes = layers
        ctx.save_for_backward(x, weight, factor)
        return two_layers(x, *layers)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """Gradients of x, F and b."""
        x, weight, factor = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.sizes
        sizes, wanted = (stride, padding, dilation, False, [0, 0], groups), [ctx.needs_input_grad[0], True, False]
        folded = (weight * factor[:, None, None, None]).to(x.dtype)
        of_x, of_folded, _ = torch.ops.aten.convolution_backward(gradient, x, folded, None, *sizes, wanted)
        of_bias = gradient.sum(dim=(0, 2, 3), dtype=weight.dtype)
        of_x = None if of_x is None else of_x.to(ctx.input_type)
        return of_x, of_folded.to(weight.dtype), of_bias, None, None


@contextmanager
def folded(backbone: BackboneWithFPN) -> Iterator[None]:
    """Within it, what normalised convolutions need of their parameters alone is computed once for several passes.

    Gradients are equal to rounding, since those of all passes are added before they become those of W and scale.
    """
    blocks = [block for block in backbone.modules() if isinstance(block, FixedStatisticsBottleneck)]
    pairs = [pair for block in blocks for pair in normalised_pairs(block)]
    trained = [pair for pair in pairs if pair[0].weight.requires_grad]
    if trained:
        for (convolution, _), of_convolution in zip(trained, fold(trained), strict=True):
            convolution.folded = of_convolution  # type: ignore[assignment]
    try:
        yield
    finally:
        for convolution, _ in trained:
            del convolution.folded


def normalised_pairs(block: FixedStatisticsBottleneck) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution of a block and its normalisation."""
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3)]
    return pairs if block.downsample is None else [*pairs, tuple(block.downsample)]


def fold(pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> list[tuple[torch.Tensor, ...]]:
    """Of each pair what stands for F and b, and the factor scale / deviation."""
    layers = [(conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var) for conv, norm in pairs]
    outputs = Fold.apply(pairs[0][1].eps, *chain.from_iterable(zip(*layers, strict=True)))
    return list(zip(*parts_of(outputs, 3), strict=True))


class Fold(torch.autograd.Function):
    """From weights, scales and shifts to F, b and factors; small operations are one for all convolutions."""

    @staticmethod
    def forward(ctx, eps, *values):  # type: ignore[no-untyped-def]
        """``values`` are all weights, all scales, all shifts, all means and all variances."""
        weights, scales, shifts, means, variances = parts_of(values, 5)
        deviations = torch._foreach_sqrt(torch._foreach_add(variances, eps))
        factors = torch._foreach_div(scales, deviations)
        ctx.save_for_backward(*weights, *factors, *deviations, *means)
        ctx.mark_non_differentiable(*factors)
        # Nobody reads the values of F and b, so they take no memory.
        zero = weights[0].new_zeros(())
        return (
            *(zero.expand(weight.shape) for weight in weights),
            *(zero.expand(shift.shape) for shift in shifts),
            *factors,
        )

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        """Gradients of weights, scales and shifts."""
        weights, factors, deviations, means = parts_of(ctx.saved_tensors, 4)
        of_folded, of_biases, _ = parts_of(gradients, 3)
        products = [(own * weight).sum(dim=(1, 2, 3)) for own, weight in zip(of_folded, weights, strict=True)]
        of_factors = torch._foreach_sub(products, torch._foreach_mul(means, of_biases))
        of_weights = [own * factor[:, None, None, None] for own, factor in zip(of_folded, factors, strict=True)]
        of_scales = torch._foreach_div(of_factors, deviations)
        return None, *of_weights, *of_scales, *of_biases, *[None] * (2 * len(weights))


def parts_of(values: Sequence[torch.Tensor], count: int) -> list[list[torch.Tensor]]:
    """So many lists of one length, one after the other."""
    length = len(values) // count
    return [list(values[at : at + length]) for at in range(0, len(values), length)]


# The block and the normalisation of a body.
NORMALIZATIONS: dict[str, tuple[type[Bottleneck], Callable[[int], nn.Module]]] = {
    "fixed_batch": (FixedStatisticsBottleneck, nn.BatchNorm2d),
    "batch": (Bottleneck, nn.BatchNorm2d),
    "group": (Bottleneck, partial(nn.GroupNorm, 32)),  # Wu and He 2018
}


def build_backbone(backbone: Backbone, normalization: str, frozen_stages: int) -> BackboneWithFPN:
    """Body and pyramid of one row of the table, with the initial weights of MMDetection (3.3.0, ``init_weights``).

    Args:
        backbone: Row of ``config.schema.BACKBONES``.
        normalization: Key of ``NORMALIZATIONS``.
        frozen_stages: 0 trains everything; 1 freezes the stem and stage 1, and so on.
    """
    block, norm = NORMALIZATIONS[normalization]
    body = ResNet(
        block,
        list(backbone.blocks),
        groups=backbone.groups,
        width_per_group=backbone.width_per_group,
        norm_layer=norm,
    )
    if normalization != "group":
        start_as_identity(body)
    freeze(body, frozen_stages)
    whole = BackboneWithFPN(
        body, {stage: str(index) for index, stage in enumerate(STAGES)}, [256, 512, 1024, 2048], FPN_CHANNELS
    )
    for module in whole.fpn.modules():
        if isinstance(module, nn.Conv2d):
            # torchvision's uniform Kaiming differs from this for the 1 x 1 convolutions.
            nn.init.xavier_uniform_(module.weight)
    return whole


def pyramid(backbone: BackboneWithFPN, pixels: Float[torch.Tensor, "n 3 h w"]) -> list[Float[torch.Tensor, "n c _ _"]]:
    """Levels P2 to P6 of ``backbone(pixels)``, bit for bit, with less memory where nothing needs a gradient.

    It adds in place and drops features of the body once they are used: at the peak there are three tensors of the size
    of P2 less, 55 MB each at 800 x 1067 pixels.
    """
    fpn, features = backbone.fpn, list(backbone.body(pixels).values())
    levels: list[torch.Tensor] = []
    above: torch.Tensor | None = None
    while features:
        inner = fpn.inner_blocks[len(features) - 1](features.pop())
        if above is not None:
            inner.add_(interpolate(above, size=inner.shape[-2:], mode="nearest"))
        above = inner
        levels.insert(0, fpn.layer_blocks[len(features)](inner))
    with_p6: list[torch.Tensor] = fpn.extra_blocks(levels, features, [])[0]
    return with_p6


def start_as_identity(body: ResNet) -> None:
    """Zero the last scale of each block, so that from scratch a block begins as its shortcut (Goyal et al. 2017).

    MMDetection leaves them at 1 in a ResNeXt. Its recipe never starts from scratch, and loaded weights overwrite them.
    """
    for module in body.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def freeze(body: ResNet, stages: int) -> None:
    """Freeze the stem and the first ``stages`` stages; 0 freezes nothing."""
    if stages == 0:
        return
    for part in (body.conv1, body.bn1, *(getattr(body, stage) for stage in STAGES[:stages])):
        part.requires_grad_(False)


def fix_batch_statistics(backbone: BackboneWithFPN, *, frozen_only: bool) -> None:
    """Use the stored statistics also in training, everywhere or in frozen stages; scale and shift may still train."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and not (frozen_only and module.weight.requires_grad):
            module.eval()
