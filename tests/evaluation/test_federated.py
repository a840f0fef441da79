"""The rules of the protocol by hand: which detections and objects count, and for what."""

import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.average_precision import score as score_arrays
from lvis_rcnn.evaluation.ground_truth import parse_truth
from lvis_rcnn.evaluation.masks import Rle
from lvis_rcnn.evaluation.results import Result, detections_of
from tests.helpers.scored_boxes import BOAT, CUP, FAR, SIDE_PX, TWO_KINDS, found, rectangle, rle_of, truth

NOISE = [found(1, 99, 0.9, *FAR) for _ in range(300)]
RIGHT = found(1, 1, 0.5, *CUP)
GHOST = [RIGHT, found(2, 1, 0.9, *CUP)]
EXTRA = [RIGHT, found(1, 1, 0.9, *FAR)]
BOATS = truth((1, 1, CUP), (1, 3, BOAT), (2, 3, BOAT)), [found(1, 3, 0.9, *BOAT), found(2, 3, 0.8, *BOAT)]
ONE_CUP = truth((1, 1, CUP))
EMPTY = Result(1, 1, 0.99, CUP, [])
# A wrong thin mask in a wide box: by its box it is medium, so it would not hurt APs.
THIN = Result(1, 1, 0.9, (0.0, 0.0, 90.0, 90.0), rle_of((0.0, 60.0, 90.0, 2.0)))


def score(dataset: dict[str, Any], results: list[Result], kind: str, cap: int = 300) -> dict[str, float | None]:
    known = parse_truth(json.dumps(dataset).encode(), "truth.json")
    return score_arrays(known, detections_of(results, known), kind, cap).metrics


@pytest.mark.parametrize(
    ("dataset", "results", "expected"),
    [
        pytest.param(*BOATS, {"AP": 0.5, "APr": 0, "APf": 1}, id="mean over categories, not over objects"),
        pytest.param(ONE_CUP, GHOST, {"AP": 1}, id="a category that is not verified in an image is ignored"),
        pytest.param(truth((1, 1, CUP), negative={2: [1]}), GHOST, {"AP": 0.5}, id="a verified absence counts"),
        pytest.param(ONE_CUP, EXTRA, {"AP": 0.5}, id="a false positive"),
        pytest.param(truth((1, 1, CUP), not_exhaustive={1: [1]}), EXTRA, {"AP": 1}, id="not exhaustively annotated"),
        pytest.param(ONE_CUP, [*NOISE, RIGHT], {"AP": 0}, id="the cap counts unknown categories"),
        pytest.param(ONE_CUP, [*NOISE[1:], RIGHT], {"AP": 1}, id="at the cap"),
        pytest.param(ONE_CUP, [found(1, 1, 0.5, *FAR)] * 290 + [found(1, 1, 0.9, *CUP)], {"AP": 1}, id="290 in a cell"),
        pytest.param(truth(negative={1: [1]}), [RIGHT], dict.fromkeys(METRIC_NAMES), id="without objects all is null"),
    ],
)
def test_rules(dataset, results, expected):
    for kind in ("bbox", "segm"):
        values = score(dataset, results, kind)
        assert {name: values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("noise", "ap"), [(2, 0), (1, 1)])
def test_another_cap(noise, ap):
    for kind in ("bbox", "segm"):
        assert score(ONE_CUP, [*NOISE[:noise], RIGHT], kind, cap=2)["AP"] == pytest.approx(ap)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([EMPTY, RIGHT], {"AP": 1}, id="an empty mask does not count against"),
        pytest.param([replace(EMPTY, bbox=None)], {"AP": 0}, id="nor for"),
        pytest.param([THIN, RIGHT], {"APs": 0.5}, id="a mask is small by its own area, not by its box"),
    ],
)
def test_rules_of_masks(results, expected):
    values = score(ONE_CUP, results, "segm")
    assert {name: values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("results", "value"), [([found(1, 1, 0.9, *CUP), found(2, 3, 0.8, *BOAT)], 1), ([], 0)])
def test_all_found_is_one_and_nothing_found_is_zero_not_null(results, value):
    for kind in ("bbox", "segm"):
        values = score(TWO_KINDS, results, kind)
        assert tuple(values) == METRIC_NAMES
        undefined = dict.fromkeys(("APc", "APl", "ARl@300"))  # no common category has an object, no object is large
        assert values == pytest.approx({**dict.fromkeys(METRIC_NAMES, value), **undefined})


def test_polygons_run_lengths_and_packed_masks_are_the_same_mask():
    pixels = np.zeros((SIDE_PX, SIDE_PX), bool)
    pixels[10:30, 10:30] = True
    edges = np.flatnonzero(np.diff(pixels.ravel(order="F"))) + 1
    lengths = np.diff([0, *edges, pixels.size]).tolist()
    packed = rle_of(CUP)
    dataset = truth((1, 1, (10.0, 10.0, 20.0, 23.0)))
    values = [
        score(dataset, [Result(1, 1, 0.9, CUP, mask)], "segm")
        for mask in (packed, Rle(packed.size, lengths), rectangle(*CUP))
    ]
    assert values[0] == values[1] == values[2]
    assert 0 < values[0]["AP"] < 1
