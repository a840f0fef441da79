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
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float64
from tabulate import tabulate

from lvis_rcnn import __version__
from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.dataset.detections import sha256_of_shards
from lvis_rcnn.dataset.json_text import read_text
from lvis_rcnn.dataset.records import positions
from lvis_rcnn.evaluation.average_precision import (
    DETECTIONS_PER_CATEGORY,
    METRIC_NAMES,
    RECALLS,
    Outcomes,
    Scores,
    mean_curves,
    score,
    score_fixed,
)
from lvis_rcnn.evaluation.bootstrap import SEED, resampled_metrics, resampling_of
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.matches import MatchesFile, write_matches
from lvis_rcnn.evaluation.official import difference, official_scores
from lvis_rcnn.evaluation.results import ALL_KINDS, KINDS, DetectionSet, Kind, read_detections
from lvis_rcnn.evaluation.uncertainty import LEVEL, METHOD, Sampled, intervals, metrics_of_runs, resamples_text
from lvis_rcnn.system.cli import InputError, add_number, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import parsed, write_json

Official = Literal["auto", "yes", "no"]

# The lvis package takes 10 GB and ten minutes for so many; above that the check is not automatic.
MOST_IMAGES_CHECKED = 5000


def evaluate(
    annotations: Path,
    detections: Path,
    detections_per_image: int,
    official: Official = "no",
    resamples: int = 0,
    matches: Path | None = None,
    fixed: bool = False,
    processes: int = 1,
    kinds: Sequence[Kind] = (),
) -> dict[str, Any]:
    """Score detections against an LVIS-format annotation file; the value is that of metrics.json.

    Args:
        annotations: LVIS v0.5 or v1 JSON, or one's own in that form.
        detections: folder of shards, or results JSON.
        detections_per_image: at most so many of an image count, the best over all categories together; 1 to 300.
        official: whether the lvis package is run as well; auto: up to 5,000 images.
        resamples: number of resamples of the images, for intervals; 0 for none.
        matches: file for the match results.
        fixed: whether AP-fixed is scored as well.
        processes: number of processes that compare masks, at least 1; the value does not depend on it.
        kinds: what is scored; empty for all that both files have.

    Raises:
        InputError: a file is missing or damaged, a record is not as the protocol needs it, the detections were made for
            other annotations, or the lvis package gets another result.
    """
    text = bytes(read_text(annotations, "--annotations", "an LVIS annotation file (JSON)"))
    annotations_sha256 = hashlib.sha256(text).hexdigest()
    truth = parse_truth(text, str(annotations))
    possible = ALL_KINDS if truth.has_masks else ("bbox",)
    detection_set = read_detections(detections, truth, kinds or possible)
    only = only_kind(kinds, truth, detection_set)
    check_belonging(detections, annotations_sha256, len(detection_set))
    unknown = int((positions(truth.category_ids, detection_set.category_ids) < 0).sum())
    if unknown:
        log.info("%d detections of categories that the annotations do not have are left out", unknown)
    scores: dict[Kind, Scores] = {}
    for kind in detection_set.kinds:
        log.info("scoring %s of %d detections in %d images", kind, len(detection_set), len(truth.image_ids))
        scores[kind] = score(truth, detection_set, kind, detections_per_image, processes=processes)
    checked = check_officially(official, text, detection_set, scores, len(truth.image_ids), detections_per_image)
    outcomes = {kind: scores[kind].outcomes for kind in scores}
    kept = MatchesFile(
        annotations_sha256=annotations_sha256,
        detections_sha256=detection_set.sha256 or sha256_of_shards(detections),
        detections_per_image=detections_per_image,
        category_ids=truth.category_ids,
        frequencies=truth.frequencies,
        outcomes=outcomes,
        resampled=all_resampled(outcomes, truth.frequencies, resamples) if resamples else {},
    )
    if matches is not None:
        write_matches(matches, kept)
    return {
        "format": "lvis_rcnn.metrics",
        "version": 1,
        **{kind: scores[kind].metrics for kind in scores},
        **({"intervals": all_intervals(kept, scores)} if resamples else {}),
        **({"fixed": all_fixed(truth, detection_set)} if fixed else {}),
        "protocol": protocol_line(detections_per_image, checked),
        "scorer": f"lvis_rcnn {__version__}",
        "official": checked,
        "unknown_category_detections": unknown,
        **({"only": only} if only else {}),
        **what_was_scored(truth, detection_set, scores, kept),
        "versions": {name: version(name) for name in ("lvis", "pycocotools", "numpy")},
        "per_category": per_category(truth, scores),
        "curves": {
            kind: {"recall": RECALLS.round(2).tolist(), **mean_curves(scores[kind].precision, truth.frequencies)}
            for kind in scores
        },
    }


def only_kind(asked: Sequence[Kind], truth: GroundTruth, detection_set: DetectionSet) -> dict[str, str]:
    """The one kind that is scored, and why not both; empty where both are.

    Raises:
        InputError: the detections lack a kind that was asked for.
    """
    lacking = set(asked) - set(detection_set.kinds)
    if lacking:
        what = f"the detections have no {' and no '.join(sorted(KINDS[kind] for kind in lacking))}"
        raise InputError(detection_set.where, what, fix="ask for another kind: --kinds")
    if len(detection_set.kinds) == len(KINDS):
        return {}
    (kind,) = detection_set.kinds
    other = "a mask" if kind == "bbox" else "a box"
    if asked:
        why = "asked for by --kinds"
    else:
        why = f"no detection has {other}" if truth.has_masks else "no annotation has a mask (segmentation)"
    log.info("scoring %s only: %s", kind, why)
    return {"kind": kind, "why": why}


def what_was_scored(
    truth: GroundTruth, detection_set: DetectionSet, scores: dict[Kind, Scores], kept: MatchesFile
) -> dict[str, Any]:
    """Counts and digests of the annotations and the detections."""
    return {
        "images": len(truth.image_ids),
        "detections": len(detection_set),
        "detections_without_mask": 0 if detection_set.has_mask is None else int((~detection_set.has_mask).sum()),
        "judged_detections": {kind: len(scores[kind].outcomes.images) for kind in scores},
        "detections_per_image": kept.detections_per_image,
        "annotations_sha256": kept.annotations_sha256,
        "detections_sha256": kept.detections_sha256,
    }


def all_resampled(
    outcomes: dict[Kind, Outcomes], frequencies: Sequence[str], resamples: int
) -> dict[Kind, Float64[np.ndarray, "s m"]]:
    """The metrics of each kind in resamples of the images."""
    samples: dict[Kind, np.ndarray] = {}
    for kind, of_kind in outcomes.items():
        log.info("resampling the images for %s: %s", kind, resamples_text(resamples))
        samples[kind] = resampled_metrics(resampling_of(of_kind, frequencies), resamples, SEED)
    return samples


def all_intervals(kept: MatchesFile, scores: dict[Kind, Scores]) -> dict[str, Any]:
    """The intervals that metrics.json holds."""
    resamples = len(next(iter(kept.resampled.values())))
    record: dict[str, Any] = {"resamples": resamples, "seed": SEED, "level": LEVEL, "method": METHOD}
    for kind, samples in kept.resampled.items():
        metrics = metrics_of_runs([{kind: scores[kind].metrics}], kind)
        record[kind] = intervals(Sampled(metrics, samples[None]))
    return record


def all_fixed(truth: GroundTruth, detection_set: DetectionSet) -> dict[str, Any]:
    """AP-fixed as metrics.json holds it; names have no @300, since detections per image are not limited."""
    record: dict[str, Any] = {}
    for kind in detection_set.kinds:
        log.info("scoring %s by AP-fixed", kind)
        metrics = score_fixed(truth, detection_set, kind).metrics
        record[kind] = {name.removesuffix("@300"): value for name, value in metrics.items()}
    return {**record, "protocol": fixed_line(truth, detection_set)}


def fixed_line(truth: GroundTruth, detection_set: DetectionSet) -> str:
    """The limits of AP-fixed, and how far the detections reach them: a detector that keeps few per image may not."""
    most = int(np.bincount(positions(truth.image_ids, detection_set.image_ids), minlength=1).max())
    of_categories = np.bincount(
        positions(truth.category_ids, detection_set.category_ids) + 1, minlength=len(truth.category_ids) + 1
    )[1:]
    fewer = int((of_categories < DETECTIONS_PER_CATEGORY).sum())
    return (
        f"AP-fixed (Dave et al. 2021): at most {DETECTIONS_PER_CATEGORY:,} detections of a category over all images, no"
        f" cap on an image; the detections hold {most} of an image at most, and fewer than"
        f" {DETECTIONS_PER_CATEGORY:,} of {fewer:,} of {len(of_categories):,} categories"
    )


def per_category(truth: GroundTruth, scores: dict[Kind, Scores]) -> list[dict[str, Any]]:
    """AP of every category in the order of ids; None where it has no object."""
    objects = next(iter(scores.values())).num_objects[:, 0].tolist()
    ids, labels = truth.category_ids.tolist(), truth.labels.tolist()
    return [
        {
            "id": ids[place],
            "label": labels[place],
            "name": truth.names[place],
            "frequency": truth.frequencies[place],
            "objects": objects[place],
            **{kind: scores[kind].category_ap[place] for kind in scores},
        }
        for place in range(len(ids))
    ]


def check_officially(
    official: Official,
    annotations: bytes,
    detection_set: DetectionSet,
    scores: dict[Kind, Scores],
    num_images: int,
    detections_per_image: int,
) -> dict[str, Any]:
    """Run the lvis package where that is wanted; returns what metrics.json says about it.

    Raises:
        InputError: it gets another result.
    """
    package = f"lvis {version('lvis')}"
    if official == "no" or (official == "auto" and num_images > MOST_IMAGES_CHECKED):
        reason = "not wanted" if official == "no" else f"more than {MOST_IMAGES_CHECKED:,} images"
        return {"package": package, "agrees": None, "why": f"not run ({reason})"}
    for kind, ours in scores.items():
        log.info("scoring %s by the official package", kind)
        other = difference(ours, official_scores(annotations, detection_set, kind, detections_per_image))
        if other:
            fix = "report it with both files; --official no skips this check"
            raise InputError(f"{detection_set.where}: {kind}", f"{package} disagrees: {other}", fix=fix)
    return {"package": package, "agrees": True}


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


def protocol_line(detections_per_image: int, official: dict[str, Any]) -> str:
    """The protocol and the scorer, for a person and for the table; part of metrics.json, so its wording is fixed."""
    check = "agrees in every bit" if official["agrees"] else official["why"]
    return (
        f"LVIS, {detections_per_image} detections an image, mask sizes from masks;"
        f" scored by lvis_rcnn {__version__}, {official['package']} {check}"
    )


def step(args: argparse.Namespace) -> None:
    """Score, write, summarise."""
    metrics = evaluate(
        args.annotations,
        args.detections,
        args.detections_per_image,
        args.official,
        args.bootstrap,
        args.matches,
        args.fixed,
        args.processes,
        args.kinds,
    )
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
