"""Published rows: which models a study may score, what the table says of them, and one from its file to the table."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lvis_rcnn.config.study import Study, check_study
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.config.zoo import SCORED_KINDS, scored_models
from lvis_rcnn.system.cli import InputError
from tests.conftest import copy_study
from tests.helpers.study_records import (
    PAGE,
    ZOO,
    failures_of,
    put,
    put_infer,
    put_log,
    put_measured,
    put_metrics,
    put_run,
    reason_of,
    study_with,
    table_of,
    written,
)
from tests.workflow.test_end_to_end import FINISHED, RUN, lacking, run, tiny_study

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = REPOSITORY / "configs" / "published.yaml"
MODEL = ZOO["lvis_v1_r50"]
SPLIT = {"far": {"annotations": "far.json", "images": "images"}}


def scoring(*models: str, **sections: Any) -> Study:
    """A study that scores published models and trains nothing."""
    rows = [{"model": model, "split": "far"} for model in models or ("lvis_v1_r50",)]
    values = {**read_yaml(PUBLISHED), "dataset": {"name": "near", "splits": SPLIT}, "published": rows, **sections}
    return check_study(values, where="study.yaml")


def put_import(results: Path, model: str = "lvis_v1_r50", **changes: Any) -> Path:
    """An imported model, as its step leaves it."""
    folder = results / "published" / "published" / model
    record = {"file": ZOO[model].file_name, "sha256": "aa78ac3d" + 56 * "0", "model_sha256": "feed"}
    put(folder / "import.json", {**record, **changes})
    return folder


def put_scored(results: Path, study: Study, box_ap: float = 0.2261) -> Path:
    """A published model with all its records."""
    folder = put_import(results)
    versions = {"python": "3.11.9", "torch": "2.15.0", "torchvision": "0.29.2"}
    put_infer(folder, study, code_version="0.1.0-bbbb2222", versions=versions, threads=8, precision="fp32")
    put_metrics(folder, ap=box_ap)
    put_measured(folder, study, training=False)
    return folder


def test_the_eight_published_models_are_scored_each_on_its_own_data() -> None:
    study = check_study(read_yaml(PUBLISHED), where="f")
    models = scored_models(study, PUBLISHED)
    plain = [name for name, model in ZOO.items() if model.kind in SCORED_KINDS and model.classification == "softmax"]
    assert sorted(models) == sorted(plain)
    assert len(models) == 8
    assert {row.model: row.split for row in study.published} == {name: model.kind for name, model in models.items()}
    assert list(models) == [row.model for row in study.published]


def test_a_study_without_published_rows_reads_no_zoo(tmp_path: Path) -> None:
    assert scored_models(study_with(zoo="nowhere.yaml"), tmp_path / "study.yaml") == {}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("coco_r50", r"s\.yaml: published coco_r50: is a model of kind coco, .*this one can initialise a training"),
        ("r50", r"s\.yaml: published r50: is not in the zoo; allowed: lvis_v0\.5_r50, .*lvis_v1_x101_64x4d, .*; fix"),
    ],
)
def test_only_models_of_lvis_are_scored(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        scored_models(scoring(model, zoo=None), Path("s.yaml"))
    assert "coco" not in str(error.value).split("allowed: ")[1].split("; fix")[0]


def test_a_published_model_has_a_row_as_published_and_one_as_scored_here(tmp_path: Path) -> None:
    study = scoring()
    put_scored(tmp_path, study)
    as_published, here = table_of(written(tmp_path, study))
    columns = [*PAGE[:3], "Scored on", "Source", *PAGE[3:], "APr", "APc", "APf", "Images seen", "GPU-hours"]
    assert list(as_published) == list(here) == columns
    links = f"[model]({MODEL.url}) &#124; [log]({MODEL.log_url})"
    assert list(as_published.values()) == [
        *("R-50-FPN", "pytorch", "1x", "far", "published"),
        *("9.1", "not published", "22.5", "21.7", links, *["not published"] * 5),
    ]
    assert list(here.values()) == [
        *("R-50-FPN", "pytorch", "1x", "far", "published, re-scored here"),
        *(
            "- (not trained here)",
            "12.3",
            "22.6 (published 22.5, +0.1 !)",
            "11.3 (published 21.7, -10.4 !)",
            links,
            "1.0",
            "2.0",
            "3.0",
        ),
        *["- (not trained here)"] * 2,
    ]


def test_a_difference_that_rounds_to_nothing_has_no_minus(tmp_path: Path) -> None:
    study = scoring()
    put_scored(tmp_path, study, box_ap=0.2249)
    assert reason_of(tmp_path, study, "box AP", row=1) == "22.5 (published 22.5, +0.0)"


def test_numbers_that_were_never_published_are_said_to_be_so(tmp_path: Path) -> None:
    rows = table_of(written(tmp_path, scoring("lvis_v0.5_r50")))
    assert (rows[0]["Mem (GB)"], rows[0]["box AP"]) == ("not published", "26.1")
    assert all(value for row in rows for value in row.values())


def test_the_page_names_the_files_and_what_scored_them(tmp_path: Path) -> None:
    study = scoring()
    put_scored(tmp_path, study)
    page = written(tmp_path, study).read_text()
    assert f"Published files scored here: {MODEL.file_name} (sha256 aa78ac3d{56 * '0'})." in page
    assert re.search(r"published value and, for AP, difference.*! = .* more than the rounding of the published", page)
    (line,) = [line for line in page.splitlines() if line.startswith("Study published;")]
    for fact in ("code 0.1.0-bbbb2222", "data 89abcdef (val)", "torch 2.15.0", "threads 8", "fp32", "AP: LVIS"):
        assert fact in line
    assert "Mem:" not in line
    assert "trained on" not in line


def test_json_and_csv_carry_both_and_the_difference(tmp_path: Path) -> None:
    study = scoring("lvis_v1_r50", "lvis_v0.5_r101")
    put_scored(tmp_path, study, box_ap=0.22613)
    table = json.loads(written(tmp_path, study).with_suffix(".json").read_text())
    as_published, here, _, waiting = table["rows"]
    assert [row["source"] for row in (as_published, here)] == ["published", "published, re-scored here"]
    assert as_published["measures"]["box_AP"] == {"mean": pytest.approx(0.225), "sd": None, "seeds": {}}
    assert as_published["measures"]["memory_gb"]["mean"] == 9.1
    assert as_published["measures"]["fps"]["mean"] is None
    assert here["measures"]["box_AP"]["mean"] == 0.22613
    assert here["measures"]["memory_gb"]["mean"] is None
    assert here["published"] == {"memory_gb": 9.1, "box_AP": pytest.approx(0.225), "mask_AP": pytest.approx(0.217)}
    assert here["difference"] == {"box_AP": pytest.approx(0.00113), "mask_AP": pytest.approx(0.113065 - 0.217)}
    assert here["model"] == {"published": MODEL.url}
    assert waiting["difference"] == {"box_AP": None, "mask_AP": None}
    assert waiting["missing"] == {"published": dict.fromkeys(("import", "infer", "evaluate", "measure"), "not started")}
    assert table["provenance"]["published_files"] == [{"file": MODEL.file_name, "sha256": "aa78ac3d" + 56 * "0"}]

    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [line["source"] for line in lines] == 2 * ["published", "published, re-scored here"]
    assert float(lines[1]["box_AP_difference"]) == pytest.approx(0.00113)
    assert (lines[0]["box_AP_difference"], lines[1]["missing"], lines[3]["missing"]) == ("", "", "not started")
    assert (lines[1]["backbone"], lines[1]["scored_on"], lines[1]["model"]) == ("r50", "far", MODEL.url)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("store_far", "store_far: no network"),
        (f"fetch_{MODEL.file_name}", "fetch: no network"),
        ("import_published_lvis_v1_r50", "no network"),
        ("preflight", ""),
        ("import_published_lvis_v0.5_r50", ""),
    ],
)
def test_what_comes_before_the_import_fails_for_its_row(tmp_path: Path, log: str, error: str) -> None:
    study = scoring()
    put_log(tmp_path, study, log, "2026-11-23 12:00:01 error: no network; fix: wait")
    row = table_of(written(tmp_path, study))[1]
    cells = [row[name] for name in ("Mem (GB)", "Inf time (fps), images/s", "box AP", "mask AP")]
    assert cells == ["- (not trained here)", "failed" if error else "not started", "-", "-"]
    assert failures_of(tmp_path, study) == (f"Failed: R-50-FPN: {error}." if error else "")


def test_a_row_waits_fails_and_grows_old_step_by_step(tmp_path: Path) -> None:
    study = scoring()
    folder = put_import(tmp_path)

    def reason(column: str = "box AP") -> str:
        return reason_of(tmp_path, study, column, row=1)

    assert reason() == "waiting for inference"
    assert reason("Inf time (fps), images/s") == "waiting for the measurement"
    put_log(tmp_path, study, "infer_published_lvis_v1_r50", "2026-11-23 12:00:01 error: no memory\n")
    assert reason() == "failed"
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN: infer: no memory."
    put_infer(folder, study)
    assert reason() == "waiting for scoring"
    put_metrics(folder, detections_per_image=100)
    assert reason() == "outdated: the settings changed since"
    put_infer(folder, study, model_sha256="beef")
    assert reason() == "outdated: imported again since"
    put(folder / "import.json", "{")
    assert reason() == "unreadable: import.json"


def test_published_rows_stand_below_the_trained_ones(tmp_path: Path) -> None:
    model = {**read_yaml(REPOSITORY / "configs" / "mini.yaml")["model"], "anchor_scale": 8}
    study = study_with(model=model, published=[{"model": "lvis_v1_r101"}])
    put_run(tmp_path, study)
    trained, as_published, here = table_of(written(tmp_path, study))
    assert (trained["Source"], trained["Scored on"], trained["Mem (GB)"]) == ("trained here", "mini", "0.88")
    assert (as_published["Backbone"], as_published["Scored on"], as_published["Mem (GB)"]) == (
        "R-101-FPN",
        "mini",
        "10.8†",
    )
    assert (here["Inf time (fps), images/s"], here["box AP"]) == ("not started", "-")
    assert "Published files" not in (tmp_path / "table.md").read_text()


def test_a_published_model_of_another_method_says_so_in_the_table(tmp_path: Path) -> None:
    model = {**read_yaml(REPOSITORY / "configs" / "mini.yaml")["model"], "anchor_scale": 8}
    study = study_with((), (), model=model, published=[{"model": "lvis_v1_r50_seesaw_mask"}, {"model": "lvis_v1_r50"}])
    titles = [row["Row"] for row in table_of(written(tmp_path, study))]
    assert titles == ["R-50-FPN, Seesaw, normalised mask"] * 2 + ["R-50-FPN"] * 2


# Names of MMDetection 2.x and 3.x for those of torchvision's modules.
MMDETECTION_NAMES = {
    r"backbone\.body\.(.*)": r"backbone.\1",
    r"backbone\.fpn\.inner_blocks\.(\d)\.0\.(.*)": r"neck.lateral_convs.\1.conv.\2",
    r"backbone\.fpn\.layer_blocks\.(\d)\.0\.(.*)": r"neck.fpn_convs.\1.conv.\2",
    r"rpn\.head\.conv\.0\.0\.(.*)": r"rpn_head.rpn_conv.\1",
    r"rpn\.head\.cls_logits\.(.*)": r"rpn_head.rpn_cls.\1",
    r"rpn\.head\.bbox_pred\.(.*)": r"rpn_head.rpn_reg.\1",
    r"roi_heads\.box_head\.fc6\.(.*)": r"roi_head.bbox_head.shared_fcs.0.\1",
    r"roi_heads\.box_head\.fc7\.(.*)": r"roi_head.bbox_head.shared_fcs.1.\1",
    r"roi_heads\.box_predictor\.cls_score\.(.*)": r"roi_head.bbox_head.fc_cls.\1",
    r"roi_heads\.box_predictor\.bbox_pred\.(.*)": r"roi_head.bbox_head.fc_reg.\1",
    r"roi_heads\.mask_head\.(\d)\.0\.(.*)": r"roi_head.mask_head.convs.\1.conv.\2",
    r"roi_heads\.mask_predictor\.conv5_mask\.(.*)": r"roi_head.mask_head.upsample.\1",
    r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)": r"roi_head.mask_head.conv_logits.\1",
}


def mmdetection_name(key: str) -> str:
    """The key of MMDetection, by the only pattern that fits."""
    (name,) = [re.sub(f"^{old}$", new, key) for old, new in MMDETECTION_NAMES.items() if re.fullmatch(old, key)]
    return name


def publish(model: Path, folder: Path) -> Path:
    """The weights of ``model`` as MMDetection 2.x publishes them: background last, legacy format, named by digest."""
    content = torch.load(model, weights_only=True)
    state = {mmdetection_name(key): value for key, value in content["state_dict"].items()}
    for key in ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"):
        state[key] = torch.cat([state[key][1:], state[key][:1]])
    meta = {"mmdet_version": "2.3.0", "config": "model = dict(type='MaskRCNN')", "CLASSES": content["meta"]["CLASSES"]}
    folder.mkdir(parents=True)
    torch.save({"meta": meta, "state_dict": state}, folder / "new.pth", _use_new_zipfile_serialization=False)
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    return (folder / "new.pth").rename(folder / f"mask_rcnn_r50_fpn_2x_lvis-{digest[:8]}.pth")


@pytest.mark.slow
def test_a_published_file_is_scored_as_the_model_it_was_made_from(finished_study: Path, tmp_path: Path) -> None:
    copy_study(finished_study, tmp_path)
    file = publish(tmp_path / RUN / "model.pth", tmp_path / "data" / "weights")
    row = {"kind": "lvis_v0.5", "backbone": "r50", "schedule": "2x", "urls": [f"https://example.org/{file.name}"]}
    row |= {"log_url": None, "memory_gb": None, "box_ap": 12.5, "mask_ap": 11.5}
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({"models": [{"name": "lvis_v0.5_r50", **row}]}))

    settings = {**FINISHED, "zoo": "zoo.yaml", "published": [{"model": "lvis_v0.5_r50"}]}
    ended = run(tiny_study(tmp_path, **settings))
    assert ended.code == 0, ended.text
    of_the_row = ("import_published", "measure", "infer", "evaluate", "pictures")
    assert ended.jobs() == dict.fromkeys((*of_the_row, "table", "plots", "pages"), 1)
    folders = [tmp_path / RUN, tmp_path / "results" / "tiny" / "published" / "lvis_v0.5_r50"]
    trained, here = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert here == trained
    weights = [torch.load(folder / "model.pth", weights_only=True)["state_dict"] for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    lines = list(csv.DictReader((tmp_path / "results" / "tiny" / "table.csv").read_text().splitlines()))
    assert [line["source"] for line in lines] == ["trained here", "published", "published, re-scored here"]
    assert [lacking(lines[0]), lines[1]["missing"], lacking(lines[2])] == ["", "", ""]
    assert lines[2]["box_AP"] == lines[0]["box_AP"]
    assert float(lines[2]["box_AP_difference"]) == pytest.approx(trained["bbox"]["AP"] - 0.125)
    named = f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})"
    assert named in (tmp_path / "results" / "tiny" / "table.md").read_text()
    assert "Nothing to be done" in run(tiny_study(tmp_path, **settings)).text
