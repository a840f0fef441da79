"""Count what calibration corrects scores by: images, objects and fractal dimension of each category in training.

dataset/statistics.py says what these are, evaluation/calibration.py how NorCal and FRACAL use them:

    python -m lvis_rcnn calibrate --store train.store --out calibration.csv

A line for each category, in the order of the annotation file: category_id, name, frequency, image_count,
instance_count, images_of_split (the same in all lines), fractal_dimension. Weights play no part: the table is of a
training split, and serves any model that was trained on it.
"""

import argparse
from pathlib import Path

from lvis_rcnn.dataset.statistics import category_statistics, write_statistics
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.system.cli import add_output, log, run_step, step_parser


def step(args: argparse.Namespace) -> None:
    """Count one training split and write its table."""
    store = open_store(args.store)
    statistics = category_statistics(store)
    write_statistics(args.out, store, statistics)
    shown, unseen = statistics.dimensions[statistics.image_counts > 0], int((statistics.image_counts == 0).sum())
    log.info(
        "%s: %s categories, %d of them without images; fractal dimensions %.2f to %.2f",
        *(args.out, f"{len(store.categories):,}", unseen, shown.min(initial=2), shown.max(initial=1)),
    )


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument(
        "--store", type=Path, required=True, metavar="STORE", help="annotation store of the train split"
    )
    add_output(parser, "--out", "table to write", suffix=".csv")
    run_step(parser, step)


if __name__ == "__main__":
    main()
