"""The seeds of a run: what earlier versions drew, and nothing drawn twice."""

from itertools import product

import numpy as np

from lvis_rcnn.dataloader.seeds import ORDERS, copies_seed, image_seed, losses_seed, order_seed
from lvis_rcnn.runs.identity import ORDERS as KNOWN_ORDERS


def first_number(seed):
    return int(np.random.default_rng(seed).integers(2**63))


def test_the_seeds_are_those_of_the_runs_so_far():
    """A run that goes on draws what it would have drawn."""
    assert ORDERS["mmengine"](3, 5) == 8
    assert first_number(copies_seed(3, 5)) == first_number(np.random.SeedSequence([3, 5], spawn_key=(1,)))
    assert first_number(image_seed(3, 5, 1, 0)) == first_number([3, 5, 1, 0])
    assert losses_seed(3, 5, 1) == np.random.SeedSequence([3, 5, 1]).generate_state(1, np.uint64)[0]


def test_no_epoch_has_the_order_of_another_and_seed_0_has_the_published_ones():
    assert [order_seed(0, epoch) for epoch in range(24)] == [ORDERS["mmengine"](0, epoch) for epoch in range(24)]
    # PyTorch's generator on a CPU takes 32 bits of them.
    seeds = [order_seed(seed, epoch) % 2**32 for seed, epoch in product([*range(40), 2**31, 2**40], range(24))]
    assert len(set(seeds)) == len(seeds)


def test_every_order_has_a_place_in_the_identity_of_a_run():
    assert tuple(ORDERS) == KNOWN_ORDERS


def test_no_generator_is_seeded_as_another():
    numbers = [first_number(copies_seed(seed, epoch)) for seed, epoch in product(range(4), range(6))]
    numbers += [first_number(image_seed(*place)) for place in product(range(4), range(6), range(3), range(3))]
    assert len(set(numbers)) == len(numbers)
    seeds = [losses_seed(*place) for place in product(range(4), range(6), range(3))]
    assert len(set(seeds)) == len(seeds)
