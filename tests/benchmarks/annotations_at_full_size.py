"""CPU time and memory of the annotation store beside ``lvis.LVIS``, on a file of the size of the v1 training split.

    python tests/benchmarks/annotations_at_full_size.py [--scale 1.0] [--folder DIR]

The file is drawn once and kept in the folder: 100,170 images, 1,270,141 annotations of 1,203 categories, coordinates
of two decimals, about 1 GB; as in LVIS, the annotations of an image stand together and images come in another order.
The text of outlines is taken from a pool of 20,000, since nothing here remembers an outline it has read. Each figure
comes from a process of its own: ours is the store and the repeat factors from it; theirs is ``lvis.LVIS`` and the
factors from sets of its records. CPU is user and system time of the whole process, imports included.

Private memory is USS (``Private_Clean`` + ``Private_Dirty`` of smaps_rollup): of opening the store, and of a worker
that is forked with the annotations in hand and reads every record once, beyond one that reads nothing; another worker
has done the same before. A worker of ``lvis.LVIS`` or of a list of dicts copies each page whose reference counts it
touches; pages of the store are those of all.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lvis_rcnn.dataset.store import AnnotationStore

sys.path.insert(0, str(Path(__file__).parents[2]))

IMAGES, ANNOTATIONS, CATEGORIES = 100_170, 1_270_141, 1_203
POOL = 20_000
THRESHOLD = 1e-3
PR_SET_PDEATHSIG = 1


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


def ours(annotations: Path, store: Path) -> int:
    """Store and repeat factors; the sum of copies."""
    from lvis_rcnn.dataloader.repeat_factors import repeat_factors
    from lvis_rcnn.dataset.store import build_store, open_store

    build_store(annotations, store)
    return int(repeat_factors(open_store(store), THRESHOLD).copies.sum())


def theirs(annotations: Path, store: Path) -> int:
    """The same with ``lvis.LVIS`` and sets of records, as one writes it by hand."""
    import lvis

    official = lvis.LVIS(str(annotations))
    categories_of = defaultdict(set)
    for record in official.anns.values():
        if record["area"] > 0 and min(record["bbox"][2:]) >= 1:
            categories_of[record["image_id"]].add(record["category_id"])
    kept = [
        image
        for image in official.img_ann_map
        if min(official.imgs[image]["height"], official.imgs[image]["width"]) >= 32
    ]
    counts: dict[int, int] = defaultdict(int)
    for image in kept:
        for category in categories_of[image]:
            counts[category] += 1
    factors = {c: max(1.0, float(np.sqrt(THRESHOLD / (count / len(kept))))) for c, count in counts.items()}
    return sum(int(np.ceil(max((factors[c] for c in categories_of[image]), default=1.0))) for image in kept)


def from_store(annotations: Path, store: Path) -> int:
    """Repeat factors of a store that is there."""
    from lvis_rcnn.dataloader.repeat_factors import repeat_factors
    from lvis_rcnn.dataset.store import open_store

    return int(repeat_factors(open_store(store), THRESHOLD).copies.sum())


def private_mb() -> float:
    """USS of this process."""
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(row[1]) for row in rows if row[0] in ("Private_Clean:", "Private_Dirty:")) / 1024


def opened(annotations: Path, store: Path) -> dict[str, float]:
    """Seconds and private memory of opening a store."""
    from lvis_rcnn.dataset.store import open_store

    before, start = private_mb(), time.perf_counter()
    kept = open_store(store)
    return {"open_s": time.perf_counter() - start, "private_mb": private_mb() - before, "images": kept.num_images}


def read_store(store: "AnnotationStore") -> float:
    """Every number of a store once."""
    every = range(len(store.annotation_ids))
    return sum(float(polygon.sum()) for row in every for polygon in store.outline_of(row)) + float(store.areas.sum())


def read_records(records: list[dict[str, Any]]) -> float:
    """The same of dictionaries."""
    return float(sum(sum(map(sum, record["segmentation"])) + record["area"] for record in records))


def worker_memory(read: Callable[[], float]) -> float:
    """Private memory of a further worker that has read all annotations, beyond one that has read nothing."""
    without, _first, further = (forked(work) for work in (lambda: 0.0, read, read))
    return further - without


def forked(work: Callable[[], float]) -> float:
    """Private memory of a forked process after its work; it lives as long as this one."""
    receive, send = os.pipe()
    if os.fork() == 0:
        work()
        gc.collect()
        os.write(send, str(private_mb()).encode())
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pause()
    return float(os.read(receive, 100))


def store_worker(annotations: Path, store: Path) -> float:
    """A worker with the store."""
    from lvis_rcnn.dataset.store import open_store

    opened_store = open_store(store)
    return worker_memory(lambda: read_store(opened_store))


def lvis_worker(annotations: Path, store: Path) -> float:
    """A worker with ``lvis.LVIS``."""
    import lvis

    official = lvis.LVIS(str(annotations))
    return worker_memory(lambda: read_records(official.load_anns(official.get_ann_ids())))


def dict_worker(annotations: Path, store: Path) -> float:
    """A worker with a list of dictionaries."""
    records = json.loads(annotations.read_bytes())["annotations"]
    return worker_memory(lambda: read_records(records))


MEASURED = {work.__name__: work for work in (ours, theirs, from_store, opened, store_worker, lvis_worker, dict_worker)}


def measure(name: str, annotations: Path, store: Path) -> dict[str, Any]:
    """Result, CPU seconds and peak memory of one of ``MEASURED`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--folder", str(annotations), "--store", str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_measured(name: str, annotations: Path, store: Path) -> None:
    """What :func:`measure` reads."""
    result = MEASURED[name](annotations, store)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
    print(json.dumps({"result": result, **figures}))


def main() -> None:
    """Draw the file where it is not there, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of images and annotations (default 1)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir(), "annotations_benchmark"), help="keeps the drawn file"
    )
    parser.add_argument(
        "--only", nargs="+", choices=MEASURED, default=list(MEASURED), help="the last two need 16 GB at full size"
    )
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print_measured(args.measure, args.folder, args.store)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    annotations, store = args.folder / f"drawn_{args.scale}.json", args.folder / f"drawn_{args.scale}.store"
    if not annotations.exists():
        draw_file(annotations, args.scale)
    print(f"{annotations}: {annotations.stat().st_size / 1e6:,.0f} MB")
    found = {}
    for name in args.only:
        found[name] = measure(name, annotations, store)
        row = found[name]
        print(f"{name:13} CPU {row['cpu_s']:7.2f} s   peak {row['peak_mb']:7.0f} MB   {row['result']}", flush=True)
    if {"ours", "theirs"} <= found.keys():
        assert found["ours"]["result"] == found["theirs"]["result"]
        ratios = [found["theirs"][figure] / found["ours"][figure] for figure in ("cpu_s", "peak_mb")]
        print(f"theirs / ours: CPU {ratios[0]:.1f}x, peak memory {ratios[1]:.1f}x")


if __name__ == "__main__":
    main()
