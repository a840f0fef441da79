"""Files of MMDetection: checked when read, refused with a reason, written as published; and the commands."""

import functools
import gzip
import http.server
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lvis_rcnn import fetch
from lvis_rcnn import weights as weights_module
from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.dataset.store import build_store
from lvis_rcnn.inference.standalone import load_standalone
from lvis_rcnn.model.class_names import name_notes
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.mmdet import MmdetFile, converted, read_mmdet, to_ours, write_mmdet
from lvis_rcnn.model.mmdet_config import mmdet_meta
from lvis_rcnn.model.weights import load_model, save_model
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import sha256_of_file
from tests.conftest import REPOSITORY
from tests.helpers.flat_weights import flat_state, same, write_old, write_published
from tests.reference.golden_figures import RECIPE

R50 = BACKBONES["r50"]
NAMES = ("bear", "cup", "kite")
TRAINED = {"epoch": 24, "iter": 12, "seed": 7, "time": "Sun Jan 21 2024", "hook_msgs": {}}
# What 2.x and 3.x write beside the weights.
META_2X = {**TRAINED, "mmdet_version": "2.3.0", "config": "model = dict()", "CLASSES": NAMES}
META_3X = {
    **TRAINED,
    "mmengine_version": "0.10.3",
    "cfg": "model = dict(backbone=dict(style='pytorch'))",
    "dataset_meta": {"classes": NAMES, "palette": [(1, 2, 3)] * 3},
}


class HistoryBuffer:
    """Stands for what a training of 3.x leaves in its checkpoints."""


@pytest.fixture(scope="module")
def state():
    return flat_state(R50, 3)


@pytest.fixture
def store(tmp_path):
    """An annotation store of the three categories, as small as may be."""
    image = {"id": 1, "height": 9, "width": 9, "file_name": "1.jpg"}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    categories = [{"id": place, "name": name, "frequency": "f"} for place, name in enumerate(NAMES, start=1)]
    box = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 4, 4], "area": 16}
    annotations = [{**box, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}]
    dataset = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(dataset))
    build_store(tmp_path / "a.json", tmp_path / "a.store")
    return tmp_path / "a.store"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; what it said."""

    def ended(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, words)])
        if code:
            with pytest.raises(SystemExit) as exit_:
                weights_module.main()
            assert exit_.value.code == code
        else:
            weights_module.main()
        return capsys.readouterr().err

    return ended


def refused(path, message, **options):
    with pytest.raises(InputError, match=message):
        read_mmdet(path, **options)


def content_of(state, meta=META_2X):
    return {"meta": meta, "state_dict": state}


@pytest.mark.parametrize(("meta", "version"), [(META_2X, "2.3.0"), (META_3X, None)], ids=["2.x", "3.x"])
def test_a_published_file_is_read(tmp_path, state, meta, version):
    path = write_published(tmp_path, "mask_rcnn_r50_fpn", content_of(state, meta))
    assert not zipfile.is_zipfile(path)
    file = read_mmdet(path)
    assert same(file.state, state)
    assert (file.classes, file.num_categories, file.mmdet_version) == (NAMES, 3, version)
    assert file.config.texts == [meta.get("config", meta.get("cfg"))]
    assert file.sha256 == sha256_of_file(path)
    assert same(converted(file, "r50", 3), to_ours(state))
    assert name_notes(str(path), file.classes, NAMES) == []


def test_the_checkpoint_of_a_training_wants_trust(tmp_path, state, monkeypatch):
    path = tmp_path / "epoch_24.pth"
    torch.save({**content_of(state, META_3X), "message_hub": {"loss": HistoryBuffer()}}, path)
    refused(path, rf"{__name__}.HistoryBuffer.*; fix: .*--trust-pickle$")
    assert same(read_mmdet(path, trust_pickle=True).state, state)
    monkeypatch.delattr(sys.modules[__name__], "HistoryBuffer")
    refused(path, r"HistoryBuffer.*; fix: install its package", trust_pickle=True)


def test_an_object_of_a_package_that_is_not_installed(tmp_path, monkeypatch):
    absent = types.ModuleType("absent_package")
    absent.Thing = type("Thing", (), {"__module__": "absent_package"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "absent_package", absent)
        torch.save({"a": absent.Thing()}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "absent_package.Thing")
    refused(tmp_path / "a.pth", "not installed: No module named 'absent_package'", trust_pickle=True)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "folder", "missing"])
def test_no_file_of_weights(tmp_path, damage):
    path = tmp_path / "a.pth"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        whole = write_old(path, content_of({"a": torch.zeros(1000)})).read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>404</html>", "empty": b""}[damage])
    expected = {"missing": "no such file; fix", "folder": r"is a folder; fix: name the file of weights \(.pth\) in it"}
    expected |= {"text": "is an HTML page", "empty": r"is empty \(0 bytes\); fix: download it again"}
    refused(path, f"a.pth: {expected.get(damage, 'cannot be read .*; fix: download it again')}")


def zip_with(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({"model": {"a": np.zeros(1)}, "__author__": "x"}),
            "is a plain pickle, as detectron2 .*; fix: name",
        ),
        (pickle.dumps({"a": 1}, protocol=2), "is a plain pickle"),
        (len(HEADER).to_bytes(8, "little") + HEADER + bytes(4), "is a safetensors file; fix: convert it: torch.save"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html>", "is an HTML page"),
        (gzip.compress(b"x", mtime=0), "is compressed with gzip; .*fix: unpack it"),
        (zip_with("a.jpg", "b.jpg"), "is a zip of a.jpg, b.jpg; fix: unpack it"),
        (zip_with(), "is a zip of nothing"),
        (zip_with("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "is a TorchScript program; fix: name the file"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image; fix: name the model first, then the pictures"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG image; fix: name the model first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras writes; fix: name a file of MMDetection"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + bytes(100), "is an ONNX file; fix: name a file of MMDetection"),
        (b"\x93NUMPY\x01\0" + bytes(100), "is an array of NumPy; fix: name a file of MMDetection"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a pointer of Git LFS.*; fix: .*git lfs pull",
        ),
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_a_file_of_another_program_is_recognised_and_says_nothing_else(tmp_path, capfd, content, message, trusted):
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", f"a.pth: {message}", trust_pickle=trusted)
    assert capfd.readouterr() == ("", "")


def test_a_tar_archive_is_recognised(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.add(REPOSITORY / "pyproject.toml", "pyproject.toml")
    refused(tmp_path / "a.pth", "is a tar archive; fix: unpack it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}},
            "is a model of detectron2, another network",
        ),
        ({"backbone.body.conv1.weight": torch.ones(1)}, "is a model of torchvision, another network; allowed: a Mask"),
        ({"conv1.weight": torch.ones(1)}, "is bare weights, as ImageNet classifiers have, another network"),
        (
            {"meta": {"backbone": "r50"}, "state_dict": {"backbone.body.conv1.weight": torch.ones(1)}},
            "is a model of lvis_rcnn already.*; fix: use it as it is",
        ),
    ],
)
def test_weights_of_other_programs_are_recognised(tmp_path, content, message):
    refused(write_old(tmp_path / "a.pth", content), message)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, state, run, number):
    bad = state["neck.fpn_convs.0.conv.bias"].clone()
    bad[3] = number
    path = write_old(tmp_path / "a.pth", content_of({**state, "neck.fpn_convs.0.conv.bias": bad}))
    message = rf"1 of {len(state)} tensors hold NaN or infinity \(neck.fpn_convs.0.conv.bias\)"
    refused(path, message)
    assert re.search(f"import     no: .*{message}", run("show", path))
    save_model(tmp_path / "model.pth", {"backbone.body.a": bad}, {"backbone": "r50"})
    assert "1 of 1 tensors hold NaN or infinity (backbone.body.a); fix" in run("show", tmp_path / "model.pth", code=2)


BIAS, VARIANCE = "neck.fpn_convs.0.conv.bias", "backbone.bn1.running_var"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            5,
            torch.ones(1),
            "tensor 5 has a key that is not a text; allowed: dense .*; fix: save its weights as float32",
        ),
        (b"a", torch.ones(1), "tensor b'a' has a key that is not a text"),
        (BIAS, torch.ones(256).to_sparse(), f"tensor '{BIAS}' is sparse or nested"),
        (BIAS, torch.ones(256, device="meta"), "has a shape, but no numbers"),
        (BIAS, torch.complex(torch.ones(256), torch.ones(256)), "holds complex numbers"),
        (BIAS, torch.ones(256, dtype=torch.int8), "holds whole numbers of 8 bits"),
        (
            BIAS,
            torch.full((256,), 1e300, dtype=torch.float64),
            r"1 of 3\d\d tensors hold numbers that are infinite as f",
        ),
        (VARIANCE, torch.full((64,), -1.0), r"1 of 3\d\d tensors hold variances below 0"),
        (BIAS, None, rf"tensor '{BIAS}' has None \(NoneType\) in its place"),
    ],
    ids=["number", "bytes", "sparse", "meta", "complex", "int8", "float64", "variance", "none"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_that_no_network_takes_are_refused(tmp_path, state, run, key, value, message):
    path = tmp_path / "a.pth"
    torch.save(content_of({**state, key: value}), path)
    refused(path, message)
    assert re.search(message, run("show", path, code=0 if "tensors hold" in message else 2))
    torch.save(content_of({"backbone.body.a": torch.ones(1), key: value}), tmp_path / "model.pth")
    with pytest.raises(InputError, match=message.replace(r"3\d\d", "2")):
        load_model(tmp_path / "model.pth")


def test_numbers_of_8_bits_in_an_old_file_and_pipes_are_named(tmp_path):
    old = write_old(tmp_path / "a.pth", {"a": torch.ones(3).to(torch.float8_e4m3fn)})
    refused(
        old, "tensors of a type that files of torch before 1.6 cannot hold, as of 8 bits; fix: save its weights as f"
    )
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a pipe or a device, and weights are read twice; fix: write it to a file")
    refused(Path("/dev/zero"), "is a pipe or a device")
    with pytest.raises(InputError, match="is a pipe or a device"):
        load_model(tmp_path / "pipe")


def averaged(state):
    """With the copies of mmcv's EMAHook, all 0 here."""
    copies = {f"ema_{key.replace('.', '_')}": torch.zeros(()).expand(value.shape) for key, value in state.items()}
    return {**copies, **state}


def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (lambda state: content_of(prefixed(state)), ["its keys began with module."]),
        (lambda state: content_of(averaged(state)), ["360 averages (EMA) beside the weights are ignored"]),
        (lambda state: content_of(prefixed(averaged(state))), ["its keys began with module.", "360 averages"]),
        (lambda state: dict(state), ["the file does not name its classes", "the file has no config"]),
        (lambda state: {**content_of(state), "ema_state_dict": {"steps": torch.ones(())}}, []),
        (lambda state: content_of(state, {"dataset_meta": "x"}), ["the file does not name its c", "the file has no c"]),
        (lambda state: content_of(state, {**META_2X, "config": {"model": {"backbone": {"style": "pytorch"}}}}), []),
    ],
    ids=["DataParallel", "EMA", "both", "bare", "EMA of 3.x", "dataset_meta", "config as a dictionary"],
)
def test_weights_are_imported_from_what_surrounds_them(tmp_path, state, store, run, content, notes):
    path = write_old(tmp_path / "a.pth", content(state))
    said = run("import", path, "--backbone", "r50", "--store", store, "--out", tmp_path / "model.pth").splitlines()
    for line, note in zip(said, notes, strict=False):
        assert line.startswith(f"note: {note}")
    assert len(said) == len(notes) + 1
    assert same(load_model(tmp_path / "model.pth")[0], to_ours(state))
    assert "import     yes, with --backbone r50 and annotations of 3 categories" in run("show", path)


def test_a_bare_state_dict_of_caffe_style_is_refused(tmp_path, state):
    folded = {**state, "backbone.bn1.running_mean": torch.zeros(64)}
    refused(write_old(tmp_path / "a.pth", folded), r'are weights of "caffe" style \(the mean of its first layer is 0\)')
    read_mmdet(write_old(tmp_path / "b.pth", content_of(folded)))  # its config says RGB
    said = {"config": "a = 1  # not style='caffe', nor NormedLinear"}
    assert read_mmdet(write_old(tmp_path / "c.pth", content_of(state, said))).heads == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list; allowed: a dictionary with a state_dict"),
        ({}, "has no state_dict, but nothing; allowed: a checkpoint of MMDetection"),
        ({"conv1.weight": torch.zeros(1), "b": 1, "c": 2, "d": 3}, "has no state_dict, but conv1.weight, b, c, …; all"),
        ({"state_dict": {"a": 1}, "meta": {}}, "has no state_dict, but state_dict, meta"),
    ],
)
def test_another_content(tmp_path, content, message):
    refused(write_old(tmp_path / "a.pth", content), message)


def test_the_digest_in_the_name_is_held_to(tmp_path, state):
    path = write_published(tmp_path, "a", content_of(state))
    digest = path.stem[-8:]
    read_mmdet(path)
    refused(path.rename(tmp_path / "a-0123abcd.pth"), rf"begins with {digest}, so it is damaged.*; allowed: 0123abcd")


@pytest.mark.parametrize(("mean", "is_taken"), [((123.675, 116.28, 103.53), True), ((-123.675, 116.28, 103.53), False)])
def test_the_normalisation_beside_the_weights_is_held_to(tmp_path, state, mean, is_taken):
    kept = {"data_preprocessor.mean": torch.tensor(mean).view(3, 1, 1)}
    path = write_old(tmp_path / "a.pth", content_of({**state, **kept}))
    if is_taken:
        assert same(converted(read_mmdet(path), "r50", 3), to_ours(state))
    else:
        refused(path, r"expects other pixels: mean=\[-123")


def test_two_lists_of_classes_that_differ_are_refused(tmp_path, state):
    meta = {"CLASSES": ("a", "b", "c"), "dataset_meta": {"classes": ["a", "c", "b"]}}
    path = write_old(tmp_path / "a.pth", content_of(state, meta))
    with pytest.raises(InputError, match=r"names its classes twice \(CLASSES, dataset_meta\), not the same"):
        converted(read_mmdet(path), "r50", 3)


@pytest.mark.parametrize(
    ("state_1x", "version", "sign"),
    [
        ({}, "1.2.0+abc", r"its mmdet_version is 1\.2\.0\+abc"),
        ({"bbox_head.fc_cls.bias": torch.zeros(4)}, "", "its keys begin with bbox_head or mask_head"),
        (
            {f"roi_head.bbox_head.fc_{key}.bias": torch.zeros(rows) for key, rows in (("cls", 4), ("reg", 16))},
            "2.0.0",
            "it predicts boxes for the background",
        ),
    ],
)
def test_the_first_version_is_refused(tmp_path, state_1x, version, sign):
    path = write_old(tmp_path / "a.pth", content_of(state_1x, {"mmdet_version": version}))
    refused(
        path, f"MMDetection 1.x: {sign}; allowed: 2.x or 3.x; fix: name a file that 2.x or 3.x .*do not use its upg"
    )


@pytest.mark.parametrize(
    ("held", "backbone", "classes", "message"),
    [
        (("r101", 3), "r50", 3, "is a model of r101; allowed: r50; fix: use --backbone r101"),
        (("r50", 4), "r50", 3, "has 4 classes; allowed: 3.*; fix: name the file, or the annotations"),
        (("r50", 1230), "r50", 1203, r"has 1230 classes; .* August 2020.*mmdetection#3593"),
        (("r50", 1203), "r50", 1230, "has 1203 classes; .* fix: name the file, or the annotations, of the same"),
    ],
)
def test_another_model_than_wanted(held, backbone, classes, message):
    file = MmdetFile(Path("a.pth"), "", flat_state(BACKBONES[held[0]], held[1]), {})
    assert converted(file, *held)
    with pytest.raises(InputError, match=f"^a.pth: {message}"):
        converted(file, backbone, classes)


def test_keys_that_do_not_fit(state):
    other = {key: value for key, value in state.items() if key != "rpn_head.rpn_cls.bias"}
    file = MmdetFile(Path("a.pth"), "", other | {"extra": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=r"1 missing \(rpn_head.rpn_cls.bias\), 1 unexpected \(extra\); allowed: R-50"):
        converted(file, "r50", 3)


def test_a_bias_without_a_dimension_does_not_fit(tmp_path, state):
    torch.save(content_of({**state, "roi_head.bbox_head.fc_cls.bias": torch.tensor(1.0)}), tmp_path / "a.pth")
    with pytest.raises(InputError, match="has 0 classes"):
        converted(read_mmdet(tmp_path / "a.pth"), "r50", 3)


def test_names_of_another_number_and_no_names(tmp_path, state, run):
    path, message = tmp_path / "a.pth", "names 2 classes, but has weights of 3"
    torch.save(content_of(state, {**META_2X, "CLASSES": NAMES[1:]}), path)
    with pytest.raises(InputError, match=message):
        converted(read_mmdet(path), "r50", 3)
    assert f"import     no: {path}: {message}" in run("show", path)
    assert "does not name its classes" in name_notes("a.pth", None, NAMES)[0]


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_written_is_read_as_the_same(tmp_path, name):
    theirs = flat_state(BACKBONES[name], 3)
    meta = {"backbone": name, "CLASSES": NAMES, "seed": 5, "steps": 90}
    shuffled = dict(reversed(to_ours(theirs).items()))
    path = write_mmdet(tmp_path / "out.pth", shuffled, meta, publish=False)
    assert path == tmp_path / "out.pth"
    assert not zipfile.is_zipfile(path)
    file = read_mmdet(path)
    assert list(file.state) == list(theirs)
    assert same(file.state, theirs)
    assert (file.classes, file.meta["dataset_meta"], file.meta["seed"]) == (NAMES, {"classes": NAMES}, 5)
    assert file.meta["iter"] == 90


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("r50", {"type": "ResNet", "depth": 50}),
        ("r101", {"type": "ResNet", "depth": 101}),
        ("x101_32x4d", {"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 4}),
        ("x101_64x4d", {"type": "ResNeXt", "depth": 101, "groups": 64, "base_width": 4}),
    ],
)
def test_the_config_written_is_python_that_says_what_the_network_is(name, body):
    scope = {}
    exec(mmdet_meta(BACKBONES[name], NAMES, {}, {})["cfg"], scope)
    assert scope["model"]["backbone"] == {**body, "style": "pytorch"}
    heads = scope["model"]["roi_head"]
    assert (heads["bbox_head"]["num_classes"], heads["mask_head"]["num_classes"]) == (3, 3)


@pytest.mark.parametrize(
    "meta", [{}, {"backbone": "r50"}, {"backbone": "r18", "CLASSES": NAMES}, {"backbone": "r50", "CLASSES": [1, 2, 3]}]
)
def test_a_model_that_does_not_say_what_it_is_is_not_written(tmp_path, meta, state):
    with pytest.raises(InputError, match=r"model: does not say its backbone and classes; allowed: a model.pth of"):
        write_mmdet(tmp_path / "out.pth", to_ours(state), meta, publish=False)
    assert list(tmp_path.iterdir()) == []


def test_the_anchors_of_a_study_are_written_and_read(tmp_path, state):
    meta = {"backbone": "r50", "CLASSES": NAMES, "settings": {"model": {"anchor_scale": 4.0}}}
    path = write_mmdet(tmp_path / "out.pth", to_ours(state), meta, publish=False)
    assert "anchor_generator=dict(type='AnchorGenerator', scales=[4.0], " in torch.load(path)["meta"]["cfg"]
    assert read_mmdet(path).heads == {"anchor_scale": 4.0}
    assert load_standalone(path, torch.device("cpu")).model.rpn.anchor_scale == 4.0
    for odd in (0, -4.0, float("nan"), float("inf"), "4", None):
        with pytest.raises(InputError, match=r"model: says of its heads: .*; anchor_scale above 0"):
            write_mmdet(path, to_ours(state), {**meta, "settings": {"model": {"anchor_scale": odd}}}, publish=False)


@pytest.mark.parametrize("odd", [{"heads": ["seesaw"]}, {"settings": {"model": {"box_classifier": "cosine"}}}])
def test_a_model_that_says_odd_things_of_its_heads_is_not_written(tmp_path, state, odd):
    with pytest.raises(InputError, match=r"model: says of its heads: .*(seesaw|cosine).*; allowed: classification sof"):
        write_mmdet(tmp_path / "out.pth", to_ours(state), {"backbone": "r50", "CLASSES": NAMES, **odd}, publish=False)
    for settings in ("text", ["model"], {"model": None}):
        meta = {"backbone": "r50", "CLASSES": NAMES, "settings": settings}
        assert write_mmdet(tmp_path / "out.pth", to_ours(state), meta, publish=False).exists()


def test_a_model_of_other_shapes_is_not_written(tmp_path, state):
    with pytest.raises(InputError, match=r"model: keys do not fit: .* allowed: R-101-FPN, 3 classes"):
        write_mmdet(tmp_path / "out.pth", to_ours(state), {"backbone": "r101", "CLASSES": NAMES}, publish=True)
    assert list(tmp_path.iterdir()) == []


def test_import_then_export_as_commands(tmp_path, state, store, run):
    path = write_published(
        tmp_path, "mask_rcnn_r50_fpn", content_of(state, {**META_2X, "CLASSES": ("bär", *NAMES[1:])})
    )
    model, report, log = (tmp_path / name for name in ("model.pth", "report.json", "import.log"))
    words = ["import", path, "--backbone", "r50", "--store", store, "--out", model, "--report", report, "--log", log]
    said = run(*words)
    note = "class 0 is 'bär' in the file, 'bear' in the annotations"
    assert said.splitlines() == [f"note: {note}", f"wrote {model}: r50, 3 categories, from {path.name}"]
    assert f"note: {note}" in log.read_text()

    weights, meta = load_model(model)
    with torch.device("meta"):
        network = MaskRcnn(R50, 4, RECIPE)
    network.load_state_dict(weights, assign=True)
    source = {"file": path.name, "sha256": sha256_of_file(path), "mmdet_version": "2.3.0", "mmengine_version": None}
    source |= {key: TRAINED[key] for key in ("epoch", "iter", "seed", "time")}
    assert (meta["backbone"], meta["CLASSES"], meta["source"]) == ("r50", NAMES, source)
    record = json.loads(report.read_text())
    assert record["notes"] == [note]
    assert record["model_sha256"] == sha256_of_file(model)
    assert source.items() <= record.items()

    said = run("export", model, "--out", tmp_path / "mask_rcnn.pth", "--publish")
    (written,) = tmp_path.glob("mask_rcnn-*.pth")
    assert said == f"wrote {written}\n"
    assert written.name == f"mask_rcnn-{sha256_of_file(written)[:8]}.pth"
    assert not (tmp_path / "mask_rcnn.pth").exists()
    assert same(read_mmdet(written).state, state)


def test_import_with_a_number_of_categories(tmp_path, state, run):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    path = write_old(tmp_path / "a.pth", content_of(old, META_3X))
    words = ["import", path, "--backbone", "r50", "--out", tmp_path / "model.pth", "--categories"]
    assert "a.pth: names 3 classes, not 4; fix: name the annotations with --store" in run(*words, 4, code=2)
    assert not (tmp_path / "model.pth").exists()
    assert "note: the file has no num_batches_tracked: 53 are set to 0" in run(*words, 3)
    weights, meta = load_model(tmp_path / "model.pth")
    assert meta["CLASSES"] == NAMES
    assert weights.keys() == to_ours(state).keys()


def test_commands_refuse_in_one_line(tmp_path, state, store, run):
    trained = tmp_path / "epoch_1.pth"
    torch.save({**content_of(state), "message_hub": HistoryBuffer()}, trained)
    words = ["import", trained, "--backbone", "r50", "--store", store, "--out", tmp_path / "model.pth"]
    assert run(*words, code=2).count("\n") == 1
    assert "wrote" in run(*words, "--trust-pickle")
    save_model(tmp_path / "bare.pth", {}, {})
    said = run("export", tmp_path / "bare.pth", "--out", tmp_path / "b.pth", code=2)
    assert said.startswith("error: model: does not say its backbone and classes")
    said = run(*words[:4], "--out", tmp_path / "b.pth", code=2)
    assert "one of the arguments --store --categories is required" in said


def test_show_says_what_a_file_is(tmp_path, state, run):
    path = write_published(tmp_path, "a", content_of(state))
    said = run("show", path)
    digest = sha256_of_file(path)
    numbers = f"{sum(value.numel() for value in state.values()):,}"
    for line in (
        f"sha256     {digest}, as in its name",
        "kind       a model of MMDetection 2.3.0",
        "backbone   r50",
        f"tensors    {len(state)}, {numbers} numbers",
        "keys       backbone.conv1.weight, backbone.bn1.weight, backbone.bn1.bias, …",
        "classes    3: bear, cup, kite",
        "epoch      24",
        "import     yes, with --backbone r50 and annotations of 3 categories",
    ):
        assert line in said.splitlines()
    said = run("show", path.rename(tmp_path / "a-0123abcd.pth"))
    assert f"sha256     {digest}, DIFFERS from its name, 0123abcd" in said
    assert f"import     no: {tmp_path / 'a-0123abcd.pth'}: its SHA-256 begins with {digest[:8]}" in said
    body = {key: value for key, value in state.items() if "fc_cls" not in key}
    assert "import     no: " in (said := run("show", write_old(tmp_path / "b.pth", content_of(body))))
    assert "b.pth: has no classifier of boxes" in said
    said = run(
        "show",
        write_old(
            tmp_path / "a.pth", content_of(state, {**META_3X, "cfg": "model = dict(backbone=dict(style='caffe'))"})
        ),
    )
    assert "none in its name" in said
    assert "a model of MMDetection 3.x" in said
    assert (
        f'import     no: {tmp_path / "a.pth"}: are weights of "caffe" style (its config says model.backbone.style'
        in said
    )


def test_show_of_a_model_and_of_bare_weights(tmp_path, state, run):
    save_model(tmp_path / "model.pth", to_ours(state), {"backbone": "r50", "CLASSES": NAMES})
    said = run("show", tmp_path / "model.pth")
    assert "kind       a model of lvis_rcnn\nbackbone   r50\n" in said
    assert "import" not in said
    bare = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    said = run("show", write_old(tmp_path / "resnet50.pth", bare))
    assert "kind       bare weights, as ImageNet classifiers have\nbackbone   r50\n" in said
    assert "cannot be read as a file of weights" in run("show", REPOSITORY / "README.md", code=2)
    assert f"error: {tmp_path}: is a folder; fix: name the file" in run("show", tmp_path, code=2)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        """Nothing."""


def test_fetch_as_a_user_does(tmp_path):
    (tmp_path / "served").mkdir()
    served = write_published(tmp_path / "served", "a", {"a": torch.zeros(3)})
    handler = functools.partial(Quiet, directory=str(served.parent))
    row = {"name": "a_r50", "kind": "imagenet", "backbone": "r50"}
    folder = tmp_path / "weights"
    command = [sys.executable, "-m", "lvis_rcnn.fetch", "--zoo", tmp_path / "zoo.yaml"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        row["urls"] = [f"http://127.0.0.1:{server.server_port}/{served.name}"]
        (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({"models": [row]}))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = [*command, "--weights", "a_r50", "--out", folder]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    path, size_bytes = folder / served.name, served.stat().st_size
    assert done.stderr.splitlines() == [
        f"downloading {path}: has 0 of {size_bytes:,} bytes",
        f"downloaded {path}: {size_bytes:,} bytes",
        f"{path} is complete",
    ]
    assert (folder / served.name).read_bytes() == served.read_bytes()


def test_fetch_of_a_name_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fetch", "--weights", "lvis_v2_r50", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        fetch.main()
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "error: --weights lvis_v2_r50: is not in " in said
    assert "; allowed: lvis_v0.5_r50, lvis_v0.5_r101, " in said
