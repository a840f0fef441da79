"""Which process a lease names: ended, a later one of the same number, or none that can be told from here."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from lvis_rcnn.runs import lease
from lvis_rcnn.runs.lease import is_gone, new_holder, other_job, read_holder, signal_job, terminate
from lvis_rcnn.system import machine
from lvis_rcnn.system.machine import ENDED, slurm_job, start_ticks

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def holder_of(process):
    return replace(new_holder(1), pid=process.pid, pid_start=start_ticks(process.pid))


def test_a_lease_reads_as_it_was_written():
    mine = new_holder(3)
    assert read_holder(msgspec.json.encode(mine)) == mine
    assert (mine.pid, mine.generation, mine.beat, mine.state) == (os.getpid(), 3, 0, "held")


NOBODY = ({"pid": 0}, {"pid": -1}, {"pid": 2**40}, {"job": "--user=me"}, {"job": ""}, {"state": "lost"})
NOBODY += ({"format": "other"}, {"version": 2}, {"host": None})
DAMAGED = (b"", b"{", b"\xff\xfe", b'{"host": "\xff"}', b"[]", b"{}", b"\0" * 100)


@pytest.mark.parametrize(
    "content", [*DAMAGED, *(msgspec.json.encode({**msgspec.to_builtins(new_holder(1)), **values}) for values in NOBODY)]
)
def test_a_damaged_lease_is_not_read(content):
    assert read_holder(content) is None


def test_the_sentence_about_a_holder():
    other = replace(new_holder(1), host="gpu07", pid=12, job="4711")
    assert str(other) == "the trainer on gpu07 (pid 12, SLURM job 4711)"
    assert str(replace(other, job=None)) == "the trainer on gpu07 (pid 12)"


@needs_proc
def test_a_process_is_gone_once_it_is_killed_also_before_its_parent_knows(sleeper):
    other = holder_of(sleeper)
    assert not is_gone(other)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(sleeper.pid) == ENDED  # a zombie
    assert is_gone(other)
    sleeper.wait()
    assert start_ticks(sleeper.pid) == ENDED
    assert is_gone(other)


@needs_proc
def test_a_later_process_of_the_same_number_is_another(sleeper):
    other = replace(holder_of(sleeper), pid_start=start_ticks(sleeper.pid) - 1)
    assert is_gone(other)
    assert not terminate(other)
    assert sleeper.poll() is None


@needs_proc
def test_a_process_named_like_a_line_of_proc_is_read_rightly(tmp_path):
    strange = tmp_path / ") Z 1 ("
    strange.symlink_to("/bin/sleep")
    process = subprocess.Popen([strange, "60"])
    try:
        assert start_ticks(process.pid) >= start_ticks(os.getpid())
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "unknown", [{"machine": "another"}, {"machine": ""}, {"pid_start": None}, {"host": "elsewhere"}]
)
def test_of_a_process_elsewhere_nothing_is_known(sleeper, unknown):
    other = replace(holder_of(sleeper), **unknown)
    sleeper.kill()
    sleeper.wait()
    assert not is_gone(other)
    assert not terminate(other)


def test_without_proc_nothing_is_known(sleeper, monkeypatch):
    monkeypatch.setattr(lease, "this_machine", lambda: "")
    for module in (lease, machine):
        monkeypatch.setattr(module, "start_ticks", lambda pid: None)
    other = holder_of(sleeper)
    sleeper.kill()
    sleeper.wait()
    assert not is_gone(other)


def test_a_process_that_proc_hides_is_not_taken_for_gone(sleeper, monkeypatch):
    other = holder_of(sleeper)
    monkeypatch.setattr(machine, "Path", lambda name: Path("/nowhere"))
    assert start_ticks(sleeper.pid) is None
    monkeypatch.setattr(lease, "this_machine", lambda: other.machine)
    assert not is_gone(other)


@needs_proc
def test_sigterm_reaches_the_holder_and_never_this_process(sleeper):
    assert terminate(holder_of(sleeper))
    assert sleeper.wait() == -signal.SIGTERM
    assert not terminate(holder_of(sleeper))
    assert not terminate(new_holder(1))
    assert not terminate(None)


def test_names_of_slurm_jobs(monkeypatch):
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert slurm_job() == "4711"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "4711_3"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "x")
    assert slurm_job() is None


def test_only_another_job_of_this_cluster_is_signalled(monkeypatch):
    other = replace(new_holder(1), job="4711", cluster="alps")
    assert other_job(other) == "4711"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alps")
    assert other_job(other) == "4711"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert other_job(other) is None
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert other_job(other) == "4711"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "jura")
    assert other_job(other) is None
    assert other_job(replace(other, job=None)) is None
    assert other_job(None) is None


def test_without_scancel_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    signal_job("4711")
