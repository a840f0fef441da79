"""Downloads a file, whole or not at all, from the first server that has it: resumed, checked, and unpacked.

The bytes received so far are in ``NAME.part`` beside the file, and the version that they belong to in
``NAME.part.json``; both outlive the process. A resumed download asks for the rest of that version only (RFC 9110,
13.1.5), so that it never joins two. pooch has neither resume nor mirrors nor locks between processes.
"""

import email.utils
import http.client
import json
import os
import stat
import time
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.message import Message
from http import HTTPStatus
from io import FileIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from lvis_rcnn.system.cli import InputError, duration, log
from lvis_rcnn.system.files import append_to_part, check_space, keep_part, locked_part, part_of, sha256_of_file

CHUNK_BYTES = 2**20
# A server that sends nothing for this long is given up.
TIMEOUT_S = 60
# Before each further try after one that brought nothing new; then the next server is tried.
WAITS_S = (1.0, 4.0, 15.0, 60.0)
# A server that asks for a longer wait (Retry-After) is given up.
MOST_WAIT_S = 600.0
# Statuses that may change at another try, as may every 5xx.
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
HEADERS = {"User-Agent": "lvis-rcnn", "Accept-Encoding": "identity"}

# Limits of an unpacked file and of its compression; those of LVIS v1 are 1.1 GB and a ratio of 3.
MOST_BYTES = 16 * 2**30
MOST_RATIO = 200
ENCRYPTED = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FIX = "delete it and fetch it again, or unpack it yourself if you trust it"

Check = Callable[[Path], object]


class RefusedError(Exception):
    """This server does not have the file; another may."""


class BrokenError(Exception):
    """Another try may bring the rest, after the ``wait_s`` that the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Wanted:
    """What is known of a file before it is downloaded."""

    path: Path
    size_bytes: int | None
    sha256: str
    """First digits, or all; empty if unknown."""
    check: Check | None
    """Called with the whole ``.part`` file; an InputError refuses it."""


@dataclass(frozen=True)
class Version:
    """The version of a file that a ``.part`` file is the beginning of."""

    url: str
    size_bytes: int
    etag: str
    """Empty unless it is a strong one."""
    last_modified: str


def download(
    urls: Sequence[str],
    path: Path,
    *,
    size_bytes: int | None = None,
    sha256: str = "",
    check: Check | None = None,
    waits_s: Sequence[float] | None = None,
) -> None:
    """Download ``path``; an existing file is left alone.

    Invariant: ``path`` appears only with the size, digest and content that were asked for. After a kill at any moment
    the next call resumes. Of several processes one downloads; the others wait and find the file.

    Args:
        urls: Addresses of the file, the preferred one first.
        path: File to write.
        size_bytes: Its length, if known.
        sha256: First hexadecimal digits of its digest, or all; empty if unknown.
        check: Called with the whole file before it gets its name; an InputError refuses it.
        waits_s: Seconds before each further try at one address, WAITS_S by default; tries that bring more do not count.

    Raises:
        InputError: no address has it (each with its reason), or the disk is full.
    """
    if not path.exists():
        wanted = Wanted(path, size_bytes, sha256, check)
        with locked_part(path) as part:
            if not path.exists():
                from_first_server(urls, part, wanted, WAITS_S if waits_s is None else waits_s)
            else:
                part.truncate(0)
    if not part_of(path).exists():
        version_file(path).unlink(missing_ok=True)


def from_first_server(urls: Sequence[str], part: FileIO, wanted: Wanted, waits_s: Sequence[float]) -> None:
    """Download from the first of ``urls`` that has the file."""
    reasons = []
    for url in urls:
        try:
            receive_all(url, part, wanted, waits_s)
            check_part(part, wanted)
        except RefusedError as error:
            reasons.append(f"{url}: {error}")
            log.warning("warning: %s", reasons[-1])
            continue
        keep_part(part, wanted.path)
        log.info("downloaded %s: %s bytes", wanted.path, f"{wanted.path.stat().st_size:,}")
        return
    raise none_has_it(reasons, part, wanted.path)


def none_has_it(reasons: Sequence[str], part: FileIO, path: Path) -> InputError:
    """The error that lists each address with its reason; the version of an empty part is removed."""
    fix = f"put the file into {path.parent}"
    if part.seek(0, os.SEEK_END):
        fix += f", or start again, which resumes from {part_of(path).name}"
    else:
        version_file(path).unlink(missing_ok=True)
    listed = "; ".join(reasons) or "no address is known"
    return InputError(str(path), f"is missing and cannot be fetched ({listed})", fix=fix)


def receive_all(url: str, part: FileIO, wanted: Wanted, waits_s: Sequence[float]) -> None:
    """Fill ``part`` with as many tries as bring more; RefusedError when they bring nothing new.

    A server that cannot be reached at all gets one try, so that a node without a network fails at once.
    """
    failures, most_bytes, was_reached = 0, part.seek(0, os.SEEK_END), False
    while True:
        asked_s = 0.0
        try:
            return receive(url, part, wanted)
        except urllib.error.URLError as error:
            reason = str(error.reason)
            if not was_reached:
                raise RefusedError(f"cannot be reached: {reason}") from None
        except (OSError, http.client.HTTPException, BrokenError) as error:
            reason, was_reached = str(error) or type(error).__name__, True
            asked_s = error.wait_s if isinstance(error, BrokenError) else 0
        at = part.seek(0, os.SEEK_END)
        failures = failures + 1 if at <= most_bytes else 0
        most_bytes = max(most_bytes, at)
        if failures > len(waits_s):
            raise RefusedError(f"{reason}, {failures} times")
        if asked_s > MOST_WAIT_S:
            raise RefusedError(f"{reason}, asks to be tried again in {duration(asked_s)}")
        wait_s = max(asked_s, waits_s[max(failures - 1, 0)] if waits_s else 0)
        log.warning("warning: %s: %s; next try in %g s", url, reason, wait_s)
        time.sleep(wait_s)


def receive(url: str, part: FileIO, wanted: Wanted) -> None:
    """One try: request the rest, or all if the part is of no use, and append what arrives.

    Raises:
        RefusedError, BrokenError, OSError, HTTPException: see :func:`receive_all`.
        InputError: the disk is full.
    """
    version = read_version(wanted.path)
    at = part.seek(0, os.SEEK_END)
    if at and at == (version.size_bytes if version else wanted.size_bytes):
        return
    headers = range_headers(version, url, at, has_digest=bool(wanted.sha256))
    with answer_of(url, headers, part) as answer:
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            check_rest(answer, part, version, at)
        else:
            version, at = begin(answer, url, part, wanted), 0
        assert version is not None
        check_space(wanted.path.parent, version.size_bytes - at)
        append(answer, part, wanted.path, at, version.size_bytes)


def range_headers(version: Version | None, url: str, at: int, *, has_digest: bool) -> dict[str, str]:
    """Headers that request the rest from byte ``at``; empty if the whole file is needed.

    Mirrors get the ETag too: those in front of one store share it, others then send the whole file.
    """
    if version is None or not 0 < at < version.size_bytes:
        return {}
    headers = {"Range": f"bytes={at}-"}
    validator = version.etag or (version.last_modified if url == version.url else "")
    if validator:
        return {**headers, "If-Range": validator}
    return headers if has_digest and url == version.url else {}


def answer_of(url: str, headers: dict[str, str], part: FileIO) -> http.client.HTTPResponse:
    """The server's answer, 200 or 206; a part that the server calls out of range is emptied."""
    try:
        request = urllib.request.Request(url, headers={**HEADERS, **headers})
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {error.reason}".strip()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.truncate(0)
            raise BrokenError(status) from None
        if error.code in PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise BrokenError(status, asked_wait_s(error.headers)) from None
        raise RefusedError(status) from None
    return answer


def asked_wait_s(headers: Message) -> float:
    """Seconds of ``Retry-After``, a number or a date (RFC 9110, 10.2.3), by the server's clock; 0 without."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return min(float(asked), 1e9)  # a float may be infinite
    until_s, now_s = date_s(asked), date_s(headers.get("Date", ""))
    return 0 if until_s is None else max(0, until_s - (now_s or time.time()))


def date_s(text: str) -> float | None:
    """A date of HTTP as seconds since 1970; None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def check_rest(answer: http.client.HTTPResponse, part: FileIO, version: Version | None, at: int) -> None:
    """Empty the part and raise BrokenError if a 206 is not the rest of its version."""
    sent = answer.headers.get("Content-Range", "")
    expected = f"bytes {at}-{version.size_bytes - 1}/{version.size_bytes}" if version else "none"
    etag = strong_etag(answer)
    if sent != expected or (version and version.etag and etag and etag != version.etag):
        part.truncate(0)
        raise BrokenError(f"sent {sent or 'a range without Content-Range'}, not {expected}; starting again")


def begin(answer: http.client.HTTPResponse, url: str, part: FileIO, wanted: Wanted) -> Version:
    """Empty the part for the whole file, which the server is about to send, and record its version."""
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal() and wanted.size_bytes is None:
        raise RefusedError("does not say how long the file is, so that a truncated one would not be noticed")
    size_bytes = int(length) if length.isdecimal() else wanted.size_bytes
    assert size_bytes is not None
    if wanted.size_bytes not in (None, size_bytes):
        raise RefusedError(f"has {size_bytes:,} bytes under this name, not {wanted.size_bytes:,}")
    part.truncate(0)
    version = Version(url, size_bytes, strong_etag(answer), answer.headers.get("Last-Modified", ""))
    # Not atomic: half a file is no version, and the part that it would describe is still empty.
    version_file(wanted.path).write_text(json.dumps(asdict(version)), encoding="utf-8")
    return version


def append(answer: http.client.HTTPResponse, part: FileIO, path: Path, at: int, size_bytes: int) -> None:
    """Write what arrives, up to ``size_bytes``; BrokenError if less does."""
    log.info("downloading %s: has %s of %s bytes", path, f"{at:,}", f"{size_bytes:,}")
    with tqdm(total=size_bytes, initial=at, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        while at < size_bytes and (chunk := answer.read1(min(CHUNK_BYTES, size_bytes - at))):
            append_to_part(part, path, chunk)
            at += len(chunk)
            bar.update(len(chunk))
    if at < size_bytes:
        raise BrokenError(f"the connection ended after {at:,} of {size_bytes:,} bytes")


def check_part(part: FileIO, wanted: Wanted) -> None:
    """Empty the complete part and raise RefusedError if it is not the wanted file."""
    path = part_of(wanted.path)
    try:
        found = sha256_of_file(path) if wanted.sha256 else ""
        if not found.startswith(wanted.sha256):
            digits = len(wanted.sha256)
            raise RefusedError(f"the file has the SHA-256 {found[:digits]}, not {wanted.sha256}")
        if wanted.check is not None:
            wanted.check(path)
    except (RefusedError, InputError) as error:
        part.truncate(0)
        raise RefusedError(str(error)) from None


def strong_etag(answer: http.client.HTTPResponse) -> str:
    """The ETag if it is a strong one, which identifies the bytes; else empty."""
    etag: str = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else ""


def version_file(path: Path) -> Path:
    """File of the :class:`Version` of ``path``'s part."""
    return path.with_name(f"{path.name}.part.json")


def read_version(path: Path) -> Version | None:
    """The version of ``path``'s part; None if unknown."""
    try:
        return Version(**json.loads(version_file(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def unpack_json(
    archive: Path, out: Path, *, most_bytes: int = MOST_BYTES, check: Callable[[Path], object] | None = None
) -> None:
    """Unpack the JSON file of a zip to ``out``; an existing file is left alone.

    Invariant: ``out`` appears only whole, with the zip's length and CRC-32. After a kill at any moment the next call
    starts again and leaves no second unfinished file.

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
    """The only JSON file of a zip, in any folder of it; files that macOS adds do not count.

    Raises:
        InputError: no readable zip; none or several such files; or any member with an absolute name, with ``..`` in it,
            that is a link or device, repeated, encrypted, of a method other than stored and deflated, or larger or more
            compressed than any annotations.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(str(archive), f"is no readable zip: {error}", fix=FIX) from None
    times = Counter(member.filename for member in members)
    for member in members:
        problem = "is repeated" if times[member.filename] > 1 else problem_of(member, most_bytes)
        if problem:
            raise InputError(f"{archive}: {member.orig_filename!r}", problem, fix=FIX)
    found = [member for member in members if is_json(member)]
    if len(found) != 1:
        listed = ", ".join(member.filename for member in (found or members)[:5])
        what = f"holds {len(found)} JSON files: {listed or 'it is empty'}"
        raise InputError(str(archive), what, allowed="one JSON file", fix="unpack the right one yourself")
    return found[0]


def is_json(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a JSON file that is not one of macOS's own."""
    path = PurePosixPath(member.filename)
    return path.suffix == ".json" and path.parts[0] != "__MACOSX" and not path.name.startswith("._")


def problem_of(member: zipfile.ZipInfo, most_bytes: int) -> str | None:
    """Why a zip with this member is refused; None if it is not."""
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
    """Append a member's bytes, at most as many as the zip's directory says; InputError if they are damaged."""
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
        raise InputError(f"{archive}: {member.filename}", f"is damaged: {error}", fix=FIX) from None
    if part.tell() != member.file_size:
        what = f"has {part.tell():,} bytes, not {member.file_size:,}"
        raise InputError(f"{archive}: {member.filename}", what, fix=FIX)
