"""Match results on disk: the same after reading, the same bytes, and an error for each kind of damage."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_rcnn.evaluation.average_precision import score
from lvis_rcnn.evaluation.bootstrap import resampled_metrics, resampling_of
from lvis_rcnn.evaluation.matches import MatchesFile, read_matches, read_resampled, write_matches
from lvis_rcnn.evaluation.results import KINDS
from lvis_rcnn.system.cli import InputError
from tests.evaluation.test_average_precision import arrays, by_hand, small_set


def kept_of(dataset, records) -> MatchesFile:
    truth, found = arrays(dataset, records)
    outcomes = {kind: score(truth, found, kind).outcomes for kind in KINDS}
    samples = {kind: resampled_metrics(resampling_of(outcomes[kind], truth.frequencies), 3, 0) for kind in KINDS}
    return MatchesFile("a" * 64, "d" * 64, 300, truth.category_ids, truth.frequencies, outcomes, samples)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**48))
def test_what_is_read_is_what_was_written(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("matches") / "matches.npz"
    kept = kept_of(*small_set(seed)[:2])
    write_matches(path, kept)
    again = read_matches(path)
    first = path.read_bytes()
    write_matches(path, again)
    assert path.read_bytes() == first
    for kind in KINDS:
        resampling = [resampling_of(file.outcomes[kind], file.frequencies) for file in (kept, again)]
        samples = [resampled_metrics(each, 3, 0) for each in resampling]
        assert np.array_equal(*samples, equal_nan=True)
        for kept_samples in (again.resampled, read_resampled(path, "d" * 64)):
            assert np.array_equal(kept_samples[kind], samples[0], equal_nan=True)
    assert (again.annotations_sha256, again.detections_sha256) == ("a" * 64, "d" * 64)


def test_one_protocol_is_read_at_a_time_and_files_without_others_are_as_before(tmp_path):
    dataset, records, _ = small_set(1)
    kept, other = kept_of(dataset, records), replace(kept_of(dataset, records[:2]), images_sha256="i" * 64)
    path = tmp_path / "matches.npz"
    write_matches(path, replace(kept, protocols={"minival": other}))
    again = read_matches(path, "minival")
    assert again.images_sha256 == "i" * 64
    for kind in KINDS:
        assert again.outcomes[kind].num_images == other.outcomes[kind].num_images
        for found in (again.resampled, read_resampled(path, "d" * 64, "minival")):
            assert np.array_equal(found[kind], other.resampled[kind], equal_nan=True)
    with np.load(path) as archive:
        assert int(archive["version"]) == 3
    with pytest.raises(InputError, match="was not scored by the protocol fixed; allowed: minival"):
        read_matches(path, "fixed")
    main = read_matches(path)
    write_matches(path, kept)
    alone = path.read_bytes()
    write_matches(path, main)
    assert path.read_bytes() == alone
    with np.load(path) as archive:
        assert int(archive["version"]) == 2


def written(folder: Path) -> Path:
    write_matches(folder / "matches.npz", kept_of(*by_hand()))
    return folder / "matches.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": np.array("lvis_rcnn.detections")},
            "is lvis_rcnn.detections version 2; allowed: .*; fix: score",
        ),
        ({"version": np.array(1)}, "is lvis_rcnn.matches version 1; allowed: lvis_rcnn.matches version 2"),
        ({"bbox_images": None}, r"damaged file of match results \(arrays bbox_images\)"),
        ({"frequencies": np.array("rcf")}, "frequencies do not fit category_ids"),
        ({"segm_images": np.zeros(3)}, r"images is float64\[3\]"),
        ({"segm_images": np.array([0, 0, 1], np.int32)}, "images beyond the images"),
        ({"bbox_starts": np.array([0, 9, 3])}, "starts do not fit the detections"),
        ({"segm_resampled": None}, r"damaged file of match results \(arrays segm_resampled\)"),
        ({"segm_resampled": np.zeros((3, 12))}, r"resampled is float64\[3, 12\]"),
        ({"bbox_found_by": np.array([2, 0], np.int32)}, "found_by does not fit the detections"),
        ({"num_images": np.array("x")}, "arrays of other shapes"),
        ({"category_ids": np.array([1.0, 2.0])}, "arrays of other shapes"),
    ],
)
def test_a_file_of_another_kind_or_whose_arrays_do_not_fit_is_refused(tmp_path, change, message):
    path = written(tmp_path)
    with np.load(path) as archive:
        arrays = {**archive, **change}
    with path.open("wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=rf"matches.npz: .*{message}"):
        read_matches(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:500], whole[:700] + b"\x00\x01" + whole[702:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"matches.npz: (damaged|is another format)"):
            read_matches(path)
    path.unlink()
    with pytest.raises(InputError, match="no such file of match results; fix: score the detections again"):
        read_matches(path)


def test_one_changed_bit_is_harmless_or_an_input_error(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    # Of the directory every bit, since there zipfile finds compression, encryption and versions that it cannot read.
    for bit in (*range(8 * directory, 8 * (directory + 60)), *range(0, 8 * len(whole), 997)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        for read in (read_matches, partial(read_resampled, detections_sha256="d" * 64)):
            with contextlib.suppress(InputError):
                read(path)


def test_resamples_alone_are_read_of_their_own_detections_only(tmp_path):
    path = written(tmp_path)
    with pytest.raises(InputError, match=r"matches.npz: belongs to other detections than metrics.json; fix: score"):
        read_resampled(path, "e" * 64)
    bare = kept_of(*by_hand())
    write_matches(path, replace(bare, resampled={}))
    assert read_resampled(path, "d" * 64) == {}
    assert read_matches(path).resampled == {}
