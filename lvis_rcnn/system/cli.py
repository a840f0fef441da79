"""How every step starts, reports and fails: one parser, one log, one line for an error."""

import argparse
import contextlib
import errno
import inspect
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lvis_rcnn import STEPS

log = logging.getLogger("lvis_rcnn")

LOG_HELP = "also write the messages of the step to this file"

EXIT_BAD_INPUT = 2
EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # the exit code that a shell reports of a program ended by SIGPIPE

TEMPORARY_BYTES = 10  # that the name of a temporary file has more than the name of its file
LARGEST = 2**31 - 1  # of an option that has no limit of its own
LARGEST_SEED = 2**32 - 1  # one word of NumPy's SeedSequence, in which a larger one would be two
SPECIAL = {
    "pipe": Path.is_fifo,
    "socket": Path.is_socket,
    "device": Path.is_char_device,
    "disk": Path.is_block_device,
}
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# Of files that a step found otherwise than it leaves them, or may not touch.
NOT_AS_LEFT = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.ELOOP)


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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others, without the usage above it, which may fill a screen."""

    def error(self, message: str) -> NoReturn:
        """InputError that says what is wrong with the arguments."""
        raise InputError(self.prog, message, fix=f"{self.prog} --help shows what it takes")


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the step's docstring, with ``--log FILE`` that every step takes."""
    parser = Parser(
        prog=as_typed(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_output(parser, "--log", LOG_HELP, required=False)
    return parser


def as_typed() -> str | None:
    """The command that runs this step, ``python -m lvis_rcnn train``; None in another program, which argparse names.

    Where it was started by the name of the installed package, that is ``lvis-rcnn train``.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    package, _, name = (spec.name if spec else "").partition(".")
    if package != "lvis_rcnn":
        return None
    program = "lvis-rcnn" if Path(sys.orig_argv[1]).name == "lvis-rcnn" else "python -m lvis_rcnn"
    return f"{program} {name}" if name in STEPS else f"python -m lvis_rcnn.{name.removesuffix('.__main__')}"


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
    add_output(command, "--log", LOG_HELP, required=False, default=argparse.SUPPRESS)
    return command


@dataclass(frozen=True)
class Output:
    """A file or folder that a step writes where an option says."""

    option: str
    is_folder: bool
    suffix: str
    """What the name must end in; empty for any name."""
    beside: tuple[str, ...]
    """Suffixes of the files that are written beside it."""
    holds: tuple[str, ...]
    """Names of what is written into the folder; those of folders end in a slash."""

    def check(self, path: Path) -> None:
        """InputError if the step could not write ``path``."""
        if self.suffix and path.suffix != self.suffix:
            fix = "change the name"
            raise InputError(f"{self.option} {path}", "has another ending", allowed=f"*{self.suffix}", fix=fix)
        for written in self.written(path):
            check_writable(self.option, written, is_folder=self.is_folder)
        for name in self.holds:
            fix = "move it away, or name another folder"
            check_kind(self.option, path / name, is_folder=name.endswith("/"), fix=fix)

    def written(self, path: Path) -> list[Path]:
        """All that is written for ``path``."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


def add_output(
    parser: argparse.ArgumentParser,
    option: str,
    text: str,
    *,
    is_folder: bool = False,
    suffix: str = "",
    beside: tuple[str, ...] = (),
    holds: tuple[str, ...] = (),
    required: bool = True,
    **more: Any,
) -> None:
    """An option that names what the step writes; :func:`run_step` checks it before the step begins.

    Args:
        parser: of the step.
        option: as it is typed.
        text: its help.
        is_folder: whether a folder is written, not a file.
        suffix: what the name must end in, as ``.json``; empty for any name.
        beside: suffixes of further files, whose names are the same but for the suffix.
        holds: names of what is written into a folder; those of folders end in a slash.
        required: whether the step needs it.
        more: further arguments of ``add_argument``.
    """
    metavar = "DIR" if is_folder else "FILE"

    def read(typed: str) -> Path:
        if not is_folder and typed.endswith("/"):  # of which a path keeps nothing
            raise InputError(f"{option} {typed}", "names a folder", allowed="a file", fix="name a file")
        return Path(typed)

    action = parser.add_argument(option, type=read, metavar=metavar, required=required, help=text, **more)
    output = Output(option, is_folder, suffix, beside, holds)
    parser.set_defaults(outputs={**(parser.get_default("outputs") or {}), action.dest: output})


def check_paths(args: argparse.Namespace) -> None:
    """Check that each input can have an end, that each output can be written, and is no input or another output.

    Raises:
        InputError: names the option.
    """
    found = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items()}
    paths = {name: [path for path in values if isinstance(path, Path)] for name, values in found.items()}
    inputs = [(path, name) for name in paths if name not in args.outputs for path in paths[name]]
    for path, _ in inputs:
        check_input(path)
    taken = {os.path.realpath(path): name for path, name in inputs}
    for name, output in args.outputs.items():
        for path in paths.get(name, []):
            output.check(path)
            for written in output.written(path):
                other = taken.setdefault(os.path.realpath(written), name)
                if other != name:
                    what = f"{written} is also the argument {other.replace('_', '-')}"
                    raise InputError(f"{output.option} {path}", what, fix="name another place")


def check_input(path: Path) -> None:
    """InputError of what may have no end: a pipe, but not that of ``<(command)``, which has no place; a device."""
    place = Path(os.path.realpath(path))
    if os.path.exists(place) and (kind := next((kind for kind, is_one in SPECIAL.items() if is_one(place)), "")):
        fix = "write what it gives to a file, and name that"
        raise InputError(str(path), f"is a {kind}", allowed="a file or a folder", fix=fix)


def check_folder(option: str, path: Path, fix: str) -> None:
    """InputError unless ``path``, which the step reads, is a folder."""
    if not os.path.isdir(path):
        what = "is a file" if os.path.exists(path) else "no such folder"
        raise InputError(f"{option} {path}", what, fix=fix)


def check_kind(option: str, path: Path, *, is_folder: bool, fix: str = "") -> None:
    """InputError if there is a folder where a file is wanted, or a file in place of a folder."""
    if os.path.exists(path) and path.is_dir() != is_folder:
        what, wanted = ("is a file", "a folder") if is_folder else ("is a folder", "a file")
        raise InputError(f"{option} {path}", what, allowed=wanted, fix=fix or f"name {wanted}")


def check_writable(option: str, path: Path, *, is_folder: bool) -> None:
    """InputError unless a file, or a folder, can be written at ``path``: tells before hours of work, not after them."""
    check_kind(option, path, is_folder=is_folder)
    # A new file takes the place of a link that leads nowhere, a new folder cannot.
    ways = (*[path.absolute()] * is_folder, *path.absolute().parents)
    above = next(folder for folder in ways if os.path.lexists(folder))
    if not os.path.isdir(above):
        what = "which is a file" if os.path.exists(above) else "a link that leads nowhere"
        raise InputError(f"{option} {path}", f"lies under {above}, {what}", fix="name a place in a folder")
    most = os.pathconf(above, "PC_NAME_MAX") - TEMPORARY_BYTES
    if any(len(os.fsencode(part)) > most for part in path.parts):
        raise InputError(f"{option} {path}", "is too long a name", allowed=f"{most} bytes", fix="name it shorter")
    folder = path if os.path.isdir(path) else above
    try:
        tempfile.TemporaryFile(dir=folder).close()  # access(2) says yes to root in /proc
    except OSError:
        fix = "name a place in another folder"
        raise InputError(f"{option} {path}", f"{folder} cannot be written", fix=fix) from None


def add_number(
    parser: argparse._ActionsContainer,
    option: str,
    text: str,
    least: float,
    most: float = LARGEST,
    *,
    kind: type[int] | type[float] = int,
    above: bool = False,
    **more: Any,
) -> None:
    """An option whose value is a finite number from ``least`` to ``most``, without ``least`` itself if ``above``.

    Parsing raises an InputError that names the option, the value and what is allowed.
    """
    noun, highest = "an integer" if kind is int else "a number", f", at most {most:.10g}"
    unlimited = f"above {least:g}" if above else f"{least:g} or more"
    limited = f"above {least:g}{highest}" if above else f"from {least:.10g} to {most:.10g}"
    bounds = unlimited if most == LARGEST else limited

    def read(typed: str) -> float:
        try:
            value = kind(typed)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            allowed = f"{noun} {bounds}" + (highest if value > most == LARGEST else "")
            raise InputError(option, f"is {typed or 'empty'}", allowed=allowed, fix="change the value")
        return value

    parser.add_argument(option, type=read, help=text, **more)


def add_seed(parser: argparse._ActionsContainer, text: str, **more: Any) -> None:
    """The option of a random seed, as large as a study's may be."""
    add_number(parser, "--seed", text, 0, LARGEST_SEED, **more)


def add_coco_options(parser: argparse.ArgumentParser) -> None:
    """The options of steps that read annotations, which may be plain COCO."""
    exhaustive = "the annotations are plain COCO, with every category annotated in every image"
    parser.add_argument("--coco-exhaustive", action="store_true", help=exhaustive)
    counted = "COCO training file by whose images categories are rare, common or frequent (default: the annotations)"
    parser.add_argument("--frequencies", type=Path, metavar="FILE", help=counted)


@contextlib.contextmanager
def usual_streams() -> Iterator[None]:
    """Streams that the caller has closed lead nowhere; a reader that has left, or a disk that is full, is no bug."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # else the next file that is opened gets its number, and what is written to it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OSError as error:
        is_unread = isinstance(error, BrokenPipeError)  # the reader has exited, as ``head`` does
        if not is_unread:
            with contextlib.suppress(OSError):
                print(f"error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):  # Python would raise again when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(EXIT_UNREAD if is_unread else EXIT_BAD_INPUT)


@usual_streams()
def run_step(parser: argparse.ArgumentParser, step: Callable[[argparse.Namespace], None]) -> None:
    """Parse, run, and end the process: 0 done, 2 bad input (one line), 1 unexpected (traceback in the log)."""
    log_file = None
    start_logging(None)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show end no step
    try:
        args = parser.parse_args()
        check_paths(args)
        start_logging(args.log)
        log_file = args.log
        step(args)
    except InputError as error:
        log.error("error: %s", error)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:  # see usual_streams
        raise
    except KeyboardInterrupt:
        log.error("error: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # torch.save replaces the error of its file by one of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        where = (cause.filename2 or cause.filename) if isinstance(cause, OSError) else None
        if isinstance(cause, OSError) and (cause.errno in DISK_IS_FULL or (where and cause.errno in NOT_AS_LEFT)):
            fix = "move away what is there, let this user write there, or name another place"
            fix = "make room, or write to another disk" if cause.errno in DISK_IS_FULL else fix
            log.error("error: %s", InputError(str(where or "a disk"), str(cause.strerror), fix=fix))
            sys.exit(EXIT_BAD_INPUT)
        write_traceback(log_file)
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


class LogFile(logging.FileHandler):
    """The file of ``--log``. A step goes on without it where its disk is full: the terminal has the same lines."""

    def __init__(self, path: Path) -> None:
        """Open it; InputError where that is not possible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise InputError(f"--log {path}", what, fix="name another place") from None

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the disk is full, in place of a traceback for each line."""
        error = sys.exception()
        if not isinstance(error, OSError) or error.errno not in DISK_IS_FULL:
            return super().handleError(record)
        log.removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        log.warning("--log %s cannot be written any more: %s", self.baseFilename, error.strerror)


def start_logging(log_file: Path | None) -> None:
    """Plain lines to standard error; the same lines, and those of level DEBUG, with their time to ``log_file``.

    Raises:
        InputError: ``log_file`` cannot be written.
    """
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
        file = LogFile(log_file)
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
