"""What finished runs leave is listed, and removed when asked for; all else stays."""

import json
import os
import shutil
import sys

import pytest

from lvis_rcnn import clean
from lvis_rcnn.config.study import load_study, settings_digest
from lvis_rcnn.runs.inference import inference_folder
from lvis_rcnn.runs.lease import lease_path, new_holder, write
from tests.conftest import write_study
from tests.steps.test_status import beat, put, put_records


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path / "study.yaml", backbones=["r50", "r101"], seeds=[0], schedule={"steps": 260})


def put_run(results, study, run, until="evaluate"):
    """Results of a run and, in its state, a model that is shared with them, a log, detections and an older training."""
    folder = put_records(results, study, run, until)
    train = json.loads((folder / "train.json").read_text())
    put(folder / "train.json", {**train, "run_digest": "0123456789ab" + 52 * "0"})
    state_dir = beat(results, f"{run}/0123456789ab", state="done", step=260)
    put(folder / "model.pth", "w" * 1000)
    os.link(folder / "model.pth", state_dir / "model.pth")
    put(state_dir / "log.json", "l" * 50_000)
    record = json.loads((folder / "inference.json").read_text()) if until == "evaluate" else {}
    put(state_dir.parent / inference_folder(record) / "part-00000-x.npz", "d" * 50_000)
    put(state_dir.parent / "infer-of-other-settings" / "shard-00000.npz", "d")
    older = beat(results, f"{run}/of-other-settings", age_s=1000, state="stopped")
    return state_dir, older


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run_main(monkeypatch, capsys, study_file, results, *words):
    monkeypatch.setattr(sys, "argv", ["clean", "--study", str(study_file), "--results", str(results), *words])
    clean.main()
    return capsys.readouterr().err


def test_state_of_finished_runs_is_listed_and_then_removed(tmp_path, study_file, monkeypatch, capsys):
    results, study = tmp_path / "results", load_study(study_file)
    state_dir, older = put_run(results, study, "r50/seed0")
    unfinished, _ = put_run(results, study, "r101/seed0", until="train")
    before = contents(tmp_path)
    said = run_main(monkeypatch, capsys, study_file, results)
    assert f"r50 seed 0: would remove {state_dir}, 0.1 MB" in said
    assert "r101 seed 0: kept, since it is not finished (trained)" in said
    assert said.endswith("nothing was removed; the same command with --remove frees 0.1 MB\n")
    assert contents(tmp_path) == before
    said = run_main(monkeypatch, capsys, study_file, results, "--remove")
    assert said.endswith("0.1 MB are free again\n")
    gone = before - contents(tmp_path)
    assert gone == {name for name in gone if "/state/smoke/r50/seed0/" in name}
    assert not state_dir.exists()
    assert older.exists()
    assert (older.parent / "infer-of-other-settings").exists()
    assert unfinished.exists()
    assert (results / "smoke" / "r50" / "seed0" / "model.pth").read_text() == "w" * 1000
    assert "r50 seed 0" not in run_main(monkeypatch, capsys, study_file, results)


def test_what_another_clean_removes_at_the_same_time_is_no_error(tmp_path, study_file, monkeypatch, capsys):
    state_dir, _ = put_run(tmp_path / "results", load_study(study_file), "r50/seed0")

    def removed(folder, usual=shutil.rmtree):
        usual(folder)
        raise FileNotFoundError(2, "No such file or directory", "progress.json")

    monkeypatch.setattr(clean.shutil, "rmtree", removed)
    said = run_main(monkeypatch, capsys, study_file, tmp_path / "results", "--remove")
    assert said.endswith("are free again\n")
    assert not state_dir.exists()


def test_a_run_whose_lease_is_held_is_kept(tmp_path, study_file, monkeypatch, capsys):
    results, study = tmp_path / "results", load_study(study_file)
    state_dir, _ = put_run(results, study, "r50/seed0")
    write(lease_path(state_dir, 1), new_holder(1))
    before = contents(tmp_path)
    said = run_main(monkeypatch, capsys, study_file, results, "--remove")
    assert f"r50 seed 0: kept, since a process holds {state_dir}" in said
    assert contents(tmp_path) == before


def test_weights_that_are_not_scored_yet_are_kept_while_the_study_asks_for_them(
    tmp_path, study_file, monkeypatch, capsys
):
    results, study = tmp_path / "results", load_study(study_file)
    state_dir, _ = put_run(results, study, "r50/seed0")
    put(state_dir / "points" / "step00000100.pth", "w" * 1000)
    with_points = write_study(
        tmp_path / "points.yaml",
        **{"backbones": ["r50"], "seeds": [0], "schedule": {"steps": 260}},
        evaluation={"score_at_steps": [100]},
    )
    said = run_main(monkeypatch, capsys, with_points, results, "--remove")
    assert "r50 seed 0: kept, since weights of it are not scored: python -m lvis_rcnn track" in said
    assert state_dir.exists()
    run_main(monkeypatch, capsys, study_file, results, "--remove")
    assert not state_dir.exists()


def test_a_run_of_other_settings_than_the_studys_is_kept(tmp_path, study_file, monkeypatch, capsys):
    results = tmp_path / "results"
    state_dir, _ = put_run(results, load_study(study_file), "r50/seed0")
    changed = write_study(tmp_path / "study.yaml", backbones=["r50"], seeds=[0], schedule={"steps": 300})
    assert settings_digest(load_study(changed), "train")
    assert "r50 seed 0: kept" in run_main(monkeypatch, capsys, changed, results, "--remove")
    assert state_dir.exists()
