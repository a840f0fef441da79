"""What a start has of the machine, what all starts together cost, and what others use of it meanwhile."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from lvis_rcnn.runs.attempts import begin_attempt, cost_of, end_attempt, read_attempts
from lvis_rcnn.system import machine
from lvis_rcnn.system.files import write_json
from lvis_rcnn.system.machine import Allocation, allocation, cpu_s_of_others
from tests.helpers.busy import busy_cores

SHOWN = (
    "JobId=7 JobName=lvis SubmitTime=2026-11-25T10:00:00 EligibleTime=2026-11-25T10:00:30 "
    "StartTime=2026-11-25T10:02:00 NumNodes=2 NumCPUs=16 TRES=cpu=16,mem=8G,node=2,billing=16,gres/gpu=4,gres/gpu:toy=4"
)


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, shown: str, job: str = "7") -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\n[ \"$*\" = 'show job -o 7' ] && echo '{shown}'\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")


def test_slurm_says_what_a_job_has_and_how_long_it_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, SHOWN)
    began = time.mktime(time.strptime("2026-11-25 10:02:00", "%Y-%m-%d %H:%M:%S"))
    assert allocation(cpus=1, gpus=1) == Allocation(gpus=4, cpus=16, since=began, waited_s=90)
    scontrol(tmp_path, monkeypatch, SHOWN.replace("gres/gpu=4,", ""))
    assert allocation(cpus=1, gpus=1).gpus == 4
    scontrol(tmp_path, monkeypatch, SHOWN.split(",billing")[0])
    assert allocation(cpus=1, gpus=0).gpus == 0


def test_without_slurm_or_its_answer_a_process_has_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for _ in range(2):
        before = time.time()
        found = allocation(cpus=6, gpus=2)
        assert (found.gpus, found.cpus, found.waited_s) == (2, 6, 0)
        assert before <= found.since <= time.time()
        scontrol(tmp_path, monkeypatch, "JobId=7", job="8")


def test_killed_starts_cost_until_their_last_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    # Held from 990 on; ended, by its own word, at 1010.
    first = begin_attempt(tmp_path, 0, Allocation(gpus=2, cpus=8, since=990.0, waited_s=30.0))
    now[0] = 1010.0
    end_attempt(tmp_path, first, "stopped", 5)
    # Held from 1100 on; killed, its heartbeat written last at 1150.
    now[0] = 1120.0
    begin_attempt(tmp_path, 5, Allocation(gpus=2, cpus=8, since=1100.0, waited_s=15.0))
    write_json(tmp_path / "progress.json", {})

    os.utime(tmp_path / "progress.json", (1150.0, 1150.0))
    # Held from 1200 on, and still running at 1260.
    now[0] = 1200.0
    begin_attempt(tmp_path, 9, Allocation(gpus=1, cpus=4, since=1200.0, waited_s=0.0))
    cost = cost_of(read_attempts(tmp_path), 1260.0)
    assert cost.starts == 3
    assert cost.gpu_hours * 3600 == pytest.approx(2 * 20 + 2 * 50 + 1 * 60)
    assert cost.cpu_hours * 3600 == pytest.approx(8 * 20 + 8 * 50 + 4 * 60)
    assert cost.waited_s == 45


def test_a_ledger_without_what_starts_had_costs_nothing(tmp_path: Path) -> None:
    end_attempt(tmp_path, begin_attempt(tmp_path, 0), "done", 3)
    cost = cost_of(read_attempts(tmp_path), time.time())
    assert (cost.starts, cost.gpu_hours, cost.cpu_hours) == (1, 0, 0)
    assert cost_of([], 0.0).starts == 0


def put_process(proc: Path, pid: int, *ticks: int, parent: int = 1) -> None:
    """A process's file in /proc with these utime, stime, cutime and cstime."""
    fields = " ".join(map(str, [parent, *[1] * 9, *ticks, 20, 0]))
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (a name) of it) R {fields}\n")


def test_cpu_time_of_others_is_that_of_all_cores_less_that_of_this_process_its_children_and_what_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = type("Child", (), {"pid": 77})
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])
    put_process(tmp_path, os.getpid(), 100, 20, 30, 4, parent=76)
    put_process(tmp_path, 76, 1, 2, 888, 888, parent=75)  # what its other children took is other work
    put_process(tmp_path, 75, 5, 8, 888, 888)
    put_process(tmp_path, 77, 40, 6, 0, 0)
    put_process(tmp_path, 78, 999, 999, 999, 999)
    # user nice system idle iowait irq softirq steal guest guest_nice
    (tmp_path / "stat").write_text("cpu  1000 200 300 7777 8888 10 20 70 5555 6666\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    expected = (1000 + 200 + 300 + 10 + 20 + 70 - (100 + 20 + 30 + 4) - (40 + 6) - (1 + 2 + 5 + 8)) / os.sysconf(
        "SC_CLK_TCK"
    )
    assert cpu_s_of_others(tmp_path) == expected
    (tmp_path / "stat").unlink()
    assert cpu_s_of_others(tmp_path) is None


@pytest.mark.slow
def test_busy_processes_beside_this_one_count_and_work_of_this_one_does_not() -> None:
    # Together with this process, they and whatever else runs keep all cores busy.
    with busy_cores() as cores:
        before, own, began = cpu_s_of_others(), time.process_time(), time.perf_counter()
        while time.perf_counter() < began + 1.5:
            pass
        after, own, elapsed = cpu_s_of_others(), time.process_time() - own, time.perf_counter() - began
    assert before is not None
    assert after is not None
    assert 0.4 * cores < (after - before) / elapsed < cores - own / elapsed + 0.1


def test_shared_memory_is_that_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    free = machine.free_shared_memory()
    assert free is not None
    assert abs(free - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize) < 2**30  # others write meanwhile
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.free_shared_memory() is None
