"""The annotations that MMDetection's figures were computed with, as far as the figures themselves hold them."""

import json

import numpy as np
import pytest

from lvis_rcnn.dataset.store import build_store, open_store
from tests.conftest import AND_REAL, LVIS_VAL_100
from tests.helpers.lvis_like import categories_of_lvis
from tests.reference.golden_figures import arrays, table


@pytest.fixture(scope="session", params=["rebuilt", *AND_REAL])
def golden_store(request, tmp_path_factory):
    """100 images of LVIS v0.5: rebuilt from the figures, and the real file where it is at hand."""
    folder = tmp_path_factory.mktemp("golden")
    file = LVIS_VAL_100
    if request.param == "rebuilt":
        file = folder / "rebuilt.json"
        file.write_text(json.dumps(rebuilt()))
    build_store(file, folder / "store")
    return open_store(folder / "store")


def rebuilt():
    """Images, boxes and categories as MMDetection parsed them; masks of two images, for the others rectangles."""
    figures = table("lvis_dataset.json.gz")
    of_id = {image["img_id"]: image for image in figures["train"]}
    masks, areas = masks_of_figures()
    empty = {"height": 480, "width": 640, "bboxes": [], "labels": []}
    images, annotations = [], []
    for image_id in figures["test_img_ids"]:
        parsed = of_id.get(image_id, {"img_path": f"val2017/{image_id:012}.jpg", **empty})
        images.append(
            {"id": image_id, "height": parsed["height"], "width": parsed["width"]}
            | {"coco_url": f"http://images.cocodataset.org/{parsed['img_path']}"}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        )
        for number, ((x0, y0, x1, y1), label) in enumerate(zip(parsed["bboxes"], parsed["labels"], strict=True)):
            box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            rectangle = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": figures["cat_ids"][label]}
                | {"bbox": box, "area": areas.get((image_id, number), box[2] * box[3])}
                | {"segmentation": masks.get((image_id, number), rectangle)}
            )
    return {"images": images, "annotations": annotations, "categories": categories(figures)}


def masks_of_figures():
    """Run lengths and area of each object whose bitmap the figures hold, by image id and place in the image."""
    figures = arrays("pipeline_train")
    masks, areas = {}, {}
    for case, image_id in enumerate(figures["img_ids"].tolist()):
        for number, bitmap in enumerate(figures.get(f"case{case}_masks_original", [])):
            edges = np.flatnonzero(np.diff(bitmap.ravel(order="F"), prepend=False))
            counts = np.diff([0, *edges, bitmap.size]).tolist()
            masks[image_id, number] = {"size": list(bitmap.shape), "counts": counts}
            areas[image_id, number] = int(bitmap.sum())
    return masks, areas


def categories(figures):
    """MMDetection's classes under the names that stand in the file, with frequencies and synsets of LVIS."""
    in_file = {label: name for label, name, _ in figures["class_name_mismatches"]}
    names = [in_file.get(label, name) for label, name in enumerate(figures["classes"])]
    others = {row["id"]: {"frequency": row["frequency"], "synset": row["synset"]} for row in categories_of_lvis()}
    return [{"id": id_, "name": name, **others[id_]} for id_, name in zip(figures["cat_ids"], names, strict=True)]
