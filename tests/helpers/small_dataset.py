"""A dataset of three images in LVIS form, small enough to check by hand."""

import json
from pathlib import Path

from lvis_rcnn.dataset.store import AnnotationStore, build_store, open_store


def small_dataset():
    """Three images, the second without annotation; annotations out of image order; labels are not ids."""
    return {
        "info": {"version": "of no interest"},
        "images": [
            {
                "id": 7,
                "height": 40,
                "width": 60,
                "coco_url": "http://example.org/train2017/000000000007.jpg",
                "neg_category_ids": [30],
                "not_exhaustive_category_ids": [10, 20],
            },
            {
                "id": 3,
                "height": 50,
                "width": 50,
                "file_name": "train/bär.png",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            },
            {
                "id": 9,
                "height": 32,
                "width": 64,
                "coco_url": "http://example.org/val2017/000000000009.jpg",
                "file_name": "COCO_val2014_000000000009.jpg",
                "neg_category_ids": [20, 10],
                "not_exhaustive_category_ids": [],
            },
        ],
        "annotations": [
            annotation(5, 9, 20, [0, 1, 10.5, 12]),
            annotation(1, 7, 30, [50, 30, 15, 8]),
            annotation(4, 7, 20, [1.25, 2, 3, 4], [[0, 0, 4, 0, 4, 4], [10, 10, 12, 10, 12, 12.5, 10, 12]]),
        ],
        "categories": [
            {"id": 20, "name": "bear", "frequency": "f", "synset": "bear.n.01"},
            {"id": 30, "name": "cup", "frequency": "c"},
            {"id": 10, "name": "kite", "frequency": "r"},
        ],
    }


def annotation(annotation_id, image_id, category_id, box_xywh, polygons=None):
    """One record of a file."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box_xywh,
        "area": 8.5,
        "segmentation": polygons or [[0, 0, 4, 0, 4, 4]],
    }


def build(folder: Path, dataset: object) -> AnnotationStore:
    """Store of a dataset, or of bytes that may be none."""
    source = folder / "annotations.json"
    source.write_bytes(dataset if isinstance(dataset, bytes) else json.dumps(dataset).encode())
    build_store(source, folder / "data.store")
    return open_store(folder / "data.store")
