"""NorCal and FRACAL: the authors' figures, by hand, and what must hold for any counts."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lvis_rcnn.config.schema import Calibration
from lvis_rcnn.dataset.statistics import CategoryStatistics
from lvis_rcnn.evaluation.calibration import logit_shifts
from lvis_rcnn.model.postprocess import calibrated
from tests.conftest import LONGTAIL, REPOSITORY

# Scores that tydpan/NorCal at 23e5ab6a and kostas1515/FRACAL at 3543fe46 computed of logits that follow from a seed; a
# cut of them lies in tests/golden.
SOURCES = ["cut", *(["whole"] if LONGTAIL.exists() else [])]
NORCAL = {f"gamma{gamma}_exps_renorm": {"gamma": gamma} for gamma in (0.3, 0.6, 1.0)}
FRACAL = {
    "base10_l2.0": {},
    "base10_l1.0": {"dimension_exponent": 1.0},
    "base2_l2.0": {"base": 2.0},
    "raw_l0.5": {"base": math.e, "dimension_exponent": 0.5},
    "base10_obj_l2.0": {"frequency": "instances"},
}


@cache
def figures(source: str, method: str) -> dict[str, np.ndarray]:
    if source == "whole":
        with np.load(LONGTAIL / f"{method}.npz") as archive:
            return dict(archive)
    with np.load(REPOSITORY / "tests" / "golden" / "calibration.npz") as archive:
        keys = [key for key in archive.files if key.startswith(f"{method}/")]
        return {key.removeprefix(f"{method}/"): archive[key] for key in keys}


def statistics(images=100, image_counts=(1, 10), instance_counts=(1, 20), dimensions=(1.0, 1.5)) -> CategoryStatistics:
    counts = (np.array(image_counts, np.int64), np.array(instance_counts, np.int64))
    names = tuple(map(str, range(len(image_counts))))
    return CategoryStatistics(names, np.array(["r"] * len(names)), images, *counts, np.array(dimensions, float))


def scores_of(logits: torch.Tensor, settings: Calibration, seen: CategoryStatistics) -> torch.Tensor:
    """Scores of logits whose last column is the background; so are the scores."""
    shifts = torch.tensor([0.0, *logit_shifts(settings, seen)], dtype=logits.dtype)
    return calibrated(logits.roll(1, dims=1), shifts).softmax(dim=1).roll(-1, dims=1)


def golden_logits(of: dict[str, np.ndarray], case: str, variant: str) -> torch.Tensor:
    shape = (len(of[f"{case}/{variant}/background"]), len(of[f"{case}/image_count"]) + 1)
    logits = (2 * np.random.RandomState(int(of[f"{case}/seed"])).standard_normal(shape)).astype(np.float32)
    logits[:, -1] += np.float32(3)
    return torch.from_numpy(logits)


def require_golden(of: dict[str, np.ndarray], key: str, scores: torch.Tensor) -> None:
    wanted = torch.from_numpy(of[key]).double()
    torch.testing.assert_close(scores[: len(wanted)].double(), wanted, rtol=5e-6, atol=0)
    background = torch.from_numpy(of[f"{key}/background"]).double()
    torch.testing.assert_close(scores[:, -1].double(), background, rtol=5e-6, atol=0)
    if f"{key}/over_1e-4" in of:
        assert (scores[:, :-1] > 1e-4).sum(dim=1).tolist() == of[f"{key}/over_1e-4"].tolist()


@pytest.mark.parametrize("variant", NORCAL)
@pytest.mark.parametrize("source", SOURCES)
def test_norcal_is_the_authors(source, variant):
    of = figures(source, "norcal")
    for case in {key.split("/")[0] for key in of if key.endswith(variant)}:
        images = of[f"{case}/image_count"]
        seen = statistics(image_counts=images, instance_counts=images, dimensions=np.ones(len(images)))
        settings = Calibration(method="norcal", **NORCAL[variant])
        require_golden(of, f"{case}/{variant}", scores_of(golden_logits(of, case, variant), settings, seen))


@pytest.mark.parametrize("variant", FRACAL)
@pytest.mark.parametrize("source", SOURCES)
def test_fracal_is_the_authors(source, variant):
    of = figures(source, "fracal")
    for case in {key.split("/")[0] for key in of if key.endswith(variant)}:
        counts = (of[f"{case}/{kind}_count"] for kind in ("image", "instance"))
        seen = statistics(int(of[f"{case}/images"]), *counts, dimensions=of[f"{case}/dimension"])
        settings = Calibration(method="fracal", **FRACAL[variant])
        require_golden(of, f"{case}/{variant}", scores_of(golden_logits(of, case, variant), settings, seen))
        of_frequency = logit_shifts(settings.model_copy(update={"dimension_exponent": 0}), seen)
        assert of_frequency == pytest.approx(of[f"{case}/{variant}/class_shift"][:-1], abs=1e-6)


def test_two_categories_by_hand():
    logits = torch.log(torch.tensor([[3.0, 20.0, 4.0]]))  # rare, frequent, background
    # n^-1 = 1, 1/10: weights 3, 2, 4 of 9.
    norcal = scores_of(logits, Calibration(method="norcal", gamma=1.0), statistics())
    assert norcal[0].tolist() == pytest.approx([3 / 9, 2 / 9, 4 / 9])
    # Base e: 1 / (f C) = 50, 5; D^2 = 1, 2.25: weights 150, 100 / 2.25, 4.
    fracal = scores_of(logits, Calibration(method="fracal", base=math.e), statistics())
    assert fracal[0].tolist() == pytest.approx([value / (150 + 400 / 9 + 4) for value in (150, 400 / 9, 4)])
    # Of instances: f = 1/21, 20/21.
    objects = Calibration(method="fracal", base=math.e, frequency="instances", dimension_exponent=0.0)
    assert np.exp(logit_shifts(objects, statistics())).tolist() == pytest.approx([21 / 2, 21 / 40])


def test_a_category_that_training_does_not_show_counts_as_one():
    unseen, once = (statistics(image_counts=(n, 10), instance_counts=(n, 20), dimensions=(1, 1)) for n in (0, 1))
    for settings in (Calibration(method="norcal", gamma=0.6), Calibration(method="fracal")):
        assert logit_shifts(settings, unseen).tolist() == logit_shifts(settings, once).tolist()


LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-30, 30))
COUNTS = arrays(np.int64, 3, elements=st.integers(1, 10**5))


@given(LOGITS, COUNTS)
def test_without_strength_or_with_equal_categories_scores_stay(logits, counts):
    logits = torch.from_numpy(logits)
    seen = statistics(10**5, counts, counts, np.ones(3))
    plain = torch.softmax(logits, dim=1)
    torch.testing.assert_close(scores_of(logits, Calibration(method="norcal", gamma=0.0), seen), plain)
    # Equal frequencies of 1 / C, and one dimension: the shift is 0.
    equal = statistics(3 * 7, (7, 7, 7), (7, 7, 7), np.ones(3))
    torch.testing.assert_close(scores_of(logits, Calibration(method="fracal"), equal), plain)


@given(LOGITS, COUNTS, st.floats(0, 2))
def test_norcal_is_the_authors_formula_and_lifts_what_is_rarer(logits, counts, gamma):
    logits, seen = torch.from_numpy(logits), statistics(10**5, counts, counts, np.ones(3))
    scores = scores_of(logits, Calibration(method="norcal", gamma=gamma), seen)
    weights = torch.cat([torch.from_numpy(counts.astype(float) ** -gamma), torch.ones(1, dtype=torch.float64)])
    scaled = logits.exp() * weights
    torch.testing.assert_close(scores, scaled / scaled.sum(dim=1, keepdim=True))
    gains = (scores / logits.softmax(dim=1))[:, np.argsort(counts)]
    assert (gains.diff(dim=1) <= gains[:, 1:] * 1e-9).all()


@given(LOGITS, COUNTS, arrays(np.float64, 3, elements=st.floats(1, 2)), st.floats(0, 4))
def test_fracal_divides_the_softmax_by_a_power_of_the_dimensions(logits, counts, dimensions, exponent):
    logits, seen = torch.from_numpy(logits), statistics(10**5, counts, counts, dimensions)
    without = scores_of(logits, Calibration(method="fracal", dimension_exponent=0.0), seen)
    divided = without / torch.tensor([*dimensions, 1.0], dtype=torch.float64) ** exponent
    scores = scores_of(logits, Calibration(method="fracal", dimension_exponent=exponent), seen)
    torch.testing.assert_close(scores, divided / divided.sum(dim=1, keepdim=True))


def test_large_logits_stay_finite_and_without_calibration_as_they_were():
    logits = torch.tensor([[500.0, -500.0, 400.0]])
    scores = scores_of(logits, Calibration(method="norcal", gamma=2.0), statistics(image_counts=(1, 10**6)))
    assert scores.sum() == 1
    assert calibrated(logits, None) is logits
