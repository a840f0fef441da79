"""Score detections by the LVIS protocol: anyone's results, from any detector.

    python -m lvis_rcnn evaluate --annotations GT.json --detections DETECTIONS --out metrics.json

DETECTIONS is a folder of shards (see dataset.detections) or a results file as the LVIS server takes it: a list of
{"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation": RLE or polygons}. Boxes are scored
where results have a box, masks where results and annotations have a segmentation; --kinds asks for one of them. A mask
is small, medium or large by its own area (the lvis package takes the area of the box where a result has both).

metrics.json: {"format": "lvis_rcnn.metrics", "version": 1, "bbox": {...}, "segm": {...}, ...}, each kind with the
official names (AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300, ARl@300) as unrounded
fractions; null where no annotation defines the value. Without detections AP is 0, not null. "per_category" is a list of
{"id", "label", "name", "frequency", "objects", "bbox": AP, "segm": AP}; "curves" holds for each kind the mean precision
at each "recall" for "all", "r", "c" and "f" at IoU "0.5", "0.75" and "0.5:0.95"; "official" says whether the lvis
package was run as well and agrees, bit for bit, in these metrics and in all of precision and recall. Where not both
kinds are scored, "only" is {"kind", "why"}.

With --bootstrap N there is "intervals": {"resamples": N, "seed", "level": 0.95, "method", "bbox": {"AP": [low, high],
...}, "segm": {...}}, null where the metric is or no interval can be given; --matches FILE keeps the match results (see
evaluation.matches), from which `compare` tells whether two runs differ. With --fixed there is "fixed": {"bbox": {...},
"segm": {...}, "protocol"}, the same metrics by the protocol of Dave et al. 2021: the best 10,000 detections of a
category over all images count, however many of an image.
"""

import argparse
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.dataset.detections import sha256_of_shards
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.ground_truth import parse_truth
from lvis_rcnn.evaluation.matches import write_matches
from lvis_rcnn.evaluation.results import ALL_KINDS, KINDS, read_detections
from lvis_rcnn.evaluation.scoring import Annotations, Scoring, score_detections
from lvis_rcnn.system.cli import InputError, add_number, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import parsed, write_json


def evaluate(annotations: Path, detections: Path, scoring: Scoring, matches: Path | None = None) -> dict[str, Any]:
    """Score detections against an LVIS-format annotation file; the value is that of metrics.json.

    Args:
        annotations: LVIS v0.5 or v1 JSON, or one's own in that form.
        detections: folder of shards, or results JSON.
        scoring: how they are scored.
        matches: file for the match results.

    Raises:
        InputError: a file is missing or damaged, a record is not as the protocol needs it, the detections were made for
            other annotations, or the lvis package gets another result.
    """
    text = bytes(read_text(annotations, "--annotations", "an LVIS annotation file (JSON)"))
    truth = parse_truth(text, str(annotations))
    read = Annotations(truth, text, hashlib.sha256(text).hexdigest())
    detection_set = read_detections(detections, truth, scoring.kinds or (ALL_KINDS if truth.has_masks else ("bbox",)))
    check_belonging(detections, read.sha256, len(detection_set))
    if not detection_set.sha256:
        detection_set = replace(detection_set, sha256=sha256_of_shards(detections))
    metrics, kept = score_detections(read, detection_set, scoring)
    if matches is not None:
        write_matches(matches, kept)
    return metrics


def check_belonging(detections: Path, annotations_sha256: str, count: int) -> None:
    """Compare shards with the inference.json beside their folder, if there is one.

    Raises:
        InputError: inference read other annotations, or wrote another number of detections.
    """
    record = detections.parent / "inference.json"
    if not os.path.isdir(detections) or not record.is_file():
        return
    try:
        inference = parsed(msgspec.json.decode, record.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError) as error:
        raise InputError(str(record), f"not readable as JSON: {error}", fix="run inference again") from None
    if inference.get("annotations_sha256") != annotations_sha256:
        raise InputError(str(record), "these detections were made for other annotations", fix="infer again")
    if inference.get("detections", count) != count:
        what = f"shards hold {count} detections, inference wrote {inference.get('detections')}"
        raise InputError(str(detections), what, fix="run inference again")


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as a small table for the terminal, in percent; a dash where one is undefined."""
    values = {word: [metrics[kind][name] for name in METRIC_NAMES] for kind, word in KINDS.items() if kind in metrics}
    rows = [[word, *("-" if value is None else f"{100 * value:.1f}" for value in row)] for word, row in values.items()]
    return tabulate(rows, headers=["", *METRIC_NAMES], stralign="right", disable_numparse=True)


def step(args: argparse.Namespace) -> None:
    """Score, write, summarise."""
    scoring = Scoring(args.detections_per_image, args.official, args.bootstrap, args.fixed, args.processes, args.kinds)
    metrics = evaluate(args.annotations, args.detections, scoring, args.matches)
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
    per_image = "the best N detections of an image count, over all categories; 1 to 300 (default: 300, as the protocol)"
    add_number(parser, "--detections-per-image", per_image, 1, 300, default=300, metavar="N")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=ALL_KINDS,
        default=(),
        help="bbox (boxes), segm (masks); the other is neither read nor checked (default: all that both files have)",
    )
    parser.add_argument(
        "--official",
        choices=("auto", "yes", "no"),
        default="auto",
        help="run the lvis package, too, and fail unless it agrees exactly; auto: up to 5,000 images (default: auto)",
    )
    resamples = (
        f"resamples of the images for 95 %% intervals of all metrics, 200 to {MOST_RESAMPLES:,}; 0: none (default: 0)"
    )
    add_number(parser, "--bootstrap", resamples, 0, MOST_RESAMPLES, default=0, metavar="N")
    add_output(parser, "--matches", "match results to write (matches.npz)", suffix=".npz", required=False)
    parser.add_argument("--fixed", action="store_true", help="score AP-fixed, too: 10,000 detections per category")
    processes = "processes that compare masks, from some ten thousand of them on; 1 to 256 (default: 1)"
    add_number(parser, "--processes", processes, 1, 256, default=1, metavar="N")
    add_output(parser, "--out", "metrics.json to write", suffix=".json")
    run_step(parser, step)


if __name__ == "__main__":
    main()
