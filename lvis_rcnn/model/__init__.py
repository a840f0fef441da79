"""Four backbones, one FPN, one Mask R-CNN: torchvision's module tree, MMDetection's arithmetic.

In the order of the data:

    device       numbers that the host gives to a device
    boxes        boxes, the deltas that move them, anchors
    matcher      which ground truth a box is trained on, and which boxes are
    backbone     body and pyramid
    rpn          proposals
    normalised   predictors of normalised weights and features
    seesaw       Seesaw loss, its scores, and its counts of labels
    classification  how regions are classified: losses and scores, a row for each way
    roi_heads    features of a region; box head and mask head
    roi_losses   what the heads learn; mask targets
    together     proposals, samples and region features of all images of a pass, with one wait for each
    one_pass     losses of several groups in one pass
    postprocess  detections of an image: scores, NMS, the best
    mask_rcnn    all of it: ``losses`` and ``detect``
    weight_files  files of weights: whose they are, what surrounds the weights
    weights      model.pth; what a training begins with
    class_names  names of classes in weights beside those of annotations
    mmdet_config  the config in a file of MMDetection: what no name and no shape shows
    mmdet        files and parameter names of MMDetection, both ways
"""
