"""How a run begins: precision, groups in one pass, and how its batches are read."""

from types import SimpleNamespace

import pytest
import torch

from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training import setup
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.memory import StepMemory
from lvis_rcnn.training.run import Run
from lvis_rcnn.training.setup import Training, batches_of
from tests.helpers.tiny_run import tiny_study


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_are_read_into_pinned_memory(tmp_path, monkeypatch, device, pinned):
    asked = []
    monkeypatch.setattr(setup, "TrainingSteps", lambda *given, **named: given[-1])
    monkeypatch.setattr(setup, "read_in_order", lambda *given, pinned: asked.append((*given, pinned)) or iter([]))
    run = Run(tiny_study(tmp_path), "r50", 0, tmp_path, tmp_path, tmp_path, tmp_path, zoo={})
    run.__dict__["recipe"] = SimpleNamespace(stream=SimpleNamespace(groups_per_step=4))
    training = Training.__new__(Training)
    training.run, training.ranks = run, Ranks(1, 2, torch.device(device))
    batches_of(training, [5, 3])
    assert asked == [(range(1, 4, 2), [5, 3], 0, pinned)]  # the groups of this process, the steps, no workers


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_each_run_sets_how_a_gpu_multiplies(tmp_path, precision):
    for one, products in ((precision, "tf32" if precision == "tf32" else "ieee"), ("fp32", "ieee")):
        study = tiny_study(tmp_path, compute={"precision": one})
        setup.set_arithmetic(Run(study, "r50", 0, tmp_path, tmp_path, tmp_path, tmp_path, zoo={}))
        assert torch.backends.cuda.matmul.fp32_precision == products
        assert torch.backends.cudnn.conv.fp32_precision == products


class Gpu:
    """Of 2 GB."""

    total_memory = 2**31


def passes_on(monkeypatch, tmp_path, image_mb, ranks=1, **compute):
    """How a process takes its share of 8 groups of 2 images, each of so many MB; its state is 1 GB."""
    memory = StepMemory(state=2**30, casts=0, image=image_mb * 2**20)
    monkeypatch.setattr(setup, "step_memory", lambda study, backbone, labels: memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a small GPU")
    study = tiny_study(tmp_path, compute=compute, schedule={"images_per_step": 16})
    run = Run(study, "r50", 0, tmp_path, tmp_path, tmp_path, tmp_path, zoo={})
    stream = SimpleNamespace(groups_per_step=8)
    run.__dict__.update(recipe=SimpleNamespace(stream=stream), store=SimpleNamespace(num_labels=27))
    return setup.passes_of(run, Ranks(0, ranks, torch.device("cuda")))


@pytest.mark.parametrize(
    ("image_mb", "ranks", "asked", "groups"),
    [
        (50, 1, None, 4),  # 0.7 of 2,048 MB hold 1,024 and 8 images of 50
        (10, 1, None, 8),  # 40 images would fit
        (10, 4, None, 2),  # the share of a process
        (50, 1, 6, 6),
        (50, 4, 6, 2),
        (300, 1, None, 1),  # fits, but fills more than is left for the way back
    ],
)
def test_a_gpu_takes_as_many_groups_at_once_as_it_holds_or_the_study_says(
    tmp_path, monkeypatch, image_mb, ranks, asked, groups
):
    assert passes_on(monkeypatch, tmp_path, image_mb, ranks, groups_at_once=asked).groups_at_once == groups


@pytest.mark.parametrize(("image_mb", "asked", "images"), [(600, None, 2), (100, 8, 16)])
def test_a_gpu_that_is_too_small_is_said_before_the_first_step(tmp_path, monkeypatch, image_mb, asked, images):
    needed = 1 + images * image_mb / 1024
    expected = rf"a small GPU: {images} images at once need at least {needed:.1f} GB and there are 2.0; fix: set comp"
    with pytest.raises(InputError, match=expected):
        passes_on(monkeypatch, tmp_path, image_mb, groups_at_once=asked)
