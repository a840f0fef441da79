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


def test_scores_may_be_large_whole_numbers(tmp_path, capsys):
    dataset, records, _ = small_set(9)
    path = write(tmp_path / "truth.json", dataset)
    large = [{**one, "score": 2**60 + 256 * (place * 7 % 11)} for place, one in enumerate(records)]
    with official_package() as lvis:
        assert_same(scored(lvis_api, path, large, "bbox", 3), scored(lvis, path, large, "bbox", 3), capsys)


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


def test_annotations_that_a_program_removes_are_missed(tmp_path):
    ground_truth = lvis_api.LVIS(write(tmp_path / "truth.json", truth((1, 1, CUP))))
    ground_truth.dataset.pop("annotations")
    with pytest.raises(InputError, match=r"truth\.json: has images but no annotations"):
        lvis_api.LVISEval(ground_truth, [], "bbox")
    ground_truth.dataset["annotations"] = [{"ignore": float("nan")}]
    with pytest.raises(InputError, match=r"truth\.json: annotations\[0\]: ignore: .* NaN, .*0 or 1"):
        lvis_api.LVISEval(ground_truth, [], "bbox")


@pytest.mark.parametrize("kinds", [("bbox", "segm"), ("segm", "bbox")])
def test_the_kind_that_is_scored_is_that_of_params(tmp_path, capsys, kinds):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    # The box is on the object, the mask elsewhere.
    (record,) = as_json([found(1, 1, 0.9, *CUP)])
    records = [{**record, "segmentation": as_json([found(1, 1, 0.9, *BOAT)])[0]["segmentation"]}]
    with official_package() as lvis:
        theirs = scored(lvis, path, records, kinds[0], 300, iou_type=kinds[1])
        assert_same(scored(lvis_api, path, records, kinds[0], 300, iou_type=kinds[1]), theirs, capsys)
    assert theirs.get_results()["AP"] == pytest.approx(1 if kinds[1] == "bbox" else 0)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_detections_may_be_any_iterable_or_a_path(tmp_path, kind):
    records = as_json([found(1, 1, 0.9, *CUP)])
    path, results = write(tmp_path / "truth.json", truth((1, 1, CUP))), write(tmp_path / "results.json", records)
    for detections in (iter(records), map(dict, records), tuple(records), results, str(results)):
        evaluation = lvis_api.LVISEval(str(path), detections, kind)
        for _ in range(2):
            evaluation.run()
            assert evaluation.results["AP"] == pytest.approx(1)
        assert [one["score"] for one in evaluation.lvis_dt.anns.values()] == [0.9]


def test_what_is_no_path_and_no_list_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    with pytest.raises(InputError, match="annotations: is NoneType; allowed: the path"):
        lvis_api.LVISEval(None, [])
    with pytest.raises(InputError, match="detections: is int; allowed: a path"):
        lvis_api.LVISResults(path, 5)
    with pytest.raises(InputError, match="results: is ndarray, which holds no records; allowed"):
        lvis_api.LVISResults(path, np.zeros((0, 7))).anns  # noqa: B018
    with pytest.raises(InputError, match=r"results .*none\.json: no such file"):
        lvis_api.LVISResults(path, tmp_path / "none.json").anns  # noqa: B018


@pytest.mark.parametrize("ids", [[1, 2], (1.0,), {1, 2}, {2: 0, 1: 0}.keys(), np.array([2, 1]), range(1, 3)])
def test_ids_of_params_may_be_any_iterable(tmp_path, ids):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    for given in (ids, iter(ids)):
        params = {"img_ids": given, "cat_ids": iter(ids)}
        evaluation = scored(lvis_api, path, as_json([found(1, 1, 0.9, *CUP)]), "bbox", 300, **params)
        assert evaluation.get_results()["AP"] == pytest.approx(1)
        assert evaluation.params.img_ids == sorted(ids)


@pytest.mark.parametrize("name", ["img_ids", "cat_ids"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["1", "2"], "unknown id '1'; allowed: ids of the annotations"),
        ([1, 999], "unknown id 999"),
        ([9.5], "unknown id 9.5"),
        (None, "'NoneType' object is not iterable; allowed: a list"),
        ([[1]], "unhashable"),
    ],
)
def test_ids_of_params_that_the_annotations_do_not_have_are_named(tmp_path, name, ids, message):
    path = write(tmp_path / "truth.json", truth((1, 1, CUP)))
    with pytest.raises(InputError, match=rf"params\.{name}: .*{message}"):
        scored(lvis_api, path, as_json([found(1, 1, 0.9, *CUP)]), "bbox", 300, **{name: ids})


def test_what_is_called_too_early_says_so(tmp_path):
    judge = lvis_api.LVISEval(write(tmp_path / "truth.json", truth((1, 1, CUP))), [], "bbox")
    for too_early in (judge.accumulate, judge.summarize):
        with pytest.raises(RuntimeError, match="Please run"):
            too_early()


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
        ({"iou_type": "keypoints"}, "params.iou_type: is 'keypoints'; allowed: bbox or segm"),
        ({"iou_type": None}, "params.iou_type: is None"),
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
