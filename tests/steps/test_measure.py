"""The short measurement: what it records, which steps it takes, and a row that was trained elsewhere."""

import io
import json
import re
import sys

import numpy as np
import pytest

from lvis_rcnn import measure
from lvis_rcnn.config.schema import Augmentation
from lvis_rcnn.config.study import load_study_for_step, settings_digest
from lvis_rcnn.dataloader import batches
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.runs.records import other_work
from lvis_rcnn.system.files import sha256_of_file
from tests.conftest import REPOSITORY
from tests.helpers.busy import busy_cores
from tests.helpers.tiny_run import make_data, tiny_study, write_tiny_study

SHORT = {"measure": {"training_steps": 1, "images": 2}, "inference": {"masks": "scored"}}
pytestmark = pytest.mark.usefixtures("smallest_body")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=4, val_images=4)


def arguments(drawn, model_path, folder, training=True):
    study = write_tiny_study(folder, **SHORT)
    words = ["--study", study, "--row", "r50", "--model", model_path, "--out", folder / "measure.json"]
    words += ["--val-store", drawn.val_store, "--val-images", drawn.images]
    if training:
        words += ["--train-store", drawn.train_store, "--train-images", drawn.images]
        words += ["--repeat-factors", drawn.repeat_factors]
    return list(map(str, words))


def measured(monkeypatch, *given, **more):
    monkeypatch.setattr(sys, "argv", ["measure", *arguments(*given, **more)])
    measure.main()
    return json.loads((given[2] / "measure.json").read_text())


class Terminal(io.StringIO):
    """Text that believes to be a terminal."""

    def isatty(self):
        return True


def test_memory_and_both_speeds_say_how_they_were_measured(drawn, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    timed, times_of = set(), measure.times_of
    spy = lambda detector, *more: timed.add(detector.test.masks) or times_of(detector, *more)  # noqa: E731
    monkeypatch.setattr(measure, "times_of", spy)
    record = measured(monkeypatch, drawn, model_path, tmp_path)
    assert "measure memory r50: 100%" in terminal.getvalue()
    assert "measure speed r50: 100%" in terminal.getvalue()
    assert (record["format"], record["version"], record["device"]) == ("lvis_rcnn.measure", 1, "cpu")
    assert record["model_sha256"] == sha256_of_file(model_path)
    assert record["settings_digest"] == settings_digest(tiny_study(tmp_path, **SHORT), "measure")
    training, inference = record["training"], record["inference"]
    assert training["memory_gb"] > 0.1
    assert (training["steps"], training["images"], training["precision"]) == (1, 2, "fp32 without TF32")
    assert training["passes"] == "one normalisation group at a time"
    assert training["resolution"] == "short edge 64 px, long edge at most 96 px"
    assert training["definition"] == "peak resident memory of the training process"
    assert (inference["images"], inference["warmup_images"], inference["batch_size"]) == (1, 3, 1)
    assert inference["fps"] > 0
    assert inference["end_to_end_fps"] > 0
    assert "bitmaps of all masks at original size on the host" in inference["definition"]
    quartiles = [inference["image_s"][name] for name in ("first_quartile", "median", "third_quartile")]
    assert quartiles == [pytest.approx(1 / inference["fps"])] * 3  # of a single image
    assert inference["clock"] == "CPU time"
    assert 0 < inference["cpu_per_wall"] < 1.2
    assert -0.1 < inference["other_cores"] < inference["cores"] + 0.1
    assert len(inference["load_average"]) == 2
    assert (timed, inference["masks"]) == ({"all"}, "all")  # also where inference makes only some


@pytest.mark.parametrize("clock", ["CPU time", "wall time"])
def test_speed_and_its_quartiles_are_of_one_clock(clock):
    wall_s, cpu_s = [0.5, 0.6, 0.7, 1.0], [0.4, 0.5, 0.5, 0.8]
    times = [measure.Times(wall - 0.1, 0.1, 0.3, cpu) for wall, cpu in zip(wall_s, cpu_s, strict=True)]
    found, seconds = measure.speed(times, clock, whole_s=4.4), cpu_s if clock == "CPU time" else wall_s
    assert found["fps"] == pytest.approx(4 / sum(seconds))
    assert list(found["image_s"]) == ["first_quartile", "median", "third_quartile"]
    assert list(found["image_s"].values()) == pytest.approx(np.quantile(seconds, [0.25, 0.5, 0.75]))
    assert found["cpu_per_wall"] == pytest.approx(2.2 / 2.8)
    assert ("CPU time" in found["definition"]) == (clock == "CPU time")
    assert found["end_to_end_fps"] == pytest.approx(1)  # without the bitmaps, by wall time


@pytest.mark.slow
def test_a_row_that_was_trained_elsewhere_has_a_speed_only(drawn, model_path, tmp_path, monkeypatch):
    record = measured(monkeypatch, drawn, model_path, tmp_path, training=False)
    assert record["training"] is None
    assert record["inference"]["fps"] > 0


@pytest.mark.slow
def test_a_measurement_beside_busy_processes_is_marked(drawn, model_path, tmp_path, monkeypatch, capsys):
    with busy_cores():
        record = measured(monkeypatch, drawn, model_path, tmp_path, training=False)
    assert other_work(record["inference"])
    assert "the table will not show this speed, since other work ran" in capsys.readouterr().err


def test_a_table_is_for_studies_that_calibrate(drawn, model_path, tmp_path, monkeypatch, capsys):
    words = arguments(drawn, model_path, tmp_path, training=False)
    monkeypatch.setattr(sys, "argv", ["measure", *words, "--calibration", "calibration.csv"])
    with pytest.raises(SystemExit, match="2"):
        measure.main()
    assert "--calibration: is given, but the settings have no calibration" in capsys.readouterr().err


def test_a_study_that_trains_nothing_can_be_measured():
    study = load_study_for_step(REPOSITORY / "configs" / "published.yaml", "measure", None)
    assert study.schedule is None
    assert len(settings_digest(study, "measure")) == 64


@pytest.mark.parametrize(("at_once", "of_step"), [(1, max), (2, sum)])
def test_the_largest_padded_passes_come_first(drawn, at_once, of_step):
    store = open_store(drawn.train_store)
    count = store.num_images
    stream = SampleStream(np.ones(count), "ceil", np.asarray(store.widths < store.heights), 0, 1, groups_per_step=2)
    steps = measure.largest_steps(
        stream, store, Augmentation(short_edges_px=(256,), long_edge_px=512, flip_probability=0.5), 100, at_once
    )
    assert sorted(steps) == list(range(100))
    images = batches.TestImages(drawn.train_store, drawn.images, 256, 512)
    sizes = [[images.size_hw(image) for (image,) in stream.groups_of_step(step)] for step in steps]
    pixels = [of_step(np.prod(batches.padded_size_hw(size_hw)) for size_hw in of_groups) for of_groups in sizes]
    assert pixels == sorted(pixels, reverse=True)
    assert pixels[0] > pixels[-1]


@pytest.mark.parametrize(
    ("removed", "changed", "message"),
    [
        (["--train-images"], {}, "belong together; fix: name all three, or none"),
        (["--train-store"], {}, "belong together; fix: name all three, or none"),
        ([], {"--row": "r101"}, "--row r101: is no row of the study; allowed: r50; fix: "),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_measured(
    drawn, model_path, tmp_path, monkeypatch, capsys, removed, changed, message
):
    words = arguments(drawn, model_path, tmp_path)
    options = {**dict(zip(words[::2], words[1::2], strict=True)), **changed}
    kept = [word for name, value in options.items() if name not in removed for word in (name, value)]
    monkeypatch.setattr(sys, "argv", ["measure", *kept])
    with pytest.raises(SystemExit, match="2"):
        measure.main()
    assert re.search(message, capsys.readouterr().err)
