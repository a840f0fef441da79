"""Mask R-CNN with four FPN backbones on LVIS, from annotations to the results table.

The files of this package, in data-flow order, are the method; a module imports only modules above it:

    command         how every step starts, reports and fails
    files           files appear whole or not at all
    config          a study file becomes checked values
    mini            draws the embedded dataset
    annotations     LVIS JSON becomes a memory-mapped store
    preflight       finds what is wrong before a GPU is touched
    repeat_factors  how often each image is drawn
    data            images and targets, batches, the sample stream
    model           four backbones, one FPN, one Mask R-CNN
    checkpoints     saves and restores a run
    train           gradient steps, resumable anywhere
    infer           detections, streamed to disk
    evaluate        federated LVIS AP
    report          all runs become the table

Axes, the same letters in every annotation:

    n  images (of a dataset or a batch)      a  annotations of one image
    c  categories                            r  regions of one image
    d  detections of one image               h, w  image height and width, pixels

Labels: category ids are those of the annotation file; a *label* is 1 + the category's position in the file, 0 is
background, so ``num_labels = num_categories + 1``. Boxes carry their form in the name: ``boxes_xyxy``, ``boxes_xywh``.
"""

__version__ = "0.1.0"
