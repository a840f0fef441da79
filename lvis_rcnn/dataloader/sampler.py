"""Which images each optimizer step sees, a pure function of (seed, step): equal to MMDetection 3.3.0's samplers.

The published runs had 8 GPUs with 2 images each. Here a step has 8 *groups* of 2 images: group j is the batch that GPU
j would have had, so the stream is the same on any number of devices. In every epoch:

    1. each image is in the list as often as it has copies           ClassBalancedDataset
    2. the list is permuted by torch.randperm, for seed 0 seeded
       with the epoch as there, for others by seeds.order_seed,
       and padded from its beginning to a multiple of the groups     DefaultSampler (mmengine)
    3. group j of all steps takes every 8th entry from the j-th on,
    4. and sorts them into portrait (width < height) and landscape;  AspectRatioBatchSampler
       a batch is 2 images of one of them, as soon as there are 2.
       At the end of the epoch the rest, portrait first, makes the
       last batches, of which the very last may be smaller.

No step spans two epochs.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.config.schema import Schedule
from lvis_rcnn.dataloader.repeat_factors import ROUNDINGS, Sampling
from lvis_rcnn.dataloader.seeds import ORDERS
from lvis_rcnn.dataset.store import AnnotationStore


class Start(NamedTuple):
    """Steps and images before an epoch."""

    step: int
    image: int


@dataclass(frozen=True, eq=False)
class SampleStream:
    """The images of every step of a run; images are positions in the annotation store."""

    factors: Float64[np.ndarray, " n"]
    """0 for images that are dropped, otherwise at least 1."""
    rounding: str
    """A row of ``repeat_factors.ROUNDINGS``."""
    portrait: Bool[np.ndarray, " n"]
    """Whether the width is less than the height."""
    seed: int
    group_size: int
    """Images of a group."""
    groups_per_step: int
    order: str = "independent"
    """A row of ``seeds.ORDERS``."""
    starts: list[Start] = field(default_factory=lambda: [Start(0, 0)], init=False, repr=False)
    """Of the epochs so far; it grows as later ones are needed."""

    def copies_of_epoch(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """Entries of each image in the list of a 0-based epoch."""
        return ROUNDINGS[self.rounding](self.factors, self.seed, epoch)

    def start_of_epoch(self, epoch: int) -> Start:
        """Steps and images of all earlier epochs."""
        while len(self.starts) <= epoch:
            step, image = self.starts[-1]
            length = int(self.copies_of_epoch(len(self.starts) - 1).sum())
            images_of_group = -(-length // self.groups_per_step)
            steps = -(-images_of_group // self.group_size)
            self.starts.append(Start(step + steps, image + images_of_group * self.groups_per_step))
        return self.starts[epoch]

    def steps_before_epoch(self, epoch: int) -> int:
        """Optimizer steps of all earlier epochs."""
        return self.start_of_epoch(epoch).step

    def epoch_of_step(self, step: int) -> int:
        """The 0-based epoch that a 0-based step belongs to."""
        while self.starts[-1].step <= step:
            self.start_of_epoch(len(self.starts))
        return bisect_right(self.starts, step, key=lambda start: start.step) - 1

    def images_before_step(self, step: int) -> int:
        """Images that all earlier steps see, with repetitions."""
        start = self.start_of_epoch(self.epoch_of_step(step))
        # Only the last step of an epoch may be smaller, and it is not before ``step`` in this epoch.
        return start.image + (step - start.step) * self.group_size * self.groups_per_step

    def groups_of_step(self, step: int) -> list[list[int]]:
        """Images of the ``groups_per_step`` groups of a step."""
        epoch = self.epoch_of_step(step)
        first = (step - self.steps_before_epoch(epoch)) * self.group_size
        return [images[first : first + self.group_size].tolist() for images in images_of_epoch(self, epoch)]

    def substitute(self, image: int, random: np.random.Generator) -> int:
        """Another image of the same orientation, drawn in proportion to the factors; ``image`` if there is none."""
        weights = np.where(self.portrait == self.portrait[image], self.factors, 0.0)
        weights[image] = 0.0
        return int(random.choice(len(weights), p=weights / weights.sum())) if weights.any() else image


def stream_of(
    sampling: Sampling, store: AnnotationStore, schedule: Schedule, seed: int, order: str = "independent"
) -> SampleStream:
    """The sample stream of a run; ``sampling`` has a factor for each image of ``store``, the training split."""
    return SampleStream(
        factors=sampling.factors,
        rounding=sampling.rounding,
        portrait=np.asarray(store.widths < store.heights),
        seed=seed,
        group_size=schedule.normalisation_group,
        groups_per_step=schedule.images_per_step // schedule.normalisation_group,
        order=order,
    )


# Two epochs, since loader workers read ahead: 1 MB each for the 126,000 images of LVIS v1, computed in 20 ms.
@lru_cache(maxsize=2)
def images_of_epoch(stream: SampleStream, epoch: int) -> Int64[np.ndarray, "groups images"]:
    """The images of an epoch, one row for each group of a step."""
    entries = np.repeat(np.arange(len(stream.factors)), stream.copies_of_epoch(epoch))
    generator = torch.Generator().manual_seed(ORDERS[stream.order](stream.seed, epoch))
    entries = entries[torch.randperm(len(entries), generator=generator).numpy()]
    groups = stream.groups_per_step
    # np.resize repeats an array from its beginning.
    padded = np.resize(entries, (-(-len(entries) // groups), groups))
    return np.stack([grouped(images, stream.portrait[images], stream.group_size) for images in padded.T])


def grouped(images: Int64[np.ndarray, " m"], portrait: Bool[np.ndarray, " m"], size: int) -> Int64[np.ndarray, " m"]:
    """The images reordered so that every ``size`` of them are a batch, in the order in which batches are complete."""
    orientations = [np.flatnonzero(portrait), np.flatnonzero(~portrait)]
    full = np.concatenate([places[: len(places) // size * size].reshape(-1, size) for places in orientations])
    rest = np.concatenate([places[len(places) // size * size :] for places in orientations])
    reordered: np.ndarray = images[np.concatenate([full[full[:, -1].argsort()].ravel(), rest])]
    return reordered
