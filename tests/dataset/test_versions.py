"""A file is the version that its categories are, whatever it is called."""

import csv
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvis_rcnn.dataset.records import Category
from lvis_rcnn.dataset.versions import VERSIONS, claimed_version, unlike_a_full_split, version_of
from tests.conftest import REPOSITORY

BY_NAME = {version.name: version for version in VERSIONS}


def rows(name):
    with (REPOSITORY / "tests" / "golden" / f"lvis_{name}_train_counts.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def categories(name):
    return tuple(Category(int(row["id"]), row["name"], row["frequency"], row["synset"]) for row in rows(name))


@pytest.mark.parametrize("name", BY_NAME)
def test_versions_are_those_of_the_per_class_counts(name):
    version = version_of(categories(name))
    assert version is BY_NAME[name]
    frequencies = [row["frequency"] for row in rows(name)]
    assert version.groups == tuple(frequencies.count(group) for group in "rcf")
    assert version.splits["train"][1] == sum(int(row["instance_count"]) for row in rows(name))


@given(st.randoms(), st.integers(0, 1202))
def test_the_order_does_not_matter_and_every_category_does(random, at):
    shuffled = list(categories("v1"))
    random.shuffle(shuffled)
    assert version_of(shuffled) is BY_NAME["v1"]
    assert version_of(shuffled[:at] + shuffled[at + 1 :]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lvis_v0.5_train.json", "v0.5"),
        ("lvis_v1", "v1"),
        ("LVIS_v1.0_val.json", "v1"),
        ("mini", None),
        ("lvis_v2_train.json", None),
        ("elvis.json", None),
    ],
)
def test_what_a_name_claims(text, expected):
    assert claimed_version(text) == expected


FULL = {
    "images": 100_170,
    "annotations": 1_270_141,
    "rare_categories": 337,
    "common_categories": 461,
    "frequent_categories": 405,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"images": 19_809, "annotations": 244_707}, []),
        ({"annotations": 5}, ["5 annotations; train of LVIS v1 has 1,270,141"]),
        ({"images": 7}, ["7 images; LVIS v1 has 100,170 in train, 19,809 in val"]),
        ({"rare_categories": 338}, ["338/461/405 rare/common/frequent categories; LVIS v1 has 337/461/405"]),
    ],
)
def test_unexpected_counts_are_told(changes, expected):
    assert list(unlike_a_full_split(BY_NAME["v1"], FULL | changes)) == expected
