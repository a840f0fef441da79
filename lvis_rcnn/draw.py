"""Draw the embedded dataset: LVIS in miniature, the same pixels and annotations on every machine.

    python -m lvis_rcnn draw --seed 0 --train-images 480 --val-images 100 --out DIR

dataset.mini.scenes describes it.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from lvis_rcnn.dataset.mini.scenes import TRAIN, VAL, describe_categories, draw_split
from lvis_rcnn.system.cli import InputError, add_number, add_output, add_seed, log, run_step, step_parser
from lvis_rcnn.system.files import atomic_folder, sha256_of_json, write_json

WRITTEN = {"images", "train.json", "val.json", "manifest.json"}


def draw_dataset(seed: int, num_train_images: int, num_val_images: int, out: Path) -> dict[str, Any]:
    """Draw both splits into the folder ``out``, which appears whole; returns what manifest.json says.

    The digests are over decoded pixels and canonical JSON: the bytes of a PNG depend on the version of zlib.
    """
    with atomic_folder(out) as folder:
        pixels = hashlib.sha256()
        train = draw_split(folder, seed, TRAIN, num_train_images, 1, pixels)
        val = draw_split(folder, seed, VAL, num_val_images, num_train_images + 1, pixels)
        categories = describe_categories(train["annotations"])
        files = {split: lvis_file(split, records, categories) for split, records in ((TRAIN, train), (VAL, val))}
        for split, content in files.items():
            (folder / f"{split}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        manifest = {
            "format": "lvis_rcnn.mini",
            "version": 1,
            "seed": seed,
            "train_images": num_train_images,
            "val_images": num_val_images,
            "train_annotations": len(train["annotations"]),
            "val_annotations": len(val["annotations"]),
            "categories": dict(Counter(category["frequency"] for category in categories)),
            "pixels_sha256": pixels.hexdigest(),
            "annotations_sha256": sha256_of_json(files),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def lvis_file(split: str, records: dict[str, Any], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """One annotation file in the format of LVIS v1."""
    return {
        "info": {"description": f"lvis-rcnn embedded dataset, {split}", "version": "1", "year": 2026},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": categories,
        **records,
    }


def check_replaceable(out: Path) -> None:
    """Raise InputError if ``out`` is a folder with an entry that this step does not write."""
    foreign = sorted({file.name for file in out.glob("*")} - WRITTEN)
    if foreign:
        raise InputError(
            str(out),
            f"contains {foreign[0]!r}, which is not part of a drawn dataset",
            allowed="a new or empty folder, or one written by this step",
            fix="name another folder with --out",
        )


def step(args: argparse.Namespace) -> None:
    """Draw the dataset and log its size."""
    check_replaceable(args.out)
    manifest = draw_dataset(args.seed, args.train_images, args.val_images, args.out)
    groups = ", ".join(f"{manifest['categories'].get(group, 0)} {group}" for group in "fcr")
    log.info("%s: %d training and %d validation images", args.out, args.train_images, args.val_images)
    log.info("categories by frequency: %s; pixels %s", groups, manifest["pixels_sha256"][:12])


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    add_seed(parser, "the same seed draws the same dataset everywhere", required=True)
    add_number(parser, "--train-images", "images of the training split", 1, required=True, metavar="N")
    add_number(parser, "--val-images", "images of the validation split", 1, required=True, metavar="N")
    add_output(parser, "--out", "folder to write; replaced if it exists", is_folder=True)
    run_step(parser, step)


if __name__ == "__main__":
    main()
