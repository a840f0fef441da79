"""Budgets and learning rates: the published recipe by hand, and nothing that depends on more than the step."""

import math

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.config import load_study
from lvis_rcnn.schedule import learning_rate, make_recipe, steps_in_epoch, total_steps

# A user's log of the published LVIS v1 run shows 7674 iterations an epoch with 16 images each.
V1_EPOCH = 122_780


@pytest.fixture(scope="module")
def published():
    """The 24-epoch recipe of the page, on an epoch of 16 times 1000 images."""
    return make_recipe(load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml").schedule, 16_000)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2e-5),
        (250, 0.02 * (1 - 0.5 * 0.999)),
        (499, 0.01996004),
        (500, 0.02),
        (16 * 1000 - 1, 0.02),
        (16 * 1000, 0.002),
        (22 * 1000 - 1, 0.002),
        (22 * 1000, 0.0002),
        (24 * 1000 - 1, 0.0002),
    ],
)
def test_published_learning_rates(published, step, expected):
    assert published.learning_rate(step) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("study", "epochs"), [("lvis_v0.5", 24), ("lvis_v1", 12)])
def test_published_budgets(study, epochs):
    recipe = make_recipe(load_study(REPOSITORY / "configs" / f"{study}.yaml").schedule, V1_EPOCH)
    assert recipe.steps_in_epoch == 7674
    assert recipe.steps == epochs * 7674


@pytest.mark.parametrize(
    ("epoch_length", "images_per_step", "expected"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (73_068, 16, 4567)]
)
def test_an_epoch_is_rounded_up(epoch_length, images_per_step, expected):
    assert steps_in_epoch(epoch_length, images_per_step) == expected


def test_a_budget_in_steps_is_taken_as_it_is():
    assert total_steps(300, None, 1000, 4) == 300


def one_cycle(step, steps=100, warmup_steps=0):
    return learning_rate(
        step,
        peak=0.001,
        policy="one_cycle",
        steps=steps,
        warmup_steps=warmup_steps,
        warmup_start_factor=0.01,
        decay_at_steps=(),
        decay_factor=0.1,
    )


def test_one_cycle_begins_at_the_peak_and_ends_near_zero():
    assert one_cycle(0) == 0.001
    assert one_cycle(50) == pytest.approx(0.0005)
    assert one_cycle(99) == pytest.approx(0.001 * (1 - math.cos(math.pi / 100)) / 2)
    assert one_cycle(100) == pytest.approx(0, abs=1e-18)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500), st.integers(0, 600))
def test_one_cycle_is_positive_and_falls_after_the_warm_up(steps, warmup_steps):
    rates = [one_cycle(step, steps, warmup_steps) for step in range(steps)]
    assert all(0 < rate <= 0.001 for rate in rates)
    falling = rates[warmup_steps:]
    assert falling == sorted(falling, reverse=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 23_999), min_size=1, max_size=20))
def test_a_rate_depends_on_the_step_alone(published, steps):
    asked_together = [published.learning_rate(step) for step in steps]
    assert asked_together == [published.learning_rate(step) for step in reversed(steps)][::-1]
    assert all(0.02e-3 <= rate <= 0.02 for rate in asked_together)


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert one_cycle(0, warmup_steps=0) == 0.001
    assert one_cycle(0, warmup_steps=1) == pytest.approx(0.00001)
