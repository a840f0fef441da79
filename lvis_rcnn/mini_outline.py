"""A pixel mask becomes polygons along the edges of its pixels, which rasterise to exactly that mask.

A point (x, y) is a corner of pixels: the pixel in column x and row y lies between (x, y) and (x + 1, y + 1). Edges have
the mask at their right hand and one of four directions: 0 right, 1 down, 2 left, 3 up.
"""

import numpy as np
from jaxtyping import Bool, Int

STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""x, y from the start of an edge to its end, for each direction."""


def visible_polygons(mask: Bool[np.ndarray, "h w"], left: int = 0) -> list[list[int]]:
    """Closed outlines (x0, y0, x1, y1, ...) whose union is the mask, which begins at column ``left`` of the image.

    COCO polygons know no holes, so a mask with a hole is cut in two through the hole. Only corners, whole numbers.
    """
    loops = outlines(mask)
    hole = next((loop for loop in loops if signed_area(loop) < 0), None)
    if hole is None:
        return [(loop + np.array([left, 0])).ravel().tolist() for loop in loops]
    cut = int(hole[:, 0].min() + hole[:, 0].max()) // 2
    return visible_polygons(mask[:, :cut], left) + visible_polygons(mask[:, cut:], left + cut)


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[Int[np.ndarray, "_ 2"]]:
    """Corners x, y of every closed loop between the mask and the rest; pixels that touch at a corner are separate."""
    inside = edges(mask)
    direction, y, x = inside.nonzero()
    starts = np.stack([x, y], axis=1)
    end_x, end_y = (starts + STEPS[direction]).T
    right, left = (direction + 1) % 4, (direction + 3) % 4
    # Turning right wherever possible keeps to the pixel at the right hand.
    straight_or_left = np.where(inside[direction, end_y, end_x], direction, left)
    next_direction = np.where(inside[right, end_y, end_x], right, straight_or_left)
    number = np.zeros(inside.shape, dtype=np.int64)
    number[direction, y, x] = np.arange(len(starts))
    following = number[next_direction, end_y, end_x]
    is_corner = np.zeros(len(starts), dtype=bool)
    is_corner[following] = next_direction != direction
    return [starts[loop][is_corner[loop]] for loop in cycles(following)]


def edges(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "4 h+1 w+1"]:
    """For each direction and point: does an edge of the mask start there?"""
    framed = np.pad(mask, 1)
    north_west, north_east = framed[:-1, :-1], framed[:-1, 1:]
    south_west, south_east = framed[1:, :-1], framed[1:, 1:]
    return np.stack(
        [
            south_east & ~north_east,
            south_west & ~south_east,
            north_west & ~south_west,
            north_east & ~north_west,
        ]
    )


def cycles(following: Int[np.ndarray, " edges"]) -> list[list[int]]:
    """Split a permutation into its cycles, each from its first member on."""
    successor = following.tolist()
    seen = [False] * len(successor)
    loops = []
    for start in range(len(successor)):
        loop = []
        here = start
        while not seen[here]:
            seen[here] = True
            loop.append(here)
            here = successor[here]
        if loop:
            loops.append(loop)
    return loops


def signed_area(loop: Int[np.ndarray, "corners 2"]) -> int:
    """Twice the area, positive for an outline and negative for a hole (y points down)."""
    x, y = loop.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
