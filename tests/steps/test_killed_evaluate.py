"""Scoring that is killed at any moment and started again ends in the same bytes."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.evaluation.test_average_precision import SIDE_PX, packed, rectangle

KILLS = 20


def write_set(folder: Path) -> None:
    """300 images of three categories, and 6,000 detections: two seconds of work."""
    pick = random.Random(0)
    dataset: dict[str, list] = {"images": [], "annotations": []}
    dataset["categories"] = [{"id": at + 1, "name": name, "frequency": name} for at, name in enumerate("rcf")]
    records = []
    for image in range(1, 301):
        lists = {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
        dataset["images"].append({"id": image, "height": SIDE_PX, "width": SIDE_PX, **lists})
        for _ in range(20):
            box = [pick.randint(0, 40), pick.randint(0, 40), pick.randint(5, 60), pick.randint(5, 60)]
            of = {"image_id": image, "category_id": pick.randint(1, 3)}
            found = [box[0] + pick.randint(0, 3), *box[1:]]
            records.append({**of, "score": pick.random(), "bbox": found, "segmentation": packed(found)})
            if pick.random() < 0.3:
                number = len(dataset["annotations"]) + 1
                shape = {"bbox": box, "area": box[2] * box[3], "segmentation": rectangle(*box)}
                dataset["annotations"].append({"id": number, **of, **shape})
    (folder / "truth.json").write_text(json.dumps(dataset))
    (folder / "results.json").write_text(json.dumps(records))


def command(folder: Path, out: Path) -> list[str]:
    words = ["--annotations", folder / "truth.json", "--detections", folder / "results.json", "--official", "no"]
    words += ["--bootstrap", 300, "--fixed", "--matches", out / "matches.npz", "--out", out / "metrics.json"]
    return [sys.executable, "-m", "lvis_rcnn.evaluate", *map(str, words)]


def start(folder: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(command(folder, out), cwd=REPOSITORY, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


@pytest.mark.slow
def test_twenty_kills_and_a_scoring_are_a_scoring(tmp_path):
    write_set(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(tmp_path, whole).wait() == 0
    duration_s = time.monotonic() - began
    pick, interrupted = random.Random(0), 0
    for kill in range(KILLS):
        process = start(tmp_path, killed)
        # The first fifth is Python's start.
        time.sleep(duration_s * (0.2 + 0.8 * (kill + pick.random()) / KILLS))
        process.kill()
        interrupted += process.wait() != 0
        # What is there is whole: metrics.json comes last, so that it never stands without its match results.
        there = contents(killed) if killed.exists() else {}
        assert there.items() <= contents(whole).items()
        assert "matches.npz" in there or "metrics.json" not in there
    assert interrupted > KILLS // 4
    assert start(tmp_path, killed).wait() == 0
    assert set(contents(whole)) == {"metrics.json", "matches.npz"}
    assert contents(killed) == contents(whole)
