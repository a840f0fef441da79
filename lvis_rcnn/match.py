"""Which detection finds which object: the greedy rule of ``lvis``, for all cells, thresholds and sizes at once.

In each cell detections choose in the order of their scores. Each takes the free object that it overlaps most, the last
of equals, among those that it overlaps by the threshold; objects of the size in question come before others, which are
there to be found but do not count (lvis 0.5.3, ``LVISEval.evaluate_img``).

All cells take their turns together: the first detections of all cells, then the second ones, and so on. Only
detections that overlap an object take a turn, and most cells have few of those.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.cells import place_in_run, run_starts
from lvis_rcnn.overlaps import Pairs

# The expression of lvis, since its values are no exact multiples of 0.05.
THRESHOLDS = np.linspace(0.5, 0.95, 10, endpoint=True)

AREA_RANGES_PX = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Both ends belong to a range."""


@dataclass(frozen=True, eq=False)
class Hits:
    """``h`` detections that found an object at some of ``t`` thresholds and ``z`` sizes."""

    detections: Int64[np.ndarray, " h"]
    """Places in ``Judged``."""
    matched: Bool[np.ndarray, "h t z"]
    on_ignored: Bool[np.ndarray, "h t z"]
    """Matched to an object that does not count: the detection does not count either."""


def outside(areas: Float64[np.ndarray, " k"]) -> Bool[np.ndarray, "k z"]:
    """Whether an area is not of a size, for every size."""
    bounds = np.array(list(AREA_RANGES_PX.values()))
    return (areas[:, None] < bounds[:, 0]) | (areas[:, None] > bounds[:, 1])


def match(
    pairs: Pairs,
    cells: Int64[np.ndarray, " d"],
    by_cell: Int64[np.ndarray, " d"],
    ignored: Bool[np.ndarray, "g z"],
) -> Hits:
    """Let detections choose.

    Args:
        pairs: what overlaps.
        cells: cell of each detection of ``by_cell``.
        by_cell: as in ``Judged``.
        ignored: whether an object does not count, for every size.
    """
    # Best first: of equal overlaps the last object.
    pairs = sorted_pairs(pairs)
    starts = run_starts(pairs.detections)
    candidates = pairs.detections[starts]
    choosing = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(pairs.detections)))
    turns, slots = place_in_run(cells[candidates])[choosing], place_in_run(pairs.detections)
    reached, passed_over = reached_bits(pairs.overlaps), ignored_bits(ignored)
    taken = np.zeros(len(ignored), np.int64)
    matched, on_ignored = np.zeros((2, len(candidates)), np.int64)
    order = np.lexsort((slots, turns))
    for turn in np.split(order, run_starts(turns[order])[1:]) if len(order) else ():
        # Pairs of one slot are of different cells, so that none gets in another's way.
        groups = np.split(turn, run_starts(slots[turn])[1:])
        for ignoring in (False, True):
            for group in groups:
                mine, theirs = choosing[group], pairs.objects[group]
                allowed = passed_over[theirs] if ignoring else ~passed_over[theirs]
                takes = reached[group] & allowed & ~taken[theirs] & ~matched[mine]
                matched[mine] |= takes
                taken[theirs] |= takes
                if ignoring:
                    on_ignored[mine] |= takes
    hit = np.flatnonzero(matched)
    return Hits(by_cell[candidates[hit]], bits(matched[hit]), bits(on_ignored[hit]))


def sorted_pairs(pairs: Pairs) -> Pairs:
    """The objects of each detection, best first; most have only one."""
    order = np.arange(len(pairs.detections))
    each = np.diff(run_starts(pairs.detections), append=len(order))
    several = np.flatnonzero(np.repeat(each, each) > 1)
    overlaps, detections = pairs.overlaps[several], pairs.detections[several]
    order[several] = several[np.lexsort((-pairs.objects[several], -overlaps, detections))]
    return Pairs(pairs.detections, pairs.objects[order], pairs.overlaps[order])


# A threshold and a size are one bit of a whole number, so that one operation answers for all of them: bit
# ``threshold * sizes + size``.
SIZES = len(AREA_RANGES_PX)
PLACES = np.arange(len(THRESHOLDS) * SIZES)


def reached_bits(overlaps: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Thresholds that an overlap reaches."""
    up_to = np.searchsorted(THRESHOLDS, overlaps, side="right")
    reached: np.ndarray = (1 << SIZES * up_to) - 1
    return reached


def ignored_bits(ignored: Bool[np.ndarray, "g z"]) -> Int64[np.ndarray, " g"]:
    """Sizes, at every threshold, for which an object does not count."""
    of_threshold = ignored @ (1 << np.arange(SIZES))
    spread: np.ndarray = of_threshold * (1 << PLACES[::SIZES]).sum()
    return spread


def bits(numbers: Int64[np.ndarray, " h"]) -> Bool[np.ndarray, "h t z"]:
    """The bits of each, as truth values."""
    return ((numbers[:, None] >> PLACES) & 1).astype(bool).reshape(-1, len(THRESHOLDS), SIZES)
