"""A record of another shape counts as damaged: one reason in the words of the table, never a traceback."""

import json
from typing import Any

import pytest

from lvis_rcnn.runs.attempts import FILE, read_attempts
from lvis_rcnn.runs.records import images_seen_by_weights, other_work, read_log, read_measured, read_run
from lvis_rcnn.runs.states import pace_in, read_heartbeat, states_of
from tests.helpers.study_records import put, put_everything, study_with

DEEP = "[" * 5000 + "]" * 5000
BROKEN = ["", "null", "[]", "{", DEEP, '{"a": ' + DEEP + "}", '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}', "{}"]
GONE = object()

CHANGES: list[tuple[str, str, Any]] = [
    ("train", "model_file", None),
    ("train", "memory_gb", "x"),
    ("train", "cost", [1]),
    ("train", "cost.gpu_hours", True),
    ("train", "versions", "3.11"),
    ("train", "images_seen", float("nan")),
    ("train", "steps", 0),
    ("train", "run_digest", 5),
    ("infer", "detections", GONE),
    ("infer", "device", {}),
    ("evaluate", "bbox", {}),
    ("evaluate", "bbox.AP", GONE),
    ("evaluate", "bbox.AP", True),
    ("evaluate", "bbox.AP", "0.25"),
    ("evaluate", "bbox.AP", 5.0),
    ("evaluate", "segm.APr", -1.0),
    ("evaluate", "segm.AP", float("inf")),
    ("evaluate", "segm", GONE),
    ("evaluate", "format", "other"),
    ("evaluate", "version", 99),
    ("evaluate", "annotations_sha256", {}),
    ("evaluate", "intervals", {"bbox": {"AP": [0.9, 0.1]}}),
    ("evaluate", "intervals", {"resamples": 300, "bbox": {"AP": [0.1]}}),
    ("evaluate", "per_category", [{"id": 1}]),
    ("evaluate", "curves.bbox.recall", [0.5]),
    ("measure", "inference", None),
    ("measure", "inference.definition", GONE),
    ("measure", "inference.warmup_images", GONE),
    ("measure", "inference.fps", 0.0),
    ("measure", "inference.clock", "sundial"),
    ("measure", "inference.image_s", {"first_quartile": 1.0, "median": 1.0}),
    ("measure", "inference.image_s", {"first_quartile": 0.0, "median": 1.0, "third_quartile": 1.0}),
    ("measure", "inference.other_cores", "1"),
    ("measure", "training", 5),
    ("measure", "device", 5),
]
FILES = {"train": "train.json", "infer": "inference.json", "evaluate": "metrics.json", "measure": "measure.json"}


def missing(results, study) -> dict[str, str]:
    """Why each step of the only run has no record."""
    run = read_run(study, results, "r50", 0)
    return {**run.missing, **read_measured(study, results, run).missing}


def record_of(results, step: str):
    row = results / "mini" / "r50"
    return (row if step == "measure" else row / "seed0") / FILES[step]


def test_whole_records_of_this_and_of_earlier_versions_count(tmp_path):
    study = study_with()
    folder = put_everything(tmp_path, study, intervals={"resamples": 300, "bbox": {"AP": [0, 1], "APr": None}})
    assert missing(tmp_path, study) == {}
    train = json.loads((folder / "train.json").read_text())
    put(folder / "train.json", {key: train[key] for key in ("memory_gb", "model_file", "log_file", "model_sha256")})
    put(folder / "inference.json", {"format": "lvis_rcnn.inference", "version": 2, "detections": 0})
    assert missing(tmp_path, study) == {}


@pytest.mark.parametrize(("step", "key", "value"), CHANGES)
def test_a_record_of_another_shape_is_named(tmp_path, step, key, value):
    study = study_with()
    put_everything(tmp_path, study)
    path = record_of(tmp_path, step)
    record = json.loads(path.read_text())
    *above, last = key.split(".")
    inner = record
    for name in above:
        inner = inner[name]
    inner[last] = value
    if value is GONE:
        del inner[last]
    put(path, record)
    assert missing(tmp_path, study)[step] == f"unreadable: {FILES[step]}"


@pytest.mark.parametrize("text", BROKEN)
def test_text_that_is_no_record_is_named(tmp_path, text):
    study = study_with()
    for step in reversed(FILES):
        put_everything(tmp_path, study)
        put(record_of(tmp_path, step), text)
        assert missing(tmp_path, study)[step] == f"unreadable: {FILES[step]}"


@pytest.mark.parametrize("step", ["infer", "evaluate"])
def test_status_says_what_to_do_about_a_damaged_record(tmp_path, step):
    study = study_with()
    put_everything(tmp_path, study)
    put(record_of(tmp_path, step), "{")
    said = f"unreadable: {FILES[step]}; delete it, and start Snakemake again"
    assert states_of(study, tmp_path, {}, {})[0].reason == said


@pytest.mark.parametrize("text", [*BROKEN, '{"step": 1, "steps": 0}', '{"step": 1, "steps": 9, "eta_s": "x"}'])
def test_what_a_state_folder_holds_may_be_damaged(tmp_path, text):
    study = study_with()
    put_everything(tmp_path, study)
    folder = tmp_path / "state" / "mini" / "r50" / "seed0" / "abc"
    for name in ("progress.json", "log.json", FILE):
        put(folder / name, text)
    put(tmp_path / "mini" / "preflight.json", text)
    assert (read_heartbeat(folder), read_attempts(folder)) == ({}, [])
    assert images_seen_by_weights(study, tmp_path) == 0
    (state,) = states_of(study, tmp_path, {}, {})
    assert pace_in(state, "its own log") is None


def test_a_log_may_be_a_folder_and_its_lines_without_a_time(tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / FILE).mkdir()
    assert read_attempts(tmp_path) == []
    lines = [
        '{"step": 1, "loss": 0.5}',
        "[1]",
        '{"step": "x"}',
        '{"step": 2, "time": NaN}',
        '{"step": 3, "time": 2}',
        "{",
    ]
    log = put(tmp_path / "log.json", "\n".join(lines))
    assert read_log(log) == [{"step": 1, "loss": 0.5}, {"step": 3, "time": 2}]


@pytest.mark.parametrize(
    ("speed", "says"),
    [
        ({}, ""),  # an earlier version
        ({"clock": "CPU time", "cores": 2, "other_cores": 0.1, "cpu_per_wall": 0.9}, ""),
        ({"clock": "CPU time", "cores": 2, "other_cores": 0.11, "cpu_per_wall": 1.0}, "other processes used 0.1 of 2"),
        ({"clock": "CPU time", "cores": 64, "other_cores": 3.0, "cpu_per_wall": 1.0}, ""),
        ({"clock": "CPU time", "cores": 64, "other_cores": None, "cpu_per_wall": 0.89}, "had a core for 89 % of"),
        ({"clock": "wall time", "cores": 64, "other_cores": 0.0, "cpu_per_wall": 0.5}, ""),  # it waits for a GPU
        ({"clock": "wall time", "cores": 64, "other_cores": 9.9, "cpu_per_wall": 1.0}, "processes used 9.9 of"),
    ],
)
def test_other_work_is_what_takes_a_twentieth_of_the_cores_or_a_tenth_of_the_time(speed, says):
    assert (says in other_work(speed), bool(other_work(speed))) == (True, bool(says))
