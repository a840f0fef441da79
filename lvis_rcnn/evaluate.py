"""Score detections by the LVIS protocol: anyone's results, from any detector.

    python -m lvis_rcnn evaluate GT.json DETECTIONS
    python -m lvis_rcnn evaluate GT.json DETECTIONS --bootstrap 1000 --out metrics.json

Prints the 13 metrics of each kind as the lvis package does, -1 where one is undefined; with --log into that file alone.
DETECTIONS is a folder of shards (see dataset.detections) or a results file as the LVIS server takes it: a list of
{"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation": RLE or polygons}. Boxes are scored
where results have a box, masks where results and annotations have a segmentation; --kinds asks for one of them. A mask
is small, medium or large by its own area (the lvis package takes the area of the box where a result has both).

With --coco-exhaustive GT.json is plain COCO: categories without annotations in an image are absent from it, those with
a crowd region there are not exhaustive, and a category is rare, common or frequent by its images in this file, or with
--frequencies in that one (up to 10, up to 100, more). The protocol stays that of LVIS.

--out FILE writes what follows, and the match results (see evaluation.matches) beside it, of which `compare` takes two:
matches.npz, or NAME.npz beside a file that is not called metrics.json.

metrics.json: {"format": "lvis_rcnn.metrics", "version": 1, "bbox": {...}, "segm": {...}, ...}, each kind with the
official names (AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300, ARl@300) as unrounded
fractions; null where no annotation defines the value. Without detections AP is 0, not null. "per_category" is a list of
{"id", "label", "name", "frequency", "objects", "bbox": AP, "segm": AP}; "curves" holds for each kind the mean precision
at each "recall" for "all", "r", "c" and "f" at IoU "0.5", "0.75" and "0.5:0.95"; "official" says whether the lvis
package was run as well and agrees, bit for bit, in these metrics and in all of precision and recall. Where not both
kinds are scored, "only" is {"kind", "why"}.

With --bootstrap N there is "intervals": {"resamples": N, "seed", "level": 0.95, "method", "bbox": {"AP": [low, high],
...}, "segm": {...}}, null where the metric is or no interval can be given.

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
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.config.protocols import MINIVAL, Protocol, protocols_by_name
from lvis_rcnn.dataset.detections import check_number, record_of
from lvis_rcnn.evaluation.compare import matches_beside
from lvis_rcnn.evaluation.interface import annotations_of, any_detections, kinds_of_truth
from lvis_rcnn.evaluation.lvis_api import lines_of
from lvis_rcnn.evaluation.matches import is_matches, write_matches
from lvis_rcnn.evaluation.results import ALL_KINDS, KINDS
from lvis_rcnn.evaluation.scoring import Scoring, score_detections
from lvis_rcnn.system.cli import (
    InputError,
    add_coco_options,
    add_number,
    add_output,
    check_writable,
    log,
    run_step,
    step_parser,
)
from lvis_rcnn.system.files import write_json


def evaluate(
    annotations: Path,
    detections: Path,
    scoring: Scoring,
    matches: Path | None = None,
    coco_exhaustive: bool = False,
    frequencies: Path | None = None,
) -> dict[str, Any]:
    """Score detections against an LVIS-format annotation file; the value is that of metrics.json.

    Args:
        annotations: LVIS v0.5 or v1 JSON, or one's own in that form.
        detections: folder of shards, or results JSON.
        scoring: how they are scored.
        matches: file for the match results.
        coco_exhaustive: whether the annotations are plain COCO.
        frequencies: COCO file whose images count for frequencies; by default the annotations.

    Raises:
        InputError: a file is missing or damaged, a record is not as the protocol needs it, the detections were made for
            other annotations, or the lvis package gets another result.
    """
    read = annotations_of(annotations, coco_exhaustive, frequencies, scoring.kinds)
    detection_set = any_detections(detections, read.truth, scoring.kinds or kinds_of_truth(read.truth))
    check_belonging(detections, read.sha256, len(detection_set))
    metrics, kept = score_detections(read, detection_set, scoring)
    if matches is not None:
        write_matches(matches, kept)
    return metrics


def check_belonging(detections: Path, annotations_sha256: str, count: int) -> None:
    """Compare shards with the inference.json beside their folder, if there is one.

    Raises:
        InputError: inference read other annotations, or wrote another number of detections.
    """
    record = record_of(detections)
    if record is not None and record.get("annotations_sha256") != annotations_sha256:
        where = str(detections.parent / "inference.json")
        raise InputError(where, "these detections were made for other annotations", fix="infer again")
    check_number(detections, record, count)


def table_lines(metrics: dict[str, Any]) -> Iterator[str]:
    """The metrics as the lvis package prints them, with 95 % intervals where there are any, and the protocol."""
    for section in (metrics, *metrics.get("protocols", {}).values()):
        for kind in (kind for kind in KINDS if kind in section):
            yield f"{KINDS[kind]} ({kind})" + (f", {section['title']}" if "title" in section else "")
            values = {name: -1.0 if value is None else value for name, value in section[kind].items()}
            cap = metrics["detections_per_image"] if "AR@300" in values else None
            yield from lines_of(values, cap, section["intervals"][kind] if "intervals" in section else None)
    yield f"{metrics['protocol']} ({metrics['images']:,} images, {metrics['detections']:,} detections)"


def inputs_of(args: argparse.Namespace) -> tuple[Path, Path]:
    """Annotations and detections, named by options or by their places; InputError unless there is one of each."""
    placed = [path for path in (args.ground_truth, args.results) if path is not None]
    named = [path if path is not None or not placed else placed.pop(0) for path in (args.annotations, args.detections)]
    if None in named or placed:
        what = "name both once, before options that take several values: evaluate GT.json DETECTIONS --kinds bbox"
        raise InputError("annotations and detections", "one is missing, or there are too many", fix=what)
    return named[0], named[1]


def subset_files(given: Sequence[Path]) -> dict[str, Path]:
    """The file of each subset by its name; minival is a rule and has none."""
    return {path.stem: path for path in given if path != Path(MINIVAL)}


def asked_protocols(args: argparse.Namespace) -> tuple[Protocol, ...]:
    """The protocols beside AP@300 that the arguments ask for.

    Raises:
        InputError: --protocols names one that is none, or leaves out what other options ask for; or a subset cannot be
            named as its file is.
    """
    try:
        known = protocols_by_name(path.stem for path in args.subset if path != Path(MINIVAL))
    except ValueError as error:
        raise InputError("--subset", str(error), fix="rename the file") from None
    if unknown := [name for name in args.protocols if name not in known]:
        raise InputError(f"--protocols {unknown[0]}", "is no protocol", allowed=", ".join(known))
    subsets = {"", *(path.stem for path in args.subset)}
    if args.protocols:
        chosen = tuple(known[name] for name in args.protocols)
        unused = [f"--subset {name}" for name in subsets - {"", *(one.subset for one in chosen)}]
        unused += ["--fixed"] * (args.fixed and not any(one.is_fixed for one in chosen))
        unused += ["--boundary"] * (args.boundary and not any(one.is_boundary for one in chosen))
        if unused:
            raise InputError(unused[0], "is in none of --protocols", fix="name a protocol with it, or leave it out")
        return chosen
    return tuple(
        one
        for one in known.values()
        if one.subset in subsets and args.boundary >= one.is_boundary and args.fixed >= one.is_fixed
    )


def derived_matches(out: Path) -> Path:
    """Where the match results go that belong to ``out``; InputError where something else is there."""
    matches = matches_beside(out)
    check_writable("--matches", matches, is_folder=False)
    if out.name == "matches.json":
        what = "match results would go to matches.npz, which belongs to metrics.json"
        raise InputError(f"--out {out}", what, fix="name another file")
    if matches.exists() and not is_matches(matches):
        what = f"match results would replace {matches}, which holds something else"
        raise InputError(f"--out {out}", what, fix="name another file, or say where they go: --matches")
    return matches


def step(args: argparse.Namespace) -> None:
    """Score, write, show."""
    annotations, detections = inputs_of(args)
    scoring = Scoring(
        detections_per_image=args.detections_per_image,
        official=args.official,
        resamples=args.bootstrap,
        protocols=asked_protocols(args),
        subset_files=subset_files(args.subset),
        processes=args.processes,
        kinds=args.kinds,
    )
    matches = args.matches or (derived_matches(args.out) if args.out else None)
    for option, path in (("--out", args.out), ("--matches", matches)):
        if path is not None and os.path.realpath(path.parent) == os.path.realpath(detections):
            raise InputError(f"{option} {path}", "lies among the detections", fix="name a place in another folder")
    metrics = evaluate(annotations, detections, scoring, matches, args.coco_exhaustive, args.frequencies)
    # Of a study it is the log that keeps them: the jobs of all runs share a terminal.
    show = log.debug if args.log else print
    for line in table_lines(metrics):
        show(line)
    if args.out is not None:
        write_json(args.out, metrics)
        log.info("wrote %s and %s", args.out, matches)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("ground_truth", nargs="?", type=Path, metavar="GT.json", help="LVIS-format annotations")
    results = "folder of shards, or LVIS results JSON"
    parser.add_argument("results", nargs="?", type=Path, metavar="DETECTIONS", help=results)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the same as GT.json")
    parser.add_argument("--detections", type=Path, metavar="PATH", help="the same as DETECTIONS")
    add_coco_options(parser)
    per_image = "the best N detections of an image count, over all categories; 1 to 300 (default: 300, as the protocol)"
    add_number(parser, "--detections-per-image", per_image, 1, 300, default=300, metavar="N")
    parser.add_argument(
        "--kinds",
        action="extend",
        nargs="+",
        choices=ALL_KINDS,
        default=[],
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
    add_output(parser, "--matches", "match results to write (default: beside --out)", suffix=".npz", required=False)
    parser.add_argument("--fixed", action="store_true", help="score AP-fixed, too: 10,000 detections per category")
    parser.add_argument("--boundary", action="store_true", help="score boundary AP of masks, too")
    subset = "score these images alone, too: minival (COCO val2017), or a text file with one image id a line"
    parser.add_argument(
        "--subset", action="extend", nargs="+", type=Path, default=[], metavar="minival|FILE", help=subset
    )
    named = "just these in place of all combinations: fixed, boundary, minival, minival_fixed, boundary_fixed, ..."
    parser.add_argument("--protocols", action="extend", nargs="+", default=[], metavar="NAME", help=named)
    processes = "processes that compare masks, from some ten thousand of them on; 1 to 256 (default: 1)"
    add_number(parser, "--processes", processes, 1, 256, default=1, metavar="N")
    written = "metrics.json to write, with match results beside it (default: none)"
    add_output(parser, "--out", written, suffix=".json", required=False)
    run_step(parser, step)


if __name__ == "__main__":
    main()
