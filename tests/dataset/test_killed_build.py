"""A build of a store that is killed at any moment, and started again, ends in the same bytes."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.system.files import atomic_folder, remove_abandoned
from tests.helpers.small_dataset import annotation, small_dataset

ROOT = Path(__file__).parents[2]
KILLS = 20


def write_larger(path: Path) -> None:
    """A file that takes a moment: 20,000 annotations in several pieces."""
    outline = [[round(0.01 * n, 2) for n in range(60)]]
    records = [annotation(n, 7 if n % 3 else 9, 20, [1, 2, 3, 4], outline) for n in range(1, 20_001)]
    path.write_text(json.dumps({**small_dataset(), "annotations": records}))


def start(annotations: Path, store: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "lvis_rcnn.store", "--annotations", annotations, "--out", store]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_twenty_kills_and_a_build_are_a_build(tmp_path):
    write_larger(tmp_path / "a.json")
    killed = tmp_path / "killed" / "a.store"
    began = time.monotonic()
    assert start(tmp_path / "a.json", tmp_path / "whole" / "a.store").wait() == 0
    duration_s = time.monotonic() - began
    pick, interrupted = random.Random(0), 0
    for kill in range(KILLS):
        # The first third is Python's start.
        process = start(tmp_path / "a.json", killed)
        time.sleep(duration_s * (0.3 + 0.7 * (kill + pick.random()) / KILLS))
        process.kill()
        interrupted += process.wait() != 0
        if (killed).exists():
            assert contents(open_store(killed).path) == contents(tmp_path / "whole" / "a.store")
    assert interrupted > KILLS // 4
    time.sleep(1.1)  # what is younger is not taken for abandoned
    assert start(tmp_path / "a.json", killed).wait() == 0
    assert contents(killed) == contents(tmp_path / "whole" / "a.store")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["a.store"]


def test_only_abandoned_folders_of_that_name_are_removed(tmp_path):
    for name in (".a.12345678", ".a.store.12345678", ".b.12345678"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    with atomic_folder(tmp_path / "a") as mine:
        os.utime(mine, (0, 0))
        remove_abandoned(tmp_path / "a")
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.store.12345678", ".b.12345678", "a"]
