"""How often each image is drawn in one epoch, so that rare categories are seen enough.

Repeat factor sampling (Gupta, Dollar and Girshick 2019, LVIS, arXiv 1908.03195v2, appendix B.2):

    1. f(c) = images that contain c / N           N = images that are trained on
    2. r(c) = max(1, (t / f(c)) ^ 0.5)            t = threshold: categories rarer than t are repeated (RFS)
    3. r(I) = max over the categories c in I of r(c)
    4. copies(I): r(I) rounded to a whole number

There are two roundings. ``ceil``, the default, is that of MMDetection's ClassBalancedDataset: an image of r(I) = 1.001
counts twice in every epoch. ``stochastic`` is the paper's and detectron2's: one more than the integer part
with the probability of the fraction, drawn in each epoch. The exponent is a setting; one half is the paper's, and 1 is
the linear form that detectron2 has as ``sqrt=False`` (02b5c4e2, data/samplers/distributed_sampler.py).

Instance-aware repeat factors (IRFS, arXiv 2305.08069) compare the geometric mean of two fractions with t in place of
f(c), so that of two categories in equally many images the one with fewer objects is repeated more:

    1. sqrt(f(c) b(c))                            b(c) = annotations of c / all annotations

As in MMDetection 3.3.0, N counts the images that have an annotation and no edge below 32 pixels, and a category is in
an image by the annotations that are trained on and by crowds (:func:`counted_annotations`); b(c) is of these
annotations in these images, too. An image with none of those is kept and drawn once. MMDetection 2.x counts all
annotations.
"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from lvis_rcnn.dataloader.seeds import copies_seed
from lvis_rcnn.dataset.checks import MAKE_PIXELS, NORMALISED, has_normalised_boxes
from lvis_rcnn.dataset.records import CROWD
from lvis_rcnn.dataset.store import AnnotationStore
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import parsed

# Epochs of the oversampled list in the schedule that MMDetection calls 2x.
EPOCHS_OF_2X = 24

MIN_EDGE_PX = 32


def ceil_copies(factors: Float64[np.ndarray, " n"], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The next whole number, the same in every epoch."""
    copies: np.ndarray = np.ceil(factors).astype(np.int64)
    return copies


def stochastic_copies(factors: Float64[np.ndarray, " n"], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The integer part, and one more with the probability of the fraction: right on average."""
    random = np.random.default_rng(copies_seed(seed, epoch))
    whole = np.floor(factors)
    copies: np.ndarray = (whole + (random.random(len(factors)) < factors - whole)).astype(np.int64)
    return copies


# A new one is also a value of ``rounding`` in config/schema.py, and in words of reporting/preflight_text.py.
ROUNDINGS: dict[str, Callable[[np.ndarray, int, int], Int64[np.ndarray, " n"]]] = {
    "ceil": ceil_copies,
    "stochastic": stochastic_copies,
}


def image_frequency(
    image_counts: Int64[np.ndarray, " c"], num_images: int, instance_counts: Int64[np.ndarray, " c"]
) -> Float64[np.ndarray, " c"]:
    """f(c): the fraction of images that contain the category."""
    return image_counts / num_images


def instance_aware_frequency(
    image_counts: Int64[np.ndarray, " c"], num_images: int, instance_counts: Int64[np.ndarray, " c"]
) -> Float64[np.ndarray, " c"]:
    """sqrt(f(c) b(c)): the geometric mean of the fractions of images and of annotations."""
    frequencies: np.ndarray = np.sqrt(image_counts / num_images * (instance_counts / instance_counts.sum()))
    return frequencies


# What is compared with the threshold. A new one is also a value of ``frequency`` in config/schema.py.
FREQUENCIES: dict[str, Callable[[np.ndarray, int, np.ndarray], Float64[np.ndarray, " c"]]] = {
    "image": image_frequency,
    "instance_aware": instance_aware_frequency,
}


@dataclass(frozen=True, eq=False)
class RepeatFactors:
    """Repeat factors of a training split, and what they are computed from."""

    threshold: float | None
    """None: no oversampling, every kept image once."""
    rounding: str
    """A row of ``ROUNDINGS``."""
    exponent: float
    frequency: str
    """A row of ``FREQUENCIES``."""
    images_without_annotation: int
    images_too_small: int
    image_counts: Int64[np.ndarray, " c"]
    """Kept images that contain the category."""
    instance_counts: Int64[np.ndarray, " c"]
    """Annotations of the category in kept images, those that ``image_counts`` counts images by."""
    instances_in_epoch: Float64[np.ndarray, " c"]
    """The same, each counted as often as its image is drawn in one epoch, on average."""
    category_frequencies: Float64[np.ndarray, " c"]
    """What is compared with the threshold."""
    category_factors: Float64[np.ndarray, " c"]
    image_factors: Float64[np.ndarray, " n"]
    """0 where the image is dropped."""

    @property
    def images_kept(self) -> int:
        """Images that are trained on."""
        return int((self.image_factors > 0).sum())

    @property
    def copies(self) -> Int64[np.ndarray, " n"]:
        """Largest number of times that each image is drawn in one epoch; with ``ceil`` the number of every epoch."""
        return ceil_copies(self.image_factors, 0, 0)

    @property
    def expected_epoch_length(self) -> float:
        """Images of one epoch, on average; an integer where every epoch has the same length."""
        return int(self.copies.sum()) if self.rounding == "ceil" else float(self.image_factors.sum())


def counted_annotations(store: AnnotationStore) -> Int64[np.ndarray, " A"]:
    """Indices of the annotations whose category counts: those that are trained on, and crowds.

    MMDetection 3.3.0 counts a crowd for ClassBalancedDataset (``CocoDataset.get_cat_ids``) and ignores it in training.
    """
    unused = store.untrained()
    del unused["marked iscrowd"]
    positions: np.ndarray = np.flatnonzero(~np.logical_or.reduce([*unused.values()]))
    return positions


def nothing_to_train_on(store: AnnotationStore, kept: Bool[np.ndarray, " n"]) -> InputError:
    """The error for a split without a usable annotation in the images that are kept; it names the causes."""
    unused = store.untrained()
    of_kept = np.repeat(kept, np.diff(store.annotation_offsets))
    counts = {reason: int(found.sum()) for reason, found in unused.items()}
    counts[f"in images with an edge below {MIN_EDGE_PX} pixels"] = int((~of_kept).sum())
    causes = [f"{number:,} {reason}" for reason, number in counts.items() if number]
    if has_normalised_boxes(store):
        causes, fix = [NORMALISED], MAKE_PIXELS
    else:
        fix = "correct the annotations (area in pixels, boxes as [x, y, width, height] in pixels) or name another split"
    return InputError(
        store.source_name,
        f"none of {len(of_kept):,} annotations can be trained on: {', '.join(causes) or 'there is none'}",
        allowed=f"area above 0, a box of a pixel or more in its image, edges of {MIN_EDGE_PX} pixels or more",
        fix=fix,
    )


def repeat_factors(
    store: AnnotationStore,
    threshold: float | None,
    rounding: str = "ceil",
    exponent: float = 0.5,
    frequency: str = "image",
) -> RepeatFactors:
    """Steps 1 to 3 for a training split.

    Invariant: one factor for each image of the store, in its order: 0 where it is dropped, otherwise at least 1.

    Args:
        store: the training split.
        threshold: in (0, 1]; None turns oversampling off.
        rounding: a row of ``ROUNDINGS``.
        exponent: above 0.
        frequency: a row of ``FREQUENCIES``.

    Raises:
        InputError: nothing is left to train on; the causes are named.
    """
    without_annotation = np.diff(store.annotation_offsets) == 0
    too_small = np.minimum(store.heights, store.widths) < MIN_EDGE_PX
    kept = ~(without_annotation | too_small)
    rows = counted_annotations(store)
    image_of = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))[rows]
    of_kept = kept[image_of]
    if not (of_kept & (store.marks[rows] != CROWD)).any():
        raise nothing_to_train_on(store, kept)
    category_of = store.labels[rows[of_kept]].astype(np.int64) - 1
    num_categories = len(store.categories)
    # One number for each (image, category), so that a category counts once per image. Sorting takes 0.1 s for LVIS v1,
    # np.unique, which hashes, 1 s.
    pairs = np.sort(image_of[of_kept] * num_categories + category_of)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    images, categories = np.divmod(pairs, num_categories)
    image_counts = np.bincount(categories, minlength=num_categories)
    instance_counts = np.bincount(category_of, minlength=num_categories)
    frequencies = FREQUENCIES[frequency](image_counts, int(kept.sum()), instance_counts)
    factors_of_categories = category_factors(frequencies, threshold, exponent)
    factors_of_images = kept.astype(np.float64)
    np.maximum.at(factors_of_images, images, factors_of_categories[categories])
    times_drawn = np.ceil(factors_of_images) if rounding == "ceil" else factors_of_images
    return RepeatFactors(
        threshold=threshold,
        rounding=rounding,
        exponent=exponent,
        frequency=frequency,
        images_without_annotation=int(without_annotation.sum()),
        images_too_small=int(too_small.sum()),
        image_counts=image_counts,
        instance_counts=instance_counts,
        # np.bincount returns integers where there is nothing to add up.
        instances_in_epoch=np.bincount(category_of, times_drawn[image_of[of_kept]], num_categories).astype(np.float64),
        category_frequencies=frequencies,
        category_factors=factors_of_categories,
        image_factors=factors_of_images,
    )


def category_factors(
    frequencies: Float64[np.ndarray, " c"], threshold: float | None, exponent: float = 0.5
) -> Float64[np.ndarray, " c"]:
    """Step 2; a category without images has factor 1.

    The order of operations is MMDetection's, so that ceil sees the same last bits; a power of one half may differ from
    the square root in the last bit.
    """
    factors = np.ones(len(frequencies))
    if threshold is not None:
        seen = frequencies > 0
        ratios = threshold / frequencies[seen]
        factors[seen] = np.maximum(1.0, np.sqrt(ratios) if exponent == 0.5 else ratios**exponent)
    return factors


def why_none(factors: RepeatFactors) -> str | None:
    """Why no image is repeated, or None where some are."""
    if (factors.copies > 1).any():
        return None
    if factors.threshold is None:
        return "oversampling is off (no threshold)"
    rarest = int(factors.image_counts[factors.image_counts > 0].min())
    lowest = factors.category_frequencies[factors.image_counts > 0].min()
    even = f"even the rarest category is in {rarest} of {factors.images_kept} images, a fraction of {lowest:.3g}"
    if factors.frequency != "image":
        even = f"the lowest {factors.frequency} frequency of a category is {lowest:.3g}"
    return f"{even}; only categories below the threshold {factors.threshold:g} are repeated"


def summary(factors: RepeatFactors) -> dict[str, Any]:
    """The figures of summary.json."""
    return {
        "threshold": factors.threshold,
        "rounding": factors.rounding,
        "exponent": factors.exponent,
        "frequency": factors.frequency,
        "images": len(factors.image_factors),
        "images_kept": factors.images_kept,
        "images_dropped": len(factors.image_factors) - factors.images_kept,
        "images_without_annotation": factors.images_without_annotation,
        "images_too_small": factors.images_too_small,
        "expected_epoch_length": factors.expected_epoch_length,
        # The published schedule; what a study's own schedule sees is on its preflight page.
        "images_seen_in_2x": EPOCHS_OF_2X * factors.expected_epoch_length,
        "repeated_images": int((factors.image_factors > 1).sum()),
        "instances": int(factors.instance_counts.sum()),
        "instances_in_epoch": float(factors.instances_in_epoch.sum()),
        "repeated_categories": int((factors.category_factors > 1).sum()),
        "categories_without_image": int((factors.image_counts == 0).sum()),
        "largest_factor": float(factors.category_factors.max()),
        "why_none": why_none(factors),
    }


@dataclass(frozen=True, eq=False)
class Sampling:
    """What the sample stream needs of the repeat factors."""

    factors: Float64[np.ndarray, " n"]
    """In the order of the store; 0 for images that are dropped."""
    rounding: str
    """A row of ``ROUNDINGS``."""


def read_sampling(folder: Path) -> Sampling:
    """Factors, exact to the last digit, and rounding of a training split, as the step repeat_factors wrote them.

    Raises:
        InputError: the tables are missing, damaged or contradict themselves.
    """
    try:
        with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
            rows = [(float(row["factor"]), int(row["copies"])) for row in csv.DictReader(file)]
        # Other tools may list a factor for images that they drop.
        if any(not math.isfinite(factor) or math.ceil(factor) != copies for factor, copies in rows):
            raise ValueError("copies are not those of the factors")
        if not any(copies for _, copies in rows) or any(factor < 1 and factor != 0 for factor, _ in rows):
            raise ValueError("no image is drawn, or one less than once")
        rounding = parsed(json.loads, (folder / "summary.json").read_bytes())["rounding"]
        if rounding not in ROUNDINGS:
            raise ValueError(f"unknown rounding {rounding!r}")
        return Sampling(np.array([factor for factor, _ in rows]), rounding)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, OSError):
            reason = f"{Path(error.filename or folder).name}: {error.strerror}"
        fix = "write it again with python -m lvis_rcnn repeat_factors"
        raise InputError(str(folder), f"no readable tables of repeat factors: {reason}", fix=fix) from None
