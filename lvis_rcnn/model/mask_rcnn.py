"""Mask R-CNN (He et al. 2017): torchvision's module tree with MMDetection's arithmetic (3.3.0).

Two functions, :func:`losses` and :func:`detect`. Each file of this folder says how it differs from torchvision; the
tests compare all of them with figures of MMDetection itself.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import nn

from lvis_rcnn.config.schema import Backbone, Inference, Model
from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.model.backbone import FPN_CHANNELS, build_backbone, fix_batch_statistics, pyramid
from lvis_rcnn.model.device import sent
from lvis_rcnn.model.matcher import Choose
from lvis_rcnn.model.postprocess import Candidates, ImageDetections, detect_boxes, detect_masks
from lvis_rcnn.model.roi_heads import RegionHeads
from lvis_rcnn.model.roi_losses import region_losses, sampled_regions
from lvis_rcnn.model.rpn import ProposalNetwork, proposals, rpn_losses
from lvis_rcnn.model.together import proposals_of_images

# What records and the table say of a precision.
PRECISIONS = {
    "fp32": "fp32 without TF32",
    "tf32": "fp32 with TF32 in convolutions and matrix products",
    "bf16": "bf16 autocast, weights and losses in fp32 without TF32",
}

LOSS_NAMES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")


class MaskRcnn(nn.Module):
    """The module tree of torchvision's ``MaskRCNN``: ``backbone``, ``rpn``, ``roi_heads``."""

    def __init__(self, backbone: Backbone, num_labels: int, settings: Model) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, settings.normalization, settings.frozen_stages)
        self.rpn = ProposalNetwork(FPN_CHANNELS, settings.anchor_scale)
        self.roi_heads = RegionHeads(FPN_CHANNELS, num_labels, settings)
        self.settings = settings

    def train(self, mode: bool = True) -> "MaskRcnn":
        """Switch the mode; fixed statistics, and those of frozen stages, stay fixed."""
        super().train(mode)
        fix_batch_statistics(self.backbone, frozen_only=self.settings.normalization != "fixed_batch")
        return self


def network_on_meta(backbone: Backbone, num_labels: int, settings: Model) -> MaskRcnn:
    """The network without memory for its weights, for their names, shapes and number."""
    with torch.device("meta"):
        return MaskRcnn(backbone, num_labels, settings)


def losses(model: MaskRcnn, batch: Batch, choose: Choose, number: int = 0) -> dict[str, torch.Tensor]:
    """The five training losses of one normalisation group, ``number`` of its step; the model is in training mode.

    ``choose`` samples first the anchors, then the regions, of each image in order, where there are too many.
    """
    settings = model.settings
    features = list(model.backbone(batch.pixels).values())
    truths_xyxy = [target.boxes_xyxy for target in batch.targets]
    padded_sizes_hw = [padded_size_hw(size) for size in batch.sizes_hw]
    of_rpn = rpn_losses(model.rpn, features, truths_xyxy, padded_sizes_hw, settings.anchors_per_image, choose)
    with torch.no_grad():
        predictions = model.rpn(features)
    per_image = proposals(predictions, batch.sizes_hw, settings.proposals_before_nms, settings.proposals_after_nms)
    regions = [
        sampled_regions(boxes, target, settings.rois_per_image, settings.roi_positive_fraction, choose)
        for (boxes, _), target in zip(per_image, batch.targets, strict=True)
    ]
    height, width = batch.pixels.shape[2:]
    return {**of_rpn, **region_losses(model.roi_heads, features, regions, batch.targets, (height, width), number)}


@torch.inference_mode()
def detect(
    model: MaskRcnn,
    batch: Batch,
    test: Inference,
    mask_labels: Sequence[Int64[torch.Tensor, " _"]] | None = None,
    shifts: Float[torch.Tensor, " k"] | None = None,
) -> list[ImageDetections]:
    """Detections of each image of a batch, best first; the model is in evaluation mode.

    Args:
        model: the network.
        batch: the images.
        test: which proposals and detections are kept.
        mask_labels: for each image, the labels whose detections get a mask, on the CPU; None for all.
        shifts: what calibration adds to the logits of background and categories; None for scores as they are.
    """
    features = pyramid(model.backbone, batch.pixels)
    propose = proposals if batch.pixels.device.type == "cpu" else proposals_of_images
    per_image = propose(model.rpn(features), batch.sizes_hw, test.proposals_before_nms, test.proposals_after_nms)
    found = detect_boxes(model.roi_heads, features, [boxes for boxes, _ in per_image], batch.sizes_hw, test, shifts)
    rows = rows_with_mask(found, mask_labels)
    masked = [best[own] for best, own in zip(found, rows, strict=True)]
    masks = detect_masks(model.roi_heads, features, masked)
    return [
        ImageDetections(best.boxes_xyxy, best.labels, best.scores, own, logits)
        for best, own, logits in zip(found, rows, masks, strict=True)
    ]


def rows_with_mask(
    found: Sequence[Candidates], mask_labels: Sequence[Int64[torch.Tensor, " _"]] | None
) -> list[Int64[torch.Tensor, " _"]]:
    """Indices of the detections of each image that get a mask; the host waits once for a GPU, if at all."""
    lengths = [len(best.labels) for best in found]
    if mask_labels is None:
        return [torch.arange(length, device=found[0].labels.device) for length in lengths]
    labels = torch.cat([best.labels for best in found]).cpu().split(lengths)
    rows = [torch.isin(own, wanted).nonzero()[:, 0] for own, wanted in zip(labels, mask_labels, strict=True)]
    return sent(found[0].labels.device, *rows)


def set_precision(precision: str) -> None:
    """How GPUs multiply and convolve float32 in this process: for ``tf32`` with a mantissa of 10 bits, else exactly.

    PyTorch's own default for convolutions is TF32. A CPU always does it exactly.
    """
    products = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
