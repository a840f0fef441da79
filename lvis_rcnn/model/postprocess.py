"""From regions to the detections of an image: scores, boxes, NMS, masks (MMDetection 3.3.0, ``multiclass_nms``).

torchvision's ``RoIHeads`` differs: it limits deltas on one side only, drops boxes below 1e-2 pixels, runs NMS over all
candidates (a million, at 1000 regions x 1230 labels), and computes all mask channels.

Its settings are ``config.schema.Inference``. Other detections need another INFERENCE_REVISION (runs/inference.py). The
NMS of proposals is that of rpn.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torchvision.ops import nms

from lvis_rcnn import SizeHW
from lvis_rcnn.config.schema import Inference
from lvis_rcnn.model.boxes import ROI_STDS, best_rows, clip, decode
from lvis_rcnn.model.classification import class_scores
from lvis_rcnn.model.roi_heads import (
    BOX_POOL,
    MASK_POOL,
    RegionHeads,
    features_of_regions,
    region_features,
    regions_of_images,
)

# Candidates in the first NMS, per detection to keep: an object has some ten overlapping regions.
CANDIDATES_PER_DETECTION = 10
# Regions per pass of the mask head, by kind of device: 1.6 MB each at its widest.
MASKS_PER_PASS = {"cpu": 64, "cuda": 1024}

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
    features: Sequence[Float[torch.Tensor, "n c _ _"]],
    regions_xyxy: Sequence[Float[torch.Tensor, "_ 4"]],
    sizes_hw: Sequence[SizeHW],
    test: Inference,
    shifts: Float[torch.Tensor, " k"] | None = None,
) -> list[Candidates]:
    """The detections of each image of a batch, best first; boxes are clipped to its size.

    NMS compares IoU, which does not change when an axis is rescaled: it may run in the network's frame (as in
    MMDetection 3; 2.x rescaled first). The host waits twice for a GPU, and once for each NMS. ``shifts`` are those of
    :func:`calibrated`.
    """
    numbers = [len(regions) for regions in regions_xyxy]
    hidden = heads.box_head(region_features(features, regions_xyxy, BOX_POOL))
    logits = calibrated(heads.box_predictor.cls_score(hidden), shifts)
    scores = class_scores(logits, heads.box_predictor.classification)
    is_candidate = (scores > test.score_threshold).split(numbers)
    counts = torch.stack([of_image.sum() for of_image in is_candidate]).tolist()
    found = []
    images = zip(
        hidden.split(numbers), scores.split(numbers), is_candidate, counts, regions_xyxy, sizes_hw, strict=True
    )
    for of_regions, own_scores, kept, count, regions, size_hw in images:
        rows, columns = torch.nonzero_static(kept, size=count).unbind(1)
        deltas = heads.box_predictor.deltas(of_regions, rows, columns + 1)
        boxes = clip(decode(regions[rows], deltas, ROI_STDS), size_hw)
        found.append(best_of_each_label(Candidates(boxes, columns + 1, own_scores[rows, columns]), test))
    return found


def calibrated(
    logits: Float[torch.Tensor, "r k"], shifts: Float[torch.Tensor, " k"] | None
) -> Float[torch.Tensor, "r k"]:
    """Logits of regions, background first, plus what calibration adds (evaluation.calibration); None adds nothing."""
    return logits if shifts is None else logits + shifts


def best_of_each_label(candidates: Candidates, test: Inference) -> Candidates:
    """NMS within each label, then the best ``test.detections_per_image`` over all labels.

    Which of the best M candidates survive never depends on a worse one. So NMS runs on the best M, and on twice as many
    as long as too few survive. The host waits for each NMS, and for nothing else.
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
    heads: RegionHeads, features: Sequence[Float[torch.Tensor, "n c _ _"]], detections: Sequence[Candidates]
) -> list[Float[torch.Tensor, "_ 28 28"]]:
    """Mask logits of the detections of each image of a batch, each for its label."""
    regions = regions_of_images([of_image.boxes_xyxy for of_image in detections])
    labels = torch.cat([of_image.labels for of_image in detections])
    most = MASKS_PER_PASS[labels.device.type]
    logits = [
        heads.mask_predictor(heads.mask_head(features_of_regions(features, some, MASK_POOL)), own_labels)
        for some, own_labels in zip(regions.split(most), labels.split(most), strict=True)
    ]
    return list(torch.cat(logits).split([len(of_image.labels) for of_image in detections]))
