"""What an onlooker is told of a study: live, silent, dead and finished runs, made by hand as trainers leave them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvis_rcnn import status
from lvis_rcnn.config.study import DEFAULT_ZOO, load_study, settings_digest
from lvis_rcnn.config.zoo import load_zoo
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.runs import states as states_module
from lvis_rcnn.runs.identity import identities
from lvis_rcnn.runs.price import estimated_hours
from lvis_rcnn.runs.states import processor_hours, states_of, work_left
from lvis_rcnn.system.cli import duration
from tests.conftest import REPOSITORY, write_study
from tests.helpers import study_records

STORE = {"annotations_sha256": "89abcdef"}


def put(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def study_file(tmp_path, results):
    results.mkdir()
    return write_study(tmp_path / "study.yaml", backbones=["r50", "x101_64x4d"], seeds=[0, 1], schedule={"steps": 260})


@pytest.fixture
def study(study_file):
    return load_study(study_file)


def beat(results: Path, folder: str = "r50/seed0/0123456789ab", age_s: float = 0, **changes) -> Path:
    """A state folder with a heartbeat of that age; returns the folder."""
    record = {"step": 120, "steps": 260, "saved_step": 100, "updated_at": time.time(), "started_at": 1e9}
    record |= {"host": "gpu17.cluster.example.org", "pid": 1, "job": "4711", "ranks": 1, "attempt": 2}
    record |= {"state": "running", "images_per_s": 31.25, "eta_s": 7500.0, "loss": 1.23456, **changes}
    file = results / "state" / "smoke" / folder / "progress.json"
    put(file, record)
    os.utime(file, (file.stat().st_mtime - age_s,) * 2)
    return file.parent


def put_log(state_dir: Path, times) -> None:
    lines = [json.dumps({"step": step, "time": seconds}) for step, seconds in enumerate(times, 1)]
    put(state_dir / "log.json", "".join(line + "\n" for line in lines))


def put_records(results: Path, study, run: str = "r50/seed0", until: str = "evaluate") -> Path:
    """What the steps of a run leave, up to one of them; returns their folder."""
    folder = results / "smoke" / run
    train = {"settings_digest": settings_digest(study, "train"), "memory_gb": 1.0, "model_file": "m", "log_file": "l"}
    metrics = dict.fromkeys(METRIC_NAMES, 0.1)
    records = {
        "train": ("train.json", {**train, "steps": 260, "attempts": 3, "model_sha256": "feed"}),
        "infer": ("inference.json", {"settings_digest": settings_digest(study, "infer"), "detections": 2}),
        "evaluate": ("metrics.json", {"bbox": metrics, "segm": metrics, "detections_per_image": 300}),
    }
    for step, (name, record) in records.items():
        put(folder / name, record)
        if step == until:
            break
    return folder


def put_measurement(results: Path, study, backbone: str) -> None:
    """Memory and speed of a row, measured on the model of :func:`put_records`."""
    record = {"settings_digest": settings_digest(study, "measure"), "model_sha256": "feed", "device": "a CPU"}
    speed = {"fps": 1.0, "definition": "", "images": 1, "warmup_images": 0, "resolution": "", "precision": ""}
    put(results / "smoke" / backbone / "measure.json", {**record, "inference": speed})


def look(study, results: Path, zoo=None):
    return states_of(study, results, {}, zoo or {})


def first(study, results: Path):
    state = look(study, results)[0]
    return state.state, state.reason


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[3:7]]


def test_a_running_run_says_how_far_and_how_fast_it_is(study, results):
    beat(results)
    lines = status.status_text(study, look(study, results)).splitlines()
    assert lines[:4] == [
        "smoke: 1 running, 3 not started",
        "",
        "row         seed  state           step   %  images/s     ETA   loss  starts  where",
        "r50            0  running      120/260  46      31.2  2h 05m  1.235       2  gpu17, job 4711",
    ]
    assert lines[4:] == [
        "r50            1  not started",
        "x101_64x4d     0  not started",
        "x101_64x4d     1  not started",
    ]


def test_ap_so_far_and_weights_that_wait_to_be_scored_are_noted(tmp_path, results):
    results.mkdir()
    changes = {"backbones": ["r50"], "seeds": [0], "schedule": {"steps": 260}}
    study = load_study(write_study(tmp_path / "study.yaml", **changes, evaluation={"score_at_steps": [100, 200]}))
    points = beat(results) / "points"
    points.mkdir()
    (points / "step00000200.pth").touch()
    scores = study_records.point(study, 100, 0.25)
    put(results / "smoke" / "r50" / "seed0" / "ap_so_far.json", {"state": "0123456789ab", "points": [scores]})
    assert status.status_text(study, look(study, results)).splitlines()[5:] == [
        "r50 seed 0: AP so far, step 100 (epoch 0.833): box AP 25.0, mask AP 12.5, on 100 images",
        "r50 seed 0: weights of step 200 are not scored: python -m lvis_rcnn track --study …",
    ]


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        (
            {"step": 0, "job": None, "images_per_s": None, "eta_s": None, "loss": None, "attempt": 1},
            ["running", "0/260", "0", "1", "gpu17"],
        ),
        (
            {"state": "stopped", "age_s": 1e5},
            ["stopped", "120/260", "46", "31.2", "1.235", "2", "gpu17,", "job", "4711"],
        ),
    ],
)
def test_what_is_unknown_is_an_empty_cell(study, results, changes, cells):
    beat(results, **changes)
    assert rows_of(status.status_text(study, look(study, results)))[0] == ["r50", "0", *cells]


def test_a_heartbeat_of_an_older_trainer_is_read(study, results):
    heartbeat = {"step": 26, "steps": 260, "updated_at": 1e9, "host": "elsewhere", "pid": 1, "state": "running"}
    put(results / "state" / "smoke" / "r50" / "seed0" / "ab" / "progress.json", heartbeat)
    cells = ["r50", "0", "running", "26/260", "10", "elsewhere"]
    assert rows_of(status.status_text(study, look(study, results)))[0] == cells


@pytest.mark.parametrize(
    ("images_per_s", "cell"), [(31.25, "31.2"), (0.94, "0.94"), (0.04, "0.040"), (0.0012, "0.0012")]
)
def test_a_slow_run_has_a_speed(study, results, images_per_s, cell):
    beat(results, images_per_s=images_per_s)
    assert rows_of(status.status_text(study, look(study, results)))[0][5] == cell


@pytest.mark.parametrize("host_clock_is_off_s", [-86400, 86400])
def test_clocks_of_hosts_need_not_agree(study, results, monkeypatch, host_clock_is_off_s):
    now_s = time.time() + host_clock_is_off_s  # the onlooker's; the trainer's is off by two days the other way
    beat(results, updated_at=time.time() - 2 * host_clock_is_off_s)
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert first(study, results) == ("running", "")
    beat(results, updated_at=now_s, age_s=900)
    assert first(study, results) == ("stalled", "no heartbeat for 15m")


def test_who_may_not_write_takes_the_own_clock(study, results, monkeypatch):
    def refuse(**arguments):
        raise PermissionError

    monkeypatch.setattr(states_module.tempfile, "TemporaryFile", refuse)
    beat(results, age_s=600)
    assert first(study, results)[0] == "stalled"
    beat(results, age_s=0)
    assert first(study, results)[0] == "running"


def test_a_look_leaves_nothing_behind(study, results):
    folder = beat(results)
    look(study, results)
    assert [file.name for file in folder.iterdir()] == ["progress.json"]


def test_a_killed_process_of_this_host_is_named_as_killed(study, results):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    beat(results, host=socket.gethostname(), pid=child.pid)
    assert first(study, results) == ("stopped", "killed")


def test_a_failed_run_says_why(study, results):
    beat(results, state="failed", error="out of memory at step 7", age_s=1e5)
    text = status.status_text(study, look(study, results))
    assert text.splitlines()[0] == "smoke: 1 failed, 3 not started"
    assert text.splitlines()[-1] == "r50 seed 0 failed: out of memory at step 7"


def test_the_log_says_why_where_the_heartbeat_does_not(study, results):
    log_file = results / "smoke" / "logs" / "train_r50_seed0.log"
    put(log_file, "2026-11-24 10:00:00 error: step 3, images 17: loss is not finite; fix: lower it\n")
    assert first(study, results) == ("failed", "step 3, images 17: loss is not finite")
    beat(results, state="stopped")
    assert first(study, results) == ("failed", "step 3, images 17: loss is not finite")
    beat(results)  # it was started again
    assert first(study, results) == ("running", "")


def test_what_failed_before_all_runs_is_named(study, results):
    put(results / "smoke" / "logs" / "preflight.log", "error: train.json: no such file\n")
    assert {(state.state, state.reason) for state in look(study, results)} == {
        ("failed", "preflight: train.json: no such file")
    }


def test_a_finished_run_is_trained_until_it_is_scored(study, results):
    put_records(results, study, until="train")
    assert first(study, results) == ("trained", "waiting for inference")
    put(results / "smoke" / "logs" / "infer_r50_seed0.log", "error: disk is full\n")
    assert first(study, results) == ("failed", "infer: disk is full")
    put_records(results, study, until="infer")
    assert first(study, results) == ("trained", "waiting for scoring")
    put_records(results, study)
    assert first(study, results) == ("done", "")
    assert rows_of(status.status_text(study, look(study, results)))[0] == ["r50", "0", "done", "260/260", "100", "3"]


def test_a_model_that_is_not_yet_where_the_workflow_looks_is_trained(study, results):
    beat(results, step=260, state="done", age_s=1e5)
    assert first(study, results) == ("trained", "waiting for inference")


def test_a_damaged_heartbeat_is_none(study, results):
    put(results / "state" / "smoke" / "r50" / "seed0" / "ab" / "progress.json", '{"step": 1')
    assert status.status_text(study, look(study, results)).splitlines()[3].split() == ["r50", "0", "stopped"]


def test_without_a_store_the_state_written_last_is_shown(study, results):
    beat(results, "r50/seed0/aaaaaaaaaaaa", age_s=60, step=7)
    (beat(results, "r50/seed0/bbbbbbbbbbbb", age_s=90, step=9) / "checkpoint.pth").write_bytes(bytes(2_500_000))
    (results / "state" / "smoke" / "r50" / "seed0" / "infer-cccccccccccc").mkdir()
    state = look(study, results)[0]
    assert state.heartbeat["step"] == 7
    note = status.status_text(study, look(study, results)).splitlines()[-1]
    folder = results / "state" / "smoke" / "r50" / "seed0"
    assert note == f"r50 seed 0: 1 older state folder, of other settings, data or code, in {folder}: 2.5 MB"


def test_with_a_store_the_state_of_this_recipe_is_shown(study, results):
    put(results / "smoke" / "data" / "train.store" / "store.json", STORE)
    own = next(identities(study, "r50", 0, STORE["annotations_sha256"], {})).folder_name
    beat(results, "r50/seed0/aaaaaaaaaaaa", step=250)
    state = look(study, results)[0]
    assert (state.state, len(state.older)) == ("not started", 1)
    beat(results, f"r50/seed0/{own}", age_s=100, step=7)
    state = look(study, results)[0]
    assert (state.state, state.heartbeat["step"], len(state.older)) == ("running", 7, 1)


def test_a_narrow_terminal_says_what_it_leaves_out(study, results):
    beat(results, "x101_64x4d/seed1/0123456789ab")
    wide = status.status_text(study, look(study, results))
    assert max(map(len, wide.splitlines())) == 92
    assert status.status_text(study, look(study, results), 92) == wide
    narrow = status.status_text(study, look(study, results), 80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert narrow[2].split()[-1] == "starts"
    assert narrow[-1] == "too narrow for: where"
    assert status.status_text(study, look(study, results), 20).endswith("too narrow for: where, starts, images/s")


def test_the_plan_says_what_starts_afresh_and_what_resumes_from_where(study, results):
    put_log(beat(results, age_s=1e4), [9.0, 3.6, 3.6, 3.6])  # the first is slow
    put_log(beat(results, "r50/seed1/0123456789ab"), [7.2])
    put_records(results, study, "x101_64x4d/seed0", until="train")
    tail, scored = "infer, evaluate, measure", "infer, evaluate"
    assert status.plan_text(study, look(study, results)).splitlines() == [
        "smoke: 4 of 4 runs are not done, 2 rows to be measured",
        "",
        "row         seed  training                      time  CPU-hours  s/step  speed from          then",
        f"r50            0  resumes from step 100 of 260    9m       0.16     3.6  its own log         {tail}",
        f"r50            1  runs, at step 120 of 260       16m       0.28     7.2  its own log         {scored}",
        f"x101_64x4d     0  is done                                                                    {tail}",
        f"x101_64x4d     1  fresh, 260 steps              ~21m      ~0.36   ~5.03  estimated from r50  {scored}",
        "",
        "to do: 3 x train, 4 x infer, 4 x evaluate, 2 x measure",
        "training: 0.80 CPU-hours, 0.36 of them estimated by arithmetic (docs/performance.md)",
    ]


def test_an_unmeasured_run_is_expected_to_be_as_fast_as_another_seed(study, results):
    put_log(put_records(results, study, "r50/seed1"), [3.6])
    works = work_left(study, look(study, results))
    assert [work.state.name for work in works] == ["r50 seed 0", "x101_64x4d seed 0", "x101_64x4d seed 1"]
    assert (works[0].pace.basis, works[0].seconds) == ("seed 1", pytest.approx(936))


def test_the_plan_names_the_scores_of_kept_weights_until_they_are_there(results, tmp_path):
    scored = {"backbones": ["r50"], "evaluation": {"score_at_steps": [10]}}
    study = load_study(write_study(tmp_path / "tracked.yaml", **scored))
    folder = put_records(results, study)
    (only,) = work_left(study, look(study, results))
    assert only.then == ["track", "measure"]
    put(folder / "ap_so_far.json", {})
    (only,) = work_left(study, look(study, results))
    assert only.then == ["measure"]
    # Of a training that goes on, it has the points so far.
    (folder / "train.json").unlink()
    (only,) = work_left(study, look(study, results))
    assert "track" in only.then


def test_hours_are_those_of_all_processors(study, results, tmp_path):
    put_log(beat(results, ranks=4, age_s=1e4), [3.6])
    on_gpus = load_study(write_study(tmp_path / "gpu.yaml", compute={"device": "cuda"}))
    assert status.plan_row(on_gpus, work_left(on_gpus, look(on_gpus, results))[0])["GPU-hours"] == "0.64"
    threads = load_study(write_study(tmp_path / "cpu.yaml", compute={"threads": 3}))
    assert status.plan_row(threads, work_left(threads, look(threads, results))[0])["CPU-hours"] == "1.92"


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(study, results):
    beat(results, saved_step=0, age_s=1e4)
    assert work_left(study, look(study, results))[0].training == "fresh, 260 steps"


def test_steps_of_a_schedule_in_epochs_are_those_of_another_run(results, tmp_path):
    values = {"steps": None, "epochs": 2}
    study = load_study(write_study(tmp_path / "epochs.yaml", seeds=[0, 1], schedule=values))
    assert {work.training for work in work_left(study, look(study, results))} == {"fresh"}
    beat(results, steps=300)
    assert work_left(study, look(study, results))[1].training == "fresh, 300 steps"


def test_before_any_step_is_timed_the_price_follows_from_arithmetic(study, results, tmp_path):
    text = status.plan_text(study, look(study, results)).splitlines()
    first = estimated_hours(study, "r50", 260)
    assert text[3].split()[2:8] == ["fresh,", "260", "steps", f"~{duration(3600 * first)}", f"~{first:.2f}", "~1.25"]
    assert "estimated, a CPU core with AVX-512" in text[3]
    both = 2 * (first + estimated_hours(study, "x101_64x4d", 260))
    assert text[-1].startswith(f"training: {both:.2f} CPU-hours, {both:.2f} of them estimated by arithmetic")
    resources = {"gpus": 4, "nodes": 2}
    on_gpus = load_study(
        write_study(
            tmp_path / "g.yaml",
            compute={"device": "cuda"},
            resources=resources,
            schedule={"images_per_step": 16, "normalisation_group": 2},
        )
    )
    [work, *_] = work_left(on_gpus, look(on_gpus, results))
    hours = estimated_hours(on_gpus, "r50", work.steps)
    assert (work.pace.ranks, processor_hours(on_gpus, work)) == (8, pytest.approx(hours))
    assert work.seconds == pytest.approx(3600 * hours / 8)


def test_steps_of_a_schedule_in_epochs_are_those_that_preflight_counted(results, tmp_path):
    study = load_study(write_study(tmp_path / "epochs.yaml", seeds=[0], schedule={"steps": None, "epochs": 2}))
    text = status.plan_text(study, look(study, results))
    assert text.endswith("unknown until preflight has counted the optimizer steps: r50 seed 0")
    put(results / "smoke" / "preflight.json", {"facts": {"schedule": {"steps": 300}}})
    assert work_left(study, look(study, results))[0].training == "fresh, 300 steps"


def test_a_finished_study_has_nothing_to_do(study, results):
    for run in ("r50/seed0", "r50/seed1", "x101_64x4d/seed0", "x101_64x4d/seed1"):
        put_records(results, study, run)
    put_measurement(results, study, "r50")
    assert status.plan_text(study, look(study, results)).startswith("smoke: every run is done, 1 row to be measured\n")
    [work] = work_left(study, look(study, results))
    assert (work.state.name, work.state.state, work.then) == ("x101_64x4d seed 0", "done", ["measure"])
    put_measurement(results, study, "x101_64x4d")
    assert status.plan_text(study, look(study, results)) == "smoke: nothing would run, every run is done"


def test_published_models_have_rows_and_no_training(results):
    path = REPOSITORY / "configs" / "published.yaml"
    study, models = load_study(path), load_zoo(DEFAULT_ZOO)
    results.mkdir()
    put(results / "published" / "logs" / "import_published_lvis_v1_r50.log", "error: no readable model\n")
    states = states_of(study, results, models, {})
    lines = status.status_text(study, states).splitlines()
    assert lines[0] == "published: 1 failed, 7 not started"
    assert lines[7].split() == ["lvis_v1_r50", "failed"]
    assert lines[-1] == "lvis_v1_r50 failed: no readable model"
    assert status.plan_text(study, states).endswith("to do: 8 x import, 8 x infer, 8 x evaluate, 8 x measure")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h 00m"), (7500, "2h 05m"), (273600, "3d 04h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def run_status(*words, cwd=REPOSITORY, **environment):
    command = [sys.executable, "-m", "lvis_rcnn.status", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_command_shows_a_study_and_imports_no_torch(study_file, results, tmp_path):
    beat(results)
    done = run_status("--study", study_file, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("smoke: 1 running, 3 not started\n")
    code = "import sys, lvis_rcnn.status; print({'torch', 'pandas', 'snakemake'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_a_study_it_is_the_default_one_whatever_the_folder(results, tmp_path):
    results.mkdir()
    done = run_status(cwd=tmp_path)
    assert done.stdout.startswith("mini: 4 not started\n")


def test_several_studies_follow_each_other_as_wide_as_the_terminal(study_file, results, tmp_path):
    beat(results, host="a" * 40)
    done = run_status("--study", study_file, study_file, cwd=tmp_path, COLUMNS="100")
    assert done.stdout.count("smoke: 1 running") == 2
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--results", "nowhere"], "error: --results nowhere: no such folder; fix: name the folder the steps"),
        (["--watch", "0"], "error: --watch: is 0; allowed: a number above 0"),
        (["--study", "nowhere.yaml"], "error: nowhere.yaml: no such study file"),
    ],
)
def test_errors_are_one_line(results, tmp_path, words, expected):
    results.mkdir()
    done = run_status(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_watching_ends_with_ctrl_c_and_is_no_error(study, results, capsys, monkeypatch):
    beat(results)
    shown = []

    def sleep(seconds):
        shown.append(seconds)
        if len(shown) == 2:
            raise KeyboardInterrupt
        shutil.rmtree(results / "state")

    monkeypatch.setattr(status.time, "sleep", sleep)
    status.watch(lambda: status.status_text(study, look(study, results)).splitlines()[0], 5)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("smoke")] == [
        "smoke: 1 running, 3 not started",
        "smoke: 4 not started",
    ]
    assert "every 5 s until Ctrl-C" in out
