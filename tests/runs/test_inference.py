"""How far an inference is, read from what it saves, by hand as it leaves it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_rcnn.config.study import Study, load_study, settings_digest
from lvis_rcnn.runs.inference import IDENTITY, begin_inference, inference_folder, inferred
from lvis_rcnn.runs.states import states_of
from tests.conftest import write_study

MINUTE_AGO = 60


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "results").mkdir()
    return load_study(write_study(tmp_path / "study.yaml", backbones=["r50"], seeds=[0]))


def put(path: Path, value: object, age_s: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)


def begun(tmp_path: Path, study: Study, age_s: float = MINUTE_AGO, **changes: object) -> Path:
    """A trained run whose inference has saved a shard of 64 images and a part of 10, of 211; its state folder."""
    train = {"settings_digest": settings_digest(study, "train"), "memory_gb": 1.0, "model_file": "m", "log_file": "l"}
    put(tmp_path / "results" / "smoke" / "r50" / "seed0" / "train.json", {**train, "model_sha256": "feed"})
    folder = tmp_path / "results" / "state" / "smoke" / "r50" / "seed0" / "infer-0123456789ab"
    start = {"settings_digest": settings_digest(study, "infer"), "model_sha256": "feed", "annotations_sha256": "a"}
    start |= {"images": 211, "saved": 44, "host": "elsewhere", "pid": 1, "job": None}
    put(folder / "start.json", start | changes, age_s)
    put(folder / "shard-00000.clock.json", {"images": 64, "whole_s": 300})
    put(folder / "shard-00000.npz", "detections", age_s)
    put(folder / "part-00001-ab.json", {"positions": list(range(64, 74)), "whole_s": 30})
    put(folder / "part-00001-ab.npz", "detections", age_s - MINUTE_AGO)
    return folder


def reason(tmp_path: Path, study: Study) -> str:
    (state,) = states_of(study, tmp_path / "results", {}, {})
    assert state.state == "trained"
    return state.reason


def test_an_inference_says_how_far_and_how_fast_it_is(tmp_path: Path, study: Study) -> None:
    begun(tmp_path, study)
    # 30 images in the minute since the start.
    assert reason(tmp_path, study) == "inferring 74/211, 0.5 images/s, 4m left"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age_s": 1000}, "inference stalled at 74/211: nothing saved for 15m"),
        ({"saved": 74}, "inferring 74/211"),
        ({"model_sha256": "of an older model"}, "waiting for inference"),
        ({"settings_digest": "of other settings"}, "waiting for inference"),
    ],
)
def test_an_inference_that_is_silent_new_or_of_something_else(
    tmp_path: Path, study: Study, changes: dict[str, object], message: str
) -> None:
    begun(tmp_path, study, **changes)  # type: ignore[arg-type]
    assert reason(tmp_path, study) == message


def test_an_inference_that_was_killed_has_stopped(tmp_path: Path, study: Study) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    begun(tmp_path, study, host=socket.gethostname(), pid=process.pid)
    assert reason(tmp_path, study) == "inference stopped at 74/211"


def test_images_are_counted_once_however_often_they_are_saved(tmp_path: Path, study: Study) -> None:
    folder = begun(tmp_path, study)
    put(folder / "part-00001-cd.json", {"positions": list(range(70, 80)), "whole_s": 30})  # of a second start
    put(folder / "part-00000-ef.json", {"positions": list(range(9)), "whole_s": 30})  # its shard is complete
    assert inferred(folder).saved == 80


def test_a_start_records_what_is_detected_and_what_was_saved_before(tmp_path: Path, study: Study) -> None:
    folder = begun(tmp_path, study)
    record = {**dict.fromkeys(IDENTITY, "x"), "images": 211, "device": "cpu"}
    begin_inference(folder, record)
    start = json.loads((folder / "start.json").read_text())
    assert (start["images"], start["saved"], start["pid"]) == (211, 74, os.getpid())
    assert inferred(folder).images_per_s is None


def test_the_name_of_a_state_folder_stays() -> None:
    """Inference goes on from shards of versions before."""
    assert inference_folder(dict.fromkeys(IDENTITY, "0")) == "infer-0687a6d15b6c"
    # Calibrated by one table or another, it is another inference.
    calibrated = [{**dict.fromkeys(IDENTITY, "0"), "calibration_sha256": digest} for digest in "ab"]
    assert len({inference_folder(dict.fromkeys(IDENTITY, "0")), *map(inference_folder, calibrated)}) == 3
