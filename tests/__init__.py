"""Tests; pytest's option --jaxtyping-packages finds the checker of shapes here."""

from tests.helpers.shapes import checked

__all__ = ["checked"]
