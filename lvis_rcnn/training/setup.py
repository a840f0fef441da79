"""How a run begins or goes on: network, optimizer and progress, new or from the newest checkpoint; whether it fits."""

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import Study
from lvis_rcnn.dataloader.batches import Batch, TrainingSteps, read_in_order, require_shared_memory
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.model.mask_rcnn import MaskRcnn, network_on_meta, set_precision
from lvis_rcnn.model.roi_heads import BOX_POOL, HIDDEN, MASK_POOL
from lvis_rcnn.model.weights import load_initial_weights
from lvis_rcnn.runs.states import read_heartbeat
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.training.checkpoint import load_checkpoint
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.run import Run
from lvis_rcnn.training.solver import OPTIMIZERS

# For each trained number: the number, its gradient, and what the optimizer keeps.
COPIES = {"sgd": 3, "adamw": 4}

FIX_MEMORY = (
    "set compute.precision to bf16, lower model.rois_per_image or augmentation.long_edge_px, or use a larger GPU; more "
    "GPUs do not help, since each holds one normalisation group at a time"
)


@dataclass(frozen=True)
class Passes:
    """How the groups of a step pass through the network."""

    precision: str = "fp32"
    """fp32, or bf16 for convolutions and products in bfloat16."""
    groups_at_once: int = 1
    common_canvas: bool = False
    """Whether those of one orientation share a canvas."""

    def __str__(self) -> str:
        """In words, as the record of a run and the table say it."""
        if self.groups_at_once == 1:
            return "one normalisation group at a time"
        canvas = "a canvas for each orientation" if self.common_canvas else "a canvas for each"
        return f"{self.groups_at_once} normalisation groups at once, {canvas}"


GROUP_BY_GROUP = Passes()


@dataclass
class Training:
    """A run in one of its processes."""

    run: Run
    ranks: Ranks
    model: MaskRcnn
    optimizer: torch.optim.Optimizer
    progress: Progress
    passes: Passes


def prepared(run: Run, ranks: Ranks) -> Training:
    """The run as its newest checkpoint has it, or as it begins.

    Raises:
        InputError: its initial weights or checkpoints cannot be used, or the GPU is too small.
    """
    set_arithmetic(run)
    torch.manual_seed(run.seed)
    require_memory(run, ranks.device)
    network = MaskRcnn(BACKBONES[run.backbone], run.store.num_labels, run.study.model)
    training = new_training(run, ranks, network)
    restore(training)
    # A killed start may have needed more after its last checkpoint.
    peaks = (training.progress.peak_memory_bytes, read_heartbeat(run.state_dir).get("peak_memory_bytes", 0))
    training.progress.peak_memory_bytes = max(peaks)
    training.progress.passes = str(training.passes)
    return training


def set_arithmetic(run: Run) -> None:
    """Threads and precision of torch in this process, which decide how sums are rounded."""
    torch.set_num_threads(run.study.compute.threads)
    set_precision(run.study.compute.precision)


def new_training(run: Run, ranks: Ranks, network: MaskRcnn) -> Training:
    """The network on its device, in training mode, under a new optimizer."""
    layout = torch.channels_last if run.study.compute.channels_last else torch.contiguous_format
    model = network.to(ranks.device, memory_format=layout).train()  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[run.study.schedule.optimizer](trained, run.study.schedule)
    return Training(run, ranks, model, optimizer, Progress(), passes_of(run, ranks))


def passes_of(run: Run, ranks: Ranks) -> Passes:
    """How this process takes its groups of a step."""
    compute, share = run.study.compute, len(ranks.share_of(run.recipe.stream.groups_per_step))
    most = share if ranks.device.type == "cuda" else 1
    return Passes(compute.precision, max(min(compute.groups_at_once or most, share), 1), compute.common_canvas)


def batches_of(training: Training, steps: Sequence[int]) -> Iterator[list[Batch]]:
    """This process's groups of each of these optimizer steps, read ahead; InputError as `require_shared_memory`."""
    run, ranks = training.run, training.ranks
    stream, study = run.recipe.stream, run.study
    require_memory_of_loader(study)
    numbers = ranks.share_of(stream.groups_per_step)
    items = TrainingSteps(
        run.store_path, run.images_dir, stream, study.augmentation, numbers, channels_last=study.compute.channels_last
    )
    return read_in_order(items, steps, study.resources.loader_workers, pinned=ranks.device.type == "cuda")


def require_memory_of_loader(study: Study) -> None:
    """:func:`require_shared_memory` of all processes on a node, each of which has workers and a share of the images."""
    images = math.ceil(study.schedule.images_per_step / study.resources.nodes)
    edges_px = (max(study.augmentation.short_edges_px), study.augmentation.long_edge_px)
    require_shared_memory(images, *edges_px, study.resources.loader_workers)


def restore(training: Training) -> None:
    """Load the newest checkpoint, or the initial weights where there is none."""
    run = training.run
    state = load_checkpoint(run.state_dir)
    if state is None:
        weights_dir = Path(run.study.resources.weights_dir)
        initial = load_initial_weights(training.model, run.backbone, run.study.model.weights, run.zoo, weights_dir)
        log.info("%s", initial)
        training.progress = Progress(initial_weights=initial)
        return
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.progress = Progress(**state["progress"])
    log.info("going on from step %d (start %d)", training.progress.step, training.progress.attempts + 1)


def require_same_step(ranks: Ranks, step: int) -> None:
    """Refuse to mix weights of two checkpoints, where one process could not read the newest.

    Raises:
        InputError: in the processes that are behind.
    """
    if (furthest := ranks.largest(step, step)) != step:
        raise InputError(
            f"rank {ranks.rank} of {ranks.count}",
            f"goes on from step {step}, another from step {furthest}",
            allowed="the same checkpoint in all",
            fix="start again; if it happens again, check that all hosts read the same files",
        )


def require_memory(run: Run, device: torch.device) -> None:
    """Log how much of a GPU a step needs, and refuse a run that cannot fit.

    Raises:
        InputError: names what would make it smaller.
    """
    if device.type != "cuda":
        return
    needed_gb, total_gb = least_bytes(run) / 2**30, torch.cuda.get_device_properties(device).total_memory / 2**30
    log.info("a step needs at least %.1f of the %.1f GB of this GPU", needed_gb, total_gb)
    if needed_gb > total_gb:
        what = f"a step needs at least {needed_gb:.1f} GB and there are {total_gb:.1f}"
        raise InputError(torch.cuda.get_device_name(device), what, fix=FIX_MEMORY)


def least_bytes(run: Run) -> int:
    """Lower bound of the memory of a step, from the network's graph."""
    study = run.study
    model = network_on_meta(BACKBONES[run.backbone], run.store.num_labels, study.model)
    canvas_hw = padded_size_hw((max(study.augmentation.short_edges_px), study.augmentation.long_edge_px))
    return training_bytes(
        model.train(), study.schedule.normalisation_group, canvas_hw, study.schedule.optimizer, study.compute.precision
    )


def training_bytes(model: MaskRcnn, images: int, canvas_hw: tuple[int, int], optimizer: str, precision: str) -> int:
    """Bytes of weights, gradients, optimizer and activations of one normalisation group; a lower bound.

    It counts the tensors that the graph keeps for its gradient: those of backbone and pyramid as they are, those of the
    box and mask heads by their sizes. It leaves out what kernels need for a moment, and what the RPN head keeps of a
    few anchors.

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


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of torch's allocator on a GPU, resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes
