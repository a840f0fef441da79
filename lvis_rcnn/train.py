"""Train one row and seed of a study; stopped anywhere, the next start goes on.

The sample stream, the learning rate and the random numbers of a step are pure functions of (seed, step), so a
checkpoint holds only weights, optimizer and progress, and any number of processes can go on from it. State lives in
``STATE/<study>/<row>/seed<k>/<digest>``, outside the outputs that Snakemake deletes when a job fails; one training
at a time holds its lease.

    python -m lvis_rcnn train --study configs/mini.yaml --row r50 --seed 0 --store train.store --images IMAGES
        --repeat-factors repeat_factors --state results/state --out results/mini/r50/seed0
    torchrun --standalone --nproc-per-node 4 -m -- lvis_rcnn.train --study …     the same run on four GPUs
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lvis_rcnn.config.study import load_study_for_step, zoo_of
from lvis_rcnn.config.zoo import load_zoo
from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.runs.lease import Lease, held_lease
from lvis_rcnn.runs.paths import backbone_of_run
from lvis_rcnn.system.cli import add_output, add_seed, log, run_step, step_parser
from lvis_rcnn.training.checkpoint import drop_checkpoints
from lvis_rcnn.training.distributed import Ranks, Watch, require_device, started
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.recorder import Recorder, recorded
from lvis_rcnn.training.run import FILES_OF_RUN, Run, export, finish, is_finished
from lvis_rcnn.training.setup import Training, batches_of, peak_memory_bytes, prepared, require_same_step
from lvis_rcnn.training.step import QueuedStep, take_step

EXIT_RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal, state saved


def train(run: Run, out_dir: Path, ranks: Ranks) -> None:
    """Train one run, from where it stopped, and write model.pth, train.json and log.json.

    Raises:
        InputError: a loss is not finite, an image cannot be read, memory does not suffice, a process was lost, another
            training keeps the state, or going on is pointless.
        SystemExit: with ``EXIT_RESUME_ME`` after a signal or a hand-over, the state being saved.
    """
    stop = StopRequest()
    run.state_dir.mkdir(parents=True, exist_ok=True)
    with held_state(run, ranks) as lease:
        if is_finished(run.state_dir):
            log.info("%s seed %d is trained; to train it again, delete %s", run.row, run.seed, run.state_dir)
            if ranks.is_first:
                drop_checkpoints(run.state_dir)  # a kill after the record was written may have left them
        else:
            train_to_the_end(run, ranks, lease, stop)
        if ranks.is_first:
            export(run.state_dir, out_dir)
    log.info("trained %s seed %d: %s", run.row, run.seed, out_dir / "model.pth")


@contextmanager
def held_state(run: Run, ranks: Ranks) -> Iterator[Lease | None]:
    """The state folder, held by the first process while all work on it."""
    if not ranks.is_first:
        ranks.wait_for_first()
        yield None
        return
    with held_lease(run.state_dir) as lease:
        ranks.wait_for_first()
        yield lease


def train_to_the_end(run: Run, ranks: Ranks, lease: Lease | None, stop: "StopRequest") -> None:
    """Build or restore the run, take the steps that are left, and finish it."""
    # Before the network: what is wrong with its input is said at once.
    recipe, points = run.recipe, run.kept_steps
    with Watch(ranks) as watch:
        training = prepared(run, ranks)
        with watch.step(training.progress.step):
            require_same_step(ranks, training.progress.step)
        with recorded(training, lease) as recorder:
            watch.record = recorder.end
            log.info("%s%s", recipe.sentence, f"; {ranks.count} processes" if ranks.count > 1 else "")
            if points:
                log.info("lvis_rcnn track scores the weights after steps %s", ", ".join(map(str, sorted(points))))
            take_steps(training, recorder, stop, watch)
            if lease is not None:
                recorder.saver.wait()
                finish(run, training.model.state_dict(), training.progress)
    ranks.wait_for_all()


def take_steps(training: Training, recorder: Recorder, stop: "StopRequest", watch: Watch) -> None:
    """The loop: read, step, log, save. Ends early with ``EXIT_RESUME_ME`` after a signal or when asked to hand over."""
    run, ranks, progress = training.run, training.ranks, training.progress
    first, last, every = progress.step, run.recipe.steps, run.study.resources.log_every_steps
    batches = batches_of(training, range(first, last))
    stop.waits_for_step = True
    # None: tqdm shows the bar where there is a terminal.
    hide_bar = None if ranks.is_first else True
    with tqdm(total=last, initial=first, desc=f"train {run.row}", unit="step", disable=hide_bar) as bar:
        queue = StepQueue(training, bar)
        for step in range(first, last):
            began = time.monotonic()
            groups = [group.to(ranks.device) for group in next(batches)]
            warn_of_broken(groups, progress)
            data_s = time.monotonic() - began
            with watch.step(step) as given:
                queued = take_step(training, groups, step, stop=stop.arrived or recorder.asked_to_stop())
                given.event = queued.totals.event
            recorder.beat()
            queue.add(queued, {"data_time": data_s, "time": time.monotonic() - began})
            if (step + 1) % every == 0 or step + 1 == last:
                queue.settle()
                with watch.step(step + 1):
                    progress.peak_memory_bytes = ranks.largest(progress.peak_memory_bytes, step + 1)
                recorder.write_line(bar)
            if step + 1 in run.kept_steps:
                queue.settle()
                recorder.keep_weights()
            leaves = step == queue.last_step or (ranks.count == 1 and (stop.arrived or recorder.asked_to_stop()))
            if leaves or recorder.save_is_due():
                queue.settle()
                recorder.save()
            if leaves:
                leave(training, recorder)


def warn_of_broken(groups: list[Batch], progress: Progress) -> None:
    """Name each broken image once, when it is first replaced."""
    for problem in (problem for group in groups for problem in group.broken):
        if problem not in progress.broken_images:
            progress.broken_images.append(problem)
            log.warning("warning: an image is skipped, another takes its place: %s", problem)


class StepQueue:
    """The steps given to the device: each is read when the next has been given, so that the device never waits."""

    def __init__(self, training: Training, bar: tqdm) -> None:  # type: ignore[type-arg]
        self.training = training
        self.bar = bar
        self.pending: tuple[QueuedStep, dict[str, float]] | None = None
        self.last_step: int | None = None
        """After this step all processes stop together."""

    def add(self, queued: QueuedStep, times: dict[str, float]) -> None:
        """A further step was given; settle the one before."""
        self.settle()
        self.pending = queued, times

    def settle(self) -> None:
        """Wait for the last step that was given, and count it.

        Raises:
            InputError: it was not finite, so its update did not happen.
        """
        if self.pending is None:
            return
        (queued, times), self.pending = self.pending, None
        values, stop, replaced = queued.values()
        progress, device = self.training.progress, self.training.ranks.device
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory_bytes(device))
        progress.skipped_images += replaced
        progress.add_step({**values, **times})
        self.bar.update()
        if stop and self.last_step is None:
            # Another process may learn of it only when it has given the next step.
            self.last_step = queued.step + 1


class StopRequest:
    """SIGTERM, SIGINT and, but under nohup, SIGHUP, when a terminal closes: the loop ends after its step and saves.

    Before the first step they end the process.
    """

    def __init__(self) -> None:
        self.arrived = False
        self.waits_for_step = False
        """Whether the loop asks for ``arrived``."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number: int, frame: object) -> None:
        """Signal handler; a second signal does not disturb what the first has begun."""
        is_second, self.arrived = self.arrived, True
        if not self.waits_for_step and not is_second:
            log.warning("stopped before the first step; the next start goes on")
            sys.exit(EXIT_RESUME_ME)


def leave(training: Training, recorder: Recorder) -> None:
    """End the process after a signal or a hand-over, when the state is on disk and all processes are here."""
    saved = recorder.lease is None or recorder.saver.wait()
    what = "the next start goes on from there" if saved else "it could not be saved"
    log.warning("stopped at step %d of %d; %s", training.progress.step, training.run.recipe.steps, what)
    training.ranks.wait_for_all()
    sys.exit(EXIT_RESUME_ME)


def step(args: argparse.Namespace) -> None:
    """Train the run that the arguments name."""
    study = load_study_for_step(args.study, "train", args.settings_digest, args.row)
    backbone_of_run(study, args.study, f"{args.row}/seed{args.seed}")
    require_device(study, args.study)
    zoo = load_zoo(zoo_of(study, args.study))
    run = Run(study, args.row, args.seed, args.store, args.images, args.repeat_factors, args.state, zoo)
    with started(study.compute.device) as ranks:
        if not ranks.is_first:
            log.setLevel(logging.WARNING)
        train(run, args.out, ranks)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--settings-digest", metavar="HEX", help="refuse a study whose training settings changed")
    parser.add_argument("--row", required=True, metavar="NAME", help="row of the study: a backbone, or a name of rows")
    add_seed(parser, "seed of initialisation, order and augmentation", required=True)
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="store of the training split")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    parser.add_argument("--repeat-factors", type=Path, required=True, metavar="DIR", help="output of repeat_factors")
    add_output(parser, "--state", "where checkpoints live", is_folder=True)
    add_output(parser, "--out", "folder for model, record and log", is_folder=True, holds=FILES_OF_RUN)
    run_step(parser, step)


if __name__ == "__main__":
    main()
