"""How a run begins or goes on: network, optimizer and progress, new or from the newest checkpoint; whether it fits."""

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import Study
from lvis_rcnn.dataloader.batches import Batch, TrainingSteps, read_in_order, require_shared_memory
from lvis_rcnn.model.mask_rcnn import MaskRcnn, set_precision
from lvis_rcnn.model.weights import load_initial_weights
from lvis_rcnn.runs.states import read_heartbeat
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.training.checkpoint import load_checkpoint
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.memory import step_memory
from lvis_rcnn.training.run import Run
from lvis_rcnn.training.solver import OPTIMIZERS

FIX_MEMORY = (
    "set compute.precision to bf16 or compute.groups_at_once to 1, lower model.rois_per_image or "
    "augmentation.long_edge_px, or use a larger GPU; more GPUs help until each has one normalisation group"
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
    """The network on its device, in training mode, under a new optimizer; InputError as :func:`passes_of`."""
    passes = passes_of(run, ranks)
    layout = torch.channels_last if run.study.compute.channels_last else torch.contiguous_format
    model = network.to(ranks.device, memory_format=layout).train()  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[run.study.schedule.optimizer](trained, run.study.schedule)
    return Training(run, ranks, model, optimizer, Progress(), passes)


def passes_of(run: Run, ranks: Ranks) -> Passes:
    """How this process takes its groups of a step: on a GPU as many at once as the study says, or as it holds.

    Raises:
        InputError: the GPU is too small; names what would need less.
    """
    compute, share = run.study.compute, max(len(ranks.share_of(run.recipe.stream.groups_per_step)), 1)
    at_once = min(compute.groups_at_once or 1, share)
    if ranks.device.type == "cuda":
        at_once = groups_on_gpu(run, ranks.device, share)
    return Passes(compute.precision, at_once, compute.common_canvas)


def groups_on_gpu(run: Run, device: torch.device, share: int) -> int:
    """How many of ``share`` groups a GPU takes at once; InputError where it is too small."""
    compute, group = run.study.compute, run.study.schedule.normalisation_group
    memory = step_memory(run.study, run.backbone, run.store.num_labels)
    total = torch.cuda.get_device_properties(device).total_memory
    at_once = compute.groups_at_once or memory.images_in(total, compute.precision) // group
    at_once = max(min(at_once, share), 1)
    needed_gb, total_gb = memory.needed(at_once * group, compute.precision) / 2**30, total / 2**30
    log.info("%d of %d groups at once; they need at least %.1f of %.1f GB", at_once, share, needed_gb, total_gb)
    if needed_gb > total_gb:
        what = f"{at_once * group} images at once need at least {needed_gb:.1f} GB and there are {total_gb:.1f}"
        raise InputError(torch.cuda.get_device_name(device), what, fix=FIX_MEMORY)
    return at_once


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
    """Load the newest checkpoint, or the initial weights where there is none; InputError as :func:`prepared`."""
    run = training.run
    state = load_checkpoint(run.state_dir, run.digest)
    if state is None:
        weights_dir = Path(run.study.resources.weights_dir)
        initial = load_initial_weights(training.model, run.backbone, run.study.model.weights, run.zoo, weights_dir)
        log.info("%s", initial)
        training.progress = Progress(initial_weights=initial)
        return
    try:
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.progress = Progress(**state["progress"])
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error!s:.200}"
        what = f"its newest checkpoint is of another network or a later version ({why})"
        raise InputError(str(run.state_dir), what, fix="put it elsewhere; the one before is used then") from None
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


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of torch's allocator on a GPU, resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes
