"""How far the inference of a run is, by what it has saved in its state folder ``infer-<identity>``.

    start.json              the last start: what is detected in how many images, by which process, and what was saved
    shard-00003.npz         detections of 64 images, with shard-00003.clock.json: how many and how long they took
    part-00003-<token>.npz  of some images of a shard that is not complete, with .json: which, and how long they took

Every process saves about twice a minute, so that no other sign of life is needed.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvis_rcnn.dataset.detections import shard_path
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Clock, InferenceStart, Part
from lvis_rcnn.system.cli import duration
from lvis_rcnn.system.files import modified_at, sha256_of_json, write_json

START = "start.json"

# Raised when a change of the code changes detections: older shards are then not reused.
INFERENCE_REVISION = 4

# What detections depend on, as inference.json records it: shards of another identity are never mixed in.
IDENTITY = ("settings_digest", "model_sha256", "annotations_sha256")
# And where scores are calibrated, the table they are calibrated by; other records lack the key.
CALIBRATION = "calibration_sha256"


def inference_folder(record: Mapping[str, Any]) -> str:
    """Name of the state folder of the inference whose inference.json this is."""
    identity = {"revision": INFERENCE_REVISION, **{key: record.get(key) for key in IDENTITY}}
    if CALIBRATION in record:
        identity[CALIBRATION] = record[CALIBRATION]
    return f"infer-{sha256_of_json(identity)[:12]}"


@dataclass(frozen=True)
class Inferred:
    """How far an inference is."""

    saved: int
    images: int
    images_per_s: float | None
    """Of all processes of the last start; None before it has saved any."""
    written_s: float
    """When it last wrote a file, in Unix seconds by the clock of its disk."""

    @property
    def position(self) -> str:
        """As ``120/211``."""
        return f"{self.saved}/{self.images}"

    def __str__(self) -> str:
        if self.images_per_s is None:
            return self.position
        speed = f"{self.images_per_s:.1f}" if self.images_per_s >= 1 else f"{self.images_per_s:.2g}"
        left = duration((self.images - self.saved) / self.images_per_s)
        return f"{self.position}, {speed} images/s, {left} left"


def begin_inference(folder: Path, record: Mapping[str, Any]) -> None:
    """Record a start of this process in ``folder``; of ``record``, the inference.json to be, it keeps the identity."""
    identity = {key: record[key] for key in (*IDENTITY, "images")}
    of_process = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    write_json(folder / START, {**identity, "saved": saved_images(folder), **of_process})


def saved_images(folder: Path) -> int:
    """Images whose detections need not be made again."""
    whole = 0
    for path in folder.glob("shard-*.npz"):
        whole += read_json_object(path.with_suffix(".clock.json"), Clock).get("images", 0)
    parts: dict[str, set[int]] = {}
    for path in folder.glob("part-*.json"):
        shard = path.name.split("-")[1]
        if not shard_path(folder, int(shard)).exists():
            parts.setdefault(shard, set()).update(read_json_object(path, Part).get("positions", ()))
    return whole + sum(map(len, parts.values()))


def inferred(folder: Path) -> Inferred:
    """How far the inference in ``folder`` is, which has begun; times are those of the folder's file system."""
    start, saved = read_json_object(folder / START, InferenceStart), saved_images(folder)
    names = [folder / START, *folder.glob("shard-*.npz"), *folder.glob("part-*.npz")]
    written = [modified_at(path) for path in names]  # a part goes when its shard is complete
    seconds, images = max(written) - written[0], saved - start.get("saved", 0)
    return Inferred(saved, start.get("images", 0), images / seconds if seconds > 0 < images else None, max(written))
