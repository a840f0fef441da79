"""Run-length masks are read as pycocotools reads them, and damaged ones refused without it."""

from itertools import chain, pairwise

import numpy as np
import pycocotools.mask as rle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lvis_rcnn.dataset.rle import check_runs, pixels_of_runs, pixels_of_texts, runs_of_text, texts_of_runs

bitmaps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


@given(bitmaps)
def test_a_mask_of_pycocotools_comes_back(bitmap):
    runs = runs_of_text(rle.encode(np.asfortranarray(bitmap))["counts"])
    check_runs(runs, bitmap.shape)
    assert np.array_equal(pixels_of_runs(runs, bitmap.shape), bitmap)


def text_of_pycocotools(runs):
    """The compressed text by pycocotools; nothing is drawn, so the size of the image does not matter."""
    return rle.frPyObjects({"size": [1, 1], "counts": runs}, 1, 1)["counts"]


def with_room(runs):
    """The same runs with short ones at the end, so that pycocotools 2.0.11 stays within its memory.

    It reserves 6 bytes for the text of each run, but writes up to 7, and a zero byte at the end. Beyond its memory it
    damages what lies there, and Python aborts some time later, mostly when the garbage collector frees it.
    """
    return runs + [0] * (len(runs) + 3)


large_runs = st.lists(st.integers(0, 2**31), max_size=12).map(with_room)


@given(large_runs)
def test_large_runs_come_back(runs):
    assert runs_of_text(text_of_pycocotools(runs)).tolist() == runs


@given(st.lists(large_runs | st.lists(st.integers(0, 40), max_size=12), max_size=6))
def test_runs_become_the_text_of_pycocotools(masks):
    each = np.array([len(runs) for runs in masks], np.int64)
    offsets, text = texts_of_runs(np.array(list(chain.from_iterable(masks)), np.int64), each)
    assert pixels_of_texts(offsets, text).tolist() == [sum(runs) for runs in masks]
    found = [text[start:stop].tobytes() for start, stop in pairwise(offsets)]
    assert found == [text_of_pycocotools(runs) if runs else b"" for runs in masks]


@given(st.binary(max_size=60) | st.text("0123456789OPQRSTPmno`abc", max_size=30).map(str.encode))
def test_any_bytes_are_runs_or_an_error(counts):
    try:
        runs = runs_of_text(counts)
        check_runs(runs, (30, 40))
    except ValueError:
        return
    # Only what passed is safe to be given to pycocotools.
    assert np.array_equal(rle.decode({"size": [30, 40], "counts": counts}), pixels_of_runs(runs, (30, 40)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"0!0", "has a character that no compressed mask has"),
        (b"0p", "has a character that no compressed mask has"),
        (b"0P", "ends within a number"),
        (b"PPPPPPP0", "has a number of more than 32 bits"),
    ],
)
def test_damaged_texts(counts, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        runs_of_text(counts)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([5], "fills 5 pixels, not 2 x 3 = 6"),
        ([], "fills 0 pixels, not 2 x 3 = 6"),
        ([8, -2], "has a run of -2 pixels"),
    ],
)
def test_runs_that_do_not_fill_the_image(runs, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_runs(np.array(runs, np.int64), (2, 3))
