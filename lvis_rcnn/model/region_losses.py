"""What the heads learn from regions (MMDetection 3.3.0, ``StandardRoIHead.loss``).

What torchvision's ``RoIHeads`` does otherwise: ground truth joins the proposals before they are matched, so that of two
equal boxes the first gets both; no low-quality matches; smooth L1; box deltas of all regions where only those on an
object count; all mask channels; soft mask targets.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss

from lvis_rcnn.data import Target
from lvis_rcnn.model.assign import ROI_THRESHOLDS, Choose, assign, sample
from lvis_rcnn.model.boxes import ROI_STDS, encode
from lvis_rcnn.model.heads import BOX_POOL, MASK_POOL, RegionHeads
from lvis_rcnn.model.mask_targets import mask_targets
from lvis_rcnn.model.regions import region_features

SizeHW = tuple[int, int]


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that the heads are trained on, those on an object first."""

    boxes_xyxy: Float[torch.Tensor, "r 4"]
    labels: Int64[torch.Tensor, " r"]
    """0 is the background."""
    objects: Int64[torch.Tensor, " p"]
    """Ground truth of each region on an object."""


def sampled_regions(
    proposals_xyxy: Float[torch.Tensor, "n 4"], target: Target, count: int, positive_fraction: float, choose: Choose
) -> SampledRegions:
    """Match the proposals, put the ground truth before them as its own match, sample."""
    truths = target.boxes_xyxy
    own = torch.arange(1, len(truths) + 1, device=truths.device)
    assigned = torch.cat([own, assign(proposals_xyxy, truths, ROI_THRESHOLDS)])
    boxes = torch.cat([truths, proposals_xyxy])
    positive, negative = sample(assigned, count, positive_fraction, choose)
    objects = assigned[positive] - 1
    labels = torch.cat([target.labels[objects], torch.zeros_like(negative)])
    return SampledRegions(boxes[torch.cat([positive, negative])], labels, objects)


def region_losses(
    heads: RegionHeads,
    features: list[Float[torch.Tensor, "n c _ _"]],
    regions: list[SampledRegions],
    targets: list[Target],
    canvas_hw: SizeHW,
) -> dict[str, torch.Tensor]:
    """Label (cross entropy), box (L1) and mask (binary cross entropy) loss of a group, the last two of the own label.

    The first two are sums over the group divided by its number of regions, the last is a mean over the cells of all
    regions on an object.
    """
    hidden = heads.box_head(region_features(features, [one.boxes_xyxy for one in regions], BOX_POOL))
    labels = torch.cat([one.labels for one in regions])
    on_object = labels.nonzero()[:, 0]
    wanted = [
        encode(own.boxes_xyxy[: len(own.objects)], target.boxes_xyxy[own.objects], ROI_STDS)
        for own, target in zip(regions, targets, strict=True)
    ]
    rows = torch.arange(len(on_object), device=labels.device)
    deltas = heads.box_predictor.deltas(hidden[on_object], rows, labels[on_object])
    return {
        "loss_cls": cross_entropy(heads.box_predictor.cls_score(hidden), labels, reduction="sum") / len(labels),
        "loss_bbox": l1_loss(deltas, torch.cat(wanted), reduction="sum") / len(labels),
        "loss_mask": mask_loss(heads, features, regions, targets, canvas_hw),
    }


def mask_loss(
    heads: RegionHeads,
    features: list[Float[torch.Tensor, "n c _ _"]],
    regions: list[SampledRegions],
    targets: list[Target],
    canvas_hw: SizeHW,
) -> torch.Tensor:
    """Mask loss; 0, and still of every parameter, where no region lies on an object."""
    boxes = [own.boxes_xyxy[: len(own.objects)] for own in regions]
    labels = torch.cat([own.labels[: len(own.objects)] for own in regions])
    logits: torch.Tensor = heads.mask_predictor(heads.mask_head(region_features(features, boxes, MASK_POOL)), labels)
    if not len(labels):
        return logits.sum()
    wanted = [
        mask_targets(target.masks, own_boxes, own.objects, canvas_hw)
        for target, own_boxes, own in zip(targets, boxes, regions, strict=True)
    ]
    return binary_cross_entropy_with_logits(logits, torch.cat(wanted))
