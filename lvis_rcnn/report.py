"""Write the table, plots and pages of a study, and pictures of its runs and training steps.

    python -m lvis_rcnn report table --study configs/mini.yaml --results results --out results/mini/table.md
    python -m lvis_rcnn report plots --study configs/mini.yaml --results results --out results/mini/plots
    python -m lvis_rcnn report pages --study configs/mini.yaml --results results --out results/mini
    python -m lvis_rcnn report pictures --store val.store --images FOLDER --detections DETECTIONS --out pictures
    python -m lvis_rcnn report batch --study configs/mini.yaml --store train.store --images FOLDER
        --repeat-factors repeat_factors --step 0 --out batch.png

Each is made from what exists, and says what is missing. A number is shown only if the records of all steps before it
exist and agree with the study file, so that a run that is being repeated never shows its old AP. The same results give
the same bytes.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study, load_study, load_study_for_step
from lvis_rcnn.config.zoo import known_models
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.reporting import PAGES, PICTURES, PLOTS
from lvis_rcnn.reporting.drawing import write_picture
from lvis_rcnn.reporting.notes import titled
from lvis_rcnn.reporting.pages import write_pages
from lvis_rcnn.reporting.pictures import positions_of, read_scenes, write_pictures
from lvis_rcnn.reporting.plots import write_plots
from lvis_rcnn.reporting.table import write_tables
from lvis_rcnn.system.cli import add_command, add_number, add_output, add_seed, check_folder, log, run_step, step_parser


def checked_study(args: argparse.Namespace) -> Study:
    """The study, where the folder of results exists."""
    check_folder("--results", args.results, fix="name the folder the steps wrote into")
    return load_study(args.study)


def table(args: argparse.Namespace) -> None:
    """Write the results table of a study from whatever exists, and show it.

        python -m lvis_rcnn report table --study configs/mini.yaml --results results --out results/mini/table.md

    Writes OUT, and .tex (for LaTeX), .csv and .json beside it. A cell that cannot be filled says why. AP and AR are
    percent in table.md and table.tex, fractions in table.csv and table.json; memory is in GB, speed in images/s.
    A published model has two rows, as published and as scored here.
    """
    study = checked_study(args)
    written = write_tables(study, known_models(study, args.study), args.results, args.out)
    log.info("%s", titled(study))
    for line in written.splitlines():
        log.info("%s", line)
    log.info("wrote %s (also .tex, .csv and .json)", args.out)


def plots(args: argparse.Namespace) -> None:
    """Draw the plots of a study, each as SVG for print and as PNG for the screen.

        python -m lvis_rcnn report plots --study configs/mini.yaml --results results --out results/mini/plots

    A plot without data says why.
    """
    study = checked_study(args)
    write_plots(study, args.study, args.results, args.out)
    log.info("wrote the plots of %s: %s", study.study, args.out)


def pages(args: argparse.Namespace) -> None:
    """Write pages about a study, one HTML file each, which open anywhere without a network, and a card of each model.

        python -m lvis_rcnn report pages --study configs/mini.yaml --results results --out results/mini

    Links to models and logs are in table.md. The card of a model is README.md in the folder of its run below OUT: what
    it is, its scores, how to use it, its licence.
    """
    study = checked_study(args)
    log.info("reading what the runs of %s have recorded", study.study)
    write_pages(study, args.study, args.results, args.out)
    log.info("wrote the pages of %s: %s", study.study, args.out)


def pictures(args: argparse.Namespace) -> None:
    """Draw what a run detects: ground truth beside detections, and the objects that it misses.

        python -m lvis_rcnn report pictures --store val.store --images FOLDER --detections DETECTIONS --out pictures

    The chosen images are those of --show, or those with most objects of rare categories; the random ones are others.
    Missed are objects that no detection of the right category matches with a box IoU of 0.5 or more, at any score; the
    largest are shown. A star marks rare categories.
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
    Grey at the right and below is padding, which is zero in the network's input.
    """
    # The only part of this step that needs torch, a second of every start.
    from lvis_rcnn.training.batch_picture import step_picture
    from lvis_rcnn.training.run import Run

    study = load_study_for_step(args.study, "train", None)
    seed = study.seeds[0] if args.seed is None else args.seed
    # The images of a step are the same for all backbones.
    row = study.trained_rows[0]
    run = Run(study.of_row(row), row, seed, args.store, args.images, args.repeat_factors, Path(), {})
    write_picture(args.out, step_picture(run, args.step))
    log.info("wrote step %d of seed %d: %s", args.step, seed, args.out)


STEPS = {step.__name__: step for step in (table, plots, pages, pictures, batch)}
WRITTEN = {"plots": PLOTS, "pages": PAGES, "pictures": PICTURES}


def description(name: str) -> str:
    """What a part of this step says of itself, with the names and titles of what it writes."""
    titles = (f"    {written:<22} {title}" for written, (_, title) in WRITTEN.get(name, {}).items())
    return "\n".join([inspect.getdoc(STEPS[name]) or "", "", *titles])


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    parts = {name: add_command(commands, name, description(name)) for name in STEPS}
    text = "table.md to write, .tex, .csv and .json beside it"
    add_output(parts["table"], "--out", text, suffix=".md", beside=(".tex", ".csv", ".json"))
    for name in WRITTEN:
        add_output(parts[name], "--out", f"folder of the {name}", is_folder=True)
    add_output(parts["batch"], "--out", "PNG to write", suffix=".png")
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
    """Options of ``report pictures``."""
    part.add_argument("--detections", type=Path, required=True, metavar="DIR", help="folder of shards")
    several: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    add_number(part, "--show", "ids of the chosen images", -(2**63), 2**63 - 1, metavar="ID", **several)
    add_number(part, "--number", "images per sheet (default: 6)", 1, 50, default=6, metavar="N")
    add_seed(part, "of the random images (default: 0)", default=0, metavar="K")
    add_number(part, "--score", "least score drawn (default: 0.3)", 0, 1, kind=float, default=0.3, metavar="S")


def add_batch_options(part: argparse.ArgumentParser) -> None:
    """Options of ``report batch``."""
    part.add_argument("--repeat-factors", type=Path, required=True, metavar="DIR", help="output of repeat_factors")
    add_seed(part, "of the run (default: the study's first)", metavar="K")
    add_number(part, "--step", "optimizer step, from 0 (default: 0)", 0, default=0, metavar="N")


if __name__ == "__main__":
    main()
