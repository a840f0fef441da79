"""The log of a run as TensorBoard's event files: ``tensorboard --logdir results/state/<study>``."""

from pathlib import Path
from typing import Any

from lvis_rcnn.files import read_json_lines

# Tag -> key of a line of the log; each loss has a tag of its own beside these.
TAGS = {
    "loss/total": "loss",
    "gradient/norm": "grad_norm",
    "gradient/norm_max": "grad_norm_max",
    "schedule/lr": "lr",
    "speed/images_per_s": "images_per_s",
    "speed/memory_mib": "memory",
}


class EventFiles:
    """The scalars of each line of a log at its step, as event files of a folder.

    The log is the truth: every start writes all of its lines anew, after the word that voids what was written before
    (``purge_step``). So no step is there twice and none is lost, however a run was stopped.
    """

    def __init__(self, folder: Path, log_file: Path) -> None:
        # More than a second, which only a process that trains should pay.
        from torch.utils.tensorboard import SummaryWriter

        old = files_of(folder)
        self.writer = SummaryWriter(str(folder), purge_step=0)
        for line in read_json_lines(log_file):
            self.add(line)
        self.writer.flush()
        drop_superseded(old, new=files_of(folder) - old)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line that the log has just got; onlookers see it at once."""
        self.add(line)
        self.writer.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Queue the scalars of a line, at the time at which it was logged."""
        for tag, value in scalars(line).items():
            self.writer.add_scalar(tag, value, line["step"], walltime=line["written_at"])

    def close(self) -> None:
        """End the writing thread; what was written stays."""
        self.writer.close()


def files_of(folder: Path) -> set[Path]:
    """Event files of a folder."""
    return set(folder.glob("events.out.tfevents.*"))


def drop_superseded(old: set[Path], new: set[Path]) -> None:
    """Remove the files of earlier starts but the last, from which an onlooker that is open goes on to the new one.

    TensorBoard reads files in the order of their names, which begin with the time of their hosts' clocks: where a clock
    was ahead, the last one goes too, or it would void the new one.
    """
    last = max(old, default=None)
    for file in old:
        if file != last or file > min(new):
            file.unlink()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """What of a line is drawn, by tag; a value that is missing or null is not."""
    found = {f"loss/{key.removeprefix('loss_')}": line[key] for key in line if key.startswith("loss_")}
    found.pop("loss/spike", None)
    found |= {tag: line.get(key) for tag, key in TAGS.items()}
    if line["time"]:
        found["speed/data_share"] = line["data_time"] / line["time"]
    return {tag: value for tag, value in found.items() if value is not None}
