"""What a GPU would be asked for: ceilings of a training step, a checkpoint and a batch of inference, without a GPU."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.emulated_gpu import stub_environment

# At most so many waits of the host for the device, and kernels, of each phase; the last of its kind counts, for the
# first may make what is then kept. A change that needs fewer lowers them.
FP32 = ("train", "--groups", "8")
BF16 = ("train", "--groups", "8", "--precision", "bf16", "--optimizer", "adamw", "--clip-norm", "35", "--channels-last")
INFER = ("infer", "--images", "8", "--labels", "1230")
CEILINGS = {
    "fp32, SGD": (FP32, {"step": (800, 21_000), "checkpoint": (528, 0), "finish": (360, 0), "start": (0, 0)}),
    "bf16, AdamW": (BF16, {"step": (800, 23_000), "checkpoint": (864, 0), "finish": (360, 0), "start": (0, 0)}),
    "inference": (INFER, {"batch": (1_000, 10_000)}),
}

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, for a stub of CUDA"),
    pytest.mark.skipif(torch.version.cuda is None, reason="needs torch built with CUDA"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return stub_environment(tmp_path_factory.mktemp("stub"))


def phases_of(arguments, environment, folder):
    """What each phase asked of the device; the last of its kind."""
    command = [sys.executable, "-m", "tests.emulated_gpu", *arguments, "--json", folder / "seen.json"]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return {phase["phase"]: phase for phase in json.loads((folder / "seen.json").read_text())}


def lines(phase, kind):
    """Where a kind was seen, for the message of a failed test."""
    return [f"{times} x {what}, {line}" for of, what, line, times in phase["lines"] if of == kind]


@pytest.mark.slow
@pytest.mark.parametrize("case", CEILINGS)
def test_the_host_waits_for_the_device_at_most_so_often(case, environment, tmp_path):
    arguments, ceilings = CEILINGS[case]
    phases = phases_of(arguments, environment, tmp_path)
    for name, (most_waits, most_kernels) in ceilings.items():
        phase = phases[name]
        assert phase["wait"] <= most_waits, lines(phase, "wait")
        assert phase["kernel"] <= most_kernels, lines(phase, "kernel")
    for name in phases.keys() - {"prepare"}:
        assert phases[name]["mixed devices"] == 0, lines(phases[name], "mixed devices")
        assert phases[name]["pageable copy"] == 0, lines(phases[name], "pageable copy")
