"""Files arrive whole from servers that break off, lie, forget and move, and from zips; bad zips are refused."""

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.system import download as download_module
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.download import Version, download, json_member, unpack_json
from tests.conftest import REPOSITORY
from tests.helpers.file_server import Served, serving

CONTENT = random.Random(0).randbytes(3_000_000)
OTHER = random.Random(1).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = (0.0, 0.0)


@pytest.fixture
def server() -> Iterator[tuple[str, Served]]:
    with serving({"/a.zip": CONTENT, "/mirror/a.zip": CONTENT}) as address_and_served:
        yield address_and_served


def bring(server: tuple[str, Served], folder: Path, *places: str, **known: Any) -> Path:
    urls = [place if "://" in place else f"{server[0]}{place}" for place in places or ["/a.zip"]]
    download(urls, folder / "a.zip", **{"waits_s": AT_ONCE, **known})
    return folder / "a.zip"


def is_whole_and_alone(path: Path, content: bytes = CONTENT) -> bool:
    return path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_file_comes_once_into_a_folder_that_is_made(server: tuple[str, Served], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "coco"
    path = bring(server, folder, size_bytes=len(CONTENT), sha256=DIGEST)
    assert is_whole_and_alone(path)
    assert bring(server, folder) == path
    assert server[1].requests == [("/a.zip", None)]


def test_a_file_that_is_there_is_left_alone_whatever_it_holds(server: tuple[str, Served], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"mine")
    path = bring(server, tmp_path, size_bytes=len(CONTENT), sha256=DIGEST)
    assert is_whole_and_alone(path, b"mine")
    assert server[1].requests == []


def test_cut_connections_are_resumed_where_they_broke_off(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].cuts = [1_000_000, 500_000, 0, 700_000]
    assert is_whole_and_alone(bring(server, tmp_path, sha256=DIGEST))
    ranges = [asked for _, asked in server[1].requests]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-", "bytes=2200000-"]
    assert server[1].sent == len(CONTENT)


def test_a_server_without_ranges_sends_all_again(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].cuts, server[1].knows_ranges = [1_000_000], False
    assert is_whole_and_alone(bring(server, tmp_path))
    assert server[1].sent == 1_000_000 + len(CONTENT)


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].cuts, server[1].knows_ranges = [1_000_000] * 9, False
    message = r"a.zip: the connection ended after 1,000,000 of 3,000,000 bytes, 3 times\); fix: put the file into "
    with pytest.raises(InputError, match=message + r".*, or start again, which resumes from a\.zip\.part"):
        bring(server, tmp_path)
    assert len(server[1].requests) == 4  # the first brought something new
    server[1].cuts, server[1].knows_ranges = [], True
    assert is_whole_and_alone(bring(server, tmp_path))
    assert server[1].requests[-1] == ("/a.zip", "bytes=1000000-")


@pytest.mark.parametrize("etag", [True, False])
def test_two_versions_are_never_joined(server: tuple[str, Served], tmp_path: Path, etag: bool) -> None:
    server[1].cuts, server[1].says_etag = [1_000_000, *[0] * 9], etag
    with pytest.raises(InputError, match="the connection ended"):
        bring(server, tmp_path)
    server[1].cuts, server[1].files["/a.zip"] = [], OTHER
    assert is_whole_and_alone(bring(server, tmp_path), OTHER)


def test_a_mirror_goes_on_from_the_part_of_another_with_the_same_version(
    server: tuple[str, Served], tmp_path: Path
) -> None:
    server[1].cuts = [1_000_000, 0, 0, 0]
    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip"))
    assert server[1].requests[-1] == ("/mirror/a.zip", "bytes=1000000-")
    assert server[1].sent == len(CONTENT)


def test_a_mirror_with_another_version_begins_anew(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].cuts, server[1].files["/mirror/a.zip"] = [1_000_000, 0, 0, 0], OTHER
    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip"), OTHER)


def test_a_range_beside_the_one_asked_for_is_not_used(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].cuts, server[1].range_shift = [1_000_000], -10
    assert is_whole_and_alone(bring(server, tmp_path))
    assert [asked for _, asked in server[1].requests] == [None, "bytes=1000000-", None]


def test_busy_answers_are_waited_for_with_growing_waits(
    server: tuple[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", lambda wait_s: waits.append(wait_s))
    server[1].answers = [503, 429, 500, 408]
    assert is_whole_and_alone(bring(server, tmp_path, waits_s=None))
    assert waits == [1, 4, 15, 60]


@pytest.mark.parametrize(
    ("asked", "wait_s"),
    [
        ("7", 7),
        ("0", 1),
        (lambda: formatdate(time.time() + 30, usegmt=True), 30),
        ("soon", 1),
        ("-5", 1),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 1),
    ],
    ids=["seconds", "less than our own wait", "date", "no date", "negative", "far away"],
)
def test_a_server_that_asks_to_wait_is_waited_for(
    server: tuple[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, wait_s: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", lambda wait_s: waits.append(wait_s))
    server[1].answers, server[1].retry_after = [429], [asked if isinstance(asked, str) else asked()]
    assert is_whole_and_alone(bring(server, tmp_path, waits_s=(1.0,)))
    assert waits == [pytest.approx(wait_s, abs=2 if wait_s == 30 else 0)]


def test_a_server_that_asks_for_too_long_a_wait_hands_over_to_the_mirror(
    server: tuple[str, Served], tmp_path: Path
) -> None:
    server[1].answers, server[1].retry_after = [503], ["7200"]
    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip"))
    assert [path for path, _ in server[1].requests] == ["/a.zip", "/mirror/a.zip"]
    (tmp_path / "a.zip").unlink()
    server[1].answers, server[1].retry_after = [503], ["9" * 400]
    with pytest.raises(InputError, match=r"HTTP 503 Service Unavailable, asks to be tried again in \d+d \d\dh\)"):
        bring(server, tmp_path)


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_server_without_the_file_hands_over_to_the_mirror_at_once(
    server: tuple[str, Served], tmp_path: Path, status: int
) -> None:
    server[1].answers = [status]
    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip"))
    assert [path for path, _ in server[1].requests] == ["/a.zip", "/mirror/a.zip"]


def test_every_address_is_listed_with_its_reason(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].answers = [404, 503, 503, 503]
    places = ["/a.zip", "/mirror/a.zip", "http://127.0.0.1:9/a.zip"]
    message = (
        rf"a.zip: is missing and cannot be fetched \({server[0]}/a.zip: HTTP 404 Not Found; "
        rf"{server[0]}/mirror/a.zip: HTTP 503 Service Unavailable, 3 times; "
        r"http://127.0.0.1:9/a.zip: cannot be reached: .*refused\); "
        rf"fix: put the file into {tmp_path}$"
    )
    with pytest.raises(InputError, match=message):
        bring(server, tmp_path, *places)
    assert list(tmp_path.iterdir()) == []


def test_another_digest_is_not_kept_and_the_mirror_is_asked(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].files["/a.zip"] = OTHER
    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip", sha256=DIGEST[:8]))
    (tmp_path / "a.zip").unlink()
    found = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(InputError, match=rf"the file has the SHA-256 {found}, not {DIGEST}\)"):
        bring(server, tmp_path, sha256=DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_another_length_is_refused_before_anything_is_sent(server: tuple[str, Served], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 3,000,000 bytes under this name, not 3,000,001\)"):
        bring(server, tmp_path, size_bytes=3_000_001)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_lies_about_the_length_is_given_up(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].extra_length = 10
    with pytest.raises(InputError, match=r"HTTP 416|ended after 3,000,000 of 3,000,010 bytes"):
        bring(server, tmp_path)
    assert not (tmp_path / "a.zip").exists()
    with pytest.raises(InputError, match=r"has 3,000,010 bytes under this name, not 3,000,000\)"):
        bring(server, tmp_path, size_bytes=len(CONTENT))


def test_an_answer_without_a_length(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].says_length, server[1].cuts = False, [1_000_000]
    with pytest.raises(InputError, match="does not say how long the file is, so that a truncated one"):
        bring(server, tmp_path)
    server[1].cuts = [1_000_000]
    assert is_whole_and_alone(bring(server, tmp_path, size_bytes=len(CONTENT)))


def test_content_that_a_check_refuses_is_not_kept(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].files["/a.zip"] = b"<html>Please log in</html>"

    def no_page(path: Path) -> None:
        if path.read_bytes().startswith(b"<html>"):
            raise InputError("a.zip", "is a page")

    assert is_whole_and_alone(bring(server, tmp_path, "/a.zip", "/mirror/a.zip", check=no_page))
    (tmp_path / "a.zip").unlink()
    with pytest.raises(InputError, match=r"a\.zip: a\.zip: is a page\)"):
        bring(server, tmp_path, check=no_page)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_download(
    server: tuple[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(InputError, match=rf"{tmp_path}: 0.00 GB are free, 0.00 GB are needed; fix: free some, or"):
        bring(server, tmp_path)
    assert list(tmp_path.glob("*.zip")) == []


def test_a_quota_that_is_used_up_is_no_matter_of_the_servers(
    server: tuple[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, path: Path, chunk: bytes) -> None:
        raise InputError(f"{path}.part", "cannot be written: Disk quota exceeded")

    monkeypatch.setattr(download_module, "append_to_part", full)
    with pytest.raises(InputError, match=r"a.zip.part: cannot be written: Disk quota exceeded"):
        bring(server, tmp_path, "/a.zip", "/mirror/a.zip")
    assert len(server[1].requests) == 1


def test_several_at_once_download_once(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].bytes_in_s = 20e6
    threads = [threading.Thread(target=bring, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_whole_and_alone(tmp_path / "a.zip")
    assert len(server[1].requests) == 1


def test_a_part_of_unknown_version_and_a_damaged_note(server: tuple[str, Served], tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(OTHER[:1000])
    (tmp_path / "a.zip.part.json").write_text("{")
    assert is_whole_and_alone(bring(server, tmp_path))


def test_a_whole_part_that_was_not_renamed_is_not_fetched_again(server: tuple[str, Served], tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert is_whole_and_alone(bring(server, tmp_path, size_bytes=len(CONTENT), sha256=DIGEST))
    (tmp_path / "a.zip").rename(tmp_path / "a.zip.part")
    version = Version(f"{server[0]}/a.zip", len(CONTENT), "", "")
    (tmp_path / "a.zip.part.json").write_text(json.dumps(vars(version)))
    assert is_whole_and_alone(bring(server, tmp_path))
    assert server[1].requests == []


PROGRAM = """
import sys
from pathlib import Path
from lvis_rcnn.system.download import download
download([sys.argv[1]], Path(sys.argv[2]), sha256=sys.argv[3], waits_s=(0.05, 0.05))
"""


def test_killed_at_twenty_random_moments_the_bytes_are_the_same_and_none_comes_twice(
    server: tuple[str, Served], tmp_path: Path
) -> None:
    server[1].bytes_in_s = 1e6
    path, moments = tmp_path / "a.zip", random.Random(2)
    words = [sys.executable, "-c", PROGRAM, f"{server[0]}/a.zip", str(path), DIGEST]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    kills = 0
    while not path.exists():
        before, more = server[1].sent, moments.uniform(0, 2 * len(CONTENT) / 25)
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        if kills < 20:
            kill_when(process, lambda before=before, more=more: server[1].sent >= before + more)
            kills += 1
        process.wait()
    assert kills == 20
    assert is_whole_and_alone(path)
    assert sum(asked is not None for _, asked in server[1].requests) > 10
    # What lay in the buffers of a connection when its reader was killed is lost: it was never here.
    assert server[1].sent < len(CONTENT) + kills * 2**16


def kill_when(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> None:
    while process.poll() is None and not is_time():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)


# Zips

JSON = b'{"images": [' + b", ".join(b'{"id": %d}' % n for n in range(5000)) + b"]}"


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
    archive = write_zip(tmp_path / "a.zip", *junk, (name, JSON), method=method)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json.part").write_bytes(b"of a process that was killed")
    unpack_json(archive, tmp_path / "out" / "a.json")
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [JSON]


def test_a_json_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"mine")
    unpack_json(write_zip(tmp_path / "a.zip", ("a.json", JSON)), tmp_path / "a.json")
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
@pytest.mark.parametrize("beside", [(), (("good.json", JSON),)])
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
    archive = write_zip(tmp_path / "a.zip", ("a.json", JSON))
    with pytest.raises(InputError, match=rf"'a.json': would become {len(JSON):,} bytes from "):
        unpack_json(archive, tmp_path / "a.json", most_bytes=len(JSON) - 1)
    unpack_json(archive, tmp_path / "a.json", most_bytes=len(JSON))


@pytest.mark.parametrize("said", [100, len(JSON) - 1, len(JSON) + 1])
def test_a_member_that_is_not_as_long_as_it_says(tmp_path: Path, said: int) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", JSON))
    true, false = struct.pack("<L", len(JSON)), struct.pack("<L", said)
    archive.write_bytes(archive.read_bytes().replace(true, false))
    with pytest.raises(InputError, match=r"a.zip: a.json: (is damaged: |has )"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_damage_an_encrypted_member_and_another_method(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", JSON), method=zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b'"id": 4000', b'"id": 5000'))
    with pytest.raises(InputError, match=r"a.zip: a.json: is damaged: Bad CRC-32"):
        unpack_json(archive, tmp_path / "a.json")
    at = whole.rindex(b"PK\x01\x02") + 8
    archive.write_bytes(whole[:at] + b"\x01\x00" + whole[at + 2 :])
    with pytest.raises(InputError, match=r"'a.json': is encrypted"):
        unpack_json(archive, tmp_path / "a.json")
    write_zip(archive, ("a.json", JSON), method=zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match=r"'a.json': is packed by method 14, not stored or deflated"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_repeated_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = write_zip(tmp_path / "a.zip", ("a.json", JSON), ("a.json", b"{}"))
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


def test_json_that_a_check_refuses_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "a.zip", ("a.json", JSON))

    def refuse(path: Path) -> None:
        assert path.read_bytes() == JSON
        raise InputError("a.json", "is of another kind")

    with pytest.raises(InputError, match=r"a.json: is of another kind"):
        unpack_json(archive, tmp_path / "a.json", check=refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": len(JSON) - 1}))
    with pytest.raises(InputError, match=r"GB are free, .* GB are needed; fix: free some, or name a folder on"):
        unpack_json(archive, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.zip"]
