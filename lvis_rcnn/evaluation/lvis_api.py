"""``LVIS``, ``LVISResults`` and ``LVISEval``, called as those of the ``lvis`` package: a program changes its import.

    from lvis_rcnn.evaluation.lvis_api import LVIS, LVISEval, LVISResults

The numbers are those of ``lvis`` 0.5.3 to the last bit, and so are ``eval["precision"]`` and ``eval["recall"]``. As
there, a mask is small, medium or large by the area of its box where results have both, and ``max_dets`` of ``params``
is only a label.

Areas of boxes are computed in float64. What is changed in the lists and records of ``dataset`` of the annotations is
scored; a record that is added to or removed from ``anns``, ``imgs``, ``cats`` or the maps alone is not.

What differs: an empty list of results has AP 0 in place of an IndexError; what ``lvis`` would misread is an InputError
(dataset.detections, evaluation.results); results that the caller owns are not changed; results that have only a box
have no masks, and such that have only a mask no boxes. There is no ``eval_imgs``, no ``ious`` and no ``dt_pointers``.
Other thresholds, areas or ``use_cats = 0``, which 0.5.3 gets wrong, are refused.
"""

import datetime
import json
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from pycocotools import mask as coco_mask

from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.evaluation.average_precision import (
    AREA_RANGES_PX,
    FREQUENCIES,
    RECALLS,
    THRESHOLDS,
    Scores,
    metrics,
    score,
)
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.interface import AnyDetections, any_detections, held, json_text, path_of
from lvis_rcnn.evaluation.results import ALL_KINDS, DetectionSet, Kind
from lvis_rcnn.evaluation.subsets import only_objects
from lvis_rcnn.system.cli import InputError

Record = dict[str, Any]


class LVIS:
    """An annotation file; its records become Python objects where they are asked for, not to be scored."""

    def __init__(self, annotation_path: str | Path) -> None:
        """Read a file; InputError where there is none."""
        self.logger = logging.getLogger(__name__)
        self._where = str(annotation_path)
        self._text = bytes(read_text(path_of(annotation_path), "annotations", "an LVIS annotation file (JSON)"))

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """What the file holds; what is changed in it is scored."""
        dataset: dict[str, Any] = json.loads(self._text)
        return dataset

    @cached_property
    def anns(self) -> dict[int, Record]:
        """Annotations by their ids."""
        return {record["id"]: record for record in self.dataset["annotations"]}

    @cached_property
    def cats(self) -> dict[int, Record]:
        """Categories by their ids."""
        return {record["id"]: record for record in self.dataset["categories"]}

    @cached_property
    def imgs(self) -> dict[int, Record]:
        """Images by their ids."""
        return {record["id"]: record for record in self.dataset["images"]}

    @cached_property
    def img_ann_map(self) -> defaultdict[int, list[Record]]:
        """Annotations of each image."""
        found: defaultdict[int, list[Record]] = defaultdict(list)
        for record in self.dataset["annotations"]:
            found[record["image_id"]].append(record)
        return found

    @cached_property
    def cat_img_map(self) -> defaultdict[int, list[int]]:
        """Image of each annotation of a category."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for record in self.dataset["annotations"]:
            found[record["category_id"]].append(record["image_id"])
        return found

    def get_ann_ids(
        self,
        img_ids: Iterable[int] | None = None,
        cat_ids: Iterable[int] | None = None,
        area_rng: Sequence[float] | None = None,
    ) -> list[int]:
        """Ids of annotations of these images and categories, with an area within ``area_rng``, without its ends."""
        found = self.dataset["annotations"]
        if img_ids is not None:
            found = [record for image in img_ids for record in self.img_ann_map[image]]
        if cat_ids is None and area_rng is None:
            return [record["id"] for record in found]
        wanted = None if cat_ids is None else {*cat_ids}
        low, high = area_rng or (0, np.inf)
        return [
            record["id"]
            for record in found
            if (wanted is None or record["category_id"] in wanted) and low < record["area"] < high
        ]

    def get_cat_ids(self) -> list[int]:
        """Ids of all categories, in the order of the file."""
        return list(self.cats)

    def get_img_ids(self) -> list[int]:
        """Ids of all images, in the order of the file."""
        return list(self.imgs)

    def load_anns(self, ids: Iterable[int] | None = None) -> list[Record]:
        """The annotations with these ids; all where ``ids`` is None."""
        return loaded(self.anns, ids)

    def load_cats(self, ids: Iterable[int] | None = None) -> list[Record]:
        """The categories with these ids; all where ``ids`` is None."""
        return loaded(self.cats, ids)

    def load_imgs(self, ids: Iterable[int] | None = None) -> list[Record]:
        """The images with these ids; all where ``ids`` is None."""
        return loaded(self.imgs, ids)

    def ann_to_rle(self, ann: Record) -> dict[str, Any]:
        """The mask of an annotation as compressed run lengths."""
        image, outline = self.imgs[ann["image_id"]], ann["segmentation"]
        if isinstance(outline, Mapping) and not isinstance(outline["counts"], list):
            return dict(outline)
        drawn = coco_mask.frPyObjects(outline, image["height"], image["width"])
        rle: dict[str, Any] = coco_mask.merge(drawn) if isinstance(outline, list) else drawn
        return rle

    def ann_to_mask(self, ann: Record) -> np.ndarray:
        """The mask of an annotation, uint8, height by width."""
        mask: np.ndarray = coco_mask.decode(self.ann_to_rle(ann))
        return mask

    def ground_truth(self, kind: Kind) -> GroundTruth:
        """What is scored: the file, or ``dataset`` where a program has asked for it and may have changed it."""
        if "dataset" in vars(self):
            return parse_truth(json_text(self.dataset, self._where), self._where, (kind,))
        try:
            return self._of_file
        except InputError:
            return parse_truth(self._text, self._where, (kind,))

    @cached_property
    def _of_file(self) -> GroundTruth:
        return parse_truth(self._text, self._where)


def loaded(records: Mapping[int, Record], ids: Iterable[int] | None) -> list[Record]:
    """The records with these ids; all where ``ids`` is None."""
    return list(records.values()) if ids is None else [records[number] for number in ids]


class LVISResults(LVIS):
    """Detections on an annotation file, of which the best ``max_dets`` of an image count."""

    def __init__(self, lvis_gt: LVIS | str | Path, results: AnyDetections, max_dets: int = 300) -> None:
        """Keep what is to be scored; it is read and checked by :meth:`LVISEval.evaluate`.

        Args:
            lvis_gt: the annotations, or the path of their file.
            results: path of a results file, what it holds, or all else that :func:`interface.evaluate` takes.
            max_dets: at most so many detections of an image count; all where it is negative.

        Raises:
            InputError: ``results`` are no detections.
        """
        self.logger = logging.getLogger(__name__)
        self.lvis_gt = lvis_gt if isinstance(lvis_gt, LVIS) else LVIS(lvis_gt)
        self.results: Any = held(results)
        self.max_dets = max_dets

    @property
    def most_of_an_image(self) -> int:
        """``max_dets`` as a number."""
        return self.max_dets if self.max_dets >= 0 else np.iinfo(np.int64).max

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """The annotations' images and categories, and the detections that count, each with an id and an area."""
        results, content = self.results, "an LVIS results file (JSON), or a list of what it holds"
        if isinstance(results, str | os.PathLike):
            results = json.loads(bytes(read_text(Path(results), "results", content)))
        if not isinstance(results, list):
            raise InputError("results", f"is {type(results).__name__}, which holds no records", allowed=content)
        of_images: defaultdict[int, list[Record]] = defaultdict(list)
        for record in results:
            of_images[record["image_id"]].append(record)
        for image, records in of_images.items():
            if len(records) > self.most_of_an_image:
                best = sorted(records, key=lambda record: record["score"], reverse=True)
                of_images[image] = best[: self.most_of_an_image]
        kept = [record for records in of_images.values() for record in records]
        return {**self.lvis_gt.dataset, "annotations": [completed(one, number) for number, one in enumerate(kept, 1)]}

    def detections(self, truth: GroundTruth, kind: Kind) -> DetectionSet:
        """What is scored as ``kind``; for masks their boxes as well, if they have one."""
        return any_detections(self.results, truth, ("bbox",) if kind == "bbox" else ALL_KINDS)

    def get_top_results(self, img_id: int, score_thrs: float) -> list[Record]:
        """Detections of an image with a score above ``score_thrs``."""
        return [record for record in self.img_ann_map[img_id] if record["score"] > score_thrs]


def completed(record: Record, number: int) -> Record:
    """A detection with its id, its area, and a box or an outline where it lacks one."""
    if "bbox" not in record:
        rle = record["segmentation"]
        return {**record, "area": coco_mask.area(rle), "bbox": coco_mask.toBbox(rle), "id": number}
    x, y, width, height = record["bbox"]
    outline = [[x, y, x, y + height, x + width, y + height, x + width, y]]
    return {"segmentation": outline, **record, "area": width * height, "id": number}


class Params:
    """What ``LVISEval`` goes by; ``img_ids`` and ``cat_ids`` may be fewer, ``max_dets`` is a label."""

    def __init__(self, iou_type: str) -> None:
        self.img_ids: list[int] = []
        self.cat_ids: list[int] = []
        self.iou_thrs = THRESHOLDS.copy()
        self.rec_thrs = RECALLS.copy()
        self.max_dets = 300
        self.area_rng = [list(bounds) for bounds in AREA_RANGES_PX.values()]
        self.area_rng_lbl = list(AREA_RANGES_PX)
        self.use_cats = 1
        self.img_count_lbl = list(FREQUENCIES)
        self.iou_type = iou_type

    def check(self) -> None:
        """InputError where something is set to what the protocol of LVIS is not."""
        if self.iou_type not in ALL_KINDS:
            raise InputError("params.iou_type", f"is {self.iou_type!r:.40}", allowed=" or ".join(ALL_KINDS))
        usual = Params(self.iou_type)
        for name in ("iou_thrs", "rec_thrs", "area_rng", "area_rng_lbl", "use_cats", "img_count_lbl"):
            if not np.array_equal(getattr(self, name), getattr(usual, name)):
                fix = "leave it as it is, or use the lvis package"
                raise InputError(f"params.{name}", "differs from the protocol of LVIS", fix=fix)


class LVISEval:
    """Scores detections: ``evaluate``, ``accumulate``, ``summarize``, or all of them by ``run``."""

    def __init__(
        self, lvis_gt: LVIS | str | Path, lvis_dt: LVISResults | AnyDetections, iou_type: str = "segm"
    ) -> None:
        """Take annotations, detections, and what is scored: bbox or segm."""
        self.logger = logging.getLogger(__name__)
        if iou_type not in ALL_KINDS:
            raise ValueError(f"iou_type: {iou_type} is not supported.")
        self.lvis_gt = lvis_gt if isinstance(lvis_gt, LVIS) else LVIS(lvis_gt)
        self.lvis_dt = lvis_dt if isinstance(lvis_dt, LVISResults) else LVISResults(self.lvis_gt, lvis_dt)
        self.params = Params(iou_type)
        truth = self.lvis_gt.ground_truth("bbox" if iou_type == "bbox" else "segm")
        self.params.img_ids, self.params.cat_ids = truth.image_ids.tolist(), truth.category_ids.tolist()
        self.freq_groups: list[list[int]] = []
        self._scores: Scores | None = None
        self.eval: dict[str, Any] = {}
        self.results: OrderedDict[str, float] = OrderedDict()

    def evaluate(self) -> None:
        """Match detections of ``params.img_ids`` and ``params.cat_ids``.

        Raises:
            InputError: annotations or detections are not as the protocol needs them, ``params`` differ from it, or
                name an image or a category that the annotations do not have.
        """
        self.params.check()
        kind: Kind = "bbox" if self.params.iou_type == "bbox" else "segm"
        truth = self.lvis_gt.ground_truth(kind)
        detections = self.lvis_dt.detections(truth, kind)
        if kind not in detections.kinds:
            raise InputError(detections.where, f"no {kind}", fix=f"score {' or '.join(detections.kinds)}")
        self.params.img_ids = np.unique(listed("img_ids", self.params.img_ids, truth.image_ids)).tolist()
        self.params.cat_ids = listed("cat_ids", self.params.cat_ids, truth.category_ids)
        sizes_from_boxes = kind == "segm" and detections.boxes_xywh is not None
        self._scores = score(
            of_images(truth, self.params.img_ids),
            detections,
            kind,
            self.lvis_dt.most_of_an_image,
            "boxes" if sizes_from_boxes else "masks",
        )
        at = {number: place for place, number in enumerate(truth.category_ids.tolist())}
        self._categories = [at[number] for number in self.params.cat_ids]
        self._frequencies = [truth.frequencies[place] for place in self._categories]
        self.freq_groups = [
            [place for place, frequency in enumerate(self._frequencies) if frequency == group] for group in FREQUENCIES
        ]

    def accumulate(self) -> None:
        """Fill ``eval``: precision [10, 101, categories, 4] and recall [10, categories, 4], -1 where undefined."""
        if self._scores is None:
            raise RuntimeError("Please run evaluate() first.")
        precision, recall = self._scores.precision[:, :, self._categories], self._scores.recall[:, self._categories]
        self.eval = {
            "params": self.params,
            "counts": list(precision.shape),
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
        }

    def summarize(self) -> None:
        """Fill ``results``: the 13 metrics as fractions, -1 where undefined."""
        if not self.eval:
            raise RuntimeError("Please run accumulate() first.")
        values = metrics(self.eval["precision"], self.eval["recall"], self._frequencies)
        for name, value in values.items():
            key = name.replace("@300", f"@{self.params.max_dets}")
            self.results[key] = -1 if value is None else value

    def run(self) -> None:
        """Score."""
        self.evaluate()
        self.accumulate()
        self.summarize()

    def print_results(self) -> None:
        """Print a line for each metric."""
        for line in lines_of(self.results, self.params.max_dets):
            print(line)

    def get_results(self) -> OrderedDict[str, float]:
        """The metrics by their names; empty before ``summarize``."""
        return self.results


def listed(name: str, ids: Any, known: Int64[np.ndarray, " k"]) -> list[int]:
    """Ids of ``params`` as a list; InputError that names the first that the annotations do not have."""
    of_file = {*known.tolist()}
    try:
        ids = list(ids)
        unknown = [number for number in ids if number not in of_file]
    except TypeError as error:
        raise InputError(f"params.{name}", str(error), allowed="a list of ids of the annotations") from None
    if unknown:
        raise InputError(f"params.{name}", f"unknown id {unknown[0]!r:.40}", allowed="ids of the annotations")
    return [int(number) for number in ids]


def of_images(truth: GroundTruth, image_ids: Sequence[int]) -> GroundTruth:
    """The same annotations, of which nothing is known in other images, so that nothing is scored there."""
    wanted = np.isin(truth.image_ids, image_ids)
    kept = only_objects(truth, np.flatnonzero(wanted[truth.images]))
    return replace(kept, negatives=truth.negatives[wanted[truth.negatives[:, 0]]])


SIZES = {name[0]: name for name in AREA_RANGES_PX}


def lines_of(
    results: Mapping[str, float], max_dets: int | None, intervals: Mapping[str, Sequence[float] | None] | None = None
) -> list[str]:
    """A line for each metric as ``lvis`` prints it, with its 95 % interval where there are ``intervals``.

    Without ``max_dets`` the detections of an image are not limited.
    """
    lines = []
    for name, value in results.items():
        title, short = ("Average Precision", "(AP)") if name.startswith("AP") else ("Average Recall", "(AR)")
        detail = name[2:].partition("@")[0]
        iou = f"{float(detail) / 100:0.2f}" if detail.isdigit() else "0.50:0.95"
        size, group = SIZES.get(detail, "all"), detail if detail in (*FREQUENCIES,) else "all"
        line = f" {title:<18} {short} @[ IoU={iou:<9} | area={size[0] if detail in SIZES else size:>6s} |"
        line += f" maxDets={max_dets or 'all':>3} catIds={group:>3s}] = {value:0.3f}"
        if intervals is not None:
            bounds = intervals.get(name)
            line += "  (no interval)" if bounds is None else f"  [{bounds[0]:0.3f}, {bounds[1]:0.3f}]"
        lines.append(line)
    return lines
