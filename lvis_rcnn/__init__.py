"""Mask R-CNN with four FPN backbones on LVIS, from annotations to the results table.

The files of this package, in data-flow order, are the method; a module imports only modules above it:

    backbones          the four networks, as rows of one table
    command, files     how every step starts, reports and fails; files appear whole or not at all
    config             a study file becomes checked values
    provenance         what produced a number
    mini*              draws the embedded dataset
    annotation_file    what an LVIS JSON file may hold
    annotations        LVIS JSON becomes a memory-mapped store
    repeat_factors     how often each image is drawn
    schedule           budgets and learning rates, pure functions of the step
    preflight          finds what is wrong before a GPU is touched
    data               images and targets, batches, the sample stream
    model/             four backbones, one FPN, one Mask R-CNN
    checkpoints        saves and restores a run
    training_log       what a run says while it trains
    finished_run       what a run is, and what it leaves
    train              gradient steps, resumable anywhere
    detections         carries detections from inference to scoring
    infer              finds objects, streamed to disk
    evaluate           federated LVIS AP
    runs, report       all runs become the table

Axes, the same letters in every annotation:

    n  images (of a dataset or a batch)      a  annotations of one image
    c  categories                            r  regions of one image
    d  detections of one image               h, w  image height and width, pixels

Labels: category ids are those of the annotation file; a *label* is 1 + the category's position in the file, 0 is
background, so ``num_labels = num_categories + 1``. Boxes carry their form in the name: ``boxes_xyxy``, ``boxes_xywh``.
"""

__version__ = "0.1.0"
