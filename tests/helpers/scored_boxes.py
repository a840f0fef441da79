"""Ground truth and detections of a few boxes, whose scores are known by hand."""

import json
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from lvis_rcnn.evaluation.masks import Rle
from lvis_rcnn.evaluation.results import Result

SIDE_PX = 100


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def rle_of(box: tuple[float, float, float, float]) -> Rle:
    packed = coco_mask.merge(coco_mask.frPyObjects(rectangle(*box), SIDE_PX, SIDE_PX))
    return Rle((SIDE_PX, SIDE_PX), packed["counts"].decode())


def found(image: int, category: int, value: float, *box: float) -> Result:
    return Result(image, category, value, box, rle_of(box))


def truth(
    *objects: tuple[int, int, tuple[float, float, float, float]],
    frequencies: str = "rcf",
    negative: dict[int, list[int]] | None = None,
    not_exhaustive: dict[int, list[int]] | None = None,
    num_images: int = 2,
) -> dict[str, Any]:
    """Images 1, 2, ..., categories 1, 2, ... and ``objects`` as (image, category, box)."""
    images = [
        {
            "id": image,
            "height": SIDE_PX,
            "width": SIDE_PX,
            "neg_category_ids": (negative or {}).get(image, []),
            "not_exhaustive_category_ids": (not_exhaustive or {}).get(image, []),
        }
        for image in range(1, num_images + 1)
    ]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "segmentation": rectangle(*box),
        }
        for number, (image, category, box) in enumerate(objects, start=1)
    ]
    categories = [
        {"id": number, "name": f"thing {number}", "frequency": frequency}
        for number, frequency in enumerate(frequencies, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


CUP = (10.0, 10.0, 20.0, 20.0)
BOAT = (40.0, 40.0, 40.0, 40.0)
FAR = (70.0, 5.0, 20.0, 20.0)
TWO_KINDS = truth((1, 1, CUP), (2, 3, BOAT))


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": result.image_id,
            "category_id": result.category_id,
            "score": result.score,
            "bbox": list(result.bbox),
            "segmentation": {"size": list(result.segmentation.size), "counts": result.segmentation.counts},
        }
        for result in results
    ]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


GOOD = as_json([found(1, 1, 0.5, *CUP), found(2, 3, 0.5, *BOAT)])
