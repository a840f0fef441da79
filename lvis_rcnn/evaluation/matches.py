"""Match results on disk, from which any resample of the images can be scored without matching again.

An uncompressed NumPy archive (bytes depend on nothing but the arrays; the archive's CRC finds damage) of

    format                str     "lvis_rcnn.matches"
    version               i64     2
    annotations_sha256    str     digest of the annotation file
    detections_sha256     str     digest of the detections, as in metrics.json
    detections_per_image  i64     how many of an image were judged at most
    num_images            i64     images are counted in the order of their ids
    category_ids          i64[c]  ascending
    frequencies           str     r, c or f of each category, in one word

and of each kind, bbox or segm, with ``d`` judged detections by category, descending score, image and place in the file,
``h`` of them with a find, and ``g`` objects by category and image:

    KIND_starts           i64[c+1]  first detection of each category, and their number
    KIND_images           i32[d]    position of each detection's image
    KIND_flags            u8[d]     bits 0 to 3: wrong if it finds nothing, of any size, as a small, medium, large one;
                                    bit 4: category, score and image are those of the detection before
    KIND_found_by         i32[h]    the detection
    KIND_matched          u8[h,5]   bits threshold * 4 + size, lowest first: it finds an object
    KIND_on_ignored       u8[h,5]   the same: the object does not count, nor does the detection
    KIND_object_starts    i64[c+1]  first object of each category, and their number
    KIND_object_images    i32[g]
    KIND_object_flags     u8[g]     bits 0 to 3: counts, of any size, as a small, medium, large one
    KIND_resampled        f64[s,m]  metrics of the first s resamples of the images, with seed 0; NaN where undefined

That is 5 bytes a judged detection, 14 a find and 5 an object: about 20 MB a kind for LVIS v1 val. Resamples are the
same of all runs on the same images, so that those of several runs can be paired.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from numpy.lib.npyio import NpzFile

from lvis_rcnn.evaluation.average_precision import AREA_RANGES_PX, METRIC_NAMES, THRESHOLDS, Hits, Matches
from lvis_rcnn.evaluation.ground_truth import Truth
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import atomic_file


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcomes of boxes or masks: ``d`` detections and ``g`` objects, by category, detections by descending score.

    Equal scores stand in the order of images, inside an image in that of the file.
    """

    num_images: int
    starts: Int64[np.ndarray, " bounds"]
    """First detection of each category, and their number."""
    images: Int64[np.ndarray, " d"]
    """Position of each detection's image."""
    tied: Bool[np.ndarray, " d"]
    """Whether a detection has category, score and image of the one before it."""
    counts_alone: Bool[np.ndarray, "d z"]
    """Whether a detection is a false positive where it finds nothing; else it does not count."""
    hits: Hits
    """Those that found an object, in their order, at each threshold and size."""
    object_starts: Int64[np.ndarray, " bounds"]
    """First object of each category, and their number."""
    object_images: Int64[np.ndarray, " g"]
    object_counts: Bool[np.ndarray, "g z"]
    """Whether an object is of a size, and not ignored."""


def outcomes_of(matches: Matches, truth: Truth) -> Outcomes:
    """What is kept of who found what."""
    judged, hits = matches.judged, matches.hits
    order = np.argsort(hits.detections)
    bounds = np.arange(len(truth.category_ids) + 1)
    return Outcomes(
        num_images=len(truth.image_ids),
        starts=np.searchsorted(judged.categories, bounds),
        images=judged.images,
        tied=matches.tied,
        counts_alone=matches.counts_alone,
        hits=Hits(hits.detections[order], hits.matched[order], hits.on_ignored[order]),
        object_starts=np.searchsorted(matches.object_categories, bounds),
        object_images=matches.object_images,
        object_counts=matches.object_counts,
    )


FORMAT = "lvis_rcnn.matches"
VERSION = 2

SIZES = len(AREA_RANGES_PX)
FIX = "score the detections again with --matches"


@dataclass(frozen=True, eq=False)
class MatchesFile:
    """The outcomes of a run, and what they are of."""

    annotations_sha256: str
    detections_sha256: str
    detections_per_image: int
    category_ids: Int64[np.ndarray, " c"]
    frequencies: tuple[str, ...]
    outcomes: dict[Kind, Outcomes]
    resampled: dict[Kind, Float64[np.ndarray, "s m"]] = field(default_factory=dict)
    """Of the same kinds; empty where scoring made no intervals."""


def write_matches(path: Path, kept: MatchesFile) -> None:
    """Write the file, whole or not at all; the same outcomes give the same bytes."""
    num_images = {outcomes.num_images for outcomes in kept.outcomes.values()}
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "annotations_sha256": np.array(kept.annotations_sha256),
        "detections_sha256": np.array(kept.detections_sha256),
        "detections_per_image": np.array(kept.detections_per_image),
        "num_images": np.array(num_images.pop()),
        "category_ids": kept.category_ids,
        "frequencies": np.array("".join(kept.frequencies)),
    }
    for kind, outcomes in kept.outcomes.items():
        arrays |= {f"{kind}_{name}": column for name, column in packed(outcomes).items()}
    arrays |= {f"{kind}_{RESAMPLED}": samples for kind, samples in kept.resampled.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def packed(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """The arrays of a kind."""
    flags = np.concatenate([outcomes.counts_alone, outcomes.tied[:, None]], axis=1)
    hits = outcomes.hits
    return {
        "starts": outcomes.starts,
        "images": outcomes.images.astype(np.int32),
        "flags": bits_of(flags)[:, 0],
        "found_by": hits.detections.astype(np.int32),
        "matched": bits_of(hits.matched.reshape(-1, len(THRESHOLDS) * SIZES)),
        "on_ignored": bits_of(hits.on_ignored.reshape(-1, len(THRESHOLDS) * SIZES)),
        "object_starts": outcomes.object_starts,
        "object_images": outcomes.object_images.astype(np.int32),
        "object_flags": bits_of(outcomes.object_counts)[:, 0],
    }


def bits_of(values: Bool[np.ndarray, "k b"]) -> UInt8[np.ndarray, "k bytes"]:
    """A bit for each, lowest first."""
    return np.packbits(values, axis=1, bitorder="little")


def values_of(bits: UInt8[np.ndarray, "k bytes"], count: int) -> Bool[np.ndarray, "k b"]:
    """The truth values of :func:`bits_of`."""
    return np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool)


@contextmanager
def opened(path: Path) -> Iterator[NpzFile]:
    """The archive; InputError where it is missing, or damaged in what is read of it."""
    try:
        with path.open("rb") as file, NpzFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise InputError(str(path), "no such file of match results", fix=FIX) from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(str(path), f"damaged file of match results ({error})", fix=FIX) from None


def require_version(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """InputError where the arrays are of another format or version."""
    found = (str(arrays.get("format", "another format")), str(arrays.get("version", "unknown")))
    if found != (FORMAT, str(VERSION)):
        what = f"is {found[0]} version {found[1]}"
        raise InputError(str(path), what, allowed=f"{FORMAT} version {VERSION}", fix=FIX)


def read_matches(path: Path) -> MatchesFile:
    """Read what :func:`write_matches` wrote.

    Raises:
        InputError: missing, damaged, of another format or version, or arrays that do not belong together.
    """
    with opened(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    require_version(path, arrays)
    wrong = next(misfits(arrays), "")
    if wrong:
        raise InputError(str(path), f"damaged file of match results ({wrong})", fix=FIX)
    num_images = int(arrays["num_images"])
    return MatchesFile(
        annotations_sha256=str(arrays["annotations_sha256"]),
        detections_sha256=str(arrays["detections_sha256"]),
        detections_per_image=int(arrays["detections_per_image"]),
        category_ids=arrays["category_ids"],
        frequencies=tuple(str(arrays["frequencies"])),
        outcomes={kind: unpacked(arrays, kind, num_images) for kind in KINDS if f"{kind}_starts" in arrays},
        resampled={kind: arrays[f"{kind}_{RESAMPLED}"] for kind in KINDS if f"{kind}_{RESAMPLED}" in arrays},
    )


RESAMPLED = "resampled"


def read_resampled(path: Path, detections_sha256: str) -> dict[Kind, Float64[np.ndarray, "s m"]]:
    """The metrics of resamples alone, which are read in no time; empty where scoring made none.

    Raises:
        InputError: missing, damaged, of another version, or of other detections.
    """
    with opened(path) as archive:
        require_version(path, archive)
        if str(archive["detections_sha256"]) != detections_sha256:
            raise InputError(str(path), "is of other detections than its metrics", fix=FIX)
        return {kind: archive[f"{kind}_{RESAMPLED}"] for kind in KINDS if f"{kind}_{RESAMPLED}" in archive}


SINGLE = ("annotations_sha256", "detections_sha256", "detections_per_image", "num_images", "frequencies")

# Of each array of a kind its type, and the length: starts (of categories), detections, finds or objects.
LAYOUT: dict[str, tuple[type[np.generic], str, tuple[int, ...]]] = {
    "starts": (np.int64, "starts", ()),
    "images": (np.int32, "detections", ()),
    "flags": (np.uint8, "detections", ()),
    "found_by": (np.int32, "finds", ()),
    "matched": (np.uint8, "finds", (5,)),
    "on_ignored": (np.uint8, "finds", (5,)),
    "object_starts": (np.int64, "starts", ()),
    "object_images": (np.int32, "objects", ()),
    "object_flags": (np.uint8, "objects", ()),
}


def misfits(arrays: dict[str, np.ndarray]) -> Iterator[str]:
    """What does not belong together, nothing where all does."""
    kinds = [kind for kind in KINDS if f"{kind}_starts" in arrays]
    wanted = {"format", "version", "category_ids", *SINGLE} | {f"{kind}_{name}" for kind in kinds for name in LAYOUT}
    of_resamples = {f"{kind}_{RESAMPLED}" for kind in kinds}
    wanted |= of_resamples if of_resamples & set(arrays) else set()
    if set(arrays) != wanted or not kinds:
        yield f"arrays {', '.join(sorted(set(arrays) ^ wanted)) or 'of no kind'}"
        return
    if any(arrays[name].ndim for name in SINGLE) or arrays["category_ids"].ndim != 1:
        yield "arrays of other shapes"
        return
    num_categories, num_images = len(arrays["category_ids"]), int(arrays["num_images"])
    if len(str(arrays["frequencies"])) != num_categories or set(str(arrays["frequencies"])) - set("rcf"):
        yield "frequencies do not fit category_ids"
    for kind in kinds:
        yield from misfits_of_kind({name: arrays[f"{kind}_{name}"] for name in LAYOUT}, num_categories, num_images)
        samples = arrays.get(f"{kind}_{RESAMPLED}", np.empty((0, len(METRIC_NAMES))))
        if (samples.dtype, samples.ndim, samples.shape[-1:]) != (np.dtype(np.float64), 2, (len(METRIC_NAMES),)):
            yield f"{RESAMPLED} is {samples.dtype}{list(samples.shape)}"


def misfits_of_kind(columns: dict[str, np.ndarray], num_categories: int, num_images: int) -> Iterator[str]:
    """The same of the arrays of one kind."""
    lengths = {"starts": num_categories + 1}
    lengths |= {what: columns[name].size for what, name in (("detections", "images"), ("finds", "found_by"))}
    lengths["objects"] = columns["object_images"].size
    for name, (dtype, length, rest) in LAYOUT.items():
        if (columns[name].dtype, columns[name].shape) != (np.dtype(dtype), (lengths[length], *rest)):
            yield f"{name} is {columns[name].dtype}{list(columns[name].shape)}"
            return
    for name, what in (("starts", "detections"), ("object_starts", "objects")):
        starts = columns[name]
        if starts[0] != 0 or starts[-1] != lengths[what] or (np.diff(starts) < 0).any():
            yield f"{name} do not fit the {what}"
    for name in ("images", "object_images"):
        if ((columns[name] < 0) | (columns[name] >= num_images)).any():
            yield f"{name} beyond the images"
    finds = columns["found_by"]
    if (np.diff(finds) <= 0).any() or ((finds < 0) | (finds >= lengths["detections"])).any():
        yield "found_by does not fit the detections"


def unpacked(arrays: dict[str, np.ndarray], kind: Kind, num_images: int) -> Outcomes:
    """The outcomes of a kind."""
    columns = {name: arrays[f"{kind}_{name}"] for name in LAYOUT}
    flags = values_of(columns["flags"][:, None], SIZES + 1)
    matched, on_ignored = (
        values_of(columns[name], len(THRESHOLDS) * SIZES).reshape(-1, len(THRESHOLDS), SIZES)
        for name in ("matched", "on_ignored")
    )
    return Outcomes(
        num_images=num_images,
        starts=columns["starts"],
        images=columns["images"].astype(np.int64),
        tied=flags[:, SIZES],
        counts_alone=flags[:, :SIZES],
        hits=Hits(columns["found_by"].astype(np.int64), matched, on_ignored),
        object_starts=columns["object_starts"],
        object_images=columns["object_images"].astype(np.int64),
        object_counts=values_of(columns["object_flags"][:, None], SIZES),
    )
