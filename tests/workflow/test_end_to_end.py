"""A very small study with every step real, from the drawing to the table; its tests share one that is finished."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lvis_rcnn.reporting.notes import OTHER_WORK
from tests.conftest import REPOSITORY, Ended, copy_study, run_snakemake, snakemake_command, write_study

RUN = Path("results", "tiny", "r50", "seed0")


def tiny_study(folder: Path, **changes: Any) -> Path:
    """One backbone, 40 images of 64 pixels, a few steps on one thread."""
    values: dict[str, Any] = {
        "study": "tiny",
        "title": "tiny",
        "dataset": {"name": "tiny", "draw": {"seed": 0, "train_images": 40, "val_images": 10}},
        "schedule": {"steps": 4, "images_per_step": 2, "normalisation_group": 2, "warmup_steps": 1},
        "compute": {"threads": 1},
        "resources": {"log_every_steps": 1},
    }
    return write_study(folder / "tiny.yaml", **{**values, **changes})


# What the tests of a finished study need: the anchors of a published file, and steps enough to be killed between them.
FINISHED: dict[str, Any] = {
    "model": {"anchor_scale": 8},
    "schedule": {"steps": 12, "images_per_step": 2, "normalisation_group": 2},
}


def run(study: Path, *arguments: str | Path) -> Ended:
    return run_snakemake(*arguments, "--cores", "2", "--configfile", study, cwd=study.parent)


def lacking(line: dict[str, str]) -> str:
    """What a line of table.csv lacks, but for a speed measured beside other tests: it is no number, and says why."""
    disturbed = line["missing"].startswith(f"{OTHER_WORK} while fps was measured")
    assert disturbed != bool(line["fps"])
    return "" if disturbed else line["missing"]


@pytest.mark.slow
def test_one_command_draws_trains_scores_and_writes_the_table(finished_study: Path, tmp_path: Path) -> None:
    (row,) = csv.DictReader((finished_study / "results" / "tiny" / "table.csv").read_text().splitlines())
    assert (row["study"], row["title"], lacking(row)) == ("tiny", "R-50-FPN", "")
    assert all(float(row[column]) >= 0 for column in ("memory_gb", "box_AP", "mask_AP"))
    record = json.loads((finished_study / RUN / "train.json").read_text())
    page = (finished_study / "results" / "tiny" / "table.md").read_text()
    assert f"[model](r50/seed0/{record['model_file']})" in page
    assert (finished_study / RUN / record["model_file"]).samefile(finished_study / RUN / "model.pth")

    copy_study(finished_study, tmp_path)
    words = ["--study", tmp_path / "tiny.yaml", "--results", tmp_path / "results", "--remove"]
    subprocess.run([sys.executable, "-m", "lvis_rcnn.clean", *map(str, words)], cwd=REPOSITORY, check=True)
    assert not any((tmp_path / "results" / "state").rglob("*.pth"))
    assert "Nothing to be done" in run(tmp_path / "tiny.yaml").text

    model = (tmp_path / RUN / "model.pth").stat()
    ended = run(tiny_study(tmp_path, **FINISHED, evaluation={"detections_per_image": 5}))
    assert ended.code == 0, ended.text
    assert ended.jobs() == {"evaluate": 1, "table": 1, "plots": 1, "pages": 1}
    assert (tmp_path / RUN / "model.pth").stat() == model


def stop_training(study: Path, number: signal.Signals, reached: Callable[[dict[str, Any]], bool]) -> str:
    """Start the study, send its trainer a signal once its heartbeat says so; what the log of the training ends with."""
    process = subprocess.Popen(
        snakemake_command(RUN / "metrics.json", "--cores", "2", "--configfile", study),
        cwd=study.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stopped = None
    while process.poll() is None:
        for file in study.parent.glob("results/state/tiny/r50/seed0/*/progress.json"):
            heartbeat = json.loads(file.read_text())
            if stopped is None and heartbeat["state"] == "running" and reached(heartbeat):
                os.kill(heartbeat["pid"], number)
                stopped = heartbeat
        time.sleep(0.05)
    assert stopped is not None
    assert process.returncode != 0
    assert not (study.parent / RUN / "model.pth").exists()
    return (study.parent / "results" / "tiny" / "logs" / "train_r50_seed0.log").read_text()


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights_and_ap(finished_study: Path, tmp_path: Path) -> None:
    copy_study(finished_study, tmp_path)
    for trained in (RUN, "results/state"):
        shutil.rmtree(tmp_path / trained)
    killed, folders = tmp_path / "tiny.yaml", (finished_study, tmp_path)
    assert "stopped at step" in stop_training(killed, signal.SIGTERM, lambda beat: beat["step"] >= 3)
    saved = json.loads(next(killed.parent.glob("results/state/tiny/r50/seed0/*/progress.json")).read_text())["step"]
    log = stop_training(killed, signal.SIGKILL, lambda beat: saved + 2 <= beat["step"] < 12)
    assert f"going on from step {saved}" in log
    ended = run(killed, RUN / "metrics.json")
    assert ended.code == 0, ended.text
    weights = [torch.load(folder / RUN / "model.pth", weights_only=True)["state_dict"] for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [json.loads((folder / RUN / "metrics.json").read_text()) for folder in folders]
    assert metrics[0] == metrics[1]
