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
    choices = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(pairs.detections)))
    reached = pairs.overlaps[:, None] >= THRESHOLDS
    state = State(len(candidates), ignored)
    turns = place_in_run(cells[candidates])[choices]
    slots = place_in_run(pairs.detections)
    order = np.lexsort((slots, turns))
    ends = run_starts(turns[order])[1:]
    for turn in np.split(order, ends) if len(order) else ():
        # Pairs of one slot are of different cells, so that none gets in another's way.
        groups = np.split(turn, run_starts(slots[turn])[1:])
        for counting in (True, False):
            for group in groups:
                state.choose(choices[group], pairs.objects[group], reached[group], counting)
    hit = state.matched.any(axis=(1, 2))
    return Hits(by_cell[candidates[hit]], state.matched[hit], state.on_ignored[hit])


def sorted_pairs(pairs: Pairs) -> Pairs:
    """The objects of each detection, best first."""
    order = np.lexsort((-pairs.objects, -pairs.overlaps, pairs.detections))
    return Pairs(pairs.detections[order], pairs.objects[order], pairs.overlaps[order])


class State:
    """Which objects are taken, and who took one."""

    def __init__(self, candidates: int, ignored: Bool[np.ndarray, "g z"]) -> None:
        self.ignored = ignored
        shape = len(THRESHOLDS), len(AREA_RANGES_PX)
        self.taken = np.zeros((len(ignored), *shape), bool)
        self.matched = np.zeros((candidates, *shape), bool)
        self.on_ignored = np.zeros((candidates, *shape), bool)

    def choose(
        self,
        choosing: Int64[np.ndarray, " p"],
        objects: Int64[np.ndarray, " p"],
        reached: Bool[np.ndarray, "p t"],
        counting: bool,
    ) -> None:
        """Each takes its object where that is free and does (or does not) count, and it has none."""
        takes = ~(self.taken[objects] | self.matched[choosing])
        takes &= reached[:, :, None]
        takes &= (self.ignored[objects] != counting)[:, None, :]
        self.matched[choosing] |= takes
        self.taken[objects] |= takes
        if not counting:
            self.on_ignored[choosing] |= takes
