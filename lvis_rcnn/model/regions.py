"""Features of regions: RoIAlign (He et al. 2017, section 3) on the level that fits a region's size.

``aligned``, with as many sampling points as a region has feature cells, at fixed scales (MMDetection's
``SingleRoIExtractor``). torchvision's ``MultiScaleRoIAlign`` is shifted by half a cell, takes 2 x 2 points, and guesses
the scales from the first image it meets.
"""

import torch
from jaxtyping import Float, Int64
from torchvision.ops import roi_align

from lvis_rcnn.model.anchors import STRIDES_PX
from lvis_rcnn.model.boxes import areas

# P2 to P5; a region of 112 pixels a side and more goes to P3, of 224 to P4, of 448 to P5.
REGION_STRIDES_PX = STRIDES_PX[:4]
FINEST_SIDE_PX = 56


def level_of(boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Int64[torch.Tensor, " n"]:
    """Level of each region, 0 for P2 (Lin et al. 2017, equation 1)."""
    sides_px = areas(boxes_xyxy).sqrt()
    return torch.floor(torch.log2(sides_px / FINEST_SIDE_PX + 1e-6)).clamp(0, len(REGION_STRIDES_PX) - 1).long()


def region_features(
    features: list[Float[torch.Tensor, "n c _ _"]], boxes_xyxy: list[Float[torch.Tensor, "_ 4"]], output_size: int
) -> Float[torch.Tensor, "r c s s"]:
    """``output_size`` squared cells of every region, images in order; ``boxes_xyxy`` has one tensor an image."""
    boxes = torch.cat(boxes_xyxy)
    image_of = torch.cat([boxes.new_full((len(own), 1), image) for image, own in enumerate(boxes_xyxy)])
    regions, levels = torch.cat([image_of, boxes], dim=1), level_of(boxes)
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], output_size, output_size)
    for level, (feature, stride_px) in enumerate(zip(features, REGION_STRIDES_PX, strict=False)):
        rows = (levels == level).nonzero()[:, 0]
        if len(rows):
            cells = roi_align(feature, regions[rows], output_size, 1 / stride_px, sampling_ratio=0, aligned=True)
            pooled.index_copy_(0, rows, cells)
    return pooled
