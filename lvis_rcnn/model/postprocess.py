"""From regions to the detections of an image: scores, boxes, NMS, masks (MMDetection 3.3.0, ``multiclass_nms``).

torchvision's ``RoIHeads`` differs: it limits deltas on one side only, drops boxes below 1e-2 pixels, runs NMS over all
candidates (a million, at 1000 regions x 1230 labels), and computes all mask channels.

Its settings are ``config.schema.Inference``. The NMS of proposals is that of rpn.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torchvision.ops import nms

from lvis_rcnn import SizeHW
from lvis_rcnn.config.schema import Inference
from lvis_rcnn.model.boxes import ROI_STDS, best_rows, clip, decode
from lvis_rcnn.model.roi_heads import BOX_POOL, MASK_POOL, RegionHeads, region_features

# Candidates in the first NMS, per detection to keep: an object has some ten overlapping regions.
CANDIDATES_PER_DETECTION = 10
# Regions per pass of the mask head: 1.6 MB each at its widest.
MASKS_PER_PASS = 64

# One NMS serves all labels, whose boxes are shifted apart. In float64 this is exact to 1e-9 pixels at 1230 labels, as
# if each label had an NMS of its own; mmcv shifts in float32, which rounds to 1/8 pixel there.
NMS_DTYPES = {"exact": torch.float64, "offset": torch.float32}


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image in the network's frame, best first; masks are logits inside the boxes."""

    boxes_xyxy: Float[torch.Tensor, "d 4"]
    labels: Int64[torch.Tensor, " d"]
    """1 to C."""
    scores: Float[torch.Tensor, " d"]
    mask_rows: Int64[torch.Tensor, " m"]
    """Indices of the detections that have a mask, ascending."""
    mask_logits: Float[torch.Tensor, "m 28 28"]


@dataclass(frozen=True)
class Candidates:
    """Possible detections: pairs of a region and a label, in the order of regions, then labels."""

    boxes_xyxy: Float[torch.Tensor, "m 4"]
    labels: Int64[torch.Tensor, " m"]
    scores: Float[torch.Tensor, " m"]

    def __getitem__(self, rows: torch.Tensor) -> "Candidates":
        """Those at ``rows``."""
        return Candidates(self.boxes_xyxy[rows], self.labels[rows], self.scores[rows])


def detect_boxes(
    heads: RegionHeads,
    features: list[Float[torch.Tensor, "1 c _ _"]],
    regions_xyxy: Float[torch.Tensor, "r 4"],
    size_hw: SizeHW,
    test: Inference,
) -> Candidates:
    """The detections of one image, best first; boxes are clipped to ``size_hw``.

    NMS compares IoU, which does not change when an axis is rescaled: it may run in the network's frame (as in
    MMDetection 3; 2.x rescaled first).
    """
    hidden = heads.box_head(region_features(features, [regions_xyxy], BOX_POOL))
    scores = heads.box_predictor.cls_score(hidden).softmax(dim=1)[:, 1:]
    rows, columns = (scores > test.score_threshold).nonzero().unbind(1)
    deltas = heads.box_predictor.deltas(hidden, rows, columns + 1)
    boxes = clip(decode(regions_xyxy[rows], deltas, ROI_STDS), size_hw)
    return best_of_each_label(Candidates(boxes, columns + 1, scores[rows, columns]), test)


def best_of_each_label(candidates: Candidates, test: Inference) -> Candidates:
    """NMS within each label, then the best ``test.detections_per_image`` over all labels.

    Which of the best M candidates survive never depends on a worse one. So NMS runs on the best M, with all that tie
    with the M-th, and on twice as many as long as too few survive.
    """
    count, dtype = test.detections_per_image, NMS_DTYPES[test.nms]
    frame_px = candidates.boxes_xyxy.max() + 1 if len(candidates.labels) else torch.zeros(())
    considered = count * CANDIDATES_PER_DETECTION
    while True:
        best = candidates[best_rows(candidates.scores, considered)]
        shifts = (best.labels - 1).to(dtype)[:, None] * frame_px.to(dtype)
        survivors = nms(best.boxes_xyxy.to(dtype) + shifts, best.scores.to(dtype), test.nms_iou)
        if len(survivors) >= count or len(best.labels) == len(candidates.labels):
            return best[survivors[:count]]
        considered *= 2


def detect_masks(
    heads: RegionHeads, features: list[Float[torch.Tensor, "1 c _ _"]], detections: Candidates
) -> Float[torch.Tensor, "d 28 28"]:
    """Mask logits of detections, each for its label."""
    logits = [
        heads.mask_predictor(heads.mask_head(region_features(features, [boxes], MASK_POOL)), labels)
        for boxes, labels in zip(
            detections.boxes_xyxy.split(MASKS_PER_PASS), detections.labels.split(MASKS_PER_PASS), strict=True
        )
    ]
    return torch.cat(logits)
