"""What a person sees of a study.

rows         the rows of the table, as numbers
differences  which rows differ: paired tests of every two
methods      differences of each row to the baseline of its study, a table
notes        the text around the table: how to read it, what failed, how its numbers were made
table        table.md, .tex, .csv and .json: columns and cells
figures      how every plot looks
plots        all plots of a study; training curves
score_plots  plots of rows and of categories
comparison   differences between two rows, as text
difference_plots  the same, as plots; of every two rows of a study
drawing      objects on images
pictures     what a run detects and misses
html         pages from templates
templates/   HTML, CSS and JavaScript of the pages
pages        table, categories, cost, provenance and preflight as pages
cards        the model card of each run
preflight_text  what preflight found, as text

Below are the only lists of the pages, plots and pictures, each with its chapter and title in Snakemake's report: rules
declare these files, steps write them, tests look for them. The caption of NAME is workflow/report/NAME.rst, the
function of a plot an entry of ``write_plots`` in plots.py. Nothing of the package is imported here.
"""

import os

# All is drawn into files. The backend that a notebook leaves to what it starts need not exist for this Python.
os.environ["MPLBACKEND"] = "agg"

# results/<study>/calibration.csv, of studies that calibrate scores
CALIBRATION = ("5 Data", "images, objects and fractal dimension of each category in training")

# results/<study>/table.md and training_batch.png
TABLE = ("1 Results", "the results table, as Markdown with links")
TRAINING_BATCH = ("4 Training", "the first training step, as the network sees it")
# results/<study>/NAME.html
PAGES = {
    "table": ("1 Results", "the results table"),
    "per_category": ("1 Results", "AP of each category"),
    "preflight": ("5 Data", "preflight"),
    "provenance": ("6 Provenance and cost", "what the numbers were made with"),
    "cost": ("6 Provenance and cost", "time and memory of trainings and jobs"),
}
# results/<study>/<row>/seed<k>/README.md
CARD = "README.md"
# results/<study>/plots/NAME.png and .svg
PLOTS = {
    "ap_by_group": ("2 Plots", "AP of rare, common and frequent categories"),
    "row_differences": ("2 Plots", "paired differences between all rows"),
    "ap_and_images": ("2 Plots", "AP of each category against its training images"),
    "ap_and_cost": ("2 Plots", "AP against inference time and memory"),
    "precision_recall_box": ("2 Plots", "precision and recall of boxes"),
    "precision_recall_mask": ("2 Plots", "precision and recall of masks"),
    "ap_and_steps": ("2 Plots", "AP against training steps"),
    "training_curves": ("4 Training", "loss, gradient norm, learning rate, speed"),
    "training_losses": ("4 Training", "parts of the loss"),
    "repeat_factors": ("5 Data", "repeat factors of categories"),
    "calibration": ("5 Data", "fractal dimensions of categories, and how calibration changes scores"),
}


def plots_of(*, calibrated: bool, on_the_way: bool) -> dict[str, tuple[str, str]]:
    """The plots of a study: those of calibration and of AP so far only where it has them."""
    left_out = {"calibration": not calibrated, "ap_and_steps": not on_the_way}
    return {name: where for name, where in PLOTS.items() if not left_out.get(name)}


# results/<study>/comparison/<row>/NAME.png and .svg
DIFFERENCES = {
    "differences": ("2 Plots", "differences"),
    "category_differences": ("2 Plots", "differences of each category"),
}
COMPARISON = ("1 Results", "differences, with intervals")
# results/<study>/<row>/seed<k>/pictures/NAME.png
PICTURES = {
    "chosen": ("3 Pictures", "images with most rare objects, or chosen ones, annotated and detected"),
    "random": ("3 Pictures", "random images, annotated and detected"),
    "missed_rare": ("3 Pictures", "missed objects of rare categories"),
    "missed_common": ("3 Pictures", "missed objects of common categories"),
    "missed_frequent": ("3 Pictures", "missed objects of frequent categories"),
}
