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
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - BASE
    if not len(characters):
        return characters
    if (characters < 0).any() or (characters >= 2 * MORE).any():
        raise ValueError("has a character that no compressed mask has")
    last = np.flatnonzero(characters & MORE == 0)
    if not len(last) or last[-1] != len(characters) - 1:
        raise ValueError("ends within a number")
    if np.diff(last, prepend=-1).max() > MOST_CHARACTERS:
        raise ValueError("has a number of more than 32 bits")
    runs = numbers_of(characters, last)
    # From the fourth on, each number is the difference to the last but one.
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def numbers_of(characters: Int64[np.ndarray, " bytes"], last: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """The numbers that characters, less ``BASE``, hold; ``last`` is the place of the last character of each."""
    lengths = np.diff(last, prepend=-1)
    starts = last + 1 - lengths
    place = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers: np.ndarray = np.add.reduceat((characters & VALUE) << BITS * place, starts)
    numbers -= np.where(characters[last] & SIGN, 1, 0) << BITS * lengths
    return numbers


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
    """How many pixels the runs of each text fill; no text may be damaged."""
    if not len(counts):
        return np.zeros(len(offsets) - 1, np.int64)
    characters = counts.astype(np.int64) - BASE
    last = np.flatnonzero(characters & MORE == 0)
    text = np.searchsorted(offsets, last, side="right") - 1
    each = np.bincount(text, minlength=len(offsets) - 1)
    place = np.arange(len(last)) - (each.cumsum() - each)[text]
    # A difference counts in its own run and in every second one behind it; the first number is no difference.
    runs = np.where(place > 0, (each[text] - 1 - place) // 2 + 1, 1)
    filled: np.ndarray = np.bincount(text, numbers_of(characters, last) * runs, len(each))
    return filled.astype(np.int64)


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
