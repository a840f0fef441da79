"""A ResNet or ResNeXt body under a feature pyramid, with the recipe's normalisation and freezing.

Feature Pyramid Networks (Lin et al. 2017): levels P2 to P5 with 256 channels each, and P6 by subsampling P5.
"""

from collections.abc import Callable
from functools import partial

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
    statistics = (norm.running_mean, norm.running_var, norm.eps)
    sizes = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    output: torch.Tensor = NormalisedConvolution.apply(x, convolution.weight, norm.weight, norm.bias, statistics, sizes)
    return output


class NormalisedConvolution(torch.autograd.Function):
    """``scale * (conv(x, W) - mean) / deviation + shift`` as one operation.

    The value is that of the two layers, bit for bit. The gradient is equal to rounding, but does not need the output of
    the convolution: with F = W * scale / deviation, the gradient of F in ``conv(x, F)`` gives those of W and scale. So
    the graph keeps 1 GB less for two images of 800 x 1067 through R-50.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, statistics, sizes):  # type: ignore[no-untyped-def]
        """Both layers; saves their input and parameters."""
        mean, variance, eps = statistics
        ctx.input_type, kind = x.dtype, x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # as the convolution would, but saved in that type
        ctx.save_for_backward(x, weight, scale, mean, variance)
        ctx.eps, ctx.sizes = eps, sizes
        return batch_norm(conv2d(x, weight, None, *sizes), mean, variance, scale, shift, eps=eps)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """Gradients of x, W, scale and shift."""
        x, weight, scale, mean, variance = ctx.saved_tensors
        deviation = (variance + ctx.eps).sqrt()
        factor = (scale / deviation)[:, None, None, None]
        stride, padding, dilation, groups = ctx.sizes
        sizes, wanted = (stride, padding, dilation, False, [0, 0], groups), [ctx.needs_input_grad[0], True, False]
        folded = (weight * factor).to(x.dtype)
        of_x, of_folded, _ = torch.ops.aten.convolution_backward(gradient, x, folded, None, *sizes, wanted)
        of_folded = of_folded.to(weight.dtype)
        of_shift = gradient.sum(dim=(0, 2, 3), dtype=weight.dtype)
        of_scale = ((of_folded * weight).sum(dim=(1, 2, 3)) - mean * of_shift) / deviation
        of_x = None if of_x is None else of_x.to(ctx.input_type)
        return of_x, of_folded * factor, of_scale, of_shift, None, None


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
