"""Score detections by the LVIS protocol: what metrics.json holds, and the match results behind it.

What metrics.json holds is described in the step that writes it, ``lvis_rcnn evaluate``.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64

from lvis_rcnn import __version__
from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.config.protocols import Protocol, protocols_by_name
from lvis_rcnn.dataset.lookup import positions
from lvis_rcnn.evaluation.average_precision import (
    RECALLS,
    Outcomes,
    Scores,
    mean_curves,
)
from lvis_rcnn.evaluation.bootstrap import SEED, resampled_metrics, resampling_of
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.matches import MatchesFile
from lvis_rcnn.evaluation.official import difference, official_scores
from lvis_rcnn.evaluation.protocols import DETECTIONS_PER_CATEGORY, score_protocols
from lvis_rcnn.evaluation.results import KINDS, DetectionSet, Kind
from lvis_rcnn.evaluation.subsets import images_of_subset
from lvis_rcnn.evaluation.uncertainty import (
    LEVEL,
    METHOD,
    Sampled,
    intervals,
    metrics_of_runs,
    resamples_text,
    uncapped,
)
from lvis_rcnn.system.cli import InputError, log

Official = Literal["auto", "yes", "no"]

# The lvis package takes 10 GB and ten minutes for so many; above that the check is not automatic.
MOST_IMAGES_CHECKED = 5000


@dataclass(frozen=True)
class Scoring:
    """How detections are scored; InputError for a value that is not allowed."""

    detections_per_image: int = 300
    """At most so many of an image count, the best over all categories together; 1 to 300."""
    official: Official = "no"
    """Whether the lvis package is run as well; auto: up to 5,000 images."""
    resamples: int = 0
    """Number of resamples of the images, for intervals; 0 for none."""
    protocols: Sequence[Protocol | str] = ()
    """By which they are scored as well, or their names, such as fixed (config.protocols)."""
    subset_files: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    """File of the image ids of each subset of ``protocols`` but minival, by its name."""
    processes: int = 1
    """Processes that compare masks, 1 to 256; the value does not depend on it."""
    kinds: Sequence[Kind] = ()
    """What is scored; empty for all that annotations and detections have."""

    def __post_init__(self) -> None:
        """Check all values; InputError names the first that is not allowed."""
        for name, least, most in WHOLE_NUMBERS:
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise not_allowed(name, value, f"a whole number, {least:,} to {most:,}")
        if self.official not in get_args(Official):
            raise not_allowed("official", self.official, " or ".join(get_args(Official)))
        if not is_list_of(self.kinds, [*KINDS]):
            raise not_allowed("kinds", self.kinds, f"a list of {', '.join(KINDS)}")
        known = known_protocols(self.subset_files)
        if not is_list_of(self.protocols, [*known, *known.values()]):
            raise not_allowed("protocols", self.protocols, f"a list of {', '.join(known)}")

    @property
    def further(self) -> tuple[Protocol, ...]:
        """``protocols`` without names."""
        known = known_protocols(self.subset_files)
        return tuple(known[one] if isinstance(one, str) else one for one in self.protocols)


# Those of the options of `lvis_rcnn evaluate`.
WHOLE_NUMBERS = (("detections_per_image", 1, 300), ("resamples", 0, MOST_RESAMPLES), ("processes", 1, 256))


def not_allowed(name: str, value: Any, allowed: str) -> InputError:
    """The error for a field of :class:`Scoring`."""
    return InputError(f"Scoring.{name}", f"is {value!r:.80}", allowed=allowed)


def is_list_of(values: Any, allowed: Sequence[Any]) -> bool:
    """Whether ``values`` is a list or a tuple of what is ``allowed``."""
    return isinstance(values, list | tuple) and all(value in allowed for value in values)


def known_protocols(subset_files: Any) -> dict[str, Protocol]:
    """All protocols by their names, those of subsets too; InputError for a subset without a name or a path."""
    paths = subset_files.items() if isinstance(subset_files, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(path, str | os.PathLike) for name, path in paths):
        raise not_allowed("subset_files", subset_files, "the path of a text file of image ids, by each subset's name")
    try:
        return protocols_by_name(subset_files)
    except ValueError as error:
        raise InputError("Scoring.subset_files", str(error)) from None


@dataclass(frozen=True, eq=False)
class Annotations:
    """Ground truth and the file that it is from."""

    truth: GroundTruth
    text: bytes
    """Of the file, for the lvis package."""
    sha256: str
    """Of the file."""
    rules: str = ""
    """What its reading adds to the name of the protocol."""


def score_detections(
    annotations: Annotations, detection_set: DetectionSet, scoring: Scoring
) -> tuple[dict[str, Any], MatchesFile]:
    """The value of metrics.json, and the match results.

    Raises:
        InputError: the detections lack a kind that was asked for, or the lvis package gets another result.
    """
    truth = annotations.truth
    only = only_kind(scoring.kinds, truth, detection_set)
    require_masks_for_boundaries(detection_set, scoring)
    files = {name: Path(file) for name, file in scoring.subset_files.items()}
    subsets = {
        one.subset: images_of_subset(truth, one.subset, files.get(one.subset)) for one in (Protocol(), *scoring.further)
    }
    every = scores_by_protocol(truth, detection_set, scoring, subsets)
    scores = every.pop(Protocol())
    checked = check_officially(annotations, detection_set, scores, scoring)
    others = {one: match_results(annotations, detection_set, of_one, scoring) for one, of_one in every.items()}
    sections = {
        one.name: protocol_section(one, truth, detection_set, subsets[one.subset], every[one], others[one], scoring)
        for one in every
    }
    named = {one.name: of_subset(kept, truth, one.subset, subsets[one.subset]) for one, kept in others.items()}
    kept = replace(match_results(annotations, detection_set, scores, scoring), protocols=named)
    record: dict[str, Any] = {
        "format": "lvis_rcnn.metrics",
        "version": 1,
        **{kind: scores[kind].metrics for kind in scores},
        **({"intervals": all_intervals(kept, scores)} if scoring.resamples else {}),
        **({"protocols": sections} if sections else {}),
        **({"fixed": fixed_alone(sections["fixed"])} if "fixed" in sections else {}),
        "protocol": protocol_line(annotations, scoring.detections_per_image, checked),
        "scorer": f"lvis_rcnn {__version__}",
        "official": checked,
        "unknown_category_detections": unknown_categories(truth, detection_set),
        **({"only": only} if only else {}),
        **what_was_scored(truth, detection_set, scores, kept),
        "versions": {name: version(name) for name in ("lvis", "pycocotools", "numpy") if is_installed(name)},
        "per_category": per_category(truth, scores),
        "curves": all_curves(truth, scores),
    }
    return record, kept


def scores_by_protocol(
    truth: GroundTruth, detection_set: DetectionSet, scoring: Scoring, subsets: Mapping[str, Bool[np.ndarray, " n"]]
) -> dict[Protocol, dict[Kind, Scores]]:
    """The scores of each kind, by AP@300 first, then by the further protocols."""
    every: dict[Protocol, dict[Kind, Scores]] = {one: {} for one in (Protocol(), *scoring.further)}
    limits = scoring.detections_per_image, scoring.processes
    for one, kind, of_kind in score_protocols(truth, detection_set, tuple(every), subsets, *limits):
        every[one][kind] = of_kind
    return every


def of_subset(kept: MatchesFile, truth: GroundTruth, subset: str, inside: Bool[np.ndarray, " n"]) -> MatchesFile:
    """The match results with the digest of the images that are ``inside``, where they are a subset."""
    digest = hashlib.sha256(truth.image_ids[inside].tobytes()).hexdigest() if subset else ""
    return replace(kept, images_sha256=digest)


def unknown_categories(truth: GroundTruth, detection_set: DetectionSet) -> int:
    """How many detections are of categories that the annotations do not have, which is logged."""
    unknown = int((positions(truth.category_ids, detection_set.category_ids) < 0).sum())
    if unknown:
        log.info("%d detections of categories that the annotations do not have are left out", unknown)
    return unknown


def all_curves(truth: GroundTruth, scores: dict[Kind, Scores]) -> dict[Kind, Any]:
    """The curves of each kind as metrics.json holds them."""
    recall = RECALLS.round(2).tolist()
    return {kind: {"recall": recall, **mean_curves(of.precision, truth.frequencies)} for kind, of in scores.items()}


def require_masks_for_boundaries(detection_set: DetectionSet, scoring: Scoring) -> None:
    """Raise InputError where boundary AP is asked for and no mask is scored."""
    if "segm" not in detection_set.kinds and any(one.is_boundary for one in scoring.further):
        what = "masks are not scored, and boundary AP is of masks"
        raise InputError(detection_set.where, what, fix="score masks, or leave boundary AP out")


def match_results(
    annotations: Annotations, detection_set: DetectionSet, scores: dict[Kind, Scores], scoring: Scoring
) -> MatchesFile:
    """What matches.npz holds."""
    truth, resamples = annotations.truth, scoring.resamples
    outcomes = {kind: scores[kind].outcomes for kind in scores}
    return MatchesFile(
        annotations_sha256=annotations.sha256,
        detections_sha256=detection_set.sha256,
        detections_per_image=scoring.detections_per_image,
        category_ids=truth.category_ids,
        frequencies=truth.frequencies,
        outcomes=outcomes,
        resampled=all_resampled(outcomes, truth.frequencies, resamples) if resamples else {},
    )


def only_kind(asked: Sequence[Kind], truth: GroundTruth, detection_set: DetectionSet) -> dict[str, str]:
    """The one kind that is scored, and why not both; empty where both are.

    Raises:
        InputError: the detections lack a kind that was asked for, or have none that the annotations have.
    """
    lacking = set(asked) - set(detection_set.kinds)
    if lacking:
        what = f"the detections have no {' and no '.join(sorted(KINDS[kind] for kind in lacking))}"
        raise InputError(detection_set.where, what, fix="ask for another kind: --kinds")
    if not detection_set.kinds:
        what, fix = "has masks alone, and the annotations have none", "write boxes, or name annotations with masks"
        raise InputError(detection_set.where, what, fix=fix)
    if len(detection_set.kinds) == len(KINDS):
        return {}
    (kind,) = detection_set.kinds
    other = "a mask" if kind == "bbox" else "a box"
    if asked:
        why = "asked for by --kinds"
    else:
        why = f"no detection has {other}" if truth.has_masks else "no annotation has a mask (segmentation)"
    log.info("scoring %s only: %s", kind, why)
    return {"kind": kind, "why": why}


def what_was_scored(
    truth: GroundTruth, detection_set: DetectionSet, scores: dict[Kind, Scores], kept: MatchesFile
) -> dict[str, Any]:
    """Counts and digests of the annotations and the detections."""
    return {
        "images": len(truth.image_ids),
        "detections": len(detection_set),
        "detections_without_mask": 0 if detection_set.has_mask is None else int((~detection_set.has_mask).sum()),
        "judged_detections": {kind: len(scores[kind].outcomes.images) for kind in scores},
        "detections_per_image": kept.detections_per_image,
        "annotations_sha256": kept.annotations_sha256,
        "detections_sha256": kept.detections_sha256,
    }


def all_resampled(
    outcomes: dict[Kind, Outcomes], frequencies: Sequence[str], resamples: int
) -> dict[Kind, Float64[np.ndarray, "s m"]]:
    """The metrics of each kind in resamples of the images."""
    samples: dict[Kind, np.ndarray] = {}
    for kind, of_kind in outcomes.items():
        log.info("resampling the images for %s: %s", kind, resamples_text(resamples))
        samples[kind] = resampled_metrics(resampling_of(of_kind, frequencies), resamples, SEED)
    return samples


def all_intervals(kept: MatchesFile, scores: dict[Kind, Scores]) -> dict[str, Any]:
    """The intervals that metrics.json holds."""
    resamples = len(next(iter(kept.resampled.values())))
    record: dict[str, Any] = {"resamples": resamples, "seed": SEED, "level": LEVEL, "method": METHOD}
    for kind, samples in kept.resampled.items():
        metrics = metrics_of_runs([{kind: scores[kind].metrics}], kind)
        record[kind] = intervals(Sampled(metrics, samples[None]))
    return record


def protocol_section(
    protocol: Protocol,
    truth: GroundTruth,
    detection_set: DetectionSet,
    inside: Bool[np.ndarray, " n"],
    scores: dict[Kind, Scores],
    kept: MatchesFile,
    scoring: Scoring,
) -> dict[str, Any]:
    """What metrics.json holds of a further protocol, of the images that are ``inside``."""
    named = uncapped if protocol.is_fixed else str
    images = positions(truth.image_ids, detection_set.image_ids)
    rows = inside[images]
    most = int(np.bincount(images[rows], minlength=1).max())
    record: dict[str, Any] = {
        "title": protocol.title(most),
        "protocol": section_line(protocol, truth, detection_set, inside, rows, most, scoring.detections_per_image),
        "images": int(inside.sum()),
        **{kind: {named(name): value for name, value in of.metrics.items()} for kind, of in scores.items()},
        "per_category": per_category(truth, scores),
    }
    if scoring.resamples:
        found = all_intervals(kept, scores)
        of_kinds = {kind: {named(name): bounds for name, bounds in found[kind].items()} for kind in scores}
        record["intervals"] = {**found, **of_kinds}
    return record


def section_line(
    protocol: Protocol,
    truth: GroundTruth,
    detection_set: DetectionSet,
    inside: Bool[np.ndarray, " n"],
    rows: Bool[np.ndarray, " d"],
    most: int,
    detections_per_image: int,
) -> str:
    """What a protocol counts, for a person; ``most`` detections of an image are there, those of ``rows`` count."""
    parts = []
    if protocol.subset:
        parts.append(f"{protocol.subset}: {inside.sum():,} of {len(inside):,} images")
    if protocol.is_boundary:
        parts.append(
            "Boundary AP (Cheng et al. 2021): the smaller of the IoU of masks and of boundaries, which are as wide as"
            " 0.02 of the image's diagonal"
        )
    cap = f"{detections_per_image} detections an image"
    parts.append(fixed_line(truth, detection_set, rows, most) if protocol.is_fixed else cap)
    return "; ".join(parts)


def fixed_alone(section: dict[str, Any]) -> dict[str, Any]:
    """AP-fixed of all images as ``metrics.json`` had it before there were other protocols."""
    return {key: section[key] for key in (*KINDS, "protocol") if key in section}


def fixed_line(truth: GroundTruth, detection_set: DetectionSet, rows: Bool[np.ndarray, " d"], most: int) -> str:
    """The limits of AP-fixed, and how far the detections reach them: a detector that keeps few per image may not."""
    of_categories = np.bincount(
        positions(truth.category_ids, detection_set.category_ids[rows]) + 1, minlength=len(truth.category_ids) + 1
    )[1:]
    fewer = int((of_categories < DETECTIONS_PER_CATEGORY).sum())
    return (
        f"AP-fixed (Dave et al. 2021): at most {DETECTIONS_PER_CATEGORY:,} detections of a category over all images, no"
        f" cap on an image; the detections hold {most} of an image at most, and fewer than"
        f" {DETECTIONS_PER_CATEGORY:,} of {fewer:,} of {len(of_categories):,} categories"
    )


def per_category(truth: GroundTruth, scores: dict[Kind, Scores]) -> list[dict[str, Any]]:
    """AP of every category in the order of ids; None where it has no object."""
    objects = next(iter(scores.values())).num_objects[:, 0].tolist()
    ids, labels = truth.category_ids.tolist(), truth.labels.tolist()
    return [
        {
            "id": ids[place],
            "label": labels[place],
            "name": truth.names[place],
            "frequency": truth.frequencies[place],
            "objects": objects[place],
            **{kind: scores[kind].category_ap[place] for kind in scores},
        }
        for place in range(len(ids))
    ]


def check_officially(
    annotations: Annotations, detection_set: DetectionSet, scores: dict[Kind, Scores], scoring: Scoring
) -> dict[str, Any]:
    """Run the lvis package where that is wanted; returns what metrics.json says about it.

    Raises:
        InputError: it gets another result.
    """
    official, num_images, installed = scoring.official, len(annotations.truth.image_ids), is_installed("lvis")
    if official == "yes" and not installed:
        fix = "install it, as python -m pip install lvis, or leave this option out"
        raise InputError("--official yes", "the lvis package is not installed", fix=fix)
    package = f"lvis {version('lvis')}" if installed else "lvis"
    if official == "no" or not installed or (official == "auto" and num_images > MOST_IMAGES_CHECKED):
        reason = "lvis is not installed" if not installed else f"more than {MOST_IMAGES_CHECKED:,} images"
        return {"package": package, "agrees": None, "why": f"not run ({'not wanted' if official == 'no' else reason})"}
    for kind, ours in scores.items():
        log.info("scoring %s by the official package", kind)
        other = difference(ours, official_scores(annotations.text, detection_set, kind, scoring.detections_per_image))
        if other:
            fix = "report it with both files; --official no skips this check"
            raise InputError(f"{detection_set.where}: {kind}", f"{package} disagrees: {other}", fix=fix)
    return {"package": package, "agrees": True}


def is_installed(package: str) -> bool:
    """Whether there is such a package; lvis is none that the scorer needs."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def protocol_line(annotations: Annotations, detections_per_image: int, official: dict[str, Any]) -> str:
    """The protocol and the scorer, for a person and for the table; part of metrics.json, so its wording is fixed."""
    check = "agrees in every bit" if official["agrees"] else official["why"]
    return (
        f"LVIS{annotations.rules}, {detections_per_image} detections an image, mask sizes from masks;"
        f" scored by lvis_rcnn {__version__}, {official['package']} {check}"
    )
