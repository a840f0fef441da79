import json
import math
from pathlib import Path

import pytest

from lvis_rcnn.files import atomic_file, atomic_folder, sha256_of_file, sha256_of_json, write_json


def test_file_appears_whole_and_readable_for_the_group(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text(f"half{1 / 0}")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "store"
    for content in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / content).mkdir()
            (temporary / content / "file").write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "half").write_text(f"{1 / 0}")
    assert list(tmp_path.rglob("*")) == [target]


def test_json_is_readable_text_and_refuses_nan(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"name": "Möwe", "ap": None})
    assert json.loads(target.read_text(encoding="utf-8")) == {"name": "Möwe", "ap": None}
    assert "Möwe" in target.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"ap": math.nan})
    assert list(tmp_path.iterdir()) == [target]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_json({"a": 1, "b": [2.0, None]}) == sha256_of_json({"b": [2.0, None], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})
