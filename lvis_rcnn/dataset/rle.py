"""Run-length masks: the lengths of runs of pixels, column by column, background first.

COCO's compressed text holds them as differences in a base of 32 (cocoapi at 8c9bcc3c, ``rleFrString`` of maskApi.c).
pycocotools reads it without checking bounds, so that a damaged text may crash its process; here it is a ValueError.
"""

import numpy as np
from jaxtyping import Int64, UInt8

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
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > MOST_CHARACTERS:
        raise ValueError("has a number of more than 32 bits")
    starts = last + 1 - lengths
    place = np.arange(len(characters)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((characters & VALUE) << BITS * place, starts)
    runs -= np.where(characters[last] & SIGN, 1, 0) << BITS * lengths
    # From the fourth on, each number is the difference to the last but one.
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


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
