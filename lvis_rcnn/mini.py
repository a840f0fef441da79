"""Draws the embedded dataset: LVIS in miniature, the same pixels and annotations on every machine.

    python -m lvis_rcnn.mini --seed 0 --train-images 480 --val-images 100 --out DIR

The training split has a long tail: counted as LVIS counts, some categories are frequent (more than 100 images), some
common (11 to 100) and some rare (1 to 10). The validation split is flatter on purpose: of 100 images at least 6 show
each category, so that rare ones are measured on more than an accident. As in LVIS, an image has a list of categories
that are surely absent and a list of those of which only some instances are annotated; every other category that does
not occur among its annotations is simply unknown to the scorer. Masks are what is visible, occluded parts are left out.

First everything is planned (which image shows what), then drawn, then annotated from the pixels.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from tqdm import tqdm

from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.files import atomic_folder, sha256_of_json, write_json
from lvis_rcnn.mini_categories import CATEGORIES
from lvis_rcnn.mini_outline import visible_polygons
from lvis_rcnn.mini_paint import BACKGROUNDS, Sprite, paint_object
from lvis_rcnn.mini_plan import DRAW, SPLIT_KEYS, TRAIN, VAL, PlannedImage, PlannedObject, plan_split
from lvis_rcnn.mini_random import Stream, noise

PLACES_TRIED = 60
"""Random places tried for an object before it is left out."""

LEAST_SEEN_PERCENT = 65
"""An object covers others only so far that this much of each stays in sight."""

SHADOW_PX = 2
"""Shadows fall this far to the right and down."""

WRITTEN = {"images", "train.json", "val.json", "manifest.json"}
"""What the folder holds in the end."""


class VisibleObject(NamedTuple):
    """A drawn object and the pixels of it that are seen."""

    category: int
    mask: Bool[np.ndarray, "h w"]


def draw_image(
    seed: int, split: str, index: int, plan: PlannedImage
) -> tuple[UInt8[np.ndarray, "h w 3"], list[VisibleObject]]:
    """Draw one planned image; an object that finds no place without hiding another one is left out."""
    stream = Stream(seed, DRAW, SPLIT_KEYS[split], index)
    canvas = stream.choice(BACKGROUNDS)(stream, plan.height, plan.width)
    owners = np.zeros((plan.height, plan.width), dtype=np.int64)
    drawn: list[PlannedObject] = []
    areas_px: list[int] = []
    for planned in plan.objects:
        sprite = paint_object(stream, CATEGORIES[planned.category], planned.size_px)
        place = find_place(stream, owners, areas_px, sprite)
        if place is not None:
            drawn.append(planned)
            areas_px.append(stamp(canvas, owners, sprite, place, owner=len(drawn)))
    light = stream.between(226, 272)
    canvas = canvas * light // 256 + noise(stream, plan.height, plan.width)[:, :, None] // 40
    visible = [VisibleObject(planned.category, owners == owner) for owner, planned in enumerate(drawn, start=1)]
    return np.clip(canvas, 0, 255).astype(np.uint8), visible


def find_place(
    stream: Stream, owners: Int[np.ndarray, "h w"], areas_px: Sequence[int], sprite: Sprite
) -> tuple[int, int] | None:
    """Top and left of a place where the sprite leaves enough of every object below it; None if none is found.

    ``owners`` is the number of the object seen at each pixel, 0 for background; ``areas_px`` are the sizes that objects
    1, 2, ... had when they were drawn.
    """
    (height, width), (sprite_h, sprite_w) = owners.shape, sprite.mask.shape
    for _ in range(PLACES_TRIED):
        top = stream.between(-(sprite_h // 10), height - sprite_h + sprite_h // 10)
        left = stream.between(-(sprite_w // 10), width - sprite_w + sprite_w // 10)
        image, patch = overlap(owners.shape, sprite.mask.shape, top, left)
        below = owners.copy()
        below[image][sprite.mask[patch]] = 0
        seen_px = np.bincount(below.ravel(), minlength=len(areas_px) + 1)[1:]
        if all(100 * seen >= LEAST_SEEN_PERCENT * area for seen, area in zip(seen_px, areas_px, strict=True)):
            return top, left
    return None


def overlap(
    image: tuple[int, ...], patch: tuple[int, ...], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the image and of the patch where a patch at ``top``, ``left`` lies on the image."""
    y0, y1 = max(top, 0), min(top + patch[0], image[0])
    x0, x1 = max(left, 0), min(left + patch[1], image[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def stamp(
    canvas: Int[np.ndarray, "h w 3"],
    owners: Int[np.ndarray, "h w"],
    sprite: Sprite,
    place: tuple[int, int],
    owner: int,
) -> int:
    """Paint a sprite and its shadow in place; returns the number of its pixels inside the image."""
    top, left = place
    image, patch = overlap(owners.shape, sprite.mask.shape, top + SHADOW_PX, left + SHADOW_PX)
    shade = sprite.mask[patch]
    canvas[image][shade] = canvas[image][shade] * 11 // 16
    image, patch = overlap(owners.shape, sprite.mask.shape, top, left)
    mask = sprite.mask[patch]
    canvas[image][mask] = sprite.colours[patch][mask]
    owners[image][mask] = owner
    return int(mask.sum())


def describe_image(
    image_id: int, split: str, plan: PlannedImage, visible: Sequence[VisibleObject], first_annotation_id: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The LVIS record of an image and those of its annotations.

    Invariant: a category is listed as not exhaustive exactly if some of its drawn objects are annotated and some are
    not.
    """
    crowd = [found for found in visible if found.category == plan.crowd]
    left_out = crowd[(len(crowd) + 1) // 2 :]
    annotated = [found for found in visible if not any(found is other for other in left_out)]
    annotations = [
        {"id": annotation_id, "image_id": image_id, "category_id": found.category + 1, **describe_mask(found.mask)}
        for annotation_id, found in enumerate(annotated, start=first_annotation_id)
    ]
    image = {
        "id": image_id,
        "width": plan.width,
        "height": plan.height,
        "file_name": f"{split}/{image_id:06d}.png",
        "license": 1,
        "neg_category_ids": [category + 1 for category in plan.negatives],
        "not_exhaustive_category_ids": sorted({found.category + 1 for found in left_out}),
    }
    return image, annotations


def describe_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Polygons along the pixels' outer edges, box (x, y, width, height) and area, all exact."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "segmentation": visible_polygons(mask),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
    }


def describe_categories(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The LVIS records of the categories, counted on the training split."""
    instances = Counter(annotation["category_id"] for annotation in annotations)
    pairs = {(annotation["category_id"], annotation["image_id"]) for annotation in annotations}
    images = Counter(category_id for category_id, _ in pairs)
    return [
        {
            "id": category_id,
            "name": row.name,
            "synset": row.synset,
            "synonyms": list(row.synonyms),
            "def": row.definition,
            "frequency": frequency_group(images[category_id]),
            "image_count": images[category_id],
            "instance_count": instances[category_id],
        }
        for category_id, row in enumerate(CATEGORIES, start=1)
    ]


def frequency_group(image_count: int) -> str:
    """LVIS's bins over training images (Gupta, Dollar, Girshick 2019, section 4): at most 10 rare, 100 common."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def draw_split(
    folder: Path, seed: int, split: str, num_images: int, first_image_id: int, pixels: Any
) -> dict[str, list[dict[str, Any]]]:
    """Draw and write the images of a split; ``pixels`` is the digest they are added to."""
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    plans = plan_split(seed, split, num_images)
    for index, plan in enumerate(tqdm(plans, desc=f"drawing {split}", unit="image", disable=None)):
        picture, visible = draw_image(seed, split, index, plan)
        image, found = describe_image(first_image_id + index, split, plan, visible, len(annotations) + 1)
        Image.fromarray(picture).save(folder / "images" / image["file_name"])
        pixels.update(f"{image['file_name']} {picture.shape}\n".encode() + picture.tobytes())
        images.append(image)
        annotations.extend(found)
    return {"images": images, "annotations": annotations}


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
    """One file in the form of LVIS v1."""
    return {
        "info": {"description": f"lvis-rcnn embedded dataset, {split}", "version": "1", "year": 2026},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": categories,
        **records,
    }


def check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that holds anything but a drawn dataset.

    Raises:
        InputError: ``out`` is a file, or has an entry that this step does not write.
    """
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is not a folder", mend="name another folder with --out")
    foreign = sorted({file.name for file in out.glob("*")} - WRITTEN)
    if foreign:
        raise InputError(
            str(out),
            f"holds {foreign[0]!r}, which is not part of a drawn dataset",
            allowed="a new or empty folder, or one that this step wrote",
            mend="name another folder with --out",
        )


def step(args: argparse.Namespace) -> None:
    """Draw the dataset and say what is in it."""
    for option, value, least in (
        ("--seed", args.seed, 0),
        ("--train-images", args.train_images, 1),
        ("--val-images", args.val_images, 1),
    ):
        if value < least:
            raise InputError(option, f"is {value}", allowed=f"{least} or more", mend="change the value")
    check_replaceable(args.out)
    manifest = draw_dataset(args.seed, args.train_images, args.val_images, args.out)
    groups = ", ".join(f"{manifest['categories'].get(group, 0)} {group}" for group in "fcr")
    log.info("%s: %d training and %d validation images", args.out, args.train_images, args.val_images)
    log.info("categories by frequency: %s; pixels %s", groups, manifest["pixels_sha256"][:12])


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--seed", type=int, required=True, help="the same seed draws the same dataset everywhere")
    parser.add_argument("--train-images", type=int, required=True, metavar="N", help="images of the training split")
    parser.add_argument("--val-images", type=int, required=True, metavar="N", help="images of the validation split")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; replaced if it exists")
    run_step(parser, step)


if __name__ == "__main__":
    main()
