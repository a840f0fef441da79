"""Several processes train what one would; one that dies or hangs ends them all, and the next start goes on."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from lvis_rcnn.model.weights import load_model
from lvis_rcnn.training.distributed import Ranks
from tests.conftest import REPOSITORY
from tests.helpers.tiny_run import make_data, write_tiny_study

PROGRAM = REPOSITORY / "tests" / "helpers" / "few_numbers.py"
STEPS = 20
# 14 of the 16 images of a step are there at an epoch's end: 7 groups of 8, one of them of a single image.
SCHEDULE = {"steps": STEPS, "images_per_step": 8, "normalisation_group": 2, "optimizer": "sgd", "learning_rate": 0.005}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    data = make_data(tmp_path_factory.mktemp("data"), train_images=11)
    sorted(data.images.rglob("train/*.png"))[0].write_bytes(b"")
    return data


class Program:
    """The trainer in ``folder``, with one process or several."""

    def __init__(self, drawn, folder: Path, ranks: int, steps: int = STEPS, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        study = write_tiny_study(
            folder, schedule=SCHEDULE | {"steps": steps}, augmentation={"skip_broken_images": True}
        )
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        words = ["--study", study, "--backbone", "r50", "--seed", "0", "--store", drawn.train_store]
        words += ["--images", drawn.images, "--repeat-factors", drawn.repeat_factors]
        words += ["--state", folder / "state", "--out", folder / "out"]
        self.words = [sys.executable, *launcher, PROGRAM, *words]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}

    def start(self) -> "subprocess.Popen[str]":
        """In a session of its own, so that a kill reaches all its processes."""
        return subprocess.Popen(
            list(map(str, self.words)),
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self) -> str:
        """To the end; what it said."""
        process = self.start()
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
        return error

    def outcome(self):
        """Weights and steps of the log."""
        lines = [json.loads(line) for line in (self.folder / "out" / "log.json").read_text().splitlines()]
        return load_model(self.folder / "out" / "model.pth")[0], lines

    def heartbeat(self) -> dict:
        """The newest sign of life; empty before the first."""
        (path, *_) = [*(self.folder / "state").rglob("progress.json"), None]
        return json.loads(path.read_text()) if path else {}


@pytest.fixture(scope="module")
def of_one(drawn, tmp_path_factory):
    program = Program(drawn, tmp_path_factory.mktemp("one") / "run", 1)
    program.run()
    return program.outcome()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_what_one_does(drawn, tmp_path, of_one, ranks):
    program = Program(drawn, tmp_path / "run", ranks)
    said = program.run()
    weights, lines = program.outcome()
    assert f"{ranks} processes" in said
    assert said.count("images seen") == 1
    for name, value in of_one[0].items():
        # Sums in another order, over 20 steps.
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for ours, theirs in zip(lines, of_one[1], strict=True):
        for key in ("loss", "loss_cls", "lr", "grad_norm", "images_seen"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-5)
    record = json.loads((program.folder / "out" / "train.json").read_text())
    assert record["ranks"] == ranks
    assert record["skipped_images"] == lines[-1]["skipped_images"] == of_one[1][-1]["skipped_images"] > 0


def wait_for_step(program: Program, process: "subprocess.Popen[str]", step: int, attempt: int = 1) -> None:
    """Return when a start of the run has come there, and something is saved."""
    while process.poll() is None:
        beat = program.heartbeat()
        if beat and beat["attempt"] == attempt and beat["step"] >= step and beat["saved_step"] > 0:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    """The ranks that torchrun started, by number."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in found}
    of_ranks = {pid: words for pid, words in environments.items() if any(w.startswith(b"RANK=") for w in words)}
    return sorted(of_ranks, key=lambda pid: next(int(w[5:]) for w in of_ranks[pid] if w.startswith(b"RANK=")))


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        (signal.SIGKILL, 0),
        (signal.SIGSTOP, 1),
    ],
)
@pytest.mark.slow
def test_a_lost_process_ends_all_and_is_named(drawn, tmp_path, number, lost):
    program = Program(drawn, tmp_path / "run", 2, steps=3000, CHECKPOINT_S="0.3", HANG_S="5")
    process = program.start()
    wait_for_step(program, process, 5)
    pid = children_of(process)[lost]
    began = time.monotonic()
    os.kill(pid, number)
    error = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    # torchrun gives one that hangs half a minute to end.
    assert time.monotonic() - began < (60 if number == signal.SIGKILL else 120)
    # torchrun names a dead process itself; a standing one only its neighbours can tell.
    assert f"pid {pid}" in error or f"(pid: {pid})" in error or f"process {pid}" in error, error
    if number == signal.SIGSTOP:
        assert f"lost contact with rank {lost} " in error
    again = program.start()
    wait_for_step(program, again, 5, attempt=2)
    again.terminate()
    assert "going on from step" in again.communicate(timeout=60)[1]


@pytest.mark.parametrize(
    ("noticed", "named"),
    [({0}, r"rank 1 \(host .*, pid \d+\), which hangs in the step"), ({0, 1}, "the others")],
)
def test_a_process_that_stands_still_inside_the_exchange_is_named(noticed, named):
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.05))
    ranks = [Ranks(rank, 2, torch.device("cpu"), store) for rank in range(2)]
    for rank in ranks:
        rank.announce(7)
    for rank in noticed:
        store.set(f"left{rank}", "7")
    assert re.search(f"lost contact with {named} ", str(ranks[0].lost(7, RuntimeError("timed out"))))


def interrupted(program: Program, number: int, pick: random.Random) -> None:
    """Start, and end it at a random moment; a SIGTERM goes to the launcher, a SIGKILL to all."""
    process = program.start()
    step = program.heartbeat().get("step", 0)
    if pick.random() < 0.8:
        while process.poll() is None and program.heartbeat().get("step", 0) <= step:
            time.sleep(0.01)
        time.sleep(pick.uniform(0, 0.4))
    else:
        time.sleep(pick.uniform(0, 4))  # while it is still being built
    if process.poll() is None:
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    process.communicate(timeout=90)


@pytest.fixture(scope="module")
def uninterrupted(drawn, tmp_path_factory):
    """Weights and log of so many steps on so many processes."""

    @functools.cache
    def outcome(ranks: int, steps: int):
        program = Program(drawn, tmp_path_factory.mktemp("whole") / "run", ranks, steps)
        program.run()
        return program.outcome()

    return outcome


@pytest.mark.parametrize(
    ("ranks", "times"),
    [
        pytest.param(2, 3, marks=pytest.mark.slow),
        pytest.param(1, 8, marks=pytest.mark.long),
        pytest.param(2, 7, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_at_random_moments_it_ends_in_the_same_bytes(drawn, uninterrupted, tmp_path, ranks, times, number):
    steps = 60 * times  # more than so many starts take before they are interrupted
    program = Program(drawn, tmp_path / "run", ranks, steps, CHECKPOINT_S="0.05")
    pick = random.Random(f"{ranks} {number}")
    for _ in range(times):
        interrupted(program, number, pick)
        for attempts in (tmp_path / "run" / "state").rglob("attempts.jsonl"):
            attempts.unlink()  # so many kills in a row, some before a first step, are refused for good reason
    program.run()
    (ours, our_lines), (theirs, their_lines) = program.outcome(), uninterrupted(ranks, steps)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    keys = ("step", "loss", "grad_norm", "lr")
    assert [[line[key] for key in keys] for line in our_lines] == [[line[key] for key in keys] for line in their_lines]


@pytest.mark.slow
def test_a_second_training_takes_over_and_ends_in_the_same_bytes(drawn, tmp_path):
    whole = Program(drawn, tmp_path / "whole", 1, steps=100)
    whole.run()
    # Four groups a step: the first would last 100 s, and is asked to stop as soon as the second is there.
    first = Program(drawn, tmp_path / "run", 1, steps=100, CHECKPOINT_S="0.3", ASLEEP_S="0.25").start()
    program = Program(drawn, tmp_path / "run", 1, steps=100, CHECKPOINT_S="0.3")
    wait_for_step(program, first, 5)
    second = program.start()  # as a restarted Snakemake does, which does not know that the first still runs
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 75, said
    assert "stopped at step" in said
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 0, said
    assert "asked it to save and hand over" in said
    assert "going on from step" in said
    (ours, _), (theirs, _) = program.outcome(), whole.outcome()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert program.heartbeat()["attempt"] == 2
