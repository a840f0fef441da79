"""Identity of a run, and the files it leaves under the names the page uses."""

import hashlib
import json
import os
import re
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from lvis_rcnn.config.study import DEFAULT_ZOO, load_study, settings_digest
from lvis_rcnn.config.zoo import load_zoo
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.model.weights import load_model
from lvis_rcnn.runs import identity
from lvis_rcnn.training.checkpoint import Saver, load_checkpoint
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.run import Run, export, finish, published_stem, scientific
from lvis_rcnn.training.solver import make_recipe
from tests.helpers.tiny_run import make_data, tiny_study, write_tiny_study

ZOO = load_zoo(DEFAULT_ZOO)

KEYS = """
    format version study backbone seed settings settings_digest run_digest annotations_sha256 num_categories steps
    images_seen images_per_step epoch_length epochs normalisation_group skipped_images broken_images initial_weights
    memory_gb memory_definition device ranks threads precision resolution elapsed_s started_at finished_at attempts
    passes cost model_file model_sha256 log_file versions code_version image_order
"""
STEM = r"mask_rcnn_r50_fpn_sample5e-2_6it_tiny_seed3_\d{8}_\d{6}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=2, val_images=1)


@pytest.fixture
def run(drawn, tmp_path):
    return make_run(drawn, tmp_path)


def make_run(drawn, folder, seed=3, backbone="r50", **changes):
    study = tiny_study(folder, **changes)
    return Run(study, backbone, seed, drawn.train_store, drawn.images, drawn.repeat_factors, folder / "state", zoo=ZOO)


@pytest.fixture
def finished(run):
    """A run whose record says: 6 steps of 2 images, an epoch of 8, started long before it ended."""
    run.state_dir.mkdir(parents=True)
    (run.state_dir / "log.json").write_text('{"step": 6}\n')
    Saver(run.state_dir, 0).save(6, {"step": 6})
    assert load_checkpoint(run.state_dir) == {"step": 6}
    # 6 steps of an epoch of 8 images.
    stream = SampleStream(np.ones(8), "ceil", np.zeros(8, bool), 3, group_size=2, groups_per_step=1)
    progress = Progress(
        step=6,
        elapsed_s=12.5,
        peak_memory_bytes=2**31,
        attempts=2,
        started_at=1e9,
        broken_images=["a", "b"],
        skipped_images=4,
    )
    vars(run)["recipe"] = make_recipe(run.study.schedule, stream)
    finish(run, {"weight": torch.arange(4.0)}, progress)
    return run


def test_the_record_has_the_keys_the_table_and_a_reader_need(finished):
    record = json.loads((finished.state_dir / "train.json").read_text())
    assert set(record) == set(KEYS.split())
    assert (record["format"], record["version"]) == ("lvis_rcnn.run", 1)
    assert (record["study"], record["backbone"], record["seed"]) == ("tiny", "r50", 3)
    assert record["settings_digest"] == settings_digest(finished.study, "train")
    assert record["settings"]["schedule"]["images_per_step"] == finished.study.schedule.images_per_step
    assert record["settings"]["sampling"]["rounding"] == "ceil"  # a default
    assert "inference" not in record["settings"]
    assert record["annotations_sha256"] == finished.store.annotations_sha256
    assert (record["steps"], record["images_seen"], record["epoch_length"], record["epochs"]) == (6, 12, 8, 1.5)
    assert (record["memory_gb"], record["elapsed_s"], record["attempts"]) == (2.0, 12.5, 2)
    assert (record["skipped_images"], record["broken_images"]) == (4, 2)
    assert (record["device"], record["threads"], record["precision"]) == ("cpu", 1, "fp32 without TF32")
    assert record["memory_definition"] == "peak resident memory of the training process"
    assert record["resolution"] == "short edge 64 px, long edge at most 96 px"
    assert datetime.fromisoformat(record["started_at"]) == datetime.fromtimestamp(1e9, UTC)
    assert datetime.fromisoformat(record["finished_at"]) > datetime.fromisoformat(record["started_at"])


def test_the_model_says_what_it_is_and_checkpoints_are_gone(finished):
    weights, meta = load_model(finished.state_dir / "model.pth")
    assert torch.equal(weights["weight"], torch.arange(4.0))
    assert (meta["backbone"], meta["seed"], meta["steps"]) == ("r50", 3, 6)
    assert meta["CLASSES"] == tuple(category.name for category in finished.store.categories)
    assert meta["run_digest"] == finished.digest
    assert {file.name for file in finished.state_dir.glob("*.pth")} == {"model.pth"}
    assert json.loads((finished.state_dir / "progress.json").read_text())["state"] == "done"


def test_published_names_carry_time_and_digest_of_the_content(finished, tmp_path):
    out = tmp_path / "out"
    export(finished.state_dir, out)
    record = json.loads((out / "train.json").read_text())
    digest = hashlib.sha256((out / "model.pth").read_bytes()).hexdigest()
    assert record["model_sha256"] == digest
    assert re.fullmatch(STEM + f"-{digest[:8]}[.]pth", record["model_file"])
    assert re.fullmatch(STEM + "[.]log[.]json", record["log_file"])
    names = {"model.pth", "train.json", "log.json", record["model_file"], record["log_file"]}
    assert {file.name for file in out.iterdir()} == names
    assert (out / record["model_file"]).samefile(out / "model.pth")
    assert (out / "model.pth").samefile(finished.state_dir / "model.pth")


def test_a_new_export_leaves_no_name_of_an_older_run(finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("mask_rcnn_old-00000000.pth", "mask_rcnn_old.log.json", "metrics.json", "model.pth"):
        (out / name).write_text("old")
    export(finished.state_dir, out)
    assert not list(out.glob("mask_rcnn_old*"))
    assert (out / "metrics.json").read_text() == "old"
    assert (out / "model.pth").samefile(finished.state_dir / "model.pth")


def test_without_hard_links_files_are_copied(finished, tmp_path, monkeypatch):
    def fails(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", fails)
    export(finished.state_dir, tmp_path / "out")
    content = (tmp_path / "out" / "model.pth").read_bytes()
    assert content == (finished.state_dir / "model.pth").read_bytes()
    assert not (tmp_path / "out" / "model.pth").samefile(finished.state_dir / "model.pth")


def test_whatever_changes_the_model_changes_the_state_folder(drawn, tmp_path, run, monkeypatch):
    others = [
        make_run(drawn, tmp_path, seed=4),
        make_run(drawn, tmp_path, backbone="r101"),
        make_run(drawn, tmp_path, schedule={"learning_rate": 0.002}),
        make_run(drawn, tmp_path, sampling={"oversample_threshold": 0.1}),
        make_run(drawn, tmp_path, augmentation={"flip_probability": 0.4}),
        make_run(drawn, tmp_path, model={"anchor_scale": 8}),
        make_run(drawn, tmp_path, compute={"threads": 2}),
    ]
    assert len({one.digest for one in (run, *others)}) == 8
    with monkeypatch.context() as patch:
        patch.setattr(identity, "TRAINER_REVISION", identity.TRAINER_REVISION + 1)
        assert make_run(drawn, tmp_path).digest != run.digest
    same = make_run(drawn, tmp_path, title="another", resources={"loader_workers": 2}, inference={"nms_iou": 0.6})
    assert same.state_dir == run.state_dir
    assert run.state_dir.relative_to(tmp_path / "state").parts == ("tiny", "r50", "seed3", run.digest[:12])


@pytest.mark.parametrize(
    ("value", "text"), [(1e-3, "1e-3"), (0.3, "3e-1"), (1.5e-3, "1.5e-3"), (1, "1e0"), (0.05, "5e-2")]
)
def test_thresholds_in_names_lose_no_digit(value, text):
    assert scientific(value) == text


def test_names_are_those_of_the_page(tmp_path):
    published = {
        "study": "lvis_v0.5",
        "sampling": {"oversample_threshold": 1e-3},
        "augmentation": {"short_edges_px": [64, 80]},
        "schedule": {"steps": None, "epochs": 24},
    }
    study = load_study(write_tiny_study(tmp_path, **published))
    assert published_stem(study, "x101_64x4d", 0) == ("mask_rcnn_x101_64x4d_fpn_sample1e-3_mstrain_24e_lvis_v0.5_seed0")
    plain = tiny_study(tmp_path, sampling={"oversample_threshold": None})
    assert published_stem(plain, "r50", 1) == "mask_rcnn_r50_fpn_6it_tiny_seed1"
