"""Event files say what the log says, each step once, whatever was started and killed before."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lvis_rcnn.training.log import EventFiles, scalars


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
