"""Detect objects in the validation images with a trained model, streamed to disk as shards.

What is done is saved in a state folder about twice a minute, and a new start makes what is missing. Several processes
share the shards; a shard depends on its images alone, so that its bytes are the same whichever process writes it. The
speed of a row is measured by lvis_rcnn.measure.

    python -m lvis_rcnn infer --study configs/mini.yaml --run r50/seed0 --model model.pth
        --store val.store --images IMAGES --state results/state --out results/mini/r50/seed0
    torchrun --standalone --nproc-per-node 4 -m -- lvis_rcnn.infer --study …     the same on four GPUs

(Without the ``--`` before the module, torchrun takes ``--log`` and ``--run`` for options of its own.)
"""

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study, digests_of, load_study_for_step, settings_digest, settings_of_step
from lvis_rcnn.dataset.store import AnnotationStore, open_store
from lvis_rcnn.inference.detector import MASKS, conditions, make_detector
from lvis_rcnn.inference.shards import (
    count_detections,
    export_shards,
    images_per_second,
    infer_shards,
    number_of_shards,
)
from lvis_rcnn.runs.inference import CALIBRATION, begin_inference, inference_folder
from lvis_rcnn.runs.paths import backbone_of_run, row_of_run
from lvis_rcnn.system.cli import InputError, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import sha256_of_file, write_json
from lvis_rcnn.system.provenance import code_version, library_versions
from lvis_rcnn.training.distributed import Ranks, require_device, started

END_TO_END = "images a second of one process: reading, resizing, forward, NMS, run-length encoded masks"


def infer(
    study: Study,
    backbone: str,
    model_path: Path,
    store_path: Path,
    images_dir: Path,
    state_dir: Path,
    out_dir: Path,
    ranks: Ranks,
    calibration: Path | None = None,
) -> None:
    """Write ``detections/`` and ``inference.json`` into ``out_dir``, going on where an earlier start stopped.

    Shards are written to a folder of ``state_dir`` that is named by model, settings and annotations.
    """
    require_masks(study, open_store(store_path))
    detector = make_detector(study, backbone, model_path, store_path, images_dir, ranks.device, calibration)
    store = detector.images.store
    record = inference_record(study, store, sha256_of_file(model_path), ranks)
    if calibration:
        record[CALIBRATION] = sha256_of_file(calibration)
    shards_dir = shards_folder(state_dir, record, digests_of(study, "infer"))
    shards_dir.mkdir(parents=True, exist_ok=True)
    if ranks.is_first:
        begin_inference(shards_dir, record)
    numbers = ranks.share_of(number_of_shards(store.num_images))
    infer_shards(detector, shards_dir, study.inference.batch_size, study.resources.loader_workers, backbone, numbers)
    ranks.meet_first()
    if not ranks.is_first:
        return
    export_shards(shards_dir, out_dir / "detections")
    counts = count_detections(out_dir / "detections")
    write_json(out_dir / "inference.json", {**record, **counts, "end_to_end_fps": images_per_second(shards_dir)})
    log.info("detected %d images with %s: %s", store.num_images, backbone, out_dir / "detections")


def require_masks(study: Study, store: AnnotationStore) -> None:
    """Raise InputError where inference would make no mask: scored masks are those of annotated categories."""
    if study.inference.masks == "scored" and not len(store.annotation_ids):
        what = f"scored, but {store.source_name} has no annotations, so that no mask would be made"
        raise InputError("inference.masks", what, allowed="all", fix="write masks: all into a copy of the study")


def shards_folder(state_dir: Path, record: Mapping[str, Any], digests: Iterator[str]) -> Path:
    """Folder of the shards: where an earlier version began, if it did, else named by what detections depend on now.

    Args:
        state_dir: of the run.
        record: as :func:`inference_record`.
        digests: of the settings, as :func:`digests_of`.
    """
    first, *earlier = (state_dir / inference_folder({**record, "settings_digest": digest}) for digest in digests)
    return next((folder for folder in (first, *earlier) if folder.exists()), first)


def inference_record(study: Study, store: AnnotationStore, model_sha256: str, ranks: Ranks) -> dict[str, Any]:
    """The value of inference.json without the numbers of detections: how a row was tested."""
    return {
        "format": "lvis_rcnn.inference",
        "version": 2,
        "study": study.study,
        "settings_digest": settings_digest(study, "infer"),
        "settings": settings_of_step(study, "infer", with_defaults=True),
        "model_sha256": model_sha256,
        "annotations_sha256": store.annotations_sha256,
        "images": store.num_images,
        "masks": MASKS[study.inference.masks],
        **conditions(study, ranks.device),
        "ranks": ranks.count,
        "batch_size": study.inference.batch_size,
        "end_to_end_definition": END_TO_END,
        "versions": library_versions(),
        "code_version": code_version(),
    }


def step(args: argparse.Namespace) -> None:
    """Infer with the model that the arguments name."""
    study = load_study_for_step(args.study, "infer", args.settings_digest, row_of_run(args.run))
    backbone = backbone_of_run(study, args.study, args.run)
    require_device(study, args.study)
    state_dir = args.state / study.study / args.run
    with started(study.compute.device) as ranks:
        if not ranks.is_first:
            log.setLevel(logging.WARNING)
        infer(study, backbone, args.model, args.store, args.images, state_dir, args.out, ranks, args.calibration)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--settings-digest", metavar="HEX", help="refuse a study whose test settings changed")
    parser.add_argument("--run", required=True, metavar="NAME", help="folder of the run in its study, r50/seed0")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="model.pth of the training step")
    parser.add_argument(
        "--store", type=Path, required=True, metavar="DIR", help="annotation store of the validation split"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    table = "output of calibrate, of the training split, where the study has an inference.calibration"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=table)
    add_output(parser, "--state", "where unfinished work lives", is_folder=True)
    holds = ("detections/", "inference.json")
    add_output(parser, "--out", "folder for detections/ and inference.json", is_folder=True, holds=holds)
    run_step(parser, step)


if __name__ == "__main__":
    main()
