"""Resident memory of inference over many images: it must not grow with their number.

    python tests/benchmarks/inference_memory.py [--images 2000] [--every 200]

Draws one small image and a store of so many of it, and infers on them as a run does, with the heads of the real network
on the smallest body. Printed is the resident memory at every so many images; what is there at the first mark is what
libraries, weights and one shard take.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn import infer
from lvis_rcnn.config.study import Study, load_study
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.inference import detector
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.weights import save_model
from lvis_rcnn.training.distributed import Ranks
from tests.conftest import write_study
from tests.helpers.tiny_run import SMALLEST

SIDES_HW = (48, 64)
CATEGORIES = 26
PAGE_BYTES = 4096


def resident_mb() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


class Marks:
    """Stands for the progress bar: prints the memory at every so many images."""

    every = 200

    def __init__(self, **given: Any) -> None:
        self.images = 0

    def __enter__(self) -> "Marks":
        return self

    def __exit__(self, *given: object) -> None:
        pass

    def update(self, images: int) -> None:
        """So many more are done."""
        self.images += images
        if images and self.images % self.every == 0:
            gc.collect()
            print(f"{self.images:8d} images  {resident_mb():8.1f} MB", flush=True)


def draw(folder: Path, images: int) -> Path:
    """A store of ``images`` images that are one file each."""
    noise = np.random.default_rng(0).integers(0, 255, (*SIDES_HW, 3), np.uint8)
    (folder / "images").mkdir()
    for number in range(images):
        cv2.imwrite(str(folder / "images" / f"{number + 1:012d}.png"), noise)
    rows = [
        {
            "id": number + 1,
            "height": SIDES_HW[0],
            "width": SIDES_HW[1],
            "file_name": f"{number + 1:012d}.png",
            "neg_category_ids": [1],
            "not_exhaustive_category_ids": [],
        }
        for number in range(images)
    ]
    outline = [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]]
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 16, 16], "area": 256, "segmentation": outline}
    names = [{"id": number, "name": f"c{number}", "frequency": "f"} for number in range(1, CATEGORIES + 1)]
    (folder / "val.json").write_text(json.dumps({"images": rows, "annotations": [one], "categories": names}))
    build_store(folder / "val.json", folder / "val.store")
    return folder / "val.store"


def small_study(folder: Path) -> Study:
    """The smoke study with two detections of ten regions an image, since these take most of the time."""
    test = {"detections_per_image": 2, "score_threshold": 0.0, "proposals_after_nms": 10, "short_edge_px": 32}
    values = {"study": "flat", "inference": test}
    return load_study(write_study(folder / "flat.yaml", **values))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--every", type=int, default=200)
    args = parser.parse_args()
    Marks.every = args.every
    vars(infer)["tqdm"] = Marks
    vars(detector)["BACKBONES"]["r50"] = SMALLEST
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store_path, study = draw(folder, args.images), small_study(folder)
        store = open_store(store_path)
        torch.manual_seed(0)
        model = MaskRcnn(SMALLEST, store.num_labels, study.model)
        meta = {"backbone": "r50", "CLASSES": tuple(category.name for category in store.categories)}
        save_model(folder / "model.pth", model.state_dict(), meta)
        del model
        alone = Ranks(0, 1, torch.device("cpu"))
        paths = (folder / "model.pth", store_path, folder / "images", folder / "state", folder / "out")
        infer.infer(study, "r50", *paths, alone)
        size = sum(path.stat().st_size for path in (folder / "out" / "detections").iterdir())
        print(f"{len(list((folder / 'out' / 'detections').iterdir()))} shards of {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
