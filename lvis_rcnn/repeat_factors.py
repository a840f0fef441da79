"""How often each image is drawn in one epoch, so that rare categories are seen enough.

Repeat factor sampling (Gupta, Dollar and Girshick 2019, LVIS, arXiv 1908.03195v2, appendix B.2):

    1. f(c) = images that contain c / N           N = images that are trained on
    2. r(c) = max(1, sqrt(t / f(c)))              t = threshold: categories rarer than t are repeated
    3. r(I) = max over the categories c in I of r(c)

The paper draws r(I) copies in expectation; MMDetection's ClassBalancedDataset, followed here, takes a fixed number:

    4. copies(I) = ceil(r(I))

so that an image of r(I) = 1.001 counts twice in every epoch. N counts images *after* those without annotation and
those with an edge below 32 pixels are dropped; both change f(c).

    python -m lvis_rcnn.repeat_factors --store train.store --threshold 1e-3 --out repeat_factors
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.annotations import AnnotationStore, open_store
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.files import atomic_file, write_json

MIN_EDGE_PX = 32


@dataclass(frozen=True, eq=False)
class RepeatFactors:
    """Everything that is known about the repetition of a training split."""

    threshold: float | None
    """None: no oversampling, every kept image once."""
    without_annotation: Bool[np.ndarray, " n"]
    too_small: Bool[np.ndarray, " n"]
    image_counts: Int64[np.ndarray, " c"]
    """Kept images that contain the category."""
    instance_counts: Int64[np.ndarray, " c"]
    """Annotations of the category in kept images."""
    category_factors: Float64[np.ndarray, " c"]
    image_factors: Float64[np.ndarray, " n"]
    copies: Int64[np.ndarray, " n"]
    """Entries of each image in one epoch; 0 where it is dropped."""

    @property
    def images_kept(self) -> int:
        """Images that are trained on."""
        return int((self.copies > 0).sum())

    @property
    def epoch_length(self) -> int:
        """Images of one pass over the oversampled list."""
        return int(self.copies.sum())


def repeat_factors(store: AnnotationStore, threshold: float | None) -> RepeatFactors:
    """Steps 1 to 4 for a training split; ``threshold`` in (0, 1], None turns oversampling off.

    Invariant: one factor >= 1 and one number of copies for each image of the store, in its order.

    Raises:
        InputError: no image is left to train on.
    """
    num_categories = len(store.categories)
    annotations_each = np.diff(store.annotation_offsets)
    without_annotation = annotations_each == 0
    too_small = np.minimum(store.heights, store.widths) < MIN_EDGE_PX
    kept = ~(without_annotation | too_small)
    if not kept.any():
        raise InputError(
            store.source_name,
            "no image is left to train on",
            allowed=f"images with an annotation and both edges of {MIN_EDGE_PX} pixels or more",
            mend="name another training split",
        )
    image_of = np.repeat(np.arange(store.num_images), annotations_each)
    of_kept = kept[image_of]
    category_of = store.labels[of_kept].astype(np.int64) - 1
    # One number for each (image, category), so that a category counts once an image.
    pairs = np.unique(image_of[of_kept] * num_categories + category_of)
    images, categories = np.divmod(pairs, num_categories)
    image_counts = np.bincount(categories, minlength=num_categories)
    factors_of_categories = category_factors(image_counts, int(kept.sum()), threshold)
    factors_of_images = np.ones(store.num_images)
    np.maximum.at(factors_of_images, images, factors_of_categories[categories])
    return RepeatFactors(
        threshold=threshold,
        without_annotation=without_annotation,
        too_small=too_small,
        image_counts=image_counts,
        instance_counts=np.bincount(category_of, minlength=num_categories),
        category_factors=factors_of_categories,
        image_factors=factors_of_images,
        copies=np.where(kept, np.ceil(factors_of_images), 0).astype(np.int64),
    )


def category_factors(
    image_counts: Int64[np.ndarray, " c"], num_images: int, threshold: float | None
) -> Float64[np.ndarray, " c"]:
    """Steps 1 and 2; a category without images has factor 1.

    The order of operations is MMDetection's, so that ceil meets the same rounding.
    """
    factors = np.ones(len(image_counts))
    if threshold is not None:
        seen = image_counts > 0
        factors[seen] = np.maximum(1.0, np.sqrt(threshold / (image_counts[seen] / num_images)))
    return factors


def why_none(factors: RepeatFactors) -> str | None:
    """Why no image is repeated, or None where some are."""
    if (factors.copies > 1).any():
        return None
    if factors.threshold is None:
        return "oversampling is off (no threshold)"
    rarest = int(factors.image_counts[factors.image_counts > 0].min())
    return (
        f"even the rarest category is in {rarest} of {factors.images_kept} images, a fraction of "
        f"{rarest / factors.images_kept:.3g}; only categories below the threshold {factors.threshold:g} are repeated"
    )


def summary(factors: RepeatFactors) -> dict[str, Any]:
    """The figures of summary.json."""
    return {
        "threshold": factors.threshold,
        "rounding": "ceil",
        "images": len(factors.copies),
        "images_kept": factors.images_kept,
        "images_dropped": len(factors.copies) - factors.images_kept,
        "images_without_annotation": int(factors.without_annotation.sum()),
        "images_too_small": int(factors.too_small.sum()),
        "epoch_length": factors.epoch_length,
        "repeated_images": int((factors.copies > 1).sum()),
        "repeated_categories": int((factors.category_factors > 1).sum()),
        "categories_without_image": int((factors.image_counts == 0).sum()),
        "largest_factor": float(factors.category_factors.max()),
        "why_none": why_none(factors),
    }


def write_repeat_factors(store: AnnotationStore, factors: RepeatFactors, out: Path) -> None:
    """Write categories.csv, images.csv and, last, summary.json into ``out``; factors keep all their digits."""
    categories = (
        (category.id, category.name, category.frequency, images, instances, factor)
        for category, images, instances, factor in zip(
            store.categories,
            factors.image_counts.tolist(),
            factors.instance_counts.tolist(),
            factors.category_factors.tolist(),
            strict=True,
        )
    )
    header = ("category_id", "name", "frequency", "image_count", "instance_count", "factor")
    write_csv(out / "categories.csv", header, categories)
    images = zip(store.image_ids.tolist(), factors.image_factors.tolist(), factors.copies.tolist(), strict=True)
    write_csv(out / "images.csv", ("image_id", "factor", "copies"), images)
    write_json(out / "summary.json", summary(factors))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write one table, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_copies(folder: Path) -> Int64[np.ndarray, " n"]:
    """Copies of each image in one epoch, in the order of the store; 0 for images that are dropped.

    Raises:
        InputError: no images.csv of ours.
    """
    path = folder / "images.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            copies = np.array([int(row["copies"]) for row in csv.DictReader(file)], np.int64)
        if copies.min(initial=0) < 0 or not copies.any():
            raise ValueError("no image is drawn, or a negative number of times")
        return copies
    except (OSError, KeyError, TypeError, ValueError) as error:
        mend = "write it again with python -m lvis_rcnn.repeat_factors"
        raise InputError(str(path), f"no readable table of copies: {error!r}", mend=mend) from None


def step(args: argparse.Namespace) -> None:
    """Compute and write the factors of one training split."""
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise InputError("--threshold", f"is {args.threshold:g}", allowed="above 0, at most 1", mend="change the value")
    store = open_store(args.store)
    factors = repeat_factors(store, args.threshold)
    write_repeat_factors(store, factors, args.out)
    figures = summary(factors)
    log.info(
        "%s: %s of %s images, an epoch of %s; %s",
        args.out,
        f"{factors.images_kept:,}",
        f"{store.num_images:,}",
        f"{factors.epoch_length:,}",
        figures["why_none"]
        or f"{figures['repeated_categories']:,} categories repeated, largest factor {figures['largest_factor']:.3f}",
    )


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument(
        "--store", type=Path, required=True, metavar="STORE", help="annotation store of the train split"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="T", help="repeat categories in fewer than this fraction of the images"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tables")
    run_step(parser, step)


if __name__ == "__main__":
    main()
