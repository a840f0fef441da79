"""What the heads learn from regions (MMDetection 3.3.0, ``StandardRoIHead.loss``).

What torchvision's ``RoIHeads`` does otherwise: ground truth joins the proposals before they are matched, so that of two
equal boxes the first gets both; no low-quality matches; smooth L1; box deltas of all regions where only those on an
object count; all mask channels; soft mask targets.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss

from lvis_rcnn.dataloader.batches import Target
from lvis_rcnn.dataloader.masks import MaskCrops
from lvis_rcnn.model.boxes import ROI_STDS, encode
from lvis_rcnn.model.matcher import ROI_THRESHOLDS, Choose, assign, sample
from lvis_rcnn.model.roi_heads import BOX_POOL, MASK_POOL, RegionHeads, region_features

MASK_SIZE = 28
# 60 bytes each while they are computed.
SAMPLES_AT_ONCE = 1 << 20

SizeHW = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """One axis of samples: between pixels ``low`` and ``high``, of weight ``1 - fraction`` and ``fraction``."""

    low: Int64[torch.Tensor, " s"]
    high: Int64[torch.Tensor, " s"]
    fraction: Float[torch.Tensor, " s"]
    inside: Bool[torch.Tensor, " s"]


@torch.no_grad()
def mask_targets(
    crops: MaskCrops,
    regions_xyxy: Float[torch.Tensor, "r 4"],
    objects: Int64[torch.Tensor, " r"],
    canvas_hw: SizeHW,
) -> Float[torch.Tensor, "r 28 28"]:
    """Targets, 0 or 1, of regions on objects.

    Args:
        crops: masks of the image's objects.
        regions_xyxy: regions, in pixels of the network's input.
        objects: which of the crops each region is trained on.
        canvas_hw: size of the batch's pixels: behind its edge a bitmap repeats, before it padding is zero.
    """
    shifted = regions_xyxy - 0.5  # the value of pixel i, which covers i to i + 1, stands at its middle
    # Sampling points of a cell, each way.
    points_xy = torch.ceil((shifted[:, 2:] - shifted[:, :2]) / MASK_SIZE).long()
    samples = (points_xy * MASK_SIZE).prod(dim=1)
    soft = regions_xyxy.new_zeros(len(regions_xyxy), MASK_SIZE * MASK_SIZE)
    for rows in chunks(samples):
        soft[rows] = region_means(crops, shifted[rows], points_xy[rows], objects[rows], canvas_hw)
    return (soft >= 0.5).to(soft.dtype).reshape(-1, MASK_SIZE, MASK_SIZE)


def chunks(samples: Int64[torch.Tensor, " r"]) -> list[Int64[torch.Tensor, " _"]]:
    """Rows in order, as many together as have ``SAMPLES_AT_ONCE`` samples; a larger row stands alone."""
    part_of = torch.div(samples.cumsum(0) - 1, SAMPLES_AT_ONCE, rounding_mode="floor")
    return list(
        torch.arange(len(samples), device=samples.device).split(
            torch.unique_consecutive(part_of, return_counts=True)[1].tolist()
        )
    )


def region_means(
    crops: MaskCrops,
    shifted_xyxy: Float[torch.Tensor, "r 4"],
    points_xy: Int64[torch.Tensor, "r 2"],
    objects: Int64[torch.Tensor, " r"],
    canvas_hw: SizeHW,
) -> Float[torch.Tensor, "r cells"]:
    """Mean of the samples of each cell; samples are laid out region by region, each row by row."""
    columns = points_xy[:, 0] * MASK_SIZE
    samples = columns * points_xy[:, 1] * MASK_SIZE
    region = torch.repeat_interleave(samples)
    position = torch.arange(len(region), device=region.device) - (samples.cumsum(0) - samples)[region]
    row, column = torch.div(position, columns[region], rounding_mode="floor"), position % columns[region]
    y = axis(row, shifted_xyxy[:, 1::2], points_xy[:, 1], region, canvas_hw[0])
    x = axis(column, shifted_xyxy[:, 0::2], points_xy[:, 0], region, canvas_hw[1])
    values = interpolated(crops, objects[region], y, x)
    cell_y = torch.div(row, points_xy[region, 1], rounding_mode="floor")
    cell_x = torch.div(column, points_xy[region, 0], rounding_mode="floor")
    cell = (region * MASK_SIZE + cell_y) * MASK_SIZE + cell_x
    # Row by row is the kernel's order inside a cell, and index_add_ adds in order.
    sums = values.new_zeros(len(points_xy) * MASK_SIZE * MASK_SIZE).index_add_(0, cell, values)
    return sums.reshape(len(points_xy), -1) / points_xy.prod(dim=1).clamp(min=1)[:, None]


def axis(
    position: Int64[torch.Tensor, " s"],
    intervals: Float[torch.Tensor, "r 2"],
    points: Int64[torch.Tensor, " r"],
    region: Int64[torch.Tensor, " s"],
    size: int,
) -> Axis:
    """Samples along one axis: ``position`` counts those of a region; ``intervals`` are start and end of regions."""
    starts, ends = intervals.unbind(1)
    cell_px = ((ends - starts) / MASK_SIZE)[region]
    points_of = points[region]
    cell, point = torch.div(position, points_of, rounding_mode="floor"), position % points_of
    at = starts[region] + cell * cell_px + (point + 0.5) * cell_px / points_of
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(min=0)
    low = at.long().clamp(max=size - 1)
    at = torch.minimum(at, at.new_tensor(size - 1))
    return Axis(low, (low + 1).clamp(max=size - 1), at - low, inside)


def interpolated(crops: MaskCrops, objects: Int64[torch.Tensor, " s"], y: Axis, x: Axis) -> Float[torch.Tensor, " s"]:
    """Bilinear values of samples; 0 where a sample lies outside the canvas."""
    left, top, right, bottom = crops.frames_xyxy[objects].unbind(1)
    first, width = crops.offsets[objects], right - left
    # One more pixel, zero, for everything outside a crop.
    pixels = torch.cat([crops.pixels, crops.pixels.new_zeros(1)])

    def pixel(row: Int64[torch.Tensor, " s"], column: Int64[torch.Tensor, " s"]) -> Float[torch.Tensor, " s"]:
        within = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        place = first + (row - top) * width + (column - left)
        return pixels[torch.where(within, place, len(crops.pixels))].to(y.fraction.dtype)

    upper, lower = 1 - y.fraction, y.fraction
    before, behind = 1 - x.fraction, x.fraction
    value = upper * before * pixel(y.low, x.low) + upper * behind * pixel(y.low, x.high)
    value = value + lower * before * pixel(y.high, x.low) + lower * behind * pixel(y.high, x.high)
    return torch.where(y.inside & x.inside, value, 0.0)


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
