"""Budgets and learning rates: the published recipe by hand, and nothing that depends on more than the step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.config.schema import Schedule
from lvis_rcnn.config.study import load_study
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.solver import make_recipe, scaled_learning_rate
from tests.conftest import REPOSITORY

# A user's log of the published LVIS v1 run shows 7674 iterations an epoch with 16 images each.
V1_EPOCH = 122_780
GOLDEN = REPOSITORY / "tests" / "golden"


def recipe_of(study, epoch_length, **changes):
    """The recipe of a study file, some settings changed, on an epoch of so many images."""
    schedule = load_study(REPOSITORY / "configs" / f"{study}.yaml").schedule
    schedule = type(schedule).model_validate(schedule.model_dump() | changes)
    ranks = schedule.images_per_step // schedule.normalisation_group
    portrait = np.zeros(epoch_length, bool)
    stream = SampleStream(np.ones(epoch_length), "ceil", portrait, 0, schedule.normalisation_group, ranks)
    return make_recipe(schedule, stream)


@pytest.fixture(scope="module")
def published():
    """The 24-epoch recipe of the page, on an epoch of 16 times 1000 images."""
    return recipe_of("lvis_v0.5", 16_000)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2e-5),
        (250, 0.02 * (0.001 + 0.999 * 250 / 499)),
        (498, 0.02 * (1 - 0.999 / 499)),
        (499, 0.02),
        (16 * 1000 - 1, 0.02),
        (16 * 1000, 0.002),
        (22 * 1000 - 1, 0.002),
        (22 * 1000, 0.0002),
        (24 * 1000 - 1, 0.0002),
    ],
)
def test_published_learning_rates(published, step, expected):
    assert published.learning_rate(step) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("budget", "where"),
    [
        ({"epochs": 100_001}, "schedule.epochs"),
        ({"epochs": None, "steps": 2**62, "policy": "one_cycle"}, "schedule.steps"),
    ],
)
def test_a_budget_that_nobody_could_count_is_refused(budget, where):
    with pytest.raises(
        InputError, match=rf"{where}: is [\d,]+ passes .*; allowed: at most 100,000 epochs; fix: lower it"
    ):
        recipe_of("lvis_v0.5", 16, **budget)
    # A step may be many times the data.
    assert recipe_of("lvis_v0.5", 1, epochs=None, steps=90_000, policy="one_cycle").steps == 90_000


@pytest.mark.parametrize("steps_in_epoch", [300, 700])
def test_rates_are_those_of_mmdetection(steps_in_epoch):
    """The warm-up of 500 steps crosses the first border of epochs of 300."""
    expected = np.load(GOLDEN / "schedule.npz")[f"lr_{steps_in_epoch}_iters_per_epoch"]
    recipe = recipe_of("lvis_v0.5", steps_in_epoch * 16 - 5)  # the last step of each epoch is smaller
    assert recipe.steps == len(expected)
    # All of the warm-up, both sides of every border of epochs, and some between: each costs a millisecond here.
    borders = [epoch * steps_in_epoch + side for epoch in range(1, 24) for side in (-1, 0)]
    steps = sorted({*range(510), *borders, *range(0, recipe.steps, 97), recipe.steps - 1})
    np.testing.assert_allclose([recipe.learning_rate(step) for step in steps], expected[steps], rtol=1e-12)


def test_optimizer_numbers_are_those_of_mmdetection(published):
    momentum, weight_decay, nesterov, dampening = np.load(GOLDEN / "schedule.npz")["sgd_momentum_wd_nesterov_dampening"]
    assert (published.schedule.momentum, published.schedule.weight_decay) == (momentum, weight_decay)
    assert (nesterov, dampening) == (0, 0)  # torch's defaults, which train.py leaves


@pytest.mark.parametrize(("study", "epochs"), [("lvis_v0.5", 24), ("lvis_v1", 12)])
def test_published_budgets(study, epochs):
    recipe = recipe_of(study, V1_EPOCH)
    assert recipe.steps_in_epoch == 7674
    assert recipe.steps == epochs * 7674
    assert recipe.epochs == epochs
    assert recipe.epoch_length == V1_EPOCH
    # 8 GPUs pad each epoch to a multiple of 8.
    assert recipe.images_seen == epochs * 122_784


def test_the_longest_2x_of_lvis():
    assert recipe_of("lvis_v0.5", 73_068).sentence == (
        "109,608 steps of 16 images, 1,753,728 images seen in 24.00 epochs; learning rate 0.02"
    )


def test_a_budget_in_steps_is_taken_as_it_is():
    recipe = recipe_of("mini", 1001, steps=260, images_per_step=4, normalisation_group=4)
    assert (recipe.steps, recipe.images_seen, recipe.steps_in_epoch) == (260, 251 * 4 - 3 + 9 * 4, 251)
    assert recipe.epochs == 1 + 9 / 251


@pytest.mark.parametrize(
    ("images_per_step", "images", "rate", "said"),
    [
        (16, 16, 0.02, "learning rate 0.02"),
        (8, 16, 0.01, "learning rate 0.01: 0.02 is for steps of 16 images and is scaled linearly to 8"),
        (64, 16, 0.08, "learning rate 0.08: 0.02 is for steps of 16 images and is scaled linearly to 64"),
        (8, None, 0.02, "learning rate 0.02"),
    ],
)
def test_the_rate_grows_with_the_images_of_a_step_and_says_so(images_per_step, images, rate, said):
    recipe = recipe_of("lvis_v0.5", 16_000, images_per_step=images_per_step, learning_rate_images=images)
    assert recipe.peak_learning_rate == rate
    assert recipe.learning_rate(5000 * 16 // images_per_step) == pytest.approx(rate, rel=1e-12)
    assert recipe.sentence.endswith(said)


@settings(max_examples=40)
@given(st.floats(1e-6, 10), st.integers(1, 4096), st.integers(1, 4096))
def test_linear_scaling(rate, images_per_step, images):
    assert scaled_learning_rate(rate, images_per_step, images_per_step) == pytest.approx(rate, rel=1e-12)
    once = scaled_learning_rate(rate, images_per_step, images)
    assert scaled_learning_rate(once, images, images_per_step) == pytest.approx(rate, rel=1e-12)
    assert (once > rate) == (images_per_step > images)


def test_milestones_are_at_starts_of_epochs_also_where_their_lengths_vary():
    schedule = load_study(REPOSITORY / "configs" / "lvis_v1.yaml").schedule
    stream = SampleStream(np.full(1000, 1.5), "stochastic", np.zeros(1000, bool), 0, 2, 8)
    recipe = make_recipe(schedule, stream)
    starts = [stream.steps_before_epoch(epoch) for epoch in (8, 11, 12)]
    assert starts != [epoch * recipe.steps_in_epoch for epoch in (8, 11, 12)]
    assert (recipe.steps, recipe.images_seen) == (starts[2], stream.images_before_step(starts[2]))
    for start in starts[:2]:
        assert recipe.learning_rate(start) == pytest.approx(recipe.learning_rate(start - 1) * 0.1)


def one_cycle(step, steps=100, warmup_steps=0):
    return one_cycle_recipe(steps, warmup_steps).learning_rate(step)


def one_cycle_recipe(steps, warmup_steps):
    schedule = Schedule(
        images_per_step=2,
        steps=steps,
        optimizer="adamw",
        learning_rate=0.001,
        weight_decay=0,
        policy="one_cycle",
        warmup_steps=warmup_steps,
        warmup_start_factor=0.01,
    )
    return make_recipe(schedule, SampleStream(np.ones(2), "ceil", np.zeros(2, bool), 0, 2, 1))


def test_one_cycle_begins_at_the_peak_and_ends_near_zero():
    assert one_cycle(0) == 0.001
    assert one_cycle(50) == pytest.approx(0.0005)
    assert one_cycle(99) == pytest.approx(0.001 * (1 - math.cos(math.pi / 100)) / 2)
    assert one_cycle(100) == pytest.approx(0, abs=1e-18)


@settings(max_examples=40)
@given(st.integers(1, 150), st.integers(0, 180))
def test_one_cycle_is_positive_and_falls_after_the_warm_up(steps, warmup_steps):
    recipe = one_cycle_recipe(steps, warmup_steps)
    rates = [recipe.learning_rate(step) for step in range(steps)]
    assert all(0 < rate <= 0.001 for rate in rates)
    falling = rates[warmup_steps:]
    assert falling == sorted(falling, reverse=True)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 23_999), min_size=1, max_size=20))
def test_a_rate_depends_on_the_step_alone(published, steps):
    asked_together = [published.learning_rate(step) for step in steps]
    assert asked_together == [published.learning_rate(step) for step in reversed(steps)][::-1]
    assert all(0.02e-3 <= rate <= 0.02 for rate in asked_together)


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert one_cycle(0, warmup_steps=0) == 0.001
    assert one_cycle(0, warmup_steps=1) == pytest.approx(0.00001)
