"""A piece is read in one pass, number for number, or left to whoever reads record by record."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.dataset.polygons import FARTHEST_PX, LONGEST_PX
from lvis_rcnn.dataset.reader import AnnotationReader
from lvis_rcnn.dataset.records import CROWD, IGNORED
from tests.helpers.small_dataset import annotation

digits = st.text("0123456789", min_size=1, max_size=20)
whole = st.integers(0, 10**20).map(str)
fixed = st.tuples(st.integers(0, 10**9).map(str), digits).map(".".join)
shortest = st.floats(0, 1e300, allow_nan=False).map(repr)
spellings = st.tuples(st.sampled_from(["", "", "-"]), whole | fixed | shortest).map("".join)
blanks = st.sampled_from(["", " ", "  ", "\n", "\t ", " \r\n"])


@st.composite
def pieces(draw):
    """Records written in any way."""
    comma, inside = draw(blanks) + "," + draw(blanks), draw(blanks)

    def written(values):
        return f"[{inside}{comma.join(values)}{inside}]"

    def record():
        polygon = st.integers(3, 6).flatmap(lambda n: st.lists(spellings, min_size=2 * n, max_size=2 * n))
        outline = written([written(draw(polygon)) for _ in range(draw(st.integers(1, 3)))])
        box = written(draw(st.lists(spellings, min_size=4, max_size=4)))
        fields = {"id": draw(st.integers(1, 2**63 - 1)), "segmentation": outline, "bbox": box, "area": draw(fixed)}
        fields |= {"image_id": draw(st.integers(1, 10**6)), "category_id": draw(st.integers(1, 1203))}
        return "{" + comma.join(f'"{key}"{inside}:{inside}{value}' for key, value in fields.items()) + "}"

    return written([record() for _ in range(draw(st.integers(1, 4)))])


def bits(values):
    return [struct.pack("<d", value) for value in values]


@settings(max_examples=80)
@given(pieces())
def test_numbers_are_those_of_float(text):
    records = json.loads(text, parse_int=lambda spelling: int(spelling) if len(spelling) < 19 else float(spelling))
    rows = AnnotationReader("a.json").read_regular(text.encode())
    if rows is None:
        # Whole numbers beyond 64 bits are left, and polygons that may be too large to draw.
        outlines = [polygon for record in records for polygon in record["segmentation"]]
        far = max(abs(x) for polygon in outlines for x in polygon)
        large = far > FARTHEST_PX or max(map(len, outlines)) * far > LONGEST_PX
        words = text.replace(",", " ").replace("]", " ").split()
        assert large or any(len(word) > 19 and "." not in word for word in words)
        return
    polygons = [polygon for record in records for polygon in record["segmentation"]]
    assert rows.outlines.polygons_each.tolist() == [len(record["segmentation"]) for record in records]
    assert rows.outlines.numbers_each.tolist() == [len(polygon) for polygon in polygons]
    # -0 is a whole number of JSON, and so 0.
    assert bits(rows.outlines.coordinates.tolist()) == bits(float(x) for polygon in polygons for x in polygon)
    assert bits(rows.boxes_xywh.reshape(-1).tolist()) == bits(float(x) for record in records for x in record["bbox"])
    assert bits(rows.areas.tolist()) == bits(float(record["area"]) for record in records)


def piece(**changes):
    """Two records, the second changed; ... leaves a key out."""
    changed = {**annotation(2, 7, 20, [0, 1, 10.5, 12]), **changes}
    return json.dumps([annotation(1, 7, 20, [0, 1, 10.5, 12]), {k: v for k, v in changed.items() if v is not ...}])


def test_a_usual_piece_is_read():
    rows = AnnotationReader("a.json").read_regular(piece().encode())
    assert rows.ids.tolist() == [1, 2]
    assert rows.category_ids.tolist() == [20, 20]
    assert rows.boxes_xywh.tolist() == [[0, 1, 10.5, 12]] * 2
    assert not rows.marks.any()


def test_marks_that_all_records_have_are_read():
    marks = [(0, 0), (1, 0), (0, 1), (1, 1)]
    records = [
        annotation(n, 7, 20, [0, 1, 2, 3]) | {"iscrowd": crowd, "ignore": ignored}
        for n, (crowd, ignored) in enumerate(marks, start=1)
    ]
    expected = [0, CROWD, IGNORED, IGNORED]
    reader = AnnotationReader("a.json")
    assert reader.read_regular(json.dumps(records).encode()).marks.tolist() == expected
    del records[0]["ignore"]
    assert reader.read(json.dumps(records).encode()).marks.tolist() == expected


UNUSUAL = [
    *[{key: value} for key in ("id", "image_id", "category_id") for value in (1.0, "1", None, True, 2**63, [1])],
    *[{"area": value} for value in (-1, "1", None, True, [1])],
    *[{"bbox": value} for value in ([1, 2, 3], [1, 2, 3, 4, 5], [[1, 2], [3, 4]], [1, 2, 3, "4"], None, {}, 5, [])],
    *[{"segmentation": value} for value in ([], [[]], [1, 2, 3, 4, 5, 6], [[[1], [2], [3], [4], [5], [6]]], None)],
    *[{"segmentation": [[1, 2, 3, 4, 5, value]]} for value in ("6", None, True, [6])],
    *[{"segmentation": value} for value in ([[1] * 7], [[1] * 4], [[[1, 2], [3, 4], [5, 6]]], {"size": [1, 1]})],
    *[{"note": 1}, {"area": ...}, {"area": ..., "Area": 3}, {"iscrowd": 0}],
]


@pytest.mark.parametrize("changes", UNUSUAL, ids=str)
def test_an_unusual_piece_is_left(changes):
    reader = AnnotationReader("a.json")
    assert reader.read_regular(piece(**changes).encode()) is None
    assert len(reader.read_regular(piece().encode())) == 2


NO_LISTS = ["", "[]", "{}", "7", "[7]", "[{}]", piece() + ", {", piece()[:-1], piece()[:40]]
NO_LISTS += [piece().replace("8.5", "NaN"), piece().replace('"area": 8.5', '"area": 8.5, "area": 8.5')]


@pytest.mark.parametrize("text", NO_LISTS)
def test_what_is_no_such_list_is_left(text):
    assert AnnotationReader("a.json").read_regular(text.encode()) is None
