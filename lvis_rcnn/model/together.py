"""What the groups of a pass share: one choice of boxes and one copy of counts for all images, and masks in one table.

The functions of rpn.py, matcher.py and roi_losses.py do the same image by image. There the host waits for the device
several times an image, since shapes depend on values; here it waits once for all images, and everything else has shapes
that it knows. Positions, random numbers and order are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch.nn.functional import linear, relu
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms, roi_align

from lvis_rcnn import SizeHW
from lvis_rcnn.dataloader.batches import Target
from lvis_rcnn.dataloader.masks import MaskCrops
from lvis_rcnn.model.boxes import ASPECT_RATIOS, RPN_STDS, decode
from lvis_rcnn.model.device import sent
from lvis_rcnn.model.roi_heads import REGION_STRIDES_PX
from lvis_rcnn.model.rpn import PROPOSAL_NMS_IOU, Predictions, ProposalNetwork

# Levels lie this far apart in the NMS of an image: more than the side of any, and exact in float64 to 1e-11 pixels.
LEVEL_SHIFT_PX = 2.0**14
NO_PROPOSAL = -1.0


@dataclass(frozen=True)
class Truths:
    """The ground truth of all images of a pass, one image after the other."""

    boxes_xyxy: Float[torch.Tensor, "s 4"]
    labels: Int64[torch.Tensor, " s"]
    masks: MaskCrops
    counts: list[int]
    """Of each image."""

    @property
    def of_images(self) -> tuple[Float[torch.Tensor, "_ 4"], ...]:
        """Boxes of each image."""
        boxes: tuple[torch.Tensor, ...] = self.boxes_xyxy.split(self.counts)
        return boxes

    @property
    def first(self) -> list[int]:
        """Position of the first ground truth of each image."""
        return [0, *accumulate(self.counts)][:-1]


def truths_of(targets: Sequence[Target]) -> Truths:
    """Targets of several images as of one; nothing is read by the host."""
    shift, offsets = 0, []
    for target in targets:
        offsets.append(target.masks.offsets[:-1] + shift)
        shift += len(target.masks.pixels)
    masks = MaskCrops(
        torch.cat([target.masks.frames_xyxy for target in targets]),
        torch.cat([*offsets, targets[0].masks.offsets.new_full((1,), shift)]),
        torch.cat([target.masks.pixels for target in targets]),
    )
    boxes, labels = (torch.cat(parts) for parts in zip(*((t.boxes_xyxy, t.labels) for t in targets), strict=True))
    return Truths(boxes, labels, masks, [len(target.labels) for target in targets])


@dataclass(frozen=True)
class Samples:
    """Sampled boxes of the images of a pass: image by image, the positive ones first, each ascending."""

    image_of: Int64[torch.Tensor, " k"]
    box_of: Int64[torch.Tensor, " k"]
    """Index among the boxes of its image."""
    positive: Int64[torch.Tensor, " p"]
    """Rows of the positive ones."""
    counts: list[tuple[int, int]]
    """Positive and negative ones of each image."""

    def of_images(self, images: range) -> slice:
        """Rows of consecutive images."""
        ends = [0, *accumulate(sum(both) for both in self.counts)]
        return slice(ends[images.start], ends[images.stop])


def sample_together(
    assigned: Sequence[Int64[torch.Tensor, "_ _"]],
    generators: Sequence[torch.Generator],
    count: int,
    positive_fraction: float,
) -> Samples:
    """``matcher.sample`` for all images of a pass; the host waits once, for the numbers of candidates.

    Args:
        assigned: assignments of the images, in one table for each canvas; -1 where an image has fewer boxes.
        generators: of each image, in order; images of a group share theirs.
        count: of samples of an image.
        positive_fraction: of them at most.
    """
    kinds = [torch.stack([table > 0, table == 0]) for table in assigned]
    candidates = torch.cat([kind.sum(dim=2) for kind in kinds], dim=1).T.tolist()
    ranks = [
        drawn(positives, negatives, count, positive_fraction, own)
        for (positives, negatives), own in zip(candidates, generators, strict=True)
    ]
    # The k-th candidate stands where the number of candidates up to there reaches k.
    of_kinds = [rank for kind in zip(*ranks, strict=True) for rank in kind]
    wanted = pad_sequence(of_kinds, batch_first=True).unflatten(0, (2, -1)) + 1
    counts = [(len(positive), len(negative)) for positive, negative in ranks]
    image_of, place, positive = places_of(counts, wanted.shape[2])
    of_device = sent(assigned[0].device, wanted, image_of, place, positive)
    found, first = [], 0
    for kind in kinds:
        here = of_device[0][:, first : first + kind.shape[1]].contiguous()
        found.append(torch.searchsorted(kind.cumsum(dim=2), here))
        first += kind.shape[1]
    return Samples(of_device[1], torch.cat(found, dim=1).flatten()[of_device[2]], of_device[3], counts)


def drawn(
    positives: int, negatives: int, count: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Int64[torch.Tensor, " p"], Int64[torch.Tensor, " q"]]:
    """Ranks of the sampled ones among the candidates of an image, with the random numbers of ``matcher.sample``."""

    def limited(candidates: int, room: int) -> Int64[torch.Tensor, " kept"]:
        if candidates <= room:
            return torch.arange(candidates)
        return torch.randperm(candidates, generator=generator)[:room].sort().values

    positive = limited(positives, int(count * positive_fraction))
    return positive, limited(negatives, count - len(positive))


def places_of(
    counts: Sequence[tuple[int, int]], width: int
) -> tuple[Int64[torch.Tensor, " k"], Int64[torch.Tensor, " k"], Int64[torch.Tensor, " p"]]:
    """Of each sample its image and its place in a table (kind, image, ``width``); then which samples are positive."""
    images, places, is_positive = [], [], []
    for image, of_kinds in enumerate(counts):
        for kind, number in enumerate(of_kinds):
            images.append(torch.full((number,), image))
            places.append(torch.arange(number) + (kind * len(counts) + image) * width)
            is_positive.append(torch.full((number,), kind == 0))
    return torch.cat(images), torch.cat(places), torch.cat(is_positive).nonzero()[:, 0]


def at_anchors_of_images(
    network: ProposalNetwork,
    features: Sequence[Float[torch.Tensor, "n c _ _"]],
    image_of: Int64[torch.Tensor, " k"],
    anchors: Int64[torch.Tensor, " k"],
) -> tuple[Float[torch.Tensor, " k"], Float[torch.Tensor, "k 4"]]:
    """``ProposalNetwork.at_anchors`` for the images of a canvas."""
    ratios = anchors % len(ASPECT_RATIOS)
    patches = patches_of_images(features, image_of, anchors // len(ASPECT_RATIOS))
    convolution, rows = network.head.conv[0][0], torch.arange(len(anchors), device=anchors.device)
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    hidden = relu(linear(patches.flatten(1), weight, convolution.bias))
    logits, deltas = (
        linear(hidden, layer.weight.flatten(1), layer.bias)
        for layer in (network.head.cls_logits, network.head.bbox_pred)
    )
    return logits[rows, ratios], deltas.unflatten(1, (-1, 4))[rows, ratios]


def patches_of_images(
    features: Sequence[Float[torch.Tensor, "n c _ _"]],
    image_of: Int64[torch.Tensor, " k"],
    places: Int64[torch.Tensor, " k"],
) -> Float[torch.Tensor, "k 9 c"]:
    """``rpn.patches_at`` for the images of a canvas, channels last."""
    offsets, first, patches = torch.arange(-1, 2, device=places.device), 0, []
    for level in features:
        height, width = level.shape[2:]
        y, x = (places - first) // width, (places - first) % width
        rows, columns = y[:, None, None] + offsets[:, None], x[:, None, None] + offsets
        exists = ((y >= 0) & (y < height))[:, None, None]
        inside = exists & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        cells = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
        patches.append(level.flatten(2)[image_of[:, None], :, cells] * inside.flatten(1)[..., None])
        first += height * width
    return torch.stack(patches).sum(dim=0)


@torch.no_grad()
def proposals_together(
    predictions: Predictions, limits_xyxy: Float[torch.Tensor, "n 4"], before_nms: int, after_nms: int
) -> tuple[Float[torch.Tensor, "n k 4"], Float[torch.Tensor, "n k"]]:
    """``rpn.proposals`` with one NMS an image; boxes and scores, which are ``NO_PROPOSAL`` beyond those of an image.

    IoU is that of float64, so that of two boxes whose IoU differs from the threshold by rounding alone another may
    survive. ``limits_xyxy`` are width, height, width and height of each image before padding.
    """
    boxes, scores = [], []
    for anchors, logits, deltas in zip(predictions.anchors_xyxy, predictions.logits, predictions.deltas, strict=True):
        score, best = logits.float().sigmoid().sort(dim=1, descending=True, stable=True)
        score, best = score[:, :before_nms], best[:, :before_nms]
        chosen = deltas.gather(1, best[..., None].expand(-1, -1, 4))
        moved = decode(anchors[best].flatten(0, 1), chosen.flatten(0, 1), RPN_STDS).view_as(chosen)
        moved = torch.minimum(moved.clamp(min=0), limits_xyxy[:, None])
        has_area = (moved[..., 2:] > moved[..., :2]).all(dim=2)
        boxes.append(moved)
        scores.append(torch.where(has_area, score, NO_PROPOSAL))
    rows = torch.cat([torch.cat(boxes, dim=1), torch.cat(scores, dim=1)[..., None]], dim=2)
    level_of = torch.cat([torch.full_like(score, level) for level, score in enumerate(scores)], dim=1)
    apart = rows[..., :4].double() + (level_of * LEVEL_SHIFT_PX)[..., None]
    best_first = [
        of_image[nms(shifted, of_image[:, 4].double(), PROPOSAL_NMS_IOU)[:after_nms]]
        for of_image, shifted in zip(rows, apart, strict=True)
    ]
    padded = pad_sequence(best_first, batch_first=True, padding_value=NO_PROPOSAL)
    return padded[..., :4], padded[..., 4]


def proposals_of_images(
    predictions: Predictions, sizes_hw: Sequence[SizeHW], before_nms: int, after_nms: int
) -> list[tuple[Float[torch.Tensor, "_ 4"], Float[torch.Tensor, " _"]]]:
    """``rpn.proposals`` by :func:`proposals_together`; beside its NMS the host waits once."""
    (limits,) = sent(predictions.logits[0].device, torch.tensor([[width, height] * 2 for height, width in sizes_hw]))
    boxes, scores = proposals_together(predictions, limits.float(), before_nms, after_nms)
    counts = (scores >= 0).sum(dim=1).tolist()
    return [(own[:count], of_own[:count]) for own, of_own, count in zip(boxes, scores, counts, strict=True)]


def pooled(
    features: Sequence[Sequence[Float[torch.Tensor, "_ c _ _"]]],
    regions: Float[torch.Tensor, "r 5"],
    counts: Sequence[int],
    output_size: int,
) -> Float[torch.Tensor, "r c s s"]:
    """RoIAlign of regions that are sorted by canvas, then by level.

    Args:
        features: levels of each canvas.
        regions: position of the image in its canvas, and the box.
        counts: how many regions lie in each level of each canvas.
        output_size: cells of a side.
    """
    levels = [
        (level, stride_px)
        for of_canvas in features
        for level, stride_px in zip(of_canvas, REGION_STRIDES_PX, strict=False)
    ]
    parts = [features[0][0].new_zeros(0, features[0][0].shape[1], output_size, output_size)]
    for (level, stride_px), rows in zip(levels, regions.split(list(counts)), strict=True):
        if len(rows):
            parts.append(roi_align(level, rows, output_size, 1 / stride_px, sampling_ratio=0, aligned=True))
    return torch.cat(parts[1:] or parts)
