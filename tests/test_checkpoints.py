"""A kill at any moment leaves a checkpoint; damage is found, said and survived."""

import os

import pytest
import torch

from lvis_rcnn import checkpoints
from lvis_rcnn.checkpoints import (
    NEWEST,
    NEXT,
    PREVIOUS,
    drop_checkpoints,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from lvis_rcnn.command import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def state(step):
    return {"model": {"weight": torch.full((3,), float(step))}, "progress": {"step": step, "unlogged": [{"time": 0.5}]}}


def loaded_step(folder):
    found = load_checkpoint(folder)
    assert torch.equal(found["model"]["weight"], torch.full((3,), float(found["progress"]["step"])))
    return found["progress"]["step"]


def test_the_newest_is_loaded_and_the_one_before_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step))
        assert loaded_step(tmp_path) == step
    assert {file.name for file in tmp_path.iterdir()} == {NEWEST, PREVIOUS}
    assert torch.load(tmp_path / PREVIOUS)["progress"]["step"] == 2


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize(
    ("renames", "expected"),
    [(0, 2), (1, 2), (2, 3), (3, 3)],
    ids=["while writing", "new one whole", "old one moved", "done"],
)
def test_killed_between_the_renames_a_whole_checkpoint_is_left(tmp_path, monkeypatch, renames, expected):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    replace, done = os.replace, []

    def counted(source, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted)
        if renames < 3:
            with pytest.raises(Killed):
                save_checkpoint(tmp_path, state(3))
        else:
            save_checkpoint(tmp_path, state(3))
    assert loaded_step(tmp_path) == expected
    save_checkpoint(tmp_path, state(4))
    assert loaded_step(tmp_path) == 4
    assert not (tmp_path / NEXT).exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_falls_back_with_a_warning(tmp_path, monkeypatch, share):
    said = []
    monkeypatch.setattr(checkpoints.log, "warning", lambda text, *values: said.append(text % values))
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    content = (tmp_path / NEWEST).read_bytes()
    (tmp_path / NEWEST).write_bytes(content[: int(len(content) * share)])
    assert loaded_step(tmp_path) == 1
    (warning,) = said
    assert warning.startswith(f"warning: {tmp_path / NEWEST} is damaged (")


def test_all_damaged_is_as_none(tmp_path):
    for name in (NEWEST, NEXT, PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    assert load_checkpoint(tmp_path) is None


def test_a_dropped_run_has_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "model.pth").write_text("stays")
    drop_checkpoints(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_a_model_comes_back_with_what_it_is(tmp_path):
    meta = {"backbone": "r50", "CLASSES": ("cup", "kite")}
    save_model(tmp_path / "model.pth", {"weight": torch.arange(3.0)}, meta)
    weights, found = load_model(tmp_path / "model.pth")
    assert found == meta
    assert torch.equal(weights["weight"], torch.arange(3.0))


def write_damaged(path, kind):
    save_model(path, {"weight": torch.arange(1000.0)}, {})
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "weights alone":
        torch.save({"weight": torch.arange(3.0)}, path)
    elif kind == "tensor":
        torch.save(torch.arange(3.0), path)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "weights alone", "tensor", "folder"])
def test_a_damaged_model_is_one_line(tmp_path, kind):
    path = tmp_path / "model.pth"
    if kind == "folder":
        path.mkdir()
    else:
        write_damaged(path, kind)
    with pytest.raises(InputError, match=r"model.pth: no readable model \(\w+\); allowed: a model.pth of lvis_rcnn"):
        load_model(path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"model.pth: no such model; to mend: train it first"):
        load_model(tmp_path / "model.pth")
