import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvis_rcnn.report as report
from lvis_rcnn.config.study import DEFAULT_ZOO, Study, check_study, read_yaml, settings_digest
from lvis_rcnn.config.zoo import load_zoo
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.matches import FORMAT, VERSION
from lvis_rcnn.reporting.rows import schedule_name
from lvis_rcnn.reporting.table import titled, write_tables
from lvis_rcnn.runs.records import read_run

MINI = Path(__file__).parents[2] / "configs" / "mini.yaml"
ZOO = load_zoo(DEFAULT_ZOO)
NOW_S = 2_000_000_000.0
PAGE = ["Backbone", "Style", "Lr schd", "Mem (GB)", "Inf time (fps)", "box AP", "mask AP", "Download"]


def study_with(backbones: tuple[str, ...] = ("r50",), seeds: tuple[int, ...] = (0,), **sections: Any) -> Study:
    values = {**read_yaml(MINI), "backbones": list(backbones), "seeds": list(seeds), **sections}
    return check_study(values, where="study.yaml")


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def put_train(results: Path, study: Study, backbone: str = "r50", seed: int = 0, **changes: Any) -> Path:
    """A finished training, as its step leaves it."""
    folder = results / study.study / backbone / f"seed{seed}"
    stem = f"mask_rcnn_{backbone}_mini_seed{seed}_20261123_120000"
    record = {
        "settings_digest": settings_digest(study, "train"),
        "memory_gb": 0.876,
        "memory_definition": "peak resident memory of the training process",
        "device": "cpu",
        "threads": 2,
        "precision": "fp32",
        "resolution": "short edge 88, 96, 104 px",
        "images_seen": 1200,
        "cost": {"starts": 1, "gpu_hours": 0.0, "cpu_hours": 0.25, "waited_s": 0.0},
        "finished_at": "2026-11-23T12:00:00+00:00",
        "annotations_sha256": "0123456789abcdef",
        "code_version": "0.1.0-aaaa1111",
        "versions": {"python": "3.11.9", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6"},
        "model_sha256": "feed",
        "model_file": f"{stem}-1a2b3c4d.pth",
        "log_file": f"{stem}.log.json",
        **changes,
    }
    put(folder / record["model_file"], "weights")
    put(folder / record["log_file"], "lines")
    put(folder / "train.json", record)
    return folder


def put_infer(folder: Path, study: Study, **changes: Any) -> None:
    record = {
        "settings_digest": settings_digest(study, "infer"),
        "detections": 7,
        "device": "cpu",
        "resolution": "short edge 96 px",
        "batch_size": 1,
        "model_sha256": "feed",
    }
    put(folder / "inference.json", {**record, **changes})


def put_measured(folder: Path, study: Study, training: bool = True, **changes: Any) -> None:
    """The measurement of a row; ``folder`` is the row's."""
    of_training = {
        "memory_gb": 0.876,
        "definition": "peak resident memory of the training process",
        "resolution": "short edge 104 px",
        "precision": "fp32 without TF32",
        "steps": 2,
        "images": 8,
    }
    inference = {
        "fps": 12.345,
        "definition": "images a second, one at a time",
        "resolution": "short edge 96 px",
        "precision": "fp32 without TF32",
        "images": 20,
        "warmup_images": 5,
    }
    record = {"settings_digest": settings_digest(study, "measure"), "device": "cpu", "model_sha256": "feed"}
    record |= {"training": of_training if training else None, "inference": inference}
    put(folder / "measure.json", {**record, **changes})


def put_metrics(folder: Path, ap: float = 0.12345, **changes: Any) -> None:
    values = dict.fromkeys(METRIC_NAMES, ap)
    record = {
        "bbox": values,
        "segm": {**values, "AP": ap / 2, "APr": 0.01, "APc": 0.02, "APf": 0.03},
        "protocol": "LVIS, lvis 0.5.3, 300 detections an image, mask sizes from masks",
        "annotations_sha256": "89abcdef01234567",
        "detections_per_image": 300,
    }
    put(folder / "metrics.json", {**record, **changes})


def put_run(results: Path, study: Study, backbone: str = "r50", seed: int = 0, ap: float = 0.12345) -> Path:
    folder = put_train(results, study, backbone, seed)
    put_infer(folder, study)
    put_metrics(folder, ap)
    put_measured(folder.parent, study)
    return folder


def put_progress(results: Path, study: Study, age_s: float = 10, digest: str = "abc", **changes: Any) -> None:
    record = {"step": 189, "steps": 300, "updated_at": NOW_S - age_s, "state": "running", **changes}
    put(results / "state" / study.study / "r50" / "seed0" / digest / "progress.json", record)


def put_log(results: Path, study: Study, name: str, text: str) -> None:
    put(results / study.study / "logs" / f"{name}.log", text)


def written(results: Path, study: Study, out: Path | None = None) -> Path:
    out = out or results / "table.md"
    write_tables(study, ZOO, results, out, NOW_S)
    return out


def table_of(path: Path) -> list[dict[str, str]]:
    """The rows of the first Markdown table of a file, split at bars that are not escaped."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    split = [[text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def reason_of(results: Path, study: Study, column: str = "mask AP") -> str:
    return table_of(written(results, study))[0][column]


def test_a_finished_study_fills_the_columns_of_the_page(tmp_path):
    study = study_with(("r50", "x101_64x4d"), schedule={**read_yaml(MINI)["schedule"], "steps": 300})
    for backbone in study.backbones:
        put_run(tmp_path, study, backbone)
    rows = table_of(written(tmp_path, study))
    assert list(rows[0]) == [*PAGE, "APr", "APc", "APf", "Images seen", "CPU-hours"]
    assert [row["Backbone"] for row in rows] == ["R-50-FPN", "X-101-64x4d-FPN"]
    shown = [text.strip("*") for text in rows[0].values()]
    assert shown[1:7] == ["pytorch", "300 it", "0.88", "12.3", "12.3", "6.2"]
    assert shown[8:] == ["1.0", "2.0", "3.0", "1200", "0.25"]
    stem = "mini/r50/seed0/mask_rcnn_r50_mini_seed0_20261123_120000"
    assert rows[0]["Download"] == f"[model]({stem}-1a2b3c4d.pth) &#124; [log]({stem}.log.json)"


def test_title_and_provenance_say_what_the_numbers_are(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    lines = written(tmp_path, study).read_text().splitlines()
    assert lines[0].startswith("# mini (")
    (line,) = [line for line in lines if line.startswith("Study mini")]
    for fact in (
        *("seed 0", "code 0.1.0-aaaa1111", "data 01234567 (train), 89abcdef (val)", "torch 2.15.0"),
        *("torchvision 0.29.2", "trained on cpu", "threads 2", "fp32", "images seen by a run: 1200", "2026-11-23"),
        "AP: LVIS, lvis 0.5.3, 300 detections an image",
        "Mem: peak resident memory of the training process (cpu; short edge 104 px, fp32 without TF32, 8 images in",
        "Inf time: images a second, one at a time (cpu; short edge 96 px, fp32 without TF32, 20 images after 5)",
    ):
        assert fact in line
    assert "APr, APc, APf: mask AP of rare, common and frequent categories" in lines[-1]


@pytest.mark.parametrize(
    ("title", "expected"),
    [("LVIS v0.5", "LVIS v0.5 (mini)"), ("minimal", "minimal (mini)"), ("a mini study", "a mini study")],
)
def test_the_title_names_the_study(title, expected):
    assert titled(study_with(title=title)) == expected


@pytest.mark.parametrize("place", ["table.md", "mini/table.md", "elsewhere/deep/page.md"])
def test_links_lead_from_the_table_to_files(tmp_path, place):
    study = study_with()
    put_run(tmp_path, study)
    page = written(tmp_path, study, tmp_path / place)
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert len(links) == 2
    assert all((page.parent / link).is_file() for link in links)


def test_a_base_url_replaces_the_folder(tmp_path):
    study = study_with(report={"base_url": "https://example.org/runs/"})
    put_run(tmp_path, study)
    links = re.findall(r"\]\(([^)]+)\)", written(tmp_path, study).read_text())
    assert links
    assert all(link.startswith("https://example.org/runs/mini/r50/seed0/mask_rcnn_") for link in links)


def test_a_linked_file_that_is_gone_is_named(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    next(folder.glob("*.log.json")).unlink()
    assert reason_of(tmp_path, study, "Download").startswith("missing file: mask_rcnn_r50_mini_seed0")
    assert reason_of(tmp_path, study) == "6.2"


def test_nothing_started(tmp_path):
    (row,) = table_of(written(tmp_path, study_with()))
    assert set(list(row.values())[3:]) == {"not started"}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({}, "running 63 %"),
        ({"age_s": 301}, "stopped at 63 %"),
        ({"state": "stopped"}, "stopped at 63 %"),
        ({"state": "done", "step": 300}, "stopped at 100 %"),
    ],
)
def test_a_training_under_way_says_how_far_it_is(tmp_path, progress, expected):
    study = study_with()
    put_progress(tmp_path, study, **progress)
    assert reason_of(tmp_path, study, "Mem (GB)") == reason_of(tmp_path, study) == expected


def test_a_killed_training_of_this_machine_is_not_running(tmp_path):
    study = study_with()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    put_progress(tmp_path, study, host=socket.gethostname(), pid=child.pid)
    assert reason_of(tmp_path, study) == "stopped at 63 %"
    put_progress(tmp_path, study, host=socket.gethostname(), pid=os.getpid())
    assert reason_of(tmp_path, study) == "running 63 %"
    put_progress(tmp_path, study, host="another machine", pid=child.pid)
    assert reason_of(tmp_path, study) == "running 63 %"


def test_the_newest_heartbeat_counts(tmp_path):
    study = study_with()
    put_progress(tmp_path, study, age_s=5000, digest="old", step=299)
    put_progress(tmp_path, study, digest="new", step=30)
    put(tmp_path / "state" / "mini" / "r50" / "seed0" / "damaged" / "progress.json", "{")
    assert reason_of(tmp_path, study) == "running 10 %"


def test_a_failed_training_says_why(tmp_path):
    study = study_with()
    text = "2026-11-23 12:00:00 training\n2026-11-23 12:00:01 error: loss is nan | image 17; fix: wait\n\n"
    put_log(tmp_path, study, "train_r50_seed0", text)
    put_progress(tmp_path, study, age_s=301)
    assert reason_of(tmp_path, study) == r"failed: loss is nan \| image 17"
    put_progress(tmp_path, study, age_s=10, digest="again")
    assert reason_of(tmp_path, study) == "running 63 %"


def test_a_failed_training_without_a_log_says_why_in_its_heartbeat(tmp_path):
    study = study_with()
    put_progress(tmp_path, study, state="failed", error="no memory at step 7")
    assert reason_of(tmp_path, study) == "failed: no memory at step 7"


def test_a_training_that_a_person_stopped_has_not_failed(tmp_path):
    study = study_with()
    put_log(tmp_path, study, "train_r50_seed0", "2026-11-23 12:00:01 error: interrupted\n")
    put_progress(tmp_path, study, state="stopped")
    assert reason_of(tmp_path, study) == "stopped at 63 %"


def test_a_long_reason_is_cut_to_a_cell_and_one_line_in_the_middle_is_no_failure(tmp_path):
    study = study_with()
    put_log(tmp_path, study, "train_r50_seed0", "error: early\n2026-11-23 12:00:01 going on\n")
    assert reason_of(tmp_path, study) == "not started"
    put_log(tmp_path, study, "train_r50_seed0", "error: " + "word " * 50)
    reason = reason_of(tmp_path, study)
    assert len(reason) <= 60
    assert reason.startswith("failed: word word")
    assert reason.endswith("…")


@pytest.mark.parametrize("step", ["draw", "store_train", "store_val", "preflight", "repeat_factors"])
def test_the_failure_of_a_shared_step_explains_all_rows(tmp_path, step):
    study = study_with(("r50", "r101"))
    put_log(tmp_path, study, step, "2026-11-23 12:00:01 error: 3 images are missing\n")
    rows = table_of(written(tmp_path, study))
    assert {row["Mem (GB)"] for row in rows} == {f"failed: {step}: 3 images are missing"}


def test_steps_after_training_wait_or_fail_by_themselves(tmp_path):
    study = study_with()
    folder = put_train(tmp_path, study)
    assert reason_of(tmp_path, study) == "waiting for inference"
    columns = ("Mem (GB)", "Inf time (fps)")
    assert {reason_of(tmp_path, study, column) for column in columns} == {"waiting for the measurement"}
    put_log(tmp_path, study, "measure_r50", "2026-11-23 12:00:01 error: a step is too large\n")
    assert {reason_of(tmp_path, study, column) for column in columns} == {"failed: a step is too large"}
    put_measured(folder.parent, study)
    assert [reason_of(tmp_path, study, column) for column in columns] == ["0.88", "12.3"]
    put_log(tmp_path, study, "infer_r50_seed0", "2026-11-23 12:00:01 error: no memory\n")
    assert reason_of(tmp_path, study) == "failed: no memory"
    put_infer(folder, study)
    assert reason_of(tmp_path, study) == "waiting for scoring"
    put_log(tmp_path, study, "evaluate_r50_seed0", "2026-11-23 12:00:01 error: damaged shard\n")
    assert reason_of(tmp_path, study) == "failed: damaged shard"


def test_numbers_of_different_devices_are_marked(tmp_path):
    study = study_with(("r50", "r101", "x101_32x4d"))
    for backbone in study.backbones:
        folder = put_run(tmp_path, study, backbone)
        put_measured(folder.parent, study, device={"r101": "NVIDIA H100"}.get(backbone, "cpu"))
    rows = table_of(written(tmp_path, study))
    assert [row["Mem (GB)"] for row in rows] == ["0.88", "0.88†", "0.88"]
    assert [row["Inf time (fps)"] for row in rows] == ["12.3", "12.3†", "12.3"]
    text = (tmp_path / "table.md").read_text()
    assert "Mem and Inf time compare only on one device: no mark cpu; † NVIDIA H100." in text
    put_run(tmp_path, study, "r101")
    assert "†" not in written(tmp_path, study).read_text()


def test_a_run_that_is_being_repeated_does_not_show_its_old_ap(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    (folder / "train.json").unlink()
    put_progress(tmp_path, study)
    (row,) = table_of(written(tmp_path, study))
    assert set(list(row.values())[3:]) == {"running 63 %"}


@pytest.mark.parametrize(
    ("name", "text"), [("train.json", "{"), ("inference.json", "[]"), ("metrics.json", '{"bbox": {}}')]
)
def test_a_damaged_record_is_named_in_its_cell(tmp_path, name, text):
    study = study_with()
    put(put_run(tmp_path, study) / name, text)
    assert reason_of(tmp_path, study) == f"unreadable: {name}"


def test_numbers_of_other_settings_or_of_an_older_model_are_not_shown(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    put_metrics(folder, detections_per_image=100)
    assert reason_of(tmp_path, study) == "outdated: the settings changed since"
    put_infer(folder, study, model_sha256="beef")
    assert reason_of(tmp_path, study) == "outdated: trained again since"
    put_infer(folder, study, settings_digest="beef")
    assert reason_of(tmp_path, study) == "outdated: the settings changed since"
    put_measured(folder.parent, study, model_sha256="beef")
    assert reason_of(tmp_path, study, "Inf time (fps)") == "outdated: trained again since"
    put_measured(folder.parent, study, settings_digest="beef")
    assert reason_of(tmp_path, study, "Mem (GB)") == "outdated: the settings changed since"
    put(folder.parent / "measure.json", "{}")
    assert reason_of(tmp_path, study, "Mem (GB)") == "unreadable: measure.json"
    longer = study_with(schedule={**read_yaml(MINI)["schedule"], "steps": 301})
    assert reason_of(tmp_path, longer, "Mem (GB)") == "outdated: the settings changed since"


def test_an_ap_that_no_category_defines_is_said_to_be_undefined(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    put_metrics(folder, segm={**dict.fromkeys(METRIC_NAMES, 0.5), "APr": None})
    assert reason_of(tmp_path, study, "APr") == "undefined: nothing annotated"
    assert reason_of(tmp_path, study, "APc") == "50.0"
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["measures"]["mask_APr"]["mean"] is None


def test_several_seeds_become_mean_and_sample_deviation(tmp_path):
    study = study_with(seeds=(0, 1, 2))
    for seed, ap in enumerate((0.10, 0.12, 0.17)):
        put_run(tmp_path, study, seed=seed, ap=ap)
    (row,) = table_of(written(tmp_path, study))
    assert (row["box AP"], row["Mem (GB)"]) == ("13.0 ± 3.6", "0.88")
    assert "seed0/" in row["Download"]
    assert "Mean ± sample standard deviation over 3 seeds" in (tmp_path / "table.md").read_text()


INTERVALS = {
    "resamples": 1000,
    "level": 0.95,
    "bbox": {"AP": [0.10, 0.1512]},
    "segm": {"AP": [0.05, 0.07], "APr": None},
}


def test_the_interval_of_a_metric_stands_behind_it(tmp_path):
    study = study_with()
    put_metrics(put_run(tmp_path, study), intervals=INTERVALS)
    (row,) = table_of(written(tmp_path, study))
    assert [row[name] for name in ("box AP", "mask AP", "APr")] == ["12.3 [10.0, 15.1]", "6.2 [5.0, 7.0]", "1.0"]
    page = (tmp_path / "table.md").read_text()
    assert "95 % interval over the validation images, from a bootstrap of 1,000 resamples." in page
    measures = json.loads((tmp_path / "table.json").read_text())["rows"][0]["measures"]
    assert measures["box_AP"]["intervals"] == {"0": [0.10, 0.1512]}
    assert "intervals" not in measures["mask_APr"]
    with (tmp_path / "table.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["box_AP_low"], line["box_AP_high"]) == ("0.1", "0.1512")


def put_resampled(folder: Path, samples: np.ndarray) -> None:
    """What a table reads of the match results: the metrics of resamples, here the same of boxes and masks."""
    arrays = {f"{kind}_resampled": samples for kind in ("bbox", "segm")}
    of_file = {"format": np.array(FORMAT), "version": np.array(VERSION), "detections_sha256": np.array("d")}
    np.savez(folder / "matches.npz", **of_file, **arrays)


def test_a_mean_over_seeds_has_an_interval_over_images_and_seeds(tmp_path):
    samples = 0.2 + 0.01 * np.random.default_rng(1).standard_normal((1000, len(METRIC_NAMES)))
    intervals = {"resamples": 1000, "bbox": {}, "segm": {}}

    def box_ap(folder: Path, *aps: float) -> tuple[str, list[float]]:
        study = study_with(seeds=tuple(range(len(aps))))
        for seed, ap in enumerate(aps):
            run = put_run(folder, study, seed=seed, ap=ap)
            put_metrics(run, ap=ap, intervals=intervals, detections_sha256="d")
            put_resampled(run, samples)
        mean, _, interval = table_of(written(folder, study))[0]["box AP"].partition(" [")
        return mean, [float(bound) for bound in interval.strip("]").split(", ")]

    # The seeds agree: what is left is the interval over the images, 1.96 standard deviations of the resamples.
    mean, interval = box_ap(tmp_path / "agree", 0.2, 0.2, 0.2)
    assert (mean, interval) == ("20.0 ± 0.0", pytest.approx([18.04, 21.96], abs=0.2))
    page = (tmp_path / "agree" / "table.md").read_text()
    assert "from a bootstrap of 1,000 resamples; that of a mean over seeds counts their spread, too." in page
    # They differ by more: t with 2 degrees of freedom, 4.3 standard errors of 1.0 point, each way.
    mean, interval = box_ap(tmp_path / "differ", 0.18265, 0.2, 0.21735)
    assert (mean, interval) == ("20.0 ± 1.7", pytest.approx([15.3, 24.7], abs=0.8))
    record = json.loads((tmp_path / "differ" / "table.json").read_text())["rows"][0]["measures"]["box_AP"]
    assert [round(100 * bound, 1) for bound in record["interval"]] == interval
    # Nothing is said where the resamples are of other detections.
    put_metrics(tmp_path / "agree" / "mini" / "r50" / "seed1", ap=0.2, intervals=intervals, detections_sha256="e")
    (row,) = table_of(written(tmp_path / "agree", study_with(seeds=(0, 1, 2))))
    assert row["box AP"] == "20.0 ± 0.0"


def test_the_csv_says_why_a_measurement_is_missing(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    (tmp_path / "mini" / "r50" / "measure.json").unlink()
    put_log(tmp_path, study, "measure_r50", "error: no device\n")
    with written(tmp_path, study).with_suffix(".csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["memory_gb"], line["missing"]) == ("", "seed 0: measure: failed: no device")


def test_the_best_ap_of_rows_of_the_same_data_is_bold_where_there_is_a_choice(tmp_path):
    study = study_with(("r50", "r101", "x101_32x4d"))
    put_run(tmp_path, study, "r50", ap=0.2)
    assert [row["box AP"] for row in table_of(written(tmp_path, study))] == ["20.0", "not started", "not started"]
    put_run(tmp_path, study, "r101", ap=0.1)
    assert [row["box AP"] for row in table_of(written(tmp_path, study))] == ["**20.0**", "10.0", "not started"]
    assert "*" not in (tmp_path / "table.csv").read_text()


@pytest.mark.parametrize(
    ("seeds", "aps", "interval", "expected"),
    [
        ((0,), [0.27], [0.25, 0.29], "27.0 [25.0, 29.0] (published 26.1, +0.9)"),
        ((0,), [0.27], [0.262, 0.29], "27.0 [26.2, 29.0] (published 26.1, +0.9 !)"),
        ((0,), [0.27], None, "27.0 (published 26.1, +0.9)"),
        ((0, 1), [0.26, 0.28], [0.262, 0.29], "27.0 ± 1.4 (published 26.1, +0.9)"),
        ((0, 1), [0.269, 0.271], [0.25, 0.29], "27.0 ± 0.1 (published 26.1, +0.9 !)"),
    ],
)
def test_a_training_of_the_published_recipe_is_compared_with_what_was_published(
    tmp_path, seeds, aps, interval, expected
):
    schedule = {key: value for key, value in read_yaml(MINI)["schedule"].items() if key not in ("steps", "policy")}
    dataset = {**read_yaml(MINI)["dataset"], "name": "lvis_v0.5"}
    study = study_with(seeds=seeds, dataset=dataset, schedule={**schedule, "policy": "step", "epochs": 24})
    for seed, ap in zip(seeds, aps, strict=True):
        folder = put_run(tmp_path, study, seed=seed, ap=ap)
        if interval:
            put_metrics(folder, ap=ap, intervals={"resamples": 1000, "bbox": {"AP": interval}})
    assert reason_of(tmp_path, study, "box AP") == expected
    noise = "two standard deviations over the seeds" if len(seeds) > 1 else "the interval over the validation images"
    assert noise in (tmp_path / "table.md").read_text()


def test_a_mean_says_which_seeds_it_lacks(tmp_path):
    study = study_with(seeds=(0, 1, 2))
    for seed, ap in ((1, 0.1), (2, 0.12)):
        put_run(tmp_path, study, seed=seed, ap=ap)
    put_progress(tmp_path, study)
    (row,) = table_of(written(tmp_path, study))
    assert row["box AP"] == "11.0 ± 1.4 (2 of 3 seeds)"
    assert "seed1/" in row["Download"]
    assert (tmp_path / "table.md").read_text().endswith("R-50-FPN, seed 0: running 63 %.\n")


def test_seeds_that_are_all_missing_give_each_its_reason(tmp_path):
    study = study_with(seeds=(0, 1))
    put_progress(tmp_path, study)
    assert reason_of(tmp_path, study) == "seed 0: running 63 %; seed 1: not started"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"policy": "step", "epochs": 24}, "2x"),
        ({"policy": "step", "epochs": 12}, "1x"),
        ({"policy": "step", "epochs": 7}, "7 ep"),
        ({"policy": "one_cycle", "epochs": 12}, "12 ep"),
        ({"policy": "one_cycle", "steps": 300}, "300 it"),
    ],
)
def test_the_schedule_is_named_from_the_config(changes, name):
    schedule = {key: value for key, value in read_yaml(MINI)["schedule"].items() if key not in ("steps", "policy")}
    assert schedule_name(study_with(schedule={**schedule, **changes}).schedule) == name


def test_json_and_csv_hold_unrounded_numbers_of_every_seed(tmp_path):
    study = study_with(("r50", "r101"), seeds=(0, 1))
    put_run(tmp_path, study, seed=0, ap=0.12345)
    put_run(tmp_path, study, seed=1, ap=0.2)
    table = json.loads(written(tmp_path, study).with_suffix(".json").read_text())
    first, second = table["rows"]
    assert (table["format"], table["version"], table["study"]) == ("lvis_rcnn.table", 1, "mini")
    assert first["measures"]["box_AP"]["seeds"] == {"0": 0.12345, "1": 0.2}
    assert first["measures"]["box_AP"]["mean"] == pytest.approx(0.161725)
    assert first["measures"]["fps"]["mean"] == 12.345
    assert {f"{kind}_{name}" for kind in ("box", "mask") for name in METRIC_NAMES} < set(first["measures"])
    assert second["missing"]["1"] == dict.fromkeys(("train", "infer", "evaluate"), "not started")
    assert second["missing"]["0"] == second["missing"]["1"] | {"measure": "not started"}
    assert (first["measured_on"], second["measured_on"]) == ("cpu", None)
    assert second["model"] == {"0": None, "1": None}
    assert (tmp_path / first["log"]["1"]).is_file()
    assert table["provenance"]["code_version"] == ["0.1.0-aaaa1111"]
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["backbone"] for row in rows] == ["r50", "r101"]
    assert float(rows[0]["box_AP_seed0"]) == 0.12345
    assert float(rows[0]["mask_AP"]) == pytest.approx(0.161725 / 2)
    assert rows[1]["missing"] == "seed 0: not started; seed 1: not started"
    assert (tmp_path / rows[0]["model"]).is_file()


def test_a_table_is_written_where_it_is_asked_for_and_nowhere_else(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    written(tmp_path, study, tmp_path / "mini" / "partial_table.md")
    names = [f"partial_table.{suffix}" for suffix in ("csv", "json", "md")]
    assert sorted(path.name for path in (tmp_path / "mini").glob("*table*")) == names
    assert not list(tmp_path.glob("*table*"))


def test_the_same_runs_give_the_same_bytes(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    first = written(tmp_path, study).read_bytes()
    write_tables(study, ZOO, tmp_path, tmp_path / "table.md", NOW_S + 1e6)
    assert (tmp_path / "table.md").read_bytes() == first


def test_the_records_of_the_first_missing_step_explain_the_rest(tmp_path):
    study = study_with()
    put_train(tmp_path, study)
    run = read_run(study, tmp_path, "r50", 0, NOW_S)
    assert list(run.records) == ["train"]
    assert run.missing == {"infer": "waiting for inference", "evaluate": "waiting for inference"}


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_the_command_shows_the_table_and_where_it_is(tmp_path, monkeypatch, capsys):
    out, log = tmp_path / "table.md", tmp_path / "mini" / "logs" / "table.log"
    run_main(monkeypatch, "table", "--study", MINI, "--results", tmp_path, "--out", out, "--log", log)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"wrote {out} (also .csv and .json)"
    backbones = ["R-50-FPN", "R-101-FPN", "X-101-32x4d-FPN", "X-101-64x4d-FPN"]
    table = lines[[line.split()[:1] for line in lines].index(["Backbone"]) : lines.index("", 2)]
    assert table[0].split() == ["Backbone", *backbones]
    assert re.split(r" {2,}", table[2].strip()) == ["Style", *["pytorch"] * 4]
    assert max(map(len, lines[1:-1])) <= 100
    assert not any(line.startswith("Download") for line in lines)
    assert log.read_text().splitlines()[-1].endswith(lines[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--out": "table.txt"}, "is no Markdown file; allowed: a name that ends in .md"),
        ({"--results": "absent"}, "--results absent: no such folder"),
        ({"--study": "absent.yaml"}, "absent.yaml: no such study file"),
    ],
)
def test_the_command_fails_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = {"--study": os.fspath(MINI), "--results": ".", "--out": "table.md", **arguments}
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, "table", *(text for pair in given.items() for text in pair))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_reporting_needs_neither_torch_nor_snakemake():
    code = "import sys, lvis_rcnn.report; sys.exit(any(name in sys.modules for name in ('torch', 'snakemake', 'lvis')))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
