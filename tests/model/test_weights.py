"""Models on disk, and the weights that a training begins with: what a file has is loaded, all else is as it was."""

import argparse
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import DEFAULT_ZOO
from lvis_rcnn.config.zoo import ZooModel, initial_warnings, load_zoo
from lvis_rcnn.model import weights as weights_module
from lvis_rcnn.model.mask_rcnn import MaskRcnn, network_on_meta
from lvis_rcnn.model.mmdet import to_ours
from lvis_rcnn.model.weight_files import read_content
from lvis_rcnn.model.weights import CLASS_LAYERS, load_initial_weights, load_model, save_model
from lvis_rcnn.system.cli import InputError, run_step, step_parser
from tests.helpers.flat_weights import flat_state, same, write_published
from tests.helpers.tiny_run import SMALLEST
from tests.reference.golden_figures import RECIPE

BODY = "backbone.body."


@pytest.fixture(scope="module")
def model():
    """The smallest network, of 3 categories; ``untouched`` begins it anew."""
    return MaskRcnn(SMALLEST, 4, RECIPE)


@pytest.fixture
def untouched(model):
    """Weights of the model that no file here has."""
    for number, value in enumerate(model.state_dict().values(), start=1000):
        value.fill_(number)
    return {key: value.clone() for key, value in model.state_dict().items()}


# model.pth


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
    elif kind == "bad tensor":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.")
            archive.writestr("archive/version", "3\n")
    elif kind == "weights alone":
        torch.save({"weight": torch.arange(3.0)}, path)
    elif kind == "list":
        torch.save({"state_dict": [1], "meta": {}}, path)
    elif kind == "no meta":
        torch.save({"state_dict": {"weight": torch.arange(3.0)}, "meta": None}, path)
    elif kind == "tensor":
        torch.save(torch.arange(3.0), path)


DAMAGED = {
    "folder": r"is a folder; .*; fix: name .*/model.pth/model.pth",
    "cut": r"cannot be read as a file of weights \(\w+\); fix: .* train again",
    "bad tensor": r"cannot be read as a file of weights \(AttributeError\)",
    "text": "is an HTML page",
    "empty": "is empty",
    "tensor": "holds a Tensor; allowed",
}


@pytest.mark.parametrize("kind", [*DAMAGED, "weights alone", "list", "no meta"])
def test_a_damaged_model_is_one_line(tmp_path, kind):
    path = tmp_path / "model.pth"
    if kind == "folder":
        path.mkdir()
    else:
        write_damaged(path, kind)
    message = DAMAGED.get(kind, "does not hold a state_dict of weights, and meta; allowed: a model.pth of")
    with pytest.raises(InputError, match=f"model.pth: {message}"):
        load_model(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_one_wrong_byte_is_one_line(tmp_path, is_zip):
    path, drawn, refused = tmp_path / "model.pth", random.Random(0), []
    content = {"meta": {"CLASSES": ("a", "b")}, "state_dict": {"x.weight": torch.ones(2, 3), "x.bias": torch.ones(2)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[drawn.randrange(len(whole))] = drawn.choice((0, 255, drawn.randrange(256)))
        path.write_bytes(damaged)
        try:
            load_model(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 50


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol_is_read_or_named_with_what_to_do(tmp_path, is_zip, protocol):
    path = tmp_path / "model.pth"
    content = {"meta": {"backbone": "r50"}, "state_dict": {"x.weight": torch.ones(2, 3)}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert torch.equal(read_content(path, trust_pickle=True)["state_dict"]["x.weight"], torch.ones(2, 3))
    if protocol == 3:
        assert load_model(path)[1] == content["meta"]
    else:
        fix = "write it again with torch.save, .*--trust-pickle"
        with pytest.raises(InputError, match=f"is written with pickle protocol {protocol}, .*; fix: {fix}"):
            load_model(path)


def test_a_tensor_that_repeats_one_number_without_end_is_refused(tmp_path):
    save_model(tmp_path / "model.pth", {"x": torch.zeros(1).expand(10**6, 10**6)}, {})
    with pytest.raises(InputError, match=r"tensor 'x' has 1,000,000,000,000 numbers"):
        load_model(tmp_path / "model.pth")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"model.pth: no such model"):
        load_model(tmp_path / "model.pth")


# Initial weights


def zoo_of(folder, kind, content):
    """A zoo of one file, which is in the folder."""
    path = write_published(folder, kind, content)
    schedule = {} if kind == "imagenet" else {"schedule": "2x"}
    row = ZooModel(name="one", kind=kind, backbone="r50", urls=(f"https://example.org/{path.name}",), **schedule)
    return {"one": row}


def classifier():
    """A body as torchvision publishes it: bare, without batch counters."""
    body = {key.removeprefix("backbone."): value for key, value in flat_state(SMALLEST, 1).items()}
    kept = {key: value for key, value in body.items() if key.startswith(("conv1", "bn1", "layer"))}
    old = {key: value for key, value in kept.items() if not key.endswith("num_batches_tracked")}
    return {**old, "fc.weight": torch.zeros(1000, 1), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "state_dict"])
def test_imagenet_goes_into_the_body_and_nowhere_else(tmp_path, model, untouched, wrapped):
    content = classifier()
    zoo = zoo_of(tmp_path, "imagenet", {"state_dict": content} if wrapped else content)
    said = load_initial_weights(model, "r50", "imagenet", zoo, tmp_path)
    row = zoo["one"]
    assert said == f"initial weights: the body of one, {row.file_name}, from {row.url}"
    brought = {BODY + key: value for key, value in content.items() if not key.startswith("fc.")}
    assert sum(key.startswith(BODY) for key in untouched) == len(brought) + 17  # batch counters
    assert same(model.state_dict(), untouched | brought)


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "bn1.bias"), r"1 missing \(bn1.bias\); allowed: a ResNet or ResNeXt of ImageNet"),
        (lambda state: state | {"head.bias": torch.zeros(1)}, r"1 unexpected \(head.bias\); allowed"),
        (
            lambda state: state | {"bn1.bias": torch.zeros(9)},
            r"1 of another shape \(bn1.bias \(9,\) instead of \(64,\)",
        ),
    ],
)
def test_a_body_that_does_not_fit_is_refused_and_nothing_loaded(tmp_path, model, untouched, change, message):
    zoo = zoo_of(tmp_path, "imagenet", change(classifier()))
    with pytest.raises(InputError, match=rf"imagenet-\w+.pth: keys do not fit: {message}"):
        load_initial_weights(model, "r50", "imagenet", zoo, tmp_path)
    assert same(model.state_dict(), untouched)


def test_coco_brings_all_but_the_class_layers(tmp_path, model, untouched, monkeypatch):
    said = []
    monkeypatch.setattr(weights_module.log, "info", lambda text, *values: said.append(text % values))
    content = flat_state(SMALLEST, 80)
    zoo = zoo_of(tmp_path, "coco", {"meta": {"CLASSES": ("person",) * 80}, "state_dict": content})
    row = zoo["one"]
    told = load_initial_weights(model, "r50", "coco", zoo, tmp_path)
    assert told == f"initial weights: all but the class layers of one, {row.file_name}, from {row.url}"
    brought = {key: value for key, value in to_ours(content).items() if not key.startswith(CLASS_LAYERS)}
    assert len(untouched) == len(brought) + 6  # three layers, each with weight and bias
    assert same(model.state_dict(), untouched | brought)
    (line,) = said
    assert line.startswith(f"{row.file_name} was trained on 80 classes; ")
    assert line.endswith(", ".join(layer for layer in CLASS_LAYERS if not layer.endswith("counters")))


def test_a_detector_of_another_backbone_is_refused_and_nothing_loaded(tmp_path, model, untouched):
    zoo = zoo_of(tmp_path, "coco", {"meta": {}, "state_dict": flat_state(BACKBONES["r50"], 80)})
    message = r"keys do not fit: \d+ unexpected \(backbone.body.layer1.1.conv1.weight.*; allowed: a Mask R-CNN of this"
    with pytest.raises(InputError, match=message):
        load_initial_weights(model, "r50", "coco", zoo, tmp_path)
    cut = without(flat_state(SMALLEST, 80), "neck.fpn_convs.3.conv.bias")
    zoo = zoo_of(tmp_path, "coco", {"meta": {}, "state_dict": cut})
    with pytest.raises(InputError, match=r"1 missing \(backbone.fpn.layer_blocks.3.0.bias\)"):
        load_initial_weights(model, "r50", "coco", zoo, tmp_path)
    assert same(model.state_dict(), untouched)


def test_a_damaged_file_is_refused(tmp_path, model, untouched):
    zoo = zoo_of(tmp_path, "imagenet", classifier())
    path = tmp_path / zoo["one"].file_name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"its SHA-256 begins with .*, so it is damaged or another file"):
        load_initial_weights(model, "r50", "imagenet", zoo, tmp_path)
    assert same(model.state_dict(), untouched)


def test_from_scratch_nothing_is_loaded(tmp_path, model, untouched):
    assert load_initial_weights(model, "r50", "none", {}, tmp_path) == "initial weights: none, trained from scratch"
    assert same(model.state_dict(), untouched)


def test_no_published_detector_of_this_backbone(tmp_path, model):
    with pytest.raises(InputError, match=r"model.weights: is coco, .* x101_64x4d; allowed: r50, r101, x101_32"):
        load_initial_weights(model, "x101_64x4d", "coco", load_zoo(DEFAULT_ZOO), tmp_path)


@pytest.mark.parametrize("kind", ["imagenet", "coco"])
def test_group_normalisation_has_no_published_weights(tmp_path, kind):
    grouped = network_on_meta(SMALLEST, 4, RECIPE.model_copy(update={"normalization": "group"}))
    with pytest.raises(
        InputError, match=f"model.normalization: is group, but the {kind} weights .*allowed: fixed_batch"
    ):
        load_initial_weights(grouped, "r50", kind, load_zoo(DEFAULT_ZOO), tmp_path)
    assert load_initial_weights(grouped, "r50", "none", {}, tmp_path)


def test_the_warning_is_gone_where_training_needs_no_fetching(tmp_path):
    zoo = zoo_of(tmp_path, "imagenet", {})
    row = zoo["one"]
    assert list(initial_warnings(zoo, [("imagenet", "r50")], tmp_path)) == []
    (absent,) = initial_warnings(zoo, [("imagenet", "r50")], tmp_path / "other")
    assert absent.startswith(f"model.weights: {row.file_name} is not in {tmp_path / 'other'}; training will fetch it")
    (never,) = initial_warnings(zoo, [("coco", "r50")], tmp_path)
    assert "allowed: no backbone with 'coco'; every backbone with 'none'" in never
    assert never.endswith("; its training will not start")


def test_a_disk_that_is_full_while_weights_are_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(args: argparse.Namespace) -> None:
        with Path("/dev/full").open("wb") as file:
            torch.save({"state_dict": torch.zeros(100_000)}, file)

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit, match="2"):
        run_step(step_parser("A step."), fill)
    assert capsys.readouterr().err == (
        "error: a disk: No space left on device; fix: make room, or write to another disk\n"
    )
