import copy
import json
import logging
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

import lvis_rcnn.evaluate as step
from lvis_rcnn.dataset.detections import (
    Detections,
    export_results,
    no_detections,
    pack_rles,
    read_shard,
    shard_path,
    write_shard,
)
from lvis_rcnn.evaluate import evaluate, summary
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.average_precision import score as score_arrays
from lvis_rcnn.evaluation.ground_truth import parse_truth
from lvis_rcnn.evaluation.masks import Rle
from lvis_rcnn.evaluation.matches import read_matches
from lvis_rcnn.evaluation.official import official_scores
from lvis_rcnn.evaluation.results import Result, detections_of
from lvis_rcnn.system.cli import InputError
from tests.system.test_cli import seen_on_a_terminal

SIDE_PX = 100


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def rle_of(box: tuple[float, float, float, float]) -> Rle:
    packed = coco_mask.merge(coco_mask.frPyObjects(rectangle(*box), SIDE_PX, SIDE_PX))
    return Rle((SIDE_PX, SIDE_PX), packed["counts"].decode())


def found(image: int, category: int, value: float, *box: float) -> Result:
    return Result(image, category, value, box, rle_of(box))


def truth(
    *objects: tuple[int, int, tuple[float, float, float, float]],
    frequencies: str = "rcf",
    negative: dict[int, list[int]] | None = None,
    not_exhaustive: dict[int, list[int]] | None = None,
) -> dict[str, Any]:
    """Two images, categories 1, 2, ... and ``objects`` as (image, category, box)."""
    images = [
        {
            "id": image,
            "height": SIDE_PX,
            "width": SIDE_PX,
            "neg_category_ids": (negative or {}).get(image, []),
            "not_exhaustive_category_ids": (not_exhaustive or {}).get(image, []),
        }
        for image in (1, 2)
    ]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "segmentation": rectangle(*box),
        }
        for number, (image, category, box) in enumerate(objects, start=1)
    ]
    categories = [
        {"id": number, "name": f"thing {number}", "frequency": frequency}
        for number, frequency in enumerate(frequencies, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def score(dataset: dict[str, Any], results: list[Result], kind: str, cap: int) -> dict[str, float | None]:
    known = parse_truth(json.dumps(dataset).encode(), "truth.json")
    return score_arrays(known, detections_of(results, known), kind, cap).metrics


CUP = (10.0, 10.0, 20.0, 20.0)
BOAT = (40.0, 40.0, 40.0, 40.0)
FAR = (70.0, 5.0, 20.0, 20.0)
TWO_KINDS = truth((1, 1, CUP), (2, 3, BOAT))


def both(dataset: dict[str, Any], results: list[Result], name: str = "AP", cap: int = 300) -> list[float | None]:
    return [score(dataset, results, kind, cap)[name] for kind in ("bbox", "segm")]


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": result.image_id,
            "category_id": result.category_id,
            "score": result.score,
            "bbox": list(result.bbox),
            "segmentation": {"size": list(result.segmentation.size), "counts": result.segmentation.counts},
        }
        for result in results
    ]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_perfect_detections_score_one_and_what_nothing_defines_is_null():
    results = [found(1, 1, 0.9, *CUP), found(2, 3, 0.8, *BOAT)]
    for kind in ("bbox", "segm"):
        values = score(TWO_KINDS, results, kind, 300)
        assert tuple(values) == METRIC_NAMES
        undefined = {"APc", "APl", "ARl@300"}  # no common category has an object, no object is large
        assert {name for name, value in values.items() if value is None} == undefined
        assert all(value == pytest.approx(1) for value in values.values() if value is not None)


def test_ap_is_the_mean_over_categories_not_over_objects():
    dataset = truth((1, 1, CUP), (1, 3, BOAT), (2, 3, BOAT))
    results = [found(1, 3, 0.9, *BOAT), found(2, 3, 0.8, *BOAT)]
    assert both(dataset, results) == pytest.approx([0.5, 0.5])
    assert both(dataset, results, "APr") == [0, 0]
    assert both(dataset, results, "APf") == pytest.approx([1, 1])


def test_a_category_is_judged_only_where_it_was_looked_for():
    ghost = [found(1, 1, 0.5, *CUP), found(2, 1, 0.9, *CUP)]
    assert both(truth((1, 1, CUP)), ghost) == pytest.approx([1, 1])
    assert both(truth((1, 1, CUP), negative={2: [1]}), ghost) == pytest.approx([0.5, 0.5])


def test_false_positives_are_forgiven_where_not_all_objects_were_annotated():
    extra = [found(1, 1, 0.5, *CUP), found(1, 1, 0.9, *FAR)]
    assert both(truth((1, 1, CUP)), extra) == pytest.approx([0.5, 0.5])
    assert both(truth((1, 1, CUP), not_exhaustive={1: [1]}), extra) == pytest.approx([1, 1])


def test_the_cap_counts_all_categories_of_an_image_even_unknown_ones():
    noise = [found(1, 99, 0.9, *FAR) for _ in range(300)]
    right = [found(1, 1, 0.5, *CUP)]
    dataset = truth((1, 1, CUP))
    assert both(dataset, noise + right) == [0, 0]
    assert both(dataset, noise[1:] + right) == pytest.approx([1, 1])
    assert both(dataset, noise[:2] + right, cap=2) == [0, 0]
    assert both(dataset, noise[:1] + right, cap=2) == pytest.approx([1, 1])


def test_more_than_255_masks_in_a_cell_are_scored():
    results = [found(1, 1, 0.5, *FAR) for _ in range(290)] + [found(1, 1, 0.9, *CUP)]
    assert both(truth((1, 1, CUP)), results) == pytest.approx([1, 1])


def test_nothing_found_is_zero_not_null():
    values = score(TWO_KINDS, [], "segm", 300)
    assert values == score(TWO_KINDS, [], "bbox", 300)
    assert {name for name, value in values.items() if value is None} == {"APc", "APl", "ARl@300"}
    assert {value for value in values.values() if value is not None} == {0}


def test_without_objects_everything_is_null():
    assert set(score(truth(negative={1: [1]}), [found(1, 1, 0.9, *CUP)], "segm", 300).values()) == {None}


def test_an_empty_mask_counts_neither_for_nor_against():
    empty = Result(1, 1, 0.99, CUP, [])
    assert both(truth((1, 1, CUP)), [empty, found(1, 1, 0.5, *CUP)])[1] == pytest.approx(1)
    assert both(truth((1, 1, CUP)), [empty])[1] == 0


def test_a_mask_is_small_by_its_own_area_not_by_its_box():
    # A wrong thin mask in a wide box: by its box it is medium, so it would not hurt APs.
    thin = Result(1, 1, 0.9, (0.0, 0.0, 90.0, 90.0), rle_of((0.0, 60.0, 90.0, 2.0)))
    assert score(truth((1, 1, CUP)), [thin, found(1, 1, 0.5, *CUP)], "segm", 300)["APs"] == pytest.approx(0.5)


def test_polygons_run_lengths_and_packed_masks_are_the_same_mask():
    pixels = np.zeros((SIDE_PX, SIDE_PX), bool)
    pixels[10:30, 10:30] = True
    edges = np.flatnonzero(np.diff(pixels.ravel(order="F"))) + 1
    lengths = np.diff([0, *edges, pixels.size]).tolist()
    packed = rle_of(CUP)
    dataset = truth((1, 1, (10.0, 10.0, 20.0, 23.0)))
    values = [
        score(dataset, [Result(1, 1, 0.9, CUP, mask)], "segm", 300)
        for mask in (packed, Rle(packed.size, lengths), rectangle(*CUP))
    ]
    assert values[0] == values[1] == values[2]
    assert 0 < values[0]["AP"] < 1


@settings(max_examples=10)
@given(st.randoms(use_true_random=False))
def test_the_order_of_results_without_ties_changes_nothing(shuffler):
    boxes = [CUP, BOAT, FAR]
    results = [found(1 + n % 2, 1 + n % 3, 0.05 * n + 0.01, *boxes[n % 3]) for n in range(12)]
    dataset = truth((1, 1, CUP), (2, 3, BOAT), (1, 3, FAR), negative={1: [2], 2: [1, 2]})
    expected = score(dataset, results, "bbox", 300)
    shuffler.shuffle(results)
    assert score(dataset, results, "bbox", 300) == expected


def test_scoring_changes_neither_the_callers_data_nor_numpy_nor_logging():
    dataset, results = copy.deepcopy(TWO_KINDS), [found(1, 1, 0.9, *CUP)]
    before = copy.deepcopy(results), logging.getLogger().handlers[:], logging.getLogger().level
    score(dataset, results, "segm", 300)
    assert dataset == TWO_KINDS
    assert (results, logging.getLogger().handlers[:], logging.getLogger().level) == before
    assert not hasattr(np, "float")


def jittered(dataset: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Results over the annotations of a file: moved, missed, doubled, mislabelled and invented objects, with ties."""
    pick = random.Random(seed)
    categories = [category["id"] for category in dataset["categories"]]
    results = []
    for annotation in dataset["annotations"]:
        for _ in range(pick.choice([0, 1, 1, 1, 2])):
            dx, dy = pick.uniform(-4, 4), pick.uniform(-4, 4)
            x, y, width, height = annotation["bbox"]
            moved = [
                [value + (dy if place % 2 else dx) for place, value in enumerate(polygon)]
                for polygon in annotation["segmentation"]
            ]
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if pick.random() < 0.9 else pick.choice(categories),
                    "score": round(pick.random(), 2),
                    "bbox": [x + dx, y + dy, width, height],
                    "segmentation": moved,
                }
            )
    return results


def first_images(dataset: dict[str, Any], count: int) -> dict[str, Any]:
    """The first images of an annotation file with their annotations, all categories kept."""
    images = dataset["images"][:count]
    ids = {image["id"] for image in images}
    kept = [annotation for annotation in dataset["annotations"] if annotation["image_id"] in ids]
    return {**dataset, "images": images, "annotations": kept}


def officially(path: Path, results: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """The same by hand with the lvis package, as its readers would write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lvis

        truth = lvis.LVIS(str(path))
        for result in results:
            image = truth.imgs[result["image_id"]]
            rles = coco_mask.frPyObjects(result["segmentation"], image["height"], image["width"])
            result["segmentation"] = coco_mask.merge(rles)
            result.pop("bbox" if kind == "segm" else "segmentation")
        judge = lvis.LVISEval(truth, lvis.LVISResults(truth, results), kind)
        judge.run()
    return judge.results


def test_the_values_are_those_of_the_lvis_package_on_lvis_annotations(lvis_file, tmp_path, monkeypatch):
    dataset = first_images(json.loads(lvis_file.read_text()), 25)
    annotations = write(tmp_path / "truth.json", dataset)
    results = jittered(dataset, seed=3)
    ours = evaluate(annotations, write(tmp_path / "results.json", results), 300)
    with monkeypatch.context() as patch:
        patch.setattr(np, "float", float, raising=False)
        for kind in ("bbox", "segm"):
            official = officially(annotations, copy.deepcopy(results), kind)
            assert ours[kind] == {name: None if value == -1 else value for name, value in official.items()}
            assert ours[kind]["AP"] > 0.1


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
    results = [found(1, 1, 0.1, *CUP), found(1, 1, 1 / 3, *FAR), found(2, 3, 0.3, 40.1, 40.2, 39.9, 38.7)]
    shards = as_shards(tmp_path / "shards", results)
    assert export_results(shards, tmp_path / "results.json") == 3
    of_shards, of_file = (evaluate(annotations, path, 300, "yes") for path in (shards, tmp_path / "results.json"))
    assert 0 < of_shards["segm"]["AP"] < 1
    digests = {"detections_sha256"}
    assert {k: v for k, v in of_file.items() if k not in digests} == {
        k: v for k, v in of_shards.items() if k not in digests
    }


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


def test_shards_and_results_file_give_the_same_metrics(tmp_path):
    annotations = write(tmp_path / "truth.json", truth((1, 1, CUP), (2, 3, BOAT), negative={2: [1]}))
    results = [found(1, 1, 0.5, *CUP), found(1, 3, 0.25, *FAR), found(2, 1, 0.75, *CUP), found(2, 99, 1.0, *BOAT)]
    from_file = evaluate(annotations, write(tmp_path / "results.json", as_json(results)), 300)
    from_shards = evaluate(annotations, as_shards(tmp_path / "detections", results), 300)
    differing = {key for key in from_file if from_file[key] != from_shards[key]}
    assert differing == {"detections_sha256"}
    assert from_file["bbox"]["AP"] == pytest.approx(0.25)
    assert (from_file["images"], from_file["detections"], from_file["unknown_category_detections"]) == (2, 4, 1)
    assert from_file["protocol"].startswith("LVIS, 300 detections an image, mask sizes from masks; scored by lvis_rcnn")


def test_every_category_has_its_own_ap(tmp_path):
    dataset = truth((1, 1, CUP), (2, 3, BOAT), negative={2: [1]})
    dataset["categories"].reverse()
    results = [found(1, 1, 0.5, *CUP), found(2, 1, 0.75, *CUP), found(1, 2, 0.5, *FAR)]
    metrics = evaluate(write(tmp_path / "truth.json", dataset), write(tmp_path / "dt.json", as_json(results)), 300)
    rows = metrics["per_category"]
    assert [(row["id"], row["label"], row["name"], row["frequency"], row["objects"]) for row in rows] == [
        (1, 3, "thing 1", "r", 1),
        (2, 2, "thing 2", "c", 0),
        (3, 1, "thing 3", "f", 1),
    ]
    for kind in ("bbox", "segm"):
        assert [row[kind] for row in rows] == [pytest.approx(0.5), None, 0]
        assert metrics["judged_detections"][kind] == 2


def test_the_lvis_package_beside_says_that_it_agrees(tmp_path, monkeypatch):
    paths = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    agreed = evaluate(*paths, 300, "auto")
    assert agreed["official"] == {"package": f"lvis {agreed['versions']['lvis']}", "agrees": True}
    assert agreed["protocol"].endswith("agrees in every bit")
    monkeypatch.setattr(step, "MOST_IMAGES_CHECKED", 1)
    unchecked = evaluate(*paths, 300, "auto")
    assert (unchecked["official"]["agrees"], unchecked["official"]["why"]) == (None, "not run (more than 1 images)")
    assert evaluate(*paths, 300, "yes") == agreed
    nothing = write(tmp_path / "nothing.json", [])
    assert evaluate(paths[0], nothing, 300, "yes")["bbox"]["AP"] == 0


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

    monkeypatch.setattr(step, "official_scores", other)
    with pytest.raises(InputError, match=message):
        evaluate(write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD), 300, "yes")


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
    metrics = evaluate(annotations, write(tmp_path / "results.json", records), 300)
    assert [name for name in ("bbox", "segm") if name in metrics] == [kind]
    assert metrics[kind]["AP"] == pytest.approx(0.5)
    assert len(summary(metrics).splitlines()) == 3


GOOD = as_json([found(1, 1, 0.5, *CUP), found(2, 3, 0.5, *BOAT)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"results.json: result 1 \(image 7, category 3\): unknown image"),
        ({"score": float("nan")}, r"result 1 \(.*\): score is nan; allowed: a finite number"),
        ({"score": "high"}, r"Expected `float`, got `str` - at `\$\[1\].score`"),
        ({"bbox": [1, 2, 3]}, r"length 4, got 3 - at `\$\[1\].bbox`"),
        ({"bbox": [1, 2, 3, float("inf")]}, r"result 1 .*: bbox is \[1.0, 2.0, 3.0, inf\]"),
        ({"bbox": None}, r"result 1 .*: has segm, result 0 has bbox and segm"),
        (
            {"segmentation": {"size": [9, 9], "counts": "0"}},
            r"result 1 .*: mask size is \[9, 9\]; allowed: \[100, 100\]",
        ),
        ({"segmentation": {"size": [100, 100], "counts": "0Pooo2"}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": [100, 100], "counts": "é"}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": {"size": [100, 100], "counts": [1, 2]}}, r"result 1 .*: mask is damaged"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"result 1 .*: polygon of 4 numbers; allowed: an even number, at least 6"),
    ],
)
def test_a_wrong_result_is_named(tmp_path, change, message):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    results = write(tmp_path / "results.json", [GOOD[0], {**GOOD[1], **change}])
    with pytest.raises(InputError, match=message):
        evaluate(annotations, results, 300)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("annotations", {"id": 0}, "annotation 0: id 0 is reserved"),
        ("annotations", {"id": 2}, "truth.json: annotations: duplicate id 2"),
        ("annotations", {"image_id": 9}, "truth.json: annotation 1: unknown image 9"),
        ("annotations", {"category_id": 9}, "annotation 1: unknown category 9"),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5]]}, "annotation 1: polygon of 5 numbers"),
        ("annotations", {"area": None}, r"Expected `float`, got `null` - at `\$.annotations\[0\].area`"),
        ("images", {"neg_category_ids": None}, r"at `\$.images\[0\].neg_category_ids`"),
        ("categories", {"frequency": "x"}, r"Invalid enum value 'x' - at `\$.categories\[0\].frequency`"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, section, change, message):
    dataset = copy.deepcopy(TWO_KINDS)
    dataset[section][0].update(change)
    with pytest.raises(InputError, match=message):
        evaluate(write(tmp_path / "truth.json", dataset), write(tmp_path / "results.json", GOOD), 300)


@pytest.mark.parametrize("text", ["", "[{", '{"image_id": 1}', "\x00"])
def test_a_damaged_results_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results.json: (not readable as JSON|Expected `array`)"):
        evaluate(write(tmp_path / "truth.json", TWO_KINDS), tmp_path / "results.json", 300)


@pytest.mark.parametrize("absent", ["truth.json", "results.json"])
def test_a_missing_file_is_named(tmp_path, absent):
    for name, value in {"truth.json": TWO_KINDS, "results.json": GOOD}.items():
        if name != absent:
            write(tmp_path / name, value)
    with pytest.raises(InputError, match=f"{absent}: no such file"):
        evaluate(tmp_path / "truth.json", tmp_path / "results.json", 300)


def test_a_damaged_shard_is_refused(tmp_path):
    folder = as_shards(tmp_path / "detections", [found(1, 1, 0.5, *CUP)] * 4)
    shard = shard_path(folder, 1)
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(InputError, match=r"shard-00001.npz: damaged shard"):
        evaluate(write(tmp_path / "truth.json", TWO_KINDS), folder, 300)


def test_detections_of_other_annotations_are_refused(tmp_path):
    annotations = write(tmp_path / "truth.json", TWO_KINDS)
    folder = as_shards(tmp_path / "detections", [found(1, 1, 0.5, *CUP)] * 3)
    digest = evaluate(annotations, folder, 300)["annotations_sha256"]
    record = tmp_path / "inference.json"
    write(record, {"annotations_sha256": digest, "detections": 3})
    assert evaluate(annotations, folder, 300)["detections"] == 3
    write(record, {"annotations_sha256": digest, "detections": 4})
    with pytest.raises(InputError, match="shards hold 3 detections, inference wrote 4"):
        evaluate(annotations, folder, 300)
    write(record, {"annotations_sha256": "0" * 64})
    with pytest.raises(InputError, match="were made for other annotations"):
        evaluate(annotations, folder, 300)


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    step.main()


def test_the_command_writes_metrics_and_a_readable_summary(tmp_path, monkeypatch, capsys):
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    out = tmp_path / "deep" / "metrics.json"
    run_main(monkeypatch, "--annotations", annotations, "--detections", results, "--out", out)
    metrics = json.loads(out.read_text())
    assert (metrics["format"], metrics["version"], metrics["detections_per_image"]) == ("lvis_rcnn.metrics", 1, 300)
    assert metrics["segm"]["APc"] is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"wrote {out}"
    assert lines[-2].split()[:4] == ["mask", "100.0", "100.0", "100.0"]
    assert lines[-3].split()[0] == "box"
    assert len({len(line) for line in lines[-5:-1]}) == 1
    assert all(len(line) <= 120 for line in lines[-5:-1])


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


def test_intervals_and_match_results_on_request(tmp_path):
    paths = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    plain = evaluate(*paths, 300)
    assert "intervals" not in plain
    kept = [tmp_path / "first.npz", tmp_path / "second.npz"]
    first, second = (evaluate(*paths, 300, resamples=5, matches=path) for path in kept)
    assert first == second
    assert kept[0].read_bytes() == kept[1].read_bytes()
    found = first.pop("intervals")
    assert first == plain
    assert {name: found[name] for name in ("resamples", "seed", "level")} == {"resamples": 5, "seed": 0, "level": 0.95}
    for kind in ("bbox", "segm"):
        assert tuple(found[kind]) == METRIC_NAMES
        assert {name for name, bounds in found[kind].items() if bounds is None} == {"APc", "APl", "ARl@300"}
        assert found[kind]["AP"] == pytest.approx((1, 1))
    assert read_matches(kept[0]).detections_sha256 == plain["detections_sha256"]


def test_resamples_are_a_number(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--annotations", "a", "--detections", "b", "--out", "c", "--bootstrap", "-1")
    assert "'-1' is not an integer of at least 0" in capsys.readouterr().err


def test_ap_fixed_stands_beside_under_its_own_label(tmp_path):
    """301 detections of another category push the cup out of its image; its own category has room for it."""
    results = as_json([found(1, 3, 0.9, *FAR) for _ in range(300)] + [found(1, 1, 0.5, *CUP), found(1, 99, 1.0, *CUP)])
    paths = write(tmp_path / "truth.json", truth((1, 1, CUP))), write(tmp_path / "results.json", results)
    metrics = evaluate(*paths, 300, fixed=True)
    for kind in ("bbox", "segm"):
        assert metrics[kind]["AP"] == 0
        assert [metrics["fixed"][kind][name] for name in ("AP", "AR")] == pytest.approx([1, 1])
        assert list(metrics["fixed"][kind])[-4:] == ["AR", "ARs", "ARm", "ARl"]
    assert metrics["fixed"]["protocol"] == (
        "AP-fixed (Dave et al. 2021): at most 10,000 detections of a category over all images, no cap on an image;"
        " the detections hold 302 of an image at most, and fewer than 10,000 of 3 of 3 categories"
    )
    assert "fixed" not in evaluate(*paths, 300)
