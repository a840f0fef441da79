"""The 95 % interval of a mean over seeds: other images would move it, and so would other seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lvis_rcnn.accumulate import METRIC_NAMES
from lvis_rcnn.bootstrap import SEED, Interval, intervals, within_0_and_1
from lvis_rcnn.command import InputError
from lvis_rcnn.matches_file import read_resampled
from lvis_rcnn.results_file import KINDS, Kind


def metrics_of_runs(scored: Sequence[dict[str, Any]], kind: Kind) -> Float64[np.ndarray, "n m"]:
    """The metrics of each run, from its metrics.json; NaN where undefined."""
    return np.array([[metrics[kind][name] for name in METRIC_NAMES] for metrics in scored], dtype=np.float64)


def seed_noise(
    metrics: Float64[np.ndarray, "n m"], resamples: int, generator: np.random.Generator
) -> Float64[np.ndarray, "s m"]:
    """By how much a mean over ``n`` other seeds may be off, for each resample; nothing is known of it from one.

    Student's t with n - 1 degrees of freedom times the standard error: the standard deviation is itself estimated. The
    difference of two such means is Behrens and Fisher's. That images and seeds vary independently is an assumption,
    and a careful one: part of the spread of seeds is that of the images that they find hard.
    """
    n, shape = len(metrics), (resamples, metrics.shape[1])
    if n == 1:
        return np.zeros(shape)
    noise: np.ndarray = generator.standard_t(n - 1, shape) * metrics.std(axis=0, ddof=1) / np.sqrt(n)
    return noise


def mean_intervals(
    metrics: Float64[np.ndarray, "n m"], samples: Float64[np.ndarray, "n s m"]
) -> dict[str, Interval | None]:
    """Interval of each metric's mean over ``n`` runs; None where it is undefined.

    Args:
        metrics: of each run.
        samples: of each run, on the same resamples of the images.
    """
    noise = seed_noise(metrics, samples.shape[1], np.random.default_rng([SEED, samples.shape[1]]))
    means = [None if np.isnan(value) else float(value) for value in metrics.mean(axis=0)]
    found = intervals(dict(zip(METRIC_NAMES, means, strict=True)), samples.mean(axis=0) + noise)
    return {name: within_0_and_1(bounds) for name, bounds in found.items()}


def row_intervals(folders: Sequence[Path], scored: Sequence[dict[str, Any]]) -> dict[str, dict[str, Interval | None]]:
    """:func:`mean_intervals` of boxes and masks of a row with several seeds; empty where nothing tells.

    Args:
        folders: of each scored run, where its match results lie.
        scored: its metrics.json. Other annotations are other resamples, which say nothing together.
    """
    if len(scored) < 2 or len({metrics.get("annotations_sha256") for metrics in scored}) > 1:
        return {}
    try:
        kept = [
            read_resampled(folder / "matches.npz", metrics.get("detections_sha256", ""))
            for folder, metrics in zip(folders, scored, strict=True)
        ]
    except InputError:
        return {}  # a table is written of whatever exists
    shared = [kind for kind in KINDS if all(kind in samples for samples in kept)]
    if not shared:
        return {}
    resamples = min(len(samples[shared[0]]) for samples in kept)
    return {
        kind: mean_intervals(metrics_of_runs(scored, kind), np.array([samples[kind][:resamples] for samples in kept]))
        for kind in shared
    }
