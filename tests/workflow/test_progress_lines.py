"""How far trainings are, on the screen of Snakemake."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_rcnn.config.study import load_study
from lvis_rcnn.runs.paths import load_study_paths
from lvis_rcnn.runs.states import running
from tests.conftest import REPOSITORY, write_study
from tests.steps.test_status import beat
from tests.workflow.test_workflow import stub_workflow

sys.path.append(str(REPOSITORY / "workflow"))

import progress_lines

BEAT = {"step": 120, "steps": 260, "images_per_s": 31.25, "eta_s": 7500.0}


def test_a_line_says_steps_percent_speed_and_time_left():
    assert progress_lines.line_of("r50 seed 0", BEAT) == (
        "training r50 seed 0: step 120 of 260 (46 %), 31.2 images/s, 2h 05m left"
    )
    begun = {"step": 0, "steps": 1260, "images_per_s": None, "eta_s": None}
    assert progress_lines.line_of("r50 seed 0", begun) == "training r50 seed 0: step 0 of 1,260 (0 %)"


def test_each_training_is_said_once_a_minute_and_one_of_weeks_less_often():
    week = {"step": 100, "steps": 200, "images_per_s": 1.0, "eta_s": 300_000.0}  # 600 s of a thousandth
    said, due_s = [], {}
    for now_s in range(0, 1200, 30):
        progress_lines.tell({"a": BEAT, "b": week}, due_s, float(now_s), said.append)
    assert [sum(line.startswith(f"training {name}:") for line in said) for name in "ab"] == [20, 2]


def test_only_trainings_that_run_are_said(tmp_path):
    study = load_study(write_study(tmp_path / "study.yaml", backbones=["r50", "r101"], seeds=[0, 1]))
    beat(tmp_path)
    beat(tmp_path, "r50/seed1/0123456789ab", state="done", step=260)
    beat(tmp_path, "r101/seed0/0123456789ab", age_s=1e5)
    (tmp_path / "state" / "smoke" / "r101" / "seed1").mkdir(parents=True)
    found = running(study, tmp_path, {})
    assert {name: one["step"] for name, one in found.items()} == {"r50 seed 0": 120}


class Enough(Exception):
    """Ends the loop of a test."""


def looks(monkeypatch, number):
    """Let the loop end after so many looks, each at the trainings, too."""
    monkeypatch.setattr(progress_lines, "LOOKS_BETWEEN_LINES", 1)
    left = iter(range(number))

    def sleep(_):
        if next(left, None) is None:
            raise Enough

    monkeypatch.setattr(progress_lines.time, "sleep", sleep)


def paths_of(tmp_path, monkeypatch, **changes):
    """Paths of a study in the current folder."""
    monkeypatch.chdir(tmp_path)
    return load_study_paths(write_study(tmp_path / "study.yaml", study="smoke", **changes))


def test_a_file_that_vanishes_silences_one_look_only(tmp_path, monkeypatch):
    found = iter([FileNotFoundError, {"r50": BEAT}])

    def look():
        one = next(found)
        if isinstance(one, dict):
            return one
        raise one

    looks(monkeypatch, 2)
    said = []
    with pytest.raises(Enough):
        progress_lines.tell_always({}, look, lambda: "table", said.append)
    assert [line[:12] for line in said] == ["training r50"]


def test_the_table_is_said_after_each_row_but_the_last(tmp_path, monkeypatch):
    paths = paths_of(tmp_path, monkeypatch, backbones=["r50", "r101", "x101_32x4d"], seeds=[0, 1])

    def score(run):
        file = Path(f"results/smoke/{run}/metrics.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")

    for run in ("r50/seed0", "r50/seed1", "r101/seed0"):  # of other settings, and one that stays
        score(run)
        os.utime(f"results/smoke/{run}/metrics.json", (1e9, 1e9))
    planned = {f"results/smoke/{row}/seed{seed}/metrics.json" for row in paths.rows for seed in (0, 1)}
    awaited = progress_lines.awaited_scores(paths, planned - {"results/smoke/r101/seed0/metrics.json"})
    scored = iter(["r50/seed0", "r50/seed1", "", "r101/seed1", "x101_32x4d/seed1", "x101_32x4d/seed0"])
    done = []

    def look():
        if run := next(scored):
            score(run)
            done.append(run)
        return {}

    looks(monkeypatch, 6)
    tables = []
    with pytest.raises(Enough):
        progress_lines.tell_always(awaited, look, lambda: done[-1], tables.append)
    assert tables == ["r50/seed1", "r101/seed1"]
    assert progress_lines.awaited_scores(paths, {"results/smoke/table.md"}) == {}


def test_the_table_so_far_names_what_is_missing(tmp_path, monkeypatch):
    paths = paths_of(tmp_path, monkeypatch, backbones=["r50", "r101"])
    Path("results").mkdir()
    done = progress_lines.table_so_far(paths)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not started") == 2
    assert Path("results/smoke/partial_table.md").exists()


@pytest.mark.slow
def test_lines_and_the_table_after_a_row_are_on_the_screen_of_snakemake(tmp_path: Path):
    checkout = stub_workflow(tmp_path / "checkout")
    lines = checkout / "workflow" / "progress_lines.py"
    lines.write_text(re.sub("(SECONDS_BETWEEN_LINES|SECONDS_BETWEEN_LOOKS) = .*", r"\1 = 0.1", lines.read_text()))
    stub = checkout / "lvis_rcnn" / "train.py"
    stub.write_text(stub.read_text().replace("def step(args: argparse.Namespace) -> None:", WAITING_STEP, 1))
    report = checkout / "lvis_rcnn" / "report.py"
    report.write_text(report.read_text().replace("def step(args: argparse.Namespace) -> None:", TELLING_STEP, 1))
    study = write_study(tmp_path / "study.yaml", study="smoke", backbones=["r50", "r101"])
    beat(tmp_path / "results", host=socket.gethostname(), pid=1)
    runs = [f"results/smoke/{row}/seed0/metrics.json" for row in ("r50", "r101")]
    command = [sys.executable, "-m", "snakemake", *runs, "--cores", "1"]
    command += ["-s", str(checkout / "Snakefile"), "--configfile", str(study)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training r50 seed 0: step 120 of 260 (46 %), 31.2 images/s, 2h 05m left\n" in done.stderr
    at = [done.stderr.index(text) for text in ("Training r50", "the table so far\n", "Scoring r101")]
    assert at == sorted(at)
    assert done.stderr.count("the table so far\n") == 1
    assert not list((tmp_path / "results" / "smoke").glob("partial_table.*"))


WAITING_STEP = """def step(args: argparse.Namespace) -> None:
    time.sleep(2)"""
TELLING_STEP = """def step(args: argparse.Namespace) -> None:
    print("the table so far", file=sys.stderr)"""
