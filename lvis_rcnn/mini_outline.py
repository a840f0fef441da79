"""A pixel mask becomes polygons along the edges of its pixels, which rasterise to exactly that mask."""

import numpy as np
from jaxtyping import Bool

Point = tuple[int, int]
"""x, y of a corner of pixels: the pixel in column x and row y lies between (x, y) and (x + 1, y + 1)."""


def visible_polygons(mask: Bool[np.ndarray, "h w"], left: int = 0) -> list[list[int]]:
    """Closed outlines (x0, y0, x1, y1, ...) whose union is the mask, which begins at column ``left`` of the image.

    COCO polygons know no holes, so a mask with a hole is cut in two through the hole. Only corners, whole numbers.
    """
    loops = outlines(mask)
    hole = next((loop for loop in loops if signed_area(loop) < 0), None)
    if hole is None:
        return [[number for x, y in loop for number in (x + left, y)] for loop in loops]
    columns = [x for x, _ in hole]
    cut = (min(columns) + max(columns)) // 2
    return visible_polygons(mask[:, :cut], left) + visible_polygons(mask[:, cut:], left + cut)


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[list[Point]]:
    """Every closed loop between pixels of the mask and others, the mask at its right hand; corners only."""
    ahead = boundary_steps(mask)
    loops = []
    while ahead:
        start = min(ahead)
        loops.append(corners(follow(ahead, start)))
    return loops


def boundary_steps(mask: Bool[np.ndarray, "h w"]) -> dict[Point, list[Point]]:
    """From each boundary point the one or two directions in which the boundary goes on."""
    framed = np.pad(mask, 1)
    ahead: dict[Point, list[Point]] = {}
    for (dx, dy), inside, outside in (
        ((1, 0), framed[1:, :], framed[:-1, :]),  # top edges run right
        ((-1, 0), framed[:-1, :], framed[1:, :]),  # bottom edges run left
        ((0, 1), framed[:, :-1], framed[:, 1:]),  # right edges run down
        ((0, -1), framed[:, 1:], framed[:, :-1]),  # left edges run up
    ):
        for row, column in zip(*(inside & ~outside).nonzero(), strict=True):
            # The frame shifts coordinates by one; an edge begins at its left or upper end unless it runs back.
            x = int(column) - (1 if dx >= 0 and dy == 0 else 0)
            y = int(row) - (1 if dy >= 0 and dx == 0 else 0)
            ahead.setdefault((x, y), []).append((dx, dy))
    return ahead


def follow(ahead: dict[Point, list[Point]], start: Point) -> list[Point]:
    """Walk one loop from ``start``, using up its steps; where two pixels touch at a corner, stay with one of them."""
    here, heading = start, ahead[start][0]
    points = []
    while here in ahead:
        choices = ahead[here]
        # Turning right around a corner keeps to the pixel at the right hand.
        right = (-heading[1], heading[0])
        heading = right if right in choices else choices[0]
        choices.remove(heading)
        if not choices:
            del ahead[here]
        points.append(here)
        here = (here[0] + heading[0], here[1] + heading[1])
        if here == start:
            break
    return points


def corners(loop: list[Point]) -> list[Point]:
    """The points of a closed loop at which it turns."""
    around = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [here for before, here, after in around if before[0] != after[0] and before[1] != after[1]]


def signed_area(loop: list[Point]) -> int:
    """Twice the area, positive for an outline and negative for a hole (y points down)."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True))
