"""Crops hold every pixel of the published chain's bitmaps, and mask targets every bit of its RoIAlign on them."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as array_of
from pycocotools import mask as rle
from torchvision.ops import roi_align

from lvis_rcnn.dataloader.masks import mask_crops
from lvis_rcnn.dataloader.transforms import nearest_positions
from lvis_rcnn.model import roi_losses
from lvis_rcnn.model.roi_losses import mask_targets
from lvis_rcnn.system.cli import InputError
from tests.helpers.bitmaps import pasted
from tests.reference.golden_figures import arrays


def whole(polygons, original_hw, size_hw, flip):
    """The published chain: a bitmap at original size, rescaled by nearest neighbour, flipped."""
    encoded = rle.merge(rle.frPyObjects([polygon.tolist() for polygon in polygons], *original_hw))
    bitmap = cv2.resize(rle.decode(encoded), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return bitmap[:, ::-1] if flip else bitmap


# Hundredths, as in LVIS: steps of a tenth are where roundings to a fifth of a pixel fall.
coordinates = st.integers(-500, 9000).map(lambda hundredths: hundredths / 100)
polygons = st.integers(3, 9).flatmap(lambda corners: array_of(np.float64, 2 * corners, elements=coordinates))
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=300)
@given(st.lists(polygons, min_size=1, max_size=3), sizes, sizes, st.booleans())
def test_crops_are_the_bitmaps(objects, original_hw, size_hw, flip):
    crops = mask_crops([objects, objects[:1]], original_hw, size_hw, flip)
    expected = [whole(objects, original_hw, size_hw, flip), whole(objects[:1], original_hw, size_hw, flip)]
    assert np.array_equal(pasted(crops, size_hw), np.stack(expected))


def test_a_large_smooth_outline():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    outline = np.stack([320 + 300 * np.cos(angles), 240 + 235 * np.sin(3 * angles)], axis=1).round(2).reshape(-1)
    crops = mask_crops([[outline]], (480, 640), (800, 1067), True)
    assert np.array_equal(pasted(crops, (800, 1067))[0], whole([outline], (480, 640), (800, 1067), True))


def test_a_square_by_hand():
    crops = mask_crops([[np.array([1.0, 1, 4, 1, 4, 3, 1, 3])]], (5, 6), (5, 6), False)
    assert crops.frames_xyxy.tolist() == [[1, 1, 4, 3]]
    assert crops.pixels.tolist() == [1] * 6
    flipped = mask_crops([[np.array([1.0, 1, 4, 1, 4, 3, 1, 3])]], (5, 6), (10, 12), True)
    assert flipped.frames_xyxy.tolist() == [[4, 2, 10, 6]]


def test_an_outline_of_an_older_store_that_is_too_large_is_refused():
    with pytest.raises(InputError, match=r"has a coordinate of 1e\+08 pixels; .*fix: build the annotation store again"):
        mask_crops([[np.array([0, 0, 1e8, 0, 1e8, 1e8])]], (10, 12), (10, 12), False)


def test_an_object_without_a_pixel_and_no_object():
    crops = mask_crops([[np.array([1.1, 1.1, 1.2, 1.1, 1.2, 1.2])]], (5, 6), (5, 6), False)
    assert crops.frames_xyxy.tolist() == [[0, 0, 0, 0]]
    assert crops.pixels.tolist() == []
    nothing = mask_crops([], (5, 6), (5, 6), False)
    assert nothing.frames_xyxy.shape == (0, 4)
    assert nothing.offsets.tolist() == [0]


@given(st.integers(1, 700), st.integers(1, 1400))
def test_positions_are_opencvs(old, new):
    ramp = (np.arange(old) % 251).astype(np.uint8)[None]
    expected = cv2.resize(ramp, (new, 1), interpolation=cv2.INTER_NEAREST)[0]
    positions = nearest_positions(old, new)
    assert np.array_equal(ramp[0][positions], expected)
    assert (np.diff(positions) >= 0).all()


def aligned(bitmaps, regions, objects):
    """The published chain: the kernel on whole bitmaps."""
    rois = torch.cat([objects[:, None].float(), regions], dim=1)
    soft = roi_align(bitmaps.float()[:, None], rois, 28, 1.0, 0, True)
    return (soft[:, 0] >= 0.5).float()


regions_of = st.lists(
    st.tuples(*[st.floats(0, 1, width=32)] * 4).map(
        lambda corners: (min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2]))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150)
@given(st.lists(polygons, min_size=1, max_size=3), regions_of, st.integers(0, 64), st.integers(0, 64), st.booleans())
def test_mask_targets_are_the_kernels(outlines, regions, more_rows, more_columns, flip):
    size_hw = (83, 91)
    crops = mask_crops([[outline] for outline in outlines], (60, 75), size_hw, flip)
    canvas = np.pad(pasted(crops, size_hw), ((0, 0), (0, more_rows), (0, more_columns)))
    boxes = torch.tensor(regions) * torch.tensor([91.0, 83, 91, 83])
    objects = torch.arange(len(boxes)) % len(outlines)
    found = mask_targets(crops, boxes, objects, canvas.shape[1:])
    assert torch.equal(found, aligned(torch.from_numpy(canvas), boxes, objects))


def test_mask_targets_in_chunks_and_of_large_regions(monkeypatch):
    random = np.random.default_rng(0)
    outlines = [[random.uniform(0, 600, 16).round(2)] for _ in range(4)]
    crops = mask_crops(outlines, (600, 640), (1250, 1333), True)
    canvas = torch.from_numpy(pasted(crops, (1250, 1333)))
    corners = torch.from_numpy(random.uniform(0, 1, (12, 2, 2)).astype(np.float32)) * torch.tensor([1333.0, 1250])
    boxes = torch.cat([corners.min(dim=1).values, corners.max(dim=1).values], dim=1)
    objects = torch.arange(12) % 4
    expected = aligned(canvas, boxes, objects)
    assert torch.equal(mask_targets(crops, boxes, objects, (1250, 1333)), expected)
    monkeypatch.setitem(roi_losses.SAMPLES_PER_CHUNK, "cpu", 1000)
    assert torch.equal(mask_targets(crops, boxes, objects, (1250, 1333)), expected)
    nothing = mask_targets(crops, boxes[:0], objects[:0], (1250, 1333))
    assert nothing.shape == (0, 28, 28)


# Bitmaps and targets of real LVIS annotations through the real chain, at test resolution.
@pytest.mark.parametrize("case", [case for case in range(4) if f"case{case}_masks" in arrays("pipeline_train")])
def test_mask_targets_of_the_figures(case):
    figures = arrays("pipeline_train")
    hard = figures[f"case{case}_mt_hard"]
    boxes = torch.from_numpy(figures[f"case{case}_mt_proposals"])
    objects = torch.from_numpy(figures[f"case{case}_mt_gt_inds"]).long()
    bitmaps = figures[f"case{case}_masks"]
    count, height, width = bitmaps.shape
    frames = torch.tensor([[0, 0, width, height]] * count)
    offsets = torch.arange(count + 1) * height * width
    crops = roi_losses.MaskCrops(frames, offsets, torch.from_numpy(bitmaps.astype(np.uint8)).reshape(-1))
    padded_hw = (-(-height // 32) * 32, -(-width // 32) * 32)
    found = mask_targets(crops, boxes, objects, padded_hw)
    soft = figures[f"case{case}_mt_soft_f16"]
    assert (found.bool().numpy() == hard)[np.abs(soft.astype(np.float32) - 0.5) > 1e-3].all()
    assert (found.bool().numpy() != hard).sum() == 0
