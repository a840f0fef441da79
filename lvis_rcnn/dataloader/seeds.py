"""What every random number of a run is seeded with: pure functions of its seed and of the place that needs them.

| random numbers                           | generator            | seed                                            |
|------------------------------------------|----------------------|-------------------------------------------------|
| initial weights that no file provides    | torch, global        | the seed of the run                             |
| order of the images of an epoch          | torch                | a row of ``ORDERS``, :func:`order_seed`         |
| stochastic rounding of repeat factors    | numpy                | :func:`copies_seed`                             |
| scale, flip and replacement of an image  | numpy                | :func:`image_seed`                              |
| sampled anchors and regions of a group   | torch, global        | :func:`losses_seed`                             |

Epochs, steps, groups of a step and places in a group count from 0. No two seeds share random numbers, with one
exception: in runs that were begun in the order "mmengine", epoch e + 1 of seed s is epoch e of seed s + 1.
"""

from collections.abc import Callable

import numpy as np


def order_seed(seed: int, epoch: int) -> int:
    """Of the permutation of an epoch; for seed 0 that of mmengine's ``DefaultSampler``, for others their own."""
    if seed == 0:
        return epoch
    return int(np.random.SeedSequence([seed, epoch], spawn_key=(2,)).generate_state(1, np.uint64)[0])


def mmengine_order_seed(seed: int, epoch: int) -> int:
    """Of the permutation of an epoch in mmengine's ``DefaultSampler``, where seeds share orders."""
    return seed + epoch


# Which one a run has is part of its identity: runs/identity.py.
ORDERS: dict[str, Callable[[int, int], int]] = {"independent": order_seed, "mmengine": mmengine_order_seed}


def copies_seed(seed: int, epoch: int) -> np.random.SeedSequence:
    """Of the stochastic rounding in an epoch."""
    # A spawn key, since [seed, epoch] is padded with zeros: alone it is the image_seed of (seed, epoch, 0, 0).
    return np.random.SeedSequence([seed, epoch], spawn_key=(1,))


def image_seed(seed: int, step: int, group: int, place: int) -> np.random.SeedSequence:
    """Of what is drawn for one image of a step."""
    return np.random.SeedSequence([seed, step, group, place])


def losses_seed(seed: int, step: int, group: int) -> int:
    """Of the sampling in the losses of one group of a step."""
    return int(np.random.SeedSequence([seed, step, group]).generate_state(1, np.uint64)[0])
