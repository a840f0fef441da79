"""A ResNet or ResNeXt body under a feature pyramid, with the recipe's normalisation and freezing.

Feature Pyramid Networks (Lin et al. 2017): levels P2 to P5 with 256 channels each, and P6 by subsampling P5.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet, ResNet50_Weights, ResNet101_Weights

from lvis_rcnn.backbones import Backbone
from lvis_rcnn.command import InputError

FPN_CHANNELS = 256
STAGES = ("layer1", "layer2", "layer3", "layer4")

# By depth; which rows may take them is said in the table of backbones.
IMAGENET_WEIGHTS = {
    (3, 4, 6, 3): ResNet50_Weights.IMAGENET1K_V1,
    (3, 4, 23, 3): ResNet101_Weights.IMAGENET1K_V1,
}


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups (Wu and He 2018)."""
    return nn.GroupNorm(32, channels)


NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "fixed_batch": nn.BatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}


def build_backbone(backbone: Backbone, weights: str, normalization: str, frozen_stages: int) -> BackboneWithFPN:
    """Body and pyramid of one row of the table.

    Args:
        backbone: Row of ``lvis_rcnn.backbones``.
        weights: ``imagenet`` or ``none``.
        normalization: Key of ``NORMALIZATIONS``.
        frozen_stages: 0 trains everything; 1 freezes the stem and stage 1, and so on.

    Raises:
        InputError: no ImageNet weights are known for this body, they do not fit, or cannot be had.
    """
    if weights == "imagenet" and normalization == "group":
        raise InputError(
            "model.normalization",
            "is group, but the ImageNet weights belong to batch normalisation",
            allowed="fixed_batch or batch with 'imagenet'",
            mend="take fixed_batch, or train from scratch with weights: none",
        )
    body = ResNet(
        Bottleneck,
        list(backbone.blocks),
        groups=backbone.groups,
        width_per_group=backbone.width_per_group,
        norm_layer=NORMALIZATIONS[normalization],
    )
    if weights == "imagenet":
        body.load_state_dict(imagenet_state(backbone))
    elif normalization != "group":
        start_as_identity(body)
    freeze(body, frozen_stages)
    return BackboneWithFPN(
        body, {stage: str(index) for index, stage in enumerate(STAGES)}, [256, 512, 1024, 2048], FPN_CHANNELS
    )


def imagenet_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    """ImageNet weights of the published recipe, from torchvision's cache or its download."""
    if not backbone.has_imagenet_weights:
        raise InputError(
            "model.weights",
            f"no ImageNet weights are known for {backbone.title}",
            allowed="r50, r101 with 'imagenet'; every backbone with 'none'",
            mend="take r50 or r101, or train from scratch with weights: none",
        )
    entry = IMAGENET_WEIGHTS[backbone.blocks]
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(check_hash=True)
    except OSError as error:
        raise InputError(
            "model.weights",
            f"{entry.url} cannot be downloaded ({error})",
            mend=f"put the file into {Path(torch.hub.get_dir(), 'checkpoints')}",
        ) from None
    return state


def start_as_identity(body: ResNet) -> None:
    """Zero the last scale of each block, so that a network from scratch begins as its shortcuts (Goyal et al. 2017)."""
    for module in body.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def freeze(body: ResNet, stages: int) -> None:
    """Stop the gradient of the stem and of the first ``stages`` stages; 0 freezes nothing."""
    if stages == 0:
        return
    for part in (body.conv1, body.bn1, *(getattr(body, stage) for stage in STAGES[:stages])):
        part.requires_grad_(False)


def fix_batch_statistics(backbone: BackboneWithFPN, *, frozen_only: bool) -> None:
    """Use the stored statistics also in training, everywhere or in frozen stages; scale and shift may still train."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and not (frozen_only and module.weight.requires_grad):
            module.eval()
