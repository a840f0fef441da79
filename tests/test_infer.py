"""Inference: masks pasted by hand, shards that survive a kill, and models that do not belong to the study."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from tiny_run import SMALLEST, make_data, tiny_study, write_tiny_study

from lvis_rcnn import infer
from lvis_rcnn.annotations import open_store
from lvis_rcnn.checkpoints import save_model
from lvis_rcnn.command import InputError
from lvis_rcnn.config import settings_digest
from lvis_rcnn.detections import read_shard, read_shards, shards_of
from lvis_rcnn.files import sha256_of_file
from lvis_rcnn.model.mask_rcnn import ImageDetections, MaskRcnn
from lvis_rcnn.train import network_settings

KEYS = {
    *("format", "version", "fps", "fps_definition", "images", "warmup_images", "batch_size", "device", "threads"),
    *("resolution", "precision", "end_to_end_fps", "model_sha256", "annotations_sha256", "detections", "study"),
    *("settings_digest", "code_version", "versions"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def smallest_body(monkeypatch):
    monkeypatch.setitem(infer.BACKBONES, "r50", SMALLEST)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=2, val_images=7)


@pytest.fixture(scope="module")
def model_path(drawn, tmp_path_factory):
    """An untrained model: it finds something everywhere."""
    folder = tmp_path_factory.mktemp("model")
    store = open_store(drawn.val_store)
    torch.manual_seed(0)
    model = MaskRcnn(SMALLEST, store.num_labels, network_settings(tiny_study(folder)))
    save_model(folder / "model.pth", model.state_dict(), meta_of(store))
    return folder / "model.pth"


def meta_of(store, **changes):
    names = tuple(category.name for category in store.categories)
    return {"backbone": "r50", "seed": 0, "CLASSES": names, **changes}


# Masks


def paste(probabilities, box, height, width):
    return infer.paste_mask(torch.as_tensor(probabilities, dtype=torch.float32), torch.tensor(box), height, width)


def test_a_full_mask_fills_its_box():
    expected = np.zeros((20, 30), dtype=bool)
    expected[4:12, 5:25] = True
    assert np.array_equal(paste(torch.ones(28, 28), [5.0, 4.0, 25.0, 12.0], 20, 30), expected)


def test_a_half_mask_fills_half_its_box():
    probabilities = torch.zeros(28, 28)
    probabilities[:, :14] = 1
    expected = np.zeros((20, 40), dtype=bool)
    expected[2:18, 4:18] = True
    assert np.array_equal(paste(probabilities, [4.0, 2.0, 32.0, 18.0], 20, 40), expected)


def test_an_empty_mask_pastes_nothing():
    assert not paste(torch.full((28, 28), 0.49), [0.0, 0.0, 30.0, 20.0], 20, 30).any()


def test_what_lies_outside_the_image_is_cut_off():
    bitmap = paste(torch.ones(28, 28), [-10.0, -5.0, 8.0, 40.0], 20, 30)
    expected = np.zeros((20, 30), dtype=bool)
    expected[:, :8] = True
    assert np.array_equal(bitmap, expected)


@pytest.mark.parametrize(
    "box",
    [[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0], [5.25, 5.25, 5.25, 5.25], [30.0, 20.0, 30.0, 20.0], [0.0] * 4],
    ids=str,
)
def test_a_box_without_area_is_no_error(box):
    assert paste(torch.ones(28, 28), box, 20, 30).sum() <= 1


def test_a_box_inside_one_pixel_covers_it_if_it_holds_its_centre():
    assert paste(torch.ones(28, 28), [5.4, 5.4, 5.6, 5.6], 20, 30).nonzero() == (5, 5)
    assert not paste(torch.ones(28, 28), [5.0, 5.0, 5.1, 5.1], 20, 30).any()


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(4, 60), st.integers(4, 60)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.integers(0, 2**32 - 1),
)
def test_masks_stay_within_one_pixel_of_their_box(size, fractions, seed):
    height, width = size
    x0, x1 = sorted(fraction * width for fraction in fractions[:2])
    y0, y1 = sorted(fraction * height for fraction in fractions[2:])
    probabilities = torch.rand(28, 28, generator=torch.Generator().manual_seed(seed))
    rows, columns = paste(probabilities, [x0, y0, x1, y1], height, width).nonzero()
    assert ((rows + 1 >= y0 - 1) & (rows <= y1 + 1)).all()
    assert ((columns + 1 >= x0 - 1) & (columns <= x1 + 1)).all()


def test_boxes_return_to_the_original_by_each_axis_own_factor():
    boxes = infer.boxes_in_original(torch.tensor([[10.0, 10, 20, 40]]), (100, 50), (200, 25))
    assert boxes.tolist() == [[5, 20, 10, 80]]


def found(scores, labels, boxes):
    count = len(scores)
    return ImageDetections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores),
        torch.ones(count, 28, 28),
    )


def test_labels_become_ids_and_boxes_width_and_height():
    one = found([0.9, 0.4], [3, 1], [[2.0, 4.0, 10.0, 8.0], [0.0, 0.0, 4.0, 4.0]])
    masks = infer.masks_of(one, one.boxes_xyxy, (16, 20))
    detections = infer.image_detections(77, one, one.boxes_xyxy, masks, np.array([4, 8, 15]))
    assert detections.image_ids.tolist() == [77, 77]
    assert detections.category_ids.tolist() == [15, 4]
    assert detections.scores.tolist() == pytest.approx([0.9, 0.4])
    assert detections.boxes_xywh.tolist() == [[2, 4, 8, 4], [0, 0, 4, 4]]
    assert rle.toBbox(detections.rle(0)).tolist() == [2, 4, 8, 4]
    assert rle.decode(detections.rle(1)).sum() == 16


def test_an_image_without_detections_has_no_row():
    nothing = found([], [], [])
    masks = infer.masks_of(nothing, nothing.boxes_xyxy, (16, 20))
    assert len(infer.image_detections(77, nothing, nothing.boxes_xyxy, masks, np.array([4]))) == 0


# Runs


def run(drawn, model_path, folder, **changes):
    folder.mkdir(exist_ok=True)
    study = tiny_study(folder, **changes)
    infer.infer(
        study,
        "r50",
        model_path,
        drawn.val_store,
        drawn.images,
        folder / "state" / "tiny" / "r50" / "seed0",
        folder / "out",
    )
    return study, json.loads((folder / "out" / "inference.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in shards_of(folder)}


def test_a_small_run_records_what_the_table_and_a_reader_need(drawn, model_path, tmp_path):
    study, record = run(drawn, model_path, tmp_path)
    store = open_store(drawn.val_store)
    assert set(record) == KEYS
    assert (record["format"], record["version"], record["study"]) == ("lvis_rcnn.inference", 1, "tiny")
    assert (record["images"], record["warmup_images"], record["batch_size"]) == (7, 5, 1)
    assert record["fps"] > record["end_to_end_fps"] > 0
    assert record["model_sha256"] == sha256_of_file(model_path)
    assert record["annotations_sha256"] == store.annotations_sha256
    assert record["settings_digest"] == settings_digest(study, "infer")
    detections = read_shards(tmp_path / "out" / "detections")
    assert 0 < record["detections"] == len(detections) <= 7 * study.inference.detections_per_image
    assert set(detections.category_ids.tolist()) <= {category.id for category in store.categories}
    position = {image_id: index for index, image_id in enumerate(store.image_ids.tolist())}
    order = [position[image_id] for image_id in detections.image_ids.tolist()]
    assert order == sorted(order)
    for image, index in position.items():
        rows = detections.image_ids == image
        scores = detections.scores[rows].tolist()
        assert scores == sorted(scores, reverse=True)
        height, width = int(store.heights[index]), int(store.widths[index])
        assert (detections.mask_sizes[rows] == [height, width]).all()
        ends = detections.boxes_xywh[rows, :2] + detections.boxes_xywh[rows, 2:]
        assert (ends <= np.array([width, height]) + 0.01).all()


def test_killed_between_shards_it_goes_on_to_the_same_bytes(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "IMAGES_PER_SHARD", 3)
    whole = run(drawn, model_path, tmp_path / "whole")[1]
    expected = contents(tmp_path / "whole" / "out" / "detections")
    assert list(expected) == ["shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]
    detected, detect = [], infer.detect

    def killed(model, batch):
        if len(detected) == 5:
            raise KeyboardInterrupt
        detected.append(batch.image_ids)
        return detect(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(infer, "detect", killed)
        with pytest.raises(KeyboardInterrupt):
            run(drawn, model_path, tmp_path / "killed")
    assert not (tmp_path / "killed" / "out").exists()
    detected.clear()
    monkeypatch.setattr(infer, "detect", lambda model, batch: detected.append(batch.image_ids) or detect(model, batch))
    record = run(drawn, model_path, tmp_path / "killed")[1]
    assert len(detected) == 4  # shards 1 and 2
    assert contents(tmp_path / "killed" / "out" / "detections") == expected
    assert record["detections"] == whole["detections"]
    assert record["fps"] > 0


def test_finished_shards_are_exported_again_and_not_inferred(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "IMAGES_PER_SHARD", 4)
    first = run(drawn, model_path, tmp_path)[1]
    expected = contents(tmp_path / "out" / "detections")
    (tmp_path / "out" / "inference.json").unlink()
    monkeypatch.setattr(infer, "detect", None)
    again = run(drawn, model_path, tmp_path)[1]
    assert contents(tmp_path / "out" / "detections") == expected
    assert again == first


@pytest.mark.slow
def test_shards_of_other_settings_are_not_mixed_in(drawn, model_path, tmp_path):
    run(drawn, model_path, tmp_path)
    _, record = run(drawn, model_path, tmp_path, inference={"detections_per_image": 2})
    assert record["detections"] <= 2 * 7
    assert len(list((tmp_path / "state" / "tiny" / "r50" / "seed0").iterdir())) == 2


def test_nothing_found_is_a_result(drawn, model_path, tmp_path):
    _, record = run(drawn, model_path, tmp_path, inference={"score_threshold": 1.0})
    assert record["detections"] == 0
    assert len(read_shard(tmp_path / "out" / "detections" / "shard-00000.npz")) == 0


# Models that do not belong here


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backbone": "r101"}, "is a model of r101; allowed: r50; to mend: name the model"),
        ({"CLASSES": ("cup",)}, "knows 1 categories; allowed: the 26 of the annotations"),
        ({"CLASSES": None}, "says of itself nothing we know; allowed: a model.pth of lvis_rcnn.train"),
    ],
    ids=["backbone", "number of categories", "another project"],
)
def test_a_model_of_something_else_is_refused(drawn, tmp_path, changes, expected):
    meta = meta_of(open_store(drawn.val_store), **changes)
    meta = {key: value for key, value in meta.items() if value is not None}
    save_model(tmp_path / "model.pth", {}, meta)
    with pytest.raises(InputError, match=f"model.pth: {expected}"):
        run(drawn, tmp_path / "model.pth", tmp_path)


def test_categories_in_another_order_are_refused(drawn, tmp_path):
    store = open_store(drawn.val_store)
    names = [category.name for category in store.categories]
    swapped = (names[1], names[0], *names[2:])
    save_model(tmp_path / "model.pth", {}, meta_of(store, CLASSES=swapped))
    with pytest.raises(InputError, match=f"knows category '{names[1]}' in the place of '{names[0]}'"):
        run(drawn, tmp_path / "model.pth", tmp_path)


def test_weights_of_another_normalisation_are_refused(drawn, model_path, tmp_path):
    with pytest.raises(InputError, match=r"its weights are those of another network; allowed: .*normalization, group"):
        run(drawn, model_path, tmp_path, model={"normalization": "group"})


# The command


def arguments(drawn, model_path, study, folder):
    paths = [drawn.val_store, drawn.images, folder / "state", folder / "out"]
    options = [f"{name}={path}" for name, path in zip(("--store", "--images", "--state", "--out"), paths, strict=True)]
    return ["--study", str(study), "--backbone", "r50", "--run=r50/seed0", "--model", str(model_path), *options]


def test_a_gpu_that_is_not_there_is_said(drawn, model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    study = write_tiny_study(tmp_path, compute={"device": "cuda"})
    monkeypatch.setattr(sys, "argv", ["infer", *arguments(drawn, model_path, study, tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        infer.main()
    assert "compute.device: is cuda, but torch " in capsys.readouterr().err


def test_the_help_is_readable(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["infer", "--help"])
    with pytest.raises(SystemExit, match="0"):
        infer.main()
    text = capsys.readouterr().out
    assert "streamed to disk as shards" in text
    assert "model.pth of the training step" in text


INTERRUPTED = """
from lvis_rcnn import infer
from lvis_rcnn.backbones import Backbone

infer.BACKBONES["r50"] = Backbone("R-14-FPN", "r14_fpn", (1, 1, 1, 1), groups=1, width_per_group=64)
infer.IMAGES_PER_SHARD = 1
infer.main()
"""


@pytest.mark.slow
def test_ctrl_c_is_one_line(drawn, model_path, tmp_path):
    study = write_tiny_study(tmp_path, resources={"loader_workers": 1})
    words = arguments(drawn, model_path, study, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *words], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "state").rglob("shard-00000.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (130, "error: interrupted\n")
