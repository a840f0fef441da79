"""Plain COCO annotations give the store, sampling and scores of LVIS ones with the missing keys added by hand."""

import copy
import json
import random
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvis_rcnn import store as store_step
from lvis_rcnn.dataloader.repeat_factors import repeat_factors
from lvis_rcnn.dataset.store import AnnotationStore, build_store, open_store
from lvis_rcnn.evaluate import evaluate
from lvis_rcnn.evaluation.scoring import Scoring
from lvis_rcnn.system.cli import InputError
from tests.conftest import run_snakemake, write_study

SIZE = 40
ADDED = {"annotations_sha256", "source_name", "path"}  # of the files, which differ


def drawn_coco(seed: int, num_images: int) -> dict[str, Any]:
    """Boxes of four categories in images of 40 pixels: one in up to 9 images, one in most, one in none."""
    pick = random.Random(seed)
    categories = [{"id": number, "name": name, "supercategory": "x"} for number, name in
                  ((90, "bear"), (3, "cup"), (17, "kite"), (50, "none"))]  # fmt: skip
    images = [{"id": 1000 - at, "height": SIZE, "width": SIZE, "file_name": f"{at}.png"} for at in range(num_images)]
    annotations = []
    for at, image in enumerate(images):
        shown = [90] * (at < 9) + [3] * pick.randint(0, 2) + [17] * (pick.random() < 0.9)
        for category in shown:
            x, y, side = pick.randint(0, 20), pick.randint(0, 20), pick.randint(4, 15)
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            is_crowd = pick.random() < 0.15
            runs = {"size": [SIZE, SIZE], "counts": [x * SIZE + y, side, SIZE * SIZE - x * SIZE - y - side]}
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                "bbox": [x, y, side, side], "area": side * side * (pick.random() < 0.8),
                "iscrowd": int(is_crowd), "segmentation": runs if is_crowd else [polygon],
            })  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": categories}


def by_hand(dataset: dict[str, Any], counted: dict[str, Any]) -> dict[str, Any]:
    """The same in LVIS's form, record by record; r, c and f by the images of ``counted``."""
    made = copy.deepcopy(dataset)
    for image in made["images"]:
        of_image = [one for one in made["annotations"] if one["image_id"] == image["id"]]
        shown, crowded = ({one["category_id"] for one in of_image if one["iscrowd"] >= least} for least in (0, 1))
        ids = [category["id"] for category in made["categories"]]
        image["neg_category_ids"] = [one for one in ids if one not in shown]
        image["not_exhaustive_category_ids"] = [one for one in ids if one in crowded]
    for annotation in made["annotations"]:
        annotation["ignore"], annotation["iscrowd"] = annotation["iscrowd"], 0
        annotation["area"] = annotation["area"] or annotation["bbox"][2] * annotation["bbox"][3]
    pairs = {(one["image_id"], one["category_id"]) for one in counted["annotations"]}
    counts = Counter(category for _, category in pairs)
    for category in made["categories"]:
        count = counts[category["id"]]
        category["frequency"] = "r" if count <= 10 else "c" if count <= 100 else "f"
    return made


def write(path: Path, dataset: dict[str, Any]) -> Path:
    path.write_text(json.dumps(dataset))
    return path


def contents(store: AnnotationStore) -> dict[str, Any]:
    found = {field.name: getattr(store, field.name) for field in fields(store) if field.name not in ADDED}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """COCO files of two splits, and the same by hand."""
    folder = tmp_path_factory.mktemp("coco")
    splits = {"train": drawn_coco(0, 130), "val": drawn_coco(1, 30)}
    for name, dataset in splits.items():
        write(folder / f"{name}.json", dataset)
        write(folder / f"{name}_by_hand.json", by_hand(dataset, splits["train"]))
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_coco_file_and_the_same_by_hand_give_equal_stores_and_repeat_factors(files, tmp_path, split):
    counted = None if split == "train" else files / "train.json"
    build_store(files / f"{split}.json", tmp_path / "coco", coco_exhaustive=True, frequencies=counted)
    build_store(files / f"{split}_by_hand.json", tmp_path / "lvis")
    ours, theirs = open_store(tmp_path / "coco"), open_store(tmp_path / "lvis")
    assert contents(ours) == contents(theirs)
    assert [category.frequency for category in ours.categories] == ["r", "c", "f", "r"]
    assert {"ignored", "run_length_masks"} <= {name for name, number in ours.counts.items() if number}
    factors = [repeat_factors(store, 0.5).image_factors.tolist() for store in (ours, theirs)]
    assert factors[0] == factors[1]
    assert max(factors[0]) > 1


def test_coco_files_and_the_same_by_hand_are_scored_alike(files):
    pick = random.Random(5)
    truths = json.loads((files / "val.json").read_text())["annotations"]
    results = [
        {"image_id": one["image_id"], "category_id": pick.choice([one["category_id"], 3]), "score": pick.random()}
        | {"bbox": one["bbox"], "segmentation": one["segmentation"]}
        for one in truths * 2
    ]
    (files / "results.json").write_text(json.dumps(results))
    options = {"coco_exhaustive": True, "frequencies": files / "train.json"}
    ours = evaluate(files / "val.json", files / "results.json", Scoring(), **options)
    theirs = evaluate(files / "val_by_hand.json", files / "results.json", Scoring())
    assert ours["bbox"] == theirs["bbox"]
    assert ours["segm"] == theirs["segm"]
    assert 0 < ours["bbox"]["APr"] < 1
    assert "more images of train.json" in ours["protocol"]
    # By its own images no category of the small file is frequent.
    alone = evaluate(files / "val.json", files / "results.json", Scoring(), coco_exhaustive=True)
    assert (alone["bbox"]["APf"], alone["bbox"]["AP"]) == (None, ours["bbox"]["AP"])


def test_coco_is_refused_without_being_asked_for_and_lvis_with_it(files, tmp_path):
    with pytest.raises(InputError, match=r"COCO annotations: no neg_category_ids, .*; fix: .*exhaustive: true of the"):
        build_store(files / "train.json", tmp_path / "store")
    with pytest.raises(InputError, match="images have neg_category_ids, as those of LVIS; fix: leave out"):
        build_store(files / "train_by_hand.json", tmp_path / "store", coco_exhaustive=True)
    with pytest.raises(InputError, match=r"--frequencies .* is for plain COCO annotations; fix: add --coco-exhaustive"):
        build_store(files / "train_by_hand.json", tmp_path / "store", frequencies=files / "train.json")
    broken = json.loads((files / "train.json").read_text())
    del broken["annotations"][4]["bbox"]
    write(tmp_path / "broken.json", broken)
    with pytest.raises(InputError, match=r"annotations\[4\] \(id 5\): missing field bbox"):
        build_store(tmp_path / "broken.json", tmp_path / "store", coco_exhaustive=True)
    write(tmp_path / "counted.json", {"annotations": [{"image_id": 1}], "categories": []})
    with pytest.raises(InputError, match=r"counted.json: annotations\[0\]: missing field category_id"):
        build_store(files / "val.json", tmp_path / "store", coco_exhaustive=True, frequencies=tmp_path / "counted.json")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"categories": [{"id": 901, "name": "zebra"}]}, r"category 90 .* is not here; allowed: .*the same categories"),
        (
            {"categories": [{"id": 90, "name": "dog"}]},
            "category 90 of the annotations, .* is 'dog' here; allowed: COCO",
        ),
        ({"annotations": []}, "has no annotations, so that every category would be rare"),
    ],
)
def test_frequencies_of_other_data_are_refused(files, tmp_path, changed, message):
    other = write(tmp_path / "other.json", {**json.loads((files / "train.json").read_text()), **changed})
    options = {"coco_exhaustive": True, "frequencies": other}
    with pytest.raises(InputError, match=f"--frequencies .*other.json: {message}"):
        build_store(files / "val.json", tmp_path / "store", **options)
    with pytest.raises(InputError, match=f"--frequencies .*other.json: {message}"):
        evaluate(files / "val.json", files / "train.json", Scoring(), **options)


def test_a_study_of_coco_files_passes_them_to_the_steps_as_they_are(files, tmp_path):
    named = {name: {"annotations": f"{files}/{name}.json", "images": str(files), "exhaustive": True}
             for name in ("train", "val")}  # fmt: skip
    write_study(tmp_path / "coco.yaml", study="coco", dataset={"name": "coco", "draw": None, **named})
    words = ("results/coco/r50/seed0/metrics.json", "--cores", "1", "-n", "-p", "--configfile", tmp_path / "coco.yaml")
    ended = run_snakemake(*words, cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert f"lvis_rcnn.store --annotations {files}/train.json --coco-exhaustive --out" in ended.text
    options = f"--coco-exhaustive --frequencies {files}/train.json"
    assert f"lvis_rcnn.store --annotations {files}/val.json {options} --out" in ended.text
    evaluated = ended.text.split("-m lvis_rcnn.evaluate ")[1]
    assert options in evaluated.splitlines()[0]


def test_the_step_takes_the_options_of_the_rule(files, tmp_path, monkeypatch):
    words = ["store", "--annotations", str(files / "val.json"), "--out", str(tmp_path / "store"), "--coco-exhaustive"]
    monkeypatch.setattr("sys.argv", [*words, "--frequencies", str(files / "train.json")])
    store_step.main()
    assert [one.frequency for one in open_store(tmp_path / "store").categories] == ["r", "c", "f", "r"]
