"""What a run says: lines by hand, none lost and none twice, however it was interrupted."""

import json

import numpy as np
import pytest
from conftest import REPOSITORY

from lvis_rcnn.config import load_study
from lvis_rcnn.sample_stream import SampleStream
from lvis_rcnn.schedule import make_recipe
from lvis_rcnn.training_log import Progress, TrainingLog, keep_lines_until, sentence, write_heartbeat


@pytest.fixture
def recipe():
    """The published one: 16 images a step, here 4 steps an epoch."""
    stream = SampleStream(np.ones(64), "ceil", np.zeros(64, bool), 0, group_size=2, groups_per_step=8)
    return make_recipe(load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml").schedule, stream)


def values(loss_cls, time=1.0):
    return {"loss_cls": loss_cls, "loss_mask": 0.25, "data_time": 0.1, "time": time}


def test_a_line_is_the_mean_since_the_last_one(tmp_path, recipe):
    log = TrainingLog(tmp_path / "log.json", recipe, 0)
    progress = Progress(step=6, peak_memory_bytes=3 * 2**30, unlogged=[values(1.0), values(2.0, time=2.0)])
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
    }
    assert progress.unlogged == []


@pytest.mark.parametrize(("step", "epoch", "position"), [(1, 1, 1), (4, 1, 4), (5, 2, 1), (96, 24, 4)])
def test_epochs_and_iterations_count_from_one(tmp_path, recipe, step, epoch, position):
    line = TrainingLog(tmp_path / "log.json", recipe, 0).write(Progress(step=step, unlogged=[values(1.0)]))
    assert (line["epoch"], line["iter"]) == (epoch, position)


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "log.json"
    lines = [json.dumps({"step": step}) for step in (2, 4, 6, 8)]
    path.write_text("\n".join(lines) + '\n{"step": 10, "lo')  # a kill cut the last one short
    keep_lines_until(path, 5)
    assert path.read_text().splitlines() == lines[:2]
    keep_lines_until(path, 0)
    assert path.read_text() == ""


def test_a_sentence_for_a_person():
    line = {"step": 100, "loss": 1.23456, "lr": 0.02, "time": 0.5, "data_time": 0.1}
    expected = "step 100 of 340: loss 1.235, lr 2.0e-02, 0.50 s a step (20% waiting for data), 2.0 min left"
    assert sentence(line, 340) == expected
    assert sentence({**line, "skipped_images": 3}, 340) == f"{expected}, 3 broken images skipped"


def test_skipped_images_are_counted_where_there_are_any(tmp_path, recipe):
    progress = Progress(step=6, unlogged=[values(1.0)], broken_images={"a.jpg: is broken": 2, "b.jpg: is broken": 1})
    assert TrainingLog(tmp_path / "log.json", recipe, 0).write(progress)["skipped_images"] == 3


def test_a_heartbeat_has_what_the_table_reads(tmp_path):
    write_heartbeat(tmp_path, Progress(step=3), 10, "running")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert set(found) == {"step", "steps", "updated_at", "host", "pid", "state"}
    assert (found["step"], found["steps"], found["state"]) == (3, 10, "running")
