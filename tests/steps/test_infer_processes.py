"""Inference on several processes, killed at any moment, or started twice: the same bytes as one process."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lvis_rcnn.dataset.detections import shards_of
from lvis_rcnn.runs.inference import saved_images
from tests.conftest import HANGS_S, REPOSITORY
from tests.helpers.tiny_run import make_data, write_tiny_study
from tests.training.test_distributed import children_of

PROGRAM = REPOSITORY / "tests" / "helpers" / "few_detections.py"
IMAGES = 23


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train_images=2, val_images=IMAGES)


def start(drawn, folder, out="out", ranks=1, **environment):
    """Begin inference."""
    folder.mkdir(exist_ok=True)
    (folder / "model.pth").write_text("stands for a model")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "--"] if ranks > 1 else []
    words = ["--study", write_tiny_study(folder), "--run", "r50/seed0", "--model"]
    words += [folder / "model.pth", "--store", drawn.val_store, "--images", drawn.images]
    words += ["--state", folder / "state", "--out", folder / out]
    return subprocess.Popen(
        [sys.executable, *map(str, launcher), str(PROGRAM), *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*given, **more):
    """To the end; what it said."""
    process = start(*given, **more)
    said = process.communicate(timeout=HANGS_S)[1]
    assert process.returncode == 0, said
    return said


def kill(process):
    """SIGKILL to the process and to those it has started, which are in sessions of their own."""
    pids = [process.pid]
    with contextlib.suppress(OSError):
        pids += children_of(process)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def saved_in(folder):
    """Images that need not be made again."""
    return sum(saved_images(state_dir) for state_dir in folder.rglob("infer-*"))


def contents(folder):
    return {path.name: path.read_bytes() for path in shards_of(folder)}


@pytest.fixture(scope="module")
def of_one(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    run(drawn, folder)
    found = contents(folder / "out" / "detections")
    assert len(found) == IMAGES
    return found


@pytest.mark.slow
def test_two_processes_share_the_images_and_end_in_the_same_bytes(drawn, of_one, tmp_path):
    said = run(drawn, tmp_path / "run", ranks=2)
    assert said.count("detected 23 images") == 1
    assert contents(tmp_path / "run" / "out" / "detections") == of_one
    record = json.loads((tmp_path / "run" / "out" / "inference.json").read_text())
    assert (record["ranks"], record["images"], record["detections"]) == (2, IMAGES, 6 * IMAGES)


@pytest.mark.parametrize(
    ("ranks", "kills", "images_per_shard"),
    [
        pytest.param(2, 5, 1, marks=pytest.mark.slow),
        pytest.param(2, 5, 9, marks=pytest.mark.long),
        pytest.param(1, 20, 1, marks=pytest.mark.long),
        pytest.param(1, 20, 9, marks=pytest.mark.long),
    ],
)
def test_killed_at_random_moments_it_ends_in_the_same_bytes(drawn, tmp_path, ranks, kills, images_per_shard):
    pick = random.Random(ranks)
    killed, sizes = 0, {"IMAGES_PER_SHARD": str(images_per_shard)}
    run(drawn, tmp_path / "whole", **sizes)
    for _ in range(kills):
        process = start(drawn, tmp_path / "run", ranks=ranks, DETECTION_S="0.3", **sizes)
        saved = saved_in(tmp_path / "run")
        while process.poll() is None and saved_in(tmp_path / "run") == saved:
            if pick.random() < 0.002:
                break  # while it is still being built
            time.sleep(0.01)
        time.sleep(pick.uniform(0, 0.3))
        killed += process.poll() is None
        kill(process)
        process.communicate(timeout=HANGS_S)
    assert killed > 2
    run(drawn, tmp_path / "run", ranks=ranks, **sizes)
    expected = contents(tmp_path / "whole" / "out" / "detections")
    assert len(expected) == -(-IMAGES // images_per_shard)
    assert contents(tmp_path / "run" / "out" / "detections") == expected


@pytest.mark.slow
@pytest.mark.parametrize("images_per_shard", [pytest.param(1, marks=pytest.mark.long), 9])
def test_two_starts_on_one_state_folder_do_not_harm_each_other(drawn, tmp_path, images_per_shard):
    sizes = {"IMAGES_PER_SHARD": str(images_per_shard)}
    run(drawn, tmp_path / "whole", **sizes)
    first = start(drawn, tmp_path / "run", DETECTION_S="0.02", **sizes)
    second = start(drawn, tmp_path / "run", out="other", DETECTION_S="0.03", **sizes)
    for process in (first, second):
        said = process.communicate(timeout=HANGS_S)[1]
        assert process.returncode == 0, said
    for out in ("out", "other"):
        assert contents(tmp_path / "run" / out / "detections") == contents(tmp_path / "whole" / "out" / "detections")
