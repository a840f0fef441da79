"""The estimate of a step's memory holds what the graph really keeps."""

from types import SimpleNamespace

import pytest
import torch

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training import setup
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.run import Run
from lvis_rcnn.training.setup import Training, batches_of, kept_bytes, training_bytes
from tests.helpers.tiny_run import SMALLEST, tiny_study
from tests.training.test_step import SETTINGS, small_network, step_groups


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


def on_meta(backbone):
    with torch.device("meta"):
        return MaskRcnn(backbone, 6, SETTINGS).train()


def test_what_is_kept_is_what_a_real_pass_keeps():
    model, (batch, *_) = small_network(), step_groups()
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    storages, held = {}, []

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.backbone(batch.pixels)
    real = sum(size for place, size in storages.items() if place not in weights)
    found = kept_bytes(on_meta(SMALLEST).backbone, 2, (64, 64))
    # Statistics of the normalisations are kept too, and are no parameters.
    assert found == pytest.approx(real, rel=0.02)


def test_larger_is_more():
    small = training_bytes(on_meta(SMALLEST), 2, (64, 64), "sgd", "fp32")
    assert training_bytes(on_meta(SMALLEST), 2, (128, 128), "sgd", "fp32") > small
    assert training_bytes(on_meta(SMALLEST), 2, (64, 64), "adamw", "fp32") > small
    assert training_bytes(on_meta(SMALLEST), 2, (64, 64), "sgd", "bf16") < small
    assert training_bytes(on_meta(BACKBONES["r101"]), 2, (64, 64), "sgd", "fp32") > small


def test_a_gpu_that_is_too_small_is_said_before_the_first_step(tmp_path, monkeypatch):
    class Small:
        total_memory = 2**29

    run = Run(tiny_study(tmp_path), "r50", 0, tmp_path, tmp_path, tmp_path, tmp_path, zoo={})
    monkeypatch.setattr(setup, "least_bytes", lambda run: 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Small)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a small GPU")
    with pytest.raises(InputError, match=r"a small GPU: a step needs at least 1.0 GB and there are 0.5; fix: set comp"):
        setup.require_memory(run, torch.device("cuda"))
