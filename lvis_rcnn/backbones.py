"""The four backbones as rows of one table; everything else about the model is shared.

Depth, groups and width follow He et al. 2016 (table 1) and Xie et al. 2017 (section 4.1); "pytorch" style puts the
stride of a bottleneck into its 3x3 convolution. This table knows nothing of torch, so that the config and the report
can read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """One row: how the network is built and what the table calls it."""

    title: str
    """Row name on the page."""
    file_stem: str
    """Part of the published file name, as MMDetection spells it."""
    blocks: tuple[int, int, int, int]
    """Bottlenecks of stages 1 to 4."""
    groups: int
    """Groups of each 3x3 convolution."""
    width_per_group: int
    """Channels of one group in stage 1; 64 with one group is the plain ResNet."""
    style: str = "pytorch"

    @property
    def has_imagenet_weights(self) -> bool:
        """Whether torchvision has the recipe's weights: it has no 32x4d network, and its 64x4d is another training."""
        return self.groups == 1


# In the order of their cost: trainings begin with the last.
BACKBONES = {
    "r50": Backbone("R-50-FPN", "r50_fpn", (3, 4, 6, 3), groups=1, width_per_group=64),
    "r101": Backbone("R-101-FPN", "r101_fpn", (3, 4, 23, 3), groups=1, width_per_group=64),
    "x101_32x4d": Backbone("X-101-32x4d-FPN", "x101_32x4d_fpn", (3, 4, 23, 3), groups=32, width_per_group=4),
    "x101_64x4d": Backbone("X-101-64x4d-FPN", "x101_64x4d_fpn", (3, 4, 23, 3), groups=64, width_per_group=4),
}
