"""The text of polygons becomes arrays, without a Python object for a number.

A gigabyte of annotations holds 110 million numbers; as Python floats they cost 15 s and 3 GB. Nearly all are like
``123.45``: at most seven characters, no sign, no exponent. Those are read eight bytes at a time: the word that begins
at a number is cut at its decimal point and at its end, its digits become a whole number by three multiplications, and
that over a power of ten is the number. Both are exact in float64, so the quotient is the decimal, correctly rounded:
bit for bit what ``float`` gives (tests/test_polygon_text.py). Every other spelling goes to ``float`` itself, and text
that is anything but lists of lists of numbers is left to whoever can say what is wrong with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt64

# Bytes of text read together: with the scratch arrays of their numbers they stay in a core's second-level cache.
BLOCK = 1 << 17

# Room for the eight bytes of a word that begins at the last number.
PADDING = b" " * 8

OPEN, CLOSE = ord("["), ord("]")

# Text with one of these is not read here: strings, exponents in capitals, escapes.
SURPRISES = (b'"', b"E", b"\\")

LONGEST = 7


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons of consecutive annotations; not yet judged by their lengths."""

    polygons_each: Int64[np.ndarray, " A"]
    numbers_each: Int64[np.ndarray, " polygons"]
    coordinates: Float64[np.ndarray, " numbers"]


class Unread(Exception):
    """The text is not simply polygons."""


def read_polygons(segmentations: Sequence[bytes | msgspec.Raw]) -> Polygons:
    """The polygons of annotations whose ``segmentation`` fields are these JSON texts.

    Args:
        segmentations: JSON values, already known to be valid JSON.

    Raises:
        Unread: one of them is no list of lists of numbers, or a list is empty, or spellings are such that reading them
            here would gain nothing.
    """
    text = bytearray(b",").join([*segmentations, PADDING])
    bytes_ = np.frombuffer(text, np.uint8)
    # Lower-case letters and braces lie above the brackets; control characters are the blanks of indented files.
    if bytes_.max() > CLOSE or any(surprise in text for surprise in SURPRISES):
        raise Unread
    if bytes_.min() < ord(" "):
        return read_polygons([bytes(part).translate(None, b" \t\r\n") for part in segmentations])
    brackets = np.flatnonzero(bytes_ >= OPEN)
    opens, closes, polygons_each = polygon_brackets(bytes_, brackets, len(segmentations))
    bytes_[brackets] = ord(" ")
    negative = b"-" in text
    starts, coordinates = [], []
    for at, end in blocks(text):
        starts.append(number_starts(bytes_, at, end))
        without_point = bool(np.count_nonzero(bytes_[at:end] == ord(".")) < len(starts[-1]))
        coordinates.append(read_numbers(text, starts[-1], negative, without_point))
    return Polygons(polygons_each, lengths(np.concatenate(starts), opens, closes), np.concatenate(coordinates))


def blocks(text: bytearray) -> Iterator[tuple[int, int]]:
    """Where to cut the text so that no number is cut: behind commas. The last of them ends it."""
    at = 0
    while at < len(text) - len(PADDING):
        end = text.rfind(b",", at, at + BLOCK) + 1
        if end <= at:
            raise Unread
        yield at, end
        at = end


def lengths(
    starts: Int64[np.ndarray, " numbers"],
    opens: Int64[np.ndarray, " polygons"],
    closes: Int64[np.ndarray, " polygons"],
) -> Int64[np.ndarray, " polygons"]:
    """Numbers of each polygon; Unread unless each has one, and each number has a polygon."""
    first, end = np.searchsorted(starts, opens), np.searchsorted(starts, closes)
    if first[0] != 0 or end[-1] != len(starts) or (first[1:] != end[:-1]).any() or (end == first).any():
        raise Unread
    counts: np.ndarray = end - first
    return counts


def polygon_brackets(
    text: UInt8[np.ndarray, " bytes"], brackets: Int64[np.ndarray, " k"], annotations: int
) -> tuple[Int64[np.ndarray, " polygons"], Int64[np.ndarray, " polygons"], Int64[np.ndarray, " A"]]:
    """Where each polygon opens and closes, and polygons of each annotation; Unread unless all are lists of lists."""
    steps = ord("\\") - text[brackets].astype(np.int64)  # [ is one up, ] one down
    depths = np.cumsum(steps)
    outer = (steps > 0) & (depths == 1)
    inner = np.flatnonzero((steps > 0) & (depths == 2))
    if not len(inner) or depths.max() != 2 or outer.sum() != annotations:
        raise Unread
    polygons_each = np.bincount(np.cumsum(outer)[inner] - 1, minlength=annotations)
    if not polygons_each.all():
        raise Unread
    return brackets[inner], brackets[inner + 1], polygons_each


def number_starts(text: UInt8[np.ndarray, " bytes"], at: int, end: int) -> Int64[np.ndarray, " n"]:
    """Where numbers begin between ``at`` and ``end``, which no number crosses."""
    of_number = np.zeros(end - at + 1, bool)
    np.less(text[at:end] - np.uint8(ord("-")), 13, out=of_number[1:])  # - . / 0 to 9
    starts: np.ndarray = np.greater(of_number[1:], of_number[:-1]).nonzero()[0]
    starts += at
    return starts


def word(text: str) -> np.uint64:
    """The same byte eight times."""
    return np.uint64(int(text * 8, 16))


ONE, THREE, FOUR, EIGHT, TWELVE, THIRTY_TWO, SIXTY = (np.uint64(n) for n in (1, 3, 4, 8, 12, 32, 60))
# The mark of a sign.
FIRST = np.uint64(1 << 4)
# Digits have this bit; point, comma and blank lack it, and so does the minus sign.
DIGIT_BIT, DIGIT_VALUE = word("10"), word("0f")
# Times these, a digit, pair or quad comes together with the one above it, in its place: 10 a + b, 100 a + b, ...
TENS, HUNDREDS, MYRIADS = (np.uint16(10 * 2**8 + 1), np.uint32(100 * 2**16 + 1), np.uint64(10_000 * 2**32 + 1))
# 2 ** (8 p) times this has p in its uppermost four bits.
PLACE = np.uint64(sum(p << (SIXTY - 8 * p) for p in range(8)))
# Eight digits of which p stand before the point are a whole number over this.
DIVISORS = np.array([10.0 ** (8 - p) for p in range(8)])


def read_numbers(
    text: bytearray, starts: Int64[np.ndarray, " n"], negative: bool, without_point: bool
) -> Float64[np.ndarray, " n"]:
    """The numbers that begin there; some may be ``negative`` or ``without_point``. A comma or a blank ends each."""
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))[starts]
    # One bit for each byte that is no digit. The lowest is the point, the next the end.
    marks = words & DIGIT_BIT
    marks ^= DIGIT_BIT
    point = lowest_bit(marks)
    marks ^= point
    end = lowest_bit(marks)
    if without_point:
        whole = words & (point >> THREE) == 0  # a comma or blank: bit 1 tells them from a point
        end[whole] = point[whole] << EIGHT
    odd = np.flatnonzero((end == 0) | (point == FIRST) if negative else end == 0)
    if len(odd) > len(starts) // 4:
        raise Unread
    numbers = quotients(words, point, end)
    if len(odd):
        numbers[odd] = [float(spelling(text, start)) for start in starts[odd].tolist()]
        if not np.isfinite(numbers[odd]).all():
            raise Unread
    return numbers


def lowest_bit(words: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The lowest bit that is set in each word, alone."""
    lowest = np.negative(words.view(np.int64)).view(np.uint64)
    lowest &= words
    return lowest


def quotients(
    words: UInt64[np.ndarray, " n"], point: UInt64[np.ndarray, " n"], end: UInt64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Numbers from their words, and the marks of the point and of the end behind it."""
    point >>= FOUR  # from bit 4 of its byte to bit 0
    before = point - ONE  # all bits of the digits before the point
    end >>= TWELVE
    end -= ONE
    end ^= before  # all bits of the digits behind it, once they have moved up by one place
    digits = words & before
    words >>= EIGHT
    words &= end
    digits |= words
    digits &= DIGIT_VALUE
    for join in (TENS, HUNDREDS, MYRIADS):
        lanes = digits.view(join.dtype)
        lanes *= join
        lanes >>= join.dtype.type(join.nbytes * 4)
    point *= PLACE
    point >>= SIXTY
    numbers = digits.view(np.int64).astype(np.float64)
    numbers /= DIVISORS.take(point.view(np.int64), mode="clip")
    return numbers


def spelling(text: bytearray, start: int) -> bytes:
    """All characters of the number that begins there."""
    length = 16
    while not (found := bytes(text[start : start + length]).replace(b",", b" ").partition(b" "))[1]:
        length *= 2
    return found[0]
