"""Federated LVIS AP: judge only what was annotated (Gupta et al. 2019, section 2.3).

    python -m lvis_rcnn.evaluate --annotations GT.json --detections DETECTIONS --out metrics.json

DETECTIONS is a folder of shards (see lvis_rcnn.detections) or a results file as the LVIS server takes it: a list of
{"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation": RLE or polygons}. Boxes are scored
where results have a box, masks where they have a segmentation.

metrics.json: {"format": "lvis_rcnn.metrics", "version": 1, "bbox": {...}, "segm": {...}, ...}, each kind with the
official names (AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300, ARl@300) as unrounded
fractions; null where no annotation defines the value. Finding nothing is AP 0, not null.
"""

import argparse
import contextlib
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from pycocotools import mask as coco_mask
from tabulate import tabulate

from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.detections import read_shards, sha256_of_shards
from lvis_rcnn.files import sha256_of_file, write_json

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, Kind] = ("bbox", "segm")
METRIC_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)


class Rle(msgspec.Struct, frozen=True):
    """A run-length mask, compressed (text) or not (a list of run lengths)."""

    size: tuple[int, int]
    counts: str | list[int]


Segmentation = Rle | list[list[float]]


class Result(msgspec.Struct, frozen=True):
    """One detection; boxes and polygons in pixels of the original image."""

    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: Segmentation | None = None


class TruthImage(msgspec.Struct, frozen=True):
    """What the protocol reads of an image."""

    id: int
    height: int
    width: int
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class TruthAnnotation(msgspec.Struct, frozen=True):
    """What the protocol reads of an annotation."""

    id: int
    image_id: int
    category_id: int
    area: float
    bbox: tuple[float, float, float, float]
    segmentation: Segmentation


class TruthCategory(msgspec.Struct, frozen=True):
    """What the protocol reads of a category."""

    id: int
    frequency: Literal["r", "c", "f"]


class Truth(msgspec.Struct, frozen=True):
    """What the protocol reads of an LVIS annotation file."""

    images: list[TruthImage]
    annotations: list[TruthAnnotation]
    categories: list[TruthCategory]


def evaluate(annotations: Path, detections: Path, detections_per_image: int) -> dict[str, Any]:
    """Score detections against an LVIS-format annotation file; the value is that of metrics.json.

    Args:
        annotations: LVIS v0.5 or v1 JSON, or one's own in that form.
        detections: folder of shards, or results JSON.
        detections_per_image: the best this many of an image count, over all categories together; 1 to 300.

    Raises:
        InputError: either file is missing or damaged, a record is not as the protocol needs it, or the detections
            were made for other annotations.
    """
    annotations_sha256 = sha256_of_file(annotations) if annotations.is_file() else ""
    dataset = read_truth(annotations)
    results, detections_sha256 = read_results(detections)
    check_belonging(detections, annotations_sha256, len(results))
    check_results(dataset, results, where=str(detections))
    category_ids = {category["id"] for category in dataset["categories"]}
    unknown = sum(result.category_id not in category_ids for result in results)
    if unknown:
        log.info("%d detections of categories that the annotations do not know are left out", unknown)
    return {
        "format": "lvis_rcnn.metrics",
        "version": 1,
        **{kind: score(dataset, results, kind, detections_per_image) for kind in kinds_of(results)},
        "protocol": f"LVIS, lvis {version('lvis')}, {detections_per_image} detections an image, mask sizes from masks",
        "images": len(dataset["images"]),
        "detections": len(results),
        "unknown_category_detections": unknown,
        "detections_per_image": detections_per_image,
        "annotations_sha256": annotations_sha256,
        "detections_sha256": detections_sha256,
        "versions": {name: version(name) for name in ("lvis", "pycocotools", "numpy")},
    }


def read_json(path: Path) -> Any:
    """Parse a JSON file, NaN included so that the record that holds it can be named.

    Raises:
        InputError: missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (ValueError, OSError) as error:
        raise InputError(str(path), f"not readable as JSON: {error}", mend="get the file again") from None


def read_truth(path: Path) -> dict[str, Any]:
    """Annotations as the ``lvis`` package reads them, once they hold all that the protocol needs.

    Raises:
        InputError: a key is missing or of another type, an id stands twice or is 0, a reference leads nowhere.
    """
    dataset: dict[str, Any] = read_json(path)
    truth: Truth = converted(dataset, Truth, where=str(path))
    if not truth.images or not truth.categories:
        raise InputError(str(path), "no images or no categories", mend="name an LVIS annotation file")
    unique_ids(truth.images, f"{path}: images")
    sizes = {image.id: (image.height, image.width) for image in truth.images}
    category_ids = unique_ids(truth.categories, f"{path}: categories")
    unique_ids(truth.annotations, f"{path}: annotations")
    for annotation in truth.annotations:
        where = f"{path}: annotation {annotation.id}"
        if annotation.id == 0:
            # The protocol marks a detection as unmatched by 0, so this object would never be found.
            raise InputError(where, "id 0 means 'unmatched' to the protocol", mend="number annotations from 1")
        if annotation.image_id not in sizes:
            raise InputError(where, f"unknown image {annotation.image_id}", allowed="an id of images")
        if annotation.category_id not in category_ids:
            raise InputError(where, f"unknown category {annotation.category_id}", allowed="an id of categories")
        check_segmentation(annotation.segmentation, sizes[annotation.image_id], where)
    return dataset


def unique_ids(records: Iterable[TruthImage | TruthAnnotation | TruthCategory], where: str) -> set[int]:
    """The ids of ``records``, refusing one that stands twice."""
    seen: set[int] = set()
    for record in records:
        if record.id in seen:
            raise InputError(where, f"id {record.id} stands twice", mend="give each its own id")
        seen.add(record.id)
    return seen


def converted(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``; the error names the record by its place in the file (``$.annotations[3].area``)."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(where, str(error), mend="correct the file") from None


def read_results(path: Path) -> tuple[list[Result], str]:
    """Detections of a folder of shards or of a results file, and the digest of what was read.

    Raises:
        InputError: damaged, or a record is not a detection.
    """
    if not path.is_dir():
        return converted(read_json(path), list[Result], where=str(path)), sha256_of_file(path)
    found = read_shards(path)
    rows = zip(found.image_ids, found.category_ids, found.scores, found.boxes_xywh, strict=True)
    results = []
    for index, (image_id, category_id, value, box) in enumerate(rows):
        rle = found.rle(index)
        mask = Rle((rle["size"][0], rle["size"][1]), rle["counts"].decode("latin-1"))
        results.append(Result(int(image_id), int(category_id), float(value), tuple(box.tolist()), mask))
    return results, sha256_of_shards(path)


def check_belonging(detections: Path, annotations_sha256: str, count: int) -> None:
    """Compare shards with the inference.json beside their folder, where there is one.

    Raises:
        InputError: inference read other annotations, or wrote another number of detections.
    """
    record = detections.parent / "inference.json"
    if not detections.is_dir() or not record.is_file():
        return
    inference = read_json(record)
    if inference.get("annotations_sha256") != annotations_sha256:
        raise InputError(str(record), "these detections were made for other annotations", mend="infer again")
    if inference.get("detections", count) != count:
        what = f"shards hold {count} detections, inference wrote {inference.get('detections')}"
        raise InputError(str(detections), what, mend="run inference again")


def check_results(dataset: dict[str, Any], results: list[Result], where: str) -> None:
    """Refuse what the protocol would misread without a word.

    Raises:
        InputError: an unknown image, a score or box that is no number, a mask of another size than its image, a
            polygon that is none, or a kind that only some of the results have.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    kinds = kinds_of(results)
    for index, result in enumerate(results):
        record = f"{where}: result {index} (image {result.image_id}, category {result.category_id})"
        if result.image_id not in sizes:
            raise InputError(record, "unknown image", allowed="an image id of the annotations")
        if not math.isfinite(result.score):
            raise InputError(record, f"score is {result.score}", allowed="a finite number")
        if kinds_of([result]) != kinds:
            raise InputError(
                record, f"has {' and '.join(kinds_of([result])) or 'nothing'}, result 0 has {' and '.join(kinds)}"
            )
        if result.bbox is not None and not all(map(math.isfinite, result.bbox)):
            raise InputError(record, f"bbox is {list(result.bbox)}", allowed="four finite numbers")
        if result.segmentation is not None:
            check_segmentation(result.segmentation, sizes[result.image_id], record)


def kinds_of(results: list[Result]) -> tuple[Kind, ...]:
    """The kinds that can be scored, by the first result; both where there is none, since nothing found is AP 0."""
    if not results:
        return KINDS
    present = {"bbox": results[0].bbox is not None, "segm": results[0].segmentation is not None}
    return tuple(kind for kind in KINDS if present[kind])


def check_segmentation(segmentation: Segmentation, size: tuple[int, int], record: str) -> None:
    """Refuse polygons of fewer than three points and masks that do not fit ``size`` (height, width)."""
    if isinstance(segmentation, Rle):
        if segmentation.size != size:
            raise InputError(record, f"mask size is {list(segmentation.size)}", allowed=f"{list(size)}, as the image")
        if not runs_fit(segmentation):
            raise InputError(record, "mask is damaged: its runs do not fit its size", mend="write the mask again")
        return
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            what = f"polygon of {len(polygon)} numbers"
            raise InputError(record, what, allowed="an even number, at least 6", mend="remove or complete the polygon")


def score(
    dataset: dict[str, Any], results: list[Result], kind: Kind, detections_per_image: int
) -> dict[str, float | None]:
    """The 13 metrics of the official protocol, in fractions; null where no annotation defines one.

    Neither argument is changed. The cap of an image comes before categories are looked at, and ties keep file order.
    """
    log.info("scoring %s of %d detections in %d images", kind, len(results), len(dataset["images"]))
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    # lvis cannot take an empty list. A detection without area is dropped by the protocol, so it stands for none.
    first = dataset["images"][0]["id"]
    scored = results or [Result(first, dataset["categories"][0]["id"], 0.0, (0.0, 0.0, 0.0, 0.0), [])]
    records = [official_record(sizes[result.image_id], result, kind) for result in scored]
    with official_package() as lvis:
        # LVIS() takes only a path, and reading 1 GB of JSON a second time costs a minute.
        truth = lvis.LVIS.__new__(lvis.LVIS)
        truth.logger = logging.getLogger("lvis.lvis")
        truth.dataset = {**dataset, "annotations": [dict(annotation) for annotation in dataset["annotations"]]}
        truth._create_index()
        judge = lvis.LVISEval(truth, lvis.LVISResults(truth, records, max_dets=detections_per_image), kind)
        judge.run()
    values = {name: float(judge.results[name]) for name in METRIC_NAMES}
    return {name: None if value == -1 else value for name, value in values.items()}


def runs_fit(mask: Rle) -> bool:
    """Whether the runs of a mask cover no more than its image (compressed) or exactly it (run lengths)."""
    pixels = mask.size[0] * mask.size[1]
    if isinstance(mask.counts, list):
        return min(mask.counts, default=0) >= 0 and sum(mask.counts) == pixels
    # Area of one mask a call: pycocotools fails on lists of 256 and more under NumPy 2.
    area = coco_mask.area({"size": list(mask.size), "counts": mask.counts}) if mask.counts.isascii() else math.inf
    return bool(area <= pixels)


def official_record(image_size: tuple[int, int], result: Result, kind: Kind) -> dict[str, Any]:
    """One detection as ``lvis`` takes it, with nothing but what ``kind`` needs.

    A mask beside a box would be binned by the box's area, so the box is left out.
    """
    record: dict[str, Any] = {
        "image_id": result.image_id,
        "category_id": result.category_id,
        "score": result.score,
    }
    if kind == "bbox":
        return {**record, "bbox": list(result.bbox or ())}
    return {**record, "segmentation": compressed(result.segmentation or [], *image_size)}


def compressed(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """A mask in the one form that pycocotools compares: polygons are drawn, run lengths packed."""
    if isinstance(segmentation, Rle) and isinstance(segmentation.counts, str):
        return {"size": list(segmentation.size), "counts": segmentation.counts}
    packed: dict[str, Any]
    if isinstance(segmentation, Rle):
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": segmentation.counts}, height, width)
    elif segmentation:
        packed = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return packed


@contextlib.contextmanager
def official_package() -> Iterator[Any]:
    """The ``lvis`` package, for as long as the block lasts.

    lvis 0.5.3 needs ``np.float``, which NumPy dropped, warns through a deprecated method, and configures the root
    logger when imported; all three are put back. The import draws in OpenCV and matplotlib, so it waits until here.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    added = "float" not in vars(np)
    if added:
        vars(np)["float"] = float
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("lvis").setLevel(logging.ERROR)
            import lvis

            yield lvis
    finally:
        root.handlers[:], root.level = handlers, level
        if added:
            del vars(np)["float"]


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as a small table for the terminal, in percent."""
    kinds = [kind for kind in KINDS if kind in metrics]
    names = {"bbox": "box", "segm": "mask"}
    rows = [[names[kind], *(percent(metrics[kind][name]) for name in METRIC_NAMES)] for kind in kinds]
    return tabulate(rows, headers=["", *METRIC_NAMES], stralign="right", disable_numparse=True)


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:.1f}"


def step(args: argparse.Namespace) -> None:
    """Score, write, summarise."""
    metrics = evaluate(args.annotations, args.detections, args.detections_per_image)
    write_json(args.out, metrics)
    log.info("%s (percent; %d images, %d detections)", metrics["protocol"], metrics["images"], metrics["detections"])
    for line in summary(metrics).splitlines():
        log.info("%s", line)
    log.info("wrote %s", args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="LVIS-format annotations")
    parser.add_argument(
        "--detections", type=Path, required=True, metavar="PATH", help="folder of shards, or LVIS results JSON"
    )
    parser.add_argument(
        "--detections-per-image",
        type=int,
        default=300,
        choices=range(1, 301),
        metavar="N",
        help="best detections an image that count, over all categories; 1 to 300 (default: 300, the protocol's)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="metrics.json to write")
    run_step(parser, step)


if __name__ == "__main__":
    main()
