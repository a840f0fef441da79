"""What the first process of a run writes while it trains: checkpoints, log, event files, heartbeat."""

import contextlib
import time

from tqdm import tqdm

from lvis_rcnn.runs.attempts import Ending, end_attempt
from lvis_rcnn.runs.lease import Lease
from lvis_rcnn.system.cli import log
from lvis_rcnn.training.checkpoint import Saver
from lvis_rcnn.training.log import EventFiles, Heartbeat, TrainingLog, sentence, share_of_data
from lvis_rcnn.training.setup import Training

# A kill loses at most this much work; a save (1.2 GB for X-101-64x4d with AdamW) takes about a second.
SECONDS_BETWEEN_CHECKPOINTS = 75.0


class Recorder:
    """Writes what a run leaves while it trains; only in the first process, which holds the lease.

    Leaving the block records how the attempt ended.
    """

    def __init__(self, training: Training, lease: Lease | None) -> None:
        self.training = training
        self.lease = lease
        if lease is None:
            return
        folder, progress = training.run.state_dir, training.progress
        on_gpu = training.ranks.device.type == "cuda"
        self.saver = Saver(folder, progress.step, background=on_gpu, still_held=lease.held)
        progress.saved_step = progress.step
        self.saved_at = time.monotonic()
        self.log = TrainingLog(folder / "log.json", training.run.recipe, progress.step)
        self.events = EventFiles(folder / "tensorboard", folder / "log.json")
        self.heartbeat = Heartbeat(folder, training.run.recipe)

    def __enter__(self) -> "Recorder":
        self.heartbeat.write(self.training.progress)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        progress, stopped = self.training.progress, isinstance(error, SystemExit | KeyboardInterrupt)
        self.events.close()
        self.saver.wait()
        ending: Ending = "done" if error is None else "stopped" if stopped else "error"
        end_attempt(self.training.run.state_dir, progress.attempts, ending, progress.step, None if stopped else error)
        if error is not None:
            state, text = ("stopped", None) if stopped else ("failed", " ".join(str(error).split()))
            self.heartbeat.write(progress, state, text)

    def asked_to_stop(self) -> bool:
        """Whether another training waits for this one's lease."""
        return self.lease is not None and self.lease.asked

    def beat(self) -> None:
        """Write the heartbeat if the last one is old enough."""
        if self.lease is not None:
            self.heartbeat.write_if_due(self.training.progress)

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is older than ``SECONDS_BETWEEN_CHECKPOINTS``."""
        return self.lease is not None and time.monotonic() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS

    def write_line(self, bar: tqdm) -> None:  # type: ignore[type-arg]
        """Log the steps since the last line."""
        if self.lease is None:
            return
        line = self.log.write(self.training.progress)
        with contextlib.suppress(OSError):  # the log has warned already, and the next start writes them again
            self.events.write(line)
        log.debug(sentence(line, self.training.run.recipe.steps))  # a terminal has the bar instead
        bar.set_postfix(loss=line["loss"], data=share_of_data(line))
        self.heartbeat.write(self.training.progress)

    def save(self) -> None:
        """Write a checkpoint, on a GPU in the background."""
        if self.lease is None:
            return
        training, progress = self.training, self.training.progress
        progress.saved_step = progress.step
        state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
        self.saver.save(progress.step, {**state, "progress": vars(progress)})
        self.saved_at = time.monotonic()
