"""The one JSON file of a zip: whole or not at all; zips that would write elsewhere or fill the disk are refused."""

import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.download import json_member, unpack_json
from tests.conftest import REPOSITORY

CONTENT = b'{"images": [' + b", ".join(b'{"id": %d}' % n for n in range(5000)) + b"]}"


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


@pytest.mark.parametrize("name", ["a.json", "lvis/annotations/a.json", "./a.json"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_the_one_json_file_of_a_zip(tmp_path: Path, name: str, method: int) -> None:
    junk = [("__MACOSX/._a.json", b"x"), ("lvis/", b""), ("README.txt", b"read me"), ("lvis/._b.json", b"x")]
    archive = write_zip(tmp_path / "a.zip", *junk, (name, CONTENT), method=method)
    unpack_json(archive, tmp_path / "out" / "a.json")
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [CONTENT]


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"mine")
    unpack_json(write_zip(tmp_path / "a.zip", ("a.json", CONTENT)), tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.zip"]


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        ("/etc/a.json", "has an absolute name"),
        ("C:/a.json", "has an absolute name"),
        ("\\\\host\\share\\a.json", "has an absolute name"),
        ("../a.json", "has a name that leads out of the folder"),
        ("b/../../a.json", "has a name that leads out of the folder"),
        ("b\\..\\..\\a.json", "has a name that leads out of the folder"),
        (entry("a.json", stat.S_IFLNK | 0o777), "is a link or a device"),
        (entry("a.json", stat.S_IFIFO | 0o644), "is a link or a device"),
    ],
)
@pytest.mark.parametrize("beside", [(), (("good.json", CONTENT),)])
def test_a_zip_that_would_write_elsewhere_is_refused(
    tmp_path: Path, member: Any, problem: str, beside: tuple[Any, ...]
) -> None:
    archive = write_zip(tmp_path / "a.zip", *beside, (member, b"/etc/passwd"))
    with pytest.raises(InputError, match=rf"a.zip: '.*a.json': {problem}; fix: delete it and fetch it again"):
        unpack_json(archive, tmp_path / "out.json")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", bytes(10_000_000)))
    with pytest.raises(InputError, match=r"'a.json': would become 10,000,000 bytes from 9,\d\d\d; fix"):
        unpack_json(archive, tmp_path / "a.json")
    archive = write_zip(tmp_path / "a.zip", ("a.json", CONTENT))
    with pytest.raises(InputError, match=rf"'a.json': would become {len(CONTENT):,} bytes from "):
        unpack_json(archive, tmp_path / "a.json", most_bytes=len(CONTENT) - 1)
    unpack_json(archive, tmp_path / "a.json", most_bytes=len(CONTENT))


@pytest.mark.parametrize("said", [100, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_member_that_is_not_as_long_as_it_says(tmp_path: Path, said: int) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", CONTENT))
    true, false = struct.pack("<L", len(CONTENT)), struct.pack("<L", said)
    archive.write_bytes(archive.read_bytes().replace(true, false))
    with pytest.raises(InputError, match=r"a.zip: a.json: (is damaged: |has )"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_damage_an_encrypted_member_and_another_method(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", CONTENT), method=zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b'"id": 4000', b'"id": 5000'))
    with pytest.raises(InputError, match=r"a.zip: a.json: is damaged: Bad CRC-32"):
        unpack_json(archive, tmp_path / "a.json")
    at = whole.rindex(b"PK\x01\x02") + 8
    archive.write_bytes(whole[:at] + b"\x01\x00" + whole[at + 2 :])
    with pytest.raises(InputError, match=r"'a.json': is encrypted"):
        unpack_json(archive, tmp_path / "a.json")
    write_zip(archive, ("a.json", CONTENT), method=zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match=r"'a.json': is packed by method 14, not stored or deflated"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = write_zip(tmp_path / "a.zip", ("a.json", CONTENT), ("a.json", b"{}"))
    with pytest.raises(InputError, match=r"'a.json': is repeated"):
        json_member(archive)


def test_no_json_several_and_no_zip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.zip: holds 0 JSON files: it is empty; allowed: one JSON file; fix"):
        json_member(write_zip(tmp_path / "a.zip"))
    with pytest.raises(InputError, match=r"a.zip: holds 0 JSON files: a.txt"):
        json_member(write_zip(tmp_path / "a.zip", ("a.txt", b"")))
    with pytest.raises(InputError, match=r"a.zip: holds 2 JSON files: a.json, b/c.json; allowed: one JSON file"):
        json_member(write_zip(tmp_path / "a.zip", ("a.json", b"{}"), ("b/c.json", b"{}")))
    (tmp_path / "a.zip").write_text("<html>")
    with pytest.raises(InputError, match=r"a.zip: is no readable zip: File is not a zip file; fix: delete it and"):
        json_member(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"none.zip: is no readable zip: .*No such file"):
        json_member(tmp_path / "none.zip")


def test_content_that_a_check_refuses_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", CONTENT))

    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise InputError("a.json", "is of another kind")

    with pytest.raises(InputError, match=r"a.json: is of another kind"):
        unpack_json(archive, tmp_path / "a.json", check=refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": len(CONTENT) - 1}))
    with pytest.raises(InputError, match=r"GB are free, .* GB are needed; fix: free some, or name a folder on"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]


PROGRAM = """
import sys, time
from pathlib import Path
from lvis_rcnn.system import download as unpack
append = unpack.append_to_part
unpack.append_to_part = lambda *words: (time.sleep(0.002), append(*words))  # a slow disk
unpack.CHUNK_BYTES = 2**14
unpack.unpack_json(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_at_twenty_random_moments_the_bytes_are_the_same_and_no_file_is_left(tmp_path: Path) -> None:
    content, moments = random.Random(0).randbytes(4_000_000).hex().encode(), random.Random(1)
    archive, out = write_zip(tmp_path / "a.zip", ("a.json", content)), tmp_path / "a.json"
    part = tmp_path / "a.json.part"
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(archive), str(out)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
        begun = part.stat().st_mtime_ns if part.exists() else 0
        while process.poll() is None and not (part.exists() and part.stat().st_mtime_ns > begun):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(os.listdir(tmp_path)) <= {"a.zip", "a.json.part"}
    unpack_json(archive, out)
    assert out.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.zip"]
