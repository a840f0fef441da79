"""What a person sees of a study: its table, plots and pages, and pictures of runs and of training steps.

    python -m lvis_rcnn report table --study configs/mini.yaml --results results --out results/mini/table.md
    python -m lvis_rcnn report plots --study configs/mini.yaml --results results --out results/mini/plots
    python -m lvis_rcnn report pages --study configs/mini.yaml --results results --out results/mini
    python -m lvis_rcnn report pictures --store val.store --images FOLDER --detections DETECTIONS --out pictures
    python -m lvis_rcnn report batch --study configs/mini.yaml --store train.store --images FOLDER
        --repeat-factors repeat_factors --step 0 --out batch.png

Each is made from whatever exists, and says what does not. A number is shown only while the records of the steps before
it exist and agree with the study file, so that a run that is being repeated never shows its old AP. The same results
give the same bytes.
"""

import argparse
import time
from pathlib import Path

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import Study, load_study, load_study_for_step
from lvis_rcnn.config.zoo import known_models
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.reporting.drawing import write_picture
from lvis_rcnn.reporting.pages import write_pages
from lvis_rcnn.reporting.pictures import positions_of, read_scenes, write_pictures
from lvis_rcnn.reporting.plots import write_plots
from lvis_rcnn.reporting.table import titled, write_tables
from lvis_rcnn.system.cli import InputError, add_command, log, run_step, step_parser


def checked_study(args: argparse.Namespace) -> Study:
    """The study, where the folder of results exists."""
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}", "no such folder", fix="name the folder the steps wrote into")
    return load_study(args.study)


def table(args: argparse.Namespace) -> None:
    """Write the results table of a study from whatever exists, and show it.

        python -m lvis_rcnn report table --study configs/mini.yaml --results results --out results/mini/table.md

    Writes OUT, and .csv and .json beside it. A cell that cannot be filled
    says why. AP and AR are percent in table.md and fractions in table.csv and table.json; memory is in GB, speed in
    images per second. A published model has two rows, as published and as scored here.
    """
    if args.out.suffix != ".md":
        raise InputError(f"--out {args.out}", "is no Markdown file", allowed="a name that ends in .md")
    study = checked_study(args)
    written = write_tables(study, known_models(study, args.study), args.results, args.out, time.time())
    log.info("%s", titled(study))
    for line in written.splitlines():
        log.info("%s", line)
    log.info("wrote %s (also .csv and .json)", args.out)


def plots(args: argparse.Namespace) -> None:
    """Draw the plots of a study, each as SVG for print and as PNG for the screen.

        python -m lvis_rcnn report plots --study configs/mini.yaml --results results --out results/mini/plots

    training_curves, training_losses    how the trainings went, and where they were started again
    repeat_factors                      how often categories are drawn
    ap_and_images                       AP of each category against its training images
    ap_by_group                         AP of rare, common and frequent categories, with intervals
    ap_and_cost                         AP against inference time and memory
    precision_recall_box, _mask         mean precision at each recall, over categories and seeds

    A plot that nothing can be drawn in says why.
    """
    study = checked_study(args)
    write_plots(study, args.study, args.results, args.out, time.time())
    log.info("wrote the plots of %s: %s", study.study, args.out)


def pages(args: argparse.Namespace) -> None:
    """Write pages about a study, one HTML file each, which open anywhere without a network.

        python -m lvis_rcnn report pages --study configs/mini.yaml --results results --out results/mini

    table.html          the results table, with how its numbers came about
    per_category.html   AP of every category in every row, to sort and search
    cost.html           time and memory of every job and training
    provenance.html     what each number was made with
    preflight.html      what was found before training

    Links to models and logs stand in table.md.
    """
    study = checked_study(args)
    log.info("reading what the runs of %s have recorded", study.study)
    write_pages(study, args.study, args.results, args.out, time.time())
    log.info("wrote the pages of %s: %s", study.study, args.out)


def pictures(args: argparse.Namespace) -> None:
    """Draw what a run finds: annotations beside detections, and the objects that it misses.

        python -m lvis_rcnn report pictures --store val.store --images FOLDER --detections DETECTIONS --out pictures

    chosen.png      images of --show, or those with most objects of rare categories: left annotated, right found
    random.png      the same of other images, drawn by --seed
    missed_rare.png, missed_common.png, missed_frequent.png
                    the largest objects that no detection of their category overlaps with a box IoU of 0.5 or more

    A star marks rare categories.
    """
    store = open_store(args.store)
    shown = positions_of(store, args.show)
    scenes = read_scenes(store, args.images, args.detections)
    write_pictures(scenes, args.out, shown, args.number, args.seed, args.score)
    log.info("wrote the pictures of %d images: %s", store.num_images, args.out)


def batch(args: argparse.Namespace) -> None:
    """Draw a training step as the network sees it: augmented, normalised and padded images, with their targets.

        python -m lvis_rcnn report batch --study configs/mini.yaml --store train.store --images FOLDER
            --repeat-factors repeat_factors --step 0 --out batch.png

    Pixels are the network's input, turned back into colours; boxes and masks are its targets, not the annotations.
    What is grey at the right and below is padding, which is zero to the network.
    """
    # The only part of this step that needs torch, a second of every start.
    from lvis_rcnn.training.batch_picture import step_picture
    from lvis_rcnn.training.run import Run

    study = load_study_for_step(args.study, "train", None)
    seed = study.seeds[0] if args.seed is None else args.seed
    # The images of a step are the same for all backbones.
    run = Run(study, next(iter(BACKBONES)), seed, args.store, args.images, args.repeat_factors, Path(), {})
    write_picture(args.out, step_picture(run, args.step))
    log.info("wrote step %d of seed %d: %s", args.step, seed, args.out)


STEPS = {step.__name__: step for step in (table, plots, pages, pictures, batch)}


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    parts = {name: add_command(commands, name, step.__doc__) for name, step in STEPS.items()}
    outputs = {"table": "table.md to write, .csv and .json beside it", "plots": "folder of the plots"}
    outputs |= {"pages": "folder of the pages", "pictures": "folder of the pictures", "batch": "PNG to write"}
    for name, part in parts.items():
        part.add_argument("--out", type=Path, required=True, metavar="PATH", help=outputs[name])
    for name in ("table", "plots", "pages", "batch"):
        parts[name].add_argument(
            "--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)"
        )
    for name in ("table", "plots", "pages"):
        parts[name].add_argument(
            "--results", type=Path, required=True, metavar="DIR", help="folder that all steps write into"
        )
    for name in ("pictures", "batch"):
        parts[name].add_argument("--store", type=Path, required=True, metavar="STORE", help="store of the images")
        parts[name].add_argument(
            "--images", type=Path, required=True, metavar="DIR", help="folder of the images, or of their zips"
        )
    add_picture_options(parts["pictures"])
    add_batch_options(parts["batch"])
    run_step(parser, lambda args: STEPS[args.command](args))


def add_picture_options(part: argparse.ArgumentParser) -> None:
    """What ``report pictures`` takes besides."""
    part.add_argument("--detections", type=Path, required=True, metavar="DIR", help="folder of shards")
    part.add_argument("--show", type=int, nargs="+", default=[], metavar="ID", help="ids of the chosen images")
    part.add_argument(
        "--number", type=int, default=6, choices=range(1, 51), metavar="N", help="images on a sheet (default: 6)"
    )
    part.add_argument("--seed", type=int, default=0, metavar="K", help="of the random images (default: 0)")
    part.add_argument("--score", type=float, default=0.3, metavar="S", help="least score that is drawn (default: 0.3)")


def add_batch_options(part: argparse.ArgumentParser) -> None:
    """What ``report batch`` takes besides."""
    part.add_argument("--repeat-factors", type=Path, required=True, metavar="DIR", help="output of repeat_factors")
    part.add_argument("--seed", type=int, metavar="K", help="of the run (default: the study's first)")
    part.add_argument("--step", type=int, default=0, metavar="N", help="optimizer step, from 0 (default: 0)")


if __name__ == "__main__":
    main()
