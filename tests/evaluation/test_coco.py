"""Plain COCO annotations are scored as LVIS ones that hold the keys that COCO leaves out."""

import copy
import json
import random
from typing import Any

import pytest

from lvis_rcnn.evaluation.interface import Scoring, evaluate
from lvis_rcnn.evaluation.official import official_package
from lvis_rcnn.system.cli import InputError
from tests.evaluation.test_lvis_api import scored
from tests.helpers.scored_boxes import BOAT, CUP, as_json, found, truth, write


def coco(dataset: dict[str, Any], crowds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Plain COCO annotations, without what LVIS adds; the annotations with the ids ``crowds`` are crowd regions."""
    added = ("neg_category_ids", "not_exhaustive_category_ids", "frequency")
    bare = {
        name: [{key: value for key, value in record.items() if key not in added} for record in dataset[name]]
        for name in ("images", "annotations", "categories")
    }
    for record in bare["annotations"]:
        record["iscrowd"] = int(record["id"] in crowds)
        if record["iscrowd"]:
            record["segmentation"] = {"size": [100, 100], "counts": [1010, 500, 8490]}
    return bare


def as_lvis(dataset: dict[str, Any]) -> dict[str, Any]:
    """The same by the rules of the documentation, in plain Python."""
    made = copy.deepcopy(dataset)
    ids = [category["id"] for category in made["categories"]]
    shown = {(record["image_id"], record["category_id"]) for record in made["annotations"]}
    for image in made["images"]:
        of_image = [one for one in made["annotations"] if one["image_id"] == image["id"]]
        image["neg_category_ids"] = [one for one in ids if (image["id"], one) not in shown]
        image["not_exhaustive_category_ids"] = list({one["category_id"] for one in of_image if one["iscrowd"]})
    for category in made["categories"]:
        count = sum(one == category["id"] for _, one in shown)
        category["frequency"] = "r" if count < 11 else "c" if count < 101 else "f"
    for record in made["annotations"]:
        record["ignore"] = record["iscrowd"]
    return made


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_annotations_are_scored_as_the_lvis_package_scores_them_with_its_keys_added(tmp_path, capsys, kind):
    pick = random.Random(0)
    boxes = [tuple(float(pick.randint(1, 40)) for _ in range(4)) for _ in range(330)]
    # Category 1 is in 10 images, 2 in 100, 3 in 110, 4 in none.
    objects = [(1 + place % 10, 1, box) for place, box in enumerate(boxes[:20])]
    objects += [(1 + place % 100, 2, box) for place, box in enumerate(boxes[20:170])]
    objects += [(1 + place % 110, 3, box) for place, box in enumerate(boxes[170:])]
    dataset = coco(truth(*objects, frequencies="rrrr", num_images=120), crowds=tuple(range(1, 331, 9)))
    results = [found(pick.randint(1, 120), pick.randint(1, 4), pick.random(), *pick.choice(boxes)) for _ in range(900)]
    results += [found(*one[:2], pick.random(), *one[2]) for one in pick.sample(objects, 250)]
    records = as_json(results)
    text = json.dumps(dataset)
    metrics = evaluate(dataset, records, Scoring(official="yes"), coco_exhaustive=True)
    assert metrics["official"]["agrees"]
    assert [one["frequency"] for one in metrics["per_category"]] == ["r", "c", "f", "r"]
    assert metrics["protocol"].startswith("LVIS of COCO annotations (every category exhaustive")
    assert json.dumps(dataset) == text
    path = write(tmp_path / "as_lvis.json", as_lvis(dataset))
    if kind == "segm":
        records = [{key: value for key, value in one.items() if key != "bbox"} for one in records]
    with official_package() as lvis:
        theirs = scored(lvis, path, records, kind, 300).get_results()
    assert {name: -1 if value is None else value for name, value in metrics[kind].items()} == dict(theirs)
    assert 0 < theirs["APr"] < 1


def test_a_crowd_region_is_no_object_and_excuses_its_category_in_its_image():
    objects = (1, 1, CUP), (1, 2, BOAT), (2, 1, CUP)
    dataset = coco(truth(*objects), crowds=(2,))
    results = as_json([found(1, 1, 0.9, *CUP), found(2, 1, 0.8, *CUP), found(1, 2, 0.7, *CUP)])
    assert evaluate(dataset, results, coco_exhaustive=True)["bbox"]["AP"] == pytest.approx(1)
    plain = evaluate(coco(truth(*objects)), results, coco_exhaustive=True)
    assert plain["bbox"]["AP"] == pytest.approx(0.5)


def test_coco_annotations_are_refused_without_the_option_and_lvis_with_it():
    dataset, results = truth((1, 1, CUP)), as_json([found(1, 1, 0.9, *CUP)])
    with pytest.raises(InputError, match=r"annotations: COCO annotations: no neg_category_ids, .*--coco-exhaustive"):
        evaluate(coco(dataset), results)
    with pytest.raises(InputError, match="images have neg_category_ids, as those of LVIS; fix: leave out"):
        evaluate(dataset, results, coco_exhaustive=True)
    broken = coco(dataset)
    del broken["images"][1]["height"]
    with pytest.raises(InputError, match=r"images\[1\] \(id 2\): missing field height"):
        evaluate(broken, results, coco_exhaustive=True)
    # One list that is missing is an LVIS file with an error.
    del dataset["images"][1]["neg_category_ids"]
    with pytest.raises(InputError, match=r"images\[1\] \(id 2\): missing field neg_category_ids"):
        evaluate(dataset, results)


def test_an_area_of_0_is_that_of_the_box():
    dataset = coco(truth((1, 1, CUP), (2, 1, BOAT)))
    results = as_json([found(1, 1, 0.5, *CUP), found(2, 1, 0.9, *CUP), found(2, 1, 0.4, *BOAT)])
    whole = evaluate(dataset, results, coco_exhaustive=True)
    for record in dataset["annotations"]:
        record["area"] = 0
    assert 0 < whole["bbox"]["AP"] < 1
    assert evaluate(dataset, results, coco_exhaustive=True)["bbox"] == whole["bbox"]
