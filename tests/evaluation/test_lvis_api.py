"""The classes that are called as those of the lvis package give its numbers, lines and records."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvis_rcnn.evaluation import lvis_api
from lvis_rcnn.evaluation.official import official_package
from lvis_rcnn.system.cli import InputError
from tests.evaluation.test_average_precision import small_set
from tests.helpers.scored_boxes import BOAT, CUP, as_json, found, truth, write


def scored(package: Any, path: Path, records: list[dict[str, Any]], kind: str, cap: int, **params: Any) -> Any:
    """What a user of the package does, and all that is read of it afterwards."""
    truth = package.LVIS(str(path))
    evaluation = package.LVISEval(truth, package.LVISResults(truth, copy.deepcopy(records), max_dets=cap), kind)
    vars(evaluation.params).update(params)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def assert_same(ours: Any, theirs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert dict(ours.get_results()) == dict(theirs.get_results())
    assert [*ours.get_results()] == [*theirs.get_results()]
    for name in ("precision", "recall"):
        assert np.array_equal(ours.eval[name], theirs.eval[name])
    assert ours.eval["counts"] == theirs.eval["counts"]
    assert ours.freq_groups == theirs.freq_groups
    capsys.readouterr()
    ours.print_results()
    printed = capsys.readouterr().out
    theirs.print_results()
    assert printed == capsys.readouterr().out


@pytest.mark.parametrize("kind", ["bbox", "segm", "segm without boxes"])
@pytest.mark.parametrize("seed", range(12))
def test_a_program_that_changes_its_import_gets_the_same(tmp_path, capsys, seed, kind):
    dataset, records, cap = small_set(seed)
    if not records:
        records = [{"image_id": dataset["images"][0]["id"], "category_id": 98, "score": 0.5, "bbox": [0, 0, 4, 4]}]
        records[0]["segmentation"] = {"size": [112, 112], "counts": "PPP3"}
    if kind == "segm without boxes":
        records = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
    path = write(tmp_path / "truth.json", dataset)
    with official_package() as lvis:
        theirs = scored(lvis, path, records, kind[:4], cap)
        assert_same(scored(lvis_api, path, records, kind[:4], cap), theirs, capsys)


@pytest.mark.parametrize("seed", [9, 11, 16, 63, 92])
def test_some_images_and_some_categories(tmp_path, capsys, seed):
    dataset, records, _ = small_set(seed)
    path = write(tmp_path / "truth.json", dataset)
    images = sorted({record["image_id"] for record in dataset["annotations"]})[1:]
    categories = [category["id"] for category in dataset["categories"]][:2]
    with official_package() as lvis:
        whole = scored(lvis, path, records, "bbox", 300).get_results()
        for params in ({"img_ids": images}, {"cat_ids": categories}, {"img_ids": images, "cat_ids": categories}):
            theirs = scored(lvis, path, records, "bbox", 300, **params)
            assert_same(scored(lvis_api, path, records, "bbox", 300, **params), theirs, capsys)
            assert theirs.get_results() != whole


def test_records_are_those_of_the_lvis_package(tmp_path):
    dataset, records, _ = small_set(5)
    path = write(tmp_path / "truth.json", dataset)
    image, category = dataset["images"][0]["id"], dataset["categories"][0]["id"]
    with official_package() as lvis:
        both = [package.LVIS(str(path)) for package in (lvis_api, lvis)]
        for name in ("dataset", "anns", "cats", "imgs", "img_ann_map", "cat_img_map"):
            assert getattr(both[0], name) == getattr(both[1], name)
        for filters in ({}, {"img_ids": [image]}, {"cat_ids": [category], "area_rng": [0, 1024]}, {"img_ids": [-1]}):
            assert both[0].get_ann_ids(**filters) == both[1].get_ann_ids(**filters)
        assert both[0].get_img_ids() == both[1].get_img_ids()
        assert both[0].load_cats(both[0].get_cat_ids()) == both[1].load_cats(None)
        for record in dataset["annotations"]:
            assert np.array_equal(both[0].ann_to_mask(record), both[1].ann_to_mask(record))
        for part in (("bbox",), ("segmentation",), ("bbox", "segmentation")):
            some = [{k: v for k, v in one.items() if k not in {"bbox", "segmentation"} - {*part}} for one in records]
            mine = lvis_api.LVISResults(both[0], copy.deepcopy(some), max_dets=3)
            theirs = lvis.LVISResults(both[1], copy.deepcopy(some), max_dets=3)
            assert as_texts(mine.load_anns()) == as_texts(theirs.load_anns())
            assert as_texts(mine.get_top_results(image, 0.5)) == as_texts(theirs.get_top_results(image, 0.5))
            assert len(mine.load_anns()) > 0
            assert not any("area" in one for one in mine.results)


def as_texts(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Records that can be compared: their boxes may be arrays."""
    return [{key: str(value) for key, value in one.items()} for one in records]


def test_what_a_program_changes_in_the_annotations_is_scored(tmp_path):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP), (2, 3, BOAT)))
    results = as_json([found(1, 1, 0.9, *CUP)])
    ground_truth = lvis_api.LVIS(path)
    evaluation = lvis_api.LVISEval(ground_truth, results, "bbox")
    evaluation.run()
    assert evaluation.get_results()["AP"] == pytest.approx(0.5)
    del ground_truth.dataset["annotations"][1]
    evaluation.run()
    assert evaluation.get_results()["AP"] == pytest.approx(1)


def test_no_detections_are_ap_0(tmp_path):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    evaluation = lvis_api.LVISEval(str(path), [], "segm")
    evaluation.run()
    assert (evaluation.results["AP"], evaluation.results["APc"]) == (0, -1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"use_cats": 0}, "params.use_cats: differs from the protocol of LVIS; fix: .*the lvis package"),
        ({"iou_thrs": [0.5]}, "params.iou_thrs: differs"),
        ({"area_rng": [[0, 1]] * 4}, "params.area_rng: differs"),
    ],
)
def test_other_protocols_are_refused(tmp_path, params, message):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    with pytest.raises(InputError, match=message):
        scored(lvis_api, path, as_json([found(1, 1, 0.9, *CUP)]), "bbox", 300, **params)
    with pytest.raises(ValueError, match="keypoints is not supported"):
        lvis_api.LVISEval(str(path), [], "keypoints")
    boxes = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": list(CUP)}]
    with pytest.raises(InputError, match="detections: no segm; fix: score bbox"):
        scored(lvis_api, path, boxes, "segm", 300)


def detectron2_results(api: Any, path: Path, records: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """The calls of detectron2's LVISEvaluator (evaluation/lvis_evaluation.py)."""
    ground_truth = api.LVIS(str(path))
    assert len(ground_truth.get_ann_ids()) > 0
    if kind == "segm":
        records = copy.deepcopy(records)
        for record in records:
            record.pop("bbox", None)
    results = api.LVISResults(ground_truth, records, max_dets=300)
    evaluation = api.LVISEval(ground_truth, results, kind)
    evaluation.run()
    evaluation.print_results()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    return {name: float(evaluation.get_results()[name] * 100) for name in names}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_calls_of_detectron2_give_the_same(tmp_path, kind):
    dataset, records, _ = small_set(16)
    path = write(tmp_path / "truth.json", dataset)
    records = [
        {
            **record,
            "score": np.float32(record["score"]),
            "segmentation": {"size": [112, 112], "counts": record["segmentation"]["counts"].encode()},
        }
        for record in records
    ]
    with official_package() as lvis:
        theirs = detectron2_results(lvis, path, records, kind)
    assert detectron2_results(lvis_api, path, records, kind) == theirs
    assert theirs["AP"] > 1
