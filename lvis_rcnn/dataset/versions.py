"""The versions of LVIS, and which one a file is, by its categories: names of files cannot be trusted.

v0.5 left the official page, and people have renamed v1 to v0.5 since (lvis-api issue 23): its 1203 categories in place
of 1230, numbered otherwise under the same names, train to nonsense without an error.

A new version is a row of ``VERSIONS``; the kinds of published models (config.zoo) and what names may claim follow from
it. Beside it, where they exist: its files in configs/zoo/lvis.yaml, its published models in
configs/zoo/mmdetection.yaml (kind ``lvis_VERSION``), and a study, configs/lvis_VERSION.yaml.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


def frequency_group(image_count: int) -> Literal["r", "c", "f"]:
    """LVIS's bins over training images (Gupta, Dollar, Girshick 2019, section 4): at most 10 rare, 100 common."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


class HasSynset(Protocol):
    """What tells categories apart; dataset.records.Category, without what its import costs each job of Snakemake."""

    @property
    def id(self) -> int:
        """Of the annotation file."""

    @property
    def synset(self) -> Any:
        """Of WordNet, as ``cup.n.01``."""


@dataclass(frozen=True)
class LvisVersion:
    """One version: its categories and the contents of its full splits."""

    name: str
    categories_sha256: str
    """:func:`categories_digest` of its categories."""
    groups: tuple[int, int, int]
    """Rare, common and frequent categories."""
    splits: Mapping[str, tuple[int, int | None]]
    """Images and annotations of each full split; None where no source gives the number."""
    minival: int
    """Images of val that are of COCO val2017: of v0.5 all, of v1 as the card of winvoker/lvis on Hugging Face says."""


# Categories, groups and sums of annotations follow from the per-class counts of both training files; image counts are
# those of the LVIS paper's sets and of lvisdataset.org.
VERSIONS = (
    LvisVersion(
        "v0.5",
        "76c9b8774e2c5fd9c2a649a5b38f5e3c7bbdbc8f2224fb1756e4be0b61dafe6a",
        (454, 461, 315),
        {"train": (57_263, 693_958), "val": (5_000, None)},
        5_000,
    ),
    LvisVersion(
        "v1",
        "8168126b4eca7e509538d9114fbbf1326612c85d4a1dc2b6e1cd3f5b28189b12",
        (337, 461, 405),
        {"train": (100_170, 1_270_141), "val": (19_809, 244_707)},
        4_809,
    ),
)


def categories_digest(categories: Iterable[HasSynset]) -> str:
    """Hex SHA-256 of the lines ``id synset``, sorted by id; the order of the file does not matter."""
    lines = sorted((category.id, category.synset) for category in categories)
    return hashlib.sha256("\n".join(f"{number} {synset}" for number, synset in lines).encode()).hexdigest()


def version_of(categories: Iterable[HasSynset]) -> LvisVersion | None:
    """The version that has exactly these categories; None for any other dataset."""
    digest = categories_digest(categories)
    return next((version for version in VERSIONS if version.categories_sha256 == digest), None)


def claimed_version(text: str) -> str | None:
    """The version in a name: ``lvis_v0.5_train.json`` and ``lvis_v05`` are v0.5, ``LVIS-v1.0`` is v1; None without."""
    found = re.search(r"lvis[-_]?(v\d+(?:\.\d+)?)", text.lower())
    names = (version.name for version in VERSIONS)
    return next((x for x in names if found and found[1] in (x, x.replace(".", ""), f"{x}.0")), None)


def unlike_a_full_split(version: LvisVersion, counts: Mapping[str, int]) -> Iterator[str]:
    """How a file of this version differs from each of its full splits, as phrases."""
    groups = tuple(counts[f"{group}_categories"] for group in ("rare", "common", "frequent"))
    if groups != version.groups:
        yield f"{slashed(groups)} rare/common/frequent categories; LVIS {version.name} has {slashed(version.groups)}"
    split = next((split for split, (images, _) in version.splits.items() if images == counts["images"]), None)
    if split is None:
        known = ", ".join(f"{images:,} in {name}" for name, (images, _) in version.splits.items())
        yield f"{counts['images']:,} images; LVIS {version.name} has {known}"
        return
    expected = version.splits[split][1]
    if expected is not None and counts["annotations"] != expected:
        yield f"{counts['annotations']:,} annotations; {split} of LVIS {version.name} has {expected:,}"


def slashed(numbers: Sequence[int]) -> str:
    """``454/461/315``."""
    return "/".join(map(str, numbers))
