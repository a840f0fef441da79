"""The text of a JSON file that a user names: found, recognised, and mended where it is nearly JSON.

Python's writers are laxer than JSON and pandas writes whole numbers as 1.0; ``lvis`` reads both. A file that no strict
reader takes is mended and read again, so that the usual file costs nothing.
"""

import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lvis_rcnn.system.cli import InputError, check_input
from lvis_rcnn.system.encodings import text_start

Text = bytes | mmap.mmap | memoryview
AnyKind = TypeVar("AnyKind")

# A text, which stays as it is, or what is mended: NaN, infinity, a number with a fraction of 0 or an exponent.
TEXT = rb'(?<=")(?:[^"\\]|\\.)*+"'
ODD_NUMBER = rb"NaN|-?Infinity|-?\d++(?:\.0++(?![\deE])|(?:\.\d++)?[eE][-+]?\d++)"
# Every token begins with one of few characters, for which Python searches fast.
TOKEN = re.compile(rb'[":,\[](?:%s|(?<!")\s*+(%s))' % (TEXT, ODD_NUMBER), re.DOTALL)

# Half of a pair of escapes, which is no character, behind what it may be confused with.
HALF = re.compile(rb"(\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..")


def read_text(path: Path, option: str, content: str) -> bytes | mmap.mmap:
    """The file's bytes, mapped where it is a plain file.

    Args:
        path: the file.
        option: the command's option that names it, for messages.
        content: what it should hold, for messages.

    Raises:
        InputError: there is no such readable file, or what is there may have no end.
    """
    where, fix = f"{option} {path}", "name a file that exists"
    if os.path.isdir(path):
        is_store = (path / "store.json").is_file()
        what = "is an annotation store" if is_store else "is a folder"
        raise InputError(where, what, allowed=content, fix="name the JSON file" + " that it was made of" * is_store)
    try:
        check_input(path)
        with path.open("rb") as file:
            if path.is_file() and path.stat().st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except FileNotFoundError:
        raise InputError(where, "no such file", allowed=content, fix=fix) from None
    except OSError as error:
        raise InputError(where, f"not readable: {error.strerror}", allowed=content, fix=fix) from None
    except ValueError as error:
        raise InputError(f"{option} {path!s:.40}".replace("\0", "?"), str(error), allowed=content, fix=fix) from None


def json_of(text: Text, where: str) -> Text:
    """The text without a byte order mark; InputError where it is empty or no UTF-8 text."""
    if not len(text):
        raise InputError(where, "is empty", allowed="JSON", fix="get or write the file again")
    start = text_start(bytes(text[:32]), where)
    return memoryview(text)[start:] if start else text


def mended(text: Text) -> bytes:
    """NaN and infinity become an empty text, whole numbers lose their fraction, halves of escapes become U+FFFD.

    An empty text is what no number may be, so that it is refused where it is read and does not matter elsewhere.
    """
    return TOKEN.sub(mended_token, text)


def mended_token(found: re.Match[bytes]) -> bytes:
    """What a token of a text becomes."""
    token = found[1]
    if token is None:
        return without_halves(found[0])
    if token[-1:] in b"Ny":
        return found[0].removesuffix(token) + b'""'
    number = float(token)
    is_exact = number.is_integer() and abs(number) < 2**53
    return found[0].removesuffix(token) + b"%d" % number if is_exact else found[0]


def without_halves(text: bytes) -> bytes:
    """JSON in which halves of pairs of escapes, which msgspec refuses, are U+FFFD."""
    return HALF.sub(lambda half: half[1] or b"\\ufffd", text)


def value_at(text: Text, path: str) -> Any:
    """The value at a path of msgspec (``.images[3].id``); None where there is none."""
    value: Any = text
    try:
        for part in re.findall(r"\w+", path):
            value = decoded_list(value)[int(part)] if part.isdecimal() else decoded_record(value)[part]
        return msgspec.json.decode(value)
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def decoded(text: Text, kind: type[AnyKind], sections: Iterable[str]) -> AnyKind:
    """A JSON file of this kind; of keys that the file or a record in a section repeats the last counts, as in Python.

    Raises:
        msgspec.DecodeError: it is no JSON, or (``ValidationError``) none of this kind.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        file = decoded_record(text)
        for section in file.keys() & set(sections):
            file[section] = msgspec.Raw(last_of_repeated(file[section]))
        return msgspec.json.decode(msgspec.json.encode(file), type=kind)


def last_of_repeated(records: Text | msgspec.Raw) -> bytes | msgspec.Raw:
    """A list of records that say each key once, as they say it last; msgspec, which checks all, gets no other."""
    try:
        return msgspec.json.encode(decoded_records(records))
    except msgspec.ValidationError:  # no list, or not of records
        return bytes(records)


decoded_records = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
decoded_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
decoded_record = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
