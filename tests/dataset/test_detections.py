import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from lvis_rcnn.dataset.detections import (
    Detections,
    concatenate,
    no_detections,
    pack_rles,
    read_shard,
    read_shards,
    sha256_of_shards,
    shard_path,
    write_shard,
)
from lvis_rcnn.system.cli import InputError


def some_detections(count: int, seed: int = 0) -> Detections:
    random = np.random.default_rng(seed)
    rles = [{"size": [10, 12], "counts": random.bytes(random.integers(1, 6))} for _ in range(count)]
    sizes, offsets, counts, has_mask = pack_rles(rles)
    return Detections(
        image_ids=np.sort(random.integers(1, 5, count)),
        category_ids=random.integers(1, 9, count),
        scores=random.random(count, np.float32),
        boxes_xywh=random.random((count, 4), np.float32),
        mask_sizes=sizes,
        rle_offsets=offsets,
        rle_counts=counts,
        has_mask=has_mask,
    )


def assert_same(left: Detections, right: Detections) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other)


@settings(max_examples=30)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_any_split_into_shards_reads_back_as_one(tmp_path_factory, counts, seed):
    folder = tmp_path_factory.mktemp("detections")
    parts = [some_detections(count, seed + number) for number, count in enumerate(counts)]
    for number, part in enumerate(parts):
        write_shard(shard_path(folder, number), part)
    whole = read_shards(folder)
    assert_same(whole, concatenate(parts))
    masks = [part.rle(index) for part in parts for index in range(len(part))]
    assert [whole.rle(index) for index in range(len(whole))] == masks


def test_a_compressed_shard_is_read_as_well(tmp_path):
    part = some_detections(5, 0)
    write_shard(shard_path(tmp_path, 0), part)
    with np.load(shard_path(tmp_path, 0)) as archive:
        arrays = dict(archive)
    np.savez_compressed(shard_path(tmp_path, 0), **arrays)
    assert_same(read_shards(tmp_path), part)


def test_a_mask_comes_back_as_it_was_encoded():
    rles = [{"size": [4, 5], "counts": b"abc"}, {"size": [6, 7], "counts": b"e"}, {"size": [8, 9], "counts": b"d"}]
    ids = np.arange(3)
    detections = Detections(ids, ids, np.zeros(3, np.float32), np.zeros((3, 4), np.float32), *pack_rles(rles))
    assert [detections.rle(index) for index in range(3)] == rles


def test_a_mask_that_was_left_out_is_not_an_empty_one(tmp_path):
    empty = rle.encode(np.zeros((10, 12), np.uint8, order="F"))
    sizes, offsets, counts, _ = pack_rles([empty, {"size": [10, 12], "counts": b""}])
    ids, boxes = np.arange(2), np.zeros((2, 4), np.float32)
    one = Detections(ids, ids, np.zeros(2, np.float32), boxes, sizes, offsets, counts, np.array([True, False]))
    write_shard(shard_path(tmp_path, 0), one)
    for with_masks in (True, False):
        assert read_shards(tmp_path, with_masks).has_mask.tolist() == [True, False]
    again = read_shards(tmp_path)
    assert rle.area(again.rle(0)) == 0
    with pytest.raises(AssertionError, match="omitted"):
        again.rle(1)


def test_no_detections_survive_a_shard(tmp_path):
    write_shard(shard_path(tmp_path, 0), no_detections())
    assert len(read_shards(tmp_path)) == 0


def test_the_same_detections_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(shard_path(tmp_path / name, 0), some_detections(20))
    assert shard_path(tmp_path / "a", 0).read_bytes() == shard_path(tmp_path / "b", 0).read_bytes()
    assert sha256_of_shards(tmp_path / "a") == sha256_of_shards(tmp_path / "b")
    write_shard(shard_path(tmp_path / "b", 1), some_detections(1))
    assert sha256_of_shards(tmp_path / "a") != sha256_of_shards(tmp_path / "b")


@pytest.mark.parametrize("kept", [0, 10, 400, -1])
def test_a_truncated_shard_is_refused(tmp_path, kept):
    path = shard_path(tmp_path, 0)
    write_shard(path, some_detections(20))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"shard-00000.npz: damaged shard of detections .*; fix: run inference"):
        read_shards(tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path):
    path = shard_path(tmp_path, 0)
    write_shard(path, some_detections(20))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"scores.npy") + 200] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="damaged shard"):
        read_shard(path)


def test_no_flipped_bit_is_a_traceback_or_another_detection(tmp_path):
    path = shard_path(tmp_path, 0)
    write_shard(path, some_detections(2))
    good, raw = read_shard(path), path.read_bytes()
    directory = raw.index(b"PK\x01\x02")
    for place in (*range(0, directory, 41), *range(directory, len(raw))):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with contextlib.suppress(InputError):
            assert_same(read_shard(path), good)


def test_a_missing_shard_is_named(tmp_path):
    for number in (0, 2):
        write_shard(shard_path(tmp_path, number), some_detections(2))
    with pytest.raises(InputError, match=r"shard-00001.npz: shard is missing"):
        read_shards(tmp_path)


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_folder_without_shards_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no shards of detections here"):
        read_shards(tmp_path / folder)


def test_other_formats_and_versions_are_refused(tmp_path):
    path = tmp_path / "shard-00000.npz"
    np.savez(path, a=np.zeros(1))
    with pytest.raises(InputError, match=r"is another format version -1; allowed: lvis_rcnn.detections version 2"):
        read_shard(path)
    for version, name in [(1, "1"), ([2, 2], r"\[2, 2\]"), ("two", "two"), (np.nan, "nan"), (1j, "1j")]:
        np.savez(path, format=np.array("lvis_rcnn.detections"), version=np.array(version))
        with pytest.raises(InputError, match=rf"version {name}; allowed: lvis_rcnn.detections version 2"):
            read_shard(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros(3)}, r"array scores is float64\[3\]; allowed: float32\[3\]"),
        ({"scores": np.zeros(2, np.float32)}, r"array scores is float32\[2\]; allowed: float32\[3\]"),
        ({"image_ids": np.array(7)}, r"array image_ids is int64\[\]"),
        ({"rle_offsets": np.array([0, 2, 1, 3])}, "rle_offsets do not fit rle_counts"),
        ({"has_mask": np.array([True, False, True])}, "has_mask does not fit rle_offsets"),
        ({"extra": np.zeros(1)}, "holds the arrays boxes_xywh, category_ids, extra"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "shard-00000.npz"
    arrays = {**vars(some_detections(3)), **change}
    np.savez(path, format=np.array("lvis_rcnn.detections"), version=np.array(2), **arrays)
    for with_masks in (True, False):
        if with_masks or not any(name.startswith(("rle", "has")) for name in change):
            with pytest.raises(InputError, match=message):
                read_shard(path, with_masks)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such shard"):
        read_shard(tmp_path / "shard-00000.npz")


def test_reading_detections_needs_no_torch():
    code = "import sys, lvis_rcnn.dataset.detections; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
