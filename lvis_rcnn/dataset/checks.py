"""Preflight's checks of a split on disk: images, categories, labels, and what is legal but rarely meant.

Every image must exist, be complete and have the annotated size. Of the usual formats only header and last bytes are
read, by Pillow, which decodes no pixels for that; 120,000 images take minutes. Pixels are decoded, by Pillow too, only
if the end is not that of a complete file: it reports a truncated picture, whose rest OpenCV, the decoder of training,
fills with grey. Images of other formats and of more than 8 bits, PNG with EXIF data, and all images where that is asked
for, are decoded as in training.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from tqdm import tqdm

from lvis_rcnn.dataset.images import JPEG_END, JPEG_START, LOST, ImageFile, ImageFiles, decoded, decoded_silently
from lvis_rcnn.dataset.store import NEITHER, ROUNDING_PX, UNTRAINED, AnnotationStore, image_candidates
from lvis_rcnn.dataset.versions import claimed_version, unlike_a_full_split, version_of
from lvis_rcnn.system.cli import InputError

PNG_START = b"\x89PNG\r\n\x1a\n"
# First bytes of the formats whose header and end are enough, and what reads those: Image.open would refuse, or warn of,
# what it calls a decompression bomb. What else is read OpenCV decides.
Reader = type[PillowFile]
READERS: dict[bytes, Reader] = {
    JPEG_START: JpegImageFile,
    PNG_START: PngImageFile,
}
MOST_PIXELS = 2**30  # of images of more OpenCV decides too: so many it decodes
PNG_BITS_AT = 24  # byte of a PNG file that says the bits of each channel
# An image of more than 8 bits that is decoded to values below this, of 255, uses a quarter of its range or less.
DARK = 64
# Last bytes of a complete file; other formats are decoded.
END_MARKERS: dict[Reader, bytes] = {JpegImageFile: JPEG_END, PngImageFile: b"IEND\xaeB`\x82"}
# So near its end a PNG may hold EXIF data that stand behind its pixels.
PNG_TAIL_BYTES = 4096
TWO_PIXELS = cv2.imencode(".jpg", np.zeros((1, 2, 3), np.uint8))[1].tobytes()

# Reading headers is mostly waiting for the disk, which more threads than cores hide.
THREADS = 8
IMAGES_PER_TASK = 256
# Folders in the zips of COCO, whose addresses are in configs/zoo/lvis.yaml.
COCO_FOLDERS = ("train2017", "val2017")
# Annotations whose box is compared with their polygons, and the part of them that may differ.
SAMPLED_OUTLINES, MOST_UNLIKE = 2_000, 0.01
# At most this many bad files of one kind and split are named.
NAMED_FILES = 5


class Problem(NamedTuple):
    """An error of preflight, with the parts of an :class:`InputError`."""

    where: str
    what: str
    allowed: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return str(InputError(self.where, self.what, allowed=self.allowed, fix=self.fix))


class ImageErrors(NamedTuple):
    """The errors of a split's image files."""

    problems: list[Problem]
    missing: list[str]
    """The most reliable name of every missing image."""
    warnings: list[Problem]
    """Images that can be read, but perhaps not as they were meant."""


class Finding(NamedTuple):
    """What is wrong with an image file, and what may be; empty if nothing is."""

    error: str = ""
    warning: str = ""


def image_errors(store: AnnotationStore, folder: Path, *, decode: bool = False) -> ImageErrors:
    """Check every image of a split: exists, readable, complete, of the annotated size.

    Args:
        store: the split.
        folder: of its images.
        decode: decode each image, which finds damage inside it.

    Raises:
        InputError: a zip in the folder is not readable.
    """
    missing: list[int] = []
    damaged: list[Problem] = []
    doubtful: list[Problem] = []
    files = ImageFiles(folder)
    pool = ThreadPoolExecutor(THREADS)
    starts = range(0, store.num_images, IMAGES_PER_TASK)
    tasks = [range(start, min(start + IMAGES_PER_TASK, store.num_images)) for start in starts]
    try:
        with tqdm(total=store.num_images, desc=store.source_name, unit="image", disable=None) as bar:
            results = pool.map(lambda task: check_images(store, files, task, decode), tasks)
            for task, (not_found, broken, strange) in zip(tasks, results, strict=True):
                missing += not_found
                damaged += broken
                doubtful += strange
                bar.update(len(task))
    finally:
        pool.shutdown(cancel_futures=True)
    names = [image_candidates(*store.image_name(image))[0] for image in missing]
    absent = [missing_problem(store, files, names, int(store.image_ids[missing[0]]))] if missing else []
    errors = [*absent, *first_problems(damaged, store, "are damaged or of another size")]
    return ImageErrors(errors, names, first_problems(doubtful, store, "may be damaged or nearly black"))


def check_images(
    store: AnnotationStore, files: ImageFiles, images: range, decode: bool
) -> tuple[list[int], list[Problem], list[Problem]]:
    """Positions of missing images, problems of damaged ones and of those that may be."""
    missing: list[int] = []
    damaged: list[Problem] = []
    doubtful: list[Problem] = []
    for image in images:
        try:
            file = files.of(store, image)
        except InputError:
            missing.append(image)
            continue
        found = image_finding(file, int(store.heights[image]), int(store.widths[image]), decode=decode)
        where = f"{store.source_name}: image {store.image_ids[image]}"
        if found.error:
            fix = "fetch the file again or correct its annotation"
            damaged.append(Problem(where, f"{file} {found.error}", fix=fix))
        if found.warning:
            doubtful.append(Problem(where, f"{file} {found.warning}"))
    return missing, damaged, doubtful


def image_finding(file: ImageFile, height_px: int, width_px: int, *, decode: bool = False) -> Finding:
    """What is wrong with an image file; ``decode`` as in :func:`image_errors`."""
    try:
        if file.size_bytes == 0:
            return Finding("is empty (0 bytes)")
        with file.open_unchecked() as stream:
            start = stream.read(PNG_BITS_AT + 1)
            reader = next((reader for first, reader in READERS.items() if start.startswith(first)), None)
            if reader and height_px * width_px <= MOST_PIXELS:
                error = None
                with contextlib.suppress(ValueError, SyntaxError):  # a PNG with a long or damaged text, which it skips
                    error = header_error(file, stream, reader, height_px, width_px)
                is_deep = start.startswith(PNG_START) and start[PNG_BITS_AT:] > b"\x08"
                if error or not (decode or is_deep or error is None):
                    return Finding(error)
        return decoded_finding(file, height_px, width_px)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return Finding(f"is damaged: {error}")


def header_error(file: ImageFile, stream: BinaryIO, reader: Reader, height_px: int, width_px: int) -> str | None:
    """What is wrong with size or end of an image of ``READERS``; empty if nothing is, None if decoding has to tell."""
    stream.seek(0)
    with reader(stream) as image:
        turned = is_turned(image, stream)
        width, height = image.size[::-1] if turned else image.size
        if turned is not None and (height, width) != (height_px, width_px):
            note = " after the rotation in its EXIF data" if turned else ""
            return f"is {width} x {height} pixels{note}, annotated as {width_px} x {height_px}"
        marker = END_MARKERS[reader]
        if last_bytes(stream, len(marker)) != marker:
            stream.seek(0)
            image.load()
            # Pillow reads a PNG without its last chunk, OpenCV does not; bytes after its name harm neither.
            if marker[:4] not in file.read():
                return "is truncated: it has no end marker"
    return None if turned is None else ""


def decoded_finding(file: ImageFile, height_px: int, width_px: int) -> Finding:
    """What the decoder of training makes of an image."""
    content = file.read()
    image, complaint = decoded(content)
    if image is None:
        return Finding("is no image of a known format, or is damaged: OpenCV cannot decode it")
    height, width = image.shape[:2]
    if (height, width) != (height_px, width_px):
        return Finding(f"is {width} x {height} pixels as OpenCV decodes it, annotated as {width_px} x {height_px}")
    if LOST.search(complaint.encode()):
        return Finding(f"is damaged inside: {complaint}")
    if complaint:
        return Finding(warning=f"may be damaged inside: {complaint}")
    return Finding(warning=vanished(content, int(image.max())))


def vanished(content: bytes, most: int) -> str:
    """What remains of the values of an image of more than 8 bits; empty if enough does. ``most``: once decoded."""
    stored = decoded_silently(content, "unchanged") if most < DARK else None
    if stored is None or stored.dtype == np.uint8:
        return ""
    return (
        f"holds {stored.dtype} values up to {stored.max():g}, of which decoding leaves 0 to {most} of 255: nearly "
        "black to the network; store it with 8 bits, its values scaled"
    )


def is_turned(image: PillowFile, stream: BinaryIO) -> bool | None:
    """Whether OpenCV swaps height and width by the EXIF data; None if there are any in a PNG, where it may.

    Pillow cannot say: it takes orientations of other forms, and from XMP. OpenCV is given 2 x 1 pixels with the same.
    """
    if isinstance(image, JpegImageFile):
        found = [content for name, content in image.applist if name == "APP1"]
        segments = b"".join(b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content for content in found)
        probe = decoded_silently(JPEG_START + segments + TWO_PIXELS.removeprefix(JPEG_START)) if found else None
        return probe is not None and probe.shape[:2] == (2, 1)
    in_head = any(str(key).endswith("exif") for key in image.info)
    return None if in_head or b"eXIf" in last_bytes(stream, PNG_TAIL_BYTES) else False


def last_bytes(stream: BinaryIO, most: int) -> bytes:
    """The file's last bytes, or all of a shorter one."""
    stream.seek(-min(most, stream.seek(0, os.SEEK_END)), os.SEEK_END)
    return stream.read()


def missing_problem(store: AnnotationStore, files: ImageFiles, names: list[str], first_id: int) -> Problem:
    """One problem for all missing images of a split, since they have one cause."""
    listed, others = names[:NAMED_FILES], len(names) - NAMED_FILES
    more = f", ... ({others:,} more)" if others > 0 else ""
    there = {index.path.name for index in files.zips}
    absent = Counter(zip_name for name in names if (zip_name := zip_of(name)) and zip_name not in there)
    held = " and ".join(f"{count:,} in {name}" for name, count in sorted(absent.items()))
    fetch = f"; COCO has {held}, which the target fetch of Snakemake brings" if held else ""
    return Problem(
        f"{store.source_name}: image {first_id}",
        f"{len(names):,} of {store.num_images:,} images not found in {files.root}: {', '.join(listed)}{more}"
        f"{''.join(under_other_names(files, names))}",
        fix=f"set the split's 'images' to the folder that holds them or their zip, or add the files{fetch}",
    )


def under_other_names(files: ImageFiles, names: list[str]) -> Iterator[str]:
    """Which zips hold missing images in other folders, and what the first of them is called there."""
    for index in files.zips:
        members = {PurePosixPath(name.decode()).name: name.decode() for name in index.names.tolist()}
        found = [name for name in names if PurePosixPath(name).name in members]
        if found:
            there = members[PurePosixPath(found[0]).name]
            yield f"; {index.path.name} holds {len(found):,} of these names in other folders: {there}, not {found[0]}"


def zip_of(name: str) -> str | None:
    """COCO's zip with an image of this name, ``train2017.zip`` for ``train2017/000000000009.jpg``."""
    folder = PurePosixPath(name).parent.name
    return f"{folder}.zip" if folder in COCO_FOLDERS else None


def first_problems(problems: list[Problem], store: AnnotationStore, what: str) -> list[Problem]:
    """The first few, and one that counts the others."""
    if len(problems) <= NAMED_FILES:
        return problems
    others = Problem(store.source_name, f"{len(problems) - NAMED_FILES:,} more images {what}")
    return [*problems[:NAMED_FILES], others]


def category_errors(train: AnnotationStore, val: AnnotationStore) -> Iterator[Problem]:
    """Categories that differ between the files: labels are positions, so both must have the same in the same order."""
    ours, theirs = ([(category.id, category.name) for category in store.categories] for store in (train, val))
    if ours == theirs:
        return
    fix = "use annotation files of one dataset version"
    if len(ours) != len(theirs):
        what = f"{len(theirs)} categories, but {len(ours)} in {train.source_name}"
        yield Problem(val.source_name, what, allowed="the categories of the training split", fix=fix)
        return
    at = next(n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    if sorted(ours) == sorted(theirs):
        fix = "sort the categories of both files by id"
    yield Problem(
        f"{val.source_name}: categories[{at}]",
        f"is {theirs[at][1]!r}, id {theirs[at][0]}, but {ours[at][1]!r}, id {ours[at][0]}, in {train.source_name}",
        allowed="the categories of the training split, in its order",
        fix=fix,
    )


def version_errors(store: AnnotationStore, dataset_name: str) -> Iterator[Problem]:
    """A file of another version of LVIS than its name, or the study's, says."""
    version = version_of(store.categories)
    for where, name in ((store.source_name, store.source_name), ("dataset.name", dataset_name)):
        claimed = claimed_version(name)
        if version is not None and claimed not in (None, version.name):
            what = f"names LVIS {claimed}, but the categories of {store.source_name} are those of {version.name}"
            fix = f"use the file of LVIS {claimed}, or rename it"
            yield Problem(where, what, allowed=f"{version.name}, by content", fix=fix)
            return


def label_errors(store: AnnotationStore) -> Iterator[Problem]:
    """Labels outside 1 to C, which would end a run on a GPU with a device assertion."""
    low, high = int(store.labels.min(initial=1)), int(store.labels.max(initial=1))
    if low < 1 or high >= store.num_labels:
        allowed = f"1 to {store.num_labels - 1}"
        yield Problem(str(store.path), f"holds labels {low} to {high}", allowed, "build the store again")


NORMALISED = "all boxes lie between 0 and 1, as normalised coordinates do"
MAKE_PIXELS = "multiply boxes and polygons by the width and height of their image, and areas by both"


def has_normalised_boxes(store: AnnotationStore) -> bool:
    """Whether all boxes lie in the first pixel of their image: their coordinates are fractions of it."""
    x, y, w, h = store.boxes_xywh.T
    edges = np.concatenate([-x, -y, x + w - 1, y + h - 1])
    return len(x) > 0 and bool((edges <= ROUNDING_PX).all())


def box_errors(store: AnnotationStore) -> Iterator[Problem]:
    """Normalised coordinates, with which an object that fills its image is still a box of one pixel."""
    if has_normalised_boxes(store):
        yield Problem(store.source_name, NORMALISED, allowed="pixels", fix=MAKE_PIXELS)


def object_errors(val: AnnotationStore) -> Iterator[Problem]:
    """Annotations of which none is scored: no metric would have a value."""
    if len(val.annotation_ids) and not val.is_scored.any():
        unused = val.untrained()
        numbers = {reason: int(found.sum()) for reason, found in unused.items() if UNTRAINED[reason] == NEITHER}
        causes = ", ".join(f"{number:,} {reason}" for reason, number in numbers.items() if number)
        what = f"none of {len(val.annotation_ids):,} annotations is scored: {causes}"
        yield Problem(val.source_name, what, allowed="area above 0", fix="write the area of the masks in pixels")


def outline_warnings(store: AnnotationStore) -> Iterator[str]:
    """Boxes that are not those of their polygons, as boxes of two corners or normalised polygons, by a sample."""
    rows = np.flatnonzero(store.polygon_counts)
    sample = rows[:: len(rows) // SAMPLED_OUTLINES + 1].tolist()
    unlike = [row for row in sample if not is_box_of_polygons(store, row)]
    if len(unlike) > MOST_UNLIKE * len(sample):
        first = f"annotation {store.annotation_ids[unlike[0]]}, {store.boxes_xywh[unlike[0]].tolist()}"
        yield (
            f"{store.source_name}: {len(unlike):,} of {len(sample):,} annotations looked at have a box that is not "
            f"that of their polygons, first {first}: boxes are [x, y, width, height], polygons [x0, y0, x1, y1, ...], "
            "all in pixels; the network learns both as they are"
        )


def is_box_of_polygons(store: AnnotationStore, row: int) -> bool:
    """Whether an annotation's box is that of its polygons: at most 2 pixels off, or an IoU of 0.5 or more."""
    first = store.first_polygons[row]
    start, end = store.coordinate_offsets[[first, first + store.polygon_counts[row]]]
    points = store.coordinates[start:end].reshape(-1, 2)
    x, y, w, h = store.boxes_xywh[row]
    low, high = np.array([[x, y], points.min(axis=0)]), np.array([[x + w, y + h], points.max(axis=0)])
    common = np.maximum(high.min(axis=0) - low.max(axis=0), 0).prod()
    is_near = max(np.ptp(low, axis=0).max(), np.ptp(high, axis=0).max()) <= 2
    return bool(is_near or 3 * common >= (high - low).prod(axis=1).sum())


def split_warnings(store: AnnotationStore) -> Iterator[str]:
    """What is legal in one split but worth knowing."""
    yield from outline_warnings(store)
    version = version_of(store.categories)
    if version is not None:
        for difference in unlike_a_full_split(version, store.counts):
            yield f"{store.source_name}: {difference}"
    if boxes := store.counts["clipped_boxes"]:
        yield f"{store.source_name}: {boxes:,} boxes overshoot their image and are clipped"
    for reason, found in store.untrained().items():
        if number := int(found.sum()):
            yield f"{store.source_name}: {number:,} annotations {reason}: {UNTRAINED[reason]}"
    image_of = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))
    absent_in = np.repeat(np.arange(store.num_images), np.diff(store.negative_offsets))
    present = image_of * store.num_labels + store.labels
    absent = absent_in * store.num_labels + store.negative_labels
    if both := len(np.intersect1d(present, absent)):
        yield f"{store.source_name}: {both:,} categories of an image are annotated and listed as absent in it"


def rescale_warnings(store: AnnotationStore, short_edge_px: int, long_edge_px: int) -> Iterator[str]:
    """Images so thin that their short edge rounds to 0 pixels when they are rescaled; it then has 1."""
    shorter, longer = np.minimum(store.heights, store.widths), np.maximum(store.heights, store.widths)
    factors = np.minimum(short_edge_px / shorter, long_edge_px / longer)
    thin = np.flatnonzero(shorter * factors < 0.5)
    named = [
        f"{store.image_ids[image]} ({store.widths[image]} x {store.heights[image]})" for image in thin[:NAMED_FILES]
    ]
    if named:
        more = f", … ({len(thin) - len(named):,} more)" if len(thin) > len(named) else ""
        yield (
            f"{store.source_name}: {len(thin):,} images become 1 pixel thin when they are rescaled to a long edge of "
            f"{long_edge_px} px, so that little can be detected in them: {', '.join(named)}{more}"
        )


def images_of_train2017(store: AnnotationStore) -> int:
    """Images that are of COCO train2017, by their names: of LVIS v1 three quarters of val, of v0.5 none."""
    names = (image_candidates(*store.image_name(image))[0] for image in range(store.num_images))
    return sum(zip_of(name) == "train2017.zip" for name in names)


def overlap_warnings(train: AnnotationStore, val: AnnotationStore, folders: tuple[Path, Path]) -> Iterator[str]:
    """Images that are in both splits."""
    ours, theirs = (
        {folder / image_candidates(*store.image_name(image))[0] for image in range(store.num_images)}
        for store, folder in zip((train, val), folders, strict=True)
    )
    if both := sorted(ours & theirs):
        yield f"{len(both):,} images are in both splits, so the scores are not of unseen images; first: {both[0]}"
