"""Where ids stand in a column of ids."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

# Ids in a range of this length are looked up in a table, which is four times faster; others by bisection.
TABLE = 1 << 21


def positions(ids: Int64[np.ndarray, " k"], wanted: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Index of each wanted id in ``ids``, which has at least one and each once; -1 for an id that is not in it."""
    return finder(ids)(wanted)


def finder(ids: Int64[np.ndarray, " k"]) -> Callable[[np.ndarray], np.ndarray]:
    """:func:`positions` of ids that are looked up often."""
    lowest, highest = int(ids.min()), int(ids.max())
    order = np.argsort(ids)
    if highest - lowest >= TABLE:
        return lambda wanted: bisected(ids, order, wanted)
    table = np.full(highest - lowest + 2, -1)
    table[ids - lowest] = np.arange(len(ids))

    def found(wanted: np.ndarray) -> np.ndarray:
        inside = (wanted >= lowest) & (wanted <= highest)
        return table[np.where(inside, wanted - lowest, -1)]

    return found


def bisected(ids: np.ndarray, order: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of each wanted id in ``ids``, which ``order`` sorts; -1 for an id that is not in it."""
    at = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[at] == wanted, at, -1)
