"""Region proposal network (Ren et al. 2015): where objects are, of whatever category.

torchvision's head and parameter names with MMDetection's arithmetic (3.3.0, ``RPNHead``). torchvision's
``RegionProposalNetwork`` differs: it rounds anchors and guesses strides, trains on anchors in the padding, has another
matcher and smooth L1, drops proposals below 1e-3 pixels instead of 0, and keeps 2000 instead of 1000 in training.

Both losses are of at most 256 of an image's 200,000 anchors, and the head is computed with a gradient at these only:
values and gradients are equal to rounding, and the backward pass through the head on whole levels, 13 % of the
arithmetic of a training step of R-50, is not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, linear, relu
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import nms

from lvis_rcnn import SizeHW
from lvis_rcnn.model.boxes import (
    ASPECT_RATIOS,
    RPN_STDS,
    anchors_in_image,
    best_rows,
    clip,
    decode,
    encode,
    pyramid_anchors,
)
from lvis_rcnn.model.matcher import RPN_THRESHOLDS, Choose, assign, sample

PROPOSAL_NMS_IOU = 0.7
POSITIVE_FRACTION = 0.5


@dataclass(frozen=True)
class Predictions:
    """Output of the head for a batch of ``n`` images, one tensor per level; anchors are in the order y, x, ratio."""

    anchors_xyxy: list[Float[torch.Tensor, "_ 4"]]
    levels_hw: list[SizeHW]
    logits: list[Float[torch.Tensor, "n _"]]
    """Objectness."""
    deltas: list[Float[torch.Tensor, "n _ 4"]]


class ProposalNetwork(nn.Module):
    """The RPN head; ``rpn.head`` in the module tree."""

    def __init__(self, channels: int, anchor_scale: float) -> None:
        super().__init__()
        # Weights N(0, 0.01), biases 0: as in MMDetection.
        self.head = RPNHead(channels, len(ASPECT_RATIOS))
        self.anchor_scale = anchor_scale

    def forward(self, features: list[Float[torch.Tensor, "n c _ _"]]) -> Predictions:
        """Predictions for the levels P2 to P6."""
        hidden = [self.head.conv(level) for level in features]
        with torch.autocast(features[0].device.type, enabled=False):
            # bfloat16 has some 230 different scores among the best 2000 of 200,000.
            logits = [self.head.cls_logits(level.float()) for level in hidden]
        deltas = [self.head.bbox_pred(level) for level in hidden]
        levels_hw = [(level.shape[2], level.shape[3]) for level in features]
        return Predictions(
            pyramid_anchors(levels_hw, self.anchor_scale, features[0].device),
            levels_hw,
            [level.permute(0, 2, 3, 1).flatten(1) for level in logits],
            # Channel: ratio * 4 + coordinate.
            [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas],
        )

    def at_anchors(
        self, levels: Sequence[Float[torch.Tensor, "c _ _"]], anchors: Int64[torch.Tensor, " k"]
    ) -> tuple[Float[torch.Tensor, " k"], Float[torch.Tensor, "k 4"]]:
        """Logits and deltas at some anchors of one image, which are counted over all its levels."""
        places, ratios = anchors // len(ASPECT_RATIOS), anchors % len(ASPECT_RATIOS)
        convolution, rows = self.head.conv[0][0], torch.arange(len(anchors), device=anchors.device)
        patches = patches_at(levels, places)
        hidden = relu(linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias))
        logits, deltas = (
            linear(hidden, layer.weight.flatten(1)) + layer.bias
            for layer in (self.head.cls_logits, self.head.bbox_pred)
        )
        return logits[rows, ratios], deltas.unflatten(1, (-1, 4))[rows, ratios]


def patches_at(
    levels: Sequence[Float[torch.Tensor, "c _ _"]], places: Int64[torch.Tensor, " k"]
) -> Float[torch.Tensor, "k c 9"]:
    """The 3 x 3 cells around some cells, 0 outside a level; ``places`` counts cells in the order level, y, x.

    Every level is read at every place, and gives 0 for places of other levels: so the host need not wait for the
    device. Its gradient is an index_add, which sums in a fixed order on a CPU, but not on a GPU.
    """
    offsets, first, patches = torch.arange(-1, 2, device=places.device), 0, []
    for level in levels:
        height, width = level.shape[1:]
        y, x = (places - first) // width, (places - first) % width
        rows = y[:, None, None] + offsets[:, None]
        columns = x[:, None, None] + offsets
        exists = (y >= 0) & (y < height)
        inside = exists[:, None, None] & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        cells = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        values = level.flatten(1).index_select(1, cells.flatten()) * inside.flatten()
        patches.append(values.unflatten(1, (len(places), 9)))
        first += height * width
    return torch.stack(patches).sum(dim=0).transpose(0, 1)


def rpn_losses(
    network: ProposalNetwork,
    features: list[Float[torch.Tensor, "n c _ _"]],
    truths_xyxy: list[Float[torch.Tensor, "_ 4"]],
    padded_sizes_hw: list[SizeHW],
    anchors_per_image: int,
    choose: Choose,
) -> dict[str, torch.Tensor]:
    """Objectness (binary cross entropy) and box (L1) loss of the sampled anchors of one normalisation group.

    Both sums are divided by the number of sampled anchors of the group; an image without positive anchors counts as one
    with one, and likewise for negative anchors.
    """
    levels_hw = [(level.shape[2], level.shape[3]) for level in features]
    anchors = torch.cat(pyramid_anchors(levels_hw, network.anchor_scale, features[0].device))
    divisor, objectness, boxes = 0, [], []
    images = zip(*(level.unbind() for level in features), strict=True)
    for levels, truths, padded_hw in zip(images, truths_xyxy, padded_sizes_hw, strict=True):
        inside = torch.cat(anchors_in_image(levels_hw, padded_hw, anchors.device)).nonzero()[:, 0]
        assigned = assign(anchors[inside], truths, RPN_THRESHOLDS)
        positive, negative = sample(assigned, anchors_per_image, POSITIVE_FRACTION, choose)
        divisor += max(len(positive), 1) + max(len(negative), 1)
        sampled = inside[torch.cat([positive, negative])]
        logits, deltas = network.at_anchors(levels, sampled)
        is_object = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).to(logits)
        objectness.append(binary_cross_entropy_with_logits(logits, is_object, reduction="sum"))
        targets = encode(anchors[inside[positive]], truths[assigned[positive] - 1], RPN_STDS)
        boxes.append(l1_loss(deltas[: len(positive)], targets, reduction="sum"))
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
        before_nms: best anchors that are kept per level.
        after_nms: boxes that are kept per image, over all levels.
    """
    per_image = []
    for image, size_hw in enumerate(sizes_hw):
        levels = [
            level_proposals(anchors, logits[image], deltas[image], size_hw, before_nms)
            for anchors, logits, deltas in zip(
                predictions.anchors_xyxy, predictions.logits, predictions.deltas, strict=True
            )
        ]
        boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
        best = scores.argsort(descending=True, stable=True)[:after_nms]
        per_image.append((boxes[best], scores[best]))
    return per_image


def level_proposals(
    anchors_xyxy: Float[torch.Tensor, "anchors 4"],
    logits: Float[torch.Tensor, " anchors"],
    deltas: Float[torch.Tensor, "anchors 4"],
    size_hw: SizeHW,
    before_nms: int,
) -> tuple[Float[torch.Tensor, "p 4"], Float[torch.Tensor, " p"]]:
    """Proposals of one level of one image: the best anchors, decoded and clipped, without empty boxes, after NMS."""
    scores = logits.sigmoid()
    best = best_rows(scores, before_nms)
    boxes, scores = clip(decode(anchors_xyxy[best], deltas[best], RPN_STDS), size_hw), scores[best]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores = boxes[kept], scores[kept]
    survivors = nms(boxes, scores, PROPOSAL_NMS_IOU)
    return boxes[survivors], scores[survivors]
