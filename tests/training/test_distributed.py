"""Several processes train what one would; one that dies or hangs ends them all, and the next start goes on."""

import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

import lvis_rcnn.training.distributed as distributed
from lvis_rcnn.model.weights import load_model
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.distributed import Ranks, started
from tests.conftest import HANGS_S, REPOSITORY
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

    def __init__(
        self, drawn, folder: Path, ranks: int, steps: int = STEPS, checkpoint_seconds: float = 75, **environment: str
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        study = write_tiny_study(
            folder,
            schedule=SCHEDULE | {"steps": steps},
            augmentation={"skip_broken_images": True},
            resources={"checkpoint_seconds": checkpoint_seconds},
        )
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        words = ["--study", study, "--row", "r50", "--seed", "0", "--store", drawn.train_store]
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
        error = process.communicate(timeout=HANGS_S)[1]
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


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_train_what_one_does(drawn, tmp_path, of_one, ranks):
    program = Program(drawn, tmp_path / "run", ranks)
    said = program.run()
    weights, lines = program.outcome()
    assert f"{ranks} processes" in said
    assert said.count("images seen") == 1
    for name, value in of_one[0].items():
        # Sums in another order, over 20 steps.
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    counts = weights["counters.cum_samples"]
    assert torch.equal(counts, of_one[0]["counters.cum_samples"])
    assert counts.sum() > 0
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
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.long),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_ends_all_and_is_named(drawn, tmp_path, number, lost):
    program = Program(drawn, tmp_path / "run", 2, steps=3000, checkpoint_seconds=0.3, HANG_S="5")
    process = program.start()
    wait_for_step(program, process, 5)
    pid = children_of(process)[lost]
    began = time.monotonic()
    os.kill(pid, number)
    error = process.communicate(timeout=HANGS_S)[1]
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
    assert "going on from step" in again.communicate(timeout=HANGS_S)[1]


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


class Event:
    """Stands for one of CUDA."""

    def __init__(self, has_come: bool) -> None:
        self.has_come = has_come

    def query(self) -> bool:
        return self.has_come


def watch_of(store=None, count=1, device="cuda"):
    return distributed.Watch(Ranks(0, count, torch.device(device), store))


def several(count=2):
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.05))
    return store, [Ranks(rank, count, torch.device("cuda"), store) for rank in range(count)]


def later(watch, monkeypatch, seconds):
    """What it sees so many seconds later."""
    with monkeypatch.context() as patch:
        now = time.monotonic()
        patch.setattr(time, "monotonic", lambda: now + seconds)
        return watch.look()


@pytest.fixture
def started_watch(monkeypatch):
    """Watches whose thread is not started, so that a test looks itself."""
    monkeypatch.setattr(threading.Thread, "is_alive", lambda self: True)


@pytest.mark.usefixtures("started_watch")
def test_a_device_that_hangs_is_named_while_the_host_is_held_up(monkeypatch):
    watch = watch_of()
    with watch.step(7) as given:
        assert later(watch, monkeypatch, 299) is None
        assert "step 7 on cuda: the device has not ended a step in 301 s; fix: start again" in str(
            later(watch, monkeypatch, 301)
        )
        given.event = Event(has_come=False)
    with watch.step(8) as given:  # held up behind the step before, which is the one to name
        given.event = Event(has_come=False)
        assert str(later(watch, monkeypatch, 301)).startswith("step 7 on cuda")


@pytest.mark.usefixtures("started_watch")
def test_a_step_that_has_ended_is_not_watched_and_reading_images_takes_its_time(monkeypatch):
    watch, event = watch_of(), Event(has_come=False)
    with watch.step(7) as given:
        given.event = event
    assert later(watch, monkeypatch, 301) is not None
    event.has_come = True
    assert later(watch, monkeypatch, 301) is None
    with pytest.raises(ZeroDivisionError), watch.step(8):
        raise ZeroDivisionError  # as out of memory: it is said by itself
    assert later(watch, monkeypatch, 301) is None


@pytest.mark.usefixtures("started_watch")
def test_a_process_that_stands_still_is_named_after_its_time_behind_an_exchange_on_gpus(monkeypatch):
    store, ranks = several(3)
    for rank, step in zip(ranks, (7, 7, 6), strict=True):
        rank.announce(step)
    watch = watch_of(store, 3)
    with watch.step(7) as given:
        given.event = Event(has_come=False)
    assert later(watch, monkeypatch, 299) is None
    named = rf"rank 0 of 3, step 7: lost contact with rank 2 \(host .*, pid {os.getpid()}\), last seen at step 6 \("
    assert re.match(named, str(later(watch, monkeypatch, 301)))


@pytest.mark.usefixtures("started_watch")
def test_a_process_that_has_died_is_named_at_once(monkeypatch):
    store, ranks = several()
    dead = subprocess.Popen(["true"])
    dead.wait()
    ranks[0].announce(7)
    store.set("rank1", f"7 {socket.gethostname()} {dead.pid}")
    watch = watch_of(store, 2)
    with watch.step(7) as given:
        given.event = Event(has_come=False)
    assert later(watch, monkeypatch, 4) is None
    assert f"lost contact with rank 1 (host {socket.gethostname()}, pid {dead.pid}), which has died" in str(
        later(watch, monkeypatch, 6)
    )


@pytest.mark.parametrize("record", [lambda error: None, lambda error: 1 / 0], ids=["recorded", "recording fails"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_watch_says_records_and_ends_the_process(monkeypatch, record):
    ended, recorded, said = threading.Event(), [], []
    watch = watch_of()
    monkeypatch.setattr(distributed, "end_process", lambda: (watch.over.set(), ended.set()))
    monkeypatch.setattr(distributed, "HANG_S", 0.0)
    monkeypatch.setattr(distributed, "LOOK_S", 0.01)
    monkeypatch.setattr(distributed.log, "error", lambda text, *words: said.append(text % words))
    with watch:
        watch.record = lambda error: (recorded.append(error), record(error))
        with watch.step(7):
            assert ended.wait(10)  # a host that never comes back
        watch.thread.join()
    assert said == [f"error: {recorded[0]}"]
    assert "step 7 on cuda" in said[0]


def test_on_a_cpu_a_step_may_take_its_time(monkeypatch):
    monkeypatch.setattr(distributed, "HANG_S", 0.0)
    with watch_of(device="cpu") as watch, watch.step(7):
        assert not watch.thread.is_alive()
        assert watch.look() is None


def test_a_single_process_that_hangs_gets_its_message():
    error = Ranks(0, 1, torch.device("cuda", 0)).lost(7, TimeoutError("the device has not ended a step in 300 s"))
    assert str(error).startswith("step 7 on cuda:0: the device has not ended a step in 300 s; fix: start again")


@pytest.mark.parametrize(
    ("name", "text"),
    [("RANK", None), ("MASTER_ADDR", None), ("MASTER_PORT", None), ("RANK", "x"), ("WORLD_SIZE", "2.5")],
)
def test_an_environment_that_torchrun_did_not_make_is_named(monkeypatch, name, text):
    complete = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for key, value in {**complete, name: text}.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key, raising=False)
    with pytest.raises(InputError, match=f"{name} of the environment: is .*torchrun"), started("cpu"):
        pass


def test_who_does_not_come_to_the_end_is_named():
    _, ranks = several()
    ranks[1].meet_first()  # which does not wait
    ranks[0].meet_first()
    with pytest.raises(distributed.RankLost, match=r"rank 0 of 2: waited 0 s for other processes \(ended1\)"):
        ranks[0].meet("ended", 0.01)


def test_an_exchange_of_numbers_names_who_is_lost(monkeypatch):
    _, ranks = several()
    ranks[1].announce(49)

    def closed(*arguments, **options):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", closed)
    on_cpu = Ranks(0, 2, torch.device("cpu"), ranks[0].store)
    with pytest.raises(distributed.RankLost, match=r"lost contact with rank 1 .*, last seen at step 49 \(Connection"):
        on_cpu.largest(3, 50)


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
    process.communicate(timeout=HANGS_S)


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
    ("number", "ranks", "times"),
    [
        pytest.param(signal.SIGKILL, 2, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, 3, marks=pytest.mark.long),
        *(
            pytest.param(number, ranks, times, marks=pytest.mark.long)
            for number in (signal.SIGKILL, signal.SIGTERM)
            for ranks, times in ((1, 8), (2, 7))
        ),
    ],
)
def test_interrupted_at_random_moments_it_ends_in_the_same_bytes(drawn, uninterrupted, tmp_path, number, ranks, times):
    steps = 60 * times  # more than so many starts take before they are interrupted
    program = Program(drawn, tmp_path / "run", ranks, steps, checkpoint_seconds=0.05)
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
    first = Program(drawn, tmp_path / "run", 1, steps=100, checkpoint_seconds=0.3, ASLEEP_S="0.25").start()
    program = Program(drawn, tmp_path / "run", 1, steps=100, checkpoint_seconds=0.3)
    wait_for_step(program, first, 5)
    second = program.start()  # as a restarted Snakemake does, which does not know that the first still runs
    said = first.communicate(timeout=HANGS_S)[1]
    assert first.returncode == 75, said
    assert "stopped at step" in said
    said = second.communicate(timeout=HANGS_S)[1]
    assert second.returncode == 0, said
    assert "asked it to save and hand over" in said
    assert "going on from step" in said
    (ours, _), (theirs, _) = program.outcome(), whole.outcome()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert program.heartbeat()["attempt"] == 2
