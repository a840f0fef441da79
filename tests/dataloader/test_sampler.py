"""The sample stream beside a plain reading of the published samplers, and what holds for every stream."""

import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.dataloader.repeat_factors import ROUNDINGS
from lvis_rcnn.dataloader.sampler import SampleStream, grouped

relaxed = settings(max_examples=60)


def batches_as_published(copies, portrait, seed, epoch, ranks, size):
    """For each rank its batches of an epoch, entry by entry as MMDetection's samplers go through them."""
    entries = [image for image, number in enumerate(copies) for _ in range(number)]
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    while len(order) % ranks:  # the head once more; the head of what is already padded where ranks are many
        order.append(order[len(order) % len(entries)])
    return [
        batches_of_rank([entries[number] for number in order[rank::ranks]], portrait, size) for rank in range(ranks)
    ]


def batches_of_rank(images, portrait, size):
    buckets = {True: [], False: []}
    batches = []
    for image in images:
        bucket = buckets[bool(portrait[image])]
        bucket.append(image)
        if len(bucket) == size:
            batches.append(list(bucket))
            bucket.clear()
    left = buckets[True] + buckets[False]
    while left:
        batches.append(left[:size])
        left = left[size:]
    return batches


def test_a_substitute_is_another_image_of_its_bucket_as_probable_as_its_factor():
    factors, portrait = np.array([1.0, 0, 3, 1, 2, 1]), np.array([0, 0, 0, 0, 1, 1], bool)
    stream = SampleStream(factors, "ceil", portrait, 0, group_size=1, groups_per_step=1)
    random = np.random.default_rng(0)
    found = Counter(stream.substitute(0, random) for _ in range(4000))
    assert set(found) == {2, 3}  # image 1 is dropped, 4 and 5 are portraits
    assert 0.72 < found[2] / 4000 < 0.78
    assert stream.substitute(4, random) == 5
    alone = SampleStream(np.ones(2), "ceil", np.array([True, False]), 0, group_size=1, groups_per_step=1)
    assert alone.substitute(1, random) == 1


@st.composite
def streams(draw):
    factors = draw(st.lists(st.one_of(st.just(0.0), st.floats(1, 4)), min_size=1, max_size=25).filter(any))
    return SampleStream(
        factors=np.array(factors),
        rounding=draw(st.sampled_from(sorted(ROUNDINGS))),
        portrait=np.array(draw(st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)))),
        seed=draw(st.integers(0, 1000)),
        group_size=draw(st.integers(1, 4)),
        groups_per_step=draw(st.integers(1, 9)),
    )


def steps_of_epoch(stream, epoch):
    return range(stream.steps_before_epoch(epoch), stream.steps_before_epoch(epoch + 1))


def groups_of_epoch(stream, epoch):
    """Steps x ranks, each a group."""
    return [stream.groups_of_step(step) for step in steps_of_epoch(stream, epoch)]


@relaxed
@given(streams(), st.integers(0, 4))
def test_ranks_see_the_batches_of_the_published_samplers(stream, epoch):
    stream = replace(stream, order="mmengine")
    copies = stream.copies_of_epoch(epoch).tolist()
    expected = batches_as_published(
        copies, stream.portrait, stream.seed, epoch, stream.groups_per_step, stream.group_size
    )
    assert [list(batches) for batches in zip(*groups_of_epoch(stream, epoch), strict=True)] == expected


@relaxed
@given(streams(), st.integers(0, 4))
def test_every_image_is_drawn_its_copies_and_the_padding_is_short(stream, epoch):
    copies = stream.copies_of_epoch(epoch)
    drawn = Counter(image for groups in groups_of_epoch(stream, epoch) for group in groups for image in group)
    extra = Counter(drawn)
    extra.subtract({image: int(number) for image, number in enumerate(copies)})
    assert set(drawn) == set(np.flatnonzero(copies))
    assert min(extra.values()) >= 0
    assert sum(extra.values()) == -int(copies.sum()) % stream.groups_per_step


@relaxed
@given(streams(), st.integers(0, 4))
def test_steps_are_of_one_size_but_for_the_last(stream, epoch):
    sizes = [{len(group) for group in groups} for groups in groups_of_epoch(stream, epoch)]
    assert all(size == {stream.group_size} for size in sizes[:-1])
    assert len(sizes[-1]) == 1
    assert 1 <= min(sizes[-1]) <= stream.group_size
    images_of_rank = math.ceil(stream.copies_of_epoch(epoch).sum() / stream.groups_per_step)
    assert len(sizes) == math.ceil(images_of_rank / stream.group_size)


@relaxed
@given(streams(), st.integers(0, 4))
def test_groups_are_of_one_orientation_but_for_the_last_two_of_a_rank(stream, epoch):
    """Two buckets leave fewer than two groups, of which the first may be mixed too."""
    for groups in groups_of_epoch(stream, epoch)[:-2]:
        assert all(len(set(stream.portrait[group].tolist())) == 1 for group in groups)


@settings(max_examples=15)
@given(streams(), st.data())
def test_a_step_does_not_depend_on_which_were_asked_for_before(stream, data):
    in_order = [stream.groups_of_step(step) for step in range(25)]
    other = pickle.loads(pickle.dumps(stream))
    for step in data.draw(st.permutations(range(25)))[:8]:
        assert other.groups_of_step(step) == in_order[step]
        fresh = SampleStream(
            stream.factors, stream.rounding, stream.portrait, stream.seed, stream.group_size, stream.groups_per_step
        )
        assert fresh.groups_of_step(step) == in_order[step]
        assert fresh.images_before_step(step) == sum(len(group) for groups in in_order[:step] for group in groups)
        assert step in steps_of_epoch(fresh, fresh.epoch_of_step(step))


@relaxed
@given(streams(), st.integers(0, 6))
def test_epochs_join(stream, epoch):
    assert stream.steps_before_epoch(0) == 0
    first, end = steps_of_epoch(stream, epoch)[0], steps_of_epoch(stream, epoch)[-1]
    assert (stream.epoch_of_step(first), stream.epoch_of_step(end), stream.epoch_of_step(end + 1)) == (
        epoch,
        epoch,
        epoch + 1,
    )


def test_by_hand():
    """Eight images in the order of the permutation, the upright ones u: groups of 2 as the buckets fill."""
    images = np.array([10, 11, 12, 13, 14, 15, 16, 17])
    portrait = np.array([True, False, False, True, False, True, True, False])
    # u10 11 12 -> [11 12]; u13 -> [10 13]; 14, u15, u16 -> [15 16]; 17 -> [14 17]
    assert grouped(images, portrait, 2).tolist() == [11, 12, 10, 13, 15, 16, 14, 17]
    # Groups of 3: 10 13 15 is full at 15, 11 12 14 at 14 before it; u16 and 17 are left, upright first.
    assert grouped(images, portrait, 3).tolist() == [11, 12, 14, 10, 13, 15, 16, 17]


def even(number, **changes):
    settings = {"rounding": "ceil", "seed": 0, "group_size": 2, "groups_per_step": 8} | changes
    return SampleStream(factors=np.ones(number), portrait=np.zeros(number, bool), **settings)


@pytest.mark.parametrize(("epoch_length", "steps"), [(1, 1), (16, 1), (17, 2), (73_068, 4567), (122_780, 7674)])
def test_steps_of_an_epoch(epoch_length, steps):
    """The last two: the longest epoch of LVIS v0.5, and a log of the published v1 run."""
    assert even(epoch_length).steps_before_epoch(1) == steps
    assert even(epoch_length).steps_before_epoch(24) == 24 * steps


def test_fewer_images_than_ranks_are_seen_by_all_of_them():
    (first, second) = groups_of_epoch(even(3, group_size=1), 0), groups_of_epoch(even(3, group_size=1), 1)
    assert [len(group) for group in first[0]] == [1] * 8
    assert Counter(image for group in first[0] for image in group).most_common()[-1][1] == 2
    assert first != second


def test_epochs_and_seeds_have_orders_of_their_own():
    assert groups_of_epoch(even(64), 0) != groups_of_epoch(even(64), 1)
    assert groups_of_epoch(even(64), 0) != groups_of_epoch(even(64, seed=5), 0)
    orders = [str(groups_of_epoch(even(64, seed=seed), epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == len(orders)


def test_stochastic_epochs_vary_in_length_about_the_sum_of_the_factors():
    stream = SampleStream(np.full(1000, 1.5), "stochastic", np.zeros(1000, bool), 0, 1, 1)
    lengths = np.diff([stream.steps_before_epoch(epoch) for epoch in range(101)])
    assert len(set(lengths.tolist())) > 20
    # The mean of 100 sums of 1000 coins has a standard deviation of 1.6.
    assert lengths.mean() == pytest.approx(1500, abs=6.4)
