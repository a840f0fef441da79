"""Losses of several normalisation groups in one pass: what MMDetection's processes compute side by side.

``mask_rcnn.losses`` of each group, with its divisors and its random numbers, but for all groups together: in a step of
eight groups the host waits for the device a fortieth as often, and launches half of the kernels, or with a common
canvas a fifth (docs/performance.md). A canvas is what passes through backbone and pyramid together:

    a group      the canvas of MMDetection: values and gradients are those of group by group, to rounding
    common       all groups of one orientation, padded to one size: faster, but the features at the border of an image
                 depend on the size of its canvas, as in MMDetection on the partner image

The order of a step is that of ``mask_rcnn.losses``: anchors, proposals, regions, masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torch.nn.utils.rnn import pad_sequence

from lvis_rcnn import SizeHW
from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.model.backbone import folded
from lvis_rcnn.model.boxes import ROI_STDS, RPN_STDS, STRIDES_PX, anchors_in_image, encode
from lvis_rcnn.model.classification import Labels
from lvis_rcnn.model.device import sent
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.matcher import ROI_THRESHOLDS, RPN_THRESHOLDS, assign
from lvis_rcnn.model.roi_heads import BOX_POOL, MASK_POOL, REGION_STRIDES_PX, RegionHeads, level_of
from lvis_rcnn.model.roi_losses import MASK_SIZE, mask_targets_of_canvases, samples_of_regions
from lvis_rcnn.model.rpn import POSITIVE_FRACTION, Predictions, ProposalNetwork
from lvis_rcnn.model.together import (
    Samples,
    Truths,
    at_anchors_of_images,
    pooled,
    proposals_together,
    sample_together,
    truths_of,
)

# Of an anchor in the padding of its image: it overlaps no ground truth.
FAR_AWAY_PX = -1e4


@dataclass(frozen=True)
class Images:
    """The images of a pass, canvas by canvas."""

    truths: Truths
    sizes_hw: list[SizeHW]
    """Before padding."""
    group_of: list[int]
    """Position of the group of each image in the pass."""
    generators: list[torch.Generator]
    """Of each image: those of a group share theirs."""
    numbers: Sequence[int]
    """Places of the groups of the pass in the step."""

    @property
    def groups(self) -> int:
        """Of the pass."""
        return len(self.numbers)


@dataclass(frozen=True)
class Canvas:
    """Images that pass through backbone and pyramid together."""

    images: range
    """Their positions among the images of the pass."""
    levels: list[Float[torch.Tensor, "n c _ _"]]
    predictions: Predictions
    """Of the RPN head, without a gradient."""

    @property
    def size_hw(self) -> SizeHW:
        """Height and width of the pixels."""
        height, width = self.predictions.levels_hw[0]
        return height * STRIDES_PX[0], width * STRIDES_PX[0]


def losses_together(
    model: MaskRcnn,
    groups: Sequence[Batch],
    generators: Sequence[torch.Generator],
    common_canvas: bool,
    numbers: Sequence[int],
) -> Float[torch.Tensor, "groups 5"]:
    """The losses of each group (``LOSS_NAMES``); the model is in training mode.

    Args:
        model: the network.
        groups: on its device.
        generators: of the random numbers of each group, on the CPU.
        common_canvas: whether the groups of one orientation share a canvas.
        numbers: places of the groups in their step.
    """
    shared = canvases_of(groups, common_canvas)
    order = [position for positions in shared for position in positions]
    with folded(model.backbone):
        features = [
            list(model.backbone(on_one_canvas([groups[position].pixels for position in positions])).values())
            for positions in shared
        ]
    canvases, first = [], 0
    for levels in features:
        with torch.no_grad():
            predictions = model.rpn(levels)
        canvases.append(Canvas(range(first, first + len(levels[0])), levels, predictions))
        first += len(levels[0])
    group_of = [position for position in order for _ in groups[position].targets]
    images = Images(
        truths_of([target for position in order for target in groups[position].targets]),
        [size_hw for position in order for size_hw in groups[position].sizes_hw],
        group_of,
        [generators[position] for position in group_of],
        numbers,
    )
    of_rpn = rpn_losses_together(model, canvases, images)
    regions = sampled_regions_together(model, canvases, images)
    return torch.stack([*of_rpn, *region_losses_together(model, canvases, regions, images)], dim=1)


def canvases_of(groups: Sequence[Batch], common: bool) -> list[list[int]]:
    """Positions of the groups of each canvas: each has its own, or those of one orientation share one."""
    if not common:
        return [[position] for position in range(len(groups))]
    is_portrait = [group.pixels.shape[2] > group.pixels.shape[3] for group in groups]
    parts = [[position for position, tall in enumerate(is_portrait) if tall == kind] for kind in (False, True)]
    return [part for part in parts if part]


def on_one_canvas(pixels: Sequence[Float[torch.Tensor, "_ 3 _ _"]]) -> Float[torch.Tensor, "n 3 h w"]:
    """Batches of several groups as one, padded right and below to the largest height and width."""
    height, width = (max(batch.shape[axis] for batch in pixels) for axis in (2, 3))
    return torch.cat([pad(batch, (0, width - batch.shape[3], 0, height - batch.shape[2])) for batch in pixels])


def by_group(
    values: Float[torch.Tensor, " k"], group_of: Int64[torch.Tensor, " k"], groups: int
) -> Float[torch.Tensor, " groups"]:
    """Sums over the groups; on a GPU in any order."""
    return values.new_zeros(groups).index_add(0, group_of, values)


def assigned_anchors(
    canvas: Canvas, truths_xyxy: Sequence[Float[torch.Tensor, "_ 4"]], sizes_hw: Sequence[SizeHW]
) -> Int64[torch.Tensor, "n anchors"]:
    """Assignment of a canvas's anchors to the ground truth of each of its images; those in its padding are ignored."""
    levels_hw, anchors = canvas.predictions.levels_hw, torch.cat(canvas.predictions.anchors_xyxy)
    rows = []
    for image in canvas.images:
        padded_hw = padded_size_hw(sizes_hw[image])
        if padded_hw == canvas.size_hw:
            rows.append(assign(anchors, truths_xyxy[image], RPN_THRESHOLDS))
            continue
        inside = torch.cat(anchors_in_image(levels_hw, padded_hw, anchors.device))
        assigned = assign(torch.where(inside[:, None], anchors, FAR_AWAY_PX), truths_xyxy[image], RPN_THRESHOLDS)
        rows.append(torch.where(inside, assigned, -1))
    return torch.stack(rows)


def rpn_losses_together(
    model: MaskRcnn, canvases: Sequence[Canvas], images: Images
) -> tuple[Float[torch.Tensor, " groups"], Float[torch.Tensor, " groups"]]:
    """``rpn.rpn_losses`` of each group: objectness and box."""
    truths = images.truths.of_images
    with torch.no_grad():
        assigned = [assigned_anchors(canvas, truths, images.sizes_hw) for canvas in canvases]
        samples = sample_together(assigned, images.generators, model.settings.anchors_per_image, POSITIVE_FRACTION)
    divisors = [0] * images.groups
    for group, numbers in zip(images.group_of, samples.counts, strict=True):
        divisors[group] += sum(max(number, 1) for number in numbers)
    of_images = torch.tensor([images.group_of, [divisors[group] for group in images.group_of], images.truths.first])
    group_of, divisor_of, first_truth_of = sent(samples.image_of.device, of_images)[0][:, samples.image_of]
    of_canvases = [
        at_samples(model.rpn, canvas, table, samples) for canvas, table in zip(canvases, assigned, strict=True)
    ]
    logits, deltas, boxes, matched = (torch.cat(parts) for parts in zip(*of_canvases, strict=True))
    positive = samples.positive
    is_object = torch.zeros_like(logits).index_fill(0, positive, 1.0)
    objectness = binary_cross_entropy_with_logits(logits, is_object, reduction="none") / divisor_of
    objects = first_truth_of[positive] + matched[positive] - 1
    targets = encode(boxes[positive], images.truths.boxes_xyxy[objects], RPN_STDS)
    distances = (deltas[positive] - targets).abs().sum(dim=1) / divisor_of[positive]
    return by_group(objectness, group_of, images.groups), by_group(distances, group_of[positive], images.groups)


def at_samples(
    network: ProposalNetwork, canvas: Canvas, assigned: Int64[torch.Tensor, "n anchors"], samples: Samples
) -> tuple[
    Float[torch.Tensor, " k"], Float[torch.Tensor, "k 4"], Float[torch.Tensor, "k 4"], Int64[torch.Tensor, " k"]
]:
    """Logits, deltas, boxes and assignments of the sampled anchors of one canvas."""
    first, rows = canvas.images.start, samples.of_images(canvas.images)
    image_of, anchor_of = samples.image_of[rows] - first, samples.box_of[rows]
    logits, deltas = at_anchors_of_images(network, canvas.levels, image_of, anchor_of)
    boxes = torch.cat(canvas.predictions.anchors_xyxy)[anchor_of]
    return logits.float(), deltas.float(), boxes, assigned[image_of, anchor_of]


@dataclass(frozen=True)
class Regions:
    """The regions of a pass that the heads are trained on: image by image, the positive ones first."""

    samples: Samples
    boxes_xyxy: Float[torch.Tensor, "r 4"]
    labels: Int64[torch.Tensor, " r"]
    """0 is the background."""
    objects: Int64[torch.Tensor, " p"]
    """Ground truth of the pass of each positive region."""


@torch.no_grad()
def sampled_regions_together(model: MaskRcnn, canvases: Sequence[Canvas], images: Images) -> Regions:
    """``roi_losses.sampled_regions`` of all images."""
    settings, truths = model.settings, images.truths.of_images
    boxes, assigned = [], []
    device = images.truths.boxes_xyxy.device
    limits, first_truth_of = sent(
        device,
        torch.tensor([[width, height] * 2 for height, width in images.sizes_hw]),
        torch.tensor(images.truths.first),
    )
    for canvas in canvases:
        proposed, scores = proposals_together(
            canvas.predictions,
            limits[canvas.images.start : canvas.images.stop].float(),
            settings.proposals_before_nms,
            settings.proposals_after_nms,
        )
        for image, own_boxes, own_scores in zip(canvas.images, proposed, scores, strict=True):
            matched = torch.where(own_scores < 0, -1, assign(own_boxes, truths[image], ROI_THRESHOLDS))
            themselves = torch.arange(1, len(truths[image]) + 1, device=device)
            assigned.append(torch.cat([themselves, matched]))
            boxes.append(torch.cat([truths[image], own_boxes]))
    table = pad_sequence(assigned, batch_first=True, padding_value=-1)
    samples = sample_together([table], images.generators, settings.rois_per_image, settings.roi_positive_fraction)
    image_of, positive = samples.image_of, samples.positive
    objects = first_truth_of[image_of[positive]] + table[image_of[positive], samples.box_of[positive]] - 1
    labels = torch.zeros_like(image_of).index_copy(0, positive, images.truths.labels[objects])
    return Regions(samples, pad_sequence(boxes, batch_first=True)[image_of, samples.box_of], labels, objects)


@dataclass(frozen=True)
class Placed:
    """Where regions lie: in which level of which canvas. RoIAlign takes them in that order."""

    levels: list[list[Float[torch.Tensor, "_ c _ _"]]]
    """Of each canvas, as far as regions are read from them."""
    regions: Float[torch.Tensor, "r 5"]
    """Place of the image in its canvas, and the box."""
    order: Int64[torch.Tensor, " r"]
    counts: list[int]
    """Regions in each level of each canvas."""
    positive_order: Int64[torch.Tensor, " p"]
    positive_counts: list[int]
    mask_samples: list[int]
    """Of the positive regions, in their order."""


def placed(canvases: Sequence[Canvas], regions: Regions, of_regions: Int64[torch.Tensor, "numbers r"]) -> Placed:
    """Levels and order of regions; the host waits once. ``of_regions`` are :func:`numbers_of_images` of each."""
    boxes, positive, num_levels = regions.boxes_xyxy, regions.samples.positive, len(REGION_STRIDES_PX)
    keys = of_regions[3] * num_levels + level_of(boxes)
    positive_order = positive[keys[positive].argsort(stable=True)]
    kinds = torch.arange(len(canvases) * num_levels, device=boxes.device)[:, None]
    counts = [(some == kinds).sum(dim=1) for some in (keys, keys[positive])]
    numbers = torch.cat([*counts, samples_of_regions(boxes[positive_order])]).tolist()
    return Placed(
        [canvas.levels[:num_levels] for canvas in canvases],
        torch.cat([of_regions[4].to(boxes.dtype)[:, None], boxes], dim=1),
        keys.argsort(stable=True),
        numbers[: len(kinds)],
        positive_order,
        numbers[len(kinds) : 2 * len(kinds)],
        numbers[2 * len(kinds) :],
    )


def region_losses_together(
    model: MaskRcnn, canvases: Sequence[Canvas], regions: Regions, images: Images
) -> tuple[Float[torch.Tensor, " groups"], Float[torch.Tensor, " groups"], Float[torch.Tensor, " groups"]]:
    """``roi_losses.region_losses`` of each group: classification, box and mask."""
    of_images = sent(regions.labels.device, torch.tensor(numbers_of_images(canvases, regions.samples, images)).T)[0]
    of_regions = of_images[:, regions.samples.image_of]
    where = placed(canvases, regions, of_regions)
    of_scores, of_boxes = box_losses_together(model.roi_heads, where, regions, images, of_regions)
    return of_scores, of_boxes, mask_losses_together(model.roi_heads, where, regions, images, of_regions)


def box_losses_together(
    heads: RegionHeads, where: Placed, regions: Regions, images: Images, of_regions: Int64[torch.Tensor, "numbers r"]
) -> tuple[Float[torch.Tensor, " groups"], Float[torch.Tensor, " groups"]]:
    """Classification and box loss of each group."""
    (group_of, regions_of_group), order, positive = of_regions[:2], where.order, regions.samples.positive
    hidden = heads.box_head(pooled(where.levels, where.regions[order], where.counts, BOX_POOL))
    row_of = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    labels = Labels(regions.labels[order], row_of[positive], group_of[order], images.numbers)
    of_scores = heads.box_predictor.class_losses(hidden, labels, "none") / regions_of_group[order]
    rows = torch.arange(len(positive), device=order.device)
    deltas = heads.box_predictor.deltas(hidden[row_of[positive]], rows, regions.labels[positive])
    targets = encode(regions.boxes_xyxy[positive], images.truths.boxes_xyxy[regions.objects], ROI_STDS)
    distances = (deltas.float() - targets).abs().sum(dim=1) / regions_of_group[positive]
    return by_group(of_scores, group_of[order], images.groups), by_group(distances, group_of[positive], images.groups)


def mask_losses_together(
    heads: RegionHeads, where: Placed, regions: Regions, images: Images, of_regions: Int64[torch.Tensor, "numbers r"]
) -> Float[torch.Tensor, " groups"]:
    """Mask loss of each group."""
    rows, of_objects = where.positive_order, torch.empty_like(where.order)
    group_of, _, cells_of_group, _, _, *canvas_hw = of_regions[:, rows]
    features = pooled(where.levels, where.regions[rows], where.positive_counts, MASK_POOL)
    logits: torch.Tensor = heads.mask_predictor(heads.mask_head(features), regions.labels[rows])
    objects = of_objects.index_copy(0, regions.samples.positive, regions.objects)[rows]
    sizes_hw, boxes = torch.stack(canvas_hw, dim=1), regions.boxes_xyxy[rows]
    masks = mask_targets_of_canvases(images.truths.masks, boxes, objects, sizes_hw, where.mask_samples)
    of_masks = binary_cross_entropy_with_logits(logits.float(), masks, reduction="none").sum(dim=(1, 2))
    return by_group(of_masks / cells_of_group, group_of, images.groups)


def numbers_of_images(canvases: Sequence[Canvas], samples: Samples, images: Images) -> list[tuple[int, ...]]:
    """Of each image: its group, regions and mask cells of that, its canvas, its place there, the canvas's size."""
    regions, positives = [0] * images.groups, [0] * images.groups
    for group, (positive, negative) in zip(images.group_of, samples.counts, strict=True):
        regions[group] += positive + negative
        positives[group] += positive
    return [
        (group, max(regions[group], 1), max(positives[group], 1) * MASK_SIZE**2, number, place, *canvas.size_hw)
        for number, canvas in enumerate(canvases)
        for place, group in enumerate(images.group_of[canvas.images.start : canvas.images.stop])
    ]
