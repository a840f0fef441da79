"""How a run begins, or goes on: network, optimizer and progress as the last checkpoint has them, or as they begin."""

from pathlib import Path

import numpy as np
import torch

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.command import InputError, log
from lvis_rcnn.config import Study
from lvis_rcnn.finished_run import Run
from lvis_rcnn.gradient_step import OPTIMIZERS, set_full_precision
from lvis_rcnn.initial_weights import load_initial_weights
from lvis_rcnn.model.mask_rcnn import MaskRcnn, Settings
from lvis_rcnn.model.memory import training_bytes
from lvis_rcnn.pixels import padded_size_hw
from lvis_rcnn.ranks import Ranks
from lvis_rcnn.repeat_factors import read_sampling
from lvis_rcnn.run_records import Training
from lvis_rcnn.run_state import load_checkpoint
from lvis_rcnn.sample_stream import SampleStream
from lvis_rcnn.schedule import make_recipe
from lvis_rcnn.training_log import Progress

SMALLER = (
    "set compute.precision to bf16, lower model.rois_per_image or augmentation.long_edge_px, or use a larger GPU; more "
    "GPUs do not help, since each holds one normalisation group at a time"
)


def network_settings(study: Study) -> Settings:
    """The numbers of the network that a study asks for."""
    model, test = study.model, study.inference
    return Settings(
        normalization=model.normalization,
        frozen_stages=model.frozen_stages,
        anchor_scale=model.anchor_scale,
        anchors_per_image=model.anchors_per_image,
        rois_per_image=model.rois_per_image,
        roi_positive_fraction=model.roi_positive_fraction,
        proposals_before_nms=(model.proposals_before_nms, test.proposals_before_nms),
        proposals_after_nms=(model.proposals_after_nms, test.proposals_after_nms),
        score_threshold=test.score_threshold,
        nms_iou=test.nms_iou,
        nms_form=test.nms,
        detections_per_image=test.detections_per_image,
    )


def prepared(run: Run, ranks: Ranks) -> Training:
    """Network, optimizer and progress as the last checkpoint has them, or as they begin."""
    study, device = run.study, ranks.device
    torch.set_num_threads(study.compute.threads)
    set_full_precision()
    torch.manual_seed(run.seed)
    recipe = make_recipe(study.schedule, stream_of(run))
    require_memory(run, device)
    layout = torch.channels_last if study.compute.channels_last else torch.contiguous_format
    model = MaskRcnn(BACKBONES[run.backbone], run.store.num_labels, network_settings(study))
    model = model.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[study.schedule.optimizer](trained, study.schedule)
    progress = restore(run, model, optimizer)
    require_same_step(ranks, progress.step)
    return Training(run, ranks, recipe, model, optimizer, progress)


def require_same_step(ranks: Ranks, step: int) -> None:
    """Refuse to mix weights of two checkpoints, where one process could not read the newest.

    Raises:
        InputError: in the processes that are behind.
    """
    if (furthest := ranks.largest(step)) != step:
        raise InputError(
            f"rank {ranks.rank} of {ranks.count}",
            f"goes on from step {step}, another from step {furthest}",
            allowed="the same checkpoint in all",
            mend="start again; if it stays, see whether all hosts read the same files",
        )


def require_memory(run: Run, device: torch.device) -> None:
    """Say how much of a GPU a step takes, and refuse a run that cannot fit.

    Raises:
        InputError: names what would make it smaller.
    """
    if device.type != "cuda":
        return
    needed_gb, total_gb = least_bytes(run) / 2**30, torch.cuda.get_device_properties(device).total_memory / 2**30
    log.info("a step needs at least %.1f of the %.1f GB of this GPU", needed_gb, total_gb)
    if needed_gb > total_gb:
        what = f"a step needs at least {needed_gb:.1f} GB and there are {total_gb:.1f}"
        raise InputError(torch.cuda.get_device_name(device), what, mend=SMALLER)


def least_bytes(run: Run) -> int:
    """Lower bound of the memory of a step, from the network's graph."""
    study = run.study
    with torch.device("meta"):
        model = MaskRcnn(BACKBONES[run.backbone], run.store.num_labels, network_settings(study)).train()
    canvas_hw = padded_size_hw((max(study.augmentation.short_edges_px), study.augmentation.long_edge_px))
    return training_bytes(
        model, study.schedule.normalisation_group, canvas_hw, study.schedule.optimizer, study.compute.precision
    )


def stream_of(run: Run) -> SampleStream:
    """The sample stream of a run.

    Raises:
        InputError: as :func:`read_sampling`, or the table is of another store.
    """
    sampling, schedule = read_sampling(run.repeat_factors_dir), run.study.schedule
    if len(sampling.factors) != run.store.num_images:
        raise InputError(
            str(run.repeat_factors_dir),
            f"counts {len(sampling.factors)} images",
            allowed=f"the {run.store.num_images} images of {run.store_path}",
            mend="write it again with python -m lvis_rcnn.repeat_factors --store",
        )
    return SampleStream(
        factors=sampling.factors,
        rounding=sampling.rounding,
        portrait=np.asarray(run.store.widths < run.store.heights),
        seed=run.seed,
        group_size=schedule.normalisation_group,
        groups_per_step=schedule.images_per_step // schedule.normalisation_group,
    )


def restore(run: Run, model: MaskRcnn, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint into model and optimizer, or the initial weights where there is none."""
    state = load_checkpoint(run.state_dir)
    if state is None:
        weights_dir = Path(run.study.resources.weights_dir)
        initial = load_initial_weights(model, run.backbone, run.study.model.weights, run.zoo, weights_dir)
        log.info("%s", initial)
        return Progress(initial_weights=initial)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    log.info("going on from step %d (start %d)", progress.step, progress.attempts + 1)
    return progress
