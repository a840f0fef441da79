"""Our scorer beside the lvis package: the same to the last bit, or not at all."""

import copy
import gzip
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lvis_rcnn.dataset import pieces as pieces_module
from lvis_rcnn.dataset.detections import Detections, pack_rles, shard_path, write_shard
from lvis_rcnn.dataset.rle import runs_of_text, texts_of_runs
from lvis_rcnn.evaluation import iou
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, score
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.masks import packed_mask
from lvis_rcnn.evaluation.official import difference, official_package, official_scores
from lvis_rcnn.evaluation.results import DetectionSet, Result, detections_of, read_detections
from lvis_rcnn.system.cli import InputError
from tests.conftest import AND_REAL, LVIS_VAL_100, REPOSITORY
from tests.helpers.lvis_like import write_lvis_like

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE_PX = 112


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def packed(box: list[float]) -> dict[str, Any]:
    """The pixels of a box, as the results of a detector hold them; none where it has no area."""
    pixels = np.zeros((SIDE_PX, SIDE_PX), np.uint8, order="F")
    x, y, width, height = (round(value) for value in box)
    pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = 1
    rle = coco_mask.encode(pixels)
    return {"size": [SIDE_PX, SIDE_PX], "counts": rle["counts"].decode()}


def results_of(records: list[dict[str, Any]]) -> list[Result]:
    return msgspec.convert(records, list[Result])


def arrays(dataset: dict[str, Any], records: list[dict[str, Any]]) -> tuple[GroundTruth, DetectionSet]:
    truth = parse_truth(json.dumps(dataset).encode(), "truth.json")
    return truth, detections_of(results_of(records), truth)


def disagreement(dataset: dict[str, Any], records: list[dict[str, Any]], kind: str, cap: int = 300) -> str:
    text = json.dumps(dataset).encode()
    truth = parse_truth(text, "truth.json")
    found = detections_of(results_of(records), truth)
    return difference(score(truth, found, kind, cap), official_scores(text, found, kind, cap))


# Widths and heights whose products are the edges of the bins, a pixel beside them, and nothing.
SIZES_PX = [(32, 32), (31, 33), (33, 32), (96, 96), (95, 97), (96, 97), (10, 10), (10, 11), (8, 100), (0, 5), (4, 0)]
SHIFTS_PX = [0, 0, 0, 1, 2, -1, 5, 40]


def small_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """A small dataset, results for it, and how many of an image count."""
    pick = random.Random(seed)
    num_images, num_categories = pick.choice([1, 1, 2, 3, 4]), pick.choice([1, 1, 2, 3, 5])
    image_ids, category_ids = pick.sample(range(1, 40), num_images), pick.sample(range(1, 40), num_categories)
    some = lambda: pick.sample(category_ids, pick.randint(0, num_categories))  # noqa: E731
    images = [
        {"id": number, "height": SIDE_PX, "width": SIDE_PX}
        | {"neg_category_ids": [*some(), 99], "not_exhaustive_category_ids": some() if pick.random() < 0.5 else []}
        for number in image_ids
    ]
    with_ignored = pick.random() < 0.3
    annotations = []
    for number in range(pick.choice([0, 1, 2, 4, 9])):
        width, height = pick.choice(SIZES_PX)
        box = [pick.choice([0, 0, 3, 14]), pick.choice([0, 0, 3, 14]), width, height]
        beside = annotations[-1] if annotations and pick.random() < 0.4 else None
        if beside:  # what lies between both overlaps each as much
            box = [beside["bbox"][0] + 6, *beside["bbox"][1:]]
        area = pick.choice([box[2] * box[3]] * 8 + [0, 1024, 9216, 500.5])
        record = {"id": number + 1, "image_id": pick.choice(image_ids), "category_id": pick.choice(category_ids)}
        if beside:
            record |= {"image_id": beside["image_id"], "category_id": beside["category_id"]}
        record |= {"bbox": box, "area": area, "segmentation": rectangle(*box)}
        if with_ignored:
            record["ignore"] = pick.choice([0, 0, 1])
        annotations.append(record)
    categories = [{"id": number, "name": f"{number}", "frequency": pick.choice("rcf")} for number in category_ids]
    dataset = {"images": images, "annotations": pick.sample(annotations, len(annotations)), "categories": categories}
    scores = pick.choice([[0.5], [0.25, 0.5, 0.75], None])
    float32 = pick.random() < 0.3
    records = []
    for _ in range(pick.choice([0, 1, 3, 10, 30, 30, 350 if num_images == 1 else 60])):
        near = pick.choice(annotations) if annotations and pick.random() < 0.8 else None
        box = list(near["bbox"]) if near else [3, 3, *pick.choice(SIZES_PX)]
        if pick.random() < 0.15:
            box[2:] = pick.choice(SIZES_PX)
        moved = pick.random()
        if moved < 0.3:
            box[0] += 3
        elif moved < 0.7:
            box = [value + pick.choice(SHIFTS_PX) if place < 3 else value for place, value in enumerate(box)]
        value = pick.choice(scores) if scores else pick.random()
        record = {
            "image_id": near["image_id"] if near and pick.random() < 0.9 else pick.choice(image_ids),
            "category_id": near["category_id"] if near and pick.random() < 0.8 else pick.choice([*category_ids, 98]),
            "score": float(np.float32(value)) if float32 else value,
            "bbox": box,
            "segmentation": packed(box),
        }
        records += [record] * pick.choice([1, 1, 1, 2])
    return dataset, pick.sample(records, len(records)), pick.choice([300, 300, 1, 3, 10])


# One number makes a set: drawing every field by itself takes a hundred times longer, and shrinks no better.
sets = st.integers(0, 2**48).map(small_set)


@settings(max_examples=100)
@given(sets, st.sampled_from(["bbox", "segm"]))
def test_small_sets_score_as_in_the_lvis_package(made, kind):
    dataset, records, cap = made
    assert disagreement(dataset, records, kind, cap) == ""


@pytest.mark.long
@settings(max_examples=1000)
@given(sets)
def test_many_small_sets_score_as_in_the_lvis_package(made):
    dataset, records, cap = made
    assert disagreement(dataset, records, "bbox", cap) == ""
    assert disagreement(dataset, records, "segm", cap) == ""


def jittered(dataset: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Results over the annotations of a file: moved, missed, doubled, mislabelled and invented objects, with ties.

    A tenth of the images, and the one with most objects, have many more than others: over 300.
    """
    pick = random.Random(seed)
    categories = [category["id"] for category in dataset["categories"]]
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    fullest = max(of_image, key=lambda image: len(of_image[image]))
    records = []
    for image in dataset["images"]:
        copies = 40 if pick.random() < 0.1 or image["id"] == fullest else 3
        for annotation in of_image[image["id"]]:
            for _ in range(pick.randint(0, copies)):
                spread = pick.choice([1, 4, 16])
                dx, dy = pick.gauss(0, spread), pick.gauss(0, spread)
                x, y, width, height = annotation["bbox"]
                outline = [
                    [value + (dy if place % 2 else dx) for place, value in enumerate(polygon)]
                    for polygon in annotation["segmentation"]
                ]
                verified = [annotation["category_id"]] * 8 + image["neg_category_ids"]
                record = {"image_id": image["id"], "category_id": pick.choice([*verified, pick.choice(categories)])}
                record |= {"score": round(pick.random(), 2), "bbox": [x + dx, y + dy, width, height]}
                mask = coco_mask.merge(coco_mask.frPyObjects(outline, image["height"], image["width"]))
                records.append(record | {"segmentation": {**mask, "counts": mask["counts"].decode()}})
    pick.shuffle(records)
    return records


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 11))])
def test_lvis_annotations_score_as_in_the_lvis_package(lvis_file, seed):
    text = lvis_file.read_bytes()
    truth = parse_truth(text, "truth.json")
    found = detections_of(results_of(jittered(json.loads(text), seed)), truth)
    assert np.bincount(found.image_ids).max() > 300
    for kind in ("bbox", "segm"):
        ours = score(truth, found, kind)
        assert difference(ours, official_scores(text, found, kind, 300)) == ""
        assert 0.05 < ours.metrics["AP"] < 0.95


@pytest.fixture(scope="module", params=["lvis package", *("MMDetection" for _ in AND_REAL)])
def figures(request, tmp_path_factory):
    """Annotations, results and the metrics of both by lvis, with and without boxes in the results of masks.

    MMDetection's are of the 100 real images; where these are not at hand, the lvis package says the same of others.
    """
    if request.param == "MMDetection":
        records = json.loads(gzip.decompress((GOLDEN / "metric_detections.json.gz").read_bytes()))
        expected = json.loads((GOLDEN / "metric_expected.json").read_text())["full_precision"]
        return LVIS_VAL_100, records, expected
    file = write_lvis_like(tmp_path_factory.mktemp("figures") / "lvis_like.json", images=12, seed=1)
    records = jittered(json.loads(file.read_bytes()), seed=20)
    without_boxes = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
    return (
        file,
        records,
        {
            "bbox": metrics_of_lvis(file, records, "bbox"),
            "segm": metrics_of_lvis(file, records, "segm"),
            "segm_without_bbox_key": metrics_of_lvis(file, without_boxes, "segm"),
        },
    )


def metrics_of_lvis(file: Path, records: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """What the package says by itself, as its README calls it."""
    with official_package() as lvis, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = lvis.LVIS(str(file))
        judge = lvis.LVISEval(truth, lvis.LVISResults(truth, copy.deepcopy(records)), kind)
        judge.run()
    return {name: float(judge.results[name]) for name in METRIC_NAMES}


@pytest.mark.parametrize(
    ("kind", "mask_sizes_from", "theirs"),
    [("bbox", "masks", "bbox"), ("segm", "boxes", "segm"), ("segm", "masks", "segm_without_bbox_key")],
)
def test_figures_of_mmdetection_with_and_without_its_boxes_in_mask_results(figures, kind, mask_sizes_from, theirs):
    file, records, expected = figures
    truth = parse_truth(file.read_bytes(), "truth.json")
    ours = score(truth, detections_of(results_of(records), truth), kind, 300, mask_sizes_from)
    # Means of another release of NumPy round otherwise.
    assert ours.metrics == pytest.approx(expected[theirs], rel=1e-14)


def test_sizes_by_boxes_are_others_than_by_masks(figures):
    segm, without_boxes = figures[2]["segm"], figures[2]["segm_without_bbox_key"]
    assert segm["APm"] != without_boxes["APm"]


def by_hand() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A category with two objects in an image: one found, a mistake, the other found by 0.8 of its area."""
    boxes = [[0, 0, 40, 40], [50, 50, 40, 40]]
    image = {"id": 1, "height": SIDE_PX, "width": SIDE_PX, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotations = [
        {"id": place + 1, "image_id": 1, "category_id": 7, "bbox": box, "area": 1600, "segmentation": rectangle(*box)}
        for place, box in enumerate(boxes)
    ]
    categories = [{"id": 7, "name": "cup", "frequency": "r"}, {"id": 8, "name": "boat", "frequency": "c"}]
    found = [[50, 50, 40, 32], [5, 60, 10, 10], boxes[0]]
    records = [
        {"image_id": 1, "category_id": 7, "score": value, "bbox": box, "segmentation": packed(box)}
        for value, box in zip([0.1, 0.2, 0.3], found, strict=True)
    ]
    return {"images": [image], "annotations": annotations, "categories": categories}, records


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_by_hand(kind):
    dataset, records = by_hand()
    scores = score(*arrays(dataset, records), kind)
    # Best first: right, wrong, right. Up to recall 0.5 precision is 1, above it 2/3, where 0.8 is overlap enough.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert scores.metrics["AP50"] == pytest.approx(both)
    assert scores.metrics["AP75"] == pytest.approx(both)
    assert scores.metrics["AP"] == scores.metrics["APr"] == pytest.approx((7 * both + 3 * one) / 10)
    assert scores.metrics["AR@300"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    # The mistake is small: among medium objects it does not count.
    assert scores.metrics["APm"] == pytest.approx((7 * 1 + 3 * one) / 10)
    assert [scores.metrics[name] for name in ("APs", "APl", "APc", "APf")] == [None] * 4
    assert scores.category_ap == [pytest.approx(scores.metrics["AP"]), None]
    assert scores.num_objects.tolist() == [[2, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("processes", [1, 2])
def test_masks_compared_in_parts_and_processes_score_the_same(monkeypatch, processes):
    several = 0
    for seed in range(100):
        dataset, records, cap = small_set(seed)
        truth, found = arrays(dataset, records)
        whole = score(truth, found, "segm", cap)
        with monkeypatch.context() as patch:
            patch.setattr(iou, "MASKS_AT_ONCE", 3)
            of_parts = score(truth, found, "segm", cap, processes=processes)
        assert np.array_equal(whole.precision, of_parts.precision)
        assert np.array_equal(whole.recall, of_parts.recall)
        assert whole.metrics == of_parts.metrics
        several += len(whole.outcomes.images) > 12
        if several == (10 if processes == 1 else 2):  # new processes take seconds
            return
    pytest.fail("too few sets of several parts")


def test_a_damaged_mask_is_named_whatever_the_part(monkeypatch):
    dataset, records = by_hand()
    truth, found = arrays(dataset, [{**records[2], "score": 0.9 - number / 100} for number in range(9)])
    found.masks.sizes_hw[7] = 2, 2
    monkeypatch.setattr(iou, "MASKS_AT_ONCE", 3)
    with pytest.raises(InputError, match=r"result 7 .*mask is damaged"):
        score(truth, found, "segm")


def test_a_mask_whose_runs_do_not_fill_its_image_is_named_where_pycocotools_would_never_come_back():
    dataset, records = by_hand()
    runs = runs_of_text(records[0]["segmentation"]["counts"].encode()).tolist()
    annotation, text = dataset["annotations"][0], json.dumps(dataset).encode()
    wrong = [runs[:-1], [*runs[:-1], runs[-1] + 1], [*runs[:-1], runs[-1] + 7, -7]]
    wrong.append([runs[0] + 2**32, *runs[1:]])  # as many pixels, counted in 32 bits
    for odd in wrong:
        counts = texts_of_runs(np.array(odd), np.array([len(odd)]))[1].tobytes().decode()
        mask = {"size": [SIDE_PX, SIDE_PX], "counts": counts}
        truth, found = arrays(dataset, [records[2], {**records[0], "segmentation": mask}])
        for judge in (lambda: score(truth, found, "segm"), lambda: official_scores(text, found, "segm", 300)):  # noqa: B023
            with pytest.raises(InputError, match=r"result 1 \(image 1, category 7\): mask is damaged"):
                judge()
        with pytest.raises(InputError, match="annotation 1: mask is damaged"):
            score(*arrays({**dataset, "annotations": [{**annotation, "segmentation": mask}]}, records), "segm")


def test_outcomes_by_hand():
    dataset, records = by_hand()
    outcomes = score(*arrays(dataset, records), "bbox").outcomes
    assert (outcomes.images.tolist(), outcomes.starts.tolist()) == ([0] * 3, [0, 3, 3])
    medium, small = [True, False, True, False], [True, True, False, False]
    assert outcomes.is_false_positive_if_unmatched.tolist() == [medium, small, medium]
    assert outcomes.matches.detections.tolist() == [0, 2]
    assert outcomes.matches.matched[:, :, 0].sum(axis=1).tolist() == [10, 7]
    assert outcomes.matches.matched_to_ignored.any(axis=1).tolist() == [[False, True, False, True]] * 2
    assert outcomes.object_counts.tolist() == [medium] * 2


def test_the_last_of_equal_objects_is_found():
    dataset, records = by_hand()
    for annotation in dataset["annotations"]:
        annotation |= {"bbox": [0, 0, 40, 40]}
    twice = [{**records[2], "score": value} for value in (0.9, 0.8)]
    assert score(*arrays(dataset, twice), "bbox").metrics["AP"] == pytest.approx(1)
    dataset["annotations"][1] |= {"ignore": 1, "bbox": [0, 0, 40, 41]}
    once = score(*arrays(dataset, twice), "bbox")
    # The object that counts comes first, though the other one is found as well; the second detection is forgiven.
    assert once.metrics["AP"] == pytest.approx(1)
    assert once.outcomes.matches.matched_to_ignored[:, 0, 0].tolist() == [False, True]


def test_a_file_read_in_pieces_is_the_file(tmp_path, monkeypatch):
    dataset, records = by_hand()
    truth = parse_truth(json.dumps(dataset).encode(), "truth.json")
    path = tmp_path / "results.json"
    path.write_text(" " + json.dumps(records * 50) + "\n")
    whole = read_detections(path, truth)
    monkeypatch.setattr(pieces_module, "PIECE", 500)
    pieces = read_detections(path, truth)
    assert len(pieces) == 150
    for name in ("image_ids", "category_ids", "scores", "boxes_xywh"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name))
    rows = np.arange(150)
    assert (
        pieces.masks.packed(rows)
        == whole.masks.packed(rows)
        == [{**record["segmentation"], "counts": record["segmentation"]["counts"].encode()} for record in records * 50]
    )
    del records[1]["bbox"]
    path.write_text(json.dumps([records[0]] * 20 + [records[1]]))
    with pytest.raises(InputError, match=r"result 20 \(image 1, category 7\): has segm, result 0 has bbox and segm"):
        read_detections(path, truth)
    path.write_text(json.dumps([records[0]] * 20) + "]")
    with pytest.raises(InputError, match="not readable as JSON"):
        read_detections(path, truth)


def test_files_are_read_without_the_masks_that_no_score_needs(tmp_path):
    dataset, records = by_hand()
    truth = parse_truth(json.dumps(dataset).encode(), "truth.json")
    # The image is not known to show or lack category 8; a text that is damaged there shows that it is not read.
    unread = {**records[0], "category_id": 8, "segmentation": {"size": [SIDE_PX, SIDE_PX], "counts": "~"}}
    known, records = records, [records[0], unread, *records[1:]]
    rles = [{**record["segmentation"], "counts": record["segmentation"]["counts"].encode()} for record in records]
    columns = [np.array([record[name] for record in records]) for name in ("image_id", "category_id", "score", "bbox")]
    ids, categories, scores, boxes = columns
    shard = Detections(ids, categories, scores.astype(np.float32), boxes.astype(np.float32), *pack_rles(rles))
    write_shard(shard_path(tmp_path, 0), shard)
    (tmp_path / "results.json").write_text(json.dumps(records))
    for path in (tmp_path, tmp_path / "results.json"):
        found = read_detections(path, truth)
        assert found.has_mask is None
        assert found.masks.packed(np.arange(4)) == [rles[0], {**rles[1], "counts": b""}, *rles[2:]]
        assert score(truth, found, "segm").metrics == score(*arrays(dataset, known), "segm").metrics
    records[1]["category_id"] = 7
    (tmp_path / "results.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"result 1 \(image 1, category 7\): mask is damaged"):
        read_detections(tmp_path / "results.json", truth)


def test_a_ground_truth_without_numbers_is_named():
    dataset, _ = by_hand()
    dataset["annotations"][1]["area"] = float("nan")
    with pytest.raises(InputError, match=r"annotations\[1\] \(id 2\): area: expected float, got NaN, .*finite number"):
        parse_truth(json.dumps(dataset).encode(), "truth.json")


def test_of_a_repeated_key_the_last_counts_as_in_the_lvis_package():
    text = json.dumps(by_hand()[0])
    wrong = (
        '"area": null, "area"',
        '"height": "70", "height"',
        '"frequency": 5, "frequency"',
        '"annotations": 5, "annotations"',
    )
    plain = parse_truth(text.encode(), "truth.json")
    for twice in wrong:
        key = twice.rpartition(" ")[2]
        found = parse_truth(text.replace(key, twice).encode(), "truth.json")
        assert (found.areas.tolist(), found.sizes_hw.tolist()) == (plain.areas.tolist(), plain.sizes_hw.tolist())


def test_a_single_run_of_another_length_is_a_mask_without_a_pixel_as_in_the_lvis_package():
    dataset, records = by_hand()
    records[0]["segmentation"] = {"size": [SIDE_PX, SIDE_PX], "counts": "Qa0"}
    assert disagreement(dataset, records, "segm") == ""


@pytest.mark.parametrize("counts", ["", "P", "0", "d:P1`", "~", "\x00", "d:P1`2000lY8\n"])
def test_text_of_a_mask_that_pycocotools_would_read_beyond_is_refused(counts):
    dataset, records = by_hand()
    truth = parse_truth(json.dumps(dataset).encode(), "truth.json")
    records[1]["segmentation"] = {"size": [SIDE_PX, SIDE_PX], "counts": counts}
    if counts in ("", "0"):  # no run, or one run of no pixel: an empty mask
        assert len(detections_of(results_of(records), truth)) == 3
        return
    with pytest.raises(InputError, match=r"result 1 \(image 1, category 7\): mask is damaged"):
        detections_of(results_of(records), truth)


def test_packing_large_runs_leaves_the_memory_of_others_alone():
    # Four runs of 6 characters each: pycocotools would write a 25th byte into 24, which ends a process within a second.
    code = (
        "from lvis_rcnn.evaluation.masks import Rle, packed_mask\n"
        "runs = [2**24, 2**24, 2**24, 2**30 - 3 * 2**24]\n"
        "kept = [packed_mask(Rle((2**15, 2**15), runs), (2**15, 2**15), '')['counts'] for _ in range(2000)]\n"
        "assert len(set(kept)) == 1, set(kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_image_that_is_too_large_for_a_mask_is_refused():
    message = r"annotation 1: the mask of an image of 65536 x 65536 pixels; allowed: 1 to 4,294,967,295 .*--kinds bbox"
    with pytest.raises(InputError, match=message):
        packed_mask([[1, 1, 5, 1, 5, 5]], (2**16, 2**16), "annotation 1")


def test_boxes_of_shards_are_read_without_their_masks(tmp_path):
    box = np.array([[1, 2, 3, 4]], np.float32)
    rle = {"size": [SIDE_PX, SIDE_PX], "counts": packed(box[0].tolist())["counts"].encode()}
    shard = Detections(np.array([1]), np.array([7]), np.array([0.5], np.float32), box, *pack_rles([rle]))
    for number in range(2):
        write_shard(shard_path(tmp_path, number), shard)
    truth = parse_truth(json.dumps(by_hand()[0]).encode(), "truth.json")
    both, boxes = read_detections(tmp_path, truth), read_detections(tmp_path, truth, kinds=("bbox",))
    assert (both.kinds, boxes.kinds) == (("bbox", "segm"), ("bbox",))
    assert np.array_equal(both.boxes_xywh, boxes.boxes_xywh)
    assert both.masks.packed(np.array([1])) == [rle]
