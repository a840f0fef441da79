"""The results table says what was measured, how to read it, and in each empty cell why it is empty."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lvis_rcnn.config.study import Study
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.matches import FORMAT, VERSION
from lvis_rcnn.reporting import difference_plots
from lvis_rcnn.reporting.difference_plots import write_row_differences
from lvis_rcnn.reporting.differences import paired_tests
from lvis_rcnn.reporting.notes import titled
from lvis_rcnn.reporting.rows import rows_of, schedule_name
from lvis_rcnn.reporting.table import in_latex
from lvis_rcnn.runs.records import read_run
from tests.helpers.study_records import (
    MINI,
    PAGE,
    failures_of,
    point,
    put,
    put_infer,
    put_log,
    put_measured,
    put_metrics,
    put_progress,
    put_run,
    put_so_far,
    put_speed,
    put_train,
    reason_of,
    shows,
    study_with,
    table_of,
    written,
)


def test_a_finished_study_fills_the_columns_of_the_page(tmp_path):
    study = study_with(("r50", "x101_64x4d"), schedule={**read_yaml(MINI)["schedule"], "steps": 300})
    for backbone in study.backbones:
        put_run(tmp_path, study, backbone)
    rows = table_of(written(tmp_path, study))
    page = ["Mem (GB), resident" if title == "Mem (GB)" else title for title in PAGE]
    assert list(rows[0]) == [*page, "APr", "APc", "APf", "Images seen", "CPU-hours"]
    assert [row["Backbone"] for row in rows] == ["R-50-FPN", "X-101-64x4d-FPN"]
    shown = [text.strip("*") for text in rows[0].values()]
    assert shown[1:7] == ["pytorch", "300 steps", "0.88", "12.3", "12.3", "6.2"]
    assert shown[8:] == ["1.0", "2.0", "3.0", "1200", "0.25"]
    stem = "mini/r50/seed0/mask_rcnn_r50_mini_seed0_20261123_120000"
    assert rows[0]["Download"] == f"[model]({stem}-1a2b3c4d.pth) &#124; [log]({stem}.log.json)"


def of_protocol(ap, line, **more):
    """What metrics.json holds of a further protocol."""
    values = dict.fromkeys(METRIC_NAMES[:9], ap)
    section = {"title": "a title", "protocol": line, "images": 3, "per_category": []} | more
    return section | {"bbox": values, "segm": {**values, "APr": None}, "intervals": {"resamples": 7, "bbox": {}}}


def test_each_protocol_is_a_group_of_columns_that_the_table_names(tmp_path):
    study = study_with(evaluation={"protocols": ["fixed", "minival", "boundary"]})
    folder = put_run(tmp_path, study)
    assert reason_of(tmp_path, study) == "outdated: the settings changed since"
    found = {name: of_protocol(ap, f"line of {name}") for name, ap in (("fixed", 0.2), ("minival", 0.3))}
    found["fixed"]["intervals"]["bbox"] = {"AP": (0.1, 0.3)}
    found["boundary"] = {key: value for key, value in of_protocol(0.1, "line of boundary").items() if key != "bbox"}
    put_metrics(folder, protocols=found)
    table = written(tmp_path, study)
    (row,) = table_of(table)
    groups = {
        f"AP-fixed of {study.inference.detections_per_image} an image": ["20.0 [10.0, 30.0]", "20.0"],
        "minival": ["30.0", "30.0"],
        "Boundary AP": ["10.0"],
    }
    expected = {
        f"{title}: {name}": text
        for title, values in groups.items()
        for name, text in zip(
            ["box AP", "mask AP", "APr", "APc", "APf"][-3 - len(values) :],
            [*values, "undefined: nothing annotated", values[-1], values[-1]],
            strict=True,
        )
    }
    assert {name: text for name, text in row.items() if ":" in name} == expected
    assert "minival, of the same detections: line of minival." in table.read_text()
    (record,) = json.loads(table.with_suffix(".json").read_text())["rows"]
    assert record["measures"]["fixed_box_AP"] == {
        **{"mean": 0.2, "sd": None, "seeds": {"0": 0.2}},
        **{"intervals": {"0": [0.1, 0.3]}, "interval": [0.1, 0.3]},
    }
    assert "boundary_box_AP" not in record["measures"]
    (line,) = csv.DictReader(table.with_suffix(".csv").read_text().splitlines())
    assert (line["minival_mask_AP50"], line["fixed_box_AP_low"]) == ("0.3", "0.1")


def test_ap_so_far_stands_below_the_table_until_the_run_is_scored(tmp_path):
    study = study_with(evaluation={"score_at_steps": [120, 180]})
    put_progress(tmp_path, study)
    points = [point(study, 120, 0.1), point(study, 180, 0.25, images=60)]
    put_so_far(tmp_path, study, *points)
    table, line = (
        written(tmp_path, study),
        "R-50-FPN, step 180 (epoch 1.5): box AP 25.0, mask AP 12.5, on 60 of 100 images",
    )
    assert table_of(table)[0]["Mem (GB)"] == "running 63 %"
    # Of 60 of 100 images, but the study asks for all.
    assert (
        "Unfinished, AP so far: R-50-FPN, step 120 (epoch 1): box AP 10.0, mask AP 5.0, on 100 images.\n"
        in table.read_text()
    )
    (record,) = json.loads(table.with_suffix(".json").read_text())["rows"]
    assert record["so_far"] == {"0": points[:1]}
    some = study_with(evaluation={"score_at_steps": [120, 180], "score_images": 60})
    assert f"Unfinished, AP so far: {line}.\n" in written(tmp_path, some).read_text()
    put_so_far(tmp_path, study, *points, state="of another training")
    assert "AP so far" not in written(tmp_path, study).read_text()
    put_so_far(tmp_path, study, *points)
    put_run(tmp_path, study)
    assert "AP so far" not in written(tmp_path, study).read_text()


def test_title_and_provenance_say_what_the_numbers_are(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    lines = written(tmp_path, study).read_text().splitlines()
    assert lines[0].startswith("# mini (")
    (line,) = [line for line in lines if line.startswith("Study mini")]
    for fact in (
        *("seed 0", "code 0.1.0-aaaa1111", "data 01234567 (train), 89abcdef (val)", "torch 2.15.0"),
        *("torchvision 0.29.2", "trained on cpu", "threads 2", "fp32", "1200", "2026-11-23"),
        *("AP: LVIS, lvis 0.5.3, 300 detections an image", "short edge 104 px", "8 images", "20 images"),
        *("peak resident memory of the training process", "images a second, one at a time"),
    ):
        assert fact in line


@pytest.mark.parametrize(
    ("title", "expected"),
    [("LVIS v0.5", "LVIS v0.5 (mini)"), ("minimal", "minimal (mini)"), ("a mini study", "a mini study")],
)
def test_the_title_names_the_study(title, expected):
    assert titled(study_with(title=title)) == expected


@pytest.mark.parametrize("place", ["table.md", "mini/table.md", "elsewhere/deep/page.md"])
@pytest.mark.parametrize("base_url", [None, "https://example.org/runs/"])
def test_links_lead_from_the_table_to_files_or_below_a_base_url(tmp_path, place, base_url):
    study = study_with(report={"base_url": base_url})
    put_run(tmp_path, study)
    links = re.findall(r"\]\(([^)]+)\)", written(tmp_path, study, tmp_path / place).read_text())
    assert len(links) == 2
    if base_url:
        assert all(link.startswith(f"{base_url}mini/r50/seed0/mask_rcnn_") for link in links)
    else:
        assert all(((tmp_path / place).parent / link).is_file() for link in links)


def test_a_linked_file_that_is_gone_is_named(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    next(folder.glob("*.log.json")).unlink()
    assert reason_of(tmp_path, study, "Download").startswith("missing file: mask_rcnn_r50_mini_seed0")
    assert reason_of(tmp_path, study) == "6.2"


def test_nothing_started(tmp_path):
    (row,) = table_of(written(tmp_path, study_with()))
    assert list(row.values())[3:] == ["not started", *"-" * 9]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({}, "running 63 %"),
        ({"age_s": 301}, "stalled at 63 %"),
        ({"state": "stopped"}, "stopped at 63 %"),
        ({"state": "done", "step": 300}, "waiting for inference"),
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
    assert reason_of(tmp_path, study) == "failed"
    assert failures_of(tmp_path, study) == r"Failed: R-50-FPN: loss is nan \| image 17."
    put_progress(tmp_path, study, age_s=10, digest="again")
    assert reason_of(tmp_path, study) == "running 63 %"


def test_without_a_log_the_heartbeat_says_why_a_training_failed_and_a_person_who_stops_it_is_no_failure(tmp_path):
    study = study_with()
    put_progress(tmp_path, study, state="failed", error="no memory at step 7")
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN: no memory at step 7."
    put_log(tmp_path, study, "train_r50_seed0", "2026-11-23 12:00:01 error: interrupted\n")
    put_progress(tmp_path, study, state="stopped")
    assert reason_of(tmp_path, study) == "stopped at 63 %"


def test_a_long_error_stands_once_below_the_table_and_one_in_the_middle_of_a_log_is_no_failure(tmp_path):
    study = study_with()
    put_log(tmp_path, study, "train_r50_seed0", "error: early\n2026-11-23 12:00:01 going on\n")
    assert reason_of(tmp_path, study) == "not started"
    put_log(tmp_path, study, "train_r50_seed0", "error: " + "word " * 120)
    (row,) = table_of(written(tmp_path, study))
    assert list(row.values())[3:] == ["failed", *"-" * 9]
    assert failures_of(tmp_path, study) == f"Failed: R-50-FPN: {'word ' * 119}word."
    assert (tmp_path / "table.md").read_text().count("word word") == 60


@pytest.mark.parametrize("step", ["draw", "store_train", "store_val", "preflight", "repeat_factors"])
def test_the_failure_of_a_shared_step_explains_all_rows(tmp_path, step):
    study = study_with(("r50", "r101"))
    put_log(tmp_path, study, step, "2026-11-23 12:00:01 error: 3 images are missing\n")
    rows = table_of(written(tmp_path, study))
    assert [list(row.values())[3:5] for row in rows] == [["failed", "-"]] * 2
    assert failures_of(tmp_path, study) == f"Failed: R-50-FPN, R-101-FPN: {step}: 3 images are missing."


def test_steps_after_training_wait_or_fail_by_themselves(tmp_path):
    study = study_with()
    folder = put_train(tmp_path, study)
    assert reason_of(tmp_path, study) == "waiting for inference"
    columns = ("Mem (GB)", "Inf time (fps), images/s")
    assert {reason_of(tmp_path, study, column) for column in columns} == {"waiting for the measurement"}
    put_log(tmp_path, study, "measure_r50", "2026-11-23 12:00:01 error: a step is too large\n")
    assert {reason_of(tmp_path, study, column) for column in columns} == {"failed"}
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN: measure: a step is too large."
    put_measured(folder.parent, study)
    assert [reason_of(tmp_path, study, column) for column in columns] == ["0.88", "12.3"]
    put_log(tmp_path, study, "infer_r50_seed0", "2026-11-23 12:00:01 error: no memory\n")
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN: infer: no memory."
    put_infer(folder, study)
    assert reason_of(tmp_path, study) == "waiting for scoring"
    put_log(tmp_path, study, "evaluate_r50_seed0", "2026-11-23 12:00:01 error: damaged shard\n")
    assert reason_of(tmp_path, study) == "failed"
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN: evaluate: damaged shard."


def test_numbers_of_different_devices_are_marked(tmp_path):
    study = study_with(("r50", "r101", "x101_32x4d"))
    for backbone in study.backbones:
        folder = put_run(tmp_path, study, backbone)
        put_measured(folder.parent, study, device={"r101": "NVIDIA H100"}.get(backbone, "cpu"))
    rows = table_of(written(tmp_path, study))
    assert [row["Mem (GB)"] for row in rows] == ["0.88", "0.88†", "0.88"]  # not all resident
    assert [row["Inf time (fps), images/s"] for row in rows] == ["12.3", "12.3†", "12.3"]
    page = (tmp_path / "table.md").read_text()
    assert "Compare Mem only where marked alike: unmarked cpu, resident memory; † NVIDIA H100." in page
    assert "Compare Inf time only where marked alike: unmarked cpu; † NVIDIA H100." in page
    put_run(tmp_path, study, "r101")
    assert "†" not in written(tmp_path, study).read_text()


def test_a_run_that_is_being_repeated_does_not_show_its_old_ap(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    (folder / "train.json").unlink()
    put_progress(tmp_path, study)
    (row,) = table_of(written(tmp_path, study))
    assert list(row.values())[3:] == ["running 63 %", *"-" * 9]


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
    assert reason_of(tmp_path, study, "Inf time (fps), images/s") == "outdated: trained again since"
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
    assert (row["box AP"], row["Mem (GB), resident"]) == ("13.0 ± 3.6", "0.88")
    assert "seed0/" in row["Download"]
    assert re.search("standard deviation over 3 seeds", (tmp_path / "table.md").read_text())


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
    assert re.search(r"95 % interval of the mean AP .*\(1,000 resamples\)", (tmp_path / "table.md").read_text())
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


def resampled(mean: float, deviation: float) -> np.ndarray:
    """A thousand resamples of every metric with exactly this mean and standard deviation."""
    values = np.random.default_rng(1).standard_normal(1000)
    values = (values - values.mean()) / values.std(ddof=1)
    return np.tile((mean + deviation * values)[:, None], (1, len(METRIC_NAMES)))


def test_a_mean_over_seeds_has_an_interval_over_images_and_seeds(tmp_path):
    samples = resampled(0.2, 0.01)
    intervals = {"resamples": 1000, "bbox": {}, "segm": {}}

    def box_ap(folder: Path, *aps: float) -> tuple[str, list[float]]:
        study = study_with(seeds=tuple(range(len(aps))))
        for seed, ap in enumerate(aps):
            run = put_run(folder, study, seed=seed, ap=ap)
            put_metrics(run, ap=ap, intervals=intervals, detections_sha256="d")
            put_resampled(run, samples)
        mean, _, interval = table_of(written(folder, study))[0]["box AP"].partition(" [")
        return mean, [float(bound) for bound in interval.strip("]").split(", ")]

    # The seeds agree: what is left is the interval over the images, 2.09 standard deviations of the resamples.
    mean, interval = box_ap(tmp_path / "agree", 0.2, 0.2, 0.2)
    assert (mean, interval) == ("20.0 ± 0.0", [17.9, 22.1])
    page = (tmp_path / "agree" / "table.md").read_text()
    assert re.search("1,000 resamples.*variance between seeds", page)
    # They differ as well: a standard error of 1.0 point more, 1.41 in all, with 7.3 degrees of freedom, t = 2.35.
    mean, interval = box_ap(tmp_path / "differ", 0.18268, 0.2, 0.21732)
    assert (mean, interval) == ("20.0 ± 1.7", [16.7, 23.3])
    record = json.loads((tmp_path / "differ" / "table.json").read_text())["rows"][0]["measures"]["box_AP"]
    assert [round(100 * bound, 1) for bound in record["interval"]] == interval
    # Without the resamples of a seed there is no interval, and the reason stands below the table.
    put_metrics(tmp_path / "agree" / "mini" / "r50" / "seed1", ap=0.2, intervals=intervals, detections_sha256="e")
    (row,) = table_of(written(tmp_path / "agree", study_with(seeds=(0, 1, 2))))
    assert row["box AP"] == "20.0 ± 0.0"
    page = (tmp_path / "agree" / "table.md").read_text()
    assert re.search(
        r"R-50-FPN: no interval, since .*seed1/matches.npz: belongs to other detections.*; fix: score", page
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "seed1/matches.npz: damaged file of match results"),
        (lambda file: file.unlink(), "seed1/matches.npz: no such file"),
        (lambda file: put_metrics(file.parent, annotations_sha256="0"), "seeds are scored on different annotations"),
    ],
)
def test_why_a_mean_has_no_interval_stands_below_the_table(tmp_path, damage, reason):
    study = study_with(seeds=(0, 1, 2))
    for seed in study.seeds:
        run = put_run(tmp_path, study, seed=seed)
        put_metrics(run, intervals={"resamples": 1000, "bbox": {}, "segm": {}}, detections_sha256="d")
        put_resampled(run, np.zeros((1000, len(METRIC_NAMES))))
    assert "no interval" not in written(tmp_path, study).read_text()
    damage(tmp_path / "mini" / "r50" / "seed1" / "matches.npz")
    assert reason in written(tmp_path, study).read_text().partition("R-50-FPN: no interval, since ")[2]


@pytest.mark.parametrize(
    ("kept", "says"), [(40, "The detector kept at most 40 detections an image; 300 would"), (300, "")]
)
def test_the_caption_says_how_many_detections_the_detector_kept(tmp_path, kept, says):
    study = study_with(inference={**read_yaml(MINI)["inference"], "detections_per_image": kept})
    put_run(tmp_path, study)
    page = written(tmp_path, study).read_text()
    assert ("The detector kept" in page, says in page) == (kept < 300, True)
    assert json.loads((tmp_path / "table.json").read_text())["provenance"]["detections_kept"].startswith(says)


def test_too_few_resamples_are_said(tmp_path):
    study = study_with()
    folder = put_run(tmp_path, study)
    for resamples, says in ((20, "No intervals (20 resamples: too few"), (1000, "(1,000 resamples)")):
        bounds = [0.1, 0.2] if resamples >= 200 else None
        put_metrics(folder, intervals={"resamples": resamples, "bbox": {"AP": bounds}, "segm": {}})
        assert says in written(tmp_path, study).read_text()


def test_a_speed_of_some_masks_is_marked_and_a_slow_one_is_not_zero(tmp_path):
    study = study_with(("r50", "r101"), inference={**read_yaml(MINI)["inference"], "masks": "scored"})
    for backbone in study.backbones:
        put_run(tmp_path, study, backbone)
    # R-50 was measured before measurements said which masks they timed: then those of the setting.
    old = json.loads((tmp_path / "mini" / "r50" / "measure.json").read_text())["inference"]
    put_measured(tmp_path / "mini" / "r101", study, inference={**old, "fps": 0.04, "masks": "all"})
    speeds = [row["Inf time (fps), images/s"] for row in table_of(written(tmp_path, study))]
    page = (tmp_path / "table.md").read_text()
    assert speeds == ["12.3", "0.040†"]
    assert "unmarked cpu, only the masks that are scored; † cpu." in page
    assert ("5, scored masks" in page, "5, all masks" in page) == (True, True)


SPEED = "Inf time (fps), images/s of CPU time"


def put_speeds(results: Path, milliseconds: dict[str, tuple[float, float, float]]) -> Study:
    """Rows with these quartiles of the time of an image."""
    study = study_with(tuple(milliseconds))
    for backbone, of_row in milliseconds.items():
        put_run(results, study, backbone)
        put_speed(results / "mini" / backbone, study, of_row)
    return study


def test_a_speed_within_the_spread_of_another_row_is_marked(tmp_path):
    study = put_speeds(tmp_path, {"r50": (500, 550, 600), "r101": (590, 540, 640), "x101_64x4d": (700, 800, 900)})
    page = written(tmp_path, study)
    # R-50 is printed as slower than R-101, whose quartiles overlap; both are faster than X-101-64x4d.
    assert [row[SPEED] for row in table_of(page)] == ["1.8 (1.7-2.0)≈", "1.9 (1.6-1.7)≈", "1.2 (1.1-1.4)"]
    assert "≈ = its range over images overlaps that of another row" in page.read_text()
    first, _, last = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert first["measures"]["fps"]["quartiles"] == pytest.approx([1 / 0.6, 2])
    assert last["measures"]["fps"]["seeds"] == {"0": 1.25}
    with page.with_suffix(".csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["fps_q3"]) == 2


def test_a_slow_image_that_moves_the_mean_out_of_the_quartiles_counts_as_spread(tmp_path):
    study = put_speeds(tmp_path, {"r50": (500, 550, 600), "x101_64x4d": (700, 750, 800)})
    put_speed(tmp_path / "mini" / "r50", study, (500, 550, 600), fps=1.2)
    # The mean of R-50 is slower than that of X-101, its quartiles are faster: the order is not known.
    assert [row[SPEED] for row in table_of(written(tmp_path, study))] == ["1.2 (1.7-2.0)≈", "1.3 (1.2-1.4)≈"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"other_cores": 1.2}, "other processes used 1.2 of 2 cores"),
        ({"cpu_per_wall": 0.76}, "the process had a core for 76 % of the time"),
    ],
)
def test_a_speed_beside_other_work_is_no_number(tmp_path, changes, reason):
    study = put_speeds(tmp_path, {"r50": (500, 550, 600), "r101": (510, 560, 610)})
    put_speed(tmp_path / "mini" / "r50", study, (500, 550, 600), **changes)
    page = written(tmp_path, study)
    assert [row[SPEED] for row in table_of(page)] == ["other work ran", "1.8 (1.6-2.0)"]
    assert [row["Mem (GB), resident"] for row in table_of(page)] == ["0.88", "0.88"]
    assert f"No Inf time where other work ran during the measurement: R-50-FPN ({reason})." in page.read_text()
    assert "delete measure.json of the row and start Snakemake" in page.read_text()
    first = json.loads(page.with_suffix(".json").read_text())["rows"][0]["measures"]["fps"]
    assert first == {"mean": None, "sd": None, "seeds": {"0": None}, "other_work": reason}
    with page.with_suffix(".csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert (line["fps"], line["missing"]) == ("", f"other work ran while fps was measured: {reason}")


def test_speeds_of_different_clocks_are_marked_and_an_older_one_stays_a_number(tmp_path):
    study = put_speeds(tmp_path, {"r50": (500, 550, 600), "r101": (510, 560, 610)})
    put_measured(tmp_path / "mini" / "r50", study)
    page = written(tmp_path, study)
    assert [row["Inf time (fps), images/s"] for row in table_of(page)] == ["12.3", "1.8 (1.6-2.0)†"]
    assert "Compare Inf time only where marked alike: unmarked cpu; † cpu, CPU time." in page.read_text()


def test_rows_whose_initial_weights_saw_validation_images_say_so(tmp_path):
    model = {**read_yaml(MINI)["model"], "weights": "coco"}
    study = study_with(model=model)
    put_run(tmp_path, study)
    usual = written(tmp_path, study)
    assert "unseen images" not in usual.read_text()
    assert "images_seen_before" not in json.loads(usual.with_suffix(".json").read_text())["rows"][0]
    put(tmp_path / "mini" / "preflight.json", {"facts": {"val_images_seen_by_initial_weights": 15000}})
    page = written(tmp_path, study)
    assert table_of(page)[0]["Backbone"] == "R-50-FPN ¹"
    assert "¹ AP is not of unseen images: training began with the weights of a COCO detector" in page.read_text()
    assert "trained on 15,000 of the validation images." in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["rows"][0]["images_seen_before"] == 15000
    with page.with_suffix(".csv").open(newline="") as file:
        assert [row["images_seen_before"] for row in csv.DictReader(file)] == ["15000"]


def test_the_csv_says_why_a_measurement_is_missing(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    (tmp_path / "mini" / "r50" / "measure.json").unlink()
    put_log(tmp_path, study, "measure_r50", "error: no device\n")
    with written(tmp_path, study).with_suffix(".csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["memory_gb"], line["missing"]) == ("", "seed 0: measure: failed: no device")


def put_rows(results: Path, aps: dict[str, list[float]], apart: float = 0.002) -> Study:
    """Scored rows with these AP of their seeds, whose resamples move together but for this standard deviation."""
    study = study_with(tuple(aps), seeds=tuple(range(max(map(len, aps.values())))))
    together = resampled(0, 0.03)
    for place, (backbone, of_seeds) in enumerate(aps.items()):
        for seed, ap in enumerate(of_seeds):
            run = put_run(results, study, backbone, seed=seed)
            same = dict.fromkeys(METRIC_NAMES, ap)
            intervals = {"resamples": 1000, "bbox": {}, "segm": {}}
            put_metrics(run, bbox=same, segm=same, intervals=intervals, detections_sha256="d")
            put_resampled(run, together + np.roll(resampled(ap, apart), 100 * place + 10 * seed, axis=0))
    return study


def test_bold_is_what_is_shown_to_be_better_than_every_other_row(tmp_path):
    # Images cancel out: 1 point is 3.5 standard errors of a difference, 0.1 points are a third of one.
    study = put_rows(tmp_path, {"r50": [0.2], "r101": [0.21], "x101_32x4d": [0.199]})
    rows = table_of(written(tmp_path, study))
    assert [row["box AP"].split()[0] for row in rows] == ["20.0", "**21.0**", "19.9"]
    # All metrics are equal here: AP of common categories is not tested, so nothing is shown of it.
    assert [("**" in row["APr"], "**" in row["APc"]) for row in rows] == [(False, False), (True, False), (False, False)]
    page = (tmp_path / "table.md").read_text()
    assert "Shown to differ (paired test over the same images, p &lt; 0.05 after Holm's correction for 9 tests)" in page
    assert "box AP: R-101-FPN over X-101-32x4d-FPN (+1.1), R-50-FPN (+1.0);" in page
    assert "R-50-FPN over" not in page
    assert "other seeds may differ" in page
    assert "*" not in (tmp_path / "table.csv").read_text()


def test_the_table_for_latex_has_the_same_cells_and_escapes_what_latex_reads(tmp_path):
    study = put_rows(tmp_path, {"r50": [0.2], "r101": [0.21], "x101_32x4d": [0.199]})
    study = study.model_copy(update={"title": "50 % of {mini} & more_"})
    page = table_of(written(tmp_path, study))
    lines = (tmp_path / "table.tex").read_text().splitlines()
    table = [line for line in lines if not line.startswith("%")]
    assert table[:2] == [rf"\begin{{tabular}}{{{'l' * (len(page[0]) - 1)}}}", r"\toprule"]
    assert (table[3], table[-2:]) == (r"\midrule", [r"\bottomrule", r"\end{tabular}"])
    head, *body = (
        [cell.strip() for cell in line.removesuffix(r" \\").split(" & ")] for line in (table[2], *table[4:-2])
    )
    assert head == [title for title in page[0] if title != "Download"]  # links to files are of no use on paper
    of_box = head.index("box AP")
    assert [cells[of_box].partition(" ")[0] for cells in body] == ["20.0", r"\textbf{21.0}", "19.9"]
    assert body[1][head.index("Lr schd")] == page[1]["Lr schd"]
    assert lines[0] == r"% 50 % of {mini} & more_. Needs \usepackage{booktabs}."
    assert in_latex("a_b & 5 % ±≈ <\\[1] #$~^") == (
        r"a\_b \& 5 \% $\pm$$\approx$ $<$\textbackslash{}{[}1{]} \#\$\textasciitilde{}\textasciicircum{}"
    )


def test_the_plot_of_differences_has_every_two_rows_and_fills_what_is_shown(tmp_path, monkeypatch):
    study = put_rows(tmp_path, {"r50": [0.2], "r101": [0.21], "x101_32x4d": [0.199]})
    rows, drawn = rows_of(study, tmp_path, {}), []
    monkeypatch.setattr(
        difference_plots,
        "draw_pair",
        lambda axes, place, test, sign: drawn.append((test.name, place, round(sign * test.points, 1), test.is_shown)),
    )
    write_row_differences(rows, tmp_path)
    text = (tmp_path / "row_differences.svg").read_text()
    assert [shows(text, f"minus {name}") for name in ("R-50-FPN", "R-101-FPN", "X-101-32x4d-FPN")] == [
        True,
        True,
        False,
    ]
    assert "after Holm's correction for 9 tests" in text
    # R-101 minus minus minus R-101.
    assert sorted(one for one in drawn if one[0] == "box_AP") == [
        ("box_AP", 0, 1.0, True),
        ("box_AP", 1, -0.1, False),
        ("box_AP", 2, -1.1, True),
    ]
    for test in paired_tests(rows):
        assert test.interval[0] < test.points < test.interval[1]
        assert test.points > 0


def test_one_row_has_no_differences(tmp_path):
    write_row_differences(rows_of(put_rows(tmp_path, {"r50": [0.2]}), tmp_path, {}), tmp_path)
    text = (tmp_path / "row_differences.svg").read_text()
    assert shows(text, "fewer than two rows can be compared: scored, with resamples")


def test_no_row_is_called_better_by_chance_or_without_a_test(tmp_path):
    page = written(tmp_path / "near", put_rows(tmp_path / "near", {"r50": [0.2], "r101": [0.201]})).read_text()
    assert "No two rows are shown to differ (paired" in page
    assert "**" not in page
    two = written(tmp_path / "two", put_rows(tmp_path / "two", {"r50": [0.2, 0.21], "r101": [0.4, 0.41]})).read_text()
    assert "not tested: two seeds cannot show how much seeds vary" in two
    assert "Two seeds have no interval" in two
    assert "**" not in two
    three = {"r50": [0.2, 0.205, 0.21], "r101": [0.4, 0.405, 0.41]}
    page = written(tmp_path / "three", put_rows(tmp_path / "three", three)).read_text()
    assert "mask APr: R-101-FPN over R-50-FPN (+20.0)" in page
    assert "other seeds" not in page
    one = study_with(("r50", "r101"))
    put_run(tmp_path / "one", one, "r50", ap=0.2)
    assert "differ" not in written(tmp_path / "one", one).read_text()


@pytest.mark.parametrize(
    ("seeds", "aps", "expected"),
    [
        ((0,), [0.27], "27.0 (published 26.1, +0.9)"),
        # t of 97.5 % with n - 1 degrees of freedom, times the deviation, times sqrt(1 + 1/n): 2.2 and 0.7 points.
        ((0, 1), [0.269, 0.271], "27.0 ± 0.1 (published 26.1, +0.9)"),
        ((0, 1, 2), [0.2686, 0.27, 0.2714], "27.0 ± 0.1 (published 26.1, +0.9 !)"),
    ],
)
def test_a_training_of_the_published_recipe_is_compared_with_what_was_published(tmp_path, seeds, aps, expected):
    schedule = {key: value for key, value in read_yaml(MINI)["schedule"].items() if key not in ("steps", "policy")}
    dataset = {**read_yaml(MINI)["dataset"], "name": "lvis_v0.5"}
    study = study_with(seeds=seeds, dataset=dataset, schedule={**schedule, "policy": "step", "epochs": 24})
    for seed, ap in zip(seeds, aps, strict=True):
        put_run(tmp_path, study, seed=seed, ap=ap)
    assert reason_of(tmp_path, study, "box AP") == expected
    noise = "prediction interval of one more seed" if len(seeds) > 1 else "not told from one seed"
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
    put_log(tmp_path, study, "train_r50_seed1", "error: no memory\n")
    assert reason_of(tmp_path, study) == "seed 0: running 63 %; seed 1: failed"
    assert failures_of(tmp_path, study) == "Failed: R-50-FPN seed 1: no memory."


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"policy": "step", "epochs": 24}, "2x"),
        ({"policy": "step", "epochs": 12}, "1x"),
        ({"policy": "step", "epochs": 7}, "7 epochs"),
        ({"policy": "one_cycle", "epochs": 12}, "12 epochs"),
        ({"policy": "one_cycle", "steps": 300}, "300 steps"),
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
    names = [f"partial_table.{suffix}" for suffix in ("csv", "json", "md", "tex")]
    assert sorted(path.name for path in tmp_path.rglob("*table*")) == names


def test_the_same_runs_give_the_same_bytes_whenever_they_are_read(tmp_path):
    study = study_with()
    put_run(tmp_path, study)
    first = written(tmp_path, study).read_bytes()
    assert written(tmp_path, study).read_bytes() == first


def test_the_records_of_the_first_missing_step_explain_the_rest(tmp_path):
    study = study_with()
    put_train(tmp_path, study)
    run = read_run(study, tmp_path, "r50", 0)
    assert list(run.records) == ["train"]
    assert run.missing == {"infer": "waiting for inference", "evaluate": "waiting for inference"}
