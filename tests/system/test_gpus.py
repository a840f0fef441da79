"""Jobs on one machine get GPUs of their own, and wait while there are none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_rcnn.system import gpus
from lvis_rcnn.system.cli import InputError
from tests.conftest import HANGS_S, REPOSITORY

SHOW = ["sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"; while [ ! -e "$0" ]; do sleep 0.05; done']


def start(folder: Path, number: int, flag: str = "end", **environment: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "lvis_rcnn.system.gpus", "--gpus", str(number), "--", *SHOW, str(folder / flag)]
    clean = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    return subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env={**clean, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": "4,GPU-ab,6", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def seen(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_job_sees_gpus_of_its_own_and_the_next_waits_for_one(tmp_path: Path) -> None:
    first, second = start(tmp_path, 2), start(tmp_path, 1)
    both = [seen(first), seen(second)]
    assert sorted(",".join(both).split(",")) == ["4", "6", "GPU-ab"]
    third = start(tmp_path, 1)
    assert third.stderr is not None
    assert third.stderr.readline() == "waiting for 1 of the GPUs 4, GPU-ab, 6\n"
    second.send_signal(signal.SIGKILL)  # the command itself: its pid is the job's
    second.wait()
    assert seen(third) == both[1]
    (tmp_path / "end").touch()
    assert [first.wait(10), third.wait(10)] == [0, 0]
    for process in (first, second, third):
        process.communicate()


def test_a_job_of_slurm_keeps_what_slurm_gave(tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    process = start(tmp_path, 1, SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="1")
    assert process.communicate(timeout=HANGS_S)[0] == "1\n"


def test_more_gpus_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match=r"^resources.gpus: asks for 3, this machine has 2; allowed: the GPUs of "):
        gpus.lease(3, tmp_path)


NESTED = """
import os, sys
from lvis_rcnn.system import gpus
gpus.hold_one_gpu()
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.mark.parametrize(
    ("beneath", "sees"),
    [
        (["-c", NESTED], "0"),
        (["-m", "lvis_rcnn.system.gpus", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], "0,1"),
    ],
    ids=["trainer", "the command itself"],
)
def test_a_trainer_beneath_takes_a_gpu_that_is_held_for_it(tmp_path: Path, beneath: list[str], sees: str) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("SLURM_JOB_ID", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "lvis_rcnn.system.gpus", "--gpus", "2", "--", sys.executable, *beneath],
        cwd=REPOSITORY,
        env={**clean, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{sees}\n", "")


def test_a_command_that_does_not_exist_is_refused_before_gpus_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "lease", None)
    monkeypatch.setattr(sys, "argv", ["gpus", "--gpus", "1", "--", "pyton", "train"])
    with pytest.raises(SystemExit, match="2"):
        gpus.main()
    assert capsys.readouterr().err.startswith("error: pyton: no such command; fix: ")


def test_gpus_are_counted_by_the_driver_where_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus_of_this_machine() == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho '  MIG 1g'\necho 'GPU 1: two (UUID: b)'\n")
    smi.chmod(0o755)
    assert gpus.gpus_of_this_machine() == ["0", "1"]
    for named, seen in {"": [], "-1": [], "NoDevFiles": [], "1, GPU-ab,-1,0": ["1", "GPU-ab"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert gpus.gpus_of_this_machine() == seen
