"""Time and memory of preflight at the size of LVIS v1: 100,170 and 19,809 images with their files.

    python tests/benchmarks/preflight_at_full_size.py [--folder DIR] [--scale 1] [--zip]

The images are hard links of 64 drawn JPEGs of 640 x 480 pixels; with --zip they lie, stored, in train2017.zip and
val2017.zip instead. Each image has one annotation: polygons are not looked at here. Printed are wall and CPU
seconds and the peak memory of ``python -m lvis_rcnn.preflight``, a process of its own, and images a second.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.dataset.store import build_store

REPOSITORY = Path(__file__).parents[2]
IMAGES = {"train2017": 100_170, "val2017": 19_809}
HEIGHT, WIDTH = 480, 640
# A file system may allow no more than 65,000 links to a file.
SOURCES = 64


def draw_sources(folder: Path) -> list[Path]:
    """Smooth noise compresses to about the 160 KB of a photograph."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(SOURCES)]
    for path in paths:
        noise = cv2.resize(random.integers(0, 256, (120, 160, 3), np.uint8), (WIDTH, HEIGHT))
        cv2.imwrite(str(path), noise)
    return paths


def names_of(split: str, scale: float) -> list[str]:
    """Names of a split's images, as COCO numbers them."""
    return [f"{split}/{number:012}.jpg" for number in range(1, int(IMAGES[split] * scale) + 1)]


def write_images(folder: Path, names: list[str], sources: list[Path], as_zip: bool) -> None:
    """The files of a split, as links or as a zip."""
    split = names[0].split("/")[0]
    if as_zip:
        contents = [source.read_bytes() for source in sources]
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, contents[number % SOURCES])
        return
    (folder / split).mkdir()
    for number, name in enumerate(names):
        os.link(sources[number % SOURCES], folder / name)


def write_store(folder: Path, names: list[str]) -> Path:
    """Annotation store of a split."""
    split = names[0].split("/")[0]
    lists: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = [
        {"id": n, "height": HEIGHT, "width": WIDTH, "coco_url": f"http://images.cocodataset.org/{name}", **lists}
        for n, name in enumerate(names, start=1)
    ]
    box = {"bbox": [1, 1, 9, 9], "area": 40.5, "segmentation": [[1, 1, 10, 1, 10, 10]]}
    annotations = [{"id": n, "image_id": n, "category_id": 1 + n % 1203, **box} for n in range(1, len(names) + 1)]
    categories = [{"id": n, "name": f"category {n}", "frequency": "f"} for n in range(1, 1204)]
    source = folder / f"{split}.json"
    source.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    build_store(source, folder / f"{split}.store")
    return folder / f"{split}.store"


def main() -> None:
    """Build the data, run preflight once, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the data are built (default: a temporary folder)")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the images")
    parser.add_argument("--zip", action="store_true", help="images in zips")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        sources = draw_sources(folder / "sources")
        words = ["--study", str(REPOSITORY / "configs" / "mini.yaml"), "--out", str(folder / "out" / "preflight.json")]
        images = 0
        for split, option in (("train2017", "train"), ("val2017", "val")):
            names = names_of(split, args.scale)
            images += len(names)
            write_images(folder, names, sources, args.zip)
            words += [f"--{option}-store", str(write_store(folder, names)), f"--{option}-images", str(folder)]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "lvis_rcnn.preflight", *words], cwd=REPOSITORY, check=True)
        wall_s = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{images:,} images in {'zips' if args.zip else 'folders'}, exit code {done.returncode}: "
            f"{wall_s:.1f} s, {used.ru_utime + used.ru_stime:.1f} CPU s, {images / wall_s:,.0f} images/s, "
            f"peak {used.ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()
