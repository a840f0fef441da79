"""Losses of the box and mask heads on sampled regions (MMDetection 3.3.0, ``StandardRoIHead.loss``).

torchvision's ``RoIHeads`` differs: it adds the ground truth before matching, so that of two equal boxes the first gets
both; it has no low-quality matches, smooth L1, and soft mask targets; it computes the box deltas of all regions, where
only those of positive regions count, and all mask channels.

A new loss is returned here (or by rpn.py) and named in ``mask_rcnn.LOSS_NAMES``; log and plots follow. Another loss of
the classification is a row of classification.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from jaxtyping import Bool, Float, Int64
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

from lvis_rcnn import SizeHW
from lvis_rcnn.dataloader.batches import Target
from lvis_rcnn.dataloader.masks import MaskCrops
from lvis_rcnn.model.boxes import ROI_STDS, encode
from lvis_rcnn.model.classification import Labels
from lvis_rcnn.model.matcher import ROI_THRESHOLDS, Choose, assign, sample
from lvis_rcnn.model.roi_heads import BOX_POOL, MASK_POOL, RegionHeads, region_features

MASK_SIZE = 28
# Sampling points of mask targets at a time, by kind of device: 60 bytes each while they are computed.
SAMPLES_PER_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 23}


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that the heads are trained on, positive ones first."""

    boxes_xyxy: Float[torch.Tensor, "r 4"]
    labels: Int64[torch.Tensor, " r"]
    """0 is the background."""
    objects: Int64[torch.Tensor, " p"]
    """Index of the ground truth of each positive region."""

    @property
    def positive_xyxy(self) -> Float[torch.Tensor, "p 4"]:
        """Boxes of the positive regions."""
        return self.boxes_xyxy[: len(self.objects)]


def sampled_regions(
    proposals_xyxy: Float[torch.Tensor, "n 4"], target: Target, count: int, positive_fraction: float, choose: Choose
) -> SampledRegions:
    """Match the proposals, put the ground truth before them, each box matched with itself, and sample."""
    truths = target.boxes_xyxy
    themselves = torch.arange(1, len(truths) + 1, device=truths.device)
    assigned = torch.cat([themselves, assign(proposals_xyxy, truths, ROI_THRESHOLDS)])
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
    number: int = 0,
) -> dict[str, torch.Tensor]:
    """Classification (``model.classification``), box (L1) and mask (binary cross entropy) loss of a group.

    Box and mask are those predicted for the label of a positive region. The first two are sums over the group divided
    by its number of regions, the mask loss is the mean over all cells of its positive regions. ``number`` is the place
    of the group in its step.
    """
    hidden = heads.box_head(region_features(features, [sampled.boxes_xyxy for sampled in regions], BOX_POOL))
    labels = torch.cat([sampled.labels for sampled in regions])
    positive = labels.nonzero()[:, 0]
    target_deltas = [
        encode(sampled.positive_xyxy, target.boxes_xyxy[sampled.objects], ROI_STDS)
        for sampled, target in zip(regions, targets, strict=True)
    ]
    rows = torch.arange(len(positive), device=labels.device)
    deltas = heads.box_predictor.deltas(hidden[positive], rows, labels[positive])
    of_group = Labels(labels, positive, torch.zeros_like(labels), [number])
    return {
        "loss_cls": heads.box_predictor.class_losses(hidden, of_group, "sum") / len(labels),
        "loss_bbox": l1_loss(deltas, torch.cat(target_deltas), reduction="sum") / len(labels),
        "loss_mask": mask_loss(heads, features, regions, targets, canvas_hw),
    }


def mask_loss(
    heads: RegionHeads,
    features: list[Float[torch.Tensor, "n c _ _"]],
    regions: list[SampledRegions],
    targets: list[Target],
    canvas_hw: SizeHW,
) -> torch.Tensor:
    """Mask loss; without a positive region it is 0, with a gradient of 0 for every parameter of the mask head."""
    boxes = [sampled.positive_xyxy for sampled in regions]
    labels = torch.cat([sampled.labels[: len(sampled.objects)] for sampled in regions])
    logits: torch.Tensor = heads.mask_predictor(heads.mask_head(region_features(features, boxes, MASK_POOL)), labels)
    if not len(labels):
        return logits.sum()
    masks = [
        mask_targets(target.masks, sampled.positive_xyxy, sampled.objects, canvas_hw)
        for target, sampled in zip(targets, regions, strict=True)
    ]
    return binary_cross_entropy_with_logits(logits, torch.cat(masks))


def points_of_cells(regions_xyxy: Float[torch.Tensor, "r 4"]) -> Int64[torch.Tensor, "r 2"]:
    """Sampling points of a cell of each region's mask target, along x and y."""
    shifted = regions_xyxy - 0.5  # rounded as the sides that are sampled
    return torch.ceil((shifted[:, 2:] - shifted[:, :2]) / MASK_SIZE).long()


def samples_of_regions(regions_xyxy: Float[torch.Tensor, "r 4"]) -> Int64[torch.Tensor, " r"]:
    """Sampling points of each region's mask target."""
    return (points_of_cells(regions_xyxy) * MASK_SIZE).prod(dim=1)


def mask_targets(
    crops: MaskCrops,
    regions_xyxy: Float[torch.Tensor, "r 4"],
    objects: Int64[torch.Tensor, " r"],
    canvas_hw: SizeHW,
) -> Float[torch.Tensor, "r 28 28"]:
    """Mask targets, 0 or 1, of positive regions: RoIAlign of the bitmaps, and a threshold of one half.

    Args:
        crops: masks of the objects.
        regions_xyxy: regions, in pixels of the network's input.
        objects: index of the crop that each region is trained on.
        canvas_hw: size of the batch's pixels: up to there the padding of a bitmap is 0, beyond it the last pixels are
            repeated.
    """
    canvases_hw = objects.new_tensor(canvas_hw).expand(len(objects), 2)
    samples = samples_of_regions(regions_xyxy).tolist()
    return mask_targets_of_canvases(crops, regions_xyxy, objects, canvases_hw, samples)


@torch.no_grad()
def mask_targets_of_canvases(
    crops: MaskCrops,
    regions_xyxy: Float[torch.Tensor, "r 4"],
    objects: Int64[torch.Tensor, " r"],
    canvases_hw: Int64[torch.Tensor, "r 2"],
    samples: Sequence[int],
) -> Float[torch.Tensor, "r 28 28"]:
    """The same for regions of several batches, each with its size; ``samples`` are :func:`samples_of_regions`."""
    shifted = regions_xyxy - 0.5  # pixel i covers i to i + 1, and its value is that of its centre
    points_xy = points_of_cells(regions_xyxy)
    soft = regions_xyxy.new_zeros(len(regions_xyxy), MASK_SIZE * MASK_SIZE)
    for rows in chunks(samples, SAMPLES_PER_CHUNK[regions_xyxy.device.type]):
        of_rows = shifted[rows], points_xy[rows], objects[rows], canvases_hw[rows]
        soft[rows] = region_means(crops, *of_rows, sum(samples[rows]))
    return (soft >= 0.5).to(soft.dtype).reshape(-1, MASK_SIZE, MASK_SIZE)


def chunks(samples: Sequence[int], most: int) -> list[slice]:
    """Consecutive regions that have about ``most`` samples together."""
    part_of = [(end - 1) // most for end in accumulate(samples)]
    lengths = [len(list(rows)) for _, rows in groupby(part_of)]
    return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]


def region_means(
    crops: MaskCrops,
    shifted_xyxy: Float[torch.Tensor, "r 4"],
    points_xy: Int64[torch.Tensor, "r 2"],
    objects: Int64[torch.Tensor, " r"],
    canvases_hw: Int64[torch.Tensor, "r 2"],
    num_samples: int,
) -> Float[torch.Tensor, "r cells"]:
    """Mean of the samples of each cell; samples, ``num_samples`` in all, are in the order of regions, then of rows."""
    columns = points_xy[:, 0] * MASK_SIZE
    samples = columns * points_xy[:, 1] * MASK_SIZE
    region = torch.repeat_interleave(samples, output_size=num_samples)
    position = torch.arange(len(region), device=region.device) - (samples.cumsum(0) - samples)[region]
    row, column = torch.div(position, columns[region], rounding_mode="floor"), position % columns[region]
    y = axis(row, shifted_xyxy[:, 1::2], points_xy[:, 1], region, canvases_hw[:, 0])
    x = axis(column, shifted_xyxy[:, 0::2], points_xy[:, 0], region, canvases_hw[:, 1])
    values = interpolated(crops, objects[region], y, x)
    cell_y = torch.div(row, points_xy[region, 1], rounding_mode="floor")
    cell_x = torch.div(column, points_xy[region, 0], rounding_mode="floor")
    cell = (region * MASK_SIZE + cell_y) * MASK_SIZE + cell_x
    # Row by row is the order of RoIAlign's kernel in a cell. index_add_ adds in that order on a CPU; on a GPU in any,
    # so that a mean of almost exactly one half may round otherwise.
    sums = values.new_zeros(len(points_xy) * MASK_SIZE * MASK_SIZE).index_add_(0, cell, values)
    return sums.reshape(len(points_xy), -1) / points_xy.prod(dim=1).clamp(min=1)[:, None]


@dataclass(frozen=True)
class Axis:
    """One coordinate of samples: between pixels ``low`` and ``high``, weighted by ``1 - fraction`` and ``fraction``."""

    low: Int64[torch.Tensor, " s"]
    high: Int64[torch.Tensor, " s"]
    fraction: Float[torch.Tensor, " s"]
    inside: Bool[torch.Tensor, " s"]


def axis(
    position: Int64[torch.Tensor, " s"],
    intervals: Float[torch.Tensor, "r 2"],
    points: Int64[torch.Tensor, " r"],
    region: Int64[torch.Tensor, " s"],
    sizes: Int64[torch.Tensor, " r"],
) -> Axis:
    """Samples along one axis: ``position`` counts them in their region.

    ``intervals`` are start and end of the regions, ``sizes`` the sizes of their canvases.
    """
    starts, ends = intervals.unbind(1)
    cell_px = ((ends - starts) / MASK_SIZE)[region]
    points_of = points[region]
    cell, point = torch.div(position, points_of, rounding_mode="floor"), position % points_of
    at = starts[region] + cell * cell_px + (point + 0.5) * cell_px / points_of
    last = (sizes - 1)[region]
    inside = (at >= -1.0) & (at <= last + 1)
    at = at.clamp(min=0)
    low = torch.minimum(at.long(), last)
    at = torch.minimum(at, last.to(at.dtype))
    return Axis(low, torch.minimum(low + 1, last), at - low, inside)


def interpolated(crops: MaskCrops, objects: Int64[torch.Tensor, " s"], y: Axis, x: Axis) -> Float[torch.Tensor, " s"]:
    """Bilinear values of samples; 0 where a sample lies outside the canvas."""
    left, top, right, bottom = crops.frames_xyxy[objects].unbind(1)
    first, width = crops.offsets[objects], right - left
    # One more pixel, which is 0, for everything outside a crop.
    pixels = torch.cat([crops.pixels, crops.pixels.new_zeros(1)])

    def pixel(row: Int64[torch.Tensor, " s"], column: Int64[torch.Tensor, " s"]) -> Float[torch.Tensor, " s"]:
        within = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        index = first + (row - top) * width + (column - left)
        return pixels[torch.where(within, index, len(crops.pixels))].to(y.fraction.dtype)

    upper, lower = 1 - y.fraction, y.fraction
    before, behind = 1 - x.fraction, x.fraction
    value = upper * before * pixel(y.low, x.low) + upper * behind * pixel(y.low, x.high)
    value = value + lower * before * pixel(y.high, x.low) + lower * behind * pixel(y.high, x.high)
    return torch.where(y.inside & x.inside, value, 0.0)
