"""Detection in a user's own pictures: results, drawn copies, a line for each, and what cannot be read."""

import json
import os
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lvis_rcnn import detect
from lvis_rcnn.config.study import settings_of_step
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.inference.detector import make_detector
from lvis_rcnn.inference.standalone import NamedCategory, load_standalone
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.mmdet import PUBLISHED, write_mmdet
from lvis_rcnn.model.weights import load_model, save_model
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import sha256_of_file
from tests.helpers.tiny_run import SMALLEST, make_data, model_meta, tiny_study, write_calibration

CPU = torch.device("cpu")
ALL_OF_FEW = ("--score-threshold", 0, "--detections-per-image", 7)
pytestmark = pytest.mark.usefixtures("smallest_body")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=2, val_images=3)


@pytest.fixture(scope="module")
def model(drawn, model_path, tmp_path_factory):
    """The untrained model as training writes it now, with its settings."""
    folder = tmp_path_factory.mktemp("with_settings")
    state, _ = load_model(model_path)
    store, settings = open_store(drawn.val_store), settings_of_step(tiny_study(folder), "infer", with_defaults=True)
    save_model(folder / "model.pth", state, model_meta(store, settings=settings, run_digest="0"))
    return folder / "model.pth"


def run(monkeypatch, *words: object) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["detect", *map(str, words)])
    try:
        detect.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def results(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "results.json").read_text())


def test_pictures_of_all_sources_are_detected_drawn_and_named_and_a_broken_one_is_left_out(
    drawn, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    paths = sorted(drawn.images.rglob("*.png"))[:3]
    with zipfile.ZipFile("more.zip", "w") as archive:
        archive.write(paths[0], "deep/one.png")
    Path("own").mkdir()
    Path("own/two.png").write_bytes(paths[1].read_bytes())
    Path("own/broken.jpg").write_bytes(b"\xff\xd8 no picture")
    words = ("own", "more.zip", "--out", "found", "--device", "cpu", "--log", "log.txt")
    assert run(monkeypatch, model, *words, *ALL_OF_FEW) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert all(line in Path("log.txt").read_text() for line in lines)
    assert [line.split(":")[0] for line in lines] == ["own/two.png", "more.zip/deep/one.png"]
    assert all("7 detections (" in line for line in lines)
    assert "left out: own/broken.jpg: is no complete image" in printed.err
    assert printed.err.splitlines()[-1].startswith("error: 1 of 3 pictures: left out, the first: own/broken.jpg")
    assert sorted(path.as_posix() for path in Path("found").rglob("*.png")) == ["found/deep/one.png", "found/two.png"]
    with Image.open("found/two.png") as picture, Image.open(paths[1]) as original:
        assert picture.width == -(-460 // max(original.size)) * original.width
    found = results(tmp_path / "found")
    names = [category.name for category in open_store(drawn.val_store).categories]
    assert {(one["image_id"], one["file_name"]) for one in found} == {(2, "own/two.png"), (3, "more.zip/deep/one.png")}
    assert all(names[one["category_id"] - 1] == one["category_name"] for one in found)
    assert len(found) == 14
    assert list(found[0]) == [
        *("image_id", "file_name", "category_id", "category_name"),
        *("score", "bbox", "segmentation"),
    ]


def test_a_name_that_cannot_be_shown_or_written_costs_no_other_picture(drawn, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("found/b.png").mkdir(parents=True)
    for name in (b"a.png", b"b.png", b"\xff.png", b"m" * 251 + b".png"):
        Path(os.fsdecode(name)).symlink_to(next(drawn.images.rglob("*.png")))
    names = [Path(os.fsdecode(name)) for name in (b"a.png", b"b.png", b"\xff.png", b"m" * 251 + b".png")]
    assert run(monkeypatch, model, *names, "--out", "found", "--device", "cpu", *ALL_OF_FEW) == 2
    printed = capsys.readouterr()
    assert [line.split(": 7 ")[0] for line in printed.out.splitlines()] == ["a.png", "\ufffd.png", f"{names[3]}"]
    assert {one["image_id"] for one in results(Path("found"))} == {1, 3, 4}
    assert sorted(os.listdir("found"))[2] == "m" * 241 + ".png"
    assert (
        "left out: found/b.png: cannot be written (Is a directory); fix: name another folder with --out" in printed.err
    )


def test_a_picture_of_the_dataset_has_the_detections_that_inference_makes_of_it(drawn, model, tmp_path):
    study = tiny_study(tmp_path)
    store = open_store(drawn.val_store)
    detector = make_detector(study, "r50", model, drawn.val_store, drawn.images, CPU)
    network = load_standalone(model, CPU)
    file = detector.images.files.of(store, 1)
    theirs = detector.detections(detector.images[[1]], [1])[0]
    ours = network.detections(detect.read_image_bgr(file), int(store.image_ids[1]), None)
    assert len(ours) > 3
    for name, value in vars(theirs).items():
        # Ids of the file are not those of the model, which numbers its names.
        wanted = 1 + np.searchsorted(sorted(c.id for c in store.categories), value) if name == "category_ids" else value
        assert np.array_equal(getattr(ours, name), wanted), name


def test_a_turned_photograph_is_detected_upright(model, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((40, 90, 3), 128, np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    words = (tmp_path / "turned.jpg", "--out", tmp_path / "found", "--device", "cpu")
    assert run(monkeypatch, model, *words, *ALL_OF_FEW) == 0
    assert {tuple(one["segmentation"]["size"]) for one in results(tmp_path / "found")} == {(90, 40)}


def test_only_wanted_categories_are_kept_and_as_many_as_are_asked_for(drawn, model, tmp_path, monkeypatch, capsys):
    folder = drawn.images
    names = [category.name for category in open_store(drawn.val_store).categories]
    words = (folder, "--out", tmp_path / "found", "--device", "cpu")
    assert run(monkeypatch, model, *words, *ALL_OF_FEW, "--limit", 2, "--categories", names[3], names[8]) == 0
    found = results(tmp_path / "found")
    assert {one["category_name"] for one in found} <= {names[3], names[8]}
    assert len(found) == 14  # of many boxes
    assert run(monkeypatch, model, *words, "--categories", f"{names[3]}s") == 2
    message = f"--categories {names[3]}s: is no category of this model; allowed: 26 names, among them {names[3]}"
    assert message in capsys.readouterr().err
    assert run(monkeypatch, model, *words, "--limit", 1, "--score-threshold", 1) == 0
    assert results(tmp_path / "found") == []
    assert "no detections; " in capsys.readouterr().out


def test_a_large_photograph_is_drawn_small_and_its_boxes_stay_in_its_pixels(model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(pixels, (2501, 1500)))
    words = (tmp_path / "large.png", "--out", tmp_path / "found", "--device", "cpu")
    assert run(monkeypatch, model, *words, *ALL_OF_FEW) == 0
    with Image.open(tmp_path / "found" / "large.png") as picture:
        assert picture.width == 834
    boxes = np.array([one["bbox"] for one in results(tmp_path / "found")])
    assert (boxes[:, 0] + boxes[:, 2]).max() > 834


def write_categories(path: Path, names: list[str]) -> Path:
    """Annotations of COCO with ids of their own."""
    path.write_text(json.dumps({"categories": [{"id": 100 + at, "name": name} for at, name in enumerate(names)]}))
    return path


def test_a_file_of_mmdetection_has_its_names_or_those_of_annotations(drawn, tmp_path, monkeypatch, capsys):
    names = ["cup", "kite", "bear"]
    torch.manual_seed(0)
    state = MaskRcnn(SMALLEST, 4, PUBLISHED).state_dict()
    write_mmdet(tmp_path / "theirs.pth", state, {"backbone": "r50", "CLASSES": tuple(names)}, publish=False)
    network = load_standalone(tmp_path / "theirs.pth", CPU)
    assert ([one.name for one in network.categories], network.test.short_edge_px) == (names, 800)
    assert torch.equal(network.model.state_dict()["rpn.head.cls_logits.bias"], state["rpn.head.cls_logits.bias"])
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    content["meta"] = {"config": content["meta"]["cfg"]}
    content["state_dict"]["rpn_head.rpn_conv.bias"] = torch.arange(256, dtype=torch.int16)  # exact in float32
    torch.save(content, tmp_path / "nameless.pth")
    with pytest.raises(InputError, match=r"does not name its categories; fix: .*--annotations FILE"):
        load_standalone(tmp_path / "nameless.pth", CPU)
    categories = detect.read_categories(write_categories(tmp_path / "coco.json", names))
    named = load_standalone(tmp_path / "nameless.pth", CPU, categories=categories)
    assert [(one.id, one.name) for one in named.categories] == [(100, "cup"), (101, "kite"), (102, "bear")]
    assert torch.equal(named.model.state_dict()["rpn.head.conv.0.0.bias"], torch.arange(256.0))
    (tmp_path / "bad.json").write_text('{"categories": [{"id": 1}]}')
    with pytest.raises(InputError, match=r"categories\[0\] \(id 1\): missing field name"):
        detect.read_categories(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"categories": [{"id": 1, "name": "cup"}, {"id": 1.0, "name": "bear"}]}')
    with pytest.raises(InputError, match=r"bad.json: category 1: category id is repeated"):
        detect.read_categories(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"categories": []}')
    with pytest.raises(InputError, match=r"bad.json: has no categories"):
        detect.read_categories(tmp_path / "bad.json")
    (tmp_path / "lax.json").write_text('{"info": NaN, "categories": [{"id": 1.0, "name": 5, "name": "cup"}]}')
    assert detect.read_categories(tmp_path / "lax.json") == [NamedCategory(1, "cup")]


def test_all_categories_of_a_name_are_wanted():
    categories = [NamedCategory(place, name) for place, name in enumerate(["cup", "kite", "cup"])]
    assert detect.wanted_labels(categories, ["kite", "cup"]).tolist() == [2, 1, 3]


def test_ids_are_those_of_the_annotations_and_names_must_be_the_models(drawn, model, tmp_path):
    store = open_store(drawn.val_store)
    network = load_standalone(model, CPU, categories=detect.read_categories(drawn.val_store))
    assert [one.id for one in network.categories] == [category.id for category in store.categories]
    other = detect.read_categories(write_categories(tmp_path / "other.json", ["cup"] * 26))
    with pytest.raises(InputError, match=r"has category '.*' in place of 'cup'"):
        load_standalone(model, CPU, categories=other)


def test_a_calibrated_study_needs_the_table_here_too(drawn, model, tmp_path, monkeypatch, capsys):
    table = write_calibration(tmp_path, open_store(drawn.val_store), 9)
    study = tiny_study(tmp_path, inference={"calibration": {"method": "norcal", "gamma": 1.0}})
    network = load_standalone(model, CPU, study=study, calibration=table)
    detector = make_detector(study, "r50", model, drawn.val_store, drawn.images, CPU, table)
    assert network.shifts is not None
    assert torch.equal(network.shifts, detector.shifts)
    assert network.shifts[0] == 0 > network.shifts.min()
    words = (drawn.images, "--out", tmp_path / "found", "--study", tmp_path / "tiny.yaml", "--limit", 1)
    assert run(monkeypatch, model, *words) == 2
    assert "error: --calibration: is needed for inference.calibration; " in capsys.readouterr().err
    assert run(monkeypatch, model, *words, "--calibration", table, *ALL_OF_FEW) == 0
    plain = run(monkeypatch, model, drawn.images, "--out", tmp_path / "plain", "--limit", 1, *ALL_OF_FEW)
    assert plain == 0
    assert results(tmp_path / "found") != results(tmp_path / "plain")


def test_settings_come_from_the_model_or_the_record_beside_it_or_its_study(drawn, model_path, tmp_path):
    state, meta = load_model(model_path)
    save_model(tmp_path / "model.pth", state, {**meta, "run_digest": "an older one"})
    study = tiny_study(tmp_path)
    with pytest.raises(InputError, match=r"does not say the settings .*; fix: put the inference.json of its run"):
        load_standalone(tmp_path / "model.pth", CPU)
    assert load_standalone(tmp_path / "model.pth", CPU, study=study).test == study.inference
    record = {
        "format": "lvis_rcnn.inference",
        "version": 2,
        "detections": 1,
        "model_sha256": sha256_of_file(tmp_path / "model.pth"),
        "settings": settings_of_step(study, "infer", with_defaults=True),
    }
    (tmp_path / "inference.json").write_text(json.dumps(record))
    network = load_standalone(tmp_path / "model.pth", CPU)
    assert (network.test, network.model.settings) == (study.inference, study.model)
    other = tiny_study(tmp_path, inference={"nms_iou": 0.25, "score_threshold": 0.5})
    with pytest.raises(
        InputError, match=r"inference.json: says its own settings.* of study tiny: inference.nms_iou 0.5, not"
    ):
        load_standalone(tmp_path / "model.pth", CPU, study=other)
    # Those of another model do not count.
    (tmp_path / "inference.json").write_text(json.dumps({**record, "model_sha256": "0"}))
    with pytest.raises(InputError, match="does not say the settings"):
        load_standalone(tmp_path / "model.pth", CPU)
    assert load_standalone(tmp_path / "model.pth", CPU, study=other).test == other.inference


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"backbone": ["r50"]}, r"is a model of \['r50'\]; allowed: r50, "),
        ({"backbone": {}}, "is a model of {}; allowed: r50, "),
        ({"CLASSES": 5}, "does not say what it was trained for"),
        ({"CLASSES": [["cup"]]}, r"has category \['cup'\] in place of"),
        ({"heads": "seesaw"}, "says of its heads: seesaw; allowed: classification softmax or seesaw; box_classifier"),
        ({"heads": {"mask_predictor": None}}, "says of its heads: {'mask_predictor': None}; allowed: .*; fix: import "),
        ({"heads": {"anchor_scale": 0}}, "says of its heads: {'anchor_scale': 0}; allowed: .*anchor_scale above 0"),
    ],
)
def test_a_model_that_says_odd_things_of_itself_is_one_line(model_path, tmp_path, odd, message):
    state, meta = load_model(model_path)
    save_model(tmp_path / "model.pth", state, {**meta, **odd})
    with pytest.raises(InputError, match=message):
        load_standalone(tmp_path / "model.pth", CPU)


def test_a_study_does_not_overrule_the_recipe_of_an_imported_model(model_path, tmp_path):
    state, meta = load_model(model_path)
    save_model(tmp_path / "model.pth", state, {key: meta[key] for key in ("backbone", "CLASSES")})
    study = tiny_study(tmp_path, model={"anchor_scale": 4.0, "box_classifier": "normalised"})
    network = load_standalone(tmp_path / "model.pth", CPU, study=study)
    assert (network.test, network.model.settings) == (study.inference, PUBLISHED)


def test_a_study_does_not_overrule_what_a_model_says(model, tmp_path):
    other = tiny_study(tmp_path, inference={"nms_iou": 0.25, "score_threshold": 0.5})
    with pytest.raises(
        InputError, match=r"model.pth: says its own .* study tiny: inference.nms_iou 0.5, not 0.25; fix: l"
    ):
        load_standalone(model, CPU, study=other)
