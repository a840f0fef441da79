"""How much memory of a GPU a training step needs at least: counted on the network's graph, which takes no GPU."""

from dataclasses import dataclass

import torch
from torch import nn

from lvis_rcnn.config.schema import BACKBONES, Model
from lvis_rcnn.config.study import Study
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.model.backbone import FPN_CHANNELS
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.model.roi_heads import BOX_POOL, HIDDEN, MASK_POOL

# For each trained number: the number, its gradient, and what the optimizer keeps.
COPIES = {"sgd": 3, "adamw": 4}

# So much of a GPU the estimate may fill where it chooses the number of groups: kernels and backward need more for a
# moment. R-50 with 2 images of 800 x 1067 on a CPU: 2.1 GB, and a peak of the process of 3.3, 0.7 of it libraries.
FILLED = 0.7


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs at least: state of the training, and what the graph of one pass keeps."""

    state: int
    """Weights, gradients and optimizer, in float32 at any precision."""
    casts: int
    """Weights in bfloat16, which autocast keeps for backward."""
    image: int
    """What the graph keeps of one image, in float32."""

    def needed(self, images_at_once: int, precision: str) -> int:
        """Of a step that takes so many images in one pass; ``precision`` as in a study."""
        if precision == "bf16":
            return self.state + self.casts + images_at_once * self.image // 2
        return self.state + images_at_once * self.image

    def images_in(self, gpu_bytes: int, precision: str) -> int:
        """How many images may pass at once on a GPU of so much memory."""
        left = FILLED * gpu_bytes - self.needed(0, precision)
        return max(int(left / (self.needed(1, precision) - self.needed(0, precision))), 0)


def step_memory(study: Study, backbone: str, num_labels: int) -> StepMemory:
    """The memory of a study's training step, all images being of the largest size.

    A lower bound: it leaves out what kernels need for a moment, and the gradients of activations.
    """
    model = network_on_meta(BACKBONES[backbone], num_labels, study.model).train()
    short_edge_px, long_edge_px = max(study.augmentation.short_edges_px), study.augmentation.long_edge_px
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    every = sum(value.numel() for value in model.parameters())
    # Where statistics are fixed, the body keeps no cast (backbone.NormalisedConvolution).
    body = sum(value.numel() for value in model.backbone.body.parameters())
    return StepMemory(
        state=4 * (every + (COPIES[study.schedule.optimizer] - 1) * trained),
        casts=2 * (every - body),
        image=image_bytes(model.backbone, study.model, padded_size_hw((short_edge_px, long_edge_px))),
    )


def image_bytes(backbone: nn.Module, settings: Model, canvas_hw: tuple[int, int]) -> int:
    """Bytes that the graph keeps of one image in float32.

    Of backbone and pyramid they are counted, each storage once; those of the heads follow from their sizes. The levels
    of the pyramid are held until the heads have read them.

    Args:
        backbone: body and pyramid on the meta device, in training mode.
        settings: of the network.
        canvas_hw: size of the padded image.
    """
    storages: dict[int, int] = {}
    weights = {value.untyped_storage()._cdata for value in backbone.parameters()}
    held: list[torch.UntypedStorage] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
            held.append(storage)  # so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        levels = backbone(torch.empty(1, 3, *canvas_hw, device="meta"))
    for level in levels.values():
        note(level)
    return sum(storages.values()) + head_bytes(settings)


def head_bytes(settings: Model) -> int:
    """Of one image in float32: the RPN head at sampled anchors, the box head, the mask head of regions on an object."""
    anchor = 9 * FPN_CHANNELS + FPN_CHANNELS
    box = FPN_CHANNELS * BOX_POOL**2 + 2 * HIDDEN
    mask = 5 * FPN_CHANNELS * MASK_POOL**2 + FPN_CHANNELS * (2 * MASK_POOL) ** 2 + (2 * MASK_POOL) ** 2
    positive = settings.rois_per_image * settings.roi_positive_fraction
    return 4 * int(settings.anchors_per_image * anchor + settings.rois_per_image * box + positive * mask)
