"""A text file is told from others by its first bytes."""

import gzip
import pickle

import pytest

from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.encodings import text_start

TEXT = '{"images": []}'


def test_a_mark_is_skipped():
    starts = [text_start(text, "a.json") for text in (b"", TEXT.encode(), TEXT.encode("utf-8-sig"), b"\x00")]
    assert starts == [0, 0, 3, 0]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        *((TEXT.encode(name), "is UTF-16 or UTF-32.*; fix: .*iconv") for name in ("utf-16", "utf-16-le", "utf-16-be")),
        *((TEXT.encode(name), "is UTF-16 or UTF-32") for name in ("utf-32", "utf-32-le", "utf-32-be")),
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip; .*fix: unpack it with gunzip"),
        (b"PK\x03\x04\x14", "is a zip archive"),
        (pickle.dumps([{"a": 1}]), r"is a pickle, as .*results\.pkl is; .*fix: write JSON"),
        (b"\x93NUMPY\x01\x00v\x00", "is an array of NumPy"),
        (bytes(99), "begins with zero bytes"),
        (b"\n<!DOCTYPE html>", "is an HTML page; .*fix: download"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS; .*fix: .*git lfs pull"),
    ],
)
def test_other_files_are_named(head, message):
    with pytest.raises(InputError, match=f"a.json: {message}"):
        text_start(head[:32], "a.json")


def test_study_files_too(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes("study: a".encode("utf-8-sig"))
    assert read_yaml(path) == {"study": "a"}
    path.write_bytes("study: a".encode("utf-16"))
    with pytest.raises(InputError, match="is UTF-16"):
        read_yaml(path)
