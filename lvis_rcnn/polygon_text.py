"""The text of polygons becomes arrays, without a Python object for a number.

A gigabyte of annotations holds 110 million numbers; as Python floats they cost 15 s and 3 GB. Nearly all are like
``123.45``: at most seven characters, no sign, no exponent. Those are read eight bytes at a time: the word that begins
at a number is cut at its decimal point and at its end, its digits become a whole number by three multiplications, and
that over a power of ten is the number. Both are exact in float64, so the quotient is the decimal, correctly rounded:
bit for bit what ``float`` gives (tests/test_polygon_text.py). Every other spelling goes to ``float`` itself, and text
that is anything but lists of lists of numbers is left to whoever can say what is wrong with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8, UInt64

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
    text = bytearray(b",".join([*segmentations, PADDING]))
    bytes_ = np.frombuffer(text, np.uint8)
    # Lower-case letters and braces lie above the brackets; control characters are the blanks of indented files.
    if bytes_.max() > CLOSE or any(surprise in text for surprise in SURPRISES):
        raise Unread
    if bytes_.min() < ord(" "):
        return read_polygons([bytes(part).translate(None, b" \t\r\n") for part in segmentations])
    brackets = np.flatnonzero(bytes_ >= OPEN)
    opens, closes, polygons_each = polygon_brackets(bytes_, brackets, len(segmentations))
    bytes_[brackets] = ord(" ")
    starts = [number_starts(bytes_[at - 1 if at else 0 : at + BLOCK], at) for at in range(0, len(text), BLOCK)]
    coordinates = np.concatenate([read_numbers(text, block) for block in starts])
    all_starts = np.concatenate(starts)
    first, end = np.searchsorted(all_starts, opens), np.searchsorted(all_starts, closes)
    if (end == first).any() or end[-1] != len(all_starts) or (first[1:] != end[:-1]).any() or first[0] != 0:
        raise Unread
    return Polygons(polygons_each, end - first, coordinates)


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


def number_starts(text: UInt8[np.ndarray, " bytes"], at: int) -> Int64[np.ndarray, " n"]:
    """Where numbers begin in the block at ``at``; ``text`` has one byte before it unless ``at`` is 0.

    The first byte of all is a bracket, which is no start.
    """
    of_number: Bool[np.ndarray, " bytes"] = text - np.uint8(ord("-")) < 13  # - . / 0 to 9
    starts: np.ndarray = np.greater(of_number[1:], of_number[:-1]).nonzero()[0]
    starts += at if at else 1
    return starts


def word(text: str) -> np.uint64:
    """The same byte eight times."""
    return np.uint64(int(text * 8, 16))


ONE, FOUR, EIGHT, TWELVE, SIXTEEN, THIRTY_TWO, SIXTY = (np.uint64(n) for n in (1, 4, 8, 12, 16, 32, 60))
# Digits have this bit; point, comma and blank lack it, and so does the minus sign.
DIGIT_BIT, DIGIT_VALUE = word("10"), word("0f")
PAIRS, QUADS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
# Times these, neighbouring digits, pairs and quads come together above themselves: 10 a + b, 100 a + b, 10000 a + b.
TENS, HUNDREDS, MYRIADS = (np.uint64(n) for n in (10 * 2**8 + 1, 100 * 2**16 + 1, 10_000 * 2**32 + 1))
# 2 ** (8 p) times this has p in its uppermost four bits.
PLACE = np.uint64(sum(p << (SIXTY - 8 * p) for p in range(8)))
# Eight digits of which p stand before the point are a whole number over this.
DIVISORS = np.array([10.0 ** (8 - p) for p in range(8)])


def read_numbers(text: bytearray, starts: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The numbers that begin there; after each comes a comma or a blank."""
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))[starts]
    # One bit for each byte that is no digit. The lowest is the point, the next the end.
    marks = words & DIGIT_BIT
    marks ^= DIGIT_BIT
    point = lowest_bit(marks)
    marks ^= point
    end = lowest_bit(marks)
    whole = words & (point >> np.uint64(3)) == 0  # a comma or blank: bit 1 tells them from a point
    if whole.any():
        end[whole] = point[whole] << EIGHT
    odd = np.flatnonzero((end == 0) | (point == np.uint64(16)))
    if len(odd) > len(starts) // 4:
        raise Unread
    numbers = quotients(words, point, end)
    numbers[odd] = [float(spelling(text, start)) for start in starts[odd].tolist()]
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
    for factor, shift, mask in ((TENS, EIGHT, PAIRS), (HUNDREDS, SIXTEEN, QUADS)):
        digits *= factor
        digits >>= shift
        digits &= mask
    digits *= MYRIADS
    digits >>= THIRTY_TWO
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
