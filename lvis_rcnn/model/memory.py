"""How much memory a training step needs, before there is a device: from the network's own graph, on the meta device."""

import torch
from torch import nn

from lvis_rcnn.model.heads import BOX_POOL, HIDDEN, MASK_POOL
from lvis_rcnn.model.mask_rcnn import MaskRcnn

# Weight, gradient, and what the optimizer keeps of each trained number.
COPIES = {"sgd": 3, "adamw": 4}


def training_bytes(model: MaskRcnn, images: int, canvas_hw: tuple[int, int], optimizer: str, precision: str) -> int:
    """Bytes of weights, gradients, optimizer and activations of one normalisation group; a lower bound.

    Counted are the tensors that the graph keeps for its gradient, of backbone and pyramid as they are, of the box and
    mask heads by their sizes; not what kernels need for a moment, nor what the proposal head keeps of a few anchors.

    Args:
        model: on the meta device, in training mode.
        images: of the group.
        canvas_hw: size of the padded batch.
        optimizer: a key of ``COPIES``.
        precision: fp32 or bf16.
    """
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    every = sum(value.numel() for value in model.parameters())
    kept = kept_bytes(model.backbone, images, canvas_hw)
    kept += head_bytes(images * model.settings.rois_per_image, model.settings.roi_positive_fraction)
    # Weights and losses stay float32.
    return 4 * (every + (COPIES[optimizer] - 1) * trained) + (kept if precision == "fp32" else kept // 2)


def kept_bytes(backbone: nn.Module, images: int, canvas_hw: tuple[int, int]) -> int:
    """Activations in float32 that the graph of one forward pass keeps, each storage once."""
    storages: dict[int, int] = {}
    weights = {value.untyped_storage()._cdata for value in backbone.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
            held.append(storage)  # so that no other gets its address
        return tensor

    held: list[torch.UntypedStorage] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = backbone(torch.empty(images, 3, *canvas_hw, device="meta"))
    del outputs
    return sum(storages.values())


def head_bytes(regions: int, positive_fraction: float) -> int:
    """Activations in float32 of the box head for all regions and of the mask head for those on an object."""
    box = 256 * BOX_POOL**2 + 2 * HIDDEN
    mask = 5 * 256 * MASK_POOL**2 + 256 * (2 * MASK_POOL) ** 2 + (2 * MASK_POOL) ** 2
    return 4 * int(regions * box + regions * positive_fraction * mask)
