"""Box and mask heads, and the features that RoIAlign gives them.

torchvision's modules and parameter names, but without box and mask rows for the background, which nothing reads.

How regions are classified, and whether weights are normalised, are rows of tables (classification.py, normalised.py).

Initial weights are MMDetection's (3.3.0, ``init_weights``); torchvision leaves the linear layers and the biases of the
mask predictor at PyTorch's defaults.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import nn
from torch.nn.functional import relu
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import roi_align

from lvis_rcnn.config.schema import Model
from lvis_rcnn.model.boxes import STRIDES_PX, areas
from lvis_rcnn.model.classification import CLASSIFICATIONS, Labels
from lvis_rcnn.model.normalised import BOX_CLASSIFIERS, MASK_PREDICTORS
from lvis_rcnn.model.seesaw import LabelCounters

BOX_POOL = 7
MASK_POOL = 14
HIDDEN = 1024


class BoxPredictor(nn.Module):
    """Scores of ``num_labels`` labels, background first, and four deltas for each label but the background."""

    def __init__(self, num_labels: int, settings: Model) -> None:
        super().__init__()
        self.classification = settings.classification
        way = CLASSIFICATIONS[settings.classification]
        self.cls_score = BOX_CLASSIFIERS[settings.box_classifier](HIDDEN, num_labels + way.more_outputs)
        self.counters = LabelCounters(settings.seesaw, num_labels) if way.counts_labels else None
        self.bbox_pred = nn.Linear(HIDDEN, 4 * (num_labels - 1))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

    def class_losses(
        self, hidden: Float[torch.Tensor, "r hidden"], labels: Labels, reduction: str
    ) -> Float[torch.Tensor, "*r"]:
        """Classification loss of each region (``reduction`` none), or their sum."""
        losses = CLASSIFICATIONS[self.classification].losses
        return losses(self.cls_score(hidden).float(), labels, self.counters, reduction)

    def deltas(
        self,
        hidden: Float[torch.Tensor, "n hidden"],
        rows: Int64[torch.Tensor, " m"],
        labels: Int64[torch.Tensor, " m"],
    ) -> Float[torch.Tensor, "m 4"]:
        """Deltas of pairs of a region (row of ``hidden``) and a label (1 to C)."""
        deltas: torch.Tensor = self.bbox_pred(hidden).unflatten(1, (-1, 4))
        return deltas[rows, labels - 1]


class MaskPredictor(nn.Module):
    """Mask logits of each region for its label.

    The last layer is a 1 x 1 convolution with one row per label. Only the row of a region's label is applied: values
    and gradients are the same, and all 1230 rows would be 942 MiB for the 256 positive regions of two images.
    """

    def __init__(self, num_labels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv5_mask = nn.ConvTranspose2d(256, 256, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(256, num_labels - 1, 1)
        for name, value in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.zeros_(value)

    def forward(
        self, features: Float[torch.Tensor, "n 256 14 14"], labels: Int64[torch.Tensor, " n"]
    ) -> Float[torch.Tensor, "n 28 28"]:
        """Mask logits for the label (1 to C) of each region."""
        upsampled = relu(self.conv5_mask(features), inplace=True)
        weight, bias = self.mask_fcn_logits.parameters()
        upsampled, rows = MASK_PREDICTORS[self.kind](upsampled, weight[labels - 1, :, 0, 0])
        logits = torch.bmm(rows[:, None], upsampled.flatten(2))[:, 0] + bias[labels - 1, None]
        return logits.reshape(len(features), *upsampled.shape[2:])


class RegionHeads(nn.Module):
    """``roi_heads`` of the module tree."""

    def __init__(self, channels: int, num_labels: int, settings: Model) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(channels * BOX_POOL**2, HIDDEN)
        for layer in (self.box_head.fc6, self.box_head.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.box_predictor = BoxPredictor(num_labels, settings)
        self.mask_head = MaskRCNNHeads(channels, (256, 256, 256, 256), dilation=1)
        self.mask_predictor = MaskPredictor(num_labels, settings.mask_predictor)


# P2 to P5; regions with sides from 112 pixels on are read from P3, from 224 on from P4, from 448 on from P5.
REGION_STRIDES_PX = STRIDES_PX[:4]
FINEST_SIDE_PX = 56


def level_of(boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Int64[torch.Tensor, " n"]:
    """Level of each region, 0 for P2 (Lin et al. 2017, equation 1)."""
    sides_px = areas(boxes_xyxy).sqrt()
    return torch.floor(torch.log2(sides_px / FINEST_SIDE_PX + 1e-6)).clamp(0, len(REGION_STRIDES_PX) - 1).long()


def region_features(
    features: Sequence[Float[torch.Tensor, "n c _ _"]],
    boxes_xyxy: Sequence[Float[torch.Tensor, "_ 4"]],
    output_size: int,
) -> Float[torch.Tensor, "r c s s"]:
    """RoIAlign with ``output_size`` squared cells; ``boxes_xyxy`` has one tensor per image, the result all regions."""
    return features_of_regions(features, regions_of_images(boxes_xyxy), output_size)


def regions_of_images(boxes_xyxy: Sequence[Float[torch.Tensor, "_ 4"]]) -> Float[torch.Tensor, "r 5"]:
    """Regions of a batch, image by image: the position of its image, and the box."""
    images = [boxes.new_full((len(boxes), 1), image) for image, boxes in enumerate(boxes_xyxy)]
    return torch.cat([torch.cat(images), torch.cat(list(boxes_xyxy))], dim=1)


def features_of_regions(
    features: Sequence[Float[torch.Tensor, "n c _ _"]], regions: Float[torch.Tensor, "r 5"], output_size: int
) -> Float[torch.Tensor, "r c s s"]:
    """:func:`region_features` of some of :func:`regions_of_images`; the host waits once for a GPU, for the levels."""
    levels = level_of(regions[:, 1:])
    counts = (levels[:, None] == torch.arange(len(REGION_STRIDES_PX), device=levels.device)).sum(dim=0).tolist()
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], output_size, output_size)
    of_levels = levels.argsort(stable=True).split(counts)
    for feature, stride_px, rows in zip(features, REGION_STRIDES_PX, of_levels, strict=False):
        if len(rows):
            cells = roi_align(feature, regions[rows], output_size, 1 / stride_px, sampling_ratio=0, aligned=True)
            pooled.index_copy_(0, rows, cells)
    return pooled
