import json
import os
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from lvis_rcnn.dataloader.masks import decoded, rasterised
from lvis_rcnn.dataset import pieces, reader
from lvis_rcnn.dataset.records import CROWD, IGNORED
from lvis_rcnn.dataset.rle import pixels_of_runs, runs_of_text
from lvis_rcnn.dataset.store import AnnotationStore, build_store, image_candidates, open_store
from lvis_rcnn.dataset.versions import version_of
from lvis_rcnn.evaluation.official import official_package
from lvis_rcnn.system.cli import InputError
from tests.helpers.small_dataset import annotation, build, small_dataset


def assert_same(store: AnnotationStore, dataset: dict) -> None:
    """The store holds what the parsed JSON holds, number for number."""
    label_of = {category["id"]: label for label, category in enumerate(dataset["categories"], start=1)}
    assert [(c.id, c.name, c.frequency) for c in store.categories] == [
        (c["id"], c["name"], c["frequency"]) for c in dataset["categories"]
    ]
    assert store.num_labels == len(label_of) + 1
    assert store.image_ids.tolist() == [image["id"] for image in dataset["images"]]
    for position, image in enumerate(dataset["images"]):
        assert (store.heights[position], store.widths[position]) == (image["height"], image["width"])
        assert store.image_name(position) == (image.get("coco_url") or "", image.get("file_name") or "")
        negatives, not_exhaustive = (image.get(f"{kind}_category_ids", []) for kind in ("neg", "not_exhaustive"))
        assert store.negatives_of(position).tolist() == [label_of[c] for c in negatives]
        not_exhaustive = [label_of[c] for c in not_exhaustive]
        assert store.not_exhaustive_of(position).tolist() == not_exhaustive
        ours = range(len(store.annotation_ids))[store.annotations_of(position)]
        theirs = [a for a in dataset.get("annotations", []) if a["image_id"] == image["id"]]
        assert store.annotation_ids[list(ours)].tolist() == [a["id"] for a in theirs]
        for at, one in zip(ours, theirs, strict=True):
            assert store.labels[at] == label_of[one["category_id"]]
            assert store.boxes_xywh[at].tolist() == [float(x) for x in one["bbox"]]
            assert store.areas[at] == one["area"]
            assert_same_outline(store.outline_of(at), one["segmentation"])
    assert store.annotation_offsets[-1] == len(dataset.get("annotations", []))


def assert_same_outline(found, segmentation):
    if isinstance(segmentation, list):
        assert [polygon.tolist() for polygon in found] == [[float(x) for x in polygon] for polygon in segmentation]
    else:
        size = segmentation["size"]
        packed = rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation
        assert np.array_equal(pixels_of_runs(found, tuple(size)), rle.decode(packed))


def test_by_hand(tmp_path):
    store = build(tmp_path, small_dataset())
    assert_same(store, small_dataset())
    assert store.image_ids.tolist() == [7, 3, 9]
    assert store.annotation_offsets.tolist() == [0, 2, 2, 3]
    assert store.annotation_ids.tolist() == [1, 4, 5]
    assert store.labels.tolist() == [2, 1, 1]
    assert store.first_polygons.tolist() == [1, 2, 0]
    assert store.polygon_counts.tolist() == [1, 2, 1]
    assert store.coordinate_offsets.tolist() == [0, 6, 12, 18, 26]
    assert store.negative_labels.tolist() == [2, 1, 3]
    assert store.counts["clipped_boxes"] == 1  # 50 + 15 > 60
    assert store.counts["images_without_annotation"] == 1
    assert store.source_name == "annotations.json"


@pytest.mark.parametrize("synset", [None, ["cup.n.01"]])
def test_a_synset_that_is_no_text_is_taken(tmp_path, synset):
    dataset = small_dataset()
    dataset["categories"][0]["synset"] = synset
    store = build(tmp_path, dataset)
    assert (store.categories[0].synset, version_of(store.categories)) == (synset, None)


def test_crowds_and_boxes_outside_are_kept_marked_and_counted(tmp_path):
    """The lvis package scores them, so the store of a validation split has them; training leaves them out."""
    usual = build(tmp_path, small_dataset())
    assert not (tmp_path / "data.store" / "marks.npy").exists()
    assert usual.marks.tolist() == [0, 0, 0]
    dataset = small_dataset()
    dataset["annotations"] += [
        annotation(6, 7, 20, [0, 0, 9, 9]) | {"iscrowd": 1},
        annotation(7, 3, 20, [0, 0, 9, 9]) | {"iscrowd": 1, "ignore": 1},
        annotation(8, 7, 20, [60, 2, 3, 4]),
        annotation(9, 7, 20, [-5, 2, 5, 4]),
    ]
    store = build(tmp_path, dataset)
    assert_same(store, dataset)
    assert store.annotation_ids.tolist() == [1, 4, 6, 8, 9, 7, 5]
    assert store.marks.tolist() == [0, 0, CROWD, 0, 0, IGNORED, 0]
    assert pickle.loads(pickle.dumps(store)).marks.tolist() == store.marks.tolist()
    assert {name: store.counts[name] for name in store.counts.keys() - usual.counts.keys()} == {
        "boxes_outside": 2,
        "crowds": 1,
        "ignored": 1,
    }
    assert store.counts["clipped_boxes"] == usual.counts["clipped_boxes"]


def test_rounding_of_a_sum_is_no_overshoot(tmp_path):
    dataset = small_dataset()
    dataset["images"][0]["width"] = 1
    dataset["annotations"] = [annotation(1, 7, 20, [0.7, 0, 0.3 + 1e-12, 4])]
    assert build(tmp_path, dataset).counts["clipped_boxes"] == 0


def test_arrays_are_mapped_read_only_and_pickled_by_path(tmp_path):
    store = build(tmp_path, small_dataset())
    with pytest.raises(ValueError, match="read-only"):
        store.boxes_xywh[0] = 0
    text = pickle.dumps(store)
    assert len(text) < 1000
    assert_same(pickle.loads(text), small_dataset())


def test_candidates_in_order():
    assert image_candidates("http://x.org/val2017/01.jpg", "") == ["val2017/01.jpg", "01.jpg"]
    assert image_candidates("", "train/01.png") == ["train/01.png"]
    assert image_candidates("", "COCO_val2014_000000266409.jpg")[-1] == "000000266409.jpg"


def change(path, value):
    """A dataset with one value replaced (or, for ``...``, removed); path in dots."""
    dataset = small_dataset()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = dataset
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return dataset


MASK = {"counts": [500, 20, 1880], "size": [40, 60]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("images", [], r"json: images: expected array of length >= 1; allowed: at least one image"),
        ("annotations", None, r"json: annotations: expected array, got null; allowed: a list of annotations"),
        ("categories", ..., r"json: missing field categories; .*images, annotations and categories"),
        ("images.1", 5, r"json: images\[1\]: expected object, got int; allowed: LVIS-format JSON"),
        ("images.1.id", "3", r"images\[1\] \(id '3'\): id: expected int, got str"),
        ("images.1.id", 7, r"image 7: image id is repeated"),
        ("images.1.height", 10**9, r"images\[1\] \(id 3\): height: expected int <= 65535"),
        ("images.1.neg_category_ids", ..., r"images\[1\] \(id 3\): missing field neg_category_ids; .*or an empty list"),
        ("images.0.neg_category_ids.0", 31, r"image 7: neg_category_ids names unknown category 31"),
        (
            "images.2.not_exhaustive_category_ids",
            [99],
            r"image 9: not_exhaustive_category_ids names unknown category 99",
        ),
        ("images.1.file_name", ..., r"image 3: has neither coco_url nor file_name"),
        ("images.0.neg_category_ids.0", "x", r"neg_category_ids\[0\]: expected int, got str; .*fix: correct the id"),
        ("annotations.1.id", 0, r"annotation 0: id 0 is reserved .*; fix: renumber the annotations from 1"),
        ("annotations.1.id", 10**30, r"annotations\[1\] .*: id: expected int <= 9223372036854775807"),
        ("annotations.1.id", 5, r"annotation 5: annotation id is repeated"),
        ("annotations.1.image_id", 8, r"annotation 1: unknown image 8; allowed: the id of an image of the file"),
        ("annotations.1.category_id", 1, r"annotation 1: unknown category 1; allowed: the id of a category"),
        ("annotations.1.bbox", [1, 2, 3], r"annotations\[1\] \(id 1\): bbox: expected array of length 4"),
        ("annotations.1.bbox", [1, 2, -3, 4], r"annotation 1: bbox \[1.0, 2.0, -3.0, 4.0\] has a negative size"),
        (
            "annotations.1.bbox.2",
            float("nan"),
            r"annotations\[1\] \(id 1\): bbox\[2\]: expected float, got NaN",
        ),
        ("images.1.height", float("nan"), r"images\[1\] \(id 3\): height: expected int, got NaN, infinity"),
        ("images.1.height", 50.5, r"images\[1\] \(id 3\): height: expected int, got float"),
        ("annotations.1.area", -1, r"annotations\[1\] \(id 1\): area: expected float >= 0"),
        ("annotations.1.segmentation", [], r"annotation 1: segmentation has no polygon"),
        ("annotations.1.segmentation", [[]], r"annotation 1: segmentation\[0\] has 0 numbers"),
        (
            "annotations.2.segmentation",
            [[1, 2, 3, 4]] * 2,
            r"annotation 4: segmentation\[0\] has 4 numbers; allowed: .*6",
        ),
        ("annotations.2.segmentation.1", [1, 2, 3], r"annotation 4: segmentation\[1\] has 3 numbers; allowed: .*even"),
        (
            "annotations.2.segmentation.1",
            [1, 2, 3, 4, 5, 3e7],
            r"annotation 4: segmentation\[1\] has a coordinate of 3e\+07",
        ),
        ("annotations.2.segmentation.0", [0, 0, 1e6, 9] * 6, r"segmentation\[0\] has an outline of 12,000,000 pixels"),
        (
            "annotations.2.segmentation",
            [[0] * 60, *[[0, 1, 1] * 20] * 39],
            r"segmentation is a bitmap of 40 x 60 pixels",
        ),
        ("annotations.2.segmentation.1", [1] * 7, r"annotation 4: segmentation\[1\] has 7 numbers"),
        ("annotations.2.segmentation.0.3", None, r"annotation 4: segmentation\[0\]\[3\]: expected float, got null"),
        ("annotations.2.segmentation.0.3", float("inf"), r"annotation 4: segmentation\[0\]\[3\]: expected .* got NaN"),
        ("annotations.2.segmentation.0.3", 10**400, r"annotation 4: segmentation\[0\]\[3\]: number out of range"),
        (
            "annotations.2.segmentation",
            {**MASK, "counts": "abc"},
            r"annotation 4: segmentation: the run-length mask ends within a number; .*size: \[height, width\], counts",
        ),
        ("annotations.2.segmentation", {**MASK, "counts": "11"}, r"mask fills 2 pixels, not 40 x 60 = 2400; allowed"),
        (
            "annotations.2.segmentation",
            {**MASK, "counts": [1, 2.5]},
            r"segmentation.counts\[1\]: expected int, got float",
        ),
        ("annotations.2.segmentation", {**MASK, "counts": [-1, 2401]}, r"segmentation.counts\[0\]: expected int >= 0"),
        ("annotations.2.segmentation", {"counts": [2400]}, r"segmentation: object missing required field size"),
        (
            "annotations.2.segmentation",
            {**MASK, "size": [60, 40]},
            r"a mask of size \[60, 40\] in an image of \[40, 60\]",
        ),
        (
            "categories.1.frequency",
            ...,
            r"categories\[1\] \(id 30\): missing field frequency; .*r for 1 to 10 training",
        ),
        ("categories.1.frequency", "x", r"categories\[1\] \(id 30\): frequency: .*allowed: r, c or f"),
        ("categories.1.id", 20, r"category 20: category id is repeated"),
    ],
)
def test_a_wrong_record_is_named_and_no_store_left(tmp_path, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        build(tmp_path, change(path, value))
    assert "annotations.json" in str(error.value)
    assert "fix:" in str(error.value)
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["annotations.json"]


@pytest.mark.parametrize("short", [[], [3e7, 2], [20, 30, 3.5, 4]])
def test_polygons_of_no_pixel_are_left_out(tmp_path, short):
    """As MMDetection leaves them out, and pycocotools, through which ``lvis`` reads them, finds no pixel in them."""
    dataset = small_dataset()
    good = dataset["annotations"][2]["segmentation"]
    dataset["annotations"][2]["segmentation"] = [short, good[0], short, *good[1:], short]
    store = build(tmp_path, dataset)
    assert_same(store, small_dataset())
    drawn = rle.merge(rle.frPyObjects([good[0], short, *good[1:], short], 40, 60))
    assert drawn == rle.merge(rle.frPyObjects(good, 40, 60))
    dataset["annotations"][0]["segmentation"] = []
    with pytest.raises(InputError, match="annotation 5: segmentation has no polygon;"):  # and of no other annotation
        build(tmp_path, dataset)


TEXT = json.dumps(small_dataset()).encode()
NO_JSON = [
    b"",
    b"\xff\xfe",
    b"{",
    b'{"images": [{"id": 1',
    b"[]",
    b"null",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    TEXT[:-1],
]
NO_JSON += [TEXT + b"x", TEXT.replace(b"bear", b"\xff"), TEXT.decode().encode("utf-16")]
NO_JSON += [TEXT.replace(b"[[0, 0, 4, 0, 4, 4]]", b"[" * 9000 + b"]" * 9000)]


@pytest.mark.parametrize("text", NO_JSON)
def test_no_json_is_one_line(tmp_path, text):
    with pytest.raises(
        InputError, match=r"json: (not readable as JSON|is empty|[eE]xpected object|is UTF-16|missing fields)"
    ):
        build(tmp_path, text)
    assert not (tmp_path / "data.store").exists()


def whole_numbers_as_floats(text):
    return re.sub(rb'("id": |_id": |height": |width": |_ids": \[|"area": )(\d+)([,}\]])', rb"\1\2.0\3", text)


LAX = {
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "NaN that nobody reads": TEXT.replace(b'"of no interest"', b'[NaN, {"x": -Infinity}]').replace(
        b'"area"', b'"x": NaN, "area"'
    ),
    "NaN for a missing name": TEXT.replace(b'"height"', b'"note": Infinity, "height"').replace(
        b'"file_name": "COCO_val2014_000000000009.jpg"', b'"file_name": NaN'
    ),
    "whole numbers as floats": whole_numbers_as_floats(TEXT),
    "a whole number as float in a late piece": b'"category_id": 20.0'.join(TEXT.rsplit(b'"category_id": 20', 1)),
    "half of a character that nobody reads": TEXT.replace(b'"area"', rb'"x": "\ud83d \\", "area"'),
    "a key twice, first of another type": TEXT.replace(b'"area"', b'"area": null, "area"').replace(
        b'"height"', b'"height": "70", "height"'
    ),
    "a section twice, first of another type": b'{"annotations": null, "images": [1], "categories": 5, ' + TEXT[1:],
    "exponents": TEXT.replace(b'"height": 40', b'"height": 4e1').replace(b'"id": 20', b'"id": 2.0E+01'),
}


@pytest.mark.parametrize("kind", LAX)
@pytest.mark.parametrize("piece", [300, pieces.PIECE])
def test_what_lvis_reads_is_read_though_it_is_no_strict_json(tmp_path, monkeypatch, kind, piece):
    monkeypatch.setattr(pieces, "PIECE", piece)
    assert LAX[kind] != TEXT
    expected = json.loads(LAX[kind], parse_constant=lambda _: "")
    assert_same(build(tmp_path, LAX[kind]), expected)


def test_run_lengths_may_be_floats(tmp_path):
    dataset = change("annotations.2.segmentation", {"counts": [500.0, 20, 1880.0], "size": [40.0, 60.0]})
    assert_same(build(tmp_path, dataset), change("annotations.2.segmentation", MASK))


def test_all_missing_keys_are_named_at_once(tmp_path):
    dataset = small_dataset()
    for record in (*dataset["images"], *dataset["categories"][1:]):
        for key in ("neg_category_ids", "not_exhaustive_category_ids", "frequency"):
            record.pop(key, None)
    with pytest.raises(InputError) as error:
        build(tmp_path, dataset)
    for part in (
        r"missing fields neg_category_ids \(in 3 of 3 images\), not_exhaustive_category_ids \(in 3 of 3 images\),"
        r" frequency \(in 2 of 3 categories\)",
        "fix: neg_category_ids: .*frequency: add it",
    ):
        assert re.search(part, str(error.value))


def test_a_large_polygon_that_can_be_drawn_is_stored(tmp_path):
    dataset = change("annotations.2.segmentation", [[0, 0, 1e6, 0, 1e6, 1e6], [0, 0, 1e6, 9] * 5])
    store = build(tmp_path, dataset)
    row = store.annotation_ids.tolist().index(4)
    assert [polygon.tolist() for polygon in store.outline_of(row)] == dataset["annotations"][2]["segmentation"]


def test_all_annotations_with_a_wrong_polygon_are_named(tmp_path):
    dataset = small_dataset()
    dataset["annotations"] = [annotation(n, 7, 20, [1, 2, 3, 4], [[0] * 5]) for n in range(1, 10)]
    with pytest.raises(InputError, match=r"annotation 1: .* 5 numbers \(also annotations 2, 3, 4, 5, 6 and 3 more\)"):
        build(tmp_path, dataset)
    dataset["annotations"] = [annotation(n, 7, 21, [1, 2, 3, 4]) for n in range(1, 10)]
    with pytest.raises(InputError, match=r"annotation 1: unknown category 21 \(and 8 more annotations\)"):
        build(tmp_path, dataset)


@pytest.mark.parametrize("given", [{}, {"annotations": []}])
def test_a_test_set_has_images_and_categories_only(tmp_path, given):
    images = [{key: image[key] for key in image if not key.endswith("_ids")} for image in small_dataset()["images"]]
    dataset = {"images": images, "categories": small_dataset()["categories"], **given}
    store = build(tmp_path, dataset)
    assert_same(store, dataset)
    assert (store.counts["images"], store.counts["annotations"]) == (3, 0)
    del dataset["categories"]
    with pytest.raises(InputError, match=r"json: missing field categories"):
        build(tmp_path, dataset)


def test_harmless_marks_and_nulls_are_accepted(tmp_path):
    dataset = change("annotations.0.iscrowd", 0)
    dataset["annotations"][1]["ignore"] = False
    dataset["annotations"][2] |= {"ignore": None, "iscrowd": None}
    dataset["images"][1]["coco_url"] = None
    assert_same(build(tmp_path, dataset), dataset)


@pytest.mark.filterwarnings("error")
def test_a_far_box_is_outside(tmp_path):
    assert build(tmp_path, change("annotations.0.bbox", [1e308] * 4)).counts["boxes_outside"] == 1


def test_a_name_that_is_not_utf8_is_stored(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    path.write_text(json.dumps(small_dataset()))
    build_store(path, tmp_path / "a.store")
    assert open_store(tmp_path / "a.store").source_name == "?.json"


@pytest.mark.parametrize(("name", "why"), [("loop", "Too many levels"), ("x" * 300, "File name too long")])
def test_a_name_that_cannot_be_opened_is_one_line(tmp_path, name, why):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=f"--annotations .*: not readable: {why}"):
        build_store(tmp_path / name, tmp_path / "a.store")


def test_a_missing_file_and_a_foreign_folder_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"--annotations \S+no.json: no such file; allowed: an LVIS annotation .*; fix: "
    ):
        build_store(tmp_path / "no.json", tmp_path / "data.store")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "dear.jpg").touch()
    (tmp_path / "a.json").write_text(json.dumps(small_dataset()))
    with pytest.raises(InputError, match="exists and is no annotation store"):
        build_store(tmp_path / "a.json", tmp_path / "photographs")
    assert (tmp_path / "photographs" / "dear.jpg").exists()


def test_a_store_is_replaced_by_the_next(tmp_path):
    build(tmp_path, small_dataset())
    assert_same(build(tmp_path, change("categories.1.name", "mug")), change("categories.1.name", "mug"))


def damage(store: Path, kind: str) -> None:
    info = json.loads((store / "store.json").read_text())
    if kind == "removed":
        (store / "labels.npy").unlink()
    elif kind == "truncated":
        file = store / "coordinates.npy"
        file.write_bytes(file.read_bytes()[:-8])
    elif kind == "exchanged":
        np.save(store / "labels.npy", np.zeros(2, "<i4"))
    elif kind == "labels":
        np.save(store / "labels.npy", np.zeros(3, "<i4"))
    elif kind == "offsets":
        np.save(store / "annotation_offsets.npy", np.load(store / "annotation_offsets.npy") + 1)
    elif kind == "polygons":
        np.save(store / "coordinate_offsets.npy", np.load(store / "coordinate_offsets.npy") * 0)
    elif kind == "empty":
        (store / "areas.npy").write_bytes(b"")
    elif kind == "categories":
        info["categories"].pop()
    elif kind == "retyped":
        np.save(store / "labels.npy", np.zeros(3, "<f4"))
    else:
        info.update({"version": {"version": 1}, "format": {"format": "other.store"}, "keys": {"shapes": {}}}[kind])
    (store / "store.json").write_text("{" if kind == "garbled" else json.dumps(info))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("removed", "the store is incomplete: .*labels.npy"),
        ("truncated", "the store is incomplete"),
        ("exchanged", r"the store is incomplete: labels.npy holds <i4 \(2,\), not <i4 \(3,\)"),
        ("retyped", r"labels.npy holds <f4 \(3,\), not <i4 \(3,\)"),
        ("keys", "the store is incomplete"),
        ("version", "format lvis_rcnn.annotations version 1; allowed: lvis_rcnn.annotations version 3"),
        ("format", "store of format other.store version 3"),
        ("garbled", "store.json is not that of a store"),
        ("labels", "the store is incomplete: labels.npy holds 0 to 0, not 1 to 3"),
        ("offsets", "the store is incomplete: annotation_offsets.npy are not the ends of labels.npy"),
        ("polygons", "the store is incomplete: coordinate_offsets.npy are not the ends of coordinates.npy"),
        ("empty", "the store is incomplete: "),
        ("categories", "negative_labels.npy holds 1 to 3, not 1 to 2"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, kind, message):
    if kind == "garbled":
        (tmp_path / "data.store").mkdir()
        (tmp_path / "data.store" / "store.json").write_text("{")
    else:
        build(tmp_path, small_dataset())
        damage(tmp_path / "data.store", kind)
    with pytest.raises(InputError, match=f"{message}.*fix: build it again"):
        open_store(tmp_path / "data.store")


def test_no_store_at_all(tmp_path):
    with pytest.raises(InputError, match="no annotation store here; fix: build it"):
        open_store(tmp_path / "absent.store")
    (tmp_path / "store.json").mkdir()  # as what this user may not read, which building it again would not help
    with pytest.raises(InputError, match="not readable: Is a directory; fix: let"):
        open_store(tmp_path)


numbers = st.floats(-100, 1000) | st.integers(-100, 1000)
ids = st.integers(-(2**63), 2**63 - 1)


@st.composite
def datasets(draw):
    category_ids = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    image_ids = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    some_categories = st.lists(st.sampled_from(category_ids), max_size=3)
    sizes = st.integers(1, 65_535)
    images = [
        {
            "id": image_id,
            "height": draw(sizes),
            "width": draw(sizes),
            "coco_url": draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]))),
            "file_name": draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
            "neg_category_ids": draw(some_categories),
            "not_exhaustive_category_ids": draw(some_categories),
        }
        for image_id in image_ids
    ]
    polygon = st.integers(3, 5).flatmap(lambda corners: st.lists(numbers, min_size=2 * corners, max_size=2 * corners))
    annotations = [
        {
            "id": annotation_id,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(category_ids)),
            "bbox": [*draw(st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))), 0.75, draw(st.floats(0.6, 1e300))],
            "area": draw(st.floats(0, 1e300)),
            "segmentation": draw(st.lists(polygon, min_size=1, max_size=3)),
        }
        for annotation_id in draw(st.lists(ids, min_size=1, max_size=5, unique=True))
        if annotation_id
    ]
    frequencies = st.sampled_from("rcf")
    categories = [
        {"id": category_id, "name": draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))}
        | {"frequency": draw(frequencies)}
        for category_id in category_ids
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@settings(max_examples=30)
@given(datasets())
def test_any_valid_file_comes_back_unchanged(tmp_path_factory, dataset):
    assert_same(build(tmp_path_factory.mktemp("valid"), dataset), dataset)


def official_class(file):
    """The annotations as the lvis package reads them."""
    with official_package() as lvis:
        return lvis.LVIS(str(file))


def test_parity_with_the_official_class(tmp_path, lvis_file):
    official = official_class(lvis_file)
    build_store(lvis_file, tmp_path / "data.store")
    store = open_store(tmp_path / "data.store")
    assert store.image_ids.tolist() == official.get_img_ids()
    assert [category.id for category in store.categories] == official.get_cat_ids()
    label_of = {category_id: label for label, category_id in enumerate(official.get_cat_ids(), start=1)}
    for position, image_id in enumerate(store.image_ids.tolist()):
        image = official.load_imgs([image_id])[0]
        assert (store.heights[position], store.widths[position]) == (image["height"], image["width"])
        assert store.negatives_of(position).tolist() == [label_of[c] for c in image["neg_category_ids"]]
        assert store.not_exhaustive_of(position).tolist() == [label_of[c] for c in image["not_exhaustive_category_ids"]]
        theirs = official.load_anns(official.get_ann_ids(img_ids=[image_id]))
        ours = store.annotations_of(position)
        size_hw = int(store.heights[position]), int(store.widths[position])
        assert store.annotation_ids[ours].tolist() == [a["id"] for a in theirs]
        for at, one in zip(range(ours.start, ours.stop), theirs, strict=True):
            assert store.labels[at] == label_of[one["category_id"]]
            assert store.boxes_xywh[at].tolist() == one["bbox"]
            assert store.areas[at] == one["area"]
            assert [polygon.tolist() for polygon in store.outline_of(at)] == one["segmentation"]
            ours_rle = rle.merge(rle.frPyObjects([p.tolist() for p in store.outline_of(at)], *size_hw))
            assert np.array_equal(rle.decode(ours_rle), official.ann_to_mask(one))
        for category_id, label in label_of.items():
            of_category = official.get_ann_ids(img_ids=[image_id], cat_ids=[category_id], area_rng=[-1, np.inf])
            assert store.annotation_ids[ours][store.labels[ours] == label].tolist() == of_category


def as_masks(dataset):
    """The same objects as run-length masks, compressed and not in turn, but for every third."""
    size_of = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    for number, one in enumerate(dataset["annotations"]):
        packed = rle.merge(rle.frPyObjects(one["segmentation"], *size_of[one["image_id"]]))
        runs = runs_of_text(packed["counts"]).tolist()
        counts = packed["counts"].decode() if number % 3 == 0 else runs
        if number % 3 < 2:
            one["segmentation"] = {"size": list(packed["size"]), "counts": counts}
    return dataset


def test_masks_are_those_of_the_official_class(tmp_path, lvis_file):
    dataset = as_masks(json.loads(lvis_file.read_bytes()))
    (tmp_path / "masks.json").write_text(json.dumps(dataset))
    official = official_class(tmp_path / "masks.json")
    counts = build_store(tmp_path / "masks.json", tmp_path / "data.store")
    assert counts["run_length_masks"] == sum(isinstance(one["segmentation"], dict) for one in dataset["annotations"])
    store = open_store(tmp_path / "data.store")
    of_polygons = build_store(lvis_file, tmp_path / "polygons.store")
    polygons = open_store(tmp_path / "polygons.store")
    assert of_polygons["annotations"] == counts["annotations"]
    for image in range(0, store.num_images, 3):
        size_hw = int(store.heights[image]), int(store.widths[image])
        rows = store.annotations_of(image)
        assert store.annotation_ids[rows].tolist() == polygons.annotation_ids[rows].tolist()
        for row in range(rows.start, rows.stop):
            (theirs,) = official.load_anns([int(store.annotation_ids[row])])
            for outline in (store.outline_of(row), polygons.outline_of(row)):
                draw = decoded if isinstance(outline, np.ndarray) else rasterised
                assert_crop_is(draw(outline, size_hw), official.ann_to_mask(theirs))


def assert_crop_is(crop, mask):
    whole = np.zeros_like(mask)
    height, width = crop.bitmap.shape
    whole[crop.top : crop.top + height, crop.left : crop.left + width] = crop.bitmap
    assert np.array_equal(whole, mask)


def test_a_file_as_lvis_writes_it_is_parsed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "read_all_rows", None)
    monkeypatch.setattr(pieces, "PIECE", 300)
    assert_same(build(tmp_path, small_dataset()), small_dataset())


def test_the_command_fails_in_one_line(tmp_path):
    source = tmp_path / "bad.json"
    source.write_text(json.dumps(change("annotations.1.image_id", 8)))
    command = [sys.executable, "-m", "lvis_rcnn.store", "--annotations", source, "--out", tmp_path / "x.store"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S+bad.json: annotation 1: unknown image 8; allowed: .*; fix: .*\n", done.stderr)
    assert not (tmp_path / "x.store").exists()


KILLS = 20


def write_larger(path: Path) -> None:
    """A file that takes a moment: 20,000 annotations in several pieces."""
    outline = [[round(0.01 * n, 2) for n in range(60)]]
    records = [annotation(n, 7 if n % 3 else 9, 20, [1, 2, 3, 4], outline) for n in range(1, 20_001)]
    path.write_text(json.dumps({**small_dataset(), "annotations": records}))


def start(annotations: Path, store: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "lvis_rcnn.store", "--annotations", annotations, "--out", store]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_twenty_kills_and_a_build_are_a_build(tmp_path):
    write_larger(tmp_path / "a.json")
    killed = tmp_path / "killed" / "a.store"
    began = time.monotonic()
    assert start(tmp_path / "a.json", tmp_path / "whole" / "a.store").wait() == 0
    duration_s = time.monotonic() - began
    pick, interrupted = random.Random(0), 0
    for kill in range(KILLS):
        # The first third is Python's start.
        process = start(tmp_path / "a.json", killed)
        time.sleep(duration_s * (0.3 + 0.7 * (kill + pick.random()) / KILLS))
        process.kill()
        interrupted += process.wait() != 0
        if (killed).exists():
            assert contents(open_store(killed).path) == contents(tmp_path / "whole" / "a.store")
    assert interrupted > KILLS // 4
    time.sleep(1.1)  # what is younger is not taken for abandoned
    assert start(tmp_path / "a.json", killed).wait() == 0
    assert contents(killed) == contents(tmp_path / "whole" / "a.store")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["a.store"]
