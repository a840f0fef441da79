"""Gradient steps until the recipe says stop; stopped anywhere, the next start goes on.

The sample stream, the learning rate and the random numbers of a step are pure functions of (seed, step), so a
checkpoint holds weights, optimizer and the number of steps done, nothing else. State lives in
``STATE/<study>/<backbone>/seed<k>/<digest>``, outside the outputs that Snakemake deletes when a job fails.
"""

import argparse
import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from tqdm import tqdm

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.checkpoints import load_checkpoint, save_checkpoint
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Schedule, Study, load_study_for_step
from lvis_rcnn.data import Augmentation, Batch, TrainingSteps, read_in_order
from lvis_rcnn.finished_run import Run, export, finish, is_finished
from lvis_rcnn.model.mask_rcnn import MaskRcnn, Settings, losses
from lvis_rcnn.repeat_factors import read_copies
from lvis_rcnn.schedule import Recipe, make_recipe
from lvis_rcnn.training_log import Progress, TrainingLog, sentence, write_heartbeat

# At most this much work is done again after a kill; a save (1.2 GB for X-101-64x4d with AdamW) takes about a second.
SECONDS_BETWEEN_CHECKPOINTS = 75.0

EXIT_RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal, state saved


def network_settings(study: Study) -> Settings:
    """The numbers of the network that a study asks for."""
    model, test = study.model, study.inference
    return Settings(
        weights=model.weights,
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
        detections_per_image=test.detections_per_image,
    )


def sgd(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with momentum: the recipe's."""
    return torch.optim.SGD(
        parameters, lr=schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def adamw(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); fused, since on a CPU its plain loops take a tenth of a small step."""
    return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    targets = [
        replace(t, boxes_xyxy=t.boxes_xyxy.to(device), labels=t.labels.to(device), masks=t.masks.to(device))
        for t in batch.targets
    ]
    return replace(batch, pixels=batch.pixels.to(device), targets=targets)


def require_finite(parts: dict[str, torch.Tensor], step: int, image_ids: list[int]) -> None:
    """Stop before a loss that is not finite reaches the weights.

    Raises:
        InputError: names the losses, the step and the images.
    """
    values = {name: float(value.detach()) for name, value in parts.items()}
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"step {step}, images {', '.join(map(str, image_ids))}",
            f"loss is not finite: {', '.join(bad)}",
            mend="lower schedule.learning_rate, or set schedule.gradient_clip_norm (35 is usual)",
        )


def take_step(
    model: MaskRcnn, optimizer: torch.optim.Optimizer, batch: Batch, step: int, seed: int, recipe: Recipe
) -> dict[str, float]:
    """One optimizer step on one batch; returns the losses. Its random numbers depend on (seed, step) alone.

    Raises:
        InputError: as :func:`require_finite`; the weights are then untouched.
    """
    torch.manual_seed(seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(step)
    parts = losses(model, batch)
    require_finite(parts, step, batch.image_ids)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(parts.values())).sum().backward()
    if recipe.schedule.gradient_clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.schedule.gradient_clip_norm)
    optimizer.step()
    return {name: float(value.detach()) for name, value in parts.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of torch's allocator on a GPU, resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes


class StopRequest:
    """True once SIGTERM or SIGINT has arrived: the loop then ends after its step and saves."""

    def __init__(self) -> None:
        self.arrived = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number: int, frame: object) -> None:
        """Signal handler."""
        self.arrived = True


def train(run: Run, out_dir: Path) -> None:
    """Train one run, from where it stopped, and write model.pth, train.json and log.json.

    Raises:
        InputError: a loss is not finite, or an image cannot be read.
        SystemExit: with ``EXIT_RESUME_ME`` after a signal, the state being saved.
    """
    run.state_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run.state_dir):
        log.info("%s seed %d is already trained; to train it again, delete %s", run.backbone, run.seed, run.state_dir)
    else:
        train_to_the_end(run)
    export(run.state_dir, out_dir)
    log.info("trained %s seed %d: %s", run.backbone, run.seed, out_dir / "model.pth")


def train_to_the_end(run: Run) -> None:
    """Build or restore the run, take the steps that are left, and finish it."""
    study = run.study
    torch.set_num_threads(study.compute.threads)
    torch.manual_seed(run.seed)
    device = torch.device(study.compute.device)
    copies = copies_of(run)
    recipe = make_recipe(study.schedule, int(copies.sum()))
    model = MaskRcnn(BACKBONES[run.backbone], run.store.num_labels, network_settings(study)).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[study.schedule.optimizer](trained, study.schedule)
    progress = restore(run.state_dir, model, optimizer)
    augmentation = Augmentation(**study.augmentation.model_dump())
    items = TrainingSteps(run.store_path, run.images_dir, copies, augmentation, run.seed, recipe.images_per_step)
    batches = read_in_order(items, range(progress.step, recipe.steps), study.resources.loader_workers)
    try:
        take_steps(run, model, optimizer, batches, recipe, progress)
    except BaseException:
        write_heartbeat(run.state_dir, progress, recipe.steps, "stopped")
        raise
    finish(run, model.state_dict(), recipe, progress)


def copies_of(run: Run) -> Int64[np.ndarray, " n"]:
    """Copies of each image in one epoch.

    Raises:
        InputError: as :func:`read_copies`, or the table is of another store.
    """
    copies = read_copies(run.repeat_factors_dir)
    if len(copies) != run.store.num_images:
        raise InputError(
            str(run.repeat_factors_dir),
            f"counts {len(copies)} images",
            allowed=f"the {run.store.num_images} images of {run.store_path}",
            mend="write it again with python -m lvis_rcnn.repeat_factors --store",
        )
    return copies


def restore(state_dir: Path, model: MaskRcnn, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint into model and optimizer; a fresh start where there is none."""
    state = load_checkpoint(state_dir)
    if state is None:
        return Progress()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    progress.attempts += 1
    log.info("going on from step %d (start %d)", progress.step, progress.attempts)
    return progress


def take_steps(
    run: Run,
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    recipe: Recipe,
    progress: Progress,
) -> None:
    """The loop: read, step, log, save. Ends early with ``EXIT_RESUME_ME`` after a signal."""
    stop = StopRequest()
    device = next(model.parameters()).device
    training_log = TrainingLog(run.state_dir / "log.json", recipe, progress.step)
    write_heartbeat(run.state_dir, progress, recipe.steps, "running")
    saved_at = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=progress.step, desc=f"train {run.backbone}", unit="step", disable=None)
    with bar:
        for step in range(progress.step, recipe.steps):
            started = time.monotonic()
            batch = to_device(next(batches), device)
            data_s = time.monotonic() - started
            parts = take_step(model, optimizer, batch, step, run.seed, recipe)
            step_s = time.monotonic() - started
            progress.step, progress.elapsed_s = step + 1, progress.elapsed_s + step_s
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory_bytes(device))
            progress.unlogged.append({**parts, "data_time": data_s, "time": step_s})
            bar.update()
            if progress.step % run.study.resources.log_every_steps == 0 or progress.step == recipe.steps:
                line = training_log.write(progress)
                log.debug(sentence(line, recipe.steps))  # a terminal has the bar instead
                bar.set_postfix(loss=line["loss"])
                write_heartbeat(run.state_dir, progress, recipe.steps, "running")
            if stop.arrived or time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                save(run.state_dir, model, optimizer, progress)
                saved_at = time.monotonic()
            if stop.arrived:
                leave(progress, recipe.steps)


def save(state_dir: Path, model: MaskRcnn, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint of everything that a start needs."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    save_checkpoint(state_dir, state)


def leave(progress: Progress, steps: int) -> None:
    """End the process after a signal; the state has been saved."""
    log.warning("stopped by a signal at step %d of %d; the next start goes on from there", progress.step, steps)
    sys.exit(EXIT_RESUME_ME)


def require_device(study: Study, study_file: Path) -> None:
    """Refuse a study that needs a GPU where there is none.

    Raises:
        InputError: names the study file.
    """
    if study.compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"{study_file}: compute.device",
            "is cuda, but this torch sees no GPU",
            allowed="cpu, or cuda where torch.cuda.is_available()",
            mend="run on a GPU node with a CUDA build of torch",
        )


def step(args: argparse.Namespace) -> None:
    """Train the run that the arguments name."""
    study = load_study_for_step(args.study, "train", args.settings_digest)
    require_device(study, args.study)
    if args.seed < 0:
        raise InputError("--seed", f"is {args.seed}", allowed="0 or more", mend="change the value")
    run = Run(study, args.backbone, args.seed, args.store, args.images, args.repeat_factors, args.state)
    train(run, args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--settings-digest", metavar="HEX", help="refuse a study whose training settings changed")
    parser.add_argument("--backbone", choices=BACKBONES, required=True, help="row of the table")
    parser.add_argument("--seed", type=int, required=True, help="seed of initialisation, order and augmentation")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="store of the training split")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    parser.add_argument("--repeat-factors", type=Path, required=True, metavar="DIR", help="output of repeat_factors")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where checkpoints live")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for model, record and log")
    run_step(parser, step)


if __name__ == "__main__":
    main()
