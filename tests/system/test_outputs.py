"""Where a step writes is checked before it begins, and so is every number that it is given."""

import argparse
import contextlib
import errno
import importlib
import os
import re
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from lvis_rcnn.system.cli import InputError, add_number, add_output, log, run_step, step_parser

GIVEN = ["--annotations", "gt.json", "--out", "metrics.json"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gt.json").write_text("the truth")
    (tmp_path / "link.json").symlink_to("gt.json")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "data").mkdir()
    (tmp_path / "holds_a" / "a.json").mkdir(parents=True)
    (tmp_path / "holds_b").mkdir()
    (tmp_path / "holds_b" / "b").touch()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
    os.mkfifo("pipe")
    return tmp_path


def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a step that has an input, a folder and three files to write; empty where it begins."""
    parser = step_parser("A step.")
    parser.add_argument("--annotations", type=Path)
    add_output(parser, "--out", "a file", suffix=".json", beside=(".txt",))
    add_output(parser, "--matches", "a file", suffix=".npz", required=False)
    add_output(parser, "--plot", "a folder", is_folder=True, required=False, holds=("a.json", "b/"))
    monkeypatch.setattr(sys, "argv", ["step", *words])
    with contextlib.suppress(SystemExit):
        run_step(parser, lambda args: log.debug("begun"))
    for handler in log.handlers:
        handler.close()
    log.handlers.clear()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "gt.json"], "--out gt.json: gt.json is also the argument annotations; fix: name another place"),
        (["--out", "data/../gt.json"], "is also the argument annotations"),
        (["--out", "link.json"], "is also the argument annotations"),
        (["--log", "gt.json"], "--log gt.json: gt.json is also the argument annotations"),
        (["--log", "metrics.json"], "metrics.json is also the argument log"),
        (["--log", "metrics.txt"], "--out metrics.json: metrics.txt is also the argument log"),
        (["--plot", "data", "--annotations", "data"], "--plot data: data is also the argument annotations"),
        (["--out", "m.txt"], "--out m.txt: has another ending; allowed: *.json; fix: change the name"),
        (["--matches", "q.txt"], "--matches q.txt: has another ending; allowed: *.npz"),
        (["--out", "metrics"], "allowed: *.json"),
        (["--log", "data"], "--log data: is a folder; allowed: a file; fix: name a file"),
        (["--out", "new.json/"], "--out new.json/: names a folder; allowed: a file; fix: name a file"),
        (["--log", "new/"], "--log new/: names a folder"),
        (["--plot", "gt.json"], "--plot gt.json: is a file; allowed: a folder; fix: name a folder"),
        (
            ["--plot", "holds_a"],
            "--plot holds_a/a.json: is a folder; allowed: a file; fix: move it away, or name another",
        ),
        (["--plot", "holds_b"], "--plot holds_b/b: is a file; allowed: a folder; fix: move it away"),
        (["--out", "gt.json/m.json"], "gt.json, which is a file; fix: name a place in a folder"),
        (["--out", "loop/m.json"], "loop, a link that leads nowhere; fix: name a place in a folder"),
        (["--out", "x" * 241 + ".json"], "is too long a name; allowed: 245 bytes; fix: name it shorter"),
        (["--plot", "y" * 300 + "/a"], "is too long a name"),
        (["--plot", "gt.json/a/b"], "gt.json, which is a file; fix: name a place in a folder"),
        (["--out", "/proc/m.json"], "--out /proc/m.json: /proc cannot be written; fix: name a place in another folder"),
        (["--log", "/proc/step.log"], "--log /proc/step.log: /proc cannot be written"),
        (["--log", "loop"], "--log loop: cannot be written: Too many levels of symbolic links; fix: "),
        (["--plot", "loop"], "loop, a link that leads nowhere; fix: name a place in a folder"),
        (["--log", "socket"], "--log socket: cannot be written: No such device or address; fix: name another"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_written_is_refused_before_the_step_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    there = sorted(path.name for path in folder.iterdir())
    (line,) = error_of(monkeypatch, capsys, *GIVEN, *words).splitlines()
    assert line.startswith("error: --")
    assert message in line
    assert sorted(path.name for path in folder.iterdir()) == there
    assert (folder / "gt.json").read_text() == "the truth"


@pytest.mark.parametrize(
    ("name", "kind"), [("pipe", "pipe"), ("socket", "socket"), ("/dev/zero", "device"), ("to_zero", "device")]
)
def test_an_input_that_may_have_no_end_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    (folder / "to_zero").symlink_to("/dev/zero")
    line = error_of(monkeypatch, capsys, "--annotations", name, "--out", "metrics.json")
    assert line.startswith(f"error: {name}: is a {kind}; allowed: a file or a folder; fix: write what it gives to a fi")


def test_the_pipe_of_a_shell_and_a_name_too_long_for_any_file_are_left_to_the_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    for name in (f"/dev/fd/{reader}", "x" * 5000):
        assert error_of(monkeypatch, capsys, "--annotations", name, "--out", "metrics.json") == ""
    os.close(reader)
    os.close(writer)


def test_a_folder_without_permission_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "data cannot be written; fix: " in error_of(monkeypatch, capsys, "--out", "data/new/m.json")


def test_new_places_and_files_to_replace_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "metrics.json").write_text("of yesterday")
    words = ["--plot", "data/", "--matches", "a/b/m.npz", "--log", "a/step.log"]
    assert error_of(monkeypatch, capsys, *GIVEN, *words) == ""
    assert error_of(monkeypatch, capsys, *GIVEN, *words) == ""


def test_a_full_disk_of_the_log_is_said_once_and_ends_no_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(args: argparse.Namespace) -> None:
        log.info("step 1")
        log.info("step 2")
        raise InputError("gt.json", "no such file")

    monkeypatch.setattr(sys, "argv", ["step", "--log", "/dev/full"])
    with pytest.raises(SystemExit, match="2"):
        run_step(step_parser("A step."), train)
    full = "--log /dev/full cannot be written any more: No space left on device"
    assert capsys.readouterr().err.splitlines() == ["step 1", full, "step 2", "error: gt.json: no such file"]


def test_a_full_disk_is_one_line_and_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(args: argparse.Namespace) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.json")

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit, match="2"):
        run_step(step_parser("A step."), fill)
    assert capsys.readouterr().err.startswith("error: metrics.json: No space left on device; fix: make room")


@pytest.mark.parametrize("place", ["data", "gt.json/a/b"])
def test_a_place_of_another_kind_is_one_line_and_no_bug(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit, match="2"):
        run_step(step_parser("A step."), lambda args: os.replace("link.json", place))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: {place}: (Is|Not) a directory; fix: move away what is there, let .*", line)


@pytest.mark.parametrize(
    ("limits", "typed", "message"),
    [
        ({"least": 0}, "-1", "--x: is -1; allowed: an integer 0 or more; fix: change the value"),
        ({"least": 0}, "1.5", "--x: is 1.5; allowed: an integer 0 or more"),
        ({"least": 0}, str(2**31), "allowed: an integer 0 or more, at most 2147483647"),
        ({"least": 0, "most": 2**32 - 1}, str(2**32), "allowed: an integer from 0 to 4294967295"),
        ({"least": 0}, "", "--x: is empty; allowed: "),
        ({"least": 1, "most": 300}, "0", "--x: is 0; allowed: an integer from 1 to 300"),
        ({"least": 1, "most": 300}, "301", "--x: is 301; allowed: an integer from 1 to 300"),
        *(({"least": 0, "most": 1, "kind": float}, text, "a number from 0 to 1") for text in ("nan", "inf", "-0.1")),
        *(({"least": 0, "kind": float, "above": True}, text, "a number above 0") for text in ("0", "nan", "inf", "x")),
        ({"least": 0, "most": 1, "kind": float, "above": True}, "2", "a number above 0, at most 1"),
    ],
)
def test_a_number_outside_of_its_limits_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limits: dict, typed: str, message: str
) -> None:
    parser = step_parser("A step.")
    add_number(parser, "--x", "a number", **limits)
    monkeypatch.setattr(sys, "argv", ["step", f"--x={typed}"])
    with pytest.raises(SystemExit, match="2"):
        run_step(parser, lambda args: None)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "words",
    [  # of every option with a number
        "draw --seed -1",
        "draw --train-images 0",
        "weights import a.pth --categories -1",
        "compare a b --resamples 0",
        "compare a b --seed x",
        "evaluate --processes 0",
        "evaluate --detections-per-image 301",
        "evaluate --bootstrap -1",
        "repeat_factors --threshold nan",
        "repeat_factors --exponent inf",
        "repeat_factors --exponent 2.1",
        "report pictures --score nan",
        "report pictures --number 51",
        "report pictures --show 1.5",
        "report batch --seed -1",
        "report batch --step -1",
        "status --watch inf",
        "train --seed -1",
        "system.gpus --gpus -3",
    ],
)
def test_a_number_that_makes_no_sense_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    name, *given = words.split()
    monkeypatch.setattr(sys, "argv", [name, *given])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"lvis_rcnn.{name}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {given[-2]}: is {given[-1]}; allowed: ")


def test_an_image_is_named_by_any_id_that_it_may_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "report pictures --store data --images data --detections data --out new --show -5"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("lvis_rcnn.report").main()
    assert capsys.readouterr().err.startswith("error: data: ")


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        ("evaluate --annotations a --detections b", ".json"),
        ("evaluate --annotations a --detections b --out m.json --matches", ".npz"),
        ("export --detections b", ".json"),
        ("measure --study a --row r50 --model b --val-store c --val-images d", ".json"),
        ("preflight --study a --train-store b --val-store c", ".json"),
        ("compare a b", ".txt"),
        ("weights import a --backbone r50 --store b", ".pth"),
        ("weights import a --backbone r50 --store b --out m.pth --report", ".json"),
        ("weights export a", ".pth"),
        ("report table --study a --results b", ".md"),
        ("report batch --study a --store b --images c --repeat-factors d", ".png"),
        ("config.__main__ --schema", ".json"),
    ],
)
def test_a_file_is_written_under_a_name_of_its_kind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, ending: str
) -> None:
    name, *given = words.split()
    given += [] if given[-1] in ("--matches", "--report", "--schema") else ["--out"]
    monkeypatch.setattr(sys, "argv", [name, *given, "r.bin"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"lvis_rcnn.{name}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{given[-1]} r.bin: has another ending; allowed: *{ending}; fix: " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fetch --name lvis_v1_val --out data", "--out data: is a folder; allowed: a file"),
        ("fetch --weights lvis_v1_r50 --out gt.json", "--out gt.json: is a file; allowed: a folder"),
        ("fetch --name lvis_v1_val --out gt.json/x", "gt.json, which is a file"),
    ],
)
def test_what_fetch_writes_depends_on_what_it_fetches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("lvis_rcnn.fetch").main()
    assert message in capsys.readouterr().err
