"""Mask R-CNN with four FPN backbones on LVIS, from annotations to the results table.

The modules of this folder are the steps, in the order of ``STEPS``: verbs, each with its arguments and its story from
top to bottom. The folders are rooms, nouns that know no step, in the order of ``ROOMS``: a room imports only rooms
before it, the first six run without torch, nobody imports a step, and nothing imports snakemake
(tests/workflow/test_layers.py). Each room's ``__init__.py`` says what lies there.

Where a new line belongs: is it true without LVIS? system. Is it on disk before training? dataset. Does a user write it
in a study? config. Is it a number? evaluation. Does a run leave it? runs. Does a person look at it? reporting. Does it
need a tensor? dataloader, model, training, inference. Is it an argument? The step.

Axes, the same letters in every annotation:

    n  images (of a dataset or a batch)      a  annotations of one image
    c  categories                            r  regions of one image
    d  detections of one image               h, w  image height and width, pixels

Labels: category ids are those of the annotation file; a *label* is 1 + the category's position in the file, 0 is
background, so ``num_labels = num_categories + 1``. Boxes carry their form in the name: ``boxes_xyxy``, ``boxes_xywh``.
"""

__version__ = "0.1.0"

SizeHW = tuple[int, int]
"""Height and width, pixels."""

STEPS = (
    "draw",
    "fetch",
    "store",
    "preflight",
    "repeat_factors",
    "calibrate",
    "weights",
    "train",
    "track",
    "infer",
    "detect",
    "export",
    "measure",
    "evaluate",
    "compare",
    "report",
    "status",
    "clean",
)

ROOMS = (
    "system",
    "dataset",
    "config",
    "evaluation",
    "runs",
    "reporting",
    "dataloader",
    "model",
    "training",
    "inference",
)
WITHOUT_TORCH = ROOMS[:6]
