import errno
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import (
    append_to_part,
    atomic_file,
    atomic_folder,
    keep_part,
    locked_part,
    modified_at,
    part_of,
    remove_abandoned,
    sha256_of_file,
    sha256_of_json,
    stats_below,
    write_json,
)


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


@pytest.mark.parametrize("is_link", [False, True])
def test_folder_replaces_an_older_one_whole(tmp_path: Path, is_link: bool) -> None:
    target = tmp_path / "store"
    beside = {target}
    if is_link:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
        beside.add(tmp_path / "elsewhere")
    for content in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / content).mkdir()
            (temporary / content / "file").write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert {*tmp_path.iterdir()} == beside
    assert target.is_symlink() == is_link


@pytest.mark.parametrize("writing", [atomic_file, atomic_folder])
@pytest.mark.parametrize("of_torch", [False, True])
def test_a_disk_that_is_full_is_named(tmp_path: Path, of_torch: bool, writing: Callable[..., Any]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    of_a_save = RuntimeError("unexpected pos")
    of_a_save.__context__ = full
    with pytest.raises((OSError, RuntimeError)), writing(tmp_path / "a.txt"):
        raise of_a_save if of_torch else full
    assert full.filename == str(tmp_path / "a.txt")


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


def test_a_part_outlives_a_failure_and_is_gone_when_it_is_empty(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"

    def fail_after_half() -> None:
        with locked_part(target) as part:
            append_to_part(part, target, b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_half()
    assert part_of(target).read_bytes() == b"half"
    with locked_part(target) as part:
        append_to_part(part, target, b" and half")
        keep_part(part, target)
    assert target.read_bytes() == b"half and half"
    with locked_part(target):
        pass
    assert list(target.parent.iterdir()) == [target]


def test_a_part_has_one_writer_who_may_rename_or_remove_it(tmp_path: Path) -> None:
    target, order = tmp_path / "a.txt", []

    def write(name: str) -> None:
        with locked_part(target) as part:
            order.append(name)
            assert part.seek(0, os.SEEK_END) == 0  # never the file that the writer before gave its name
            append_to_part(part, target, name.encode())
            time.sleep(0.001)
            order.append(name)
            keep_part(part, target)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdefghijklmnop"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2]
    assert target.read_text() == order[-1]
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_without_locks_is_a_warning_and_one_that_is_full_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    message = rf"{tmp_path}/a.txt.part: cannot be written: No space left on device; fix: make room and start again"
    with locked_part(tmp_path / "a.txt") as part, open("/dev/full", "wb", buffering=0) as full:
        append_to_part(part, tmp_path / "a.txt", b"x")
        with pytest.raises(InputError, match=message):
            append_to_part(full, tmp_path / "a.txt", b"x")
    assert "a.txt.part cannot be locked (No locks available): let one process at a time write it" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/a.txt.part: cannot be written: .*; fix: name another folder"),
        locked_part(tmp_path / "file" / "a.txt"),
    ):
        pass


def test_only_abandoned_folders_of_that_name_are_removed(tmp_path: Path) -> None:
    for name in (".a.12345678", ".a.store.12345678", ".b.12345678"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    with atomic_folder(tmp_path / "a") as mine:
        os.utime(mine, (0, 0))
        remove_abandoned(tmp_path / "a")
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.store.12345678", ".b.12345678", "a"]


def test_files_that_vanish_between_two_looks_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_bytes(bytes(7))
    listed = [(str(tmp_path), ["gone_folder"], ["gone", "there"])]
    monkeypatch.setattr(os, "walk", lambda folder: listed)
    assert [file.st_size for file in stats_below(tmp_path)] == [7]
    assert modified_at(tmp_path / "gone") == 0 < modified_at(tmp_path / "there")
