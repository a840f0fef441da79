"""Four backbones, one FPN, one Mask R-CNN: torchvision's module tree."""
