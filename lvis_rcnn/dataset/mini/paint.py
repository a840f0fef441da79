"""Pixels of the embedded dataset: backgrounds and objects, painted in whole numbers only.

Nothing here depends on a maths library, on floats or on the random streams of another package, so every machine paints
the same pixels. Colours are int64 until the end; fractions are written as 256ths.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt64

from lvis_rcnn.dataset.mini.categories import HOLE, Category, Colour, Part, Texture

STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""x, y from the start of an edge to its end, for each direction."""


def visible_polygons(mask: Bool[np.ndarray, "h w"], left: int = 0) -> list[list[int]]:
    """Closed outlines (x0, y0, x1, y1, ...) whose union is the mask, which starts at column ``left`` of the image.

    COCO polygons have no holes, so a mask with a hole is cut in two through the hole. Only corners, whole numbers.
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
    # Turning right wherever possible keeps the same pixel on the right.
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
    """Split a permutation into its cycles, each starting with its smallest member."""
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
    """``count`` independent words of 64 random bits, of a splitmix64 that is seeded by one draw from ``stream``."""
    start = np.uint64(stream.below(1 << 64))
    array = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    array = (array ^ (array >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    array = (array ^ (array >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return array ^ (array >> np.uint64(31))


def noise(stream: Stream, height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Independent numbers from -128 to 127, one per pixel."""
    return (words(stream, height * width) >> np.uint64(56)).astype(np.int64).reshape(height, width) - 128


Canvas = Int[np.ndarray, "h w 3"]


def smooth_noise(stream: Stream, height: int, width: int, cell_h: int, cell_w: int) -> Int[np.ndarray, "h w"]:
    """Numbers from -128 to 127 that change gently over cells of ``cell_h`` x ``cell_w`` pixels."""
    lattice = noise(stream, height // cell_h + 2, width // cell_w + 2)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    row, column, down, right = y // cell_h, x // cell_w, y % cell_h, x % cell_w
    upper = lattice[row, column] * (cell_w - right) + lattice[row, column + 1] * right
    lower = lattice[row + 1, column] * (cell_w - right) + lattice[row + 1, column + 1] * right
    return (upper * (cell_h - down) + lower * down) // (cell_h * cell_w)


def tinted(colour: Colour, levels: Int[np.ndarray, "h w"]) -> Canvas:
    """``colour`` made lighter or darker by ``levels`` at each pixel."""
    shaded: Canvas = np.array(colour, dtype=np.int64) + levels[:, :, None]
    return shaded


def meadow(stream: Stream, height: int, width: int) -> Canvas:
    """Grass."""
    patches = smooth_noise(stream, height, width, 14, 18) // 6
    blades = smooth_noise(stream, height, width, 5, 2) // 6
    return tinted(stream.choice(((112, 138, 84), (128, 140, 88), (98, 126, 92))), patches + blades)


def planks(stream: Stream, height: int, width: int) -> Canvas:
    """Boards of wood, each of its own tone, with grain along them."""
    board = stream.between(14, 24)
    y = np.arange(height)[:, None] + stream.below(board)
    tones = noise(stream, height // board + 3, 1)[:, 0] // 10
    grain = smooth_noise(stream, height, width, 2, 26) // 9
    levels = tones[y // board] + grain - np.where(y % board == 0, 46, 0)
    return tinted(stream.choice(((164, 132, 98), (142, 112, 84), (176, 154, 124))), levels)


def bricks(stream: Stream, height: int, width: int) -> Canvas:
    """A wall with light joints."""
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    row = y // 9
    shifted = x + 9 * (row % 2)
    tones = noise(stream, height // 9 + 1, width // 18 + 2) // 9
    levels = tones[row, shifted // 18] + noise(stream, height, width) // 16
    wall = tinted(stream.choice(((158, 116, 100), (150, 128, 112), (140, 104, 96))), levels)
    joints = (y % 9 == 0) | (shifted % 18 == 0)
    return np.where(joints[:, :, None], tinted((186, 178, 166), levels // 3), wall)


def tablecloth(stream: Stream, height: int, width: int) -> Canvas:
    """Woven checks."""
    side = stream.between(7, 12)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    bands = (y // side % 2) + (x // side % 2)
    weave = ((x + y) % 2) * 5 + smooth_noise(stream, height, width, 24, 24) // 12
    light = np.array((226, 222, 212), dtype=np.int64)
    step = np.array(stream.choice(((22, 40, 44), (42, 34, 16), (40, 22, 34))), dtype=np.int64)
    woven: Canvas = light - step * bands[:, :, None] + weave[:, :, None]
    return woven


def tiles(stream: Stream, height: int, width: int) -> Canvas:
    """A floor of square tiles."""
    side = stream.between(16, 24)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    tones = noise(stream, height // side + 1, width // side + 1) // 9
    joints = (y % side == 0) | (x % side == 0)
    levels = tones[y // side, x // side] + smooth_noise(stream, height, width, 6, 6) // 14 - 40 * joints
    return tinted(stream.choice(((190, 196, 200), (172, 186, 180), (200, 188, 176))), levels)


def shore(stream: Stream, height: int, width: int) -> Canvas:
    """Sky above sea."""
    horizon = height * stream.between(30, 60) // 100
    y = np.arange(height)[:, None]
    clouds = smooth_noise(stream, height, width, 12, 34) // 5
    waves = smooth_noise(stream, height, width, 3, 16) // 7
    sky = tinted((158, 190, 214), np.maximum(clouds, 0) + y * 24 // height)
    sea = tinted((92, 138, 152), waves + (height - y) * 24 // height)
    return np.where((y < horizon)[:, :, None], sky, sea)


def sand(stream: Stream, height: int, width: int) -> Canvas:
    """Rippled sand."""
    ripples = smooth_noise(stream, height, width, 5, 28) // 8
    return tinted((206, 186, 148), ripples + noise(stream, height, width) // 12)


def wallpaper(stream: Stream, height: int, width: int) -> Canvas:
    """Broad upright stripes in two near tones."""
    band = stream.between(8, 16)
    x = np.arange(width)[None, :]
    levels = (x // band % 2) * 20 + smooth_noise(stream, height, width, 30, 30) // 9
    return tinted(stream.choice(((176, 170, 188), (160, 178, 168), (196, 176, 164), (164, 176, 190))), levels)


def asphalt(stream: Stream, height: int, width: int) -> Canvas:
    """A street with one faded line."""
    levels = smooth_noise(stream, height, width, 16, 16) // 12 + noise(stream, height, width) // 9
    top = stream.below(height)
    line = np.zeros((height, 1), dtype=np.int64)
    line[top : top + 5] = 58
    return tinted((112, 114, 120), levels + line)


BACKGROUNDS: tuple[Callable[[Stream, int, int], Canvas], ...] = (
    *(meadow, planks, bricks, tablecloth, tiles),
    *(shore, sand, wallpaper, asphalt),
)

UNIT = 8
"""Object coordinates are measured in eighths of the categories' unit: the square is -800 to 800."""

SINES = (0, 1060, 2048, 2896, 3547, 3956, 4096)
"""4096 sin of 0, 15, ..., 90 degrees."""


def sine(turn: int) -> int:
    """4096 sin of ``turn`` steps of 15 degrees."""
    turn %= 24
    quarter = turn % 12
    value = SINES[quarter if quarter <= 6 else 12 - quarter]
    return value if turn < 12 else -value


class Sprite(NamedTuple):
    """A painted object, cropped to its own pixels."""

    mask: Bool[np.ndarray, "sprite_h sprite_w"]
    colours: Int[np.ndarray, "sprite_h sprite_w 3"]


def paint_object(stream: Stream, category: Category, size_px: int) -> Sprite:
    """Paint one object whose unturned square is ``size_px`` wide; turn, proportions and tint vary."""
    u, v = object_coordinates(
        turn=stream.between(-category.turns, category.turns),
        flip=stream.choice((-1, 1)),
        width_px=size_px * stream.between(92, 108) // 100,
        height_px=size_px * stream.between(92, 108) // 100,
    )
    tones = tones_of_pixels(category.parts, u, v)
    mask = tones != HOLE
    palette = np.array(category.colours, dtype=np.int64) + [stream.between(-16, 16) for _ in range(3)]
    light = 256 - (u + v) // 20 + texture_levels(stream, category.texture, u, v) + stream.between(-24, 24)
    light = np.where(edge(mask), light * 5 // 8, light)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Sprite(mask[crop], (palette[tones] * light[:, :, None] // 256)[crop])


def object_coordinates(
    turn: int, flip: int, width_px: int, height_px: int
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Coordinates in the object's square of each pixel of a patch that is large enough for every turn."""
    reach = max(width_px, height_px) * 3 // 4 + 1
    # Pixel centres lie on odd numbers of half pixels.
    offsets = 2 * np.arange(-reach, reach) + 1
    x, y = offsets[None, :] * flip, offsets[:, None]
    cos, sin = sine(turn + 6), sine(turn)
    # Half pixels over half the width: the halves cancel, 4096 is the scale of the sine.
    u = (x * cos + y * sin) * (100 * UNIT) // (4096 * width_px)
    v = (y * cos - x * sin) * (100 * UNIT) // (4096 * height_px)
    return u, v


def tones_of_pixels(
    parts: Sequence[Part], u: Int[np.ndarray, "h w"], v: Int[np.ndarray, "h w"]
) -> Int[np.ndarray, "h w"]:
    """Paint the parts in order; HOLE where there is none."""
    tones = np.full(u.shape, HOLE, dtype=np.int64)
    for part in parts:
        tones[covered(part, u, v)] = part.tone
    return tones


def covered(part: Part, u: Int[np.ndarray, "h w"], v: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centre lies in ``part``."""
    numbers = [UNIT * number for number in part.numbers]
    inside: Bool[np.ndarray, "h w"]
    match part.form:
        case "ellipse":
            x, y, rx, ry = numbers
            inside = ((u - x) * ry) ** 2 + ((v - y) * rx) ** 2 <= (rx * ry) ** 2
        case "box":
            x0, y0, x1, y1 = numbers
            inside = (u >= x0) & (u < x1) & (v >= y0) & (v < y1)
        case "polygon":
            inside = inside_polygon(numbers, u, v)
    return inside


def inside_polygon(
    numbers: Sequence[int], u: Int[np.ndarray, "h w"], v: Int[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Even-odd rule: an odd number of edges lies to the right."""
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        inside ^= (y0 <= v) & (v < y1) & ((u - x0) * (y1 - y0) < (x1 - x0) * (v - y0))
    return inside


def texture_levels(
    stream: Stream, texture: Texture, u: Int[np.ndarray, "h w"], v: Int[np.ndarray, "h w"]
) -> Int[np.ndarray, "h w"]:
    """How much lighter the surface is at each pixel, in 256ths."""
    height, width = u.shape
    levels: Int[np.ndarray, "h w"]
    match texture:
        case "stripes":
            levels = ((u + v) // 160 % 2) * 80 - 40
        case "speckle":
            levels = noise(stream, height, width) // 3
        case "plain":
            levels = noise(stream, height, width) // 12
    return levels


def edge(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of ``mask`` with a neighbour outside it; the border of the array must be empty."""
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(mask, shift, axis)
    rim: Bool[np.ndarray, "h w"] = mask & ~inner
    return rim
