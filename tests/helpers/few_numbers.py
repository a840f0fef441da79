"""A network of a few numbers with all that matters for resuming: random numbers, losses of pixels, counts of labels.

Run as a program it is ``python -m lvis_rcnn.train`` with this network in place of the real one, and with the seconds
before a process is taken for lost, or asleep in each group of images, from the environment.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn import train
from lvis_rcnn.config.schema import Seesaw
from lvis_rcnn.dataloader.batches import Batch
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES, MaskRcnn
from lvis_rcnn.model.seesaw import LabelCounters
from lvis_rcnn.training import distributed, setup, step


class FewNumbers(MaskRcnn):
    """Stands for the network, with statistics of the batch and counters of labels, on which the losses depend."""

    norm: type[nn.Module] = nn.BatchNorm1d

    def __init__(self, backbone, num_labels, settings):
        nn.Module.__init__(self)
        self.body = nn.Sequential(nn.Linear(4, 16), self.norm(16), nn.Dropout(0.5), nn.Linear(16, 5))
        self.counters = LabelCounters(Seesaw(), num_labels)

    def train(self, mode=True):
        return nn.Module.train(self, mode)


class OfEachImage(FewNumbers):
    """The same without statistics of a batch, which each process would have of its own images."""

    norm = nn.LayerNorm


def few_losses(model: MaskRcnn, batch: Batch, choose, number):
    """Five losses."""
    time.sleep(float(os.environ.get("ASLEEP_S", "0")))
    seen_labels = torch.cat([target.labels for target in batch.targets])
    counts = model.counters.count(seen_labels, torch.zeros_like(seen_labels), [number])
    labels = torch.stack([target.labels.float().sum() for target in batch.targets])[:, None]
    seen = torch.cat([batch.pixels.mean((2, 3)), labels / 100], dim=1)
    losses = model.body(seen).square().mean(0) * (1 + counts.sum() / 1000)
    return dict(zip(LOSS_NAMES, losses.unbind(), strict=True))


if __name__ == "__main__":
    setup.MaskRcnn = OfEachImage
    step.losses = few_losses
    distributed.HANG_S = float(os.environ.get("HANG_S", "60"))
    train.main()
