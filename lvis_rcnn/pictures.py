"""What a run finds, as pictures: annotations beside detections, and the objects that it misses.

    python -m lvis_rcnn.pictures --store val.store --images FOLDER --detections DETECTIONS --out pictures

    chosen.png      images of --show, or those with most objects of rare categories: left annotated, right found
    random.png      the same of other images, drawn by --seed
    missed_rare.png, missed_common.png, missed_frequent.png
                    the largest objects that no detection of their category overlaps by half (IoU of boxes)

A star marks rare categories. The same files give the same bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lvis_rcnn.annotations import AnnotationStore, open_store
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.drawing import COLOURS, RARE_MARK, Colour, Shown, captioned, draw_objects, sheet_of, write_picture
from lvis_rcnn.missed_objects import GROUPS, missed, misses_sheet
from lvis_rcnn.scenes import Scenes, read_rgb, read_scenes, shown_annotation, shown_detection

MOST_DETECTIONS = 20
"""Drawn in an image; more hide it."""


def annotated_objects(scenes: Scenes, image: int, colours: dict[int, Colour]) -> list[Shown]:
    """What is annotated in an image, large objects first, so that they lie below."""
    store = scenes.store
    rows, size_hw = store.annotations_of(image), (int(store.heights[image]), int(store.widths[image]))
    by_size = rows.start + np.argsort(-store.areas[rows], kind="stable")
    return [shown_annotation(scenes, int(row), size_hw, colours[int(store.labels[row])]) for row in by_size]


def pair(scenes: Scenes, image: int, least_score: float) -> list[Image.Image]:
    """An image as annotated and as found, side by side; a category has one colour in both."""
    store, found = scenes.store, scenes.found
    rows = [int(row) for row in scenes.detections_of(image) if scenes.labels[row]]
    best = [row for row in rows if found.scores[row] >= least_score][:MOST_DETECTIONS]
    annotated = store.labels[store.annotations_of(image)].tolist()
    present = dict.fromkeys([*annotated, *(int(scenes.labels[row]) for row in best)])
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(present)}
    pixels = read_rgb(scenes, image)
    left = draw_objects(pixels, annotated_objects(scenes, image, colours))
    right = draw_objects(pixels, [shown_detection(scenes, row, colours[int(scenes.labels[row])]) for row in best])
    return [
        captioned(left, [f"image {store.image_ids[image]}: {len(annotated)} annotated", annotated_line(store, image)]),
        captioned(right, [f"{len(best)} found with a score of {least_score:g} or more", best_line(scenes, rows)]),
    ]


def annotated_line(store: AnnotationStore, image: int) -> str:
    """What an image says beyond its objects: categories that are not all annotated."""
    names = [store.categories[label - 1].name for label in store.not_exhaustive_of(image).tolist()]
    return f"not all annotated: {', '.join(names)}" if names else ""


def best_line(scenes: Scenes, rows: Sequence[int]) -> str:
    """How many detections there are at all, how sure the surest is, and how many have no mask."""
    if not rows:
        return "nothing detected at all"
    bare = int((~scenes.found.has_mask[rows]).sum())
    masks = f"; {bare} have no mask, since no score reads it" if bare else ""
    return f"of {len(rows)} detections, the best with {scenes.found.scores[rows[0]]:.2f}{masks}"


def images_with_rare_objects(store: AnnotationStore, number: int) -> list[int]:
    """The images with most objects of rare categories, then with most objects."""
    rare = np.array([False, *(category.frequency == "r" for category in store.categories)])
    image_of = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))
    rare_objects = np.bincount(image_of[rare[store.labels]], minlength=store.num_images)
    order = np.lexsort((np.arange(store.num_images), -np.diff(store.annotation_offsets), -rare_objects))
    return [int(image) for image in order[:number]]


def random_images(store: AnnotationStore, number: int, seed: int, without: Sequence[int]) -> list[int]:
    """Other images, in the order of the store; a pure function of the arguments."""
    others = np.setdiff1d(np.arange(store.num_images), without)
    drawn = np.random.default_rng(seed).choice(others, min(number, len(others)), replace=False)
    return sorted(drawn.tolist())


def positions_of(store: AnnotationStore, image_ids: Sequence[int]) -> list[int]:
    """Where images stand in the store.

    Raises:
        InputError: an id that it does not have.
    """
    place = {image: at for at, image in enumerate(store.image_ids.tolist())}
    for image in image_ids:
        if image not in place:
            raise InputError(f"--show {image}", f"no image of {store.source_name}", allowed="ids of its images")
    return [place[image] for image in image_ids]


def write_pictures(scenes: Scenes, out: Path, shown: Sequence[int], number: int, seed: int, least_score: float) -> None:
    """Write all sheets into ``out``.

    Args:
        scenes: the split and what was found.
        out: folder.
        shown: positions of chosen images; none for those with most rare objects.
        number: images on a sheet.
        seed: of the random ones.
        least_score: detections below it are not drawn.

    Raises:
        InputError: an image cannot be read.
    """
    chosen = list(shown) or images_with_rare_objects(scenes.store, number)
    drawn = random_images(scenes.store, number, seed, chosen)
    how = "chosen by id" if shown else "with most objects of rare categories"
    titles = {"chosen": f"Images {how}", "random": f"Random images, drawn with seed {seed}"}
    for name, images in (("chosen", chosen), ("random", drawn)):
        title = [
            f"{titles[name]}: left annotated, right found",
            f"{scenes.store.source_name}; {RARE_MARK} rare category",
        ]
        write_picture(out / f"{name}.png", sheet_of(title, [pair(scenes, image, least_score) for image in images]))
    misses = missed(scenes)
    for group, name in GROUPS.items():
        write_picture(out / f"missed_{name}.png", misses_sheet(scenes, misses, group))


def step(args: argparse.Namespace) -> None:
    """Draw the pictures of a run."""
    store = open_store(args.store)
    shown = positions_of(store, args.show)
    scenes = read_scenes(store, args.images, args.detections)
    write_pictures(scenes, args.out, shown, args.number, args.seed, args.score)
    log.info("wrote the pictures of %d images: %s", store.num_images, args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--store", type=Path, required=True, metavar="STORE", help="annotation store of the images")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of the images, or of their zips"
    )
    parser.add_argument("--detections", type=Path, required=True, metavar="DIR", help="folder of shards")
    parser.add_argument("--show", type=int, nargs="+", default=[], metavar="ID", help="ids of the chosen images")
    parser.add_argument(
        "--number", type=int, default=6, choices=range(1, 51), metavar="N", help="images on a sheet (default: 6)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of the random images (default: 0)")
    parser.add_argument(
        "--score", type=float, default=0.3, metavar="S", help="least score that is drawn (default: 0.3)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    run_step(parser, step)


if __name__ == "__main__":
    main()
