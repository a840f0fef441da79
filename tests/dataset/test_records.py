"""A corrupted annotation file becomes the store of what it says, or one line that names what is wrong with it."""

import copy
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvis_rcnn.dataset import reader
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.system import files
from lvis_rcnn.system.cli import InputError
from tests.dataset.test_store import assert_same
from tests.helpers.small_dataset import annotation, build, small_dataset

# In parts, so that the cores of a test run share them.
CORRUPTIONS, PARTS = 1_000, 8
ROOT = Path(__file__).parents[2]
OUTLINE = [0.25 * n for n in range(150)]

VALUES = [None, True, False, -1, 0, 1, 1.5, -0.0, "", "7", "\ud800", "a\nb", [], {}, [[]], [[[]]], [1, 2, 3, 4]]
VALUES += [1e308, -1e308, 10**19, 10**30, 10**400, 2**63 - 1, 2**63, 2**64, float("nan"), float("inf"), [[1] * 6]]
VALUES += [{"size": [40, 60], "counts": [2400]}, {"size": [40, 60], "counts": "PSm0"}, [[1e-320, 1e22, 3, 4, 5, 6]]]
FRAGMENTS = [b"NaN", b"-Infinity", b"1e999", b"-", b"00", b".", b"1.", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\u0000"]
FRAGMENTS += [b"[" * 2000, b"]", b"{", b"}", b'"', b"\\", b",", b":", b"}, {", b"9" * 500, b"/* */", b"\r\n\t "]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(files, "sync", lambda path: None)


def message_of(folder, text):
    """The line that refuses the file; empty where it was stored, which is then compared."""
    try:
        store = build(folder, text)
    except InputError as error:
        return str(error)
    assert_same(store, reading(text))
    return ""


def nodes(value, path=()):
    """Paths of everything inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def parent_of(dataset, path):
    """The list or dictionary that holds the value at ``path``."""
    for key in path[:-1]:
        dataset = dataset[key]
    return dataset


def replace(pick, node, key):
    node[key] = copy.deepcopy(pick.choice(VALUES))


def remove(pick, node, key):
    del node[key]


def wrap(pick, node, key):
    node[key] = pick.choice([[node[key]], {"value": node[key]}, str(node[key])])


def repeat(pick, node, key):
    if isinstance(node, list):
        node.insert(pick.randrange(len(node) + 1), copy.deepcopy(node[key]))
    else:
        node[pick.choice(list(node))] = copy.deepcopy(node[key])


def empty(pick, node, key):
    if isinstance(node[key], list | dict):
        node[key] = type(node[key])()


def change_number(pick, node, key):
    if isinstance(node[key], int | float):
        node[key] = pick.choice([-node[key], node[key] + 1, node[key] * 1e9, node[key] / 3, str(node[key])])


VALUE_MUTATORS = [replace, replace, remove, wrap, repeat, empty, change_number, change_number]


def truncate(pick, text):
    return text[: pick.randrange(len(text))]


def insert(pick, text):
    at = pick.randrange(len(text))
    return text[:at] + pick.choice(FRAGMENTS) + text[at:]


def flip(pick, text):
    at = pick.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << pick.randrange(8)]) + text[at + 1 :]


def cut_out(pick, text):
    at = pick.randrange(len(text))
    return text[:at] + text[at + pick.randrange(1, 40) :]


def double_key(pick, text):
    """A key of a record, or of the file, is repeated."""
    keys = [b'"id"', b'"bbox"', b'"segmentation"', b'"image_id"', b'"annotations"', b'"height"', b'"name"']
    key, value = pick.choice(keys), json.dumps(pick.choice(VALUES)).encode()
    return text.replace(key, key + b": " + value + b", " + key, pick.choice([1, 1, 3]))


def last_key(pick, text):
    """A key of the file is repeated at its end."""
    key = pick.choice(["annotations", "images", "categories", "other"])
    value = pick.choice([[], small_dataset().get(key, 5), {"annotations": small_dataset()["annotations"]}, 5])
    return text.rstrip()[:-1] + b", " + json.dumps({key: value}).encode()[1:]


def decoy(pick, text):
    """Another list of annotations before the file's own."""
    nested = json.dumps({"annotations": pick.choice([small_dataset()["annotations"], [], [5], "x"])}).encode()
    return text.replace(b'{"version"', b'{"nested": ' + nested + b', "version"', 1)


def encode(pick, text):
    return text.decode().encode(pick.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"]), errors="replace")


TEXT_MUTATORS = [truncate, insert, insert, flip, flip, cut_out, double_key, last_key, decoy, encode]


def corrupted(seed):
    """A small file with one to three corruptions, written in one of four styles."""
    pick = random.Random(seed)
    dataset = small_dataset()
    if pick.random() < 0.7:
        for _ in range(pick.randint(1, 2)):
            path = pick.choice(list(nodes(dataset)) or [()])
            if path:
                pick.choice(VALUE_MUTATORS)(pick, parent_of(dataset, path), path[-1])
    style = pick.choice([{}, {"indent": 1}, {"separators": (",", ":")}, {"sort_keys": True}])
    text = json.dumps(dataset, **style).encode()
    return pick.choice(TEXT_MUTATORS)(pick, text) if pick.random() < 0.6 else text


def reading(text):
    """What the JSON reader of Python makes of it; laxer about control characters in texts, as msgspec is.

    NaN is as good as an empty text where nobody needs the value.
    """
    return json.loads(text.decode("utf-8-sig", errors="replace"), strict=False, parse_constant=lambda _: "")


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in range(2, PARTS))])
def test_a_corrupted_file_is_stored_as_read_or_refused_in_one_line(tmp_path, part):
    messages, slowest_s = [], 0.0
    for seed in range(part, CORRUPTIONS, PARTS):
        began = time.monotonic()
        messages.append(message_of(tmp_path, corrupted(seed)))
        slowest_s = max(slowest_s, time.monotonic() - began)
    refused = [message for message in messages if message]
    assert 15 < len(refused) < CORRUPTIONS / PARTS - 15
    for message in refused:
        assert message.startswith(f"{tmp_path / 'annotations.json'}: ")
        assert "\n" not in message
    assert slowest_s < 60  # none hangs


def test_an_error_is_that_of_a_file_read_whole(tmp_path, monkeypatch):
    texts = [corrupted(seed) for seed in range(100)]
    streamed = [message_of(tmp_path, text) for text in texts]
    monkeypatch.setattr(reader, "streamed", lambda *_: None)
    assert streamed == [message_of(tmp_path, text) for text in texts]


def test_a_corruption_at_the_end_of_a_larger_file_costs_no_more_memory(tmp_path):
    records = [annotation(n, 7, 20, [1, 2, 3, 4], [OUTLINE]) for n in range(1, 20_001)]
    records[-1]["area"] = "much"
    (tmp_path / "a.json").write_text(json.dumps({**small_dataset(), "annotations": records}))
    size_mb = (tmp_path / "a.json").stat().st_size / 2**20
    code = f"""
import resource, sys
from pathlib import Path
from lvis_rcnn.dataset.store import build_store
from lvis_rcnn.system.cli import InputError
peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before_mb = peak_mb()
try:
    build_store(Path({str(tmp_path / "a.json")!r}), Path({str(tmp_path / "a.store")!r}))
except InputError as error:
    print(peak_mb() - before_mb, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    more_mb, message = done.stdout.split(" ", 1)
    assert "annotations[19999] (id 20000): area: expected float, got str" in message
    assert float(more_mb) < 2 * size_mb


@given(
    st.lists(st.integers(-3, 40), min_size=1, unique=True), st.lists(st.integers(-5, 45)), st.sampled_from([1, 2**40])
)
def test_positions_are_those_of_the_ids(ids, wanted, spread):
    expected = [ids.index(value) if value in ids else -1 for value in wanted]
    assert positions(np.array(ids) * spread, np.array(wanted, np.int64) * spread).tolist() == expected
