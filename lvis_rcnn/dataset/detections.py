"""Detections of many images as flat arrays, and the shards that inference writes and scoring reads.

A folder of detections contains ``shard-00000.npz``, ``shard-00001.npz``, ... without a gap. Each is an uncompressed
NumPy archive (its bytes depend on the arrays alone; its CRC finds damage) of

    format        str    "lvis_rcnn.detections"
    version       i64    2
    image_ids     i64[d]      category_ids  i64[d]     ids of the annotation file
    scores        f32[d]      boxes_xywh    f32[d,4]   pixels of the original image
    mask_sizes    i32[d,2]    height and width of the image
    rle_offsets   i64[d+1]    rle_counts    u8[...]    COCO compressed counts of detection i: offsets i to i+1
    has_mask      bool[d]     whether inference made the mask of a detection

A detection without mask has no counts; a mask without a pixel has some. With ``inference.masks: scored`` inference
omits the masks that no score reads, those of categories that are neither verified as present in nor as absent from the
image. Such a detection still counts towards the limit of detections per image.

Order: images as in the annotation file, scores descending inside an image. An image without detections has no rows.
"""

import hashlib
import io
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from numpy.lib.npyio import NpzFile

from lvis_rcnn.dataset.rle import damaged_texts, pixels_of_texts
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import atomic_file, opened_arrays, parsed, sha256_of_file

# Bytes that hold the description of an array.
HEADER = 1 << 10

FORMAT = "lvis_rcnn.detections"
VERSION = 2


@dataclass(frozen=True)
class Detections:
    """``d`` detections of any number of images; the fields are the arrays of a shard."""

    image_ids: Int64[np.ndarray, " d"]
    category_ids: Int64[np.ndarray, " d"]
    scores: Float32[np.ndarray, " d"]
    boxes_xywh: Float32[np.ndarray, "d 4"]
    mask_sizes: Int32[np.ndarray, "d 2"]
    rle_offsets: Int64[np.ndarray, " d+1"]
    rle_counts: UInt8[np.ndarray, " bytes"]
    has_mask: Bool[np.ndarray, " d"]

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.image_ids)

    def rle(self, index: int) -> dict[str, Any]:
        """Mask of one detection that has one, as pycocotools takes it: ``{"size": [h, w], "counts": bytes}``."""
        assert self.has_mask[index], "an omitted mask is not an empty one"
        start, stop = self.rle_offsets[index : index + 2]
        return {"size": self.mask_sizes[index].tolist(), "counts": self.rle_counts[start:stop].tobytes()}


def no_detections() -> Detections:
    """No detection at all."""
    sizes, offsets, counts, has_mask = pack_rles([])
    return Detections(
        image_ids=np.zeros(0, np.int64),
        category_ids=np.zeros(0, np.int64),
        scores=np.zeros(0, np.float32),
        boxes_xywh=np.zeros((0, 4), np.float32),
        mask_sizes=sizes,
        rle_offsets=offsets,
        rle_counts=counts,
        has_mask=has_mask,
    )


def pack_rles(
    rles: Sequence[dict[str, Any]],
) -> tuple[Int32[np.ndarray, "d 2"], Int64[np.ndarray, " d+1"], UInt8[np.ndarray, " bytes"], Bool[np.ndarray, " d"]]:
    """Masks as ``pycocotools.mask.encode`` returns them become the last four fields of :class:`Detections`.

    Raises:
        ValueError: a size is not two whole numbers from 0 of 31 bits.
    """
    sizes = np.array([rle["size"] for rle in rles] or np.zeros((0, 2), np.int32))
    # Before they become 32 bits wide, where NumPy wraps larger numbers and drops fractions.
    if sizes.shape != (len(rles), 2) or sizes.dtype.kind not in "iu" or ((sizes < 0) | (sizes >= 2**31)).any():
        raise ValueError("the size of a mask is no height and width")
    offsets = np.zeros(len(rles) + 1, np.int64)
    np.cumsum([len(rle["counts"]) for rle in rles], out=offsets[1:])
    counts = np.frombuffer(b"".join(rle["counts"] for rle in rles), np.uint8)
    return sizes.astype(np.int32), offsets, counts, np.ones(len(rles), bool)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All detections of ``parts`` in their order; their offsets are shifted."""
    parts = [no_detections(), *parts]
    starts = np.cumsum([0] + [len(part.rle_counts) for part in parts[:-1]])
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Detections)
        if field.name != "rle_offsets"
    }
    ends = [part.rle_offsets[1:] + start for part, start in zip(parts, starts, strict=True)]
    return Detections(rle_offsets=np.concatenate([np.zeros(1, np.int64), *ends]), **joined)


def rows_between(detections: Detections, start: int, stop: int) -> Detections:
    """The detections ``start`` to ``stop``, without the latter."""
    first, last = detections.rle_offsets[[start, stop]]
    cut = {field.name: getattr(detections, field.name)[start:stop] for field in fields(Detections)}
    cut["rle_offsets"] = detections.rle_offsets[start : stop + 1] - first
    return Detections(**{**cut, "rle_counts": detections.rle_counts[first:last]})


def shard_path(folder: Path, number: int) -> Path:
    """Path of shard ``number`` (from 0) in a folder of detections."""
    return folder / f"shard-{number:05d}.npz"


def write_shard(path: Path, detections: Detections) -> None:
    """Write one shard, whole or not at all; the same detections give the same bytes."""
    arrays = {field.name: getattr(detections, field.name) for field in fields(Detections)}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, format=np.array(FORMAT), version=np.array(VERSION), **arrays)


def read_shard(path: Path, with_masks: bool = True) -> Detections:
    """Read one shard; without masks, they are empty and nine tenths of the bytes are not read.

    Raises:
        InputError: missing, damaged, of another format or version, or arrays that do not belong together.
    """
    with opened_arrays(path, "shard of detections", "run inference again") as archive:
        skipped = () if with_masks else ("rle_offsets", "rle_counts")
        arrays = {name: mapped_array(archive, name) for name in archive.files if name not in skipped}
    found = tuple(np.asarray(arrays.pop(*one)).tolist() for one in (("format", "another format"), ("version", -1)))
    if found != (FORMAT, VERSION):
        raise InputError(
            str(path), f"is {found[0]} version {found[1]}", allowed=f"{FORMAT} version {VERSION}", fix="infer again"
        )
    if not with_masks:
        arrays["rle_offsets"] = np.zeros(np.size(arrays.get("image_ids", ())) + 1, np.int64)
        arrays["rle_counts"] = np.zeros(0, np.uint8)
    return checked(path, arrays, with_masks)


def mapped_array(archive: NpzFile, name: str) -> np.ndarray:
    """An array of an archive, mapped unless compressed: NumPy copies in pieces of 256 KB, which takes twice as long.

    Raises:
        ValueError: damaged, or Python objects.
    """
    assert archive.zip is not None
    assert archive.zip.fp is not None
    member = archive.zip.getinfo(f"{name}.npy")
    if member.compress_type:
        array: np.ndarray = archive[name]
        return array
    text = memoryview(mmap.mmap(archive.zip.fp.fileno(), 0, access=mmap.ACCESS_READ))
    # 30 bytes, of which the last two numbers are the lengths of the name and of an extra field that follow.
    start = member.header_offset + 30 + sum(struct.unpack_from("<HH", text, member.header_offset + 26))
    content = text[start : start + member.file_size]
    if zlib.crc32(content) != member.CRC:
        raise ValueError(f"array {name} is damaged")
    header = io.BytesIO(content[:HEADER])
    np.lib.format.read_magic(header)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(content[header.tell() :], dtype).reshape(shape, order="F" if fortran_order else "C")


# Dtype of each array with one row per detection, and the shape of a row.
LAYOUT: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "image_ids": (np.int64, ()),
    "category_ids": (np.int64, ()),
    "scores": (np.float32, ()),
    "boxes_xywh": (np.float32, (4,)),
    "mask_sizes": (np.int32, (2,)),
    "has_mask": (np.bool_, ()),
}


def checked(path: Path, arrays: dict[str, np.ndarray], with_masks: bool) -> Detections:
    """The arrays of a shard as :class:`Detections`; InputError unless their types, shapes and offsets agree."""
    names = {field.name for field in fields(Detections)}
    if set(arrays) != names:
        raise InputError(str(path), f"holds the arrays {', '.join(sorted(arrays))}", allowed=", ".join(sorted(names)))
    count = arrays["image_ids"].shape[0] if arrays["image_ids"].ndim else 0
    expected = {name: (np.dtype(kind), (count, *rest)) for name, (kind, rest) in LAYOUT.items()}
    expected["rle_offsets"] = (np.dtype(np.int64), (count + 1,))
    expected["rle_counts"] = (np.dtype(np.uint8), (arrays["rle_counts"].size,))
    for name, (dtype, shape) in expected.items():
        if (arrays[name].dtype, arrays[name].shape) != (dtype, shape):
            what = f"array {name} is {arrays[name].dtype}{list(arrays[name].shape)}"
            raise InputError(str(path), what, allowed=f"{dtype}{list(shape)}", fix="run inference again")
    offsets = arrays["rle_offsets"]
    if offsets[0] != 0 or offsets[-1] != len(arrays["rle_counts"]) or (np.diff(offsets) < 0).any():
        raise InputError(str(path), "rle_offsets do not fit rle_counts", fix="run inference again")
    if with_masks and ((np.diff(offsets) > 0) != arrays["has_mask"]).any():
        raise InputError(str(path), "has_mask does not fit rle_offsets", fix="run inference again")
    return Detections(**arrays)


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder, in order.

    Raises:
        InputError: no such folder, no shard in it, or a number is missing between the first and the last.
    """
    found = sorted(folder.glob("shard-*.npz"))
    if not found:
        inner = folder / "detections"
        fix = f"name {inner}" if os.path.isdir(inner) else "infer first"
        raise InputError(str(folder), "no shards of detections here", allowed="shard-00000.npz, ...", fix=fix)
    wanted = [shard_path(folder, number) for number in range(len(found))]
    if found != wanted:
        missing = min(set(wanted) - set(found))
        raise InputError(str(missing), "shard is missing though later ones exist", fix="run inference again")
    return found


def read_shards(folder: Path, with_masks: bool = True) -> Detections:
    """All detections of a folder, shards in order; without masks, they are empty.

    Raises:
        InputError: as :func:`shards_of` and :func:`read_shard`.
    """
    return concatenate([read_shard(path, with_masks) for path in shards_of(folder)])


def sha256_of_shards(folder: Path) -> str:
    """Hex SHA-256 over the SHA-256 of each shard of a folder, in order."""
    whole = hashlib.sha256()
    for shard in shards_of(folder):
        whole.update(bytes.fromhex(sha256_of_file(shard)))
    return whole.hexdigest()


def export_results(folder: Path, out: Path) -> int:
    """Write the detections of a folder as an LVIS results file, a shard at a time; returns how many there are.

    Scores and boxes are written with all their digits.

    Raises:
        InputError: as :func:`read_shards`, or inference omitted masks, which a results file cannot express; a score or
            box that is not finite, or a mask that is damaged or not of its size; or inference wrote another number.
    """
    count = 0
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        file.write(b"[")
        for path in shards_of(folder):
            shard = read_shard(path)
            if not shard.has_mask.all():
                what = f"{(~shard.has_mask).sum()} detections have no mask, since no score reads it"
                raise InputError(str(path), what, fix="infer with inference.masks: all")
            check_values(str(path), shard)
            for record in results_of(shard):
                file.write(b",\n" if count else b"\n")
                file.write(msgspec.json.encode(record))
                count += 1
        file.write(b"\n]\n")
        check_number(folder, record_of(folder), count)
    return count


def record_of(folder: Path) -> dict[str, Any] | None:
    """The inference.json beside a folder of shards; None without one. InputError where it is damaged."""
    record = folder.parent / "inference.json"
    if not os.path.isdir(folder) or not record.is_file():
        return None
    try:
        found: dict[str, Any] = parsed(msgspec.json.decode, record.read_bytes(), type=dict[str, Any])
        return found
    except (OSError, ValueError) as error:
        raise InputError(str(record), f"not readable as JSON: {error}", fix="run inference again") from None


def check_number(folder: Path, record: dict[str, Any] | None, count: int) -> None:
    """Raise InputError where inference wrote another number of detections, as where the last shards are missing."""
    if record is not None and record.get("detections", count) != count:
        what = f"shards hold {count} detections, inference wrote {record['detections']}"
        raise InputError(str(folder), what, fix="run inference again")


# Rows whose masks are unpacked at a time.
ROWS_AT_ONCE = 1 << 12


def check_values(where: str, detections: Detections) -> None:
    """Raise InputError for the first detection that no scorer could read."""
    for start in range(0, len(detections), ROWS_AT_ONCE):
        some = rows_between(detections, start, min(start + ROWS_AT_ONCE, len(detections)))
        for wrong, what in problems(some):
            if wrong.any():
                row = int(np.argmax(wrong))
                record = f"{where}: result {start + row} (image {some.image_ids[row]})"
                raise InputError(record, what, fix="run inference again")


def problems(detections: Detections) -> Iterator[tuple[Bool[np.ndarray, " d"], str]]:
    """What detections may have that no scorer reads, and which of them do."""
    yield ~np.isfinite(detections.scores), "its score is not a finite number"
    yield ~np.isfinite(detections.boxes_xywh).all(axis=1), "its bbox is not four finite numbers"
    texts = detections.rle_offsets, detections.rle_counts
    yield damaged_texts(*texts), "its mask is damaged"
    filled = detections.mask_sizes.astype(np.int64).prod(axis=1)
    yield pixels_of_texts(*texts) != filled, "its mask is not of its size"


def results_of(detections: Detections) -> Iterator[dict[str, Any]]:
    """Records of a results file."""
    ids = zip(detections.image_ids.tolist(), detections.category_ids.tolist(), strict=True)
    values = zip(detections.scores.tolist(), detections.boxes_xywh.tolist(), strict=True)
    for row, ((image_id, category_id), (score, box)) in enumerate(zip(ids, values, strict=True)):
        mask = detections.rle(row)
        segmentation = {**mask, "counts": mask["counts"].decode()}
        yield {
            "image_id": image_id,
            "category_id": category_id,
            "score": score,
            "bbox": box,
            "segmentation": segmentation,
        }
