import argparse
import ast
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from lvis_rcnn.system.cli import InputError, log, run_step, step_parser
from tests.conftest import REPOSITORY


def bad_input(args: argparse.Namespace) -> None:
    log.info("reading")
    raise InputError("gt.json: annotation 7", "has no\nimage", allowed="ids of 'images'", fix="remove it")


def bug(args: argparse.Namespace) -> None:
    raise ZeroDivisionError("division\nby zero")


def interrupted(args: argparse.Namespace) -> None:
    raise KeyboardInterrupt


def run(step: Callable[[argparse.Namespace], None], log_file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["step", "--log", str(log_file)])
    with pytest.raises(SystemExit) as stop:
        run_step(step_parser("A step."), step)
    for handler in log.handlers:
        handler.close()
    log.handlers.clear()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_bad_input_is_one_line_on_the_terminal_and_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bad_input, tmp_path / "logs" / "step.log", monkeypatch) == 2
    line = "error: gt.json: annotation 7: has no image; allowed: ids of 'images'; fix: remove it"
    assert capsys.readouterr().err == f"reading\n{line}\n"
    logged = (tmp_path / "logs" / "step.log").read_text().splitlines()
    assert [text.split(" ", 2)[2] for text in logged] == ["reading", line]


def test_a_bug_shows_one_line_and_keeps_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bug, tmp_path / "step.log", monkeypatch) == 1
    assert capsys.readouterr().err == "error: unexpected ZeroDivisionError: division by zero\n"
    logged = (tmp_path / "step.log").read_text()
    assert "Traceback" in logged
    assert logged.splitlines()[-1].endswith("error: unexpected ZeroDivisionError: division by zero")


def test_an_interrupt_has_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(interrupted, tmp_path / "step.log", monkeypatch) == 130


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"unrecognized arguments: --lo x; fix: .* --help shows"):
        step_parser("A step.").parse_args(["--lo", "x"])
    assert capsys.readouterr().err == ""


def test_the_module_of_a_step_shows_its_docstring_as_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "lvis_rcnn.config", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Check study files" in shown.stdout
    assert "--log FILE" in shown.stdout


COMMANDS = [
    path for path in sorted((REPOSITORY / "lvis_rcnn").glob("*.py")) if "step_parser(__doc__)" in path.read_text()
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_the_help_of_every_command_has_an_example_of_it(path: Path) -> None:
    shown = ast.get_docstring(ast.parse(path.read_text()))
    assert shown is not None
    assert re.search(rf"^( {{4}})?python -m lvis_rcnn {path.stem} \S", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if "add_subparsers" in path.read_text()], ids=lambda path: path.stem
)
def test_the_help_of_every_subcommand_says_what_it_does_and_has_an_example_of_it(path: Path) -> None:
    typed = f"python -m lvis_rcnn {path.stem}"
    (whole,) = helps_of(path.stem, [""])
    names = re.findall(r"^ {4}(\w+) {2,}\S", whole, re.MULTILINE)
    assert len(names) > 1
    for name, shown in zip(names, helps_of(path.stem, names), strict=True):
        usage, _, text = shown.partition("\n\n")
        assert usage.startswith(f"usage: {typed} {name} [-h]")
        assert re.match(rf"[A-Z].*\.\n\n {{4}}{typed} {name} \S", text)
        assert re.search(r"^  --log FILE +also write", text, re.MULTILINE)


# In one process, which imports torch once.
HELPS = """
import runpy, sys
module, *names = sys.argv[1:]
for name in names:
    sys.argv = [module, *name.split(), "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        print(end=chr(0))
"""


def helps_of(step: str, names: list[str]) -> list[str]:
    """What --help prints of each subcommand of a step; of the step itself for an empty name."""
    command = [sys.executable, "-c", HELPS, f"lvis_rcnn.{step}", *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.split(chr(0))[:-1]


def seen_on_a_terminal(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command that ends well shows on a terminal of its own."""
    shown, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    everywhere = {**os.environ, "TERM": "xterm", **environment}
    process = subprocess.Popen(command, cwd=cwd, env=everywhere, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    text = b"".join(iter(lambda: read_all_there_is(shown), b""))
    os.close(shown)
    assert process.wait() == 0, text.decode()
    return text.decode()


def read_all_there_is(terminal: int) -> bytes:
    """What was written meanwhile; Linux ends a terminal that nobody writes to any more with an error."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_pages_show_how_far_they_are_on_a_terminal_only(tmp_path: Path) -> None:
    study = REPOSITORY / "configs" / "smoke.yaml"
    words = ["--study", study, "--results", tmp_path, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "lvis_rcnn.report", "pages", *map(str, words)]
    assert re.search(r"pages: 100%.* 5/5 ", seen_on_a_terminal(*command, cwd=REPOSITORY))
    piped = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "pages: " not in piped.stderr


PRINTS = """
import argparse, sys
from lvis_rcnn.system.cli import run_step, step_parser
run_step(step_parser("A step."), lambda args: [print("a line") for _ in range(100_000)])
"""


WRITES = """
import argparse, os, sys
from lvis_rcnn.system.cli import log, run_step, step_parser
def step(args):
    with open("written", "w") as file:
        log.info("a line of the log")
        print("a line", flush=True)
        for number in (1, 2):
            os.write(number, b"as a library of C writes")
        file.write("what is written")
run_step(step_parser("A step."), step)
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_streams_that_the_caller_has_closed_are_no_error_and_no_file(tmp_path: Path, closed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, WRITES]
    assert subprocess.run(words, cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "written").read_text() == "what is written"


@pytest.mark.parametrize(("given", "code"), [("| true", 141), ("2>&1 | true", 141), (">/dev/full", 2)])
def test_help_that_nobody_can_read_has_no_traceback(given: str, code: int) -> None:
    words = ["bash", "-c", f'(sleep 0.2; exec "$0" -m lvis_rcnn) {given}; exit ${{PIPESTATUS[0]}}', sys.executable]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)


def test_a_reader_that_has_left_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()
