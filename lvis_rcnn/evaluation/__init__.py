"""The LVIS protocol: from ground truth and detections to AP, intervals and paired tests. It knows no model.

ground_truth       an annotation file as arrays, as it is scored
results            anyone's detections as arrays
masks              masks of ground truth and detections
federated          which (image, category) pairs have verified annotations, so that detections are evaluated
iou                overlaps of boxes and masks
boundary           overlaps of the boundaries of masks
average_precision  who matches what; precision, recall, AP
metrics            what metrics.json must hold
matches            match results of a scored run on disk
bootstrap          the metrics of resamples of the images
uncertainty        standard errors, intervals and p values, from resamples and seeds
compare            paired tests of runs and rows
official           the lvis package as reference
scoring            all of that for a set of detections: metrics.json
"""
