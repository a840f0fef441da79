"""Score weights that a training kept: detections of the validation images or some of them, then AP."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from lvis_rcnn.config.study import Study, settings_digest
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.evaluation.interface import annotations_of, any_detections, kinds_of_truth
from lvis_rcnn.evaluation.scoring import Annotations, Scoring, score_detections
from lvis_rcnn.evaluation.subsets import only_images
from lvis_rcnn.inference.detector import make_detector
from lvis_rcnn.inference.shards import infer_shards, number_of_shards
from lvis_rcnn.model.weights import load_model
from lvis_rcnn.runs.identity import state_folder_name
from lvis_rcnn.runs.inference import CALIBRATION, begin_inference, inference_folder
from lvis_rcnn.runs.points import is_of_study, score_of, step_of
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Point
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import locked_part, sha256_of_file, write_json
from lvis_rcnn.system.provenance import code_version
from lvis_rcnn.training.log import drop_superseded, files_of


@dataclass(frozen=True)
class Validation:
    """What weights are scored on, and how."""

    study: Study
    store: Path
    images: Path
    """Folder of the images."""
    annotations: Path
    """The file that the store was made from."""
    coco_exhaustive: bool
    frequencies: Path | None
    """Both as :func:`annotations_of` takes them."""
    calibration: Path | None
    """As :func:`make_detector` takes it."""


def evenly(count: int, most: int | None) -> Int64[np.ndarray, " k"]:
    """At most ``most`` of the numbers 0 to ``count`` - 1, evenly spaced from 0 on; None for all."""
    number = min(most or count, count)
    return np.arange(number) * count // number


def score_weights(weights: Path, backbone: str, on: Validation, device: torch.device) -> None:
    """Write the scores of ``weights`` beside them, unless they are there; one process at a time, others wait.

    What was detected is saved twice a minute, as in every inference, and removed once it is scored.

    Raises:
        InputError: as :func:`make_detector` and :func:`score_detections`, or the store is of other annotations.
    """
    scores = weights.with_suffix(".json")
    annotations = open_store(on.store).annotations_sha256
    with locked_part(scores):
        if score_of(weights, on.study, annotations):
            return
        sha256, known = sha256_of_file(weights), read_json_object(scores, Point)
        if known and known["model_sha256"] == sha256 and is_of_study(known, on.study, annotations):
            os.utime(scores)  # a resumed training wrote the same weights again
        else:
            write_json(scores, scored_point(weights, sha256, backbone, on, device))


def scored_point(weights: Path, sha256: str, backbone: str, on: Validation, device: torch.device) -> dict[str, Any]:
    """The scores of weights with this digest, as ``runs.shapes.Point``."""
    study, store = on.study, open_store(on.store)
    _, meta = load_model(weights)
    kept = meta.get("steps"), state_folder_name(meta.get("run_digest", ""))
    if kept != (step_of(weights), weights.parents[1].name):
        fix = "put the right file there, or delete this one"
        raise InputError(str(weights), f"holds weights of step {kept[0]} of run {kept[1]}", fix=fix)
    chosen = evenly(store.num_images, study.evaluation.score_images)
    identity: dict[str, Any] = {
        "settings_digest": settings_digest(study, "infer"),
        "model_sha256": sha256,
        "annotations_sha256": store.annotations_sha256,
        "images": len(chosen),
    }
    if on.calibration:
        identity[CALIBRATION] = sha256_of_file(on.calibration)
    annotations = annotations_with(store.annotations_sha256, on)  # first: what is wrong is said before hours of work
    shards_dir = weights.with_suffix("") / f"{inference_folder(identity)}-{len(chosen)}"
    shards_dir.mkdir(parents=True, exist_ok=True)
    begin_inference(shards_dir, identity)
    detector = make_detector(study, backbone, weights, on.store, on.images, device, on.calibration)
    options = (study.inference.batch_size, study.resources.loader_workers, f"{backbone} step {step_of(weights)}")
    infer_shards(detector, shards_dir, *options, range(number_of_shards(len(chosen))), chosen.tolist())
    metrics = metrics_of(shards_dir, annotations, store.image_ids[chosen], study)
    shutil.rmtree(weights.with_suffix(""))
    return {
        "step": step_of(weights),
        "epoch": meta["epochs"],
        **identity,
        "images_of_split": store.num_images,
        "detections_per_image": study.evaluation.detections_per_image,
        **{kind: metrics[kind] for kind in ("bbox", "segm") if kind in metrics},
        "scored_at": time.time(),
        "code_version": code_version(),
    }


def annotations_with(sha256: str, on: Validation) -> Annotations:
    """The annotations of the validation split; InputError where they are not those that the store was made from."""
    annotations = annotations_of(on.annotations, on.coco_exhaustive, on.frequencies)
    if annotations.sha256 != sha256:
        fix = "build the store again, as Snakemake does"
        raise InputError(str(on.store), f"is of other annotations than {on.annotations}", fix=fix)
    return annotations


def metrics_of(
    shards_dir: Path, annotations: Annotations, image_ids: Int64[np.ndarray, " k"], study: Study
) -> dict[str, Any]:
    """The value of metrics.json for these images alone, without intervals and without the lvis package."""
    truth = only_images(annotations.truth, np.isin(annotations.truth.image_ids, image_ids))
    found = any_detections(shards_dir, truth, kinds_of_truth(truth))
    scoring = Scoring(detections_per_image=study.evaluation.detections_per_image)
    metrics, _ = score_detections(replace(annotations, truth=truth), found, scoring)
    return metrics


# Tag in TensorBoard -> kind and metric.
TAGS = {
    f"{kind}_AP/{metric}": (key, metric)
    for kind, key in (("box", "bbox"), ("mask", "segm"))
    for metric in ("AP", "APr", "APc", "APf")
}


def write_ap_events(folder: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Write the AP of all points as event files for TensorBoard, in place of those that are there."""
    # As in training.log: importing takes more than a second.
    from torch.utils.tensorboard import SummaryWriter

    old = files_of(folder)
    with SummaryWriter(str(folder), purge_step=0) as writer:
        for point in points:
            for tag, (kind, metric) in TAGS.items():
                if (value := point.get(kind, {}).get(metric)) is not None:
                    writer.add_scalar(tag, value, point["step"], walltime=point["scored_at"])
    drop_superseded(old, new=files_of(folder) - old)
