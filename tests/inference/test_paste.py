"""Pasted masks: by hand, beside MMDetection's form pixel by pixel, and beside pycocotools byte by byte."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from lvis_rcnn.inference import paste
from lvis_rcnn.inference.paste import bitmaps, pasted_crops, run_length_texts
from tests.helpers.bitmaps import paste_mask, plain_paste


def by_hand(probabilities, box, height=20, width=30):
    return paste_mask(torch.as_tensor(probabilities, dtype=torch.float32), torch.tensor(box), height, width)


def test_a_full_mask_fills_its_box():
    expected = np.zeros((20, 30), dtype=bool)
    expected[4:12, 5:25] = True
    assert np.array_equal(by_hand(torch.ones(28, 28), [5.0, 4.0, 25.0, 12.0]), expected)


def test_a_half_mask_fills_half_its_box():
    probabilities = torch.zeros(28, 28)
    probabilities[:, :14] = 1
    expected = np.zeros((20, 40), dtype=bool)
    expected[2:18, 4:18] = True
    assert np.array_equal(by_hand(probabilities, [4.0, 2.0, 32.0, 18.0], 20, 40), expected)


def test_an_empty_mask_pastes_nothing():
    assert not by_hand(torch.full((28, 28), 0.49), [0.0, 0.0, 30.0, 20.0]).any()


def test_what_lies_outside_the_image_is_cut_off():
    expected = np.zeros((20, 30), dtype=bool)
    expected[:, :8] = True
    assert np.array_equal(by_hand(torch.ones(28, 28), [-10.0, -5.0, 8.0, 40.0]), expected)
    for box in ([-20.0, 3.0, -5.0, 9.0], [3.0, 25.0, 9.0, 40.0], [100.0, 100.0, 120.0, 120.0]):
        assert not by_hand(torch.ones(28, 28), box).any()


@pytest.mark.parametrize(
    ("box", "strip"),
    [
        ([5.0, 5.0, 5.0, 9.0], (4, 5, 6, 9)),
        ([5.0, 5.0, 9.0, 5.0], (5, 4, 9, 6)),
        ([5.25, 5.25, 5.25, 5.25], (4, 4, 7, 7)),
        ([30.0, 4.0, 30.0, 12.0], (29, 4, 30, 12)),  # clipped at the right border
        ([0.0] * 4, (0, 0, 1, 1)),
    ],
    ids=str,
)
def test_a_box_without_length_gets_the_middle_of_its_mask_as_in_mmdetection(box, strip):
    left, top, right, bottom = strip
    expected = np.zeros((20, 30), dtype=bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(by_hand(torch.ones(28, 28), box), expected)
    assert np.array_equal(plain_paste(torch.ones(28, 28), torch.tensor(box), 20, 30), expected)
    hollow = torch.ones(28, 28)
    hollow[10:18, 10:18] = 0  # the middle decides
    assert by_hand(hollow, box).sum() < expected.sum()


def test_a_box_inside_one_pixel_covers_it_if_it_holds_its_centre():
    assert by_hand(torch.ones(28, 28), [5.4, 5.4, 5.6, 5.6]).nonzero() == (5, 5)
    assert not by_hand(torch.ones(28, 28), [5.0, 5.0, 5.1, 5.1]).any()


def edges(edge_px):
    """Sides of boxes along an axis: anywhere, at whole pixels, at and beyond the borders, with and without length."""
    beyond = st.floats(-20, edge_px + 20, width=32)
    whole = st.integers(-2, edge_px + 2).map(float)
    low = beyond | whole | st.just(0.0)
    sides = st.tuples(low, low).map(sorted)
    narrow = st.tuples(low, st.sampled_from([0.0, 2**-10, 0.5, 1.0])).map(lambda ends: [ends[0], ends[0] + ends[1]])
    return sides | narrow | st.just([0.0, float(edge_px)])


@st.composite
def images(draw):
    """Size of an image, and masks with their boxes: smooth, noisy, empty, full, at one half, and no number at all."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    boxes = draw(st.lists(st.tuples(edges(width), edges(height)), max_size=6))
    boxes = torch.tensor([[x0, y0, x1, y1] for (x0, x1), (y0, y1) in boxes], dtype=torch.float32).reshape(-1, 4)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kinds = {
        "noise": lambda: torch.rand(28, 28, generator=generator),
        "smooth": lambda: torch.nn.functional.interpolate(torch.rand(1, 1, 3, 3, generator=generator), (28, 28))[0, 0],
        "near one half": lambda: 0.5 + 1e-6 * torch.randn(28, 28, generator=generator),
        "one half": lambda: torch.full((28, 28), 0.5),
        "full": lambda: torch.ones(28, 28),
        "empty": lambda: torch.zeros(28, 28),
        "no number": lambda: torch.full((28, 28), float("nan")),
    }
    masks = [kinds[draw(st.sampled_from(sorted(kinds)))]() for _ in boxes]
    return (height, width), torch.stack(masks) if masks else torch.zeros(0, 28, 28), boxes


def same_as_the_plain_form(image, pixels_at_once):
    size_hw, masks, boxes = image
    expected = [plain_paste(mask, box, *size_hw) for mask, box in zip(masks, boxes, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paste.PIXELS_AT_ONCE, "cpu", pixels_at_once)
        found = bitmaps(pasted_crops(masks, boxes, size_hw), len(boxes), size_hw)
        offsets, text = run_length_texts(pasted_crops(masks, boxes, size_hw), len(boxes), size_hw)
    assert np.array_equal(found, np.array(expected).reshape(-1, *size_hw))
    texts = [text[start:stop].tobytes() for start, stop in pairwise(offsets)]
    assert texts == [rle.encode(np.asfortranarray(one.astype(np.uint8)))["counts"] for one in expected]


@settings(max_examples=25)
@given(images(), st.sampled_from([200, 1 << 20]))
def test_every_pixel_and_every_byte_is_that_of_the_plain_form(image, pixels_at_once):
    same_as_the_plain_form(image, pixels_at_once)


@pytest.mark.long
@settings(max_examples=300)
@given(images(), st.sampled_from([7, 100, 1 << 20]))
def test_so_it_is_in_many_more_images(image, pixels_at_once):
    same_as_the_plain_form(image, pixels_at_once)


@settings(max_examples=25)
@given(images(), st.sampled_from([200, 1 << 20]))
def test_on_a_gpu_every_pixel_is_that_of_the_plain_form_but_for_rounding(image, pixels_at_once):
    size_hw, masks, boxes = image
    least, most = (
        [plain_paste(mask + change, box, *size_hw) for mask, box in zip(masks, boxes, strict=True)]
        for change in (-1e-5, 1e-5)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paste.PIXELS_AT_ONCE, "cpu", pixels_at_once)
        patch.setattr(paste, "pasted", paste.pasted_by_pixel)
        found = bitmaps(pasted_crops(masks, boxes, size_hw), len(boxes), size_hw)
    for bits, inner, outer in zip(found, least, most, strict=True):
        assert (inner <= bits).all()
        assert (bits <= outer).all()


def test_no_more_pixels_than_allowed_are_in_memory_at_once(monkeypatch):
    monkeypatch.setitem(paste.PIXELS_AT_ONCE, "cpu", 5000)
    boxes = torch.tensor([[0.0, 0, 640, 480], [3, 5, 40, 90], [600, 5, 640, 480], [0, 0, 640, 480]])
    sizes = [len(crops.bits) for crops in pasted_crops(torch.ones(4, 28, 28), boxes, (480, 640))]
    assert max(sizes) <= 2 * 5000
    assert sum(sizes) > 2 * 480 * 640


def test_a_mask_as_high_as_its_image_is_one_run():
    boxes = torch.tensor([[4.0, 0, 9, 20], [0, 0, 30, 20]])
    offsets, text = run_length_texts(pasted_crops(torch.ones(2, 28, 28), boxes, (20, 30)), 2, (20, 30))
    texts = [text[start:stop].tobytes() for start, stop in pairwise(offsets)]
    runs = [[80, 100, 420], [0, 600]]
    assert texts == [rle.frPyObjects({"size": [20, 30], "counts": one}, 20, 30)["counts"] for one in runs]
