"""A step is the mean of its normalisation groups, whichever process takes which: 1, 2 and 4 ranks over gloo."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from lvis_rcnn.dataloader.batches import Batch, Target
from lvis_rcnn.dataloader.masks import mask_crops
from lvis_rcnn.dataloader.seeds import losses_seed
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, MaskRcnn, losses
from lvis_rcnn.model.matcher import random_choice
from lvis_rcnn.training.setup import Passes
from lvis_rcnn.training.step import add_gradients
from tests.helpers.tiny_run import SMALL, SMALLEST

SETTINGS = SMALL.model_copy(update={"normalization": "fixed_batch", "frozen_stages": 1})
# Images of each of the 8 groups: the last batches of an epoch may be smaller.
IMAGES_OF_GROUP = (2, 2, 2, 1, 2, 2, 2, 1)


def small_network(**heads):
    torch.manual_seed(0)
    model = MaskRcnn(SMALLEST, 6, SETTINGS.model_copy(update=heads))
    for name, value in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(value, 0.5)  # a block that begins as zero passes no gradient on
    return model.train()


def target(random):
    """One to three rectangles."""
    corners = np.sort(random.integers(0, 64, (random.integers(1, 4), 2, 2)), axis=1) + [[[0, 0]], [[8, 8]]][0]
    boxes = np.concatenate([corners[:, 0], np.maximum(corners[:, 1], corners[:, 0] + 6)], axis=1).clip(0, 64)
    outlines = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)] for x0, y0, x1, y1 in boxes]
    labels = torch.from_numpy(random.integers(1, 6, len(boxes)))
    return Target(torch.from_numpy(boxes.astype(np.float32)), labels, mask_crops(outlines, (64, 64), (64, 64), False))


def step_groups():
    random = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.rand(count, 3, 64, 64, generator=generator),
            [(64, 64)] * count,
            [(64, 64)] * count,
            list(range(count)),
            [target(random) for _ in range(count)],
        )
        for count in IMAGES_OF_GROUP
    ]


def gradients_of(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def run_rank(rank, ranks, rendezvous, out):
    """One process of several: its share of the groups, then the sum over all."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    model, groups = small_network(), step_groups()
    share = len(groups) // ranks
    numbers = range(rank * share, (rank + 1) * share)
    parts = add_gradients(model, [groups[number] for number in numbers], numbers, len(groups), step=3, seed=5)
    values = parts.sum(dim=0) / len(groups)
    torch.distributed.all_reduce(values)
    found = gradients_of(model)
    for gradient in found.values():
        torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save({"losses": dict(zip(LOSS_NAMES, values.tolist(), strict=True)), "gradients": found}, out)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_one_process():
    torch.set_num_threads(1)
    model, groups = small_network(), step_groups()
    parts = add_gradients(model, groups, range(8), 8, step=3, seed=5).mean(dim=0)
    return dict(zip(LOSS_NAMES, parts.tolist(), strict=True)), gradients_of(model)


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)])
def test_ranks_add_up_to_one_process(ranks, of_one_process, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (ranks, tmp_path / "rendezvous", tmp_path / "sum.pth")
    processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    found = torch.load(Path(arguments[2]), weights_only=True)
    parts, gradients = of_one_process
    assert found["losses"] == pytest.approx(parts, rel=1e-6)
    assert found["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        # Sums in another order.
        assert (found["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_each_group_has_its_own_divisors(of_one_process):
    # 8 groups of 2 are not one batch of 16: the mean of the groups' losses, not the loss of all images together.
    model, parts = small_network(), of_one_process[0]
    each = [
        losses(model, batch, random_choice(torch.Generator().manual_seed(losses_seed(5, 3, number))))
        for number, batch in enumerate(step_groups())
    ]
    for name, value in parts.items():
        assert np.mean([float(one[name].detach()) for one in each]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("groups_at_once", [2, pytest.param(3, marks=pytest.mark.slow), 8])
def test_groups_at_once_add_up_to_one_after_the_other(groups_at_once, of_one_process):
    model, groups = small_network(), step_groups()
    passes = Passes(groups_at_once=groups_at_once)
    # Two shares, as two processes have them.
    parts = [
        add_gradients(model, groups[share::2], range(8)[share::2], 8, step=3, seed=5, passes=passes) for share in (0, 1)
    ]
    expected, gradients = of_one_process
    found = torch.cat(parts).mean(dim=0).tolist()
    assert dict(zip(LOSS_NAMES, found, strict=True)) == pytest.approx(expected, rel=1e-6)
    found_gradients = gradients_of(model)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_a_smaller_group_weighs_as_much():
    model, groups = small_network(), step_groups()[2:4]
    add_gradients(model, groups, range(2, 4), 2, step=0, seed=0)
    both = {name: value.clone() for name, value in gradients_of(model).items()}
    model.zero_grad()
    for number, batch in zip((2, 3), groups, strict=True):
        add_gradients(model, [replace(batch)], range(number, number + 1), 1, step=0, seed=0)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient / 2, both[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bf16_is_fp32_to_its_rounding(groups):
    found = {}
    for precision in ("fp32", "bf16"):
        model, passes = small_network(), Passes(precision, groups_at_once=groups)
        parts = add_gradients(model, step_groups()[:groups], range(groups), groups, step=3, seed=5, passes=passes)
        gradients = gradients_of(model)
        assert {value.dtype for value in (parts, *gradients.values())} == {torch.float32}
        found[precision] = parts.sum(), torch.cat([gradient.flatten() for gradient in gradients.values()])
    (loss, gradient), (half_loss, half_gradient) = found["fp32"], found["bf16"]
    # bfloat16 has 8 bits, so a rounding is 0.002 to 0.004 of a number.
    assert half_loss == pytest.approx(float(loss), rel=0.01)
    assert 0.002 < (half_gradient - gradient).norm() / gradient.norm() < 0.1
