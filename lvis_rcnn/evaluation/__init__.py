"""The LVIS protocol: from ground truth and detections to AP, intervals and paired tests. It knows no model.

ground_truth       an annotation file as arrays, as it is scored
coco               plain COCO annotations as LVIS ones
results            anyone's detections as arrays
masks              masks of ground truth and detections
federated          which (image, category) pairs have verified annotations, so that detections are evaluated
iou                overlaps of boxes and masks
boundary           overlaps of the boundaries of masks
subsets            minival, or the images of a list of ids
average_precision  who matches what; precision, recall, AP
protocols          several protocols from the same comparisons: AP-fixed, boundary AP, subsets
metrics            what metrics.json must hold
matches            match results of a scored run on disk
bootstrap          the metrics of resamples of the images
uncertainty        standard errors, intervals and p values, from resamples and seeds
compare            paired tests of runs and rows
official           the lvis package as reference
calibration        what corrects the scores of a network for how often training shows each category
scoring            all of that for a set of detections: metrics.json
arrays             detections that are given as arrays
interface          the same from Python, for files, dictionaries and arrays
lvis_api           classes that are called as those of the lvis package
"""
