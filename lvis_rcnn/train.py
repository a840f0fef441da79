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
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.checkpoints import load_checkpoint, save_checkpoint
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Schedule, Study, load_study_for_step, zoo_of
from lvis_rcnn.data import Augmentation, Batch, TrainingSteps, read_in_order
from lvis_rcnn.finished_run import Run, export, finish, is_finished
from lvis_rcnn.initial_weights import load_initial_weights
from lvis_rcnn.model.assign import random_choice
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, MaskRcnn, Settings, losses
from lvis_rcnn.repeat_factors import read_sampling
from lvis_rcnn.sample_stream import SampleStream
from lvis_rcnn.schedule import Recipe, make_recipe
from lvis_rcnn.training_log import Heartbeat, Progress, TrainingLog, sentence, share_of_data, write_heartbeat
from lvis_rcnn.zoo import load_zoo

# At most this much work is done again after a kill; a save (1.2 GB for X-101-64x4d with AdamW) takes about a second.
SECONDS_BETWEEN_CHECKPOINTS = 75.0

EXIT_RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal, state saved


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


def sgd(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with momentum: the recipe's."""
    return torch.optim.SGD(
        parameters, lr=schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def adamw(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); fused, since on a CPU its plain loops take a tenth of a small step."""
    return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def set_full_precision() -> None:
    """Multiply and convolve in fp32 also on GPUs, whose default for convolutions is the 10-bit mantissa of TF32."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


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
    model: MaskRcnn, optimizer: torch.optim.Optimizer, groups: list[Batch], step: int, seed: int, recipe: Recipe
) -> dict[str, float]:
    """One optimizer step on the normalisation groups of a step; returns the losses, each the mean of the groups.

    Raises:
        InputError: as :func:`require_finite`; the weights are then untouched.
    """
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(step)
    optimizer.zero_grad(set_to_none=True)
    parts = add_gradients(model, groups, range(len(groups)), len(groups), step, seed)
    if recipe.schedule.gradient_clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.schedule.gradient_clip_norm)
    optimizer.step()
    return parts


def add_gradients(
    model: MaskRcnn, groups: list[Batch], numbers: range, num_groups: int, step: int, seed: int
) -> dict[str, float]:
    """Add to the gradient what some of a step's groups contribute to it; returns their part of each loss.

    A step of 16 images is 8 groups of 2, each with its own divisors, and its gradient is the mean of theirs, as that of
    8 GPUs in the published runs. Random numbers depend on (seed, step, group), so it does not matter which process
    takes which groups: their sums are the whole.

    Args:
        model: in training mode.
        groups: the batches to add.
        numbers: their places in the step.
        num_groups: groups of the whole step.
        step: 0-based optimizer step.
        seed: of the run.

    Raises:
        InputError: as :func:`require_finite`.
    """
    sums = dict.fromkeys(LOSS_NAMES, 0.0)
    for number, batch in zip(numbers, groups, strict=True):
        (key,) = np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)
        parts = losses(model, batch, random_choice(torch.manual_seed(int(key))))
        require_finite(parts, step, batch.image_ids)
        (torch.stack(list(parts.values())).sum() / num_groups).backward()
        for name, value in parts.items():
            sums[name] += float(value.detach()) / num_groups
    return sums


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
    set_full_precision()
    torch.manual_seed(run.seed)
    device = torch.device(study.compute.device)
    stream = stream_of(run)
    recipe = make_recipe(study.schedule, stream)
    model = MaskRcnn(BACKBONES[run.backbone], run.store.num_labels, network_settings(study)).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[study.schedule.optimizer](trained, study.schedule)
    progress = restore(run, model, optimizer)
    log.info(recipe.sentence)
    augmentation = Augmentation(**study.augmentation.model_dump())
    on_gpu = device.type == "cuda"
    items = TrainingSteps(run.store_path, run.images_dir, stream, augmentation, channels_last=on_gpu)
    batches = read_in_order(items, range(progress.step, recipe.steps), study.resources.loader_workers, pinned=on_gpu)
    try:
        take_steps(run, model, optimizer, batches, recipe, progress)
    except BaseException:
        write_heartbeat(run.state_dir, progress, recipe, "stopped")
        raise
    finish(run, model.state_dict(), recipe, progress)


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
    progress.begin_attempt(progress.attempts + 1)
    log.info("going on from step %d (start %d)", progress.step, progress.attempts)
    return progress


def take_steps(
    run: Run,
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    steps: Iterator[list[Batch]],
    recipe: Recipe,
    progress: Progress,
) -> None:
    """The loop: read, step, log, save. Ends early with ``EXIT_RESUME_ME`` after a signal."""
    stop = StopRequest()
    device = next(model.parameters()).device
    training_log = TrainingLog(run.state_dir / "log.json", recipe, progress.step)
    heartbeat = Heartbeat(run.state_dir, recipe)
    heartbeat.write(progress)
    saved_at = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=progress.step, desc=f"train {run.backbone}", unit="step", disable=None)
    with bar:
        for step in range(progress.step, recipe.steps):
            started = time.monotonic()
            groups = [group.to(device) for group in next(steps)]
            note_broken(groups, progress)
            data_s = time.monotonic() - started
            parts = take_step(model, optimizer, groups, step, run.seed, recipe)
            progress.add_step({**parts, "data_time": data_s, "time": time.monotonic() - started})
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory_bytes(device))
            bar.update()
            if progress.step % run.study.resources.log_every_steps == 0 or progress.step == recipe.steps:
                line = training_log.write(progress)
                log.debug(sentence(line, recipe.steps))  # a terminal has the bar instead
                bar.set_postfix(loss=line["loss"], data=share_of_data(line))
                heartbeat.write(progress)
            heartbeat.write_if_due(progress)
            if stop.arrived or time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                save(run.state_dir, model, optimizer, progress)
                saved_at = time.monotonic()
            if stop.arrived:
                leave(progress, recipe.steps)


def note_broken(groups: list[Batch], progress: Progress) -> None:
    """Count the images that others stood in for, and name each at its first time."""
    for what in (what for group in groups for what in group.broken):
        if what not in progress.broken_images:
            log.warning("warning: an image is skipped, another takes its place: %s", what)
        progress.broken_images[what] = progress.broken_images.get(what, 0) + 1


def save(state_dir: Path, model: MaskRcnn, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint of everything that a start needs."""
    progress.saved_step = progress.step
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
    zoo = load_zoo(zoo_of(study, args.study))
    run = Run(study, args.backbone, args.seed, args.store, args.images, args.repeat_factors, args.state, zoo)
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
