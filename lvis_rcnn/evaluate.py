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
evaluation.matches), from which `compare` tells whether two runs differ.

The same detections can be scored by further protocols, each compared by `compare --protocol NAME`, and each a key of
"protocols": {NAME: {"title", "protocol", "images", "bbox": {...}, "segm": {...}, "intervals", "per_category"}}. Their
metrics are those above, without @300 in names where the detections of an image are not limited:

    --fixed            fixed: AP-fixed (Dave et al. 2021), the best 10,000 of a category over all images count, however
                       many of an image; also as "fixed", as in earlier versions
    --boundary         boundary: overlaps are also those of boundaries (Cheng et al. 2021); masks alone
    --subset minival   minival: the images of COCO val2017 alone, by their coco_url
    --subset IDS.txt   IDS: the images of a text file with one id a line

Several of these are scored in all combinations (fixed, minival, minival_fixed, ...; boundary_fixed is that of the LVIS
challenge 2021), or just those that --protocols names.
"""

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.config.protocols import MINIVAL, Protocol, protocols_by_name
from lvis_rcnn.dataset.detections import sha256_of_shards
from lvis_rcnn.dataset.json_text import read_text
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
    found = {word: metrics[kind] for kind, word in KINDS.items() if kind in metrics}
    rows = [
        [word, *("-" if value is None else f"{100 * value:.1f}" for value in of.values())] for word, of in found.items()
    ]
    names = next(iter(found.values()))
    return tabulate(rows, headers=["", *names], stralign="right", disable_numparse=True)


def subset_files(given: Sequence[str]) -> dict[str, Path]:
    """The file of each subset by its name; minival is a rule and has none."""
    return {Path(path).stem: Path(path) for path in given if path != MINIVAL}


def asked_protocols(args: argparse.Namespace) -> tuple[Protocol, ...]:
    """The protocols beside AP@300 that the arguments ask for.

    Raises:
        InputError: --protocols names one that is none, or two subsets would have the same name.
    """
    try:
        known = protocols_by_name(Path(path).stem for path in args.subset if path != MINIVAL)
    except ValueError as error:
        raise InputError("--subset", str(error), fix="rename the file") from None
    if unknown := [name for name in args.protocols if name not in known]:
        raise InputError(f"--protocols {unknown[0]}", "is no protocol", allowed=", ".join(known))
    subsets = {"", *(Path(path).stem for path in args.subset)}
    if args.protocols:
        return tuple(known[name] for name in args.protocols)
    return tuple(
        one
        for one in known.values()
        if one.subset in subsets and args.boundary >= one.is_boundary and args.fixed >= one.is_fixed
    )


def step(args: argparse.Namespace) -> None:
    """Score, write, summarise."""
    scoring = Scoring(
        detections_per_image=args.detections_per_image,
        official=args.official,
        resamples=args.bootstrap,
        protocols=asked_protocols(args),
        subset_files=subset_files(args.subset),
        processes=args.processes,
        kinds=args.kinds,
    )
    metrics = evaluate(args.annotations, args.detections, scoring, args.matches)
    write_json(args.out, metrics)
    log.info("%s (percent; %d images, %d detections)", metrics["protocol"], metrics["images"], metrics["detections"])
    for of in (metrics, *metrics.get("protocols", {}).values()):
        for line in [*filter(None, [of.get("title")]), *summary(of).splitlines()]:
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
    parser.add_argument("--boundary", action="store_true", help="score boundary AP of masks, too")
    subset = "score these images alone, too: minival (COCO val2017), or a text file with one image id a line"
    parser.add_argument("--subset", nargs="+", default=(), metavar="minival|FILE", help=subset)
    named = "just these in place of all combinations: fixed, boundary, minival, minival_fixed, boundary_fixed, ..."
    parser.add_argument("--protocols", nargs="+", default=(), metavar="NAME", help=named)
    processes = "processes that compare masks, from some ten thousand of them on; 1 to 256 (default: 1)"
    add_number(parser, "--processes", processes, 1, 256, default=1, metavar="N")
    add_output(parser, "--out", "metrics.json to write", suffix=".json")
    run_step(parser, step)


if __name__ == "__main__":
    main()
