"""The protocols by which detections can be scored beside AP@300, by their names. Needs no pydantic.

A protocol is a set of images, a cap and an overlap. Its name joins what differs from AP@300, as in ``fixed``,
``boundary``, ``boundary_fixed`` (the LVIS challenge of 2021), ``minival``, ``minival_fixed``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

MINIVAL = "minival"
"""The subset of images that are of COCO val2017, by their coco_url."""

FEW_PER_IMAGE = 300
"""AP counts at most so many detections of an image; AP-fixed is defined without a cap, and named by one as small."""


@dataclass(frozen=True)
class Protocol:
    """One protocol; that without anything is AP@300."""

    subset: str = ""
    """Name of a subset of the images; empty for all."""
    is_boundary: bool = False
    """Whether overlaps are also those of boundaries (Cheng et al. 2021, arXiv 2103.16562); of masks only."""
    is_fixed: bool = False
    """AP-fixed (Dave et al. 2021, arXiv 2102.01066): 10,000 detections of a category, however many of an image."""

    @property
    def name(self) -> str:
        """Its name in studies and files; empty for AP@300."""
        return "_".join(filter(None, (self.subset, "boundary" * self.is_boundary, "fixed" * self.is_fixed)))

    def title(self, kept: int) -> str:
        """Its name for people, where the detector keeps at most ``kept`` detections of an image."""
        cap = f" of {kept:,} an image" if self.is_fixed and kept <= FEW_PER_IMAGE else ""
        metric = f"{'Boundary ' * self.is_boundary}AP{'-fixed' * self.is_fixed}{cap}"
        return " ".join(filter(None, (self.subset, metric if self.is_boundary or self.is_fixed else "")))


def protocols_by_name(subsets: Iterable[str] = ()) -> dict[str, Protocol]:
    """Every protocol but AP@300, of all images, of minival and of ``subsets``.

    Raises:
        ValueError: the name of a subset is empty, begins with a hyphen, or is or ends in that of a protocol, or two
            subsets have the same.
    """
    subsets = tuple(subsets)
    for name in subsets:
        if not name or name.startswith("-"):
            raise ValueError(f"{name!r} is no name of a subset: begin it with a letter or a digit")
        if name.endswith(("_fixed", "_boundary")):
            raise ValueError(f"{name} would be taken for a protocol: give the subset a name with another end")
    every = [Protocol(*parts) for parts in product(("", MINIVAL, *subsets), (False, True), (False, True))][1:]
    found = {protocol.name: protocol for protocol in every}
    if len(found) < len(every):
        names = [protocol.name for protocol in every]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two protocols would be named {twice}: give each subset a name of its own")
    return found
