"""How every step starts, reports and fails: one parser, one log, one line for an error."""

import argparse
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lvis_rcnn import STEPS

log = logging.getLogger("lvis_rcnn")

LOG_HELP = "also write the messages of the step to this file"

EXIT_BAD_INPUT = 2
EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # the exit code that a shell reports of a program ended by SIGPIPE


class InputError(Exception):
    """Something that the user provided is wrong.

    The message is one line: where, what, what is allowed, how to fix it.
    """

    def __init__(self, where: str, what: str, *, allowed: str = "", fix: str = "") -> None:
        parts = [f"{where}: {what}"]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the step's docstring, with ``--log FILE`` that every step takes."""
    parser = argparse.ArgumentParser(
        prog=as_typed(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help=LOG_HELP)
    return parser


def as_typed() -> str | None:
    """The command that runs this step, ``python -m lvis_rcnn train``; None in another program, which argparse names."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    package, _, name = (spec.name if spec else "").partition(".")
    if package != "lvis_rcnn":
        return None
    return f"python -m lvis_rcnn {name}" if name in STEPS else f"python -m lvis_rcnn.{name.removesuffix('.__main__')}"


def add_command(commands: "Parts", name: str, description: str | None) -> argparse.ArgumentParser:
    """A command of a step that has several.

    Args:
        commands: the step's own ``add_subparsers``.
        name: word that selects it.
        description: its help, a docstring; the list of the step's commands shows the first line.
    """
    text = inspect.cleandoc(description or "")
    first = text.partition("\n")[0].rstrip(".")
    command = commands.add_parser(
        name,
        help=first[:1].lower() + first[1:],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # The parent's option again, so that it may follow the command as with every other step.
    command.add_argument("--log", type=Path, default=argparse.SUPPRESS, metavar="FILE", help=LOG_HELP)
    return command


def run_step(parser: argparse.ArgumentParser, step: Callable[[argparse.Namespace], None]) -> None:
    """Parse, run, and end the process: 0 done, 2 bad input (one line), 1 unexpected (traceback in the log)."""
    args = parser.parse_args()
    start_logging(args.log)
    try:
        step(args)
    except InputError as error:
        log.error("error: %s", error)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:
        # The reader of the output has exited, as ``head`` does; Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_UNREAD)
    except KeyboardInterrupt:
        log.error("error: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        write_traceback(args.log)
        log.error("error: unexpected %s: %s", type(error).__name__, " ".join(str(error).split()))
        sys.exit(EXIT_UNEXPECTED)


def duration(seconds: float) -> str:
    """A duration as text: ``40s``, ``14m``, ``2h 05m``, ``3d 04h``."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"


def rate(value: float) -> str:
    """A speed or an amount as text: one decimal, below 1 two digits, so that it is never 0.0 where it is not 0."""
    return f"{value:.1f}" if value >= 1 else f"{value:#.2g}"


def start_logging(log_file: Path | None) -> None:
    """Plain lines to standard error; the same lines, and those of level DEBUG, with their time to ``log_file``."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel(logging.INFO)
    log.addHandler(terminal)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)


def write_traceback(log_file: Path | None) -> None:
    """Write the traceback to the log if there is one, so that the terminal shows one line only."""
    if log_file is None:
        traceback.print_exc()
        return
    with log_file.open("a", encoding="utf-8") as file:
        traceback.print_exc(file=file)


if TYPE_CHECKING:
    Parts = argparse._SubParsersAction[argparse.ArgumentParser]


def integer_of_at_least(least: int) -> Callable[[str], int]:
    """Reads an integer of at least ``least``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return int(text)

    return read
