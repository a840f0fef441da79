"""Class names of weights are those of the annotations, at their places, in spellings that leave no doubt."""

import csv

import pytest

from lvis_rcnn.model.class_names import name_notes
from lvis_rcnn.system.cli import InputError
from tests.reference.golden_figures import GOLDEN


def test_a_corrected_spelling_is_a_note():
    with (GOLDEN / "lvis_v1_train_counts.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    spelt = [name.replace("stero", "stereo") for name in names]
    place = names.index("speaker_(stero_equipment)")
    told = f"class {place} is 'speaker_(stero_equipment)' in the file, 'speaker_(stereo_equipment)' in the annotations"
    assert name_notes("a.pth", names, names) == []
    assert name_notes("a.pth", names, spelt) == [told]


@pytest.mark.parametrize("number", [3, 4, 5, 1203])
@pytest.mark.parametrize("places", [(0, 1), (0, 2), (0, 1, 2)])
def test_a_class_at_another_place_is_refused_however_few_there_are(number, places):
    names = [f"thing{place}" for place in range(number)]
    swapped = list(names)
    for place, source in zip(places, [*places[1:], places[0]], strict=True):
        swapped[place] = names[source]
    first = f"class 0 is 'thing{places[1]}' in the file, 'thing0' in the annotations"
    with pytest.raises(InputError, match=f"a.pth: {len(places)} of {number} classes stand at other places.*: {first}"):
        name_notes("a.pth", swapped, names)


def test_a_class_that_moved_is_no_spelling_of_the_one_whose_place_it_took():
    with pytest.raises(
        InputError, match="1 of 4 classes stand at other places, the first: class 1 is 'cup' in the file"
    ):
        name_notes("a.pth", ["tea_cup", "cup", "bear", "kite"], ["cup", "mug", "bear", "kite"])


@pytest.mark.parametrize(
    "names",
    [
        "A a b",
        "+ - =",
        "C C++ C# D",
        "C++ C C# D",
        "-1 1 0",
        "1.5 15 x",
        "→ ← x",
        "😀 😢 x",
        "की का x",
        "dog_1 dog-1 dog1 x",
    ],
)
def test_swapped_classes_that_differ_in_signs_or_capitals_alone_are_refused(names):
    names = names.split()
    with pytest.raises(InputError, match=r"2 of . classes stand at other places"):
        name_notes("a.pth", [names[1], names[0], *names[2:]], names)


@pytest.mark.parametrize(
    ("theirs", "names"), [(["X-1", "X_1", "b"], ["x_1", "x-1", "b"]), (["x 1", "-1", "x1"], ["-1", "x_1", "x-1"])]
)
def test_swapped_classes_are_refused_in_spellings_that_two_share(theirs, names):
    with pytest.raises(InputError, match=r"2 of 3 classes stand at other places"):
        name_notes("a.pth", theirs, names)


def test_a_spelling_that_two_classes_share_is_none():
    with pytest.raises(InputError, match=r"2 of 3 class names differ, the first: class 0 is 'T.V' in the file"):
        name_notes("a.pth", ["T.V", "T:V", "cup"], ["TV", "T+V", "cup"])


@pytest.mark.parametrize("spelt", [["thing_1", "thing_0"], ["Thing 1", "thing 0"], ["THING-1", "Thing0"]])
def test_swapped_classes_are_refused_however_they_are_spelt(spelt):
    names = [f"thing {place}" for place in range(20)]
    with pytest.raises(InputError, match=f"2 of 20 classes stand at other places, the first: class 0 is '{spelt[0]}'"):
        name_notes("a.pth", [*spelt, *names[2:]], names)


@pytest.mark.parametrize(("number", "most"), [(1, 0), (2, 0), (3, 1), (19, 1), (20, 2), (1203, 120)])
def test_few_names_may_be_others_relative_to_all(number, most):
    names = [f"thing{place}" for place in range(number)]

    def renamed(count):
        return [f"object {place}" for place in range(count)] + names[count:]

    assert len(name_notes("a.pth", renamed(most), names)) == most
    with pytest.raises(
        InputError,
        match=rf"a.pth: {most + 1} of {number} class names differ, .* 'object.*; {most} may have other names",
    ):
        name_notes("a.pth", renamed(most + 1), names)


def test_all_names_may_be_spelt_otherwise():
    assert name_notes("a.pth", ["Tea Cup", "BEAR", "kite "], ["tea_cup", "bear", "kite"]) == [
        "3 class names differ in capital letters, blanks or signs, the first: "
        "class 0 is 'Tea Cup' in the file, 'tea_cup' in the annotations"
    ]
