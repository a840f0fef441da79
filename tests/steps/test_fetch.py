"""A file of LVIS is brought to its place from a server on this machine, whatever is there already."""

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvis_rcnn.config.zoo import Source
from lvis_rcnn.fetch import fetch, main
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY
from tests.helpers.file_server import Served, serving


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


RANDOM = random.Random(0)
JSON = json.dumps(
    {
        "images": [{"id": n} for n in range(3)],
        "categories": [{"id": 1}],
        "annotations": RANDOM.randbytes(1_500_000).hex(),
    }
).encode()
ZIP = zipped("a.json", JSON)
DIGEST = hashlib.sha256(ZIP).hexdigest()


@pytest.fixture
def server() -> Iterator[tuple[str, Served]]:
    with serving({"/a.json.zip": ZIP, "/i.zip": ZIP}) as address_and_served:
        yield address_and_served


def source(server: tuple[str, Served], **changes: Any) -> Source:
    row = {"name": "a", "provides": "a.json", "urls": (f"{server[0]}/a.json.zip",), "sha256": DIGEST}
    return Source(**{**row, **changes})


def test_annotations_are_unpacked_and_their_zip_stays(server: tuple[str, Served], tmp_path: Path) -> None:
    out = tmp_path / "annotations" / "mine.json"
    fetch(source(server), out)
    assert out.read_bytes() == JSON
    assert sorted(os.listdir(out.parent)) == ["a.json.zip", "mine.json"]
    out.unlink()
    fetch(source(server), out)
    assert out.read_bytes() == JSON
    assert len(server[1].requests) == 1


def test_images_stay_in_their_zip(server: tuple[str, Served], tmp_path: Path) -> None:
    fetch(source(server, provides="i.zip", urls=(f"{server[0]}/i.zip",)), tmp_path / "i.zip")
    assert os.listdir(tmp_path) == ["i.zip"]
    assert (tmp_path / "i.zip").read_bytes() == ZIP


def test_files_at_hand_are_left_alone(server: tuple[str, Served], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    fetch(source(server), tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "mine"
    assert server[1].requests == []


def test_a_folder_in_place_of_the_file_is_refused(server: tuple[str, Served], tmp_path: Path) -> None:
    message = rf"--out {tmp_path}: is a folder; allowed: the file to write; fix: name the file, --out {tmp_path}/a.json"
    with pytest.raises(InputError, match=message):
        fetch(source(server), tmp_path)
    assert server[1].requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_in_place_of_the_folder_of_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    out = tmp_path / "model.pth"
    if is_there:
        out.write_bytes(b"mine")
    monkeypatch.setattr(sys, "argv", ["fetch", "--weights", "lvis_v1_r50", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    expected = rf"error: --out {out}: is a file; allowed: (with --weights )?a folder; fix: name (a|its) folder.*\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [out] * is_there


def test_a_zip_at_hand_is_unpacked_if_it_is_the_published_one(server: tuple[str, Served], tmp_path: Path) -> None:
    (tmp_path / "a.json.zip").write_bytes(ZIP)
    fetch(source(server), tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == JSON
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json.zip").write_bytes(zipped("a.json", b"{}"))
    with pytest.raises(InputError, match=rf"a.json.zip: its SHA-256 is .*; allowed: {DIGEST}; fix: delete it, or"):
        fetch(source(server), tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.json.zip"]
    assert server[1].requests == []


@pytest.mark.parametrize("known", [{"images": 3, "categories": 1}, {"images": 3, "categories": 1230}])
def test_without_a_digest_what_came_is_counted_and_recorded(
    server: tuple[str, Served], tmp_path: Path, known: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "a.json"
    fetch(Source(**{**dict(source(server)), "sha256": None, "counts": known}), out)
    seen = json.loads((tmp_path / "a.json.seen.json").read_text())
    assert (seen["zip_sha256"], seen["sha256"]) == (DIGEST, hashlib.sha256(JSON).hexdigest())
    assert (seen["size_bytes"], seen["zip_size_bytes"]) == (len(JSON), len(ZIP))
    assert (seen["counts"], seen["known_counts"]) == ({"images": 3, "categories": 1}, known)
    assert seen["is_as_known"] == (known["categories"] == 1)
    warning = f"warning: {out} has 3 images, 1 categories; expected 3 images, 1,230 categories"
    assert (warning in caplog.text) == (known["categories"] == 1230)


def test_a_page_instead_of_the_zip_is_not_kept_even_without_a_digest(
    server: tuple[str, Served], tmp_path: Path
) -> None:
    server[1].files["/a.json.zip"] = b"<html>Please log in</html>"
    with pytest.raises(InputError, match=r"cannot be fetched \(.*a.json.zip.part: is no readable zip: File is not"):
        fetch(source(server, sha256=None), tmp_path / "a.json")
    assert os.listdir(tmp_path) == []


def test_json_of_another_kind_is_not_kept(server: tuple[str, Served], tmp_path: Path) -> None:
    server[1].files["/a.json.zip"] = zipped("a.json", b'{"images": []}')
    known = {"images": 3, "categories": 1}
    with pytest.raises(InputError, match=r"a.json: the file in the zip is no annotation file: .*`categories`; fix"):
        fetch(Source(**{**dict(source(server)), "sha256": None, "counts": known}), tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.json.zip"]


def command(tmp_path: Path, row: dict[str, Any], *words: str) -> list[str]:
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"files": [row]}))
    words = ("--sources", str(tmp_path / "sources.yaml"), *words)
    return [sys.executable, "-m", "lvis_rcnn.fetch", *words, "--out", str(tmp_path / "data" / "a.json")]


def test_the_command_and_a_row_that_is_not_there(server: tuple[str, Served], tmp_path: Path) -> None:
    row = {"name": "a", "provides": "a.json", "urls": [f"{server[0]}/a.json.zip"], "sha256": DIGEST}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    failed = subprocess.run(command(tmp_path, row, "--name", "b"), env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (
        2,
        f"error: --name b: is not in {tmp_path}/sources.yaml; allowed: a\n",
    )
    log = tmp_path / "a.log"
    done = subprocess.run(
        [*command(tmp_path, row, "--name", "a"), "--log", str(log)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "a.json").read_bytes() == JSON
    assert f"unpacked {tmp_path}/data/a.json: {len(JSON):,} bytes\n" in log.read_text()
    assert "it/s" not in done.stderr  # no bar where nobody watches


# Forks, since Python itself takes a second to begin on a busy machine: prints what lies there after each kill, which
# comes within the time that a whole fetch takes here.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
from lvis_rcnn.fetch import fetch, main
from lvis_rcnn.config.zoo import load_sources
source, out, moments = load_sources(Path(sys.argv[1]))["a"], Path(sys.argv[2]), random.Random(3)
began = time.monotonic()
fetch(source, out.parent.parent / "whole" / "a.json")
whole_s = time.monotonic() - began
for _ in range(20):
    for file in out.parent.glob("a.json*"):
        if moments.random() < 0.3 and not file.name.endswith(".part"):
            file.unlink()  # whatever is missing, the next call brings it again
    child = os.fork()
    if child == 0:
        fetch(source, out)
        os._exit(0)
    time.sleep(moments.uniform(0, 1.2 * whole_s))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    print(json.dumps(sorted(file.name for file in out.parent.glob("*"))))
fetch(source, out)
"""


def test_killed_at_twenty_random_moments_from_the_first_byte_to_the_last_name(
    server: tuple[str, Served], tmp_path: Path
) -> None:
    server[1].bytes_in_s = 20e6
    known = {"images": 3, "categories": 1}
    row = {"name": "a", "provides": "a.json", "urls": [f"{server[0]}/a.json.zip"], "counts": known}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"files": [row]}))
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "sources.yaml"), str(tmp_path / "data" / "a.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(states) == 20
    assert len(set(states)) > 2, states
    assert (tmp_path / "data" / "a.json").read_bytes() == JSON
    assert {file.name for file in tmp_path.glob("data/*")} <= {"a.json", "a.json.zip", "a.json.seen.json"}
