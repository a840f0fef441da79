"""Four backbones, one FPN, one Mask R-CNN: torchvision's module tree, MMDetection's arithmetic.

In data-flow order:

    boxes, anchors     boxes and the deltas that move them; where the network looks first
    assign             which ground truth a box is trained on, and which boxes are
    backbone           body and pyramid
    rpn                where something is
    regions            features of a region
    heads              what the regions' features become
    mask_targets       what the mask head learns
    region_losses      what the heads learn
    detections         which regions are what
    mask_rcnn          all of it: ``losses`` and ``detect``
"""
