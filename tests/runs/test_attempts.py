"""Starts and their ends: recorded whatever kills them, refused when the next could only end as the last."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.runs import attempts
from lvis_rcnn.runs.attempts import begin_attempt, end_attempt, read_attempts, read_lines
from lvis_rcnn.system.cli import InputError

ROOT = Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from pathlib import Path
from lvis_rcnn.runs import attempts
attempts.code_version = lambda: "1"
number = attempts.begin_attempt(Path(sys.argv[1]), 40)
(Path(sys.argv[1]) / "progress.json").write_text('{"attempt": %d, "step": 41}' % number)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def version(monkeypatch):
    """The version of the code, as a list of one, to be changed by a test."""
    current = ["1"]
    monkeypatch.setattr(attempts, "code_version", lambda: current[0])
    return current


def fail(folder, step, error, *, first_step=0):
    end_attempt(folder, begin_attempt(folder, first_step), "error", step, error)


def beat(folder, attempt, step):
    """The heartbeat of a start that has come to ``step``."""
    (folder / "progress.json").write_text(json.dumps({"attempt": attempt, "step": step}))


def test_a_start_and_its_end_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    before = time.time()
    assert read_attempts(tmp_path) == []
    assert begin_attempt(tmp_path, 40) == 1
    (running,) = read_attempts(tmp_path)
    assert before <= running.begin.started_at <= time.time()
    assert (running.begin.attempt, running.begin.host) == (1, socket.gethostname())
    assert (running.begin.pid, running.begin.job, running.begin.step, running.end) == (os.getpid(), "4711", 40, None)
    end_attempt(tmp_path, 1, "stopped", 55)
    assert begin_attempt(tmp_path, 55) == 2
    end_attempt(tmp_path, 2, "error", 56, ZeroDivisionError("division\n by zero"))
    assert begin_attempt(tmp_path, 55) == 3
    end_attempt(tmp_path, 3, "done", 60)
    found = [
        (one.begin.attempt, one.begin.step, one.end.step, one.ended, one.end.error) for one in read_attempts(tmp_path)
    ]
    assert found == [
        (1, 40, 55, "stopped", None),
        (2, 55, 56, "error", "ZeroDivisionError: division by zero"),
        (3, 55, 60, "done", None),
    ]
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "end"] * 3
    assert {line["version"] for line in lines} == {1}


def test_the_code_version_is_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.undo()
    begin_attempt(tmp_path, 0)
    assert read_attempts(tmp_path)[0].begin.code_version == attempts.code_version() != "1"


def test_a_third_start_into_the_same_error_is_refused(tmp_path):
    fail(tmp_path, 50, InputError("step 50, images 7", "loss is not finite"), first_step=0)
    fail(tmp_path, 50, InputError("step 50, images 7", "loss is not finite"), first_step=40)
    for _ in range(2):  # the refusal leaves no trace
        with pytest.raises(InputError) as caught:
            begin_attempt(tmp_path, 40)
        host, path = socket.gethostname(), tmp_path / "attempts.jsonl"
        for part in (f"(1 on {host}, 2 on {host})", "at step 50: step 50, images 7: loss is not", f"delete {path}"):
            assert part in str(caught.value)
    path.unlink()
    assert begin_attempt(tmp_path, 40) == 1


def test_errors_that_differ_in_numbers_alone_are_the_same(tmp_path):
    fail(tmp_path, 50, RuntimeError("CUDA out of memory. Process 12 has 3.50 GiB at 0x7fAB"))
    fail(tmp_path, 50, RuntimeError("CUDA out of memory. Process 345 has 3.75 GiB at 0x7fcd"))
    with pytest.raises(InputError, match=r"Process 345 has 3\.75 GiB"):
        begin_attempt(tmp_path, 0)


@pytest.mark.parametrize(
    ("step", "error"),
    [(51, RuntimeError("a")), (50, RuntimeError("b")), (50, ValueError("a")), (50, InputError("a", ""))],
)
def test_another_error_or_step_is_another_try(tmp_path, step, error):
    fail(tmp_path, 50, RuntimeError("a"))
    fail(tmp_path, step, error)
    assert begin_attempt(tmp_path, 0) == 3


@pytest.mark.parametrize("kind", ["stopped", "done"])
def test_an_error_before_another_end_is_forgotten(tmp_path, kind):
    fail(tmp_path, 50, RuntimeError("a"))
    end_attempt(tmp_path, begin_attempt(tmp_path, 0), kind, 50)
    fail(tmp_path, 50, RuntimeError("a"))
    assert begin_attempt(tmp_path, 0) == 4


def test_any_number_of_stops_is_fine(tmp_path):
    for number in range(1, 8):
        assert begin_attempt(tmp_path, 0) == number
        end_attempt(tmp_path, number, "stopped", 0)


def test_changed_code_is_another_try(tmp_path, version):
    fail(tmp_path, 50, RuntimeError("a"))
    fail(tmp_path, 50, RuntimeError("a"))
    version[0] = "2"
    fail(tmp_path, 50, RuntimeError("a"))
    fail(tmp_path, 50, RuntimeError("a"))
    with pytest.raises(InputError, match=r"starts \(3 on .*, 4 on"):
        begin_attempt(tmp_path, 0)
    version[0] = "3"
    for number in (5, 6, 7):
        assert begin_attempt(tmp_path, 0) == number
        beat(tmp_path, number, 1)
    with pytest.raises(InputError, match=r"starts \(5 on .*, 6 on .*, 7 on"):
        begin_attempt(tmp_path, 0)
    version[0] = "4"
    assert begin_attempt(tmp_path, 0) == 8


def test_a_fourth_start_after_three_that_were_killed_is_refused(tmp_path):
    for number in (1, 2, 3):
        process = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, check=False)
        assert process.returncode == -signal.SIGKILL
        assert read_attempts(tmp_path)[-1].begin.attempt == number
    with pytest.raises(
        InputError, match=r"3 starts \(1 on .*\) were killed, .* after step 40; fix: .* delete .*attempts"
    ):
        begin_attempt(tmp_path, 40)
    assert begin_attempt(tmp_path, 41) == 4  # the last of them saved one


@pytest.mark.parametrize(
    ("steps", "slurm_says", "refused"),
    [
        (0, "", False),  # killed while it waited for a busy file server, or built the network
        (0, "PREEMPTED", False),
        (0, "NODE_FAIL", False),
        (0, "OUT_OF_MEMORY", True),
        (0, "CANCELLED by 1000", False),
        (3, "", True),
        (3, "OUT_OF_MEMORY", True),
        (3, "PREEMPTED", False),
    ],
)
def test_only_kills_at_work_count(tmp_path, monkeypatch, steps, slurm_says, refused):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    sacct = tmp_path / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text(f"#!/bin/sh\necho '{slurm_says}'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sacct.parent}:{os.environ['PATH']}")
    for number in (1, 2, 3):
        assert begin_attempt(tmp_path, 40) == number
        beat(tmp_path, number, 40 + steps)
    if refused:
        with pytest.raises(InputError, match=r"3 starts \(1 on .*\) were killed"):
            begin_attempt(tmp_path, 40)
    else:
        assert [begin_attempt(tmp_path, 40) for _ in range(3)] == [4, 5, 6]


def test_a_heartbeat_of_an_earlier_start_or_a_damaged_one_is_no_step(tmp_path):
    for number in (1, 2, 3, 4):
        assert begin_attempt(tmp_path, 40) == number
        beat(tmp_path, 1, 47)
    (tmp_path / "progress.json").write_text("{")
    assert begin_attempt(tmp_path, 40) == 5


def test_kills_between_which_steps_were_gained_are_fine(tmp_path):
    for number, step in enumerate((0, 0, 10, 10, 20, 20, 30), start=1):
        assert begin_attempt(tmp_path, step) == number


def test_a_line_cut_by_a_kill_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of them are slow
    begin_attempt(tmp_path, 10)
    end_attempt(tmp_path, 1, "error", 20, RuntimeError("größer"))
    path = tmp_path / "attempts.jsonl"
    whole = path.read_bytes()
    begin = whole.index(b"\n") + 1
    for length in {*range(0, len(whole), 7), begin - 1, begin, len(whole) - 1, len(whole)}:
        path.write_bytes(whole[:length])
        found = read_attempts(tmp_path)
        assert len(found) == (length >= begin - 1)
        assert [one.ended for one in found] == (["error" if length >= len(whole) - 1 else None] * len(found))
        number = begin_attempt(tmp_path, 15)
        end_attempt(tmp_path, number, "done", 30)
        assert number == len(found) + 1
        *earlier, last = read_attempts(tmp_path)
        assert earlier == found
        assert (last.begin.step, last.end.step, last.ended) == (15, 30, "done")


@settings(max_examples=30)
@given(damage=st.binary(max_size=60))
def test_no_damage_hides_the_lines_around_it(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("run")
    begin_attempt(folder, 10)
    path = folder / "attempts.jsonl"
    path.write_bytes(path.read_bytes() + damage)
    end_attempt(folder, 1, "done", 20)
    assert [(one.begin.attempt, one.ended) for one in read_attempts(folder)] == [(1, "done")]


@pytest.mark.parametrize(
    "line",
    [
        {"event": "begin", "attempt": 1},
        {"event": "other"},
        {"event": "end", "attempt": 1, "ended_at": 1e300, "kind": "done", "step": 3, "error": None},
        {"event": "end", "attempt": 1, "ended_at": 0.0, "kind": "lost", "step": 3, "error": None},
        {"event": "end", "attempt": 1, "ended_at": 0.0, "kind": "done", "step": 3, "error": None, "version": 2},
        [],
    ],
)
def test_lines_that_nobody_wrote_count_as_none(tmp_path, line):
    (tmp_path / "attempts.jsonl").write_text(json.dumps(line) + "\n")
    assert read_lines(tmp_path / "attempts.jsonl") == []


def test_the_end_of_an_unknown_start_is_ignored(tmp_path):
    end_attempt(tmp_path, 7, "done", 3)
    assert read_attempts(tmp_path) == []
    assert begin_attempt(tmp_path, 0) == 1


def test_a_full_disk_refuses_a_start_and_loses_no_end(tmp_path, monkeypatch):
    number = begin_attempt(tmp_path, 0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, text: write(handle, text[:9]))
    with pytest.raises(InputError, match=r"attempts\.jsonl: cannot be written: No space left on device; fix: make"):
        begin_attempt(tmp_path, 5)
    end_attempt(tmp_path, number, "done", 5)  # warns
    monkeypatch.undo()
    assert [one.ended for one in read_attempts(tmp_path)] == [None]
    end_attempt(tmp_path, number, "done", 5)
    assert [one.ended for one in read_attempts(tmp_path)] == ["done"]


def test_a_long_error_is_cut(tmp_path):
    fail(tmp_path, 1, RuntimeError("x" * 10_000))
    assert len(read_attempts(tmp_path)[0].end.error) == 1000
