"""Run-length masks: the lengths of runs of pixels, column by column, background first.

COCO's compressed text holds them as differences in a base of 32 (cocoapi at 8c9bcc3c, ``rleFrString`` of maskApi.c).
pycocotools reads it without checking bounds, so that a damaged text may crash its process; here it is a ValueError.
"""

import numpy as np
from jaxtyping import Bool, Int64, UInt8

# Characters 48 to 111: five bits of a number and one bit that is set if more follow.
BASE, BITS, VALUE, SIGN, MORE = 48, 5, 31, 16, 32

# Seven characters hold 35 bits; a run has at most 32.
MOST_CHARACTERS = 7


def runs_of_text(counts: bytes) -> Int64[np.ndarray, " runs"]:
    """The run lengths of a compressed text.

    Raises:
        ValueError: what is wrong with the text.
    """
    characters = np.frombuffer(counts, np.uint8) - np.uint8(BASE)
    if not len(characters):
        return np.zeros(0, np.int64)
    if (characters >= 2 * MORE).any():
        raise ValueError("has a character that no compressed mask has")
    last = np.flatnonzero(characters < MORE)
    if not len(last) or last[-1] != len(characters) - 1:
        raise ValueError("ends within a number")
    if np.diff(last, prepend=-1).max() > MOST_CHARACTERS:
        raise ValueError("has a number of more than 32 bits")
    return runs_of_numbers(numbers_of(characters, last), np.array([0, len(last)]))


def numbers_of(characters: UInt8[np.ndarray, " bytes"], last: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """The numbers that characters, less ``BASE``, hold; ``last`` is the place of the last character of each.

    One of more than ``MOST_CHARACTERS`` is less than the negative of any run.
    """
    lengths = np.diff(last, prepend=-1)
    numbers: np.ndarray = (characters[last].astype(np.int64) ^ SIGN) - SIGN
    longer = np.flatnonzero(lengths > 1)
    for back in range(1, MOST_CHARACTERS):
        numbers[longer] = (numbers[longer] << BITS) + (characters[last[longer] - back] & VALUE)
        longer = longer[lengths[longer] > back + 1]
    numbers[longer] = -(1 << BITS * (MOST_CHARACTERS + 1))
    return numbers


def runs_of_numbers(numbers: Int64[np.ndarray, " k"], ends: Int64[np.ndarray, " o"]) -> Int64[np.ndarray, " k"]:
    """The runs of texts, of which text i has the numbers ``ends[i]`` to ``ends[i + 1]``.

    From the fourth of a text on, each number is the difference to the last but one.
    """
    sums = np.zeros(len(numbers) + 1, np.int64)
    sums[1::2], sums[2::2] = numbers[::2].cumsum(), numbers[1::2].cumsum()
    start = np.repeat(ends[:-1], np.diff(ends))
    is_odd = (np.arange(len(numbers)) ^ start) & 1
    runs: np.ndarray = sums[1:] - sums[start + 1 - is_odd]
    first = ends[:-1][np.diff(ends) > 0]
    runs[first] = numbers[first]
    return runs


def damaged_texts(offsets: Int64[np.ndarray, " o"], counts: UInt8[np.ndarray, " bytes"]) -> Bool[np.ndarray, " o-1"]:
    """Whether pycocotools would read beyond the end of each text, or it holds characters of no number."""
    starts, ends = offsets[:-1], offsets[1:]
    open_end = np.zeros(len(starts), bool)
    filled = ends > starts
    open_end[filled] = (counts[ends[filled] - 1] - BASE) & MORE != 0
    if len(counts) and (counts.min() < BASE or counts.max() > BASE + 2 * MORE - 1):
        strange = np.flatnonzero((counts < BASE) | (counts > BASE + 2 * MORE - 1))
        open_end[np.searchsorted(ends, strange, side="right")] = True
    return open_end


def pixels_of_texts(offsets: Int64[np.ndarray, " o"], counts: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " o-1"]:
    """How many pixels the runs of each text fill, -1 where a run is negative; no text may be damaged."""
    characters = counts - np.uint8(BASE)
    last = np.flatnonzero(characters < MORE)
    ends = np.searchsorted(last, offsets)
    runs = runs_of_numbers(numbers_of(characters, last), ends)
    filled: np.ndarray = np.diff(np.concatenate([[0], runs.cumsum()])[ends])
    filled[np.searchsorted(ends, np.flatnonzero(runs < 0), side="right") - 1] = -1
    return filled


def texts_of_runs(
    runs: Int64[np.ndarray, " runs"], each: Int64[np.ndarray, " d"]
) -> tuple[Int64[np.ndarray, " d+1"], UInt8[np.ndarray, " bytes"]]:
    """Compressed texts of masks with ``each[i]`` runs: text i is bytes ``offsets[i]`` to ``offsets[i + 1]``."""
    place = np.arange(len(runs)) - np.repeat(each.cumsum() - each, each)
    rest = np.where(place > 2, runs - np.roll(runs, 2), runs)
    characters, used, more = [], [], np.ones(len(runs), bool)
    while more.any():
        value, rest = rest & VALUE, rest >> BITS
        goes_on = rest != -(value // SIGN)
        characters.append(BASE + value + MORE * goes_on)
        used.append(more)
        more = more & goes_on
    written = np.zeros((len(runs), len(used)), bool) if not used else np.stack(used, axis=1)
    text = np.stack(characters, axis=1)[written].astype(np.uint8) if used else np.zeros(0, np.uint8)
    lengths = written.sum(axis=1).cumsum()
    return np.concatenate([[0], np.concatenate([[0], lengths])[each.cumsum()]]), text


def check_runs(runs: Int64[np.ndarray, " runs"], size_hw: tuple[int, int]) -> None:
    """Raise ValueError unless these runs fill an image of this size."""
    if (runs < 0).any():
        raise ValueError(f"has a run of {runs.min()} pixels")
    filled, pixels = int(runs.sum()), size_hw[0] * size_hw[1]
    if filled != pixels:
        raise ValueError(f"fills {filled} pixels, not {size_hw[0]} x {size_hw[1]} = {pixels}")


def pixels_of_runs(runs: np.ndarray, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The mask, 1 on the object."""
    on = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(on, runs).reshape(size_hw[1], size_hw[0]).T
