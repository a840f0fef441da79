"""Match results on disk, from which any resample of the images can be scored without matching again.

An uncompressed NumPy archive (bytes depend on nothing but the arrays; the archive's CRC finds damage) of

    format                str     "lvis_rcnn.matches"
    version               i64     2; 3 with further protocols
    annotations_sha256    str     digest of the annotation file
    detections_sha256     str     digest of the detections, as in metrics.json
    detections_per_image  i64     at most so many detections of an image were evaluated
    num_images            i64     images are counted in the order of their ids
    category_ids          i64[c]  ascending
    frequencies           str     r, c or f of each category, without separators

and for each kind, bbox or segm, with ``d`` evaluated detections sorted by category, descending score, image and place
in the file, ``h`` of them with a match, and ``g`` objects sorted by category and image:

    KIND_starts           i64[c+1]  first detection of each category, then the number of detections
    KIND_images           i32[d]    position of each detection's image
    KIND_flags            u8[d]     bits 0 to 3: a false positive if unmatched, for the sizes all, small, medium, large;
                                    bit 4: category, score and image are those of the detection before
    KIND_found_by         i32[h]    the detection
    KIND_matched          u8[h,5]   bits threshold * 4 + size, lowest first: it matches an object
    KIND_on_ignored       u8[h,5]   likewise: that object does not count, nor does the detection
    KIND_object_starts    i64[c+1]  first object of each category, then the number of objects
    KIND_object_images    i32[g]
    KIND_object_flags     u8[g]     bits 0 to 3: counts, for the sizes all, small, medium, large
    KIND_resampled        f64[s,m]  metrics of the first s resamples of the images, with seed 0; NaN where undefined

Further protocols have the same arrays of each kind, and ``num_images``, under their names: fixed/bbox_starts, ... With
them is

    NAME/images_sha256    str     digest of the ids of a subset's images, by which subsets are told apart; else empty

That is 5 bytes per evaluated detection, 14 per match and 5 per object: about 20 MB per kind for LVIS v1 val. All runs
on the same images have the same resamples, so that those of several runs can be paired.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, NUM_SIZES, THRESHOLDS, Matches, Outcomes
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import atomic_file, opened_arrays

FORMAT = "lvis_rcnn.matches"
VERSION, WITH_PROTOCOLS = 2, 3
RESAMPLED = "resampled"
KIND, FIX = "file of match results", "score the detections again, which writes it"


@dataclass(frozen=True, eq=False)
class MatchesFile:
    """The outcomes of a scored run, and the files that they belong to."""

    annotations_sha256: str
    detections_sha256: str
    detections_per_image: int
    category_ids: Int64[np.ndarray, " c"]
    frequencies: tuple[str, ...]
    outcomes: dict[Kind, Outcomes]
    resampled: dict[Kind, Float64[np.ndarray, "s m"]] = field(default_factory=dict)
    """Metrics of resamples of the same kinds; empty where scoring made no intervals."""
    images_sha256: str = ""
    """Digest of the ids of the images, where they are a subset."""
    protocols: Mapping[str, "MatchesFile"] = field(default_factory=dict)
    """The outcomes by further protocols; :func:`read_matches` reads one of them at a time."""


def write_matches(path: Path, kept: MatchesFile) -> None:
    """Write the file, whole or not at all; the same outcomes give the same bytes."""
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "version": np.array(WITH_PROTOCOLS if kept.protocols else VERSION),
        "annotations_sha256": np.array(kept.annotations_sha256),
        "detections_sha256": np.array(kept.detections_sha256),
        "detections_per_image": np.array(kept.detections_per_image),
        "num_images": num_images_of(kept),
        "category_ids": kept.category_ids,
        "frequencies": np.array("".join(kept.frequencies)),
        **arrays_of_kinds(kept),
    }
    for name, one in kept.protocols.items():
        of_one = {"num_images": num_images_of(one), "images_sha256": np.array(one.images_sha256)} | arrays_of_kinds(one)
        arrays |= {f"{name}/{key}": values for key, values in of_one.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def is_matches(path: Path) -> bool:
    """Whether a file holds match results, of any version."""
    try:
        with np.load(path) as archive:
            return "format" in archive and str(archive["format"]) == FORMAT
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile):
        return False


def num_images_of(kept: MatchesFile) -> Int64[np.ndarray, ""]:
    """The number of images that all kinds have."""
    return np.array({outcomes.num_images for outcomes in kept.outcomes.values()}.pop())


def arrays_of_kinds(kept: MatchesFile) -> dict[str, np.ndarray]:
    """The arrays of all kinds."""
    arrays = {
        f"{kind}_{name}": column for kind, of_kind in kept.outcomes.items() for name, column in packed(of_kind).items()
    }
    return arrays | {f"{kind}_{RESAMPLED}": samples for kind, samples in kept.resampled.items()}


def packed(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """The arrays of a kind."""
    flags = np.concatenate([outcomes.is_false_positive_if_unmatched, outcomes.tied[:, None]], axis=1)
    matches = outcomes.matches
    return {
        "starts": outcomes.starts,
        "images": outcomes.images.astype(np.int32),
        "flags": bits_of(flags)[:, 0],
        "found_by": matches.detections.astype(np.int32),
        "matched": bits_of(matches.matched.reshape(-1, len(THRESHOLDS) * NUM_SIZES)),
        "on_ignored": bits_of(matches.matched_to_ignored.reshape(-1, len(THRESHOLDS) * NUM_SIZES)),
        "object_starts": outcomes.object_starts,
        "object_images": outcomes.object_images.astype(np.int32),
        "object_flags": bits_of(outcomes.object_counts)[:, 0],
    }


def bits_of(values: Bool[np.ndarray, "k b"]) -> UInt8[np.ndarray, "k bytes"]:
    """One bit per value, lowest first."""
    return np.packbits(values, axis=1, bitorder="little")


def values_of(bits: UInt8[np.ndarray, "k bytes"], count: int) -> Bool[np.ndarray, "k b"]:
    """The values that :func:`bits_of` packed."""
    return np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool)


def require_version(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """InputError where the arrays are of another format or version."""
    found = (str(arrays.get("format", "another format")), str(arrays.get("version", "unknown")))
    if found not in {(FORMAT, str(VERSION)), (FORMAT, str(WITH_PROTOCOLS))}:
        what = f"is {found[0]} version {found[1]}"
        allowed = f"{FORMAT} version {VERSION} or {WITH_PROTOCOLS}"
        raise InputError(str(path), what, allowed=allowed, fix=FIX)


def names_in(path: Path, archive: Mapping[str, np.ndarray], protocol: str) -> dict[str, str]:
    """The names in an archive of the arrays of a protocol, by those of AP@300; InputError where it has none of it."""
    if not protocol:
        return {name: name for name in archive if "/" not in name}
    if f"{protocol}/num_images" not in archive:
        known = sorted({name.partition("/")[0] for name in archive if "/" in name})
        what = f"was not scored by the protocol {protocol}"
        raise InputError(str(path), what, allowed=", ".join(known) or "AP@300 alone", fix=f"{FIX}, by this protocol")
    shared = ("format", "version", "category_ids", *SINGLE)
    of_one = {name.partition("/")[2]: name for name in archive if name.startswith(f"{protocol}/")}
    return {name: name for name in shared} | of_one


def read_matches(path: Path, protocol: str = "") -> MatchesFile:
    """Read what :func:`write_matches` wrote of one protocol; the empty name is AP@300.

    Raises:
        InputError: missing, damaged, of another format or version, not scored by the protocol, or arrays that do not
            belong together.
    """
    with opened_arrays(path, KIND, FIX) as archive:
        require_version(path, archive)
        arrays = {key: np.asarray(archive[name]) for key, name in names_in(path, archive, protocol).items()}
    images_sha256 = str(arrays.pop("images_sha256", ""))
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
        images_sha256=images_sha256,
    )


def read_resampled(path: Path, detections_sha256: str, protocol: str = "") -> dict[Kind, Float64[np.ndarray, "s m"]]:
    """The metrics of resamples by one protocol alone, which is fast; empty where scoring made none.

    Raises:
        InputError: missing, damaged, of another version, not scored by the protocol, or of other detections.
    """
    with opened_arrays(path, KIND, FIX) as archive:
        require_version(path, archive)
        if str(archive["detections_sha256"]) != detections_sha256:
            raise InputError(str(path), "belongs to other detections than metrics.json", fix=FIX)
        names = names_in(path, archive, protocol)
        of_kinds = {kind: names.get(f"{kind}_{RESAMPLED}") for kind in KINDS}
        return {kind: archive[name] for kind, name in of_kinds.items() if name}


# Each value that is one text or one integer, and its kind of type.
SINGLE = {"annotations_sha256": "U", "detections_sha256": "U", "frequencies": "U"}
SINGLE |= {"detections_per_image": "i", "num_images": "i"}

# Type of each array of a kind, and what its length is: starts (of categories), detections, matches or objects.
LAYOUT: dict[str, tuple[type[np.generic], str, tuple[int, ...]]] = {
    "starts": (np.int64, "starts", ()),
    "images": (np.int32, "detections", ()),
    "flags": (np.uint8, "detections", ()),
    "found_by": (np.int32, "matches", ()),
    "matched": (np.uint8, "matches", (5,)),
    "on_ignored": (np.uint8, "matches", (5,)),
    "object_starts": (np.int64, "starts", ()),
    "object_images": (np.int32, "objects", ()),
    "object_flags": (np.uint8, "objects", ()),
}


def misfits(arrays: dict[str, np.ndarray]) -> Iterator[str]:
    """What does not fit together; nothing where all arrays do."""
    kinds = [kind for kind in KINDS if f"{kind}_starts" in arrays]
    wanted = {"format", "version", "category_ids", *SINGLE} | {f"{kind}_{name}" for kind in kinds for name in LAYOUT}
    of_resamples = {f"{kind}_{RESAMPLED}" for kind in kinds}
    wanted |= of_resamples if of_resamples & set(arrays) else set()
    if set(arrays) != wanted or not kinds:
        yield f"arrays {', '.join(sorted(set(arrays) ^ wanted)) or 'of no kind'}"
        return
    shapes = {name: (arrays[name].dtype.kind, arrays[name].ndim) for name in (*SINGLE, "category_ids")}
    if shapes != {name: (kind, 0) for name, kind in SINGLE.items()} | {"category_ids": ("i", 1)}:
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
    """:func:`misfits` of the arrays of one kind."""
    lengths = {"starts": num_categories + 1}
    lengths |= {what: columns[name].size for what, name in (("detections", "images"), ("matches", "found_by"))}
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
    found_by = columns["found_by"]
    if (np.diff(found_by) <= 0).any() or ((found_by < 0) | (found_by >= lengths["detections"])).any():
        yield "found_by does not fit the detections"


def unpacked(arrays: dict[str, np.ndarray], kind: Kind, num_images: int) -> Outcomes:
    """The outcomes of a kind."""
    columns = {name: arrays[f"{kind}_{name}"] for name in LAYOUT}
    flags = values_of(columns["flags"][:, None], NUM_SIZES + 1)
    matched, on_ignored = (
        values_of(columns[name], len(THRESHOLDS) * NUM_SIZES).reshape(-1, len(THRESHOLDS), NUM_SIZES)
        for name in ("matched", "on_ignored")
    )
    return Outcomes(
        num_images=num_images,
        starts=columns["starts"],
        images=columns["images"].astype(np.int64),
        tied=flags[:, NUM_SIZES],
        is_false_positive_if_unmatched=flags[:, :NUM_SIZES],
        matches=Matches(columns["found_by"].astype(np.int64), matched, on_ignored),
        object_starts=columns["object_starts"],
        object_images=columns["object_images"].astype(np.int64),
        object_counts=values_of(columns["object_flags"][:, None], NUM_SIZES),
    )
