"""What the first process of a run writes while it trains: checkpoints, log, event files, heartbeat."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from lvis_rcnn.runs.attempts import Ending, begin_attempt, end_attempt
from lvis_rcnn.runs.lease import Lease
from lvis_rcnn.runs.points import kept_file
from lvis_rcnn.system.cli import log
from lvis_rcnn.system.machine import allocation
from lvis_rcnn.training.checkpoint import Saver
from lvis_rcnn.training.log import EventFiles, Heartbeat, TrainingLog, sentence, share_of_data
from lvis_rcnn.training.run import model_meta
from lvis_rcnn.training.setup import Training


@contextmanager
def recorded(training: Training, lease: Lease | None) -> Iterator["Recorder"]:
    """Begin an attempt; at the end of the block wait for the last save, and record how the attempt ended.

    Args:
        training: the run, as it is going on.
        lease: that of the run's state folder; None in all processes but the first, which record nothing.

    Raises:
        InputError: another start is pointless.
        FolderLost: another trainer has taken over, or the folder was deleted, and nothing else has ended the block.
    """
    begin(training, lease)
    recorder = Recorder(training, lease)
    try:
        recorder.open()
        yield recorder
        recorder.close()
    except BaseException as error:
        with contextlib.suppress(Exception):  # what ended the block matters, not what follows from it
            recorder.close()
        recorder.end(error)
        raise
    recorder.end(None)


def begin(training: Training, lease: Lease | None) -> None:
    """Count this start, and record it in the first process."""
    progress, count = training.progress, training.ranks.count
    number = progress.attempts + 1
    if lease is not None:
        # Of all processes: SLURM counts those of its job, and without it each has its threads and, on a GPU, a GPU.
        gpus = count if training.ranks.device.type == "cuda" else 0
        has = allocation(count * training.run.study.compute.threads, gpus)
        number = begin_attempt(training.run.state_dir, progress.step, has)
    progress.count_attempt(number, count)


class Recorder:
    """Writes what a run leaves while it trains; only in the first process, which holds the lease."""

    def __init__(self, training: Training, lease: Lease | None) -> None:
        self.training = training
        self.lease = lease
        self.saved_at = time.monotonic()
        self.heartbeat = Heartbeat(training.run.state_dir, training.run.recipe)

    def open(self) -> None:
        """Open the files."""
        if self.lease is None:
            return
        training, folder = self.training, self.training.run.state_dir
        progress, ranks = training.progress, training.ranks
        progress.saved_step = progress.step
        # In the background where others would wait for a slow save: other processes, or the GPU.
        background = ranks.count > 1 or ranks.device.type == "cuda"
        self.saver = Saver(folder, progress.step, background=background, why_not_held=self.lease.why_not_held)
        self.log = TrainingLog(folder / "log.json", training.run.recipe, progress.step)
        self.events = EventFiles(folder / "tensorboard", folder / "log.json")
        self.heartbeat.write(progress)

    def close(self) -> None:
        """Wait for the last save, and close the files; FolderLost if it could not be saved because of that."""
        if self.lease is not None:
            self.events.close()
            self.saver.wait()

    def end(self, error: BaseException | None) -> None:
        """Record how the attempt ended; in the heartbeat unless that is another trainer's by now."""
        if self.lease is None:
            return
        progress, stopped = self.training.progress, isinstance(error, SystemExit | KeyboardInterrupt)
        ending: Ending = "done" if error is None else "stopped" if stopped else "error"
        end_attempt(self.training.run.state_dir, progress.attempts, ending, progress.step, None if stopped else error)
        if error is not None and not self.lease.lost:
            state, text = ("stopped", None) if stopped else ("failed", " ".join(str(error).split()))
            self.heartbeat.write(progress, state, text)

    def may_write(self) -> bool:
        """Whether this process writes and holds the folder, which another may have taken while it was suspended."""
        try:
            return self.lease is not None and not self.lease.why_not_held()
        except OSError:  # it cannot be read, and most likely not be written, which is a warning
            return True

    def asked_to_stop(self) -> bool:
        """Whether another training waits for this one's lease."""
        return self.lease is not None and self.lease.asked

    def beat(self) -> None:
        """Write the heartbeat if the last one is old enough, or the attempt has taken its first step."""
        progress = self.training.progress
        is_first = progress.step == progress.attempt_from[0] + 1  # it tells a kill at work from one before
        if (is_first or self.heartbeat.is_due) and self.may_write():
            self.heartbeat.write(progress)

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is ``resources.checkpoint_seconds`` old; not while a slow save is written."""
        if self.lease is None or self.saver.is_writing:
            return False
        return time.monotonic() - self.saved_at > self.training.run.study.resources.checkpoint_seconds

    def write_line(self, bar: tqdm) -> None:  # type: ignore[type-arg]
        """Log the steps since the last line."""
        if not self.may_write():
            return
        line = self.log.write(self.training.progress)
        with contextlib.suppress(OSError):  # the log has warned already, and the next start writes them again
            self.events.write(line)
        log.debug(sentence(line, self.training.run.recipe.steps))  # a terminal has the bar instead
        bar.set_postfix(loss=line["loss"], data=share_of_data(line))
        self.heartbeat.write(self.training.progress)

    def keep_weights(self) -> None:
        """Keep the weights of this step to be scored; they are on disk before any later checkpoint is."""
        if self.lease is None:
            return
        run, step = self.training.run, self.training.progress.step
        self.saver.keep(kept_file(run.state_dir, step), self.training.model.state_dict(), model_meta(run, step))

    def save(self) -> None:
        """Write a checkpoint; it waits for one that is being written, so ask :meth:`save_is_due` unless it must be."""
        if self.lease is None:
            return
        training, progress = self.training, self.training.progress
        progress.saved_step = progress.step
        state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
        self.saver.save(progress.step, {**state, "progress": vars(progress), "run": training.run.digest})
        self.saved_at = time.monotonic()
