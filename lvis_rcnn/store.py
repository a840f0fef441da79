"""Turn an LVIS annotation file into a memory-mapped store that every process shares.

python -m lvis_rcnn store --annotations lvis_v1_train.json --out train.store

With --coco-exhaustive the file is plain COCO, in which every category is annotated in every image: categories without
annotations in an image are absent from it, those with a crowd region there are not exhaustive, crowd regions are not
trained on, and a category is rare, common or frequent by its images (up to 10, up to 100, more) in the training file.
"""

import argparse
from pathlib import Path

from lvis_rcnn.dataset.store import build_store
from lvis_rcnn.system.cli import add_coco_options, add_output, log, run_step, step_parser


def step(args: argparse.Namespace) -> None:
    """Build one store."""
    counts = build_store(args.annotations, args.out, coco_exhaustive=args.coco_exhaustive, frequencies=args.frequencies)
    log.info(
        "%s: %s",
        args.out,
        ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()),
    )
    if not counts["annotations"]:
        log.warning("warning: %s has no annotations: its store serves infer and export only", args.annotations)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="LVIS-format JSON file")
    add_coco_options(parser)
    add_output(parser, "--out", "folder of the store", is_folder=True)
    run_step(parser, step)


if __name__ == "__main__":
    main()
