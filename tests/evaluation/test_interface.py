"""What is scored from Python may be files, dictionaries or arrays, to the same numbers."""

import copy
import os
from collections import deque
from typing import Any

import numpy as np
import pytest

from lvis_rcnn.config.protocols import Protocol
from lvis_rcnn.evaluation.interface import Scoring, evaluate
from lvis_rcnn.evaluation.lvis_api import LVIS, LVISEval
from lvis_rcnn.system.cli import InputError
from tests.evaluation.test_average_precision import small_set
from tests.helpers.scored_boxes import BOAT, CUP, GOOD, TWO_KINDS, as_json, found, rectangle, rle_of, truth, write


def as_columns(records: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    columns = {name: [record[name] for record in records] for name in ("image_id", "category_id", "score", *names)}
    return {name: values if name == "segmentation" else np.array(values) for name, values in columns.items()}


def test_files_dictionaries_and_arrays_score_the_same(tmp_path):
    dataset, records, _ = small_set(16)
    files = write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", records)
    expected = evaluate(*files)
    assert 0 < expected["bbox"]["AP"] < expected["bbox"]["AP50"] < 1
    digests = ("annotations_sha256", "detections_sha256")

    def same(*what: Any, kinds: tuple[str, ...] = ("bbox", "segm")) -> None:
        metrics = evaluate(*what)
        assert {kind: metrics.get(kind) for kind in kinds} == {kind: expected[kind] for kind in kinds}
        if len(kinds) == 2:
            assert {key for key in expected if metrics[key] != expected[key]} <= {*digests}

    numpy_records = [
        {key: np.array(value) if key in ("bbox", "score", "image_id") else value for key, value in one.items()}
        for one in records
    ]
    for one in numpy_records[::2]:
        one["segmentation"] = {**one["segmentation"], "counts": one["segmentation"]["counts"].encode()}
    same(str(files[0]), str(files[1]))
    same(dataset, records)
    same(dataset, tuple(numpy_records))
    same(files[0], as_columns(records, "bbox", "segmentation"))
    same(files[0], as_columns(records, "bbox"), kinds=("bbox",))
    same(files[0], {**as_columns(records, "segmentation"), "bbox": None}, kinds=("segm",))
    columns = as_columns(records, "bbox")
    rows = [columns["image_id"], *columns["bbox"].T, columns["score"], columns["category_id"]]
    same(files[0], np.stack(rows, axis=1), kinds=("bbox",))
    assert "bbox" not in evaluate(*files, Scoring(kinds=("segm",)))
    with pytest.raises(InputError, match=r"scoring: is a dict; allowed: Scoring"):
        evaluate(*files, {"resamples": 10})


def test_annotations_may_hold_what_pycocotools_and_numpy_make(tmp_path):
    dataset = truth((1, 1, CUP), (2, 3, BOAT))
    results = [found(1, 1, 0.9, *CUP)]
    for record, result in zip(dataset["annotations"], [found(1, 1, 1, *CUP), found(2, 3, 1, *BOAT)], strict=True):
        rle = result.segmentation
        record["segmentation"] = {"size": list(rle.size), "counts": rle.counts.encode()}
        record |= {"area": np.float32(record["area"]), "bbox": np.array(record["bbox"])}
    assert evaluate(dataset, as_json(results))["segm"]["AP"] == pytest.approx(0.5)


@pytest.fixture
def unchecked(monkeypatch):
    """Values of other types than the annotations say reach the code, as they do where no test runs."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


ONE = {"image_id": [1], "category_id": [1], "score": [0.5], "bbox": [CUP]}
MASK = {"size": [100, 100], "counts": rle_of(CUP).counts}
SELF: dict[str, Any] = {"image_id": 1, "category_id": 1, "score": 0.5}
SELF["bbox"] = [SELF]
BITMAP = np.zeros((100, 100), np.uint8)
BITMAP[10:30, 10:30] = 255
MASKED = {"image_id": [1], "category_id": [1], "score": [0.5], "segmentation": [MASK]}


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (np.zeros((2, 6)), r"detections: is an array \[2, 6\]; allowed: an array \[d, 7\]"),
        ({"image_id": [1], "score": [0.5]}, "detections: no category_id; allowed: a dictionary of arrays"),
        ({"image_id": [1], "category_id": [1], "score": [0.5]}, "detections: neither bbox nor segmentation"),
        ({**ONE, "bbox": [[1, 2, 3]]}, r"detections: bbox is \[1, 3\]; allowed: \[1, 4\]"),
        ({**ONE, "bbox": [[1, 2, 3, 4], [5]]}, "detections: bbox is no array of numbers: .*inhomogeneous"),
        ({**ONE, "bbox": []}, r"detections: bbox is \[0\]; allowed: \[1, 4\]"),
        ({**ONE, "image_id": [1.5]}, r"detections: image_id\[0\] is 1.5; allowed: whole numbers of 64 bits"),
        ({**ONE, "image_id": [np.nan]}, r"detections: image_id\[0\] is nan; allowed: whole"),
        ({**ONE, "image_id": [1e19]}, r"detections: image_id\[0\] is 1e\+19; allowed: whole"),
        ({**ONE, "image_id": np.array([2**64 - 1], np.uint64)}, r"detections: image_id\[0\] is 18446744073709551615"),
        ({**ONE, "image_id": [2**70]}, r"detections: image_id\[0\] is 1180591620717411303424; allowed: numbers"),
        ({key: [*value, None] for key, value in ONE.items()}, r"detections: image_id\[1\] is None"),
        ({**ONE, "image_id": ["1"]}, r"detections: image_id\[0\] is '1'"),
        ({**ONE, "image_id": [True]}, r"detections: image_id\[0\] is True"),
        ({**ONE, "score": ["0.5"]}, r"detections: score\[0\] is '0.5'"),
        ({**ONE, "score": [True]}, r"detections: score\[0\] is True"),
        ({**ONE, "score": [0.5j]}, r"detections: score\[0\] is 0.5j"),
        ({**ONE, "score": np.ma.array([0.5], mask=[True])}, "detections: score has masked values"),
        ({**ONE, "score": [2**53 + 1]}, r"detections: score\[0\] is 9007199254740993; allowed: a number that float64"),
        ({**ONE, "score": np.array([2**53 + 1])}, r"detections: score\[0\] is 9007199254740993; allowed: a number"),
        (
            [{**GOOD[0], "score": -(2**53) - 1}],
            r"result 0 .* score is -9007199254740993; allowed: a number that float64",
        ),
        ({**ONE, "score": "x"}, "detections: score is 'x'"),
        ({**ONE, "bbox": [[1, 2, 3, 4], [5, 6, None, 8]]}, r"detections: bbox\[1\] is None; allowed: numbers"),
        ({**ONE, "score": 0.5}, r"detections: score is \[\]; allowed: \[1\]"),
        ({**MASKED, "segmentation": []}, "detections: 0 masks of 1; allowed"),
        ({**MASKED, "segmentation": 5}, "detections: 0 masks of 1; allowed"),
        ({**MASKED, "segmentation": [None]}, "result 0 .*has no segmentation"),
        ({**MASKED, "segmentation": [{"counts": "a"}]}, "result 0: Object missing required field `size`"),
        ({**MASKED, "segmentation": [{**MASK, "size": [4]}]}, "result 0: Expected `array` of length 2"),
        ({**MASKED, "segmentation": [{**MASK, "size": ["\ud800", 100]}]}, "result 0: Expected `int`, got `str` - at"),
        ([{**GOOD[0], "\ud800": 1, "score": "\ud800"}], "result 0: Expected `int [|] float`, got `str` - at"),
        ({**MASKED, "segmentation": [{**MASK, "size": [100.7, 100]}]}, "result 0: Expected `int`, got `float`"),
        ({**MASKED, "segmentation": [{**MASK, "size": [2**40, 100]}]}, r"mask size is \[1099511627776, 100\]"),
        ({**MASKED, "segmentation": [{**MASK, "size": [2**32 + 100, 100]}]}, r"mask size is \[4294967396, 100\]"),
        (
            {**MASKED, "segmentation": [{**MASK, "size": [2**70, 100]}]},
            "result 0: Expected `int` <= 9223372036854775807",
        ),
        ({**MASKED, "segmentation": [{**MASK, "counts": [2**70, 1]}]}, "mask is damaged: its run lengths do not fit"),
        ({**MASKED, "segmentation": [{**MASK, "counts": None}]}, "result 0: Expected `str | array`, got `null`"),
        ([{"image_id": 1, "category_id": "cup", "score": 0.5}], "result 0: Expected `int`, got `str` - at `.*category"),
        ([{"image_id": 7, "category_id": 1, "score": 0.5, "bbox": CUP}], r"result 0 \(image 7, .*unknown image"),
        ([{"image_id": 1.5, "category_id": 1, "score": 0.5, "bbox": CUP}], "result 0: Expected `int`, got `float`"),
        (
            {**MASKED, "segmentation": BITMAP[None]},
            r"result 0 \(.*segmentation is a bitmap of 100 x 100 pixels; .*: encode",
        ),
        ([{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": BITMAP}], "segmentation is a bitmap"),
        (
            [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": BITMAP.tolist()}],
            "segmentation is a bitmap",
        ),
        (
            {**MASKED, "segmentation": [[[10, 10, 30, np.nan, 30, 30]]]},
            "result 0 .*polygon has a coordinate that is no finite",
        ),
        ({**MASKED, "segmentation": [BITMAP > 0]}, "segmentation is a bitmap of 100 x 100 pixels"),
        ({"annotations": GOOD}, "detections: no image_id and no category_id .*; fix: .*give the list alone"),
        (np.array([*GOOD, 5]), "detections: result 2: Expected `object`, got `int`"),
        ([SELF], "detections: result 0: "),
        ("a\0b", r"--detections a\?b: embedded null byte"),
        (None, "detections: is NoneType; allowed: a path; a list of dictionaries"),
        (5, "detections: is int; allowed"),
        (b"[]x", "detections: result 0: Expected `object`, got `int`"),
        (type("DataFrame", (), {"to_dict": list})(), r"detections: is a DataFrame; .*fix: give its to_dict\("),
    ],
)
def test_what_is_no_detection_is_named(unchecked, detections, message):
    with pytest.raises(InputError, match=message):
        evaluate(truth((1, 1, CUP)), detections)


COLUMNS = as_columns(GOOD, "bbox", "segmentation")
MASKS = COLUMNS["segmentation"]
OBJECTS = np.empty(2, object)
OBJECTS[:] = [list(CUP), list(BOAT)]


@pytest.mark.parametrize(
    "detections",
    [
        (one for one in GOOD),
        map(dict, GOOD),
        deque(GOOD),
        np.array(GOOD),
        [{np.str_(key): value for key, value in one.items()} | {5: None} for one in GOOD],
        [{**one, "\ud800": 1} for one in GOOD],
        [{**one, "image_id": float(one["image_id"]), "category_id": np.float64(one["category_id"])} for one in GOOD],
        {**COLUMNS, "image_id": COLUMNS["image_id"].astype(float)},
        {**COLUMNS, "bbox": OBJECTS},
        {**COLUMNS, "segmentation": iter(MASKS)},
        {**COLUMNS, "segmentation": [rectangle(*CUP), rectangle(*BOAT)]},
        {**COLUMNS, "segmentation": [{**MASKS[0], "counts": MASKS[0]["counts"].encode()}, rectangle(*BOAT)]},
        {**COLUMNS, "segmentation": [{**MASKS[0], "counts": bytearray(MASKS[0]["counts"].encode())}, MASKS[1]]},
        {**COLUMNS, "segmentation": [{**MASKS[0], "counts": [1010, *([20, 80] * 19), 20, 7070]}, MASKS[1]]},
        {**COLUMNS, "segmentation": [{**MASKS[0], "counts": np.array([1010, *([20, 80] * 19), 20, 7070])}, MASKS[1]]},
    ],
)
def test_forms_that_hold_the_same_score_the_same(detections):
    metrics = evaluate(TWO_KINDS, detections)
    assert (metrics["bbox"]["AP"], metrics["segm"]["AP"]) == (pytest.approx(1), pytest.approx(1))


WITHOUT_SIZE = {"counts": "a"}


@pytest.mark.parametrize(
    "unread", ["[]", [], {"x": [1]}, 7, [[1, 2]], [[10, np.nan]], WITHOUT_SIZE, np.ones((4, 4), bool)]
)
@pytest.mark.parametrize(("kind", "other"), [("bbox", "segmentation"), ("segm", "bbox")])
def test_a_kind_that_is_not_scored_is_not_checked(tmp_path, unread, kind, other):
    results = [{**one, other: unread} for one in GOOD]
    columns = {**as_columns(GOOD, "bbox", "segmentation"), other: unread}
    annotations = copy.deepcopy(TWO_KINDS)
    annotations["annotations"][0][other] = unread
    for detections in (results, columns, *([] if hasattr(unread, "any") else [write(tmp_path / "x.json", results)])):
        assert evaluate(annotations, detections, Scoring(kinds=(kind,)))[kind]["AP"] == pytest.approx(1)


def test_an_array_of_records_is_a_dictionary_of_arrays():
    fields = [("image_id", "i4"), ("category_id", "u1"), ("score", "f4"), ("bbox", "f8", 4)]
    records = np.array([tuple(one[name] for name, *_ in fields) for one in GOOD], fields)
    assert evaluate(TWO_KINDS, records)["bbox"]["AP"] == pytest.approx(1)


def test_an_archive_of_numpy_is_a_dictionary_of_arrays(tmp_path):
    np.savez(tmp_path / "boxes.npz", **as_columns(GOOD, "bbox"))
    assert evaluate(TWO_KINDS, np.load(tmp_path / "boxes.npz"))["bbox"]["AP"] == pytest.approx(1)
    np.savez(tmp_path / "masks.npz", **as_columns(GOOD), segmentation=np.array(MASKS))
    with pytest.raises(InputError, match="detections: Object arrays cannot be loaded"):
        evaluate(TWO_KINDS, np.load(tmp_path / "masks.npz"))


def test_no_detections_are_ap_0_in_every_form():
    none = {"image_id": np.array([], str), "category_id": [], "score": [], "bbox": [], "segmentation": []}
    for detections in ([], iter(()), none, {**none, "bbox": np.zeros((0, 4))}):
        metrics = evaluate(TWO_KINDS, detections)
        assert (metrics["bbox"]["AP"], metrics["segm"]["AP"]) == (0, 0)


def with_first(**changed: Any) -> dict[str, Any]:
    """Annotations of which the first has other values."""
    first, second = TWO_KINDS["annotations"]
    return {**TWO_KINDS, "annotations": [{**first, **changed}, second]}


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (None, "annotations: is NoneType; allowed: the path of an LVIS annotation file"),
        ([TWO_KINDS], "annotations: is list; allowed"),
        (b"truth.json", "annotations: is bytes; allowed"),
        ({key: TWO_KINDS[key] for key in ("images", "categories")}, "annotations: has images but no annotations"),
        ({**TWO_KINDS, "annotations": None}, "annotations: .*expected array, got null"),
        ({**TWO_KINDS, "annotations": ["a"]}, r"annotations: annotations\[0\]: expected object, got str"),
        ({**TWO_KINDS, "info": object()}, "annotations: not to be written as JSON: it holds object"),
        ({**TWO_KINDS, "categories": [{"id": 1, "name": "\ud800"}]}, "annotations: not to be written .*surrogates"),
        (with_first(ignore=np.nan), r"annotations: annotations\[0\] \(id 1\): ignore: expected .*, got NaN"),
        (with_first(ignore=np.array(np.nan)), r"\(id 1\): ignore: expected .*, got NaN"),
        (with_first(area=np.float32("inf")), r"\(id 1\): area: expected float, got NaN, infinity or"),
        (with_first(segmentation=[np.full(6, np.nan)]), r"annotation 1: segmentation\[0\]\[0\]: .*, got NaN"),
    ],
)
def test_what_are_no_annotations_is_named(unchecked, annotations, message):
    with pytest.raises(InputError, match=message):
        evaluate(annotations, GOOD)


def test_run_lengths_of_annotations_may_be_whole_floats_and_nan_is_named(tmp_path):
    runs = {"size": [100.0, 100], "counts": [1010.0, *([20, 80] * 19), 20.0, 7070]}
    path = write(tmp_path / "truth.json", with_first(segmentation=runs))
    assert evaluate(path, GOOD)["segm"]["AP"] == pytest.approx(1)
    write(path, with_first(segmentation=[[10.0, 10.0, 30.0, np.nan, 30.0, 30.0]]))
    with pytest.raises(
        InputError, match=r"annotation 1: segmentation\[0\]\[3\]: expected float, got NaN.*allowed: run len"
    ):
        evaluate(path, GOOD)


@pytest.mark.parametrize("edge", [100, None, 60.5, "60"])
@pytest.mark.parametrize("is_coco", [False, True])
def test_boxes_need_no_sizes_of_images_and_no_names_of_categories(edge, is_coco):
    dataset = copy.deepcopy(TWO_KINDS)
    for image in dataset["images"]:
        image["height"] = edge
        for name in ("width", *(["neg_category_ids", "not_exhaustive_category_ids"] if is_coco else [])):
            del image[name]
    with pytest.raises(InputError, match=r"images\[0\] \(id 1\)"):
        evaluate(dataset, GOOD, coco_exhaustive=is_coco)
    boxes = evaluate(dataset, GOOD, Scoring(kinds=("bbox",), official="yes"), coco_exhaustive=is_coco)
    assert boxes["bbox"]["AP"] == pytest.approx(1)
    for record in dataset["annotations"]:
        del record["segmentation"]
    for number, category in enumerate(dataset["categories"]):
        category["name"] = [number]
    metrics = evaluate(dataset, GOOD, Scoring(official="yes"), coco_exhaustive=is_coco)
    assert metrics["bbox"]["AP"] == pytest.approx(1)
    assert [one["name"] for one in metrics["per_category"]] == ["[0]", "[1]", "[2]"]


@pytest.mark.parametrize("without", [{}, {"bbox": None}])
def test_masks_need_no_boxes_of_annotations(without):
    dataset = copy.deepcopy(TWO_KINDS)
    del dataset["annotations"][1]["bbox"]
    dataset["annotations"][1] |= without
    assert evaluate(dataset, GOOD, Scoring(kinds=("segm",), official="yes"))["segm"]["AP"] == pytest.approx(1)
    with pytest.raises(InputError, match=r"annotation 2: has no bbox; fix: .*--kinds segm"):
        evaluate(dataset, GOOD)
    dataset["annotations"][0]["bbox"] = [1, 2, 3]
    with pytest.raises(InputError, match=r"annotations\[0\] \(id 1\): bbox: expected array of length 4"):
        evaluate(dataset, as_columns(GOOD, "segmentation"))


def test_a_bitmap_of_an_annotation_is_named():
    with pytest.raises(InputError, match="annotation 1: segmentation is a bitmap of 100 x 100 pixels"):
        evaluate(with_first(segmentation=BITMAP), GOOD)


def test_masks_alone_on_annotations_without_masks_are_named():
    bare = [{key: value for key, value in one.items() if key != "segmentation"} for one in TWO_KINDS["annotations"]]
    masks_alone = as_columns(GOOD, "segmentation")
    with pytest.raises(InputError, match="detections: has masks alone, and the annotations have none; fix: write"):
        evaluate({**TWO_KINDS, "annotations": bare}, masks_alone)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *[("detections_per_image", value, "a whole number, 1 to 300") for value in (0, -1, 2.5, 1000, True)],
        *[("resamples", value, "a whole number, 0 to 100,000") for value in (-1, 2.0, None)],
        ("processes", 0, "a whole number, 1 to 256"),
        ("official", "maybe", "auto or yes or no"),
        *[("kinds", value, "a list of bbox, segm") for value in ("bbox", ["boxes"], None)],
        *[("protocols", value, "a list of boundary, fixed|a list of fixed") for value in ("fixed", ["fast"], [5])],
        ("protocols", [Protocol("street")], "a list of"),
        *[("subset_files", value, "the path of a text file") for value in ({"street": 5}, ["ids.txt"], {5: "ids.txt"})],
    ],
)
def test_values_of_a_scoring_that_are_not_allowed_are_named(unchecked, name, value, allowed):
    with pytest.raises(InputError, match=rf"Scoring\.{name}: is .*; allowed: ({allowed})"):
        Scoring(**{name: value})


def test_what_may_have_no_end_is_refused(tmp_path):
    """As the commands refuse it: opening a pipe into which nobody writes never returns."""
    pipe, annotations = tmp_path / "pipe", write(tmp_path / "truth.json", truth((1, 1, CUP)))
    os.mkfifo(pipe)
    files = Scoring(protocols=["few"], subset_files={"few": pipe})
    for given in ((pipe, []), (str(annotations), pipe), (annotations, [], files), ("/dev/zero", [])):
        with pytest.raises(InputError, match=r"(pipe: is a pipe|/dev/zero: is a device); allowed: a file or a folder"):
            evaluate(*given)
    for call in (lambda: LVIS(pipe), lambda: LVISEval(str(annotations), str(pipe), "bbox").run()):
        with pytest.raises(InputError, match="pipe: is a pipe"):
            call()


def test_protocols_are_asked_for_by_name(tmp_path):
    with pytest.raises(InputError, match=r"Scoring\.subset_files: two protocols would be named fixed"):
        Scoring(subset_files={"fixed": "ids.txt"})
    (tmp_path / "ids.txt").write_text("1\n")
    files = {"street": str(tmp_path / "ids.txt")}
    by_name = Scoring(protocols=["fixed", "street_fixed"], subset_files=files)
    protocols = Scoring(protocols=[Protocol(is_fixed=True), Protocol("street", is_fixed=True)], subset_files=files)
    metrics = evaluate(TWO_KINDS, GOOD, by_name)
    assert metrics == evaluate(TWO_KINDS, GOOD, protocols)
    assert [(name, one["images"]) for name, one in metrics["protocols"].items()] == [("fixed", 2), ("street_fixed", 1)]
