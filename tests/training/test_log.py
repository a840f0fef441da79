"""What a run reports: lines by hand, none lost and none twice, however it was interrupted; event files like the log."""

import errno
import json
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lvis_rcnn.config.study import load_study
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.training import log as log_module
from lvis_rcnn.training.log import (
    EventFiles,
    Heartbeat,
    Progress,
    TrainingLog,
    keep_lines_until,
    scalars,
    sentence,
    write_heartbeat,
)
from lvis_rcnn.training.solver import make_recipe
from tests.conftest import REPOSITORY
from tests.helpers.tiny_run import MEASURED_KEYS


@pytest.fixture
def recipe():
    """The published one: 16 images a step, here 4 steps an epoch."""
    stream = SampleStream(np.ones(64), "ceil", np.zeros(64, bool), 0, group_size=2, groups_per_step=8)
    return make_recipe(load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml").schedule, stream)


def values(loss_cls, time=1.0, **more):
    return {"loss_cls": loss_cls, "loss_mask": 0.25, "data_time": 0.1, "time": time, **more}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_the_mean_since_the_last_one(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(log_module.time, "time", lambda: 1e9)
    log = TrainingLog(tmp_path / "log.json", recipe, 0)
    progress = Progress(step=4, elapsed_s=100.0, peak_memory_bytes=3 * 2**30)
    progress.count_attempt(2)
    progress.add_step(values(1.0))
    progress.add_step(values(2.0, time=2.0))
    log.write(progress)
    assert json.loads((tmp_path / "log.json").read_text()) == {
        "mode": "train",
        "epoch": 2,
        "iter": 2,
        "lr": recipe.learning_rate(5),
        "memory": 3 * 1024,
        "data_time": 0.1,
        "loss_cls": 1.5,
        "loss_mask": 0.25,
        "loss": 1.75,
        "time": 1.5,
        "step": 6,
        "images_seen": 96,
        "images_per_s": 10.667,
        "eta_s": 90 * 1.5,
        "written_at": 1e9,
    }
    assert progress.unlogged == []


@pytest.mark.parametrize(("step", "epoch", "position"), [(1, 1, 1), (4, 1, 4), (5, 2, 1), (96, 24, 4)])
def test_epochs_and_iterations_count_from_one(tmp_path, recipe, step, epoch, position):
    line = TrainingLog(tmp_path / "log.json", recipe, 0).write(Progress(step=step, unlogged=[values(1.0)]))
    assert (line["epoch"], line["iter"]) == (epoch, position)


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "log.json"
    whole = {"loss": 1.0, "time": 0.5, "data_time": 0.1, "written_at": 1e9}
    lines = [json.dumps({"step": step, **whole}) for step in (2, 4, 6, 8)]
    wrong = ({"loss": None}, {"time": "x"}, {"written_at": "now"}, {"loss_mask": "x"}, {"data_time": float("nan")})
    damaged = [json.dumps({"step": 1, **whole, **change}) for change in wrong]
    damaged += ["7", '{"loss": 1.0}', '{"step": "3"}', '{"step": 10, "lo']  # a kill cut the last one short
    path.write_text("\n".join([*lines, *damaged]))
    keep_lines_until(path, 5)
    assert path.read_text().splitlines() == lines[:2]
    keep_lines_until(path, 0)
    assert path.read_text() == ""


def test_a_log_that_is_deleted_ends_no_training(tmp_path, recipe):
    log = TrainingLog(tmp_path / "log.json", recipe, 0)
    (tmp_path / "log.json").unlink()
    assert log.write(Progress(step=1, unlogged=[values(1.0)]))["loss"] == 1.25
    assert [line["step"] for line in lines_of(tmp_path / "log.json")] == [1]
    (tmp_path / "log.json").unlink()
    tmp_path.rmdir()
    assert log.write(Progress(step=2, unlogged=[values(1.0)]))["loss"] == 1.25


def test_a_sentence_for_a_person():
    line = {"step": 100, "loss": 1.23456, "lr": 0.02, "time": 0.5, "data_time": 0.1}
    line |= {"images_per_s": 31.96, "eta_s": 7512.0}
    speed = "0.50 s per step (20% waiting for data), 32.0 images/s, 2h 05m left"
    expected = f"step 100 of 340: loss 1.235, lr 2.0e-02, {speed}"
    assert sentence(line, 340) == expected
    assert sentence({**line, "skipped_images": 3}, 340) == f"{expected}, 3 broken images skipped"


def test_skipped_images_are_counted_where_there_are_any(tmp_path, recipe):
    progress = Progress(step=6, unlogged=[values(1.0)], skipped_images=3)
    assert TrainingLog(tmp_path / "log.json", recipe, 0).write(progress)["skipped_images"] == 3


def test_gradient_norms_are_logged_where_they_were_measured(tmp_path, recipe):
    log = TrainingLog(tmp_path / "log.json", recipe, 0)
    # The first step was taken by a version that measured none.
    window = [values(1.0), values(1.0, grad_norm=2.0), values(1.0, grad_norm=4.0)]
    line = log.write(Progress(step=3, unlogged=window))
    assert (line["grad_norm"], line["grad_norm_max"]) == (3.0, 4.0)
    line = log.write(Progress(step=4, unlogged=[values(1.0, grad_norm=float("inf"))]))
    assert (line["grad_norm"], line["grad_norm_max"]) == (None, None)


def test_the_last_step_of_an_epoch_counts_its_own_images(tmp_path):
    stream = SampleStream(np.ones(40), "ceil", np.zeros(40, bool), 0, group_size=2, groups_per_step=8)
    recipe = make_recipe(load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml").schedule, stream)
    log = TrainingLog(tmp_path / "log.json", recipe, 0)
    line = log.write(Progress(step=3, unlogged=[values(1.0)] * 2))
    assert (line["images_seen"], line["images_per_s"]) == (40, 12.0)  # 16 and 8 images in 2 s


def test_epochs_are_those_of_the_stream_where_their_lengths_vary(tmp_path):
    stream = SampleStream(np.full(40, 1.5), "stochastic", np.zeros(40, bool), 0, group_size=1, groups_per_step=1)
    recipe = make_recipe(load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml").schedule, stream)
    log, expected, found = TrainingLog(tmp_path / "log.json", recipe, 0), [], []
    for epoch in range(6):
        steps = range(stream.steps_before_epoch(epoch), stream.steps_before_epoch(epoch + 1))
        expected += [(epoch + 1, position) for position in range(1, len(steps) + 1)]
        lines = [log.line(Progress(step=step + 1, unlogged=[values(1.0)])) for step in steps]
        found += [(line["epoch"], line["iter"]) for line in lines]
    assert found == expected
    assert len({stream.start_of_epoch(epoch + 1).step - stream.start_of_epoch(epoch).step for epoch in range(6)}) > 1


def spiky_losses():
    """Falling, with a spike at step 30 of three times what was usual, and one at step 6, too early to be called one."""
    return [9.0 if step == 6 else 6.5 if step == 30 else 2.0 - step / 100 for step in range(1, 61)]


def train_on(path, recipe, losses, steps_done=0, until=60, every=2):
    log = TrainingLog(path, recipe, steps_done)
    progress = Progress(
        step=steps_done, unlogged=[values(loss) for loss in losses[steps_done // every * every : steps_done]]
    )
    while progress.step < until:
        progress.add_step(values(losses[progress.step]))
        if progress.step % every == 0:
            log.write(progress)


def without_measured(path):
    return [{key: value for key, value in line.items() if key not in MEASURED_KEYS} for line in lines_of(path)]


def test_a_spike_is_marked_and_named_once(tmp_path, recipe, monkeypatch):
    warnings = []
    monkeypatch.setattr(log_module.log, "warning", lambda text, *values: warnings.append(text % values))
    train_on(tmp_path / "log.json", recipe, spiky_losses())
    assert [line["step"] for line in lines_of(tmp_path / "log.json") if line.get("loss_spike")] == [30]
    assert warnings == ["warning: loss spike at step 30: 6.750, 3.2 times the recent median"]


def test_a_spike_does_not_hide_the_next(tmp_path, recipe):
    losses = [1.0] * 60
    losses[39] = losses[41] = losses[43] = 100.0
    train_on(tmp_path / "log.json", recipe, losses)
    assert [line["step"] for line in lines_of(tmp_path / "log.json") if line.get("loss_spike")] == [40, 42, 44]


def test_after_losses_of_nothing_no_loss_is_a_spike(tmp_path, recipe):
    train_on(tmp_path / "log.json", recipe, [-0.25] * 59 + [1.0])  # with the 0.25 of a mask
    assert [line for line in lines_of(tmp_path / "log.json") if line.get("loss_spike")] == []


@pytest.mark.parametrize("stopped_at", [5, 28, 29, 30, 31])
def test_a_resumed_run_calls_the_same_steps_spikes(tmp_path, recipe, stopped_at):
    train_on(tmp_path / "whole.json", recipe, spiky_losses())
    path = tmp_path / "log.json"
    train_on(path, recipe, spiky_losses(), until=34)  # killed here; its last checkpoint is older
    train_on(path, recipe, spiky_losses(), steps_done=stopped_at)
    assert without_measured(path) == without_measured(tmp_path / "whole.json")


def test_a_heartbeat_has_what_onlookers_read(tmp_path, recipe, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(log_module.time, "time", lambda: 2e9)
    progress = Progress(step=3, elapsed_s=50.0, saved_step=3, started_at=1e9, peak_memory_bytes=7)
    progress.count_attempt(2, ranks=8)
    progress.add_step(values(1.5, time=4.0))
    write_heartbeat(tmp_path, progress, recipe, "running")
    assert json.loads((tmp_path / "progress.json").read_text()) == {
        "step": 4,
        "steps": 96,
        "saved_step": 3,
        "updated_at": 2e9,
        "started_at": 1e9,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": "4711",
        "ranks": 8,
        "attempt": 2,
        "state": "running",
        "images_per_s": 4.0,
        "eta_s": 92 * 4.0,
        "peak_memory_bytes": 7,
        "loss": 1.75,
    }


def test_before_the_first_step_speed_and_loss_are_unknown(tmp_path, recipe, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    write_heartbeat(tmp_path, Progress(), recipe, "failed", error="no memory")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert [found[key] for key in ("images_per_s", "eta_s", "loss", "job", "error")] == [None] * 4 + ["no memory"]


def test_a_loss_that_json_cannot_say_is_unknown(tmp_path, recipe):
    progress = Progress()
    progress.add_step(values(float("nan")))
    write_heartbeat(tmp_path, progress, recipe, "stopped")
    assert json.loads((tmp_path / "progress.json").read_text())["loss"] is None


def test_a_heart_beats_every_thirty_seconds_however_rarely_a_line_is_logged(tmp_path, recipe, monkeypatch):
    now_s, progress = [1000.0], Progress()
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now_s[0])
    heartbeat = Heartbeat(tmp_path, recipe)
    heartbeat.write(progress)
    beaten = []
    for now_s[0] in range(1000, 1100, 7):
        progress.add_step(values(1.0, time=7.0))
        if heartbeat.is_due:
            heartbeat.write(progress)
        beaten.append(json.loads((tmp_path / "progress.json").read_text())["step"])
    assert sorted(set(beaten)) == [0, 6, 11]


# Event files


def test_a_disk_that_is_full_ends_their_thread_in_one_line(tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    lines, files = [], EventFiles(tmp_path, tmp_path / "log.json")
    monkeypatch.setattr(log_module.log, "warning", lambda text, *values: lines.append(text % values))
    thread = threading.Thread(target=full)
    thread.start()
    thread.join()
    files.close()
    assert lines == ["warning: event files for TensorBoard cannot be written any more: No space left on device"]
    assert capsys.readouterr().err == ""


def line_of(step: int, **changes):
    line = {"step": step, "lr": 0.02, "memory": 1024, "data_time": 0.25, "time": 1.0, "images_per_s": 16.0}
    return line | {"loss_cls": 1.5, "loss_mask": 0.5, "loss": 2.0 + step, "written_at": 1e9 + step, **changes}


def write_log(path: Path, steps) -> None:
    path.write_text("".join(json.dumps(line_of(step)) + "\n" for step in steps))


def curves(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Step, value and time of every scalar, as TensorBoard reads them."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(one.step, one.value, one.wall_time) for one in accumulator.Scalars(tag)] for tag in tags}


def start(tmp_path: Path, steps) -> None:
    """A start that logs these steps and ends without closing anything."""
    events = EventFiles(tmp_path / "tensorboard", tmp_path / "log.json")
    for step in steps:
        events.write(line_of(step))


def test_a_line_is_drawn_under_tags_that_group(tmp_path):
    assert scalars(line_of(4, grad_norm=3.0, grad_norm_max=5.0, loss_spike=True)) == {
        "loss/total": 6.0,
        "loss/cls": 1.5,
        "loss/mask": 0.5,
        "gradient/norm": 3.0,
        "gradient/norm_max": 5.0,
        "schedule/lr": 0.02,
        "speed/images_per_s": 16.0,
        "speed/data_share": 0.25,
        "speed/memory_mib": 1024,
    }


def test_what_is_unknown_is_not_drawn():
    known = set(scalars(line_of(4, grad_norm=None, images_per_s=None, time=0.0)))
    assert known == {"loss/total", "loss/cls", "loss/mask", "schedule/lr", "speed/memory_mib"}


def test_a_written_line_is_there_at_once_at_its_step_and_time(tmp_path):
    start(tmp_path, [2, 4])
    found = curves(tmp_path / "tensorboard")
    assert found["loss/total"] == [(2, 4.0, 1e9 + 2), (4, 6.0, 1e9 + 4)]
    assert found["speed/data_share"] == [(2, 0.25, 1e9 + 2), (4, 0.25, 1e9 + 4)]


def test_steps_that_are_done_again_are_there_once(tmp_path):
    start(tmp_path, [2, 4, 6, 8])
    write_log(tmp_path / "log.json", [2, 4])  # the newest checkpoint is of step 5
    start(tmp_path, [6, 8, 10])
    write_log(tmp_path / "log.json", [2, 4, 6, 8, 10])
    start(tmp_path, [12])
    assert [step for step, _, _ in curves(tmp_path / "tensorboard")["loss/total"]] == [2, 4, 6, 8, 10, 12]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_host_whose_clock_is_behind_is_read_as_the_last(tmp_path, monkeypatch):
    start(tmp_path, [2, 4, 6, 8])
    write_log(tmp_path / "log.json", [2, 4])
    monkeypatch.setattr("time.time", lambda: 1e9)
    start(tmp_path, [6])
    assert [step for step, _, _ in curves(tmp_path / "tensorboard")["loss/total"]] == [2, 4, 6]


def test_an_onlooker_that_is_open_forgets_what_is_done_again(tmp_path):
    start(tmp_path, [2, 4, 6, 8])
    onlooker = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [one.step for one in onlooker.Scalars("loss/total")] == [2, 4, 6, 8]
    write_log(tmp_path / "log.json", [2, 4])
    start(tmp_path, [6])
    assert [one.step for one in onlooker.Reload().Scalars("loss/total")] == [2, 4, 6]


@pytest.mark.parametrize("damage", ["missing folder", "cut line"])
def test_event_files_follow_the_log(tmp_path, damage):
    write_log(tmp_path / "log.json", [2, 4])
    if damage == "cut line":
        with (tmp_path / "log.json").open("a") as file:
            file.write('{"step": 6, "lo')
    EventFiles(tmp_path / "tensorboard", tmp_path / "log.json").close()
    assert [step for step, _, _ in curves(tmp_path / "tensorboard")["loss/total"]] == [2, 4]
