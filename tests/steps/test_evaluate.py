"""Scoring as a step: files in, metrics.json and match results out, errors in one line, and kills at any moment."""

import copy
import gzip
import hashlib
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvis_rcnn import evaluate as evaluate_module
from lvis_rcnn.config.protocols import Protocol
from lvis_rcnn.dataset.detections import (
    Detections,
    export_results,
    no_detections,
    pack_rles,
    read_shard,
    shard_path,
    write_shard,
)
from lvis_rcnn.evaluate import evaluate, table_lines
from lvis_rcnn.evaluation import scoring as scoring_module
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.matches import read_matches
from lvis_rcnn.evaluation.official import official_scores
from lvis_rcnn.evaluation.results import Result
from lvis_rcnn.evaluation.scoring import Scoring
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY
from tests.evaluation.test_coco import coco
from tests.helpers.scored_boxes import (
    BOAT,
    CUP,
    FAR,
    GOOD,
    TWO_KINDS,
    as_json,
    found,
    truth,
    write,
)
from tests.system.test_cli import seen_on_a_terminal


def as_shards(folder: Path, results: list[Result]) -> Path:
    """Two shards of ``results``."""
    for number, part in enumerate((results[:2], results[2:])):
        rles = [{"size": r.segmentation.size, "counts": r.segmentation.counts.encode()} for r in part]
        detections = Detections(
            np.array([result.image_id for result in part]),
            np.array([result.category_id for result in part]),
            np.array([result.score for result in part], np.float32),
            np.array([result.bbox for result in part], np.float32),
            *pack_rles(rles),
        )
        write_shard(shard_path(folder, number), detections)
    return folder


def test_exported_shards_give_the_same_metrics(tmp_path):
    annotations = write(tmp_path / "truth.json", truth((1, 1, CUP), (2, 3, BOAT), negative={2: [1]}))
    results = [found(1, 1, 0.1, *CUP), found(2, 3, 0.3, 40.1, 40.2, 39.9, 38.7), found(1, 3, 1 / 3, *FAR)]
    results += [found(2, 1, 0.75, *CUP), found(2, 99, 1.0, *BOAT)]
    shards = as_shards(tmp_path / "shards", results)
    assert export_results(shards, tmp_path / "results.json") == 5
    of_shards, of_file = (
        evaluate(annotations, path, Scoring(official="yes")) for path in (shards, tmp_path / "results.json")
    )
    assert {key for key in of_file if of_file[key] != of_shards[key]} == {"detections_sha256"}
    assert 0 < of_shards["segm"]["AP"] < 1
    assert (of_file["images"], of_file["detections"], of_file["unknown_category_detections"]) == (2, 5, 1)
    assert of_file["protocol"].startswith("LVIS, 300 detections an image, mask sizes from masks; scored by lvis_rcnn")


def test_nothing_found_is_exported_as_an_empty_list(tmp_path):
    write_shard(shard_path(tmp_path / "shards", 0), no_detections())
    assert export_results(tmp_path / "shards", tmp_path / "results.json") == 0
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_masks_that_were_left_out_cannot_be_exported(tmp_path):
    shards = as_shards(tmp_path / "shards", [found(1, category, 0.1, *CUP) for category in (1, 3, 2)])
    whole = read_shard(shard_path(shards, 0))
    ends = np.array([0, whole.rle_offsets[1], whole.rle_offsets[1]])
    some = replace(whole, rle_offsets=ends, rle_counts=whole.rle_counts[: ends[1]], has_mask=np.array([True, False]))
    write_shard(shard_path(shards, 0), some)
    with pytest.raises(InputError, match=r"shard-00000.npz: 1 detections have no mask, .*inference.masks: all"):
        export_results(shards, tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.float32([0.5, np.nan])}, r"result 1 \(image 2\): its score is not a finite number"),
        ({"boxes_xywh": np.float32([[1, 2, np.inf, 4]] * 2)}, r"result 0 \(image 1\): its bbox is not four finite"),
        ({"mask_sizes": np.int32([[100, 100], [9, 9]])}, r"result 1 \(image 2\): its mask is not of its size"),
        ({"rle_counts": 200}, r"result 0 \(image 1\): its mask is damaged"),
    ],
)
def test_what_no_scorer_reads_is_not_exported(tmp_path, change, message):
    results = [found(1, 1, 0.1, *CUP), found(2, 3, 0.2, *BOAT), found(2, 1, 0.3, *FAR)]
    path = shard_path(as_shards(tmp_path / "shards", results), 0)
    whole = read_shard(path)
    if "rle_counts" in change:
        change = {"rle_counts": np.full_like(whole.rle_counts, change["rle_counts"])}
    write_shard(path, replace(whole, **change))
    with pytest.raises(InputError, match=rf"shard-00000.npz: {message}.*; fix: run inference again"):
        export_results(path.parent, tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_every_category_has_its_own_ap(tmp_path):
    dataset = truth((1, 1, CUP), (2, 3, BOAT), negative={2: [1]})
    dataset["categories"].reverse()
    results = [found(1, 1, 0.5, *CUP), found(2, 1, 0.75, *CUP), found(1, 2, 0.5, *FAR)]
    metrics = evaluate(
        write(tmp_path / "truth.json", dataset), write(tmp_path / "dt.json", as_json(results)), Scoring()
    )
    rows = metrics["per_category"]
    assert [(row["id"], row["label"], row["name"], row["frequency"], row["objects"]) for row in rows] == [
        (1, 3, "thing 1", "r", 1),
        (2, 2, "thing 2", "c", 0),
        (3, 1, "thing 3", "f", 1),
    ]
    for kind in ("bbox", "segm"):
        assert [row[kind] for row in rows] == [pytest.approx(0.5), None, 0]
        assert metrics["judged_detections"][kind] == 2


def test_crowds_and_objects_outside_their_image_are_scored_as_lvis_does(tmp_path):
    """Training leaves them out; of category 3 one of two objects is found."""
    dataset = truth((1, 1, CUP), (1, 3, BOAT), (2, 3, (300.0, 300.0, 20.0, 20.0)))
    dataset["annotations"][1]["iscrowd"] = 1
    results = as_json([found(1, 1, 0.9, *CUP), found(1, 3, 0.8, *BOAT)])
    metrics = evaluate(
        write(tmp_path / "truth.json", dataset), write(tmp_path / "dt.json", results), Scoring(official="yes")
    )
    assert metrics["official"]["agrees"]
    assert [row["objects"] for row in metrics["per_category"]] == [1, 0, 2]
    assert metrics["per_category"][2]["bbox"] == pytest.approx(51 / 101)


def test_the_lvis_package_beside_says_that_it_agrees(tmp_path, monkeypatch):
    paths = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    agreed = evaluate(*paths, Scoring(official="auto"))
    assert agreed["official"] == {"package": f"lvis {agreed['versions']['lvis']}", "agrees": True}
    assert agreed["protocol"].endswith("agrees in every bit")
    monkeypatch.setattr(scoring_module, "MOST_IMAGES_CHECKED", 1)
    unchecked = evaluate(*paths, Scoring(official="auto"))
    assert (unchecked["official"]["agrees"], unchecked["official"]["why"]) == (None, "not run (more than 1 images)")
    assert evaluate(*paths, Scoring(official="yes")) == agreed
    assert not hasattr(np, "float")  # what lvis needs of old NumPy is gone again
    nothing = write(tmp_path / "nothing.json", [])
    assert evaluate(paths[0], nothing, Scoring(official="yes"))["bbox"]["AP"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("metrics", "results.json: segm: lvis .* disagrees: APm is .* by us, 0.5 by lvis; fix: .*--official no"),
        ("recall", "disagrees: recall differs in 1 of 120 places"),
    ],
)
def test_a_disagreement_with_the_lvis_package_is_an_error(tmp_path, monkeypatch, change, message):
    def other(annotations, results, kind, cap):
        scores = official_scores(annotations, results, kind, cap)
        if kind == "segm":
            scores.metrics["APm"] = 0.5 if change == "metrics" else scores.metrics["APm"]
            scores.recall[0, 0, 0] = 0
        return scores

    monkeypatch.setattr(scoring_module, "official_scores", other)
    with pytest.raises(InputError, match=message):
        evaluate(
            write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD), Scoring(official="yes")
        )


def test_a_terminal_shows_how_far_the_masks_are_and_how_large_the_official_check_is(tmp_path):
    words = ["--annotations", write(tmp_path / "truth.json", TWO_KINDS), "--official", "yes"]
    words += ["--detections", write(tmp_path / "results.json", GOOD), "--out", tmp_path / "metrics.json"]
    seen = seen_on_a_terminal(sys.executable, "-m", "lvis_rcnn.evaluate", *words, cwd=Path(__file__).parents[2])
    assert re.search(r"comparing masks: 100%.* 2\.00/2\.00 ", seen)
    assert seen.count("the lvis package scores 2 detections, 2 images, 3 categories") == 2


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_only_the_kind_that_is_there_is_scored(tmp_path, kind):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    dropped = {"bbox": "segmentation", "segm": "bbox"}[kind]
    records = as_json([found(1, 1, 0.5, *CUP)])
    for record in records:
        del record[dropped]
    metrics = evaluate(annotations, write(tmp_path / "results.json", records), Scoring())
    assert [name for name in ("bbox", "segm") if name in metrics] == [kind]
    assert metrics[kind]["AP"] == pytest.approx(0.5)
    assert len([*table_lines(metrics)]) == 1 + 13 + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"results.json: result 1 \(image 7, category 3\): unknown image"),
        ({"score": float("nan")}, r"result 1 \(.*\): score is nan; allowed: a finite number"),
        ({"score": 2**53 + 1}, r"result 1 \(.*\): score is 9007199254740993; allowed: a number that float64 holds"),
        ({"score": 10**400}, r"result 1 \(.*\): score is 1000.*; allowed: a number that float64 holds"),
        ({"score": "high"}, r"Expected `int \| float`, got `str` - at `\$\[1\].score`; allowed: score: a number"),
        ({"bbox": [1, 2, 3]}, r"length 4, got 3 - at `\$\[1\].bbox`"),
        ({"bbox": [1, 2, 3, float("inf")]}, r"result 1 .*: bbox is \[1.0, 2.0, 3.0, inf\]"),
        ({"bbox": None}, r"result 1 .*: has segm, result 0 has bbox and segm"),
        (
            {"segmentation": {"size": [9, 9], "counts": "0"}},
            r"result 1 .*: mask size is \[9, 9\]; allowed: \[100, 100\]",
        ),
        (
            {"segmentation": {"size": [100, 2**70], "counts": "0"}},
            r"Expected `int` <= .* at `\$\[1\].segmentation.size",
        ),
        ({"segmentation": {"size": [100, 100], "counts": "0Pooo2"}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": [100, 100], "counts": "é"}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": [100, 100], "counts": [1, 2]}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": [100, 100], "counts": "\ud800"}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": ["\ud800", 100], "counts": "0"}}, r"`int`.*got `str` - at .*segmentation.size"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            r"result 1 .*: polygon of 4 numbers; allowed: an even number, of one polygon .* 6",
        ),
        ({"segmentation": [[0, 0, 9, 0, 9, 9], [1, 2, 3]]}, r"result 1 .*: polygon of 3 numbers"),
        ({"segmentation": [[0, 0, 1e8, 0, 1e8, 1e8]]}, r"result 1 .*: polygon has a coordinate of 1e\+08 pixels"),
        (
            {"segmentation": [[0, 0, 1e6, 1e6] * 11]},
            r"result 1 .*: polygon has an outline of 22,000,000 pixels",
        ),
    ],
)
def test_a_wrong_result_is_named(tmp_path, change, message):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    results = write(tmp_path / "results.json", [GOOD[0], {**GOOD[1], **change}])
    with pytest.raises(InputError, match=message):
        evaluate(annotations, results, Scoring())


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("annotations", {"id": 0}, "annotation 0: id 0 is reserved"),
        ("annotations", {"id": 2}, "truth.json: annotations: duplicate id 2"),
        ("annotations", {"image_id": 9}, "truth.json: annotation 1: unknown image 9"),
        ("annotations", {"category_id": 9}, "annotation 1: unknown category 9"),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5]]}, "annotation 1: polygon of 5 numbers"),
        (
            "annotations",
            {"segmentation": [[1, 2, 3e7, 4, 5, 6]]},
            r"polygon has a coordinate of 3e\+07 pixels",
        ),
        ("images", {"height": -5}, r"result 0 .*: mask size is \[100, 100\]; allowed: \[-5, 100\]"),
        ("annotations", {"area": None}, r"annotations\[0\] \(id 1\): area: expected float, got null"),
        ("annotations", {"area": float("nan")}, r"annotations\[0\] \(id 1\): area: expected float, got NaN"),
        ("annotations", {"id": 1.5}, r"annotations\[0\] \(id 1.5\): id: expected int, got float"),
        ("annotations", {"segmentation": None}, r"annotation 1: segmentation: .*fix: .*--kinds bbox"),
        ("images", {"neg_category_ids": None}, r"images\[0\] \(id 1\): neg_category_ids: expected array, got null"),
        ("categories", {"frequency": float("nan")}, r"frequency: invalid enum value NaN, .*; allowed: r, c or f"),
        ("categories", {"frequency": "x"}, r"categories\[0\] \(id 1\): frequency: .*allowed: r, c or f"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, section, change, message):
    dataset = copy.deepcopy(TWO_KINDS)
    dataset[section][0].update(change)
    with pytest.raises(InputError, match=message):
        evaluate(write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", GOOD), Scoring())


def test_what_the_lvis_package_cannot_read_in_unread_keys_is_scored_all_the_same(tmp_path):
    text = json.dumps({**TWO_KINDS, "note": "caf\xe9", "number": 0}, ensure_ascii=False)
    strange = text.replace('"number": 0', f'"number": {"9" * 5000}').encode("latin-1")
    (tmp_path / "truth.json").write_bytes(strange)
    results = write(tmp_path / "results.json", GOOD)
    metrics = evaluate(tmp_path / "truth.json", results, Scoring(official="yes"))
    assert metrics["official"]["agrees"]
    assert metrics["segm"] == evaluate(write(tmp_path / "plain.json", TWO_KINDS), results, Scoring())["segm"]


def test_a_box_of_an_unknown_category_is_not_looked_at_as_in_the_lvis_package(tmp_path):
    annotations, unknown = write(tmp_path / "truth.json", TWO_KINDS), {"category_id": 9, "bbox": [float("nan")] * 4}
    results = write(tmp_path / "results.json", [*GOOD, {**GOOD[0], **unknown}])
    metrics = evaluate(annotations, results, Scoring(official="yes"))
    assert metrics["official"]["agrees"]
    assert metrics["bbox"] == evaluate(annotations, write(tmp_path / "known.json", GOOD), Scoring())["bbox"]


def test_detections_of_a_pipe_are_read_once(tmp_path):
    annotations, text = write(tmp_path / "truth.json", TWO_KINDS), json.dumps(GOOD).encode()
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    metrics = evaluate(annotations, Path(f"/dev/fd/{reader}"), Scoring())
    os.close(reader)
    assert (metrics["detections"], metrics["detections_sha256"]) == (len(GOOD), hashlib.sha256(text).hexdigest())


def test_all_missing_keys_are_named_at_once(tmp_path):
    dataset = copy.deepcopy(TWO_KINDS)
    for record in (*dataset["images"], *dataset["categories"]):
        for key in ("height", "neg_category_ids", "not_exhaustive_category_ids", "frequency"):
            record.pop(key, None)
    message = r"height \(in 2 of 2 images\), neg_category_ids .*, not_exhaustive_.*, frequency \(in 3 of 3 categories\)"
    with pytest.raises(InputError, match=message):
        evaluate(write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", GOOD), Scoring())


FLOATS = re.compile(r'((?:id|height|width)": |_ids": \[|size": \[)(\d+)(?=[,}\]])')
LAX = {
    "byte order mark": lambda text: "\ufeff" + text,
    "NaN that nobody reads": lambda text: text.replace('"image_id"', '"x": NaN, "y": [-Infinity], "image_id"'),
    "whole numbers as floats": lambda text: FLOATS.sub(r"\1\2.0", text),
}


@pytest.mark.parametrize("kind", LAX)
@pytest.mark.parametrize("name", ["truth", "results"])
def test_what_lvis_reads_is_read_though_it_is_no_strict_json(tmp_path, kind, name):
    dataset = truth((1, 1, CUP), (2, 3, BOAT), negative={2: [1]})
    paths = {"truth": write(tmp_path / "truth.json", dataset), "results": write(tmp_path / "results.json", GOOD)}
    usual = evaluate(*paths.values(), Scoring())
    changed = LAX[kind](paths[name].read_text())
    assert changed != paths[name].read_text()
    paths[name].write_text(changed)
    lax = evaluate(*paths.values(), Scoring(official="yes"))
    digests = {"annotations_sha256", "detections_sha256", "official", "protocol"}
    assert {key for key in usual if usual[key] != lax[key]} <= digests
    assert lax["official"]["agrees"]


def test_an_id_of_0_may_be_written_as_a_float_with_a_sign(tmp_path):
    dataset = copy.deepcopy(TWO_KINDS)
    dataset["categories"].append({"id": -0.0, "name": "kite", "frequency": "r"})
    unknown = {**GOOD[0], "category_id": -0.0}
    paths = write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", [*GOOD, unknown])
    assert evaluate(*paths, Scoring(official="yes"))["official"]["agrees"]


@pytest.mark.parametrize("score", ["", '"score": null, '], ids=["alone", "beside a repeated key"])
def test_run_lengths_may_be_floats(tmp_path, score):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    runs = {"size": [100.0, 100.0], "counts": [0.0, 100.0, 9900.0]}
    results = write(tmp_path / "results.json", [{**record, "segmentation": runs} for record in GOOD])
    results.write_text(results.read_text().replace('"score"', score + '"score"'))
    whole = {"size": [100, 100], "counts": [0, 100, 9900]}
    expected = write(tmp_path / "whole.json", [{**record, "segmentation": whole} for record in GOOD])
    assert evaluate(annotations, results, Scoring())["segm"] == evaluate(annotations, expected, Scoring())["segm"]


def with_outlines(value: object) -> dict:
    """Ground truth whose outlines are all ``value``, or without that key for ``...``."""
    dataset = copy.deepcopy(TWO_KINDS)
    for annotation in dataset["annotations"]:
        del annotation["segmentation"]
        if value is not ...:
            annotation["segmentation"] = value
    return dataset


@pytest.mark.parametrize("value", [..., None, []], ids=str)
def test_boxes_alone_are_scored_where_the_ground_truth_has_no_mask(tmp_path, value):
    results = write(tmp_path / "results.json", GOOD)
    metrics = evaluate(write(tmp_path / "truth.json", with_outlines(value)), results, Scoring(official="yes"))
    assert metrics["bbox"] == evaluate(write(tmp_path / "whole.json", TWO_KINDS), results, Scoring())["bbox"]
    assert "segm" not in metrics
    assert metrics["only"] == {"kind": "bbox", "why": "no annotation has a mask (segmentation)"}


def test_boxes_alone_are_scored_where_no_detection_has_a_polygon(tmp_path):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    bare = [{**record, "segmentation": []} for record in GOOD]
    metrics = evaluate(annotations, write(tmp_path / "bare.json", bare), Scoring())
    assert metrics["bbox"] == evaluate(annotations, write(tmp_path / "good.json", GOOD), Scoring())["bbox"]
    assert (metrics["only"]["kind"], "segm" in metrics) == ("bbox", False)
    one_bare = write(tmp_path / "one_bare.json", [*GOOD, bare[0]])
    assert "segm" in evaluate(annotations, one_bare, Scoring())


def test_boxes_alone_are_scored_on_request_whatever_the_masks_are(tmp_path, capsys, monkeypatch):
    annotations = write(tmp_path / "truth.json", with_outlines([[1, 2, 3, 4]]))
    damaged = [{**record, "segmentation": {"size": [9, 9], "counts": "0"}} for record in GOOD]
    results, out = write(tmp_path / "results.json", damaged), tmp_path / "metrics.json"
    with pytest.raises(InputError, match=r"annotation 1: .*--kinds bbox"):
        evaluate(annotations, write(tmp_path / "good.json", GOOD), Scoring())
    words = ["--annotations", annotations, "--detections", results, "--kinds", "bbox", "--official", "yes"]
    run_main(monkeypatch, *words, "--out", out)
    metrics = json.loads(out.read_text())
    assert metrics["bbox"]["AP"] == pytest.approx(1)
    assert metrics["only"] == {"kind": "bbox", "why": "asked for by --kinds"}
    assert "scoring bbox only: asked for by --kinds" in capsys.readouterr().err


def test_a_kind_that_the_detections_lack_is_refused(tmp_path):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    shards = as_shards(tmp_path / "shards", [found(1, 1, 0.5, *CUP)] * 3)
    assert evaluate(annotations, shards, Scoring(kinds=["segm"]))["only"]["kind"] == "segm"
    boxes = write(tmp_path / "boxes.json", [{**record, "segmentation": None} for record in GOOD])
    with pytest.raises(InputError, match=r"result 0 .*: has no segmentation; fix: .*--kinds"):
        evaluate(annotations, boxes, Scoring(kinds=["segm"]))
    with pytest.raises(InputError, match=r"the detections have no mask; fix: .*--kinds"):
        evaluate(annotations, boxes, Scoring(kinds=["bbox", "segm"]))


def test_an_empty_outline_beside_others_is_a_mask_without_a_pixel(tmp_path):
    dataset = truth((1, 1, CUP), (2, 3, BOAT), (2, 1, FAR))
    dataset["annotations"][2]["segmentation"] = []
    metrics = evaluate(
        write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", GOOD), Scoring(official="yes")
    )
    assert metrics["official"]["agrees"]
    assert "only" not in metrics
    assert metrics["segm"]["AR@300"] < 1


@pytest.mark.parametrize("short", [[], [1, 2], [1, 2, 30, 40]])
def test_polygons_of_no_pixel_change_no_score(tmp_path, short):
    dataset, records = copy.deepcopy(TWO_KINDS), copy.deepcopy(GOOD)
    for record in (*dataset["annotations"], *records):
        record["segmentation"] = [short, [0, 0, 40, 0, 40, 40], short]
    scored = []
    for _ in range(2):
        annotations, results = write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", records)
        scored.append(evaluate(annotations, results, Scoring(official="yes")))
        for record in (*dataset["annotations"], *records):
            del record["segmentation"][::2]
    assert [metrics["official"]["agrees"] for metrics in scored] == [True, True]
    assert scored[0]["segm"] == scored[1]["segm"]


def test_a_file_of_another_kind_is_named_with_its_option(tmp_path):
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    as_shards(tmp_path / "run" / "detections", [found(1, 1, 0.5, *CUP)] * 3)
    (tmp_path / "val.store").mkdir()
    (tmp_path / "val.store" / "store.json").touch()
    (tmp_path / "no.txt").write_text("no JSON")
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(annotations.read_bytes()))
    test_set = write(tmp_path / "test.json", {key: TWO_KINDS[key] for key in ("images", "categories")})
    cases = [
        (tmp_path / "nope.json", results, r"--annotations \S+nope.json: no such file; allowed: .*; fix: "),
        (tmp_path / "val.store", results, r"--annotations \S+: is an annotation store; .*fix: name the JSON file that"),
        (tmp_path / "packed.json.gz", results, r"packed.json.gz: is compressed with gzip; .*fix: .*gunzip"),
        (results, results, r"results.json: expected object, got array; .*fix: name an LVIS annotation file"),
        (test_set, results, r"test.json: has images but no annotations, .*nothing to score against; .*fix: "),
        (
            annotations,
            tmp_path / "nope",
            r"--detections \S+nope: no such file; allowed: a folder of shards, or an LVIS",
        ),
        (annotations, tmp_path / "run", r"run: no shards of detections here; .*fix: name \S+detections"),
        (annotations, tmp_path / "shard-00000.npz", r"--detections \S+: is one shard; .*fix: name its folder"),
        (
            annotations,
            tmp_path / "no.txt",
            r"no.txt: not readable as JSON: .*; allowed: a folder of shards, or an LVIS",
        ),
        (
            annotations,
            annotations,
            r"truth.json: is an object, no list; allowed: a folder of .*; fix: .*list of detections alone",
        ),
    ]
    for truth_path, detections, message in cases:
        with pytest.raises(InputError, match=message):
            evaluate(truth_path, detections, Scoring())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[{", "not readable as JSON"),
        ("\x00", "not readable as JSON"),
        ("3", "Expected `array`"),
        ('{"image_id": 1}\n{"image_id": 2}\n', "is several objects, no list; .*fix: write them as one list: jq -s"),
        ("[1]\n[2]", "not readable as JSON: Extra data"),
    ],
)
def test_a_damaged_results_file_is_refused(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=f"results.json: {message}"):
        evaluate(write(tmp_path / "truth.json", TWO_KINDS), tmp_path / "results.json", Scoring())


def test_a_missing_file_is_named(tmp_path):
    annotations, results = tmp_path / "truth.json", tmp_path / "results.json"
    with pytest.raises(InputError, match=r"truth.json: no such file"):
        evaluate(annotations, write(results, GOOD), Scoring())
    results.unlink()
    with pytest.raises(InputError, match=r"results.json: no such file"):
        evaluate(write(annotations, TWO_KINDS), results, Scoring())


def test_a_damaged_shard_is_refused(tmp_path):
    folder = as_shards(tmp_path / "detections", [found(1, 1, 0.5, *CUP)] * 4)
    shard = shard_path(folder, 1)
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(InputError, match=r"shard-00001.npz: damaged shard"):
        evaluate(write(tmp_path / "truth.json", TWO_KINDS), folder, Scoring())


def test_detections_of_other_annotations_are_refused(tmp_path):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    folder = as_shards(tmp_path / "detections", [found(1, 1, 0.5, *CUP)] * 3)
    digest = evaluate(annotations, folder, Scoring())["annotations_sha256"]
    record = tmp_path / "inference.json"
    write(record, {"annotations_sha256": digest, "detections": 3})
    assert evaluate(annotations, folder, Scoring())["detections"] == 3
    write(record, {"annotations_sha256": digest, "detections": 4})
    with pytest.raises(InputError, match="shards hold 3 detections, inference wrote 4"):
        evaluate(annotations, folder, Scoring())
    with pytest.raises(InputError, match="shards hold 3 detections, inference wrote 4"):  # the server would score these
        export_results(folder, tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()
    record.write_text('{"annotations_sha256": ' + "[" * 5000 + "]" * 5000 + "}")
    with pytest.raises(InputError, match=r"inference.json: not readable as JSON: nested too deeply"):
        evaluate(annotations, folder, Scoring())
    write(record, {"annotations_sha256": "0" * 64})
    with pytest.raises(InputError, match="were made for other annotations"):
        evaluate(annotations, folder, Scoring())


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    evaluate_module.main()


def test_the_command_writes_metrics_and_match_results_and_shows_them(tmp_path, monkeypatch, capsys):
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    out = tmp_path / "deep" / "metrics.json"
    run_main(monkeypatch, "--annotations", annotations, "--detections", results, "--out", out)
    metrics = json.loads(out.read_text())
    assert (metrics["format"], metrics["version"], metrics["detections_per_image"]) == ("lvis_rcnn.metrics", 1, 300)
    assert metrics["segm"]["APc"] is None
    assert read_matches(out.with_name("matches.npz")).detections_sha256 == metrics["detections_sha256"]
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"wrote {out} and {out.with_name('matches.npz')}"
    lines = printed.out.splitlines()
    assert lines[-1] == f"{metrics['protocol']} (2 images, 2 detections)"
    assert lines[14:16] == [
        "mask (segm)",
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=300 catIds=all] = 1.000",
    ]
    words = ["--out", out.with_name("other.json"), "--matches", tmp_path / "m.npz", "--log", tmp_path / "log"]
    run_main(monkeypatch, annotations, results, *words)
    assert capsys.readouterr().out == ""
    assert all(line in (tmp_path / "log").read_text() for line in lines)
    assert json.loads(out.with_name("other.json").read_text()) == metrics
    assert {path.name for path in out.parent.iterdir()} == {"metrics.json", "matches.npz", "other.json"}
    assert (tmp_path / "m.npz").read_bytes() == out.with_name("matches.npz").read_bytes()


def test_two_files_are_all_that_the_command_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lvis_rcnn.evaluation.uncertainty.FEWEST_RESAMPLES", 5)
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD[:1])
    run_main(monkeypatch, annotations, results, "--bootstrap", "5", "--official", "no")
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "box (bbox)"
    assert re.search(
        r"^ Average Precision  \(AP\) @\[.* catIds=all\] = 0.500  \[0\.\d{3}, [01]\.\d{3}\]$", printed, re.M
    )
    lines = [line.partition("catIds=")[2] for line in printed.splitlines()]
    assert re.fullmatch(r"all\] = 0.500  \[0\.\d{3}, [01]\.\d{3}\]", lines[1])
    assert lines[8] == "  c] = -1.000  (no interval)"
    assert printed.count("\n") == 2 * 14 + 1
    run_main(monkeypatch, "--detections", results, annotations, "--bootstrap", "5", "--official", "no")
    assert capsys.readouterr().out == printed
    assert {path.name for path in tmp_path.iterdir()} == {"truth.json", "results.json"}


@pytest.mark.parametrize("words", ["", "a", "--annotations a", "a b --detections c"])
def test_annotations_and_detections_are_named_once(monkeypatch, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, *words.split())
    assert "fix: name both once, " in capsys.readouterr().err


def test_plain_coco_annotations_are_taken_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    dataset = coco(truth((1, 1, CUP), (2, 3, BOAT)))
    annotations = write(tmp_path / "coco.json", dataset)
    results = write(tmp_path / "results.json", as_json([found(1, 1, 0.5, *CUP), found(2, 1, 0.9, *BOAT)]))
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, annotations, results)
    assert "--coco-exhaustive" in capsys.readouterr().err
    run_main(monkeypatch, annotations, results, "--coco-exhaustive")
    printed = capsys.readouterr().out
    assert "LVIS of COCO annotations (every category exhaustive" in printed.splitlines()[-1]
    assert "catIds=all] = 0.250" in printed.splitlines()[1]


def test_without_the_lvis_package_its_check_is_not_run(tmp_path, monkeypatch):
    def absent(name: str) -> str:
        if name == "lvis":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("lvis_rcnn.evaluation.scoring.version", absent)
    paths = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    metrics = evaluate(*paths, Scoring(official="auto"))
    assert metrics["protocol"].endswith("lvis not run (lvis is not installed)")
    assert metrics["official"] == {"package": "lvis", "agrees": None, "why": "not run (lvis is not installed)"}
    assert set(metrics["versions"]) == {"pycocotools", "numpy"}
    assert evaluate(*paths, Scoring())["official"]["why"] == "not run (not wanted)"
    with pytest.raises(InputError, match="--official yes: the lvis package is not installed; fix: install it"):
        evaluate(*paths, Scoring(official="yes"))


def test_the_command_fails_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", [{}])
    out = tmp_path / "out" / "metrics.json"
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, "--annotations", annotations, "--detections", results, "--out", out)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {results}: ")
    assert "image_id" in line
    assert not out.parent.exists()


def test_scoring_needs_no_torch_and_waits_with_lvis():
    code = "import sys, lvis_rcnn.evaluate; sys.exit(any(name in sys.modules for name in ('torch', 'lvis', 'cv2')))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_intervals_and_match_results_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr("lvis_rcnn.evaluation.uncertainty.FEWEST_RESAMPLES", 5)
    # The cup of one image is found, the boat of the other is not.
    paths = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD[:1])
    plain = evaluate(*paths, Scoring())
    assert "intervals" not in plain
    kept = [tmp_path / "first.npz", tmp_path / "second.npz"]
    first, second = (evaluate(*paths, Scoring(resamples=5), path) for path in kept)
    assert first == second
    assert kept[0].read_bytes() == kept[1].read_bytes()
    found = first.pop("intervals")
    assert first == plain
    assert {name: found[name] for name in ("resamples", "seed", "level")} == {"resamples": 5, "seed": 0, "level": 0.95}
    for kind in ("bbox", "segm"):
        assert tuple(found[kind]) == METRIC_NAMES
        low, high = found[kind]["AP"]
        assert 0 <= low < 0.5 < high <= 1
        # Undefined, or the same in all resamples.
        assert {name for name in ("APr", "APc", "APf", "APl") if found[kind][name]} == set()
    assert read_matches(kept[0]).detections_sha256 == plain["detections_sha256"]


def test_resamples_are_a_number(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--annotations", "a", "--detections", "b", "--out", "c.json", "--bootstrap", "-1")
    assert "--bootstrap: is -1; allowed: an integer from 0 to 100000" in capsys.readouterr().err


def test_ap_fixed_stands_beside_under_its_own_label(tmp_path):
    """301 detections of another category push the cup out of its image; its own category has room for it."""
    results = as_json([found(1, 3, 0.9, *FAR) for _ in range(300)] + [found(1, 1, 0.5, *CUP), found(1, 99, 1.0, *CUP)])
    paths = write(tmp_path / "truth.json", truth((1, 1, CUP))), write(tmp_path / "results.json", results)
    metrics = evaluate(*paths, Scoring(protocols=[Protocol(is_fixed=True)]))
    for kind in ("bbox", "segm"):
        assert metrics[kind]["AP"] == 0
        assert [metrics["fixed"][kind][name] for name in ("AP", "AR")] == pytest.approx([1, 1])
        assert list(metrics["fixed"][kind])[-4:] == ["AR", "ARs", "ARm", "ARl"]
    assert metrics["fixed"]["protocol"] == (
        "AP-fixed (Dave et al. 2021): at most 10,000 detections of a category over all images, no cap on an image;"
        " the detections hold 302 of an image at most, and fewer than 10,000 of 3 of 3 categories"
    )
    assert metrics["protocols"]["fixed"]["title"] == "AP-fixed"
    assert not {"fixed", "protocols"} & set(evaluate(*paths, Scoring()))


def test_all_combinations_of_what_is_asked_or_just_those_that_are_named(tmp_path, monkeypatch):
    dataset = truth((1, 1, CUP), (2, 3, BOAT))
    dataset["images"][1]["coco_url"] = "http://images.cocodataset.org/val2017/000000000002.jpg"
    (tmp_path / "first.txt").write_text("1\n")
    files = ["--annotations", write(tmp_path / "gt.json", dataset), "--detections", write(tmp_path / "dt.json", GOOD)]
    files += ["--matches", tmp_path / "matches.npz", "--out", tmp_path / "metrics.json", "--bootstrap", 3]
    subsets = ["--subset", "minival", tmp_path / "first.txt"]

    def protocols(*words):
        run_main(monkeypatch, *map(str, [*files, *words]))
        return json.loads((tmp_path / "metrics.json").read_text())["protocols"]

    assert list(protocols("--protocols", "minival_boundary", "fixed")) == ["minival_boundary", "fixed"]
    metrics = protocols("--fixed", "--boundary", *subsets)
    each = ["fixed", "boundary", "boundary_fixed"]
    assert list(metrics) == [
        *each,
        *(f"{name}{of}" for name in ("minival", "first") for of in ("", *map("_".__add__, each))),
    ]
    assert [metrics[name]["images"] for name in ("fixed", "minival", "first")] == [2, 1, 1]
    assert metrics["minival"]["protocol"] == "minival: 1 of 2 images; 300 detections an image"
    # Of the first image alone, the cup is the only object.
    assert [metrics["first"]["segm"][name] for name in ("APr", "APf")] == [pytest.approx(1), None]
    assert set(metrics["boundary"]) & {"bbox", "segm"} == {"segm"}
    assert list(metrics["fixed"]["intervals"]["bbox"]) == list(metrics["fixed"]["bbox"])
    kept = read_matches(tmp_path / "matches.npz", "first_fixed")
    assert (kept.outcomes["segm"].num_images, kept.resampled["bbox"].shape) == (1, (3, 13))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subset", "minival"], "gt.json: no image has val2017 in its coco_url"),
        (["--subset", "{}/fixed.txt"], "--subset: two protocols would be named fixed"),
        (["--protocols", "street"], "--protocols street: is no protocol; allowed: fixed, boundary,"),
        (["--boundary", "--kinds", "bbox"], "masks are not scored, and boundary AP is of masks"),
    ],
)
def test_protocols_that_cannot_be_scored(tmp_path, monkeypatch, capsys, words, message):
    files = ["--annotations", write(tmp_path / "gt.json", TWO_KINDS), "--detections", write(tmp_path / "dt.json", GOOD)]
    with pytest.raises(SystemExit):
        run_main(
            monkeypatch, *map(str, [*files, "--out", tmp_path / "out.json", *(one.format(tmp_path) for one in words)])
        )
    assert message in capsys.readouterr().err


KILLS = 20


def write_set(folder: Path) -> None:
    """300 images of three categories, and 6,000 detections: two seconds of work."""
    pick, objects, results = random.Random(0), [], []
    for image in range(1, 301):
        for _ in range(20):
            box = (pick.randint(0, 40), pick.randint(0, 40), pick.randint(5, 60), pick.randint(5, 60))
            category = pick.randint(1, 3)
            results.append(found(image, category, pick.random(), box[0] + pick.randint(0, 3), *box[1:]))
            if pick.random() < 0.3:
                objects.append((image, category, box))
    negative = {image: [1, 2, 3] for image in range(1, 301)}
    write(folder / "truth.json", truth(*objects, negative=negative, num_images=300))
    write(folder / "results.json", as_json(results))


def command(folder: Path, out: Path) -> list[str]:
    words = ["--annotations", folder / "truth.json", "--detections", folder / "results.json", "--official", "no"]
    words += ["--bootstrap", 300, "--fixed", "--matches", out / "matches.npz", "--out", out / "metrics.json"]
    return [sys.executable, "-m", "lvis_rcnn.evaluate", *map(str, words)]


def start(folder: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(command(folder, out), cwd=REPOSITORY, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


@pytest.mark.slow
def test_twenty_kills_and_a_scoring_are_a_scoring(tmp_path):
    write_set(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(tmp_path, whole).wait() == 0
    duration_s = time.monotonic() - began
    pick, interrupted = random.Random(0), 0
    for kill in range(KILLS):
        process = start(tmp_path, killed)
        # The first fifth is Python's start.
        time.sleep(duration_s * (0.2 + 0.8 * (kill + pick.random()) / KILLS))
        process.kill()
        interrupted += process.wait() != 0
        # What is there is whole: metrics.json comes last, so that it never stands without its match results.
        there = contents(killed) if killed.exists() else {}
        assert there.items() <= contents(whole).items()
        assert "matches.npz" in there or "metrics.json" not in there
    assert interrupted > KILLS // 4
    assert start(tmp_path, killed).wait() == 0
    assert set(contents(whole)) == {"metrics.json", "matches.npz"}
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("GT DT --subset IDS --out IDS", r"--out .*ids.json.*: .* is also the argument subset"),
        ("GT DT --subset IDS --log IDS", r"--log .*ids.json.*: .* is also the argument subset"),
        ("GT SHARDS --out SHARDS/m.json", r"--out .*m.json: lies among the detections"),
        ("GT SHARDS --matches SHARDS/shard-00000.npz", r"--matches .*: lies among the detections"),
        ("GT DT --out DIR/taken.json", r"would replace .*taken.npz, which holds something else; .*--matches"),
        ("GT DT --out DIR/matches.json", r"matches.npz, which belongs to metrics.json"),
        ("GT DT --protocols fixed --subset IDS", r"--subset ids: is in none of --protocols"),
        ("GT DT --protocols fixed --boundary", r"--boundary: is in none of --protocols"),
        ("--kinds bbox --subset IDS GT DT", r"before options that take several values"),
    ],
)
def test_no_file_is_lost_and_no_option_is_silently_ignored(tmp_path, monkeypatch, capsys, words, message):
    paths = {
        "GT": write(tmp_path / "truth.json", TWO_KINDS),
        "DT": write(tmp_path / "results.json", GOOD),
        "IDS": tmp_path / "ids.json",
        "SHARDS": as_shards(
            tmp_path / "shards", [found(1, 1, 0.1, *CUP), found(1, 3, 0.5, *FAR), found(2, 3, 0.2, *BOAT)]
        ),
        "DIR": tmp_path,
    }
    paths["IDS"].write_text("1\n")
    (tmp_path / "taken.npz").write_bytes(b"a year of work")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, path in paths.items():
        words = re.sub(rf"\b{name}\b", str(path), words)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *words.split())
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
