"""Whatever happens while a run is saved, a start finds the old state or the new one, whole, and the next save works.

A kill is a real one: of a forked process, by SIGKILL.
"""

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training import checkpoint
from lvis_rcnn.training.checkpoint import FolderLost, Saver, drop_checkpoints, load_checkpoint, on_cpu
from tests.conftest import HANGS_S

# Python 3.12 and later warn of a fork beside threads; here the child uses none but its own.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

NUMBERS = 500


@pytest.fixture
def tmp_path(tmp_path_factory):
    """A folder in memory, where there is one: the hundreds of fsyncs of these tests take a busy disk a minute."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("run")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def said(monkeypatch):
    """The warnings, in the order in which they came."""
    warnings = []
    monkeypatch.setattr(checkpoint.log, "warning", lambda text, *values: warnings.append(text % values))
    return warnings


def state(step, numbers=NUMBERS):
    return {"model": {"weight": torch.full((numbers,), float(step))}, "progress": {"step": step, "unlogged": [0.5]}}


def loaded_step(folder):
    """The step of the state that a start finds, checked to be whole; 0 where there is none."""
    found = load_checkpoint(folder)
    if found is None:
        return 0
    step = found["progress"]["step"]
    assert found["progress"] == {"step": step, "unlogged": [0.5]}
    weight = found["model"]["weight"]
    assert torch.equal(weight, torch.full(weight.shape, float(step)))
    return step


def saved(saver, step, numbers=NUMBERS):
    saver.save(step, state(step, numbers))
    return saver.wait()


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def steps(folder):
    """Steps of the checkpoints of a folder that holds nothing else."""
    assert all(re.fullmatch(r"step\d{8}-[0-9a-f]{16}\.pth", name) for name in names(folder))
    return [int(name[4:12]) for name in names(folder)]


def path_of(folder, step):
    (path,) = folder.glob(f"step{step:08d}-*.pth")
    return path


def in_child(work):
    """Fork a process that does ``work`` and ends; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


# What is kept


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_is_loaded_and_the_one_before_kept(tmp_path, background):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "no such folder") is None
    saver = Saver(tmp_path, 0, background=background)
    for step in (1, 20, 300):
        assert saved(saver, step)
        assert loaded_step(tmp_path) == step
    assert steps(tmp_path) == [20, 300]
    assert path_of(tmp_path, 300).stat().st_mode & 0o777 == 0o644


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    others = ["checkpoint.pth", "model.pth", ".model.pth.abcdefgh", "step1-abc.pth", ".step00000001-.part", "log.json"]
    for name in others:
        (tmp_path / name).write_text("stays")
    saver = Saver(tmp_path, 0)
    for step in (1, 2, 3):
        assert saved(saver, step)
    assert len(names(tmp_path)) == len(others) + 2
    drop_checkpoints(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_what_a_killed_process_left_is_removed_at_the_start_and_when_the_run_is_done(tmp_path):
    assert saved(Saver(tmp_path, 0), 1)
    left = tmp_path / ".step00000002-ab_9defg.part"
    left.write_bytes(b"half")
    assert loaded_step(tmp_path) == 1
    assert left.exists()  # whoever only loads removes nothing
    Saver(tmp_path, 1)
    assert steps(tmp_path) == [1]
    left.write_bytes(b"half")
    drop_checkpoints(tmp_path)
    assert names(tmp_path) == []


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    saver = Saver(tmp_path, 0)
    assert saved(saver, 1)
    before = path_of(tmp_path, 1).stat()
    assert saved(saver, 1)
    assert saved(Saver(tmp_path, 1), 1)
    assert path_of(tmp_path, 1).stat() == before


def test_a_damaged_one_is_not_kept_as_the_one_before(tmp_path, said):
    saver = Saver(tmp_path, 0)
    for step in (10, 20):
        assert saved(saver, step)
    path_of(tmp_path, 20).write_bytes(b"damaged")
    saver = Saver(tmp_path, loaded_step(tmp_path))
    assert saved(saver, 15)
    assert steps(tmp_path) == [10, 15, 20]  # of a later step, so another trainer's for all this one knows
    assert saved(saver, 25)
    assert steps(tmp_path) == [15, 25]


def test_bytes_are_on_disk_before_their_name_and_the_name_before_anything_is_removed(tmp_path, monkeypatch):
    saver = Saver(tmp_path, 0)
    assert saved(saver, 1)
    assert saved(saver, 2)
    with calls_counted(monkeypatch) as calls:
        assert saved(saver, 3)
    order = [name for name in calls if name in ("write", "fsync", "replace", "unlink")]
    assert order[-4:] == ["fsync", "replace", "fsync", "unlink"]
    assert set(order[:-4]) == {"write"}


# Faults at every call

MODES = [pytest.param(False, id=""), pytest.param(True, id="background", marks=pytest.mark.slow)]
# Most calls write; in the quick tests one of eight stands for its neighbours.
STRIDES = [pytest.param(8, id=""), pytest.param(1, id="every write", marks=pytest.mark.slow)]
CALLS = ("open", "write", "fchmod", "fsync", "close", "replace", "listdir", "unlink")


@contextlib.contextmanager
def calls_counted(monkeypatch, fault=lambda number, name, call, arguments: call(*arguments)):
    """Let ``fault`` stand before each call of the system that a save makes, and list the calls."""
    calls = []

    def counted(name, call):
        def stand_in(*arguments, **options):
            calls.append(name)
            return fault(len(calls) - 1, name, lambda *given: call(*given, **options), arguments)

        return stand_in

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield calls


def partly(name, call, arguments):
    """Half of a write; a close that reports an error has closed all the same."""
    if name == "write":
        handle, chunk = arguments
        call(handle, chunk[: len(chunk) // 2])
    elif name == "close":
        call(*arguments)


def failing(code, *, done=False, from_then_on=False):
    """Faults by which the call of a number fails; ``done`` is what a network file system reports on a repeated call."""

    def at(number):
        def fault(current, name, call, arguments):
            if current < number or (current > number and not from_then_on):
                return call(*arguments)
            if done and name != "open":  # no handle, no leak
                call(*arguments)
            else:
                partly(name, call, arguments)
            raise OSError(code, os.strerror(code))

        return fault

    return at


def killed(number):
    """The fault by which the process ends at the call of that number."""

    def fault(current, name, call, arguments):
        if current == number:
            partly(name, call, arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    return fault


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    saver = Saver(folder, 0)
    assert saved(saver, 1)
    assert saved(saver, 2)
    return folder


@pytest.fixture(params=STRIDES)
def places(request, two_saved, tmp_path, monkeypatch):
    """Folders with two checkpoints, one for each call that the next save makes."""
    folder = shutil.copytree(two_saved, tmp_path / "counted")
    saver = Saver(folder, 2)
    with calls_counted(monkeypatch) as calls:
        assert saved(saver, 3)
    assert set(calls) == set(CALLS)
    numbers = [number for number, name in enumerate(calls) if name != "write" or number % request.param == 0]
    assert len(numbers) > 12
    return ((number, shutil.copytree(two_saved, tmp_path / f"at{number}")) for number in numbers)


FAULTS = {
    "I/O error": failing(errno.EIO),
    "full disk": failing(errno.ENOSPC),
    "done all the same": failing(errno.EIO, done=True),
    "dead from then on": failing(errno.EIO, from_then_on=True),
}


@pytest.mark.parametrize("background", MODES)
@pytest.mark.parametrize("kind", FAULTS)
def test_after_a_fault_at_any_call_the_old_state_or_the_new_is_there(places, monkeypatch, said, kind, background):
    outcomes = set()
    for number, folder in places:
        said.clear()
        saver = Saver(folder, 2, background=background)
        with calls_counted(monkeypatch, FAULTS[kind](number)):
            is_saved = saved(saver, 3)
        found = loaded_step(folder)
        assert said
        assert all(os.strerror(errno.ENOSPC if kind == "full disk" else errno.EIO) in line for line in said)
        if is_saved:
            assert found == 3
        elif kind != "dead from then on":  # which leaves what it can no longer remove
            assert steps(folder) == [1, 2]
        outcomes.add((is_saved, found))
        assert saved(saver, 4)
        assert loaded_step(folder) == 4
        Saver(folder, 4)
        assert steps(folder) == [found if is_saved else 2, 4]
    assert outcomes >= {(False, 2), (True, 3)}


@pytest.mark.parametrize("background", MODES)
def test_killed_at_any_call_the_old_state_or_the_new_is_there(places, monkeypatch, said, background):
    outcomes = set()
    for number, folder in places:
        saver = Saver(folder, 2, background=background)
        with calls_counted(monkeypatch, killed(number)):
            child = in_child(lambda: saved(saver, 3))  # noqa: B023  # it has ended before the next one
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        found = loaded_step(folder)
        outcomes.add(found)
        assert saved(Saver(folder, found), 4)
        assert loaded_step(folder) == 4
        assert steps(folder) == [found, 4]
    assert outcomes == {2, 3}
    assert said == []


def test_a_system_that_takes_only_part_of_a_write_gets_the_rest(two_saved, tmp_path, monkeypatch):
    def short(number, name, call, arguments):
        if name == "write":
            handle, chunk = arguments
            return call(handle, chunk[: 1 + len(chunk) // 2])
        return call(*arguments)

    with calls_counted(monkeypatch, short):
        assert saved(Saver(tmp_path, 0), 2)
    assert names(tmp_path) == [path_of(two_saved, 2).name]
    assert loaded_step(tmp_path) == 2


def test_the_warning_of_a_failed_save_says_why_and_what_is_left(tmp_path, monkeypatch, said):
    saver = Saver(tmp_path, 0)
    with calls_counted(monkeypatch, failing(errno.ENOSPC)(7)):
        assert not saved(saver, 5)
    (line,) = said
    assert f"step 5 could be saved in {tmp_path} (No space left on device)" in line
    assert line.endswith("there is none yet")
    assert saved(saver, 5)
    shutil.rmtree(tmp_path)
    assert not saved(saver, 6)
    assert f"in {tmp_path} (No such file or directory)" in said[1]
    assert said[1].endswith("the last one is of step 5")


@pytest.mark.parametrize("background", [False, True])
def test_a_state_that_cannot_be_written_is_a_warning_too(tmp_path, said, background):
    saver = Saver(tmp_path, 0, background=background)
    saver.save(1, {"lock": threading.Lock()})
    assert not saver.wait()
    assert "(TypeError: cannot pickle '_thread.lock' object)" in said[0]
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_not_taken_for_a_new_run(tmp_path, monkeypatch):
    assert saved(Saver(tmp_path, 0), 1)
    with calls_counted(monkeypatch, failing(errno.EIO)(0)), pytest.raises(OSError, match="Input/output error"):
        load_checkpoint(tmp_path)


# Damage


def damage(path, chance):
    content = bytearray(path.read_bytes())
    offset = chance.randrange(len(content))
    if chance.random() < 0.5:
        del content[offset:]
    else:
        content[offset] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(50))
def test_a_damaged_one_is_named_and_the_one_before_used(two_saved, tmp_path, said, seed):
    folder = shutil.copytree(two_saved, tmp_path / "run")
    damage(path_of(folder, 2), random.Random(seed))
    assert loaded_step(folder) == 1
    (line,) = said
    assert f"{path_of(folder, 2)} cannot be used (damaged" in line
    assert line.endswith(path_of(folder, 1).name)
    assert saved(Saver(folder, 1), 2)  # the same state again, under the same name
    assert loaded_step(folder) == 2
    assert steps(folder) == [1, 2]


def test_one_of_another_run_is_named_and_not_used(tmp_path, said):
    saver = Saver(tmp_path, 0)
    saver.save(1, {**state(1), "run": "mine"})
    saver.save(2, {**state(2), "run": "other"})
    assert load_checkpoint(tmp_path, "mine")["progress"]["step"] == 1
    assert "cannot be used (it is of another run); the one before is used" in said[0]
    with pytest.raises(InputError, match="of another run"):
        load_checkpoint(tmp_path, "third")
    saver.save(3, state(3))  # of an earlier version
    assert load_checkpoint(tmp_path, "mine")["progress"]["step"] == 3


def test_where_all_are_damaged_nothing_begins_anew_in_silence(two_saved, tmp_path, said):
    folder = shutil.copytree(two_saved, tmp_path / "run")
    for step in (1, 2):
        damage(path_of(folder, step), random.Random(step))
    why = "cannot be used (damaged: its bytes are not those that were written)"
    damaged = re.escape(f"{path_of(folder, 2).name} {why}, {path_of(folder, 1).name} {why}; fix: ")
    with pytest.raises(InputError, match=f"all checkpoints are damaged: {damaged}"):
        load_checkpoint(folder)
    assert said == []


def test_one_that_cannot_be_read_is_not_used_either(two_saved, tmp_path, said):
    folder = shutil.copytree(two_saved, tmp_path / "run")
    name = path_of(folder, 2).name
    path_of(folder, 2).unlink()
    (folder / name).mkdir()
    assert loaded_step(folder) == 1
    assert said[0].startswith(f"warning: {folder / name} cannot be used (Is a directory); the one before is used, ")


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"no right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_on_a_full_disk_training_goes_on_and_saves_again_once_there_is_room(small_disk, said, background):
    numbers = 150_000  # 0.6 MB
    saver = Saver(small_disk, 0, background=background)
    for step in (1, 2, 3):
        assert saved(saver, step, numbers)
    (small_disk / "another's").write_bytes(bytes(500_000))
    for step in (4, 5):
        assert not saved(saver, step, numbers)
        assert loaded_step(small_disk) == 3
        assert len(names(small_disk)) == 3
    assert len(said) == 2
    assert all("(No space left on device); training goes on" in line for line in said)
    (small_disk / "another's").unlink()
    assert saved(saver, 6, numbers)
    assert steps(small_disk) == [3, 6]
    assert loaded_step(small_disk) == 6


# In the background


@pytest.fixture
def held_up(monkeypatch):
    """Writes that wait until the event is set."""
    go_on, write = threading.Event(), checkpoint.write_checkpoint

    def slow(*arguments):
        assert go_on.wait(timeout=HANGS_S)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    return go_on


def test_what_is_written_is_the_state_as_it_was_when_save_was_called(tmp_path, held_up):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3, 3)}}
    progress = {"step": 1, "unlogged": [{"time": 0.5}]}
    current = {"model": model.state_dict(), "optimizer": {"state": moments}, "progress": progress}
    expected = on_cpu(current)
    saver = Saver(tmp_path, 0, background=True)
    saver.save(1, current)
    with torch.no_grad():
        model[0].weight += 1
    moments[0]["exp_avg"].zero_()
    moments[1] = moments.pop(0)
    progress["unlogged"][0]["time"] = 7.0
    progress["unlogged"].clear()
    assert names(tmp_path) == []
    held_up.set()
    assert saver.wait()
    found = load_checkpoint(tmp_path)
    assert found["progress"] == expected["progress"] == {"step": 1, "unlogged": [{"time": 0.5}]}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found["model"]["0.weight"], model.state_dict()["0.weight"])


def test_a_copy_keeps_types_layouts_and_the_versions_of_modules():
    weights = nn.BatchNorm2d(3).state_dict()
    copied = on_cpu({"model": weights, "pair": (1, [torch.rand(2)])})
    assert type(copied["model"]) is OrderedDict
    assert copied["model"]._metadata == weights._metadata
    assert type(copied["pair"]) is tuple
    assert type(copied["pair"][1]) is list
    pixels = torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last)
    assert on_cpu(pixels).is_contiguous(memory_format=torch.channels_last)


def test_in_the_background_or_not_the_bytes_are_the_same(tmp_path):
    for background in (False, True):
        (tmp_path / str(background)).mkdir()
        assert saved(Saver(tmp_path / str(background), 0, background=background), 1)
    assert names(tmp_path / "True") == names(tmp_path / "False")


def test_one_write_at_a_time(tmp_path, held_up):
    saver = Saver(tmp_path, 0, background=True)
    saver.save(1, state(1))
    second = threading.Thread(target=saver.save, args=(2, state(2)))
    second.start()
    second.join(timeout=0.1)
    assert second.is_alive()
    held_up.set()
    second.join()
    assert saver.wait()
    assert steps(tmp_path) == [1, 2]


@pytest.mark.slow
def test_a_process_that_ends_in_the_middle_of_a_write_finishes_it(tmp_path):
    code = (
        "import sys, time, torch; from pathlib import Path; from lvis_rcnn.training import checkpoint;"
        "write = checkpoint.write_state;"
        "checkpoint.write_state = lambda *arguments: time.sleep(0.5) or write(*arguments);"
        "saver = checkpoint.Saver(Path(sys.argv[1]), 0, background=True);"
        "saver.save(1, {'step': 1, 'weight': torch.ones(3)}); sys.exit(75)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 75
    assert load_checkpoint(tmp_path)["step"] == 1


# Another trainer


@pytest.mark.parametrize("background", [False, True])
def test_once_another_trainer_has_the_folder_nothing_is_saved(tmp_path, said, background):
    reason = [""]
    saver = Saver(tmp_path, 0, background=background, why_not_held=lambda: reason[0])
    assert saved(saver, 1)
    reason[0] = "another trainer has taken over"
    with pytest.raises(FolderLost, match="another trainer has taken over before step 2 was saved"):
        saved(saver, 2)
    assert steps(tmp_path) == [1]
    assert said == []


def test_what_happened_in_the_background_is_told_by_the_next_save(tmp_path):
    saver = Saver(tmp_path, 0, background=True, why_not_held=lambda: "was deleted")
    saver.save(1, state(1))
    with pytest.raises(FolderLost):
        saver.save(2, state(2))


def test_a_lease_that_cannot_be_read_is_a_failed_save(tmp_path, said):
    def unreadable():
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    assert not saved(Saver(tmp_path, 0, why_not_held=unreadable), 1)
    assert "(Stale file handle); training goes on" in said[0]
    assert names(tmp_path) == []


# Kills at any moment


@pytest.mark.parametrize("background", [False, True])
def test_killed_at_random_moments_nothing_that_was_reported_is_lost(tmp_path, background):
    chance, last, found = random.Random(0), 0, 0
    for _ in range(20):
        reported, reports = os.pipe()
        child = in_child(lambda: save_on_and_on(tmp_path, background, reports))  # noqa: B023  # ends in this round
        os.close(reports)
        with os.fdopen(reported) as lines:
            for _ in range(chance.randrange(3)):
                last = int(lines.readline())
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            last = max([last, *map(int, lines)])
        before, found = found, loaded_step(tmp_path)
        assert found >= max(before, last)
    assert last > 5
    Saver(tmp_path, found)
    assert max(steps(tmp_path)) == found
    assert len(steps(tmp_path)) <= 3


def save_on_and_on(folder, background, reports):
    """Save step after step, from the last one on, and report each that is on disk."""
    step = loaded_step(folder)
    saver = Saver(folder, step, background=background)
    while True:
        step += 1
        if saved(saver, step, 50_000):
            os.write(reports, b"%d\n" % step)
