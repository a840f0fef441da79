"""Inference: shards that survive a kill, whoever makes them, and models that do not belong to the study."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from lvis_rcnn import infer
from lvis_rcnn.config.schema import Calibration
from lvis_rcnn.config.study import settings_digest
from lvis_rcnn.dataloader import batches as batches_module
from lvis_rcnn.dataloader.transforms import padded_size_hw
from lvis_rcnn.dataset.detections import (
    Detections,
    export_results,
    pack_rles,
    read_shard,
    read_shards,
    shard_path,
    shards_of,
    write_shard,
)
from lvis_rcnn.dataset.statistics import read_statistics
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.evaluate import evaluate
from lvis_rcnn.evaluation.calibration import logit_shifts
from lvis_rcnn.evaluation.scoring import Scoring
from lvis_rcnn.inference import detector, shards
from lvis_rcnn.model.mask_rcnn import ImageDetections, network_on_meta
from lvis_rcnn.model.weights import save_model
from lvis_rcnn.runs.inference import inferred
from lvis_rcnn.system.cli import InputError, log
from lvis_rcnn.system.files import sha256_of_file
from lvis_rcnn.training.distributed import Ranks
from tests.conftest import HANGS_S, REPOSITORY
from tests.helpers.few_detections import few_detections
from tests.helpers.tiny_run import (
    SMALL,
    SMALLEST,
    make_data,
    model_meta,
    tiny_study,
    write_calibration,
    write_tiny_study,
)

KEYS = {
    *("format", "version", "images", "masks", "batch_size", "device", "threads", "ranks", "resolution", "precision"),
    *("end_to_end_fps", "end_to_end_definition", "model_sha256", "annotations_sha256", "detections", "study"),
    *("detections_with_mask", "settings", "settings_digest", "code_version", "versions"),
}
ALONE = Ranks(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("smallest_body")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=2, val_images=7)


# One image


def test_boxes_return_to_the_original_by_each_axis_own_factor():
    boxes = detector.boxes_in_original(torch.tensor([[10.0, 10, 20, 40]]), (100, 50), (200, 25))
    assert boxes.tolist() == [[5, 20, 10, 80]]


def found(scores, labels, boxes):
    count = len(scores)
    return ImageDetections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores),
        torch.arange(count),
        torch.ones(count, 28, 28),
    )


def test_labels_become_ids_and_boxes_width_and_height():
    one = found([0.9, 0.4], [3, 1], [[2.0, 4.0, 10.0, 8.0], [0.0, 0.0, 4.0, 4.0]])
    detections = detector.image_detections(77, one, one.boxes_xyxy, (16, 20), np.array([4, 8, 15]))
    assert detections.image_ids.tolist() == [77, 77]
    assert detections.category_ids.tolist() == [15, 4]
    assert detections.scores.tolist() == pytest.approx([0.9, 0.4])
    assert detections.boxes_xywh.tolist() == [[2, 4, 8, 4], [0, 0, 4, 4]]
    assert rle.toBbox(detections.rle(0)).tolist() == [2, 4, 8, 4]
    assert rle.decode(detections.rle(1)).sum() == 16


def test_an_image_without_detections_has_no_row():
    nothing = found([], [], [])
    assert len(detector.image_detections(77, nothing, nothing.boxes_xyxy, (16, 20), np.array([4]))) == 0


# Runs


def run(drawn, model_path, folder, calibration=None, **changes):
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
        ALONE,
        calibration,
    )
    return study, json.loads((folder / "out" / "inference.json").read_text())


def test_a_test_set_without_annotations_becomes_a_results_file_for_the_server(drawn, model_path, tmp_path):
    dataset = json.loads((drawn.folder / "drawn" / "val.json").read_text())
    kept = {"id", "height", "width", "file_name", "coco_url"}
    images = [{key: image[key] for key in image.keys() & kept} for image in dataset["images"]]
    (tmp_path / "test.json").write_text(json.dumps({"images": images, "categories": dataset["categories"]}))
    test_set = replace(drawn, folder=tmp_path / "test_set")
    build_store(tmp_path / "test.json", test_set.val_store)
    (test_set.folder / "drawn").symlink_to(drawn.folder / "drawn")
    with pytest.raises(InputError, match=r"test.json has no annotations, .*; allowed: all"):
        run(test_set, model_path, tmp_path / "scored", inference={"masks": "scored"})
    _, record = run(test_set, model_path, tmp_path / "run")
    count = export_results(tmp_path / "run" / "out" / "detections", tmp_path / "results.json")
    assert count == record["detections"] > 0
    # What inference finds does not depend on annotations.
    run(drawn, model_path, tmp_path / "whole")
    assert contents(tmp_path / "run" / "out" / "detections") == contents(tmp_path / "whole" / "out" / "detections")
    metrics = evaluate(drawn.folder / "drawn" / "val.json", tmp_path / "results.json", Scoring())
    assert metrics["detections"] == count


FRACAL = {"method": "fracal", "base": 2.0}


def test_calibrated_detections_follow_from_those_without(drawn, model_path, tmp_path):
    """One region, of which nothing is dropped: its scores and that of the background sum to 1."""
    one_region = {"proposals_after_nms": 1, "score_threshold": 0.0, "nms_iou": 1.0, "detections_per_image": 30}
    table = write_calibration(tmp_path, open_store(drawn.val_store), 9)
    shifts = logit_shifts(Calibration(**FRACAL), read_statistics(table))
    scores = []
    for calibration in (None, FRACAL):
        study = tiny_study(tmp_path, inference={**one_region, "calibration": calibration})
        given = (study, "r50", model_path, drawn.val_store, drawn.images, ALONE.device, table if calibration else None)
        made = detector.make_detector(*given)
        (found,) = made.detect(made.images[[0]], [0])
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        scores.append(found.scores.double().numpy()[np.argsort(found.labels.numpy())])
    plain, calibrated = scores
    assert len(plain) == len(shifts)
    odds = plain * np.exp(shifts)
    assert calibrated == pytest.approx(odds / (odds.sum() + 1 - plain.sum()), rel=1e-4)
    assert np.argsort(calibrated).tolist() != np.argsort(plain).tolist()


def test_an_inference_by_another_table_is_another(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "detect", few_detections)
    settings = {"inference": {"calibration": FRACAL}}
    for most in (9, 8, 9):
        table = write_calibration(tmp_path, open_store(drawn.val_store), most)
        _, record = run(drawn, model_path, tmp_path / "run", calibration=table, **settings)
        assert set(record) == KEYS | {"calibration_sha256"}
        assert record["calibration_sha256"] == sha256_of_file(table)
    assert len(list((tmp_path / "run").rglob("infer-*"))) == 2


@pytest.mark.parametrize(
    ("settings", "is_given", "classification", "message"),
    [
        (
            FRACAL,
            False,
            "softmax",
            r"--calibration: is needed for inference\.calibration; .*; fix: write it with python",
        ),
        (
            None,
            True,
            "softmax",
            r"--calibration: is given, but the settings have no calibration; .*; fix: leave it out",
        ),
        (
            FRACAL,
            True,
            "softmax",
            r"calibration\.csv: has category 'a' in place of 'b'; allowed: the 2 of the model, in",
        ),
        (
            FRACAL,
            True,
            "seesaw",
            r"inference\.calibration: is undefined for this model, whose classification is seesaw",
        ),
    ],
)
def test_a_calibration_without_its_table_or_of_another_classifier_is_refused(
    tmp_path, settings, is_given, classification, message
):
    table = tmp_path / "calibration.csv"
    table.write_text("name,frequency,image_count,instance_count,images_of_split,fractal_dimension\na,r,1,1,2,1.5\n")
    model = network_on_meta(SMALLEST, 3, SMALL)
    model.settings = SimpleNamespace(classification=classification)
    given = (Calibration(**settings) if settings else None, table if is_given else None)
    with pytest.raises(InputError, match=message):
        detector.class_shifts(*given, ["b", "a"], model, torch.device("cpu"))


def contents(folder):
    return {path.name: path.read_bytes() for path in shards_of(folder)}


def test_a_small_run_records_what_the_table_and_a_reader_need(drawn, model_path, tmp_path):
    study, record = run(drawn, model_path, tmp_path)
    store = open_store(drawn.val_store)
    assert set(record) == KEYS
    assert (record["format"], record["version"], record["study"]) == ("lvis_rcnn.inference", 2, "tiny")
    assert (record["images"], record["batch_size"], record["ranks"], record["masks"]) == (7, 1, 1, "all")
    assert record["precision"] == "fp32 without TF32"
    assert record["end_to_end_fps"] > 0
    assert record["detections_with_mask"] == record["detections"]
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


def killed_after(images, detected):
    """``detector.detect`` that notes the images of each batch, and is interrupted when so many are detected."""
    detect = detector.detect

    def killed(model, batch, *given):
        if sum(map(len, detected)) >= images:
            raise KeyboardInterrupt
        detected.append(batch.image_ids)
        return detect(model, batch, *given)

    return killed


def test_killed_between_shards_it_goes_on_to_the_same_bytes(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 3)
    whole = run(drawn, model_path, tmp_path / "whole")[1]
    expected = contents(tmp_path / "whole" / "out" / "detections")
    assert list(expected) == ["shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]
    detected, detect = [], detector.detect

    with monkeypatch.context() as patch:
        patch.setattr(detector, "detect", killed_after(5, detected))
        with pytest.raises(KeyboardInterrupt):
            run(drawn, model_path, tmp_path / "killed")
    assert not (tmp_path / "killed" / "out").exists()
    detected.clear()
    monkeypatch.setattr(detector, "detect", lambda *given: detected.append(given[1].image_ids) or detect(*given))
    record = run(drawn, model_path, tmp_path / "killed")[1]
    assert len(detected) == 4  # shards 1 and 2
    assert contents(tmp_path / "killed" / "out" / "detections") == expected
    assert record["detections"] == whole["detections"]
    assert record["end_to_end_fps"] > 0


def test_shards_that_were_damaged_swapped_or_lack_their_clock_are_made_again(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 3)
    run(drawn, model_path, tmp_path / "run")
    expected = contents(tmp_path / "run" / "out" / "detections")
    (state_dir,) = (tmp_path / "run" / "state").rglob("infer-*")
    first, second, third = sorted(state_dir.glob("shard-*.npz"))
    (tmp_path / "run" / "out" / "detections" / first.name).write_bytes(b"cut")  # the same file by its other name
    shutil.copy(third, tmp_path / "third")
    second.unlink()
    shutil.copy(tmp_path / "third", second)
    third.with_suffix(".clock.json").write_text('{"images": 1, "wh')
    record = run(drawn, model_path, tmp_path / "run")[1]
    assert contents(tmp_path / "run" / "out" / "detections") == expected
    assert record["end_to_end_fps"] > 0


def test_killed_within_a_shard_it_goes_on_after_the_last_save(drawn, model_path, tmp_path, monkeypatch):
    """Whatever earlier code left: whole shards; and parts, of which one is damaged."""
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 5)
    batches = {"inference": {"batch_size": 2}}
    run(drawn, model_path, tmp_path / "whole", **batches)
    expected = contents(tmp_path / "whole" / "out" / "detections")
    monkeypatch.setattr(shards, "SECONDS_BETWEEN_SAVES", 0.0)
    detected, detect = [], detector.detect

    with monkeypatch.context() as patch:
        patch.setattr(detector, "detect", killed_after(3, detected))
        with pytest.raises(KeyboardInterrupt):
            run(drawn, model_path, tmp_path / "killed", **batches)
    (state_dir,) = (tmp_path / "killed").rglob("infer-*")
    assert not list(state_dir.glob("shard-*"))
    assert inferred(state_dir).saved == sum(map(len, detected))
    damaged, *others = sorted(state_dir.glob("part-*.npz"))
    assert others
    damaged.write_bytes(damaged.read_bytes()[:-40])
    before = {image for images in detected for image in images}
    detected.clear()
    monkeypatch.setattr(detector, "detect", lambda *given: detected.append(given[1].image_ids) or detect(*given))
    record = run(drawn, model_path, tmp_path / "killed", **batches)[1]
    assert 7 - len(before) < sum(map(len, detected)) < 7
    assert contents(tmp_path / "killed" / "out" / "detections") == expected
    assert not list(state_dir.glob("part-*"))
    clocks = [json.loads(path.read_text()) for path in state_dir.glob("*.clock.json")]
    assert sum(clock["images"] for clock in clocks) == 7
    assert record["end_to_end_fps"] > 0


def test_a_console_that_is_no_terminal_and_the_log_say_now_and_then_how_far_it_is(
    drawn, model_path, tmp_path, monkeypatch
):
    lines = []
    monkeypatch.setattr(shards, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(detector, "detect", few_detections)
    monkeypatch.setattr(log, "isEnabledFor", lambda level: True)
    monkeypatch.setattr(log, "log", lambda level, text, *values: lines.append(text % values))
    run(drawn, model_path, tmp_path / "short")
    assert not lines
    monkeypatch.setattr(shards, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(shards, "MOST_LINES", 10**9)
    run(drawn, model_path, tmp_path / "long")
    assert len(lines) == 7
    assert re.fullmatch(r"inferring r50: 5/7, \d+\.\d images/s, 0s left", lines[5])


def test_finished_shards_are_exported_again_and_not_inferred(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 4)
    first = run(drawn, model_path, tmp_path)[1]
    expected = contents(tmp_path / "out" / "detections")
    (tmp_path / "out" / "inference.json").unlink()
    monkeypatch.setattr(detector, "detect", None)
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


# Masks that no score reads


def test_only_masks_that_are_scored_are_made_and_they_are_the_same(drawn, model_path, tmp_path):
    run(drawn, model_path, tmp_path / "all")
    _, record = run(drawn, model_path, tmp_path / "scored", inference={"masks": "scored"})
    whole, some = (read_shards(tmp_path / name / "out" / "detections") for name in ("all", "scored"))
    store = open_store(drawn.val_store)
    position = {image_id: index for index, image_id in enumerate(store.image_ids.tolist())}
    names = ("image_ids", "category_ids", "scores", "boxes_xywh", "mask_sizes")
    assert all(np.array_equal(getattr(whole, name), getattr(some, name)) for name in names)
    ids = np.array([0, *(category.id for category in store.categories)])
    looked_for = {image: set(ids[detector.scored_labels(store, index)]) for image, index in position.items()}
    pairs = zip(some.image_ids.tolist(), some.category_ids.tolist(), strict=True)
    assert some.has_mask.tolist() == [category in looked_for[image] for image, category in pairs]
    assert 0 < some.has_mask.sum() == record["detections_with_mask"] < record["detections"]
    assert record["masks"].startswith("scored: ")
    for row in np.flatnonzero(some.has_mask).tolist():
        assert some.rle(row) == whole.rle(row)


def near_the_truth(store, seed):
    """Detections about the objects of a set, of their categories or of others, with masks that fill their boxes."""
    random = np.random.default_rng(seed)
    ids = np.array([category.id for category in store.categories])
    images = np.sort(random.integers(0, store.num_images, 60)).tolist()
    objects = [random.choice(np.arange(len(store.labels))[store.annotations_of(image)]) for image in images]
    boxes = np.maximum(store.boxes_xywh[objects] + random.normal(0, 1.5, (60, 4)), 1).round()
    labels = np.where(random.random(60) < 0.6, store.labels[objects], random.integers(1, len(ids) + 1, 60))
    sizes = [(int(store.heights[image]), int(store.widths[image])) for image in images]
    polygons = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in boxes.tolist()]
    masks = [rle.merge(rle.frPyObjects(one, *size)) for one, size in zip(polygons, sizes, strict=True)]
    scores = random.random(60).astype(np.float32)
    packed = pack_rles(masks)
    whole = Detections(store.image_ids[images], ids[labels - 1], scores, boxes.astype(np.float32), *packed)
    known = [
        label in detector.scored_labels(store, image).tolist() for label, image in zip(labels, images, strict=True)
    ]
    left = [mask if keep else {**mask, "counts": b""} for mask, keep in zip(masks, known, strict=True)]
    *fields, _ = pack_rles(left)
    return whole, replace(
        whole, **dict(zip(("mask_sizes", "rle_offsets", "rle_counts"), fields, strict=True)), has_mask=np.array(known)
    )


@settings(max_examples=6, phases=[Phase.generate])
@given(st.integers(0, 10**6), st.sampled_from([3, 300]))
def test_no_score_depends_on_masks_that_are_left_out(drawn, tmp_path_factory, seed, cap):
    folder = tmp_path_factory.mktemp("both")
    found = []
    for name, detections in zip(("all", "scored"), near_the_truth(open_store(drawn.val_store), seed), strict=True):
        write_shard(shard_path(folder / name, 0), detections)
        found.append(evaluate(drawn.folder / "drawn" / "val.json", folder / name, Scoring(cap, official="yes")))
    whole, some = found
    assert whole["segm"]["AP"] > 0
    assert some["detections_without_mask"] > 0 == whole["detections_without_mask"]
    for same in ("bbox", "segm", "per_category", "judged_detections"):
        assert some[same] == whole[same]


def test_a_mask_that_is_needed_and_was_left_out_is_said(drawn, tmp_path):
    _, some = near_the_truth(open_store(drawn.val_store), 0)
    write_shard(shard_path(tmp_path / "found", 0), some)
    truth = json.loads((drawn.folder / "drawn" / "val.json").read_text())
    for image in truth["images"]:
        image["neg_category_ids"] = [category["id"] for category in truth["categories"]]
    (tmp_path / "other.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match=r"result \d+ .*has no mask: .*fix: infer with inference.masks: all"):
        evaluate(tmp_path / "other.json", tmp_path / "found", Scoring())


# Batches


def test_batches_share_a_padded_size_and_change_nothing_but_rounding(drawn, model_path, tmp_path):
    run(drawn, model_path, tmp_path / "alone")
    _, record = run(drawn, model_path, tmp_path / "batches", inference={"batch_size": 3})
    alone, batches = (read_shards(tmp_path / name / "out" / "detections") for name in ("alone", "batches"))
    assert record["batch_size"] == 3
    assert np.array_equal(alone.image_ids, batches.image_ids)  # in the order of annotations, whatever the batches
    assert np.array_equal(alone.category_ids, batches.category_ids)
    np.testing.assert_allclose(batches.scores, alone.scores, atol=1e-5)
    np.testing.assert_allclose(batches.boxes_xywh, alone.boxes_xywh, atol=1e-3)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), unique=True), st.integers(1, 4))
def test_every_image_is_in_one_batch_with_its_like(drawn, positions, most):
    images = batches_module.TestImages(drawn.val_store, drawn.images, 64, 96)
    batches = images.batches(positions, most)
    assert sorted(chain.from_iterable(batches)) == sorted(positions)
    for batch in batches:
        assert len(batch) <= most
        assert len({padded_size_hw(images.size_hw(image)) for image in batch}) == 1


def test_precision_is_asked_for_and_said(drawn, model_path, tmp_path, monkeypatch):
    types = []

    def noted(*given):
        types.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return few_detections(*given)

    monkeypatch.setattr(detector, "detect", noted)
    _, full = run(drawn, model_path, tmp_path / "full", compute={"precision": "bf16"})
    assert set(types) == {None}  # the precision of training is another setting
    _, half = run(drawn, model_path, tmp_path / "half", inference={"precision": "bf16"})
    assert types[7:] == 7 * [torch.bfloat16]
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    _, fast = run(drawn, model_path, tmp_path / "fast", inference={"precision": "tf32"})
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "tf32"
    records = [full["precision"], half["precision"][:13], fast["precision"][:14]]
    assert records == ["fp32 without TF32", "bf16 autocast", "fp32 with TF32"]


# Models that do not belong here


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backbone": "r101"}, "is a model of r101; allowed: r50; fix: name the model"),
        ({"CLASSES": ("cup",)}, "has 1 categories; allowed: the 26 of the annotations"),
        ({"CLASSES": None}, "does not say .*; allowed: a model.pth"),
    ],
    ids=["backbone", "number of categories", "another project"],
)
def test_a_model_of_something_else_is_refused(drawn, tmp_path, changes, expected):
    meta = model_meta(open_store(drawn.val_store), **changes)
    meta = {key: value for key, value in meta.items() if value is not None}
    save_model(tmp_path / "model.pth", {}, meta)
    with pytest.raises(InputError, match=f"model.pth: {expected}"):
        run(drawn, tmp_path / "model.pth", tmp_path)


def test_categories_in_another_order_are_refused(drawn, tmp_path):
    store = open_store(drawn.val_store)
    names = [category.name for category in store.categories]
    swapped = (names[1], names[0], *names[2:])
    save_model(tmp_path / "model.pth", {}, model_meta(store, CLASSES=swapped))
    with pytest.raises(InputError, match=f"has category '{names[1]}' in place of '{names[0]}'"):
        run(drawn, tmp_path / "model.pth", tmp_path)


def test_weights_of_another_normalisation_are_refused(drawn, model_path, tmp_path):
    with pytest.raises(InputError, match=r"its weights do not fit.*; allowed: .*normalization, group"):
        run(drawn, model_path, tmp_path, model={"normalization": "group"})


# The command


def arguments(drawn, model_path, study, folder):
    paths = [drawn.val_store, drawn.images, folder / "state", folder / "out"]
    options = [f"{name}={path}" for name, path in zip(("--store", "--images", "--state", "--out"), paths, strict=True)]
    return ["--study", str(study), "--run=r50/seed0", "--model", str(model_path), *options]


def test_a_gpu_that_is_not_there_is_said(drawn, model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    study = write_tiny_study(tmp_path, compute={"device": "cuda"})
    monkeypatch.setattr(sys, "argv", ["infer", *arguments(drawn, model_path, study, tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        infer.main()
    assert "compute.device: is cuda, but torch " in capsys.readouterr().err


INTERRUPTED = """
from lvis_rcnn import infer
from lvis_rcnn.config import schema
from lvis_rcnn.inference import shards

schema.BACKBONES["r50"] = schema.Backbone("R-14-FPN", "r14_fpn", (1, 1, 1, 1), groups=1, width_per_group=64)
shards.IMAGES_PER_SHARD = 1
infer.main()
"""


@pytest.mark.parametrize(
    ("run", "message"),
    [("../../x", "run ../../x: is not one of the study"), ("r50/seed9", "run r50/seed9: is not one")],
)
def test_a_run_that_is_not_of_the_study_is_refused(drawn, model_path, tmp_path, monkeypatch, capsys, run, message):
    words = arguments(drawn, model_path, write_tiny_study(tmp_path), tmp_path)
    monkeypatch.setattr(sys, "argv", ["infer", *words, f"--run={run}"])
    with pytest.raises(SystemExit, match="2"):
        infer.main()
    assert f"run {run}: is not one of the study; allowed: r50/seed0" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


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
    error = process.communicate(timeout=HANGS_S)[1]
    assert (process.returncode, error) == (130, "error: interrupted\n")
