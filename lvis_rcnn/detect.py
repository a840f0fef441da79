"""Detect objects in pictures of your own, with a model of this project or of MMDetection.

    python -m lvis_rcnn detect results/mini/r50/seed0/model.pth photo.jpg --out found
    python -m lvis_rcnn detect mask_rcnn_r50_….pth photos more.zip --out found --categories cup "coffee table"

Pictures are files, folders (with all that lies below them) and zips; no study, annotations or store are needed. Each
is drawn with masks, boxes and names, at most 1,000 px long, as PNG (found/a.png of a.jpg; below found the folders are
those of the folder or zip), and a line says what was found in it. All detections are in found/results.json, a list of
results as LVIS and COCO have them, with two more keys:

    {"image_id": 1, "file_name": "photos/a.jpg", "category_id": 344, "category_name": "cup", "score": 0.87,
     "bbox": [x, y, width, height], "segmentation": {"size": [height, width], "counts": RLE}}

image_id counts the pictures from 1; file_name is the path as typed, of a folder or zip followed by the path in it.
category_id is the category's place in the model, from 1, or with --annotations its id there. A picture is turned as its
EXIF data say, as in training: pixels are those of the upright picture.

A picture that cannot be read or drawn is named and left out, and the exit status is then 2 when all others are done.
"""

import argparse
import difflib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import msgspec
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lvis_rcnn.config.study import load_study
from lvis_rcnn.dataset.detections import Detections, results_of
from lvis_rcnn.dataset.images import read_image_bgr
from lvis_rcnn.dataset.listing import Listed, listed_images
from lvis_rcnn.inference.standalone import NamedCategory, Standalone, load_standalone, read_categories
from lvis_rcnn.reporting.drawing import COLOURS, Shown, draw_objects, factor_of, write_picture
from lvis_rcnn.system.cli import DISK_IS_FULL, InputError, add_number, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import atomic_file


def wanted_labels(categories: Sequence[NamedCategory], names: Sequence[str]) -> Int64[torch.Tensor, " k"] | None:
    """Labels of the categories of these names; None where no name is given.

    Raises:
        InputError: the model has no category of a name; the most similar ones are listed.
    """
    known = [category.name for category in categories]
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
            allowed = f"{len(known):,} names, among them {', '.join(similar)}"
            raise InputError(f"--categories {name}", "is no category of this model", allowed=allowed)
    labels = [label for name in names for label, one in enumerate(known, start=1) if one == name]
    return torch.tensor(labels) if names else None


def detect_all(
    network: Standalone, images: Sequence[Listed], wanted: Int64[torch.Tensor, " k"] | None, out: Path
) -> list[str]:
    """Write results.json and a picture of each image into ``out``; returns the errors of those that are left out."""
    unread: list[str] = []
    names = {category.id: category.name for category in network.categories}
    with (
        atomic_file(out / "results.json") as temporary,
        temporary.open("wb") as file,
        tqdm(images, desc="detect", unit="picture", disable=None) as bar,
    ):
        separator = b"[\n"
        for image_id, image in enumerate(bar, start=1):
            try:
                pixels = read_image_bgr(image.file)
                found = network.detections(pixels, image_id, wanted)
                write_drawn(out / image.place, drawn(pixels, found, names))
            except InputError as error:
                unread.append(str(error))
                tell(bar, f"left out: {error}", sys.stderr)
                continue
            for record in records(found, image, names):
                file.write(separator + msgspec.json.encode(record))
                separator = b",\n"
            tell(bar, f"{summary(image, found, names)}; {out / image.place}", sys.stdout)
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
    return unread


def write_drawn(path: Path, picture: Image.Image) -> None:
    """Write a drawn picture; InputError where this one cannot be written, but others can."""
    try:
        write_picture(path, picture)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise
        fix = "name another folder with --out, or change the name of the picture"
        raise InputError(str(path), f"cannot be written ({error.strerror})", fix=fix) from None


def tell(bar: "tqdm[Listed]", line: str, stream: TextIO) -> None:
    """Print a line above the bar, and write it to the log file, if there is one."""
    log.debug("%s", line)
    bar.write(line, file=stream)


def records(found: Detections, image: Listed, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Entries of results.json."""
    for record in results_of(found):
        head = {"image_id": record.pop("image_id"), "file_name": image.name, "category_id": record["category_id"]}
        yield {**head, "category_name": names[record.pop("category_id")], **record}


def summary(image: Listed, found: Detections, names: dict[int, str]) -> str:
    """What is said of a picture: how many detections of which categories, most frequent first."""
    counts = Counter(names[category] for category in found.category_ids.tolist())
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    number = f"{len(found)} detection{'s' * (len(found) > 1)} ({listed})" if listed else "no detections"
    return f"{image.name}: {number}"


def drawn(image_bgr: UInt8[np.ndarray, "h w 3"], found: Detections, names: dict[int, str]) -> Image.Image:
    """A picture with its detections, the best on top, each in a colour of its own as long as there are any."""
    _, down = factor_of(*image_bgr.shape[:2])
    height, width = image_bgr[::down, ::down].shape[:2]
    image_rgb = cv2.cvtColor(cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    shown = []
    for row in reversed(range(len(found))):
        x, y, w, h = (found.boxes_xywh[row] / down).tolist()
        # A mask at a time: a hundred of a large photograph are a gigabyte.
        mask = np.ascontiguousarray(coco_mask.decode(found.rle(row))[::down, ::down])
        text = f"{names[int(found.category_ids[row])]} {found.scores[row]:.2f}"
        shown.append(Shown((x, y, x + w, y + h), mask, text, COLOURS[row % len(COLOURS)]))
    return draw_objects(image_rgb, shown)


def device_of(asked: str | None) -> torch.device:
    """The device that was asked for, by default a GPU where there is one; InputError where there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda", "torch sees no GPU", allowed="cpu", fix="leave --device out")
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def step(args: argparse.Namespace) -> None:
    """Detect in all pictures."""
    images = listed_images(args.pictures, args.out)[: args.limit]
    network = load_standalone(
        args.model,
        device_of(args.device),
        study=load_study(args.study) if args.study else None,
        categories=read_categories(args.annotations) if args.annotations else None,
        calibration=args.calibration,
        trust_pickle=args.trust_pickle,
    )
    kept = {"score_threshold": args.score_threshold, "detections_per_image": args.detections_per_image, "masks": "all"}
    network = Standalone(**{**vars(network), "test": network.test.model_copy(update=kept)})
    log.info("%s: %s, %d categories, on %s", args.model, network.backbone, len(network.categories), network.device)
    unread = detect_all(network, images, wanted_labels(network.categories, args.categories), args.out)
    log.info("%d of %d pictures: %s", len(images) - len(unread), len(images), args.out / "results.json")
    if unread:
        what = f"left out, the first: {unread[0]}"
        raise InputError(f"{len(unread)} of {len(images)} pictures", what)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="model.pth, or a file of MMDetection 2.x or 3.x")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="image file, folder or zip")
    add_output(
        parser, "--out", "folder of results.json and the drawn pictures", is_folder=True, holds=("results.json",)
    )
    above = "keep detections with a score above this (default: 0.3)"
    add_number(parser, "--score-threshold", above, 0, 1, kind=float, default=0.3, metavar="S")
    parser.add_argument(
        "--categories", action="extend", nargs="+", default=[], metavar="NAME", help="keep these alone (default: all)"
    )
    most = "keep the best N of a picture (default: 100)"
    add_number(parser, "--detections-per-image", most, 1, 10_000, default=100, metavar="N")
    add_number(parser, "--limit", "take the first N pictures (default: all)", 1, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")
    ids = "annotation file or store with the model's categories: for their ids, or where the model has no names"
    parser.add_argument("--annotations", type=Path, metavar="FILE", help=ids)
    study = "study with the settings of network and test images, where the model does not say them or calibrates not"
    parser.add_argument("--study", type=Path, metavar="FILE", help=study)
    table = "output of calibrate, of the model's training split, where its settings or the study calibrate scores"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=table)
    trust = "run the code that the model asks for if it holds more than weights: only if you trust who made it"
    parser.add_argument("--trust-pickle", action="store_true", help=trust)
    run_step(parser, step)


if __name__ == "__main__":
    main()
