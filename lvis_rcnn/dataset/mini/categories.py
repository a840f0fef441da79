"""What the embedded dataset shows: one row of a table for each category, in the form of coloured parts.

Parts are painted in order, in a square from -100 to 100 (x to the right, y down). Whole numbers only.
"""

from typing import Literal, NamedTuple

Colour = tuple[int, int, int]
Texture = Literal["plain", "stripes", "speckle"]

HOLE = -1
"""Tone of a part that is cut out of the object instead of painted."""


class Part(NamedTuple):
    """One form of an object: ellipse (x, y, rx, ry), box (x0, y0, x1, y1) or polygon (x0, y0, x1, y1, ...)."""

    form: Literal["ellipse", "box", "polygon"]
    tone: int
    """Position in the category's colours, or HOLE."""
    numbers: tuple[int, ...]


def ellipse(tone: int, *numbers: int) -> Part:
    """Ellipse with centre x, y and half axes rx, ry."""
    return Part("ellipse", tone, numbers)


def box(tone: int, *numbers: int) -> Part:
    """Upright rectangle from x0, y0 to x1, y1."""
    return Part("box", tone, numbers)


def polygon(tone: int, *numbers: int) -> Part:
    """Polygon through x0, y0, x1, y1, ..."""
    return Part("polygon", tone, numbers)


class Category(NamedTuple):
    """A row: name, frequency and look of a category."""

    name: str
    synset: str
    synonyms: tuple[str, ...]
    definition: str
    train_images: int
    """Images of 480 training images that show it: this column is the long tail."""
    val_images: int
    """Images of 100 validation images that show it: much flatter, so that rare categories are measured at all."""
    turns: int
    """Rotation up to this many steps of 15 degrees to either side; 12 is any direction."""
    texture: Texture
    colours: tuple[Colour, ...]
    parts: tuple[Part, ...]


WHITE, BLACK, GREY = (238, 236, 228), (36, 34, 38), (128, 130, 138)
RED, GREEN, BLUE = (206, 42, 40), (44, 134, 58), (38, 92, 190)
YELLOW, ORANGE, BROWN, PINK = (242, 202, 48), (240, 118, 24), (122, 74, 38), (244, 130, 172)

# Laid out by hand: on a line for each part the table would be twice as long.
# fmt: off

# Frequent: more than 100 training images.
FREQUENT = (
    Category(
        name="button", synset="button.n.01", synonyms=("button",),
        definition="a round fastener sewn to clothing, with holes for the thread",
        train_images=170, val_images=19, turns=12, texture="plain",
        colours=(BLUE, (112, 160, 236), BLACK),
        parts=(
            ellipse(0, 0, 0, 100, 100), ellipse(1, 0, 0, 76, 76), ellipse(0, 0, 0, 62, 62),
            ellipse(2, -24, -24, 14, 14), ellipse(2, 24, -24, 14, 14), ellipse(2, -24, 24, 14, 14),
            ellipse(2, 24, 24, 14, 14),
        ),
    ),
    Category(
        name="kite", synset="kite.n.03", synonyms=("kite",),
        definition="a light frame covered with cloth, flown in wind, with bows on its tail",
        train_images=160, val_images=19, turns=2, texture="plain",
        colours=(RED, YELLOW, BLUE),
        parts=(
            polygon(0, 0, -100, 0, -30, -58, -30), polygon(1, 0, -100, 58, -30, 0, -30),
            polygon(1, -58, -30, 0, -30, 0, 48), polygon(0, 0, -30, 58, -30, 0, 48),
            polygon(2, -26, 54, 26, 72, 26, 54, -26, 72), polygon(2, -22, 82, 30, 100, 30, 82, -22, 100),
        ),
    ),
    Category(
        name="starfish", synset="starfish.n.01", synonyms=("starfish", "sea_star"),
        definition="a sea animal with five arms and a rough skin",
        train_images=152, val_images=18, turns=12, texture="speckle",
        colours=((226, 82, 132), (255, 190, 200)),
        parts=(
            polygon(0, 0, -100, 28, -36, 95, -31, 45, 15, 59, 81, 0, 48, -59, 81, -45, 15, -95, -31, -28, -36),
            ellipse(1, 0, 0, 13, 13), ellipse(1, 0, -50, 9, 9), ellipse(1, 47, -16, 9, 9), ellipse(1, 30, 40, 9, 9),
            ellipse(1, -30, 40, 9, 9), ellipse(1, -47, -16, 9, 9),
        ),
    ),
    Category(
        name="traffic_cone", synset="cone.n.03", synonyms=("traffic_cone",),
        definition="an orange cone with white bands that closes a lane",
        train_images=146, val_images=18, turns=1, texture="plain",
        colours=(ORANGE, WHITE, (176, 78, 20)),
        parts=(
            box(2, -76, 78, 76, 100), polygon(0, -12, -100, 12, -100, 56, 78, -56, 78),
            polygon(1, -25, -48, 25, -48, 34, -14, -34, -14), polygon(1, -42, 20, 42, 20, 50, 52, -50, 52),
        ),
    ),
    Category(
        name="picture_frame", synset="frame.n.10", synonyms=("picture_frame",),
        definition="a wooden border around a small painted landscape",
        train_images=140, val_images=18, turns=0, texture="plain",
        colours=(BROWN, (196, 150, 84), (136, 192, 230), (84, 150, 70), YELLOW),
        parts=(
            box(0, -100, -84, 100, 84), box(1, -90, -74, 90, 74), box(0, -78, -62, 78, 62), box(2, -70, -54, 70, 54),
            ellipse(4, 36, -24, 16, 16), polygon(3, -70, 54, -70, 24, -26, -10, 14, 26, 40, 8, 70, 30, 70, 54),
        ),
    ),
    Category(
        name="pizza_slice", synset="pizza.n.01", synonyms=("pizza_slice", "pizza"),
        definition="a wedge of flat bread with cheese and sausage",
        train_images=134, val_images=18, turns=12, texture="speckle",
        colours=((248, 206, 92), (178, 104, 44), (190, 44, 30)),
        parts=(
            polygon(0, -84, -58, 84, -58, 0, 100), box(1, -90, -90, 90, -56), ellipse(2, -34, -28, 19, 19),
            ellipse(2, 32, -20, 19, 19), ellipse(2, 0, 28, 18, 18),
        ),
    ),
    Category(
        name="stop_sign", synset="street_sign.n.01", synonyms=("stop_sign",),
        definition="a red sign with eight sides that tells drivers to halt",
        train_images=128, val_images=17, turns=0, texture="plain",
        colours=(WHITE, RED, GREY),
        parts=(
            box(2, -8, 60, 8, 100),
            polygon(0, -36, -100, 36, -100, 84, -52, 84, 20, 36, 68, -36, 68, -84, 20, -84, -52),
            polygon(1, -32, -90, 32, -90, 74, -48, 74, 16, 32, 58, -32, 58, -74, 16, -74, -48),
            box(0, -62, -34, -36, -2), box(0, -29, -34, -3, -2), box(0, 4, -34, 30, -2), box(0, 37, -34, 62, -2),
        ),
    ),
    Category(
        name="watermelon", synset="watermelon.n.02", synonyms=("watermelon",),
        definition="a half-round slice of a green melon with red flesh",
        train_images=124, val_images=17, turns=3, texture="plain",
        colours=((38, 118, 52), (206, 232, 172), (226, 58, 66), BLACK),
        parts=(
            ellipse(0, 0, -50, 100, 100), ellipse(1, 0, -50, 84, 84), ellipse(2, 0, -50, 74, 74),
            ellipse(3, -40, -24, 6, 9), ellipse(3, 0, -14, 6, 9), ellipse(3, 40, -24, 6, 9),
            ellipse(3, -20, 6, 6, 9), ellipse(3, 20, 6, 6, 9), box(HOLE, -110, -160, 110, -50),
        ),
    ),
    Category(
        name="daisy", synset="daisy.n.01", synonyms=("daisy",),
        definition="a flower with white petals around a yellow heart",
        train_images=120, val_images=17, turns=12, texture="plain",
        colours=(WHITE, YELLOW, (214, 148, 24)),
        parts=(
            ellipse(0, 0, -64, 26, 36), ellipse(0, 0, 64, 26, 36), ellipse(0, -64, 0, 36, 26),
            ellipse(0, 64, 0, 36, 26), ellipse(0, -46, -46, 30, 30), ellipse(0, 46, -46, 30, 30),
            ellipse(0, -46, 46, 30, 30), ellipse(0, 46, 46, 30, 30), ellipse(0, 0, 0, 62, 62), ellipse(2, 0, 0, 38, 38),
            ellipse(1, 0, 0, 32, 32),
        ),
    ),
    Category(
        name="umbrella", synset="umbrella.n.01", synonyms=("umbrella",),
        definition="a canopy on a stick that keeps off rain",
        train_images=116, val_images=17, turns=2, texture="plain",
        colours=((120, 52, 170), (178, 116, 222), BLACK),
        parts=(
            ellipse(0, 0, 10, 100, 100), ellipse(1, 0, 10, 40, 98), box(HOLE, -110, 10, 110, 120),
            ellipse(2, 14, 80, 18, 18), ellipse(HOLE, 14, 78, 10, 12), box(HOLE, -6, 50, 40, 80),
            box(2, -4, 10, 4, 82), box(2, -3, -100, 3, -86),
        ),
    ),
)

# Common: 11 to 100 training images.
COMMON = (
    Category(
        name="bow_tie", synset="bow_tie.n.01", synonyms=("bow_tie", "bowtie"),
        definition="a short necktie in a knot with two loops",
        train_images=94, val_images=14, turns=2, texture="stripes",
        colours=((20, 150, 146), (10, 88, 92)),
        parts=(
            polygon(0, -100, -52, -12, -16, -12, 16, -100, 52), polygon(0, 100, -52, 12, -16, 12, 16, 100, 52),
            box(1, -18, -22, 18, 22),
        ),
    ),
    Category(
        name="dumbbell", synset="dumbbell.n.01", synonyms=("dumbbell",),
        definition="a short bar with a weight at each end, for exercise",
        train_images=84, val_images=14, turns=12, texture="plain",
        colours=((62, 66, 76), (176, 182, 192)),
        parts=(
            box(1, -60, -12, 60, 12), box(0, -82, -58, -48, 58), box(0, 48, -58, 82, 58), box(0, -100, -38, -82, 38),
            box(0, 82, -38, 100, 38),
        ),
    ),
    Category(
        name="domino", synset="domino.n.04", synonyms=("domino",),
        definition="a flat tile with two fields of dots, for a game",
        train_images=72, val_images=14, turns=12, texture="plain",
        colours=(WHITE, BLACK),
        parts=(
            box(0, -52, -100, 52, 100), box(1, -44, -4, 44, 4), ellipse(1, -26, -76, 12, 12),
            ellipse(1, 26, -26, 12, 12), ellipse(1, 0, -51, 12, 12), ellipse(1, -26, 26, 12, 12),
            ellipse(1, 26, 26, 12, 12), ellipse(1, -26, 76, 12, 12), ellipse(1, 26, 76, 12, 12),
        ),
    ),
    Category(
        name="doughnut", synset="doughnut.n.02", synonyms=("doughnut", "donut"),
        definition="a fried ring of dough with pink icing",
        train_images=62, val_images=14, turns=12, texture="speckle",
        colours=((188, 124, 64), PINK, WHITE, (96, 200, 220)),
        parts=(
            ellipse(0, 0, 0, 100, 100), ellipse(1, 0, 0, 86, 86), ellipse(0, 0, 0, 42, 42),
            ellipse(HOLE, 0, 0, 32, 32), box(2, -66, -30, -48, -20), box(3, 44, -44, 60, -34),
            box(2, 20, 52, 38, 62), box(3, -40, 48, -24, 58), box(2, 60, 6, 70, 24), box(3, -10, -76, 6, -66),
        ),
    ),
    Category(
        name="mushroom", synset="mushroom.n.05", synonyms=("mushroom", "toadstool"),
        definition="a fungus with a red cap, white spots and a stem",
        train_images=52, val_images=14, turns=1, texture="plain",
        colours=(RED, WHITE, (226, 208, 170)),
        parts=(
            ellipse(0, 0, 6, 98, 100), box(HOLE, -110, 6, 110, 120), box(2, -30, 6, 30, 100), box(0, -98, 0, 98, 10),
            ellipse(1, -46, -34, 18, 16), ellipse(1, 8, -62, 18, 16), ellipse(1, 50, -26, 17, 15),
        ),
    ),
    Category(
        name="tropical_fish", synset="fish.n.01", synonyms=("tropical_fish", "fish"),
        definition="a small fish with bold bands and a forked tail",
        train_images=44, val_images=14, turns=1, texture="plain",
        colours=((250, 186, 20), (20, 54, 140), WHITE, BLACK),
        parts=(
            polygon(1, 46, 0, 100, -58, 84, 0, 100, 58), polygon(1, -10, -46, 40, -74, 34, -20),
            ellipse(0, -18, 0, 82, 56), polygon(1, -32, -54, -16, -56, -16, 56, -32, 54),
            polygon(1, 16, -50, 32, -44, 32, 44, 16, 50), ellipse(2, -64, -12, 13, 13), ellipse(3, -66, -12, 7, 7),
        ),
    ),
    Category(
        name="christmas_tree", synset="christmas_tree.n.05", synonyms=("christmas_tree", "fir"),
        definition="a decorated evergreen tree",
        train_images=36, val_images=14, turns=0, texture="speckle",
        colours=(GREEN, BROWN, YELLOW, RED),
        parts=(
            box(1, -12, 74, 12, 100), polygon(0, 0, -90, 36, -36, -36, -36), polygon(0, 0, -60, 54, 20, -54, 20),
            polygon(0, 0, -20, 72, 76, -72, 76), ellipse(2, 0, -88, 13, 12), ellipse(3, -14, -10, 9, 9),
            ellipse(2, 20, 8, 8, 8), ellipse(3, 30, 56, 9, 9), ellipse(2, -30, 54, 9, 9), ellipse(3, -2, 36, 8, 8),
        ),
    ),
    Category(
        name="sailboat", synset="sailboat.n.01", synonyms=("sailboat",),
        definition="a boat with a mast and sails",
        train_images=28, val_images=14, turns=1, texture="plain",
        colours=((150, 40, 34), WHITE, BROWN, (70, 130, 200)),
        parts=(
            box(2, -4, -100, 4, 60), polygon(1, 8, -92, 8, 44, 80, 44), polygon(3, -8, -70, -8, 44, -64, 44),
            polygon(0, -96, 54, 96, 54, 64, 100, -64, 100),
        ),
    ),
    Category(
        name="key", synset="key.n.01", synonyms=("key",),
        definition="a piece of shaped metal that opens a lock",
        train_images=20, val_images=14, turns=12, texture="plain",
        colours=((206, 160, 40), (150, 108, 20)),
        parts=(
            ellipse(0, -56, 0, 44, 50), ellipse(HOLE, -60, 0, 16, 20), box(0, -30, -16, 100, 16),
            box(1, 48, 10, 66, 46), box(1, 80, 10, 100, 42),
        ),
    ),
)

# Rare: at most 10 training images.
RARE = (
    Category(
        name="snowman", synset="snowman.n.01", synonyms=("snowman",),
        definition="a figure of packed snow with a hat and a scarf",
        train_images=10, val_images=9, turns=0, texture="plain",
        colours=(WHITE, BLACK, (40, 150, 220), ORANGE),
        parts=(
            ellipse(0, 0, 52, 56, 48), ellipse(0, 0, -22, 38, 38), box(2, -36, 2, 36, 16), box(2, 12, 10, 28, 44),
            box(1, -40, -64, 40, -52), box(1, -26, -100, 26, -60), ellipse(1, -13, -30, 6, 6),
            ellipse(1, 13, -30, 6, 6), polygon(3, -4, -20, 26, -14, -4, -10), ellipse(1, 0, 50, 6, 6),
            ellipse(1, 0, 74, 6, 6),
        ),
    ),
    Category(
        name="crown", synset="crown.n.04", synonyms=("crown",),
        definition="a golden headdress with jewels, worn by a king or queen",
        train_images=9, val_images=9, turns=1, texture="plain",
        colours=((236, 188, 40), RED, BLUE, (176, 124, 16)),
        parts=(
            polygon(0, -92, 70, -100, -46, -50, 4, 0, -80, 50, 4, 100, -46, 92, 70), box(3, -92, 40, 92, 70),
            ellipse(1, 0, -72, 15, 15), ellipse(2, -88, -48, 12, 12), ellipse(2, 88, -48, 12, 12),
            ellipse(1, -50, 55, 11, 11), ellipse(2, 0, 55, 11, 11), ellipse(1, 50, 55, 11, 11),
        ),
    ),
    Category(
        name="butterfly", synset="butterfly.n.01", synonyms=("butterfly",),
        definition="an insect with two pairs of large bright wings",
        train_images=8, val_images=9, turns=3, texture="plain",
        colours=((86, 40, 160), (90, 214, 232), BLACK),
        parts=(
            ellipse(0, -54, -36, 46, 46), ellipse(0, 54, -36, 46, 46), ellipse(0, -40, 44, 36, 42),
            ellipse(0, 40, 44, 36, 42), ellipse(1, -58, -38, 26, 26), ellipse(1, 58, -38, 26, 26),
            ellipse(1, -42, 48, 18, 22), ellipse(1, 42, 48, 18, 22), ellipse(2, 0, 0, 12, 78),
        ),
    ),
    Category(
        name="rocket", synset="rocket.n.01", synonyms=("rocket", "spaceship"),
        definition="a vehicle with fins that is driven by its exhaust",
        train_images=7, val_images=8, turns=3, texture="plain",
        colours=((214, 218, 226), RED, (60, 170, 220), YELLOW),
        parts=(
            polygon(3, -18, 60, 18, 60, 0, 100), polygon(1, -24, 20, -62, 72, -20, 62),
            polygon(1, 24, 20, 62, 72, 20, 62), ellipse(0, 0, -4, 34, 72), polygon(1, 0, -100, 28, -44, -28, -44),
            ellipse(2, 0, -12, 17, 17), box(1, -20, 50, 20, 64),
        ),
    ),
    Category(
        name="cherry", synset="cherry.n.03", synonyms=("cherry",),
        definition="a pair of small dark red fruits on long stems",
        train_images=6, val_images=8, turns=1, texture="plain",
        colours=((158, 12, 44), (70, 140, 46), (250, 160, 176)),
        parts=(
            polygon(1, 4, -90, 14, -90, -44, 40, -54, 36), polygon(1, 4, -90, 14, -90, 56, 40, 46, 40),
            polygon(1, 8, -92, 50, -100, 92, -66, 44, -58), ellipse(0, -50, 54, 44, 44), ellipse(0, 52, 58, 42, 42),
            ellipse(2, -64, 38, 11, 9), ellipse(2, 38, 42, 11, 9),
        ),
    ),
    Category(
        name="anchor", synset="anchor.n.01", synonyms=("anchor",),
        definition="a heavy hook that keeps a ship in its place",
        train_images=5, val_images=8, turns=1, texture="plain",
        colours=((24, 40, 84), (86, 108, 160)),
        parts=(
            ellipse(0, 0, 10, 88, 88), ellipse(HOLE, 0, -2, 66, 70), box(HOLE, -110, -100, 110, 22),
            ellipse(0, 0, -78, 24, 22), ellipse(HOLE, 0, -78, 11, 10), box(0, -11, -58, 11, 90),
            box(1, -50, -46, 50, -26), polygon(0, -100, 34, -78, 2, -52, 38), polygon(0, 100, 34, 78, 2, 52, 38),
        ),
    ),
    Category(
        name="magnet", synset="magnet.n.01", synonyms=("magnet", "horseshoe_magnet"),
        definition="a bent bar of iron that attracts iron",
        train_images=4, val_images=8, turns=12, texture="plain",
        colours=((222, 24, 36), (214, 220, 228)),
        parts=(
            ellipse(0, 0, 16, 84, 84), box(0, -84, -92, 84, 16), ellipse(HOLE, 0, 16, 40, 40),
            box(HOLE, -40, -110, 40, 16), box(1, -84, -92, -40, -44), box(1, 40, -92, 84, -44),
        ),
    ),
)

# fmt: on

CATEGORIES = FREQUENT + COMMON + RARE
"""In order of file: category ids are 1, 2, ..."""
