"""Resamples beside data sets in which images stand several times."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.evaluation import bootstrap
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, score
from lvis_rcnn.evaluation.bootstrap import image_weights, resampling_of, weighted_metrics
from tests.evaluation.test_average_precision import arrays, by_hand, small_set

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MOST_COPIES = 4


def copied(
    dataset: dict[str, Any], records: list[dict[str, Any]], weights: dict[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Each image so often, under ids of its own that follow each other."""
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": dataset["categories"]}
    found = []
    for image in dataset["images"]:
        for number in range(weights[image["id"]]):
            image_id = image["id"] * MOST_COPIES + number
            made["images"].append({**image, "id": image_id})
            for annotation in dataset["annotations"]:
                if annotation["image_id"] == image["id"]:
                    annotation_id = len(made["annotations"]) + 1
                    made["annotations"].append({**annotation, "id": annotation_id, "image_id": image_id})
            found += [{**record, "image_id": image_id} for record in records if record["image_id"] == image["id"]]
    return made, found


def values_of(dataset: dict[str, Any], records: list[dict[str, Any]], kind: str, cap: int) -> list[float]:
    truth, found = arrays(dataset, records)
    metrics = score(truth, found, kind, cap).metrics
    return [np.nan if metrics[name] is None else metrics[name] for name in METRIC_NAMES]


def weighted(
    dataset: dict[str, Any], records: list[dict[str, Any]], weights: dict[int, int], kind: str, cap: int
) -> np.ndarray:
    truth, found = arrays(dataset, records)
    scores = score(truth, found, kind, cap)
    resampling = resampling_of(scores.outcomes, truth.frequencies)
    return weighted_metrics(resampling, np.array([weights[image] for image in truth.image_ids.tolist()]))


def check(made: tuple[dict[str, Any], list[dict[str, Any]], int], seed: int, kind: str) -> None:
    dataset, records, cap = made
    pick = random.Random(seed)
    ids = [image["id"] for image in dataset["images"]]
    weights = {number: pick.choice([0, 1, 1, 2, 3]) for number in ids}
    weights[pick.choice(ids)] = pick.randint(1, MOST_COPIES)
    expected = values_of(*copied(dataset, records, weights), kind, cap)
    assert weighted(dataset, records, weights, kind, cap) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    expected = values_of(dataset, records, kind, cap)
    ones = dict.fromkeys(ids, 1)
    assert weighted(dataset, records, ones, kind, cap) == pytest.approx(expected, abs=1e-12, nan_ok=True)


sets = st.integers(0, 2**48).map(small_set)
seeds = st.integers(0, 2**32)


@settings(max_examples=8)
@given(sets, seeds, st.sampled_from(["bbox", "segm"]))
def test_weights_are_copies_of_images(made, seed, kind):
    check(made, seed, kind)


@pytest.mark.long
@settings(max_examples=150)
@given(sets, seeds, st.sampled_from(["bbox", "segm"]))
def test_weights_are_copies_of_images_in_many_sets(made, seed, kind):
    check(made, seed, kind)


def test_copies_of_tied_detections_take_turns():
    """A right and a wrong detection of one score: two copies are right, wrong, right, wrong."""
    dataset, records = by_hand()
    dataset["annotations"] = dataset["annotations"][:1]
    records = [{**records[2], "score": 0.5}, {**records[1], "score": 0.5}]
    once, twice, thrice = (weighted(dataset, records, {1: copies}, "bbox", 300) for copies in (1, 2, 3))
    place = METRIC_NAMES.index("AP50")
    assert once[place] == pytest.approx(1)
    assert twice[place] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert thrice[place] == pytest.approx((34 + 33 * 2 / 3 + 34 * 3 / 5) / 101)


def test_a_category_without_objects_in_a_resample_drops_out():
    dataset, records = by_hand()
    dataset["images"].append({**dataset["images"][0], "id": 2})
    dataset["annotations"][1] |= {"image_id": 2, "category_id": 8}
    values = dict(zip(METRIC_NAMES, weighted(dataset, records, {1: 1, 2: 1}, "bbox", 300), strict=True))
    assert (values["AP"], values["APr"], values["APc"]) == (pytest.approx(0.5), pytest.approx(1), 0)
    values = dict(zip(METRIC_NAMES, weighted(dataset, records, {1: 2, 2: 0}, "bbox", 300), strict=True))
    assert (values["AP"], values["APr"]) == (pytest.approx(1), pytest.approx(1))
    assert np.isnan([values[name] for name in ("APc", "APf", "APs", "APl")]).all()
    values = weighted(dataset, records, {1: 0, 2: 0}, "bbox", 300)
    assert np.isnan(values).all()


def test_resamples_are_those_of_their_seed():
    weights = [image_weights(50, seed, number) for seed, number in ((0, 0), (0, 1), (1, 0))]
    assert [each.sum() for each in weights] == [50] * 3
    assert np.array_equal(weights[0], image_weights(50, 0, 0))
    assert not np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    mean = np.mean([image_weights(50, 0, number) for number in range(400)], axis=0)
    assert np.abs(mean - 1).max() < 0.25  # five standard errors


@pytest.mark.long
def test_intervals_of_ap_hold_the_truth_as_often_as_they_say():
    command = [sys.executable, BENCHMARKS / "bootstrap_coverage.py", "--designs", "mini", "--sets", "100"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    print(done.stdout)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("one run")]
    # 95 % less three standard errors of 100 sets.
    assert float(line.split()[2]) >= 0.88


def test_resampling_in_small_parts_is_resampling(monkeypatch):
    dataset, records, _ = small_set(16)
    weights = {image["id"]: 2 for image in dataset["images"]}
    whole = weighted(dataset, records, weights, "bbox", 300)
    monkeypatch.setattr(bootstrap, "TRUE_POSITIVES_AT_ONCE", 2)
    in_parts = weighted(dataset, records, weights, "bbox", 300)
    assert np.array_equal(whole, in_parts, equal_nan=True)
    assert 0 < whole[0] < 1
