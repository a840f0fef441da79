"""What a training costs, from its arithmetic alone, until a step of it has been timed.

The multiplications and additions of a training step are counted, which takes no torch and no data, and divided by a
speed that a device is known to have reached with this kind of network. Such a figure is an estimate, and is called one
wherever it is shown; docs/performance.md says how far from measured trainings it is.
"""

from dataclasses import dataclass

from lvis_rcnn.config.schema import BACKBONES, Augmentation, Backbone, Model
from lvis_rcnn.config.study import Study

CHANNELS = 256
"""Of the pyramid and of the mask head."""
BOX_CELLS, MASK_CELLS, HIDDEN = 7 * 7, 14 * 14, 1024
ASPECT = 4 / 3
"""Of an image; most of COCO's have 640 x 480 pixels."""


@dataclass(frozen=True)
class Device:
    """A speed that trainings of Mask R-CNN have reached."""

    name: str
    flops_per_s: float
    """Of one GPU, or of one core of a CPU; those that :func:`training_flops` counts."""


# compute.device of a study -> what its estimates rest on.
#
# cuda: detectron2's model zoo (facebookresearch/detectron2, MODEL_ZOO.md, 02478d2), Mask R-CNN on LVIS v0.5 with 8 V100
# and 16 images a step, fp32: R-50 0.292 s a step are 7.1e12, R-101 0.371 s are 7.3e12, X-101-32x8d 0.712 s are 5.7e12.
# cpu: trainings as in configs/mini_sampling.yaml (260 steps) on one core with AVX-512: R-50 in 10.2 minutes is 66e9,
# R-101 in 12.4 is 62e9, X-101-32x4d in 13.7 is 56e9, X-101-64x4d in 18.3 is 53e9. Large images: 87e9
# (tests/benchmarks/README.md).
DEVICES = {"cuda": Device("a V100 in fp32", 7.1e12), "cpu": Device("a CPU core with AVX-512", 60e9)}


def body_macs(backbone: Backbone) -> list[float]:
    """Multiplications of the stem and of each stage for every pixel of the image, in one forward pass."""
    macs, channels, density = [7 * 7 * 3 * 64 / 4], 64, 1 / 16
    for stage, blocks in enumerate(backbone.blocks):
        width, out = backbone.groups * backbone.width_per_group * 2**stage, 256 * 2**stage
        after = density / (4 if stage else 1)
        # The 3 x 3 convolution of the first block has the stride, and a 1 x 1 convolution is its shortcut.
        inner = 9 * width * width // backbone.groups * after + width * out * after
        first = channels * width * density + inner + channels * out * after
        macs.append(first + (blocks - 1) * (out * width * after + inner))
        channels, density = out, after
    return macs


def region_macs(settings: Model) -> float:
    """Multiplications of the box and mask heads for an image with as many positive regions as may be sampled.

    Without the last layers, whose size follows from the categories: with 1,230 they add 2 % to a step of R-50.
    """
    box = CHANNELS * BOX_CELLS * HIDDEN + HIDDEN * HIDDEN
    mask = (4 * 9 + 4) * CHANNELS * CHANNELS * MASK_CELLS
    return settings.rois_per_image * (box + settings.roi_positive_fraction * mask)


def training_flops(backbone: Backbone, settings: Model, image_px: float) -> float:
    """Floating-point operations of an image in a training step, a multiplication and an addition being two.

    The backward pass takes two for each of the forward pass; frozen stages have none, nor has the proposal head, whose
    losses are of few anchors.

    Args:
        backbone: row of the table.
        settings: of the network.
        image_px: pixels of the image as the network sees it.
    """
    stages = body_macs(backbone)
    frozen = sum(stages[: settings.frozen_stages + 1]) if settings.frozen_stages else 0.0
    densities = [4.0 ** -(level + 2) for level in range(4)]  # of P2 to P5; P6 is a quarter of P5
    pyramid = sum(((256 << level) + 9 * CHANNELS) * CHANNELS * of for level, of in enumerate(densities))
    proposals = (9 * CHANNELS + 15) * CHANNELS * (sum(densities) + densities[-1] / 4)
    trained = image_px * (sum(stages) - frozen + pyramid) + region_macs(settings)
    return 2 * (3 * trained + image_px * (frozen + proposals))


def mean_image_px(settings: Augmentation) -> float:
    """Pixels of a training image, the mean over its sizes, without padding."""
    edges = settings.short_edges_px
    return sum(edge * min(ASPECT * edge, settings.long_edge_px) for edge in edges) / len(edges)


def step_flops(study: Study, backbone: str) -> float:
    """Floating-point operations of an optimizer step of a study that trains."""
    image_px = mean_image_px(study.augmentation)
    return study.schedule.images_per_step * training_flops(BACKBONES[backbone], study.model, image_px)


def estimated_hours(study: Study, backbone: str, steps: int) -> float:
    """GPU-hours, or core-hours on a CPU, of so many steps at the speed of the study's row of ``DEVICES``."""
    return steps * step_flops(study, backbone) / DEVICES[study.compute.device].flops_per_s / 3600
