"""A model comes back as it was; what is none is one line."""

import pytest
import torch

from lvis_rcnn.model.weights import load_model, save_model
from lvis_rcnn.system.cli import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


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
    with pytest.raises(InputError, match=r"model.pth: no such model; fix: train it first"):
        load_model(tmp_path / "model.pth")
