"""Class names of weights beside those of annotations: the same in other spellings, or classes at other places."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from lvis_rcnn.system.cli import InputError

# So large a part of the class names may differ: spelling was corrected (stero_equipment). More are other categories.
MOST_RENAMED = 0.1


def name_notes(where: str, classes: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """How the class names of a file differ from those of the annotations, in whose order they must be.

    Args:
        where: the file.
        classes: its names; None where it has none.
        names: those of the annotations, as many.

    Raises:
        InputError: a class stands at another place in the annotations, or more than ``MOST_RENAMED`` of the names (one
            where there are three to ten, none of fewer) are none of theirs, in no spelling.
    """
    if classes is None:
        return ["the file does not name its classes: make sure that they are those of the annotations, in their order"]
    found: dict[str, list[str]] = {"spelt": [], "moved": [], "other": []}
    known = [(spelling, places_of(map(spelling, names))) for spelling in (str, small, plainly, letters)]
    for place, (theirs, ours) in enumerate(zip(classes, names, strict=True)):
        if theirs != ours:
            # In the strictest spelling that tells where it is one of their names, or at least that it is not this one.
            there = (places.get(spelling(theirs)) for spelling, places in known if spelling(theirs))
            own: list[int] = next((found for found in there if found and (len(found) == 1 or place not in found)), [])
            kind = "other" if not own else "spelt" if own == [place] else "moved"
            found[kind].append(f"class {place} is {theirs!r} in the file, {ours!r} in the annotations")
    spelt, moved, other = found.values()
    most = max(int(MOST_RENAMED * len(names)), int(len(names) > 2))
    if moved or len(other) > most:
        what = f"{len(moved)} of {len(names)} classes stand at other places, the first: {moved[0]}" if moved else ""
        raise InputError(
            where,
            what or f"{len(other)} of {len(names)} class names differ, the first: {other[0]}",
            allowed=f"the categories of the annotations, in their order; {most} may have other names",
            fix="name the file, or the annotations, of the same dataset version",
        )
    count = f"{len(spelt)} class names differ in capital letters, blanks or signs, the first: "
    return [count + one for one in spelt[:1]] + other


def small(name: str) -> str:
    """A class name without capital letters."""
    return unicodedata.normalize("NFKC", name.casefold()).strip()


def plainly(name: str) -> str:
    """A class name without capital letters, and with blanks for hyphens and underscores."""
    return " ".join(re.sub(r"[-_]", " ", small(name)).split())


def letters(name: str) -> str:
    """The letters and figures of a class name, without capitals."""
    return "".join(filter(str.isalnum, plainly(name)))


def places_of(names: Iterable[str]) -> dict[str, list[int]]:
    """The places of each name."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places
