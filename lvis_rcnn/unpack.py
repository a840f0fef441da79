"""The one JSON file of a zip appears whole or not at all; a zip that could write elsewhere or fill the disk is refused.

Only that file is ever written, under a name that the caller chooses; zips of images are read as they are (image_files).
"""

import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from io import FileIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from lvis_rcnn.command import InputError, log
from lvis_rcnn.files import append_to_part, check_space, keep_part, locked_part, part_of

CHUNK_BYTES = 2**20
# LVIS v1 is the largest file there is, with 1.1 GB and a ratio of 3.
MOST_BYTES = 16 * 2**30
MOST_RATIO = 200
ENCRYPTED = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MEND = "delete it and fetch it again, or unpack it yourself if you trust it"


def unpack_json(
    archive: Path, out: Path, *, most_bytes: int = MOST_BYTES, check: Callable[[Path], object] | None = None
) -> None:
    """Write the JSON file of a zip to ``out``; nothing is done where it is there.

    Invariant: ``out`` appears only whole (length and CRC-32 are the zip's). Killed at any moment, the next call begins
    again and leaves no second unfinished file.

    Args:
        archive: The zip.
        out: File to write.
        most_bytes: A larger file is refused.
        check: Called with the whole file before it gets its name; an InputError refuses it.

    Raises:
        InputError: a zip that :func:`json_member` refuses, damage, or no space.
    """
    member = json_member(archive, most_bytes)
    with locked_part(out) as part:
        part.truncate(0)
        if out.exists():
            return
        check_space(out.parent, member.file_size)
        try:
            write_member(archive, member, part, out)
            if check is not None:
                check(part_of(out))
        except InputError:
            part.truncate(0)
            raise
        keep_part(part, out)
    log.info("unpacked %s: %s bytes", out, f"{member.file_size:,}")


def json_member(archive: Path, most_bytes: int = MOST_BYTES) -> zipfile.ZipInfo:
    """The only JSON file of a zip, in whatever folder of it; what macOS adds does not count.

    Raises:
        InputError: no readable zip; none or several; and for any member: an absolute name, ``..``, a link or device, a
            name twice, encryption, a method other than stored and deflated, a size or ratio that no annotations have.
    """
    members = members_of(archive)
    times = Counter(member.filename for member in members)
    for member in members:
        problem = "stands twice" if times[member.filename] > 1 else problem_of(member, most_bytes)
        if problem:
            raise InputError(f"{archive}: {member.orig_filename!r}", problem, mend=MEND)
    found = [member for member in members if is_json(member)]
    if len(found) != 1:
        listed = ", ".join(member.filename for member in (found or members)[:5])
        what = f"holds {len(found)} JSON files: {listed or 'it is empty'}"
        raise InputError(str(archive), what, allowed="one JSON file", mend="unpack the one that is meant yourself")
    return found[0]


def members_of(archive: Path) -> list[zipfile.ZipInfo]:
    """What a zip's directory lists; InputError where it is none."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(str(archive), f"is no readable zip: {error}", mend=MEND) from None


def is_json(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a file that somebody put there."""
    path = PurePosixPath(member.filename)
    return path.suffix == ".json" and path.parts[0] != "__MACOSX" and not path.name.startswith("._")


def problem_of(member: zipfile.ZipInfo, most_bytes: int) -> str | None:
    """Why a member makes its zip one to refuse."""
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    if "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        return "has an absolute name"
    if ".." in PureWindowsPath(name).parts:
        return "has a name that leads out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in METHODS:
        return f"is packed by method {member.compress_type}, not stored or deflated"
    if member.file_size > most_bytes or member.file_size > MOST_RATIO * max(member.compress_size, 1024):
        return f"would become {member.file_size:,} bytes from {member.compress_size:,}"
    return None


def write_member(archive: Path, member: zipfile.ZipInfo, part: FileIO, out: Path) -> None:
    """Append a member's bytes, never more than the zip's directory says; InputError where they are damaged."""
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member) as source,
            tqdm(total=member.file_size, desc=out.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := source.read(CHUNK_BYTES):
                append_to_part(part, out, chunk)
                bar.update(len(chunk))
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise InputError(f"{archive}: {member.filename}", f"is damaged: {error}", mend=MEND) from None
    if part.tell() != member.file_size:
        what = f"has {part.tell():,} bytes, not {member.file_size:,}"
        raise InputError(f"{archive}: {member.filename}", what, mend=MEND)
