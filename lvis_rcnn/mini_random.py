"""Random whole numbers for the embedded dataset, the same on every machine and with every version of every package."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int, UInt64

T = TypeVar("T")

GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


class Stream:
    """Random whole numbers by splitmix64 (Steele, Lea, Flood 2014, section 4), a pure function of its key."""

    def __init__(self, *key: int) -> None:
        self.state = 0
        for part in key:
            self.state = mixed(((self.state ^ part) + GOLDEN) & WORD)

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit - 1``."""
        self.state = (self.state + GOLDEN) & WORD
        return (mixed(self.state) * limit) >> 64

    def between(self, lowest: int, highest: int) -> int:
        """A number from ``lowest`` to ``highest``, both included."""
        return lowest + self.below(highest - lowest + 1)

    def choice(self, values: Sequence[T]) -> T:
        """One of ``values``."""
        return values[self.below(len(values))]


def mixed(word: int) -> int:
    """The output function of splitmix64: 64 bits to 64 bits."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def words(stream: Stream, count: int) -> UInt64[np.ndarray, " count"]:
    """``count`` independent words of 64 random bits: one draw from ``stream`` seeds a splitmix64 of their own."""
    start = np.uint64(stream.below(1 << 64))
    array = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    array = (array ^ (array >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    array = (array ^ (array >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return array ^ (array >> np.uint64(31))


def noise(stream: Stream, height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Independent numbers from -128 to 127, one a pixel."""
    return (words(stream, height * width) >> np.uint64(56)).astype(np.int64).reshape(height, width) - 128
