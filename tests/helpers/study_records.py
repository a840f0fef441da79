"""Records of a study as its steps leave them, small enough to be written by a test."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import DEFAULT_ZOO, Study, check_study, settings_digest
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.config.zoo import load_zoo
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, RECALLS
from lvis_rcnn.reporting.table import write_tables
from tests.conftest import REPOSITORY

MINI = REPOSITORY / "configs" / "mini.yaml"
ZOO = load_zoo(DEFAULT_ZOO)
PAGE = ["Backbone", "Style", "Lr schd", "Mem (GB)", "Inf time (fps), images/s", "box AP", "mask AP", "Download"]
CATEGORIES = [
    {"id": 5, "name": "kite", "frequency": "r", "bbox": 0.1, "segm": 0.2},
    {"id": 2, "name": "cup", "frequency": "r", "bbox": 0.3, "segm": 0.4},
    {"id": 9, "name": "bear", "frequency": "c", "bbox": None, "segm": None},
    {"id": 7, "name": "tree", "frequency": "f", "bbox": 0.5, "segm": 0.75},
]


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
    versions = {"python": "3.11.9", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6"}
    record = {
        "settings_digest": settings_digest(study, "train"), "memory_gb": 0.876, "device": "cpu", "threads": 2,
        "memory_definition": "peak resident memory of the training process", "precision": "fp32", "images_seen": 1200,
        "cost": {"starts": 1, "gpu_hours": 0.0, "cpu_hours": 0.25, "waited_s": 0.0}, "model_sha256": "feed",
        "finished_at": "2026-11-23T12:00:00+00:00", "annotations_sha256": "0123456789abcdef",
        "resolution": "short edge 88, 96, 104 px", "code_version": "0.1.0-aaaa1111", "versions": versions,
        "model_file": f"{stem}-1a2b3c4d.pth", "log_file": f"{stem}.log.json", **changes,
    }  # fmt: skip
    put(folder / record["model_file"], "weights")
    put(folder / record["log_file"], "lines")
    put(folder / "train.json", record)
    return folder


def put_infer(folder: Path, study: Study, **changes: Any) -> None:
    record = {"settings_digest": settings_digest(study, "infer"), "detections": 7, "device": "cpu", "batch_size": 1}
    put(folder / "inference.json", record | {"resolution": "short edge 96 px", "model_sha256": "feed"} | changes)


def put_measured(folder: Path, study: Study, training: bool = True, **changes: Any) -> None:
    """The measurement of a row; ``folder`` is the row's."""
    of_training = {
        "memory_gb": 0.876, "definition": "peak resident memory of the training process", "steps": 2, "images": 8,
        "resolution": "short edge 104 px", "precision": "fp32 without TF32",
    }  # fmt: skip
    inference = {
        "fps": 12.345, "definition": "images a second, one at a time", "images": 20, "warmup_images": 5,
        "resolution": "short edge 96 px", "precision": "fp32 without TF32",
    }  # fmt: skip
    record = {"settings_digest": settings_digest(study, "measure"), "device": "cpu", "model_sha256": "feed"}
    record |= {"training": of_training if training else None, "inference": inference}
    put(folder / "measure.json", record | changes)


def put_speed(folder: Path, study: Study, milliseconds: tuple[float, float, float], **changes: Any) -> None:
    """A measurement by CPU time on a machine of two cores that does nothing else; quartiles of an image's time."""
    first, median, third = (value / 1000 for value in milliseconds)
    speed = {
        "fps": 1 / median, "definition": "images a second of CPU time", "images": 20, "warmup_images": 5,
        "resolution": "short edge 96 px", "precision": "fp32 without TF32", "masks": "all", "clock": "CPU time",
        "image_s": {"first_quartile": first, "median": median, "third_quartile": third},
        "cpu_per_wall": 0.99, "cores": 2, "other_cores": 0.02, **changes,
    }  # fmt: skip
    put_measured(folder, study, inference=speed)


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
    record = {"step": 189, "steps": 300, "state": "running", **changes}
    file = results / "state" / study.study / "r50" / "seed0" / digest / "progress.json"
    put(file, record)
    os.utime(file, (file.stat().st_mtime - age_s,) * 2)


def point(study: Study, step: int, ap: float, **changes: Any) -> dict[str, Any]:
    """Scores of weights that a training kept, by the settings of the study."""
    record = {"step": step, "epoch": step / 120, "model_sha256": "feed", "images": 100, "images_of_split": 100}
    record |= {"settings_digest": settings_digest(study, "infer"), "detections_per_image": 300, "scored_at": 0.0}
    record |= {"annotations_sha256": "89abcdef01234567"}
    record |= {"bbox": {"AP": ap, "APr": 0.2}, "segm": {"AP": ap / 2, "APr": None}}
    return record | changes


def put_so_far(results: Path, study: Study, *points: Mapping[str, Any], seed: int = 0, state: str = "abc") -> None:
    """ap_so_far.json of the training that :func:`put_progress` or :func:`put_everything` leaves."""
    record = {"format": "lvis_rcnn.ap_so_far", "version": 1, "state": state, "points": points}
    put(results / study.study / "r50" / f"seed{seed}" / "ap_so_far.json", record)


def put_log(results: Path, study: Study, name: str, text: str) -> None:
    put(results / study.study / "logs" / f"{name}.log", text)


def written(results: Path, study: Study, out: Path | None = None) -> Path:
    """The table of a study, written."""
    out = out or results / "table.md"
    write_tables(study, ZOO, results, out)
    return out


def table_of(path: Path) -> list[dict[str, str]]:
    """The rows of the first Markdown table of a file, split at bars that are not escaped."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    split = [[text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def reason_of(results: Path, study: Study, column: str = "mask AP", row: int = 0) -> str:
    """A cell of a row, by the beginning of its column's title; where that is "-", the reason in an earlier column."""
    cells = list(table_of(written(results, study))[row].items())
    before = cells[: [name.startswith(column) for name, _ in cells].index(True) + 1]
    return next(text for _, text in reversed(before) if text != "-")


def failures_of(results: Path, study: Study) -> str:
    """What the table says below it that failed."""
    lines = written(results, study).read_text().splitlines()
    return next((line for line in lines if line.startswith("Failed: ")), "")


def curve() -> dict[str, Any]:
    falling = {iou: (1 - RECALLS).tolist() for iou in ("0.5", "0.75", "0.5:0.95")}
    return {"recall": RECALLS.tolist(), "all": falling, "r": dict.fromkeys(falling), "c": falling, "f": falling}


def put_everything(results: Path, study: Study, seed: int = 0, ap: float = 0.25, **metrics: Any) -> Path:
    """A finished run with all that plots read."""
    folder = put_run(results, study, seed=seed)
    curves = {kind: curve() for kind in ("bbox", "segm")}
    put_metrics(folder, ap, **{"per_category": CATEGORIES, "curves": curves, **metrics})
    lines = [
        {"step": step, "loss": 3.0 / step, "lr": 0.1, "loss_cls": 1 / step, "grad_norm": 2.0, "images_per_s": 4.0}
        for step in range(1, 61)
    ]
    state = results / "state" / study.study / "r50" / f"seed{seed}" / "abc"
    put(state / "progress.json", {"step": 60, "steps": 60, "state": "done"})
    put(state / "log.json", "".join(json.dumps(line) + "\n" for line in lines))
    begin = {"event": "begin", "started_at": 0.0, "host": "h", "pid": 1, "job": None, "code_version": "x", "version": 1}
    starts = [{**begin, "attempt": number, "step": at} for number, at in ((1, 0), (2, 20))]
    put(state / "attempts.jsonl", "".join(json.dumps(start) + "\n" for start in starts))
    header = "category_id,name,frequency,image_count,instance_count,factor,instances_in_epoch\n"
    table = "5,kite,r,3,4,2.0,8.0\n2,cup,r,9,9,1.5,18.0\n9,bear,c,50,60,1.0,60.0\n7,tree,f,200,300,1.0,300.0\n"
    put(results / study.study / "repeat_factors" / "categories.csv", header + table)
    summary = {"threshold": 0.3, "expected_epoch_length": 99, "images_kept": 80}
    put(results / study.study / "repeat_factors" / "summary.json", summary)
    return folder


def shows(svg: str, words: str) -> bool:
    """Whether a plot shows this text: matplotlib writes it beside its outlines."""
    return f"<!-- {words} -->" in svg
