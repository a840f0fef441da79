"""Region proposal network (Ren et al. 2015): where something is, whatever it is.

torchvision's head and parameter names under MMDetection's arithmetic (3.3.0, ``RPNHead``). What torchvision's
``RegionProposalNetwork`` does otherwise: rounded anchors and guessed strides, anchors in padding, its matcher, smooth
L1, proposals of 1e-3 pixels dropped rather than of 0, 2000 of them kept in training in place of 1000.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import nms

from lvis_rcnn.model.anchors import ASPECT_RATIOS, anchors_in_image, pyramid_anchors
from lvis_rcnn.model.assign import RPN_THRESHOLDS, Choose, assign, sample
from lvis_rcnn.model.boxes import RPN_STDS, clip, decode, encode

PROPOSAL_NMS_IOU = 0.7
POSITIVE_FRACTION = 0.5

SizeHW = tuple[int, int]


@dataclass(frozen=True)
class Predictions:
    """What the head says of every anchor of a batch of ``n`` images: levels in order, in each y, x, ratio."""

    anchors_xyxy: list[Float[torch.Tensor, "_ 4"]]
    """A level."""
    levels_hw: list[SizeHW]
    logits: list[Float[torch.Tensor, "n _"]]
    """A level; of being an object."""
    deltas: list[Float[torch.Tensor, "n _ 4"]]
    """A level."""


class ProposalNetwork(nn.Module):
    """The head; ``rpn.head`` in the module tree."""

    def __init__(self, channels: int, anchor_scale: float) -> None:
        super().__init__()
        # Weights N(0, 0.01), biases 0: as in MMDetection.
        self.head = RPNHead(channels, len(ASPECT_RATIOS))
        self.anchor_scale = anchor_scale

    def forward(self, features: list[Float[torch.Tensor, "n c _ _"]]) -> Predictions:
        """Predictions for the levels P2 to P6."""
        logits, deltas = self.head(features)
        levels_hw = [(level.shape[2], level.shape[3]) for level in features]
        return Predictions(
            pyramid_anchors(levels_hw, self.anchor_scale, features[0].device),
            levels_hw,
            [level.permute(0, 2, 3, 1).flatten(1) for level in logits],
            # Channel: ratio * 4 + coordinate.
            [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas],
        )


def rpn_losses(
    predictions: Predictions,
    truths_xyxy: list[Float[torch.Tensor, "_ 4"]],
    padded_sizes_hw: list[SizeHW],
    anchors_per_image: int,
    choose: Choose,
) -> dict[str, torch.Tensor]:
    """Objectness (binary cross entropy) and box (L1) loss over the sampled anchors of the images of one group.

    Both sums are divided by the number of sampled anchors of the group, in which an image without positive (or
    negative) anchors counts one.
    """
    anchors = torch.cat(predictions.anchors_xyxy)
    all_logits, all_deltas = torch.cat(predictions.logits, dim=1), torch.cat(predictions.deltas, dim=1)
    divisor = 0
    objectness, boxes = [all_logits.sum() * 0], [all_deltas.sum() * 0]
    for logits, deltas, truths, padded_hw in zip(all_logits, all_deltas, truths_xyxy, padded_sizes_hw, strict=True):
        inside = torch.cat(anchors_in_image(predictions.levels_hw, padded_hw, anchors.device)).nonzero()[:, 0]
        assigned = assign(anchors[inside], truths, RPN_THRESHOLDS)
        positive, negative = sample(assigned, anchors_per_image, POSITIVE_FRACTION, choose)
        divisor += max(len(positive), 1) + max(len(negative), 1)
        wanted = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).to(logits)
        sampled = inside[torch.cat([positive, negative])]
        objectness.append(binary_cross_entropy_with_logits(logits[sampled], wanted, reduction="sum"))
        on_object = inside[positive]
        targets = encode(anchors[on_object], truths[assigned[positive] - 1], RPN_STDS)
        boxes.append(l1_loss(deltas[on_object], targets, reduction="sum"))
    return {
        "loss_rpn_cls": torch.stack(objectness).sum() / divisor,
        "loss_rpn_bbox": torch.stack(boxes).sum() / divisor,
    }


@torch.no_grad()
def proposals(
    predictions: Predictions, sizes_hw: list[SizeHW], before_nms: int, after_nms: int
) -> list[tuple[Float[torch.Tensor, "_ 4"], Float[torch.Tensor, " _"]]]:
    """Boxes and scores of each image, best first.

    Args:
        predictions: of the batch.
        sizes_hw: image sizes before padding; boxes are clipped to them.
        before_nms: best anchors kept a level.
        after_nms: boxes kept an image, over all levels.
    """
    found = []
    for image, size_hw in enumerate(sizes_hw):
        levels = [
            level_proposals(anchors, logits[image], deltas[image], size_hw, before_nms)
            for anchors, logits, deltas in zip(
                predictions.anchors_xyxy, predictions.logits, predictions.deltas, strict=True
            )
        ]
        boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
        best = scores.argsort(descending=True, stable=True)[:after_nms]
        found.append((boxes[best], scores[best]))
    return found


def level_proposals(
    anchors_xyxy: Float[torch.Tensor, "anchors 4"],
    logits: Float[torch.Tensor, " anchors"],
    deltas: Float[torch.Tensor, "anchors 4"],
    size_hw: SizeHW,
    before_nms: int,
) -> tuple[Float[torch.Tensor, "p 4"], Float[torch.Tensor, " p"]]:
    """Proposals of one level of one image: the best by sigmoid, moved, clipped, those without area dropped, NMS."""
    scores = logits.sigmoid()
    best = scores.argsort(descending=True, stable=True)[:before_nms]
    boxes, scores = clip(decode(anchors_xyxy[best], deltas[best], RPN_STDS), size_hw), scores[best]
    kept = has_area(boxes)
    boxes, scores = boxes[kept], scores[kept]
    survivors = nms(boxes, scores, PROPOSAL_NMS_IOU)
    return boxes[survivors], scores[survivors]


def has_area(boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Bool[torch.Tensor, " n"]:
    """Boxes with both sides above 0."""
    return (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
