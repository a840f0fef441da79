"""The card of a run says what its records say, and is written and removed with its model."""

import json
from pathlib import Path

import yaml

from lvis_rcnn.config.study import check_study
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.reporting.notes import provenance_line
from lvis_rcnn.reporting.pages import write_pages
from lvis_rcnn.reporting.rows import rows_of
from tests.helpers.study_records import MINI, put, put_everything, put_run, study_with, table_of


def card_of(results: Path, study, run: str = "r50/seed0") -> str:
    write_pages(study, Path("study.yaml"), results, results / "pages")
    return (results / "pages" / run / "README.md").read_text()


def test_a_card_has_the_facts_scores_and_licence_of_its_run(tmp_path):
    study = study_with()
    folder = put_everything(tmp_path, study, images=100)
    record = json.loads((folder / "train.json").read_text())
    put(
        folder / "train.json", record | {"steps": 260, "num_categories": 26, "initial_weights": "initial weights: none"}
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    bounds = {kind: {"AP": [0.11, 0.16], "APr": None} for kind in ("bbox", "segm")}
    put(folder / "metrics.json", metrics | {"intervals": {"resamples": 1000, **bounds}})
    text = card_of(tmp_path, study)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert body.startswith("\n# Mask R-CNN R-50-FPN, mini, seed 0\n")
    facts = [line.split(" | ") for line in body.splitlines() if line.startswith("| ")]
    told = {row[0].strip("| "): row[1].strip("| ") for row in facts if len(row) == 2}
    assert told.items() >= {"optimizer steps": "260", "images seen": "1,200", "initial weights": "none"}.items()
    assert told["cost"] == "0.25 CPU-hours"
    assert "| box | 25.0 [11.0, 16.0] | 25.0 |" in body
    assert "| mask | 12.5 [11.0, 16.0] |" in body
    assert "AP in percent, on mini, 100 images; LVIS, lvis 0.5.3, 300 detections" in body
    assert "python -m lvis_rcnn detect model.pth photos --out found" in body
    assert "does not know what photographs look like" in body
    assert body.endswith("## Licence\n\nApache-2.0, as the code and the embedded dataset that it was trained on.\n")
    assert card_of(tmp_path, study) == text


def test_a_card_of_a_calibrated_run_says_what_detection_needs(tmp_path):
    inference = {**read_yaml(MINI)["inference"], "calibration": {"method": "fracal", "frequency": "instances"}}
    study = study_with(inference=inference)
    put_everything(tmp_path, study)
    text = card_of(tmp_path, study)
    assert "--out found --calibration calibration.csv" in text
    title = "FRACAL by objects, lambda 2, base 10"
    assert f"Scores are calibrated ({title}) by `calibration.csv` of its study: keep that, too." in text
    assert f"scores calibrated by {title}" in provenance_line(study, rows_of(study, tmp_path, {}))


def test_the_licence_of_weights_from_other_data_is_left_to_their_owner_and_a_run_without_model_has_no_card(tmp_path):
    files = {name: {"annotations": f"{name}.json", "images": "images"} for name in ("train", "val")}
    values = {**read_yaml(MINI), "backbones": ["r50"], "dataset": {"name": "photos", **files}}
    study = check_study(values, "study.yaml")
    folder = put_run(tmp_path, study)
    (folder / "metrics.json").unlink()
    text = card_of(tmp_path, study)
    assert "license: other" in text
    assert "State here, and in the first lines, under which licence you publish them." in text
    assert "Not scored: waiting for scoring." in text
    assert not [row for row in table_of(put(tmp_path / "card.md", text)) if "AP" in row]
    (folder / "train.json").unlink()
    write_pages(study, Path("study.yaml"), tmp_path, tmp_path / "pages")
    assert not (tmp_path / "pages" / "r50" / "seed0" / "README.md").exists()
