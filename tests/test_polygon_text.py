"""Polygons read by vectors are those of the JSON reader, bit for bit, or are left to it."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn import polygon_text
from lvis_rcnn.polygon_text import Unread, read_polygons

digits = st.text("0123456789", min_size=1, max_size=20)
whole = st.integers(0, 10**20).map(str)
fixed = st.tuples(st.integers(0, 10**9).map(str), digits).map(".".join)
usual = st.tuples(st.integers(0, 9999).map(str), st.text("0123456789", min_size=1, max_size=3)).map(".".join)
shortest = st.floats(0, 1e15, allow_nan=False).map(repr)
spellings = usual | whole | fixed | shortest.filter(lambda text: "e" not in text)
signed = st.tuples(st.sampled_from(["", "", "", "-"]), spellings).map("".join)
blanks = st.sampled_from(["", " ", "  ", "\n", "\t ", " \r\n"])


@st.composite
def texts(draw):
    """Segmentations of some annotations, written in any way; and their numbers' spellings."""
    comma, inside = draw(blanks) + "," + draw(blanks), draw(blanks)
    numbers = usual if draw(st.booleans()) else signed

    def written(values):
        return f"[{inside}{comma.join(values)}{inside}]"

    polygons = st.lists(numbers, min_size=1, max_size=12)
    annotations = draw(st.lists(st.lists(polygons, min_size=1, max_size=3), min_size=1, max_size=6))
    return [written([written(polygon) for polygon in one]).encode() for one in annotations]


def bits(values):
    return [struct.pack("<d", value) for value in values]


def assert_read(segmentations):
    expected = [json.loads(text, parse_int=float) for text in segmentations]
    found = read_polygons(segmentations)
    assert found.polygons_each.tolist() == [len(one) for one in expected]
    assert found.numbers_each.tolist() == [len(polygon) for one in expected for polygon in one]
    flat = [number for one in expected for polygon in one for number in polygon]
    assert bits(found.coordinates.tolist()) == bits(flat)


@settings(max_examples=200, deadline=None)
@given(texts(), st.sampled_from([64, 1 << 17]))
def test_any_spelling_is_read_exactly_or_left(segmentations, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygon_text, "BLOCK", block)
        try:
            assert_read(segmentations)
        except Unread:
            assert any(len(number) > 7 or b"-" in number for text in segmentations for number in text.split(b","))


def test_every_number_of_two_decimals_to_a_thousand():
    for step in (100, 10, 1):
        values = [f"{n // step}.{n % step:0{len(str(step)) - 1}d}" if step > 1 else str(n) for n in range(100_000)]
        text = f"[[{', '.join(values)}]]".encode()
        found = read_polygons([text]).coordinates
        assert np.array_equal(found, np.array([float(value) for value in values]))


LISTS = ["[]", "[[]]", "[1]", "[[1],2]", "[1,[2]]", "[[1,[2]]]", "[[[1]]]", "[[],[1]]", "[[1],[]]", "[[1],[[2]]]"]
VALUES = ["5", "null", "{}", '{"a":[[1]]}', "[[1e2]]", "[[1E2]]", '[["1"]]', "[[true]]"]


@pytest.mark.parametrize("text", [*LISTS, *VALUES, "[[" + "9" * 400 + "]]"])
def test_anything_else_is_left(text):
    good = b"[[1,2,3,4,5,6]]"
    assert_read([good, good])
    for others in ([], [good], [good] * 5):
        with pytest.raises(Unread):
            read_polygons([*others, text.encode(), *others])
