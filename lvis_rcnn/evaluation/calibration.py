"""Calibration after training: what is added to the logits, so that categories seen seldom in training score higher.

A detector trained on a long tail gives rare categories low scores. Both methods are one number a category, added to
its logit before the softmax; that of the background stays. ``model.postprocess`` adds it, before score threshold and
NMS.

NorCal (Pan et al. 2021, arXiv 2107.02170; tydpan/NorCal at 23e5ab6a, ``projects/NorCal/norcal/roi_heads.py``) divides
exp(logit) by n^gamma and normalises again; n counts the training images with the category:

    shift = -gamma log n

FRACAL (Alexandridis et al. 2025, arXiv 2410.11774; kostas1515/FRACAL at 3543fe46, ``fracal_bbox_head.py``) subtracts
the logarithm of the frequency f, relative to 1 / C of C categories, then divides the softmax by D^lambda and normalises
again; D is the fractal dimension (dataset.statistics). Dividing after the softmax is a shift before it:

    shift = (log(1 / C) - log f) / log(base) - lambda log D

A category that training does not show counts as one image or one object: nothing can be said of it, and no network
learns it. Neither is defined for classifiers that are no softmax over background and categories.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from lvis_rcnn.config.schema import Calibration
from lvis_rcnn.dataset.statistics import CategoryStatistics


def norcal(settings: Calibration, seen: CategoryStatistics) -> Float64[np.ndarray, " c"]:
    """The shifts of NorCal."""
    assert settings.gamma is not None
    shifts: np.ndarray = -settings.gamma * np.log(np.maximum(seen.image_counts, 1))
    return shifts


def fracal(settings: Calibration, seen: CategoryStatistics) -> Float64[np.ndarray, " c"]:
    """The shifts of FRACAL."""
    counts, total = seen.image_counts, seen.images
    if settings.frequency == "instances":
        counts, total = seen.instance_counts, int(seen.instance_counts.sum())
    of_frequency = -np.log(np.maximum(counts, 1) / total * len(counts)) / np.log(settings.base)
    shifts: np.ndarray = of_frequency - settings.dimension_exponent * np.log(seen.dimensions)
    return shifts


# A new one is also a value of ``method`` in config/schema.py.
METHODS: dict[str, Callable[[Calibration, CategoryStatistics], Float64[np.ndarray, " c"]]] = {
    "norcal": norcal,
    "fracal": fracal,
}


# What people call them with their parameters.
TITLES = {
    "norcal": "NorCal, gamma {0.gamma:g}",
    "fracal": "FRACAL{1}, lambda {0.dimension_exponent:g}, base {0.base:g}",
}


def title_of(settings: Calibration) -> str:
    """A calibration as tables and plots call it."""
    return TITLES[settings.method].format(settings, " by objects" if settings.frequency == "instances" else "")


def logit_shifts(settings: Calibration, seen: CategoryStatistics) -> Float64[np.ndarray, " c"]:
    """What is added to the logit of each category, while that of the background stays.

    Args:
        settings: a method with its parameters.
        seen: of the split that the network was trained on.
    """
    return METHODS[settings.method](settings, seen)
