"""CPU time and memory of our scorer beside the ``lvis`` package, on a set of the size of LVIS v1 val.

    python tests/benchmarks/score_and_lvis.py [--images 1981] [--kinds bbox segm] [--lvis] [--rivals PYTHON]

The set is drawn once and kept in the folder: 19,809 images (or the first of them), 1,203 long-tailed categories, about
12 objects and 11 categories known to be absent in an image, 300 detections an image: 30 % near objects, some of another
category, 25 % of categories that are known to be absent or present, the rest of any. Objects and masks are polygons of
32 corners, as run lengths in the detections; the file for boxes has boxes only. Each figure comes from a process of its
own: CPU is user and system time of the whole process, imports included, and memory its peak. Ours reads shards, then
the results file; all others read the results file: ``lvis``, and three engines in Rust, one thread each. These are
measured where --rivals names a Python that has them, since they are no dependencies of this project:

    python3 -m venv rivals && rivals/bin/pip install "hotcoco==1.3.*" "vernier==0.5.4" "ultrafast-pycocotools==0.1.14"
    python tests/benchmarks/score_and_lvis.py --rivals rivals/bin/python

vernier scores masks only where the results have boxes, too, so that it reads a file of its own with both.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

IMAGES, CATEGORIES, DETECTIONS = 19_809, 1_203, 300
HEIGHT_PX, WIDTH_PX = 480, 640
IMAGES_A_SHARD = 500
POOL = 4_000


def outlines(random: np.random.Generator) -> np.ndarray:
    """A pool of polygons of 32 corners in a box of side 1."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radii = 0.5 * np.clip(1 + random.normal(0, 0.05, (POOL, 32)).cumsum(axis=1), 0.5, 1)
    return np.stack([0.5 + radii * np.cos(angles), 0.5 + radii * np.sin(angles)], axis=-1)


def placed(shape: np.ndarray, box: list[float]) -> list[float]:
    """A polygon of the pool in a box, as x0, y0, x1, y1, ..."""
    return (shape * box[2:] + box[:2]).round(2).reshape(-1).tolist()


def boxes_of(count: int, random: np.random.Generator) -> np.ndarray:
    """Boxes of all sizes inside an image."""
    sides = np.exp(random.normal(np.log(45), 0.9, (count, 2))).clip(4, 400)
    corners = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH_PX, HEIGHT_PX]) - sides)
    return np.concatenate([corners, sides], axis=1).round(2)


def draw(folder: Path, images: int, masks: bool) -> None:
    """Write truth.json, results.json and shards of the first ``images`` images."""
    random = np.random.default_rng(0)
    shapes = outlines(random)
    truth: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": categories()}
    waiting: list[DetectionSet] = []
    with (folder / "results.json").open("w") as results:
        for image in range(1, images + 1):
            labels, boxes, absent = draw_truth(truth, image, shapes, random)
            found = draw_found(image, labels, boxes, absent, random)
            if masks:
                found.rles.extend(draw_masks(found.boxes, shapes, random))
            waiting.append(found)
            results.write(("[" if image == 1 else ",") + ",".join(map(json.dumps, records_of(found))))
            if image % IMAGES_A_SHARD == 0 or image == images:
                write_waiting(folder / "shards", (image - 1) // IMAGES_A_SHARD, waiting)
                waiting = []
        results.write("]")
    if masks:
        write_boxed(folder)
    (folder / "truth.json").write_text(json.dumps(truth))


def write_boxed(folder: Path) -> None:
    """The results of masks with a box in each."""
    with (folder / "results.json").open() as masks, (folder / "boxed.json").open("w") as boxed:
        boxed.write(masks.read().replace('"segmentation"', '"bbox": [0, 0, 1, 1], "segmentation"'))


@dataclass
class DetectionSet:
    """Detections of one image, best first; ``rles`` is empty where there are boxes only."""

    image: int
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    rles: list[dict[str, Any]] = field(default_factory=list)


def categories() -> list[dict[str, Any]]:
    """All categories, frequent ones first."""
    return [
        {"id": number, "name": f"thing {number}", "frequency": "fffffcccccccrrrr"[number * 16 // (CATEGORIES + 1)]}
        for number in range(1, CATEGORIES + 1)
    ]


def draw_truth(
    truth: dict[str, list[dict[str, Any]]], image: int, shapes: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add an image and its annotations; returns labels and boxes of its objects, and the categories it lacks."""
    weights = np.arange(1, CATEGORIES + 1) ** -1.1
    count = int(random.geometric(1 / 12))
    kinds = 1 + random.choice(CATEGORIES, max(1, count // 3), p=weights / weights.sum())
    labels = kinds[random.integers(0, len(kinds), count)]
    boxes = boxes_of(count, random)
    absent = np.setdiff1d(random.integers(1, CATEGORIES + 1, 11), labels)
    lists = {"neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": labels[:1].tolist()[: image % 2]}
    truth["images"].append({"id": image, "height": HEIGHT_PX, "width": WIDTH_PX, **lists})
    for label, box in zip(labels.tolist(), boxes.tolist(), strict=True):
        outline = placed(shapes[random.integers(POOL)], box)
        record = {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": label, "bbox": box}
        truth["annotations"].append({**record, "area": 0.7 * box[2] * box[3], "segmentation": [outline]})
    return labels, boxes, absent


def draw_found(
    image: int, labels: np.ndarray, boxes: np.ndarray, absent: np.ndarray, random: np.random.Generator
) -> DetectionSet:
    """Detections of an image: three of ten near an object, mostly of its label; the rest anywhere, of any label."""
    of = random.integers(0, len(labels), DETECTIONS)
    near = random.random(DETECTIONS) < 0.3
    moved = boxes[of] + random.normal(0, 0.1, (DETECTIONS, 4)) * boxes[of][:, [2, 3, 2, 3]]
    found = np.where(near[:, None], moved, boxes_of(DETECTIONS, random))
    found[:, 2:] = found[:, 2:].clip(2)
    verified = np.concatenate([labels, absent])
    mixed = np.where(
        random.random(DETECTIONS) < 0.35,
        verified[random.integers(0, len(verified), DETECTIONS)],
        random.integers(1, CATEGORIES + 1, DETECTIONS),
    )
    classes = np.where(near & (random.random(DETECTIONS) < 0.8), labels[of], mixed)
    scores = np.sort((random.random(DETECTIONS) ** 3).astype(np.float32))[::-1]
    return DetectionSet(image, classes, scores, found.astype(np.float32))


def draw_masks(boxes: np.ndarray, shapes: np.ndarray, random: np.random.Generator) -> list[dict[str, Any]]:
    """A shape of the pool in each box, as run lengths."""
    from pycocotools import mask as coco_mask

    picked = random.integers(0, POOL, len(boxes))
    polygons = [placed(shapes[at], box) for at, box in zip(picked, boxes.tolist(), strict=True)]
    found: list[dict[str, Any]] = coco_mask.frPyObjects(polygons, HEIGHT_PX, WIDTH_PX)
    return found


def records_of(found: DetectionSet) -> Iterator[dict[str, Any]]:
    """What results.json has of an image."""
    columns = (found.labels.tolist(), found.scores.tolist(), found.boxes.tolist())
    for place, (label, score, box) in enumerate(zip(*columns, strict=True)):
        shape: dict[str, Any] = {"bbox": box}
        if found.rles:
            rle = found.rles[place]
            shape = {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
        yield {"image_id": found.image, "category_id": label, "score": score, **shape}


def write_waiting(shards: Path, number: int, waiting: list[DetectionSet]) -> None:
    """One shard of the images that wait for it."""
    from lvis_rcnn.dataset.detections import Detections, pack_rles, shard_path, write_shard

    ids = np.repeat([found.image for found in waiting], DETECTIONS)
    labels, scores, boxes = (
        np.concatenate([getattr(found, name) for found in waiting]) for name in ("labels", "scores", "boxes")
    )
    nothing = {"size": [HEIGHT_PX, WIDTH_PX], "counts": b""}
    rles = [rle for found in waiting for rle in found.rles or [nothing] * DETECTIONS]
    write_shard(shard_path(shards, number), Detections(ids, labels, scores, boxes, *pack_rles(rles)))


def ours(folder: Path, kind: Literal["bbox", "segm"], source: str) -> dict[str, Any]:
    """Our scorer; ``source`` is shards or results.json."""
    from lvis_rcnn.evaluation.average_precision import score
    from lvis_rcnn.evaluation.ground_truth import parse_truth
    from lvis_rcnn.evaluation.results import read_detections

    clock = time.process_time()
    truth = parse_truth((folder / "truth.json").read_bytes(), "truth.json")
    read = time.process_time()
    found = read_detections(folder / source, truth, (kind,))
    loaded = time.process_time()
    scores = score(truth, found, kind)
    spent = {"truth": read - clock, "detections": loaded - read, "scoring": time.process_time() - loaded}
    return {"metrics": scores.metrics, "spent": {name: round(value, 2) for name, value in spent.items()}}


def theirs(folder: Path, kind: str, _: str) -> dict[str, Any]:
    """The lvis package as its readers use it, with np.float restored."""
    vars(np)["float"] = float
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS(str(folder / "truth.json"))
    judge = LVISEval(truth, LVISResults(truth, str(folder / "results.json")), kind)
    judge.run()
    return {"metrics": {name: None if value == -1 else float(value) for name, value in judge.results.items()}}


def hotcoco(folder: Path, kind: str, source: str) -> dict[str, Any]:
    """Hotcoco."""
    import hotcoco  # type: ignore[import-not-found]

    truth = hotcoco.COCO(str(folder / "truth.json"))
    judge = hotcoco.LVISeval(truth, truth.load_res(str(folder / source)), kind)
    judge.run()
    return {"metrics": dict(judge.get_results())}


def vernier(folder: Path, kind: str, source: str) -> dict[str, Any]:
    """vernier, whose documented interface takes no 300 detections an image."""
    from vernier import _core  # type: ignore[import-not-found]

    truth = _core.CocoDataset.from_lvis_json((folder / "truth.json").read_bytes())
    options = {"parity_mode": "strict", "max_dets_per_image": 300, "use_cats": True, "num_threads": 1}
    if kind == "segm":
        options, source = {**options, "dt_area": "mask"}, "boxed.json"
    grid = getattr(_core, f"evaluate_{kind}_grid")(truth, (folder / source).read_bytes(), **options)
    return {"metrics": dict(zip(NAMES, grid.accumulate([300]).summarize_lvis(truth, [300]).stats, strict=True))}


def ultrafast(folder: Path, kind: str, source: str) -> dict[str, Any]:
    """ultrafast-pycocotools."""
    from ultrafast_pycocotools import COCO, COCOeval  # type: ignore[import-not-found]

    truth = COCO(str(folder / "truth.json"), verbose=False)
    options = {"lvis_style": True, "print_function": lambda *_: None}
    judge = COCOeval(truth, truth.loadRes(str(folder / source)), kind, **options)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return {"metrics": dict(zip(NAMES, map(float, judge.stats), strict=True))}


# The order of lvis.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300", "ARs@300", "ARm@300", "ARl@300")

ENGINES: dict[str, tuple[Callable[[Path, Any, str], dict[str, Any]], str]] = {
    "ours, shards": (ours, "shards"),
    "ours, JSON": (ours, "results.json"),
    "lvis, JSON": (theirs, "results.json"),
    "hotcoco, JSON": (hotcoco, "results.json"),
    "vernier, JSON": (vernier, "results.json"),
    "ultrafast, JSON": (ultrafast, "results.json"),
}
RIVALS = tuple(ENGINES)[3:]


def measure(folder: Path, kind: str, engine: str, python: str) -> dict[str, Any]:
    """One engine in a process of its own."""
    command = [python, __file__, "--folder", str(folder), "--kinds", kind, "--engine", engine]
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1], "cpu_s": float("inf")}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_engine(folder: Path, kind: str, engine: str) -> None:
    """In that process: score, and print what it took."""
    function, source = ENGINES[engine]
    result = function(folder, kind, source)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**result, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss * 1024 / 1e9}))


def main() -> None:
    """Draw what is not there, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=IMAGES // 10 + 1, help=f"{IMAGES} is full size (default: a tenth)"
    )
    parser.add_argument("--kinds", nargs="+", default=["bbox", "segm"], choices=("bbox", "segm"))
    parser.add_argument("--lvis", action="store_true", help="measure lvis too: 1 CPU minute and 3 GB at a tenth")
    parser.add_argument("--rivals", metavar="PYTHON", help="a Python that has the engines in Rust (default: skipped)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds in turn, of which the least CPU time counts")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "score_and_lvis")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        run_engine(args.folder, args.kinds[0], args.engine)
        return
    for kind in args.kinds:
        folder = args.folder / f"{kind}_{args.images}"
        if not (folder / "truth.json").exists():
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            # Beside this process, whose peak memory those that it starts would inherit.
            drawing = multiprocessing.Process(target=draw, args=(folder, args.images, kind == "segm"))
            drawing.start()
            drawing.join()
        pythons = dict.fromkeys(ENGINES, sys.executable) | dict.fromkeys(RIVALS, args.rivals)
        if not args.lvis:
            del pythons["lvis, JSON"]
        rounds = [
            {engine: measure(folder, kind, engine, python) for engine, python in pythons.items() if python}
            for _ in range(args.repeats)
        ]
        measured = {name: min((one[name] for one in rounds), key=lambda found: found["cpu_s"]) for name in rounds[0]}
        reference = measured.get("lvis, JSON", measured["ours, shards"])
        for engine, found in measured.items():
            if "failed" in found:
                print(f"{kind} {engine:<15} failed: {found['failed']}")
                continue
            same = "same" if found["metrics"] == reference["metrics"] else "OTHER METRICS"
            less = [reference[name] / found[name] for name in ("cpu_s", "peak_gb")]
            times = f"{less[0]:6.1f} x less CPU, {less[1]:5.1f} x less memory"
            spent = found.get("spent", "")
            print(
                f"{kind} {engine:<15} {found['cpu_s']:7.2f} CPU s, {found['peak_gb']:6.2f} GB, {times}, {same} {spent}"
            )


if __name__ == "__main__":
    main()
