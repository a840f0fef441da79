"""The test run itself: wrong shapes fail in it, wherever a signature names them."""

import numpy as np
import pytest
from jaxtyping import Float, jaxtyped

from lvis_rcnn.evaluation.uncertainty import variances
from tests.helpers.shapes import checked

ROWS = Float[np.ndarray, "n 4"]


@jaxtyped(typechecker=checked)
def paired(boxes: dict[str, list[ROWS] | None], scores: Float[np.ndarray, " n"]) -> int:
    return len(scores)


def test_a_wrong_shape_at_any_depth_fails():
    good, bad = np.zeros((2, 4)), np.zeros((3, 4))
    assert paired({"a": [good, good], "b": None}, np.zeros(2)) == 2
    for boxes in ({"a": [good, bad]}, {"a": [good], "b": [good, good[:, :3]]}):
        with pytest.raises(TypeError, match="Type-check error"):
            paired(boxes, np.zeros(2))


def test_the_package_is_checked_and_functions_without_shapes_are_left_alone():
    with pytest.raises(TypeError, match="Type-check error"):
        variances("no array")

    def plain(names: list[str]) -> int:
        return len(names)

    assert checked(plain) is plain
