"""What is scored from Python may be files, dictionaries or arrays, to the same numbers."""

from typing import Any

import numpy as np
import pytest

from lvis_rcnn.evaluation.interface import Scoring, evaluate
from lvis_rcnn.system.cli import InputError
from tests.evaluation.test_average_precision import small_set
from tests.helpers.scored_boxes import BOAT, CUP, as_json, found, truth, write


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


def test_annotations_may_hold_what_pycocotools_and_numpy_make(tmp_path):
    dataset = truth((1, 1, CUP), (2, 3, BOAT))
    results = [found(1, 1, 0.9, *CUP)]
    for record, result in zip(dataset["annotations"], [found(1, 1, 1, *CUP), found(2, 3, 1, *BOAT)], strict=True):
        rle = result.segmentation
        record["segmentation"] = {"size": list(rle.size), "counts": rle.counts.encode()}
        record |= {"area": np.float32(record["area"]), "bbox": np.array(record["bbox"])}
    assert evaluate(dataset, as_json(results))["segm"]["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (np.zeros((2, 6)), r"detections: is an array \[2, 6\]; allowed: an array \[d, 7\]"),
        ({"image_id": [1], "score": [0.5]}, "detections: no category_id; allowed: a dictionary of arrays"),
        ({"image_id": [1], "category_id": [1], "score": [0.5]}, "detections: neither bbox nor segmentation"),
        (
            {"image_id": [1], "category_id": [1], "score": [0.5], "bbox": [[1, 2, 3]]},
            r"detections: bbox is \[1, 3\]; allowed: \[1, 4\]",
        ),
        (
            {"image_id": [1.5], "category_id": [1], "score": [0.5], "bbox": [[1, 2, 3, 4]]},
            "detections: image_id is float64; allowed: whole numbers",
        ),
        (
            {"image_id": [1], "category_id": [1], "score": [0.5], "segmentation": []},
            "detections: 0 masks of 1; allowed",
        ),
        ([{"image_id": 1, "category_id": "cup", "score": 0.5}], "result 0: Expected `int`, got `str` - at `.*category"),
        ([{"image_id": 7, "category_id": 1, "score": 0.5, "bbox": CUP}], r"result 0 \(image 7, .*unknown image"),
    ],
)
def test_what_is_no_detection_is_named(detections, message):
    with pytest.raises(InputError, match=message):
        evaluate(truth((1, 1, CUP)), detections)
