"""Mask R-CNN (He et al. 2017) on torchvision's modules: two functions, ``losses`` and ``detect``.

The input is what ``lvis_rcnn.data`` makes: normalised, padded pixels. torchvision's own input transform is not used.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from lvis_rcnn.backbones import Backbone
from lvis_rcnn.data import Batch, Target
from lvis_rcnn.model.backbone import FPN_CHANNELS, build_backbone, fix_batch_statistics

STRIDES_PX = (4, 8, 16, 32, 64)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
BOX_POOL = 7
MASK_POOL = 14

# torchvision's loss names, and MMDetection's, which logs of this field use.
LOSS_NAMES = {
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_bbox",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_bbox",
    "loss_mask": "loss_mask",
}


@dataclass(frozen=True)
class Settings:
    """Numbers of the network and of its training and test paths; see ``config.Model`` and ``config.Inference``."""

    weights: str
    normalization: str
    frozen_stages: int
    anchor_scale: float
    anchors_per_image: int
    rois_per_image: int
    roi_positive_fraction: float
    proposals_before_nms: tuple[int, int]
    """(training, test), a level."""
    proposals_after_nms: tuple[int, int]
    """(training, test), an image."""
    score_threshold: float
    nms_iou: float
    detections_per_image: int


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image in the network's frame, best first; masks are probabilities inside the boxes."""

    boxes_xyxy: Float[torch.Tensor, "d 4"]
    labels: Int64[torch.Tensor, " d"]
    scores: Float[torch.Tensor, " d"]
    mask_probabilities: Float[torch.Tensor, "d 28 28"]


class MaskRcnn(nn.Module):
    """The module tree of torchvision's ``MaskRCNN``: ``backbone``, ``rpn``, ``roi_heads``."""

    def __init__(self, backbone: Backbone, num_labels: int, settings: Settings) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, settings.weights, settings.normalization, settings.frozen_stages)
        self.rpn = build_rpn(settings)
        self.roi_heads = build_roi_heads(num_labels, settings)
        self.fixed_statistics = settings.normalization == "fixed_batch"

    def train(self, mode: bool = True) -> "MaskRcnn":
        """Switch the mode; fixed statistics, and those of frozen stages, stay fixed."""
        super().train(mode)
        fix_batch_statistics(self.backbone, frozen_only=not self.fixed_statistics)
        return self


def build_rpn(settings: Settings) -> RegionProposalNetwork:
    """Region proposal network: one anchor scale a level, three ratios."""
    sides_px = tuple((settings.anchor_scale * stride,) for stride in STRIDES_PX)
    anchors = AnchorGenerator(sides_px, (ASPECT_RATIOS,) * len(STRIDES_PX))
    return RegionProposalNetwork(
        anchors,
        RPNHead(FPN_CHANNELS, len(ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=settings.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), settings.proposals_before_nms, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), settings.proposals_after_nms, strict=True)),
        nms_thresh=0.7,
    )


def build_roi_heads(num_labels: int, settings: Settings) -> RoIHeads:
    """Box and mask heads; box regression and masks are per class."""
    return RoIHeads(
        box_roi_pool=region_pool(BOX_POOL),
        box_head=TwoMLPHead(FPN_CHANNELS * BOX_POOL**2, 1024),
        box_predictor=FastRCNNPredictor(1024, num_labels),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=settings.rois_per_image,
        positive_fraction=settings.roi_positive_fraction,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_iou,
        detections_per_img=settings.detections_per_image,
        mask_roi_pool=region_pool(MASK_POOL),
        mask_head=MaskRCNNHeads(FPN_CHANNELS, (256, 256, 256, 256), dilation=1),
        mask_predictor=MaskRCNNPredictor(256, 256, num_labels),
    )


def region_pool(output_size: int) -> MultiScaleRoIAlign:
    """RoIAlign on P2 to P5, at their true scales.

    torchvision would guess the scales from the first image it meets and keep them; one that padding makes half as
    large again, such as 1333 x 40, makes it guess wrong.
    """
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=output_size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES_PX[:4]]
    pool.map_levels = LevelMapper(2, 5)  # P2 to P5
    return pool


def losses(model: MaskRcnn, batch: Batch) -> dict[str, torch.Tensor]:
    """The five training losses of a batch, by MMDetection's names; the model is in training mode."""
    images = ImageList(batch.pixels, batch.sizes_hw)
    targets = [torchvision_target(target) for target in batch.targets]
    features = model.backbone(batch.pixels)
    proposals, rpn_losses = model.rpn(images, features, targets)
    _, roi_losses = model.roi_heads(features, proposals, batch.sizes_hw, targets)
    return {LOSS_NAMES[name]: value for name, value in {**rpn_losses, **roi_losses}.items()}


@torch.no_grad()
def detect(model: MaskRcnn, batch: Batch) -> list[ImageDetections]:
    """Detections of each image of a batch, best first; the model is in evaluation mode."""
    images = ImageList(batch.pixels, batch.sizes_hw)
    features = model.backbone(batch.pixels)
    proposals, _ = model.rpn(images, features)
    found, _ = model.roi_heads(features, proposals, batch.sizes_hw)
    return [ImageDetections(f["boxes"], f["labels"], f["scores"], f["masks"][:, 0]) for f in found]


def torchvision_target(target: Target) -> dict[str, torch.Tensor]:
    """The target under the keys that torchvision's heads read."""
    return {"boxes": target.boxes_xyxy, "labels": target.labels, "masks": target.masks}
