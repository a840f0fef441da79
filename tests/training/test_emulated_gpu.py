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
TRAIN = ("train", "--groups", "8")
BF16 = ("--precision", "bf16", "--optimizer", "adamw", "--clip-norm", "35", "--channels-last")
INFER = ("infer", "--images", "8", "--labels", "1230")
CANVAS = (*TRAIN, "--common-canvas")
SAVED = {"start": (0, 0), "checkpoint": (1, 0), "finish": (1, 0)}
CEILINGS = {
    "one canvas": ((*CANVAS, "--landscape"), {"step": (20, 3_200), **SAVED}),
    "one canvas, bf16, AdamW": ((*CANVAS, "--landscape", *BF16), {"step": (20, 3_450), **SAVED}),
    "a canvas an orientation": (CANVAS, {"step": (21, 4_200), **SAVED}),
    "a canvas a group": (TRAIN, {"step": (30, 12_000), **SAVED}),
    "300 detections, scored masks": ((*INFER, "--masks", "scored"), {"batch": (32, 1_600)}),
    "20 detections, all masks": ((*INFER, "--detections", "20"), {"batch": (32, 1_700)}),
}

KINDS = ("wait", "pageable copy", "mixed devices", "kernel")
# What single lines ask of the device, of each of these kinds.
LINES = {
    "x.max().item()": (1, 0, 0, 1),
    "x.nonzero()": (1, 0, 0, 1),
    "torch.nonzero_static(x, size=2)": (0, 0, 0, 1),
    "x[x > 9]": (1, 0, 0, 2),
    "x[x > 9] = 0.5": (0, 0, 0, 2),
    "x[x > 9] = x[0]": (1, 0, 0, 2),
    "x[rows]": (0, 0, 0, 1),
    "x[rows.cpu()]": (2, 0, 0, 1),
    "x.index_fill_(0, rows, 1.0)": (0, 0, 0, 1),
    "x.index_add_(0, rows, boxes[:2, 0])": (0, 0, 0, 1),
    "x.view(3, 1)": (0, 0, 0, 0),
    "nms(boxes, x, 0.5)": (1, 0, 0, 1),
    "x.repeat_interleave(rows.new_ones(3))": (1, 0, 0, 3),
    "torch.tensor([0.5], device='cuda')": (1, 0, 0, 0),
    "torch.rand(3).to('cuda', non_blocking=True)": (0, 1, 0, 0),
    "torch.rand(3).pin_memory().to('cuda', non_blocking=True)": (0, 0, 0, 0),
    "x.copy_(torch.rand(3).double().pin_memory(), non_blocking=True)": (0, 1, 0, 0),
    "x.cpu()": (1, 0, 0, 0),
    "x.to('cpu', non_blocking=True)": (0, 0, 0, 0),
    "x + torch.rand(3)": (0, 0, 1, 1),
    "x + torch.tensor(2.0)": (0, 0, 0, 1),
    "torch.inference_mode()(torch.nn.functional.linear)(boxes, boxes)": (0, 0, 0, 1),
}
PROGRAM = """
import json, sys, torch
from torchvision.ops import nms
from tests.helpers.emulated_device import GPU, emulated_gpu
lines, kinds = json.loads(sys.argv[1])
with emulated_gpu() as gpu:
    x, boxes, rows = (value.to(GPU) for value in (torch.rand(3), torch.rand(3, 4).cumsum(1), torch.tensor([0, 2])))
    for line in lines:
        with gpu.phase(line):
            exec(line)
print(json.dumps({phase.name: [phase.count(kind) for kind in kinds] for phase in gpu.phases[1:]}))
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, for a stub of CUDA"),
    pytest.mark.skipif(torch.version.cuda is None, reason="needs torch built with CUDA"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return stub_environment(tmp_path_factory.mktemp("stub"))


@pytest.mark.slow
def test_what_single_lines_ask_of_the_device(environment):
    command = [sys.executable, "-c", PROGRAM, json.dumps([list(LINES), KINDS])]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {line: list(counts) for line, counts in LINES.items()}


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
