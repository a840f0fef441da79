"""CPU time and memory of the annotation store beside ``lvis.LVIS``, on a file of the size of the v1 training split.

    python tests/benchmarks/annotations_at_full_size.py [--scale 1.0] [--folder /tmp/annotations_benchmark]

The file is drawn once and kept in the folder: 100,170 images, 1,270,141 annotations of 1,203 categories, coordinates
of two decimals, about 1 GB; as in LVIS, the annotations of an image stand together and images come in another order.
The text of outlines is taken from a pool of 20,000, since nothing here remembers an outline it has read. Each figure
comes from a process of its own: ours is the store and the repeat factors from it; theirs is ``lvis.LVIS`` and the
factors from sets of its records. CPU is user and system time of the whole process, imports included.

Private memory is USS (``Private_Clean`` + ``Private_Dirty`` of smaps_rollup): of opening the store, and of a worker
that is forked with the annotations in hand and reads every record once, beyond a worker without them. A worker of
``lvis.LVIS`` or of a list of dicts copies each page whose reference counts it touches.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

IMAGES, ANNOTATIONS, CATEGORIES = 100_170, 1_270_141, 1_203
POOL = 20_000
THRESHOLD = 1e-3


def outline_text(random: np.random.Generator) -> str:
    """``segmentation`` of one object: mostly one polygon, about 90 numbers of two decimals."""
    polygons = []
    for _ in range(1 + int(random.random() < 0.14)):
        corners = 3 + int(random.gamma(1.2, 31.5))
        start, steps = random.uniform(20, 450, 2), random.normal(0, 4, (corners, 2))
        polygons.append(np.abs(start + np.cumsum(steps, axis=0)).round(2).reshape(-1).tolist())
    return json.dumps(polygons)


def image_text(image: int, random: np.random.Generator) -> str:
    """One image with its lists."""
    lists = random.integers(1, CATEGORIES + 1, 6).tolist()
    url = f"http://images.cocodataset.org/train2017/{image:012}.jpg"
    record = {"date_captured": "2013-11-14 17:02:52", "neg_category_ids": lists[:5], "id": image, "license": 4}
    sizes = {"height": 480, "width": 640, "flickr_url": "", "coco_url": url, "not_exhaustive_category_ids": lists[5:]}
    return json.dumps({**record, **sizes})


def annotation_texts(count: int, image_ids: np.ndarray, random: np.random.Generator) -> Iterator[str]:
    """Annotations grouped by image; categories with a long tail."""
    pool = [outline_text(random) for _ in range(min(POOL, count))]
    outlines = random.integers(0, len(pool), count).tolist()
    images = np.sort(random.integers(0, len(image_ids), count))
    categories = np.minimum(random.zipf(1.3, count), CATEGORIES)
    boxes = random.uniform(1, 200, (count, 4)).round(2)
    rows = zip(image_ids[images].tolist(), categories.tolist(), boxes.tolist(), outlines, strict=True)
    for number, (image, category, box, outline) in enumerate(rows, start=1):
        yield (
            f'{{"area": {box[2] * box[3]:.2f}, "id": {number}, "segmentation": {pool[outline]}, '
            f'"image_id": {image}, "bbox": {box}, "category_id": {category}}}'
        )


def draw_file(path: Path, scale: float) -> None:
    """Write the file, whole or not at all."""
    random = np.random.default_rng(0)
    image_ids = np.sort(random.choice(581_929, int(IMAGES * scale), replace=False)) + 1
    temporary = path.with_suffix(".part")
    with temporary.open("w") as file:
        file.write('{"info": {"version": "drawn"}, "annotations": [')
        for number, text in enumerate(
            annotation_texts(int(ANNOTATIONS * scale), random.permutation(image_ids), random)
        ):
            file.write(", " * bool(number) + text)
        file.write('], "images": [' + ", ".join(image_text(int(image), random) for image in image_ids))
        groups = ["f", "c", "r"]
        rows = [
            {"id": c, "name": f"category_{c}", "frequency": groups[c * 3 // (CATEGORIES + 1)]}
            for c in range(1, CATEGORIES + 1)
        ]
        file.write('], "categories": ' + json.dumps(rows) + "}")
    temporary.rename(path)
