"""Two trainers, one state folder: one at a time, whoever is killed, suspended or asked to leave."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lvis_rcnn.runs import lease
from lvis_rcnn.runs.lease import Contender, Lease, claim, clear, held_lease, new_holder, newest, read_holder
from lvis_rcnn.system.cli import InputError
from tests.conftest import HANGS_S

ROOT = Path(__file__).parents[2]
LONG_S = 120.0  # never reached
SHORT = {"renew_s": 0.04, "stale_s": LONG_S, "handover_s": LONG_S}

# Each says what happens in one write to a file that is opened for appending, so that lines stand in their order.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
from lvis_rcnn.runs import lease

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
events = os.open(folder.parent / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
arrived = []
signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
if options["machine"]:
    lease.this_machine = lambda: options["machine"]

def say(*words):
    os.write(events, (" ".join(map(str, words)) + "\\n").encode())
"""

ONE = """
say("started", os.getpid())
with lease.held_lease(folder, **options["times"]) as mine:
    say("held", mine.mine.generation)
    while not arrived and not (mine.asked and options["heeds_requests"]):
        time.sleep(0.01)
    say("stopped", "by", "signal" if arrived else "request", not mine.why_not_held())
say("left")
"""

RACER = """
for turn in range(20):
    with lease.held_lease(folder, **options["times"]) as mine:
        say("enter", mine.mine.generation, os.getpid())
        time.sleep(0.001)
        assert not mine.why_not_held()
        say("leave", mine.mine.generation, os.getpid())
        if turn == 19:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def start(folder):
    """Starts trainers; ends them with the test."""
    processes = []

    def one(code=ONE, *, machine="", heeds_requests=True, env=None, **times):
        options = {"machine": machine, "heeds_requests": heeds_requests, "times": {**SHORT, **times}}
        command = [sys.executable, "-c", TRAINER + code, folder, json.dumps(options)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, stderr=subprocess.PIPE)
        processes.append(process)
        return process

    yield one
    for process in processes:
        process.kill()
        process.communicate()


def events(folder):
    path = folder.parent / "events"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(true, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for(folder, event):
    wait_until(lambda: event in events(folder))


def beat_of(folder, generation):
    return read_holder(lease.lease_path(folder, generation).read_bytes()).beat


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def said(monkeypatch):
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging.getLogger("lvis_rcnn"), level, lambda text, *values: lines.append(text % values))
    return lines


def test_a_released_folder_is_taken_at_once_and_older_leases_go(folder):
    began = time.monotonic()
    for generation in (1, 2, 3):
        with held_lease(folder, **SHORT) as mine:
            assert not mine.why_not_held()
            assert not mine.asked
            assert mine.thread.daemon
            assert names(folder) == [f"lease-{generation}.json"]
        assert mine.why_not_held()
        assert not mine.thread.is_alive()
    assert read_holder((folder / "lease-3.json").read_bytes()).state == "released"
    assert time.monotonic() - began < LONG_S / 4


def test_a_holder_gives_signs_of_life(folder):
    with held_lease(folder, **SHORT):
        wait_until(lambda: beat_of(folder, 1) > 3)


def test_the_folder_is_made_and_released_after_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), held_lease(tmp_path / "a" / "b", **SHORT):
        raise ZeroDivisionError
    assert read_holder((tmp_path / "a" / "b" / "lease-1.json").read_bytes()).state == "released"


def test_six_racing_trainers_never_hold_together(folder, start):
    racers = [start(RACER) for _ in range(6)]
    for racer in racers:
        _, errors = racer.communicate(timeout=HANGS_S)
        assert (racer.returncode, errors) == (-signal.SIGKILL, b"")
    lines = [line.split() for line in events(folder)]
    assert len(lines) == 2 * 6 * 20
    for number, (enter, leave) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert enter[:2] == ["enter", str(number + 1)]  # no generation twice, and none lost
        assert leave == ["leave", *enter[1:]]
    assert set(Counter(pid for word, _, pid in lines if word == "enter").values()) == {20}
    assert names(folder) == ["lease-120.json"]


def test_a_killed_holder_is_followed_at_once(folder, start, monkeypatch):
    lines = said(monkeypatch)
    holder = start()
    wait_for(folder, "held 1")
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    began = time.monotonic()
    with held_lease(folder, **SHORT) as mine:
        assert mine.mine.generation == 2
    assert time.monotonic() - began < LONG_S / 4
    assert len(lines) == 1
    assert f"(pid {holder.pid}) has ended without releasing it" in lines[0]


def test_a_holder_killed_on_another_machine_is_followed_when_it_is_stale(folder, start, monkeypatch):
    lines = said(monkeypatch)
    holder = start(machine="another")
    wait_for(folder, "held 1")
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with held_lease(folder, **{**SHORT, "stale_s": 0.7}) as mine:
        assert mine.mine.generation == 2
        assert time.monotonic() - began >= 0.7
    assert "asked it to save and hand over; waiting" in lines[0]
    assert "no sign of life of the trainer on" in lines[1]


@pytest.mark.parametrize("machine", ["", "another"])
def test_a_suspended_holder_learns_that_it_lost(folder, start, machine):
    holder = start(machine=machine)
    wait_for(folder, "held 1")
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    with held_lease(folder, **{**SHORT, "stale_s": 0.7}) as mine:
        assert names(folder) == ["lease-2.json"]
        holder.send_signal(signal.SIGCONT)
        holder.wait(timeout=HANGS_S)
        stopped = next(line for line in events(folder) if line.startswith("stopped"))
        assert stopped.endswith("False")  # no save
        assert machine == "" or stopped.startswith("stopped by request")
        assert not mine.why_not_held()
        assert names(folder) == ["lease-2.json"]


def test_a_holder_here_gets_sigterm_at_once(folder, start, monkeypatch):
    lines = said(monkeypatch)
    holder = start(renew_s=LONG_S)  # would find the request too late
    wait_for(folder, "held 1")
    with held_lease(folder, **SHORT) as mine:
        assert (mine.mine.generation, events(folder)[2]) == (2, "stopped by signal True")
    assert len(lines) == 1
    assert f"(pid {holder.pid}): asked it to save and hand over" in lines[0]


def test_a_holder_elsewhere_finds_the_request(folder, start):
    holder = start(machine="another")
    wait_for(folder, "held 1")
    with held_lease(folder, **SHORT) as mine:
        assert (mine.mine.generation, events(folder)[2]) == (2, "stopped by request True")
        assert names(folder) == ["lease-2.json"]
    assert holder.communicate(timeout=HANGS_S)[1] == b""


def test_a_holder_in_another_job_is_signalled_through_slurm(folder, start, tmp_path, monkeypatch):
    holder = start(machine="another", heeds_requests=False, env={"SLURM_JOB_ID": "4711"})
    wait_for(folder, "held 1")
    calls = fake_scancel(tmp_path, monkeypatch, f"kill -TERM {holder.pid}")
    with held_lease(folder, **SHORT) as mine:
        assert mine.mine.generation == 2
    assert calls.read_text() == "--signal=TERM --full 4711\n"  # once
    assert "stopped by signal True" in events(folder)


def fake_scancel(tmp_path, monkeypatch, action=""):
    script = tmp_path / "bin" / "scancel"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{action}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_a_job_is_signalled_only_once_its_trainer_is_seen_to_live(folder, tmp_path, monkeypatch):
    calls = fake_scancel(tmp_path, monkeypatch)
    other = replace(new_holder(1), machine="another", job="4711")
    assert claim(folder, other)
    contender = Contender(folder, LONG_S)
    for _ in range(3):
        contender.look()
        contender.ask()
    assert not calls.exists()
    lease.write(folder / "lease-1.json", replace(other, beat=1))
    contender.look()
    contender.ask()
    assert calls.read_text() == "--signal=TERM --full 4711\n"


def test_a_holder_that_does_not_leave_is_named(folder, start):
    holder = start(machine="another", heeds_requests=False, env={"SLURM_JOB_ID": "4711"})
    wait_for(folder, "held 1")
    with pytest.raises(InputError) as caught, held_lease(folder, **{**SHORT, "handover_s": 0.3}):
        pass
    message = str(caught.value)
    assert f"{folder}: is held by the trainer on {os.uname().nodename} (pid {holder.pid}, SLURM job 4711)" in message
    assert f"fix: end it, or delete {folder}/lease-1.json if there is no such process" in message


def test_clocks_that_jump_change_nothing(folder, monkeypatch):
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    with held_lease(folder, **SHORT) as mine:
        with pytest.raises(InputError, match="still runs"), held_lease(folder, **{**SHORT, "handover_s": 0.4}):
            pass
        assert not mine.why_not_held()
        assert mine.asked
        assert beat_of(folder, 1) > 0
    with held_lease(folder, **SHORT):
        assert names(folder) == ["lease-2.json"]


@pytest.mark.parametrize("content", [b"", b'{"generation": 3, "pid', b"\xff" * 100])
def test_a_damaged_lease_locks_nobody_out(folder, content, monkeypatch):
    lines = said(monkeypatch)
    (folder / "lease-3.json").write_bytes(content)
    (folder / ".lease-3.json.0123").write_bytes(b"")
    (folder / "lease-2.json").write_bytes(b"")
    began = time.monotonic()
    with held_lease(folder, **{**SHORT, "stale_s": 0.2}):
        assert time.monotonic() - began >= 0.2
        assert names(folder) == ["lease-4.json"]
    assert "no sign of life of a trainer whose lease-3.json cannot be read" in lines[-1]


def test_other_files_are_no_leases_and_stay(folder):
    others = ["lease-.json", "lease-1.json.txt", "lease.json", "model.pth", "release-7.json"]
    for name in others:
        (folder / name).touch()
    with held_lease(folder, **SHORT) as mine:
        assert mine.mine.generation == 1
    assert set(others) < set(names(folder))


def quiet_lease(folder, generation=1):
    mine = new_holder(generation)
    assert claim(folder, mine)
    return Lease(folder, mine, LONG_S)


def test_who_lost_writes_nothing_any_more(folder):
    mine = quiet_lease(folder)
    assert claim(folder, new_holder(2))
    mine.renew()
    assert (mine.lost, mine.asked, mine.why_not_held()) == (True, True, "another trainer has taken over")
    mine.thread.start()
    mine.release()
    assert names(folder) == ["lease-2.json"]
    assert read_holder((folder / "lease-2.json").read_bytes()).beat == 0


def test_who_loses_while_it_writes_leaves_nothing(folder, monkeypatch):
    mine, write = quiet_lease(folder), lease.write

    def late(path, holder):
        assert claim(folder, new_holder(2))
        write(path, holder)
        assert names(folder) == ["lease-1.json", "lease-2.json"]

    monkeypatch.setattr(lease, "write", late)
    mine.renew()
    assert mine.why_not_held()
    assert names(folder) == ["lease-2.json"]


def test_a_generation_that_is_over_cannot_be_taken_again(folder):
    assert claim(folder, new_holder(1))
    assert not claim(folder, new_holder(1))
    assert claim(folder, new_holder(2))
    assert names(folder) == ["lease-2.json"]
    assert not claim(folder, new_holder(1))
    assert names(folder) == ["lease-2.json"]


def test_who_asks_too_late_is_no_error(folder, monkeypatch):
    assert claim(folder, replace(new_holder(1), machine="another"))
    contender = Contender(folder, LONG_S)
    contender.look()
    replace_file = os.replace

    def late(source, target):
        assert claim(folder, new_holder(2))
        clear(folder)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", late)
    contender.ask()
    assert names(folder) == ["lease-2.json"]


def test_a_deleted_lease_is_lost(folder):
    mine = quiet_lease(folder)
    (folder / "lease-1.json").unlink()
    mine.renew()
    assert mine.why_not_held()
    assert names(folder) == []


@pytest.mark.parametrize("made_again", [False, True])
def test_of_a_deleted_folder_no_other_trainer_is_named(folder, monkeypatch, made_again):
    mine, said = quiet_lease(folder), []
    monkeypatch.setattr(lease.log, "warning", lambda text, *more: said.append(text % more))
    shutil.rmtree(folder)
    if made_again:  # by the heartbeat
        folder.mkdir()
    assert mine.why_not_held() == "was deleted during the training"
    assert said == [f"{folder}: was deleted during the training"]


@pytest.mark.parametrize("happened", [False, True])
def test_a_link_is_believed_only_by_what_is_there(folder, monkeypatch, happened):
    link = os.link

    def lost_reply(source, target):
        if happened:
            link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost_reply)
    assert claim(folder, new_holder(1)) == happened
    assert newest(folder) == happened


def test_a_file_system_without_hard_links_will_do(folder, monkeypatch):
    def refuse(source, target):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert claim(folder, new_holder(1))
    assert not claim(folder, new_holder(1))
    with held_lease(folder, **{**SHORT, "stale_s": 0.1}):
        assert names(folder) == ["lease-2.json"]


def test_a_waiting_trainer_that_stood_still_does_not_blame_the_holder(folder, monkeypatch):
    clock, read = [0.0], lease.read_bytes
    holder = replace(new_holder(1), machine="another")
    assert claim(folder, holder)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    contender = Contender(folder, 60.0)
    contender.look()

    def stand_still(path):
        clock[0] += 1000.0
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(lease, "read_bytes", stand_still)
        contender.look()  # no change, read late: known is only that there was none before
        assert contender.quiet_s == 0.0
        lease.write(folder / "lease-1.json", replace(holder, beat=1))
        contender.look()
    contender.look()
    assert contender.quiet_s == 0.0
    assert contender.reason_to_take() is None
    clock[0] += 60.0
    contender.look()
    assert "no sign of life" in contender.reason_to_take()


def test_a_full_disk_is_said_once_and_tried_again(folder, monkeypatch):
    lines, write, failures = said(monkeypatch), lease.write, []

    def full(path, holder):
        failures.append(path)
        raise OSError(28, "No space left on device")

    with held_lease(folder, **SHORT) as mine:
        monkeypatch.setattr(lease, "write", full)
        wait_until(lambda: len(failures) > 3)
        assert not mine.why_not_held()
        monkeypatch.setattr(lease, "write", write)
        beat = beat_of(folder, 1)
        wait_until(lambda: beat_of(folder, 1) > beat)
        monkeypatch.setattr(lease, "write", full)
    assert lines[0] == f"warning: {folder}: the lease cannot be renewed: No space left on device"
    assert len(lines) <= 2  # the release fails too


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/state: cannot be written: Not a directory"),
        held_lease(tmp_path / "file/state"),
    ):
        pass


def test_a_lease_replaced_while_it_is_read_over_nfs_is_a_sign_of_life(folder, monkeypatch):
    def stale_handle(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    assert claim(folder, replace(new_holder(1), machine="another"))
    contender = Contender(folder, 0.0)
    contender.look()
    monkeypatch.setattr(Path, "read_bytes", stale_handle)
    contender.look()
    assert (contender.beats, contender.quiet_s) == (1, 0.0)


def test_a_deleted_folder_ends_no_training(folder):
    with held_lease(folder, **SHORT) as mine:
        while folder.exists():
            with contextlib.suppress(OSError):  # a beat came between
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        wait_until(lambda: mine.asked)
        assert mine.why_not_held()
