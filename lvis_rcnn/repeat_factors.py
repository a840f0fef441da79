"""Write how often each image is drawn in one epoch.

dataloader/repeat_factors.py describes the method:

    python -m lvis_rcnn repeat_factors --store train.store --threshold 1e-3 --out repeat_factors

categories.csv lists frequency (r, c, f), images, instances and factor of each category, the fraction that is compared
with the threshold for it, and its instances in one oversampled epoch; repeat_factors.png and .svg show them. images.csv
lists the factor of each image, 0 if it is dropped, and its copies in one epoch (with stochastic rounding the larger of
its two numbers). summary.json has the length of an epoch and the number of images in the 24 epochs of the published
schedule.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvis_rcnn.config import MOST_EXPONENT
from lvis_rcnn.dataloader.repeat_factors import FREQUENCIES, ROUNDINGS, RepeatFactors, repeat_factors, summary
from lvis_rcnn.dataset.store import AnnotationStore, open_store
from lvis_rcnn.system.cli import add_number, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import atomic_file, write_json


def write_factor_tables(store: AnnotationStore, factors: RepeatFactors, out: Path) -> None:
    """Write categories.csv, images.csv and, last, summary.json into ``out``; factors have all their digits."""
    categories = (
        (category.id, category.name, category.frequency, *numbers)
        for category, *numbers in zip(
            store.categories,
            factors.image_counts.tolist(),
            factors.instance_counts.tolist(),
            factors.category_frequencies.tolist(),
            factors.category_factors.tolist(),
            factors.instances_in_epoch.tolist(),
            strict=True,
        )
    )
    counts = ("image_count", "instance_count", f"{factors.frequency}_frequency")
    header = ("category_id", "name", "frequency", *counts, "factor", "instances_in_epoch")
    write_csv(out / "categories.csv", header, categories)
    images = zip(store.image_ids.tolist(), factors.image_factors.tolist(), factors.copies.tolist(), strict=True)
    write_csv(out / "images.csv", ("image_id", "factor", "copies"), images)
    write_json(out / "summary.json", summary(factors))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write one table, which appears at once."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_figure(store: AnnotationStore, factors: RepeatFactors, out: Path) -> None:
    """Draw the factors of all categories, and their instances with and without oversampling, into ``out``."""
    # Imported here: matplotlib takes 40 MB.
    from lvis_rcnn.reporting.score_plots import CategoryFigures, write_sampling_figure

    figures = CategoryFigures(
        frequencies=np.array([category.frequency for category in store.categories]),
        image_counts=factors.image_counts,
        factors=factors.category_factors,
        instances_once=factors.instance_counts,
        instances_oversampled=factors.instances_in_epoch,
    )
    threshold = "no threshold" if factors.threshold is None else f"threshold {factors.threshold:g}"
    if factors.frequency != "image":
        threshold += f" on the {factors.frequency} frequency"
    title = f"{store.source_name}: {threshold}, {epoch_sentence(factors)} from {factors.images_kept:,} images"
    write_sampling_figure(figures, title, out)


def step(args: argparse.Namespace) -> None:
    """Compute and write the factors of one training split."""
    store = open_store(args.store)
    factors = repeat_factors(store, args.threshold, args.rounding, args.exponent, args.frequency)
    write_figure(store, factors, args.out)
    write_factor_tables(store, factors, args.out)
    figures = summary(factors)
    log.info(
        "%s: %s of %s images, %s; %s",
        args.out,
        f"{factors.images_kept:,}",
        f"{store.num_images:,}",
        epoch_sentence(factors),
        figures["why_none"]
        or f"{figures['repeated_categories']:,} categories repeated, largest factor {figures['largest_factor']:.3f}",
    )


def epoch_sentence(factors: RepeatFactors) -> str:
    """The length of an epoch as text."""
    if factors.rounding == "ceil":
        return f"an epoch of {factors.expected_epoch_length:,}"
    return f"an epoch of {factors.expected_epoch_length:,.1f} on average ({factors.rounding} rounding)"


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument(
        "--store", type=Path, required=True, metavar="STORE", help="annotation store of the train split"
    )
    threshold = "repeat categories in fewer than this fraction of the images"
    add_number(parser, "--threshold", threshold, 0, 1, kind=float, above=True, metavar="T")
    parser.add_argument(
        "--rounding", choices=ROUNDINGS, default="ceil", help="of factors to copies (default: ceil, MMDetection's)"
    )
    exponent = "of threshold over frequency, at most 2 (default: 0.5)"
    add_number(parser, "--exponent", exponent, 0, MOST_EXPONENT, kind=float, above=True, default=0.5, metavar="E")
    parser.add_argument(
        "--frequency",
        choices=FREQUENCIES,
        default="image",
        help="what is compared with the threshold (default: image, of the paper; instance_aware: IRFS)",
    )
    add_output(
        parser, "--out", "folder of the tables", is_folder=True, holds=("categories.csv", "images.csv", "summary.json")
    )
    run_step(parser, step)


if __name__ == "__main__":
    main()
