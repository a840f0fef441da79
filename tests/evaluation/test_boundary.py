"""Boundary IoU beside erosion by OpenCV, beside the golden figures, and by hand."""

import gzip
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lvis_rcnn.evaluation.boundary import boundary_iou, boundary_of, dilation_px
from tests.conftest import REPOSITORY


def packed(pixels: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


def eroded_slowly(pixels: np.ndarray) -> np.ndarray:
    """The boundary by as many erosions with 3 x 3 pixels as it is wide, of the whole image with a margin."""
    d = max(1, round(0.02 * float(np.hypot(*pixels.shape))))
    margin = cv2.copyMakeBorder(pixels.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(margin, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
    return pixels & ~inner.astype(bool)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of an image: a few discs and boxes, some with holes, many cut by an edge; sometimes none."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 160, 2)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((2, height, width), bool)
    for mask in masks:
        for _ in range(random.integers(0, 4)):
            cx, cy, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(1, 90)
            disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
            box = (abs(x - cx) < radius) & (abs(y - cy) < radius / 2)
            mask |= disc if random.random() < 0.5 else box
        if random.random() < 0.3:
            mask &= (x + 3 * y) % 37 > 0
    return masks[0], masks[1]


@given(st.integers(0, 2**48).map(blobs))
def test_boundaries_are_what_erosion_removes(masks):
    one, other = masks
    slow = [eroded_slowly(mask) for mask in masks]
    ours = [boundary_of(packed(mask)) for mask in masks]
    for mask, found in zip(slow, ours, strict=True):
        pixels = np.zeros_like(mask)
        columns, rows = found.is_boundary.shape
        pixels[found.top : found.top + rows, found.left : found.left + columns] = found.is_boundary.T
        assert np.array_equal(pixels, mask)
        assert found.area == mask.sum()
    expected = coco_mask.iou([packed(slow[0])], [packed(slow[1])], [0])[0, 0] if one.any() and other.any() else 0
    assert boundary_iou(*ours) == expected


def test_a_boundary_by_hand():
    """In 100 x 100 pixels boundaries are 3 wide: a square of 20 pixels keeps a hole of 14."""
    pixels = np.zeros((100, 100), bool)
    pixels[10:30, 40:60] = True
    assert boundary_of(packed(pixels)).area == 20**2 - 14**2
    at_the_edge = np.roll(pixels, -10, axis=0)
    assert boundary_of(packed(at_the_edge)).area == 20**2 - 14**2
    # Both squares have ten rows, in which their left and right sides, of three pixels each, are the same.
    shared = 10 * 2 * 3
    found = boundary_iou(boundary_of(packed(pixels)), boundary_of(packed(at_the_edge)))
    assert found == shared / (2 * (20**2 - 14**2) - shared)


def test_a_mask_without_a_pixel_has_no_boundary():
    nothing = boundary_of(packed(np.zeros((9, 7), bool)))
    assert (nothing.area, boundary_iou(nothing, nothing)) == (0, 0.0)


@pytest.mark.parametrize(
    ("height", "width", "d"), [(1, 1, 1), (480, 640, 16), (375, 500, 12), (60, 45, 2), (105, 140, 4), (426, 640, 15)]
)
def test_half_a_pixel_is_rounded_to_even(height, width, d):
    assert dilation_px(height, width) == d


def test_golden_pairs_to_the_last_bit():
    """Figures of boundary-iou-api at 37d25586."""
    golden = json.loads(gzip.decompress((REPOSITORY / "tests/golden/boundary_pairs.json.gz").read_bytes()))
    for pair in golden["pairs"]:
        ours = [boundary_of(pair[name]) for name in "ab"]
        assert [one.area for one in ours] == [pair["a_boundary_area"], pair["b_boundary_area"]]
        assert boundary_iou(*ours) == pair["boundary_iou"], pair["what"]
        assert min(coco_mask.iou([pair["a"]], [pair["b"]], [0])[0, 0], boundary_iou(*ours)) == pair["used_iou"]
    assert [dilation_px(size["height"], size["width"]) for size in golden["widths"]] == [
        size["d"] for size in golden["widths"]
    ]
