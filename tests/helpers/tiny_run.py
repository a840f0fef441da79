"""A drawn dataset of a few images with its stores, and a study of a few steps on it."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvis_rcnn.config.schema import Backbone, Inference, Model
from lvis_rcnn.config.study import Study, load_study
from lvis_rcnn.dataloader.repeat_factors import repeat_factors
from lvis_rcnn.dataset.statistics import category_statistics, write_statistics
from lvis_rcnn.dataset.store import AnnotationStore, build_store, open_store
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.weights import save_model
from lvis_rcnn.repeat_factors import write_factor_tables
from tests.conftest import REPOSITORY, write_study

# The heads of the real network on the smallest body that ends in four stages.
SMALLEST = Backbone("R-14-FPN", "r14_fpn", (1, 1, 1, 1), groups=1, width_per_group=64)
# Few regions for images of 64 pixels.
SMALL = Model(
    weights="imagenet",
    normalization="batch",
    frozen_stages=0,
    anchor_scale=4.0,
    anchors_per_image=64,
    rois_per_image=16,
    roi_positive_fraction=0.25,
    proposals_before_nms=100,
    proposals_after_nms=50,
)
SMALL_TEST = Inference(
    short_edge_px=64,
    long_edge_px=96,
    proposals_before_nms=80,
    proposals_after_nms=40,
    score_threshold=0.01,
    detections_per_image=10,
)

# Keys of a line of log.json that differ when a run is repeated.
MEASURED_KEYS = frozenset({"data_time", "time", "memory", "images_per_s", "eta_s", "written_at"})


@dataclass(frozen=True)
class TinyData:
    """Where the files of the small dataset lie."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "drawn" / "images"

    @property
    def train_store(self) -> Path:
        return self.folder / "train.store"

    @property
    def val_store(self) -> Path:
        return self.folder / "val.store"

    @property
    def repeat_factors(self) -> Path:
        return self.folder / "repeat_factors"


def make_data(folder: Path, train_images: int = 8, val_images: int = 5) -> TinyData:
    """Draw, store and count as the steps do."""
    data = TinyData(folder)
    sizes = ["--train-images", str(train_images), "--val-images", str(val_images)]
    command = [sys.executable, "-m", "lvis_rcnn.draw", "--seed", "0", *sizes, "--out", str(folder / "drawn")]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    build_store(folder / "drawn" / "train.json", data.train_store)
    build_store(folder / "drawn" / "val.json", data.val_store)
    store = open_store(data.train_store)
    write_factor_tables(store, repeat_factors(store, 0.3), data.repeat_factors)
    return data


def write_tiny_study(folder: Path, **changes: Any) -> Path:
    """Six steps on two images each, one thread, every step logged."""
    values: dict[str, Any] = {
        "study": "tiny",
        "title": "tiny",
        "schedule": {"steps": 6, "images_per_step": 2, "normalisation_group": 2, "warmup_steps": 2},
        "compute": {"threads": 1},
        "resources": {"log_every_steps": 1},
    }
    for section, change in changes.items():
        values[section] = {**values[section], **change} if isinstance(values.get(section), dict) else change
    return write_study(folder / "tiny.yaml", **values)


def tiny_study(folder: Path, **changes: Any) -> Study:
    return load_study(write_tiny_study(folder, **changes))


def model_meta(store: AnnotationStore, **changes: Any) -> dict[str, Any]:
    """What a model of these categories says it is."""
    names = tuple(category.name for category in store.categories)
    return {"backbone": "r50", "seed": 0, "CLASSES": names, **changes}


def write_calibration(folder: Path, store: AnnotationStore, most: int) -> Path:
    """A table of calibration in which the categories have 1 to ``most`` images, more than few images have."""
    counts = 1 + np.arange(len(store.categories)) % most
    many = replace(category_statistics(store), image_counts=counts, dimensions=1 + counts / 2 / most)
    write_statistics(folder / f"calibration_{most}.csv", store, many)
    return folder / f"calibration_{most}.csv"


def save_untrained(folder: Path, store: AnnotationStore) -> Path:
    """A model of the smallest body under the name of r50."""
    torch.manual_seed(0)
    model = MaskRcnn(SMALLEST, store.num_labels, tiny_study(folder).model)
    save_model(folder / "model.pth", model.state_dict(), model_meta(store))
    return folder / "model.pth"
