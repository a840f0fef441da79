"""Image files of a dataset, in folders or in zips as they were downloaded; and the one decoder.

COCO's photographs are 123,000 small files: clusters limit the number of files of a user, and shared storage reads them
slowly. So the folder of the images may contain ``train2017/`` or ``train2017.zip``, or both: a file in a folder wins.

The directory of a zip is kept as flat arrays that all processes share. An open ZipFile of 118,000 members would take
64 MB in the first process and 99 MB more in every worker that opens its own, in place of 21 MB once.

Other pixels of a file need another TRAINER_REVISION (runs/identity.py) and INFERENCE_REVISION (runs/inference.py).
"""

import contextlib
import importlib
import io
import os
import pickle
import re
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from PIL.JpegImagePlugin import JpegImageFile

from lvis_rcnn.dataset.store import AnnotationStore, image_candidates
from lvis_rcnn.system.cli import InputError, log

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field
READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
USUAL_STARTS = (JPEG_START, b"\x89PNG")
# OpenCV may be built for more.
KINDS = "JPEG, PNG, WebP, BMP, TIFF of 8 or 16 bits, JPEG 2000, PPM"

STDERR = 2
decoding = threading.Lock()  # standard error is the whole process's
# What libjpeg (jerror.h, JWRN_...) and libtiff say where pixels are lost. Bytes too many before the end marker, 0xd9,
# are harmless where cameras pad the end, and all that is said where damage brought the decoder out of step.
LOST = re.compile(
    rb"premature end of data segment|bad Huffman code|Premature end of JPEG file|Inconsistent progression sequence"
    rb"|extraneous bytes before marker 0x(?!d9)|TIFF_Error(?!.*Bad value \d+ for .Orientation. tag)"
)
COMPLAINTS = re.compile(LOST.pattern + rb"|Corrupt JPEG data")


@dataclass(frozen=True)
class Member:
    """One file of a zip, according to the zip's directory."""

    name: str
    header_offset: int
    stored_bytes: int
    """Bytes in the zip."""
    size_bytes: int
    """Bytes when unpacked."""
    is_deflated: bool
    crc32: int


@dataclass(frozen=True)
class ImageFile:
    """The place of one image: a file of its own, or a member of a zip."""

    path: Path
    """Path of the file or of the zip."""
    member: Member | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member.name}"

    @property
    def size_bytes(self) -> int:
        """Bytes of the image."""
        return self.path.stat().st_size if self.member is None else self.member.size_bytes

    def read(self) -> bytes:
        """The whole image.

        Raises:
            InputError: it cannot be read, or is not what the zip's directory says (length, CRC-32).
        """
        try:
            with self.open() as file:
                return file.read()
        except OSError as error:
            raise self.unreadable(error) from None

    def open_unchecked(self) -> BinaryIO:
        """A file to read and seek in that reads only what is asked for and does not check the CRC-32.

        Raises:
            InputError: as :meth:`read`.
        """
        if self.member is None or self.member.is_deflated:
            return self.open()
        try:
            archive = self.path.open("rb")
            start = content_offset(archive, self.member)
            return io.BufferedReader(PartOfFile(archive, start, self.member.stored_bytes))
        except OSError as error:
            raise self.unreadable(error) from None

    def open(self) -> BinaryIO:
        """A file to read and seek in.

        Raises:
            InputError: as :meth:`read`.
        """
        try:
            if self.member is None:
                return self.path.open("rb")
            with self.path.open("rb") as archive:
                return io.BytesIO(unpacked(archive, self.path, self.member))
        except OSError as error:
            raise self.unreadable(error) from None

    def unreadable(self, error: OSError) -> InputError:
        """The error of an image that the disk does not give."""
        return InputError(str(self), f"cannot be read ({error.strerror})", fix="restore the file")


class PartOfFile(io.RawIOBase):
    """Part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size_bytes: int) -> None:
        self.file, self.start, self.size_bytes, self.at = file, start, size_bytes, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, as in any file."""
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size_bytes}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Read at most to the end of the buffer and of the part."""
        self.file.seek(self.start + self.at)
        content = self.file.read(max(0, min(len(buffer), self.size_bytes - self.at)))
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

    def close(self) -> None:
        """Close the whole file."""
        self.file.close()
        super().close()


def content_offset(archive: BinaryIO, member: Member) -> int:
    """Position of a member's first byte; the end of the file if the member's header is damaged."""
    archive.seek(member.header_offset)
    header = archive.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        return archive.seek(0, os.SEEK_END)
    _, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
    return int(member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes)


def unpacked(archive: BinaryIO, path: Path, member: Member) -> bytes:
    """Bytes of a member, checked; InputError as :meth:`ImageFile.read`."""
    archive.seek(content_offset(archive, member))
    content = archive.read(member.stored_bytes)
    if member.is_deflated:
        content = inflated(content, member.size_bytes)
    if len(content) != member.size_bytes or zlib.crc32(content) != member.crc32:
        raise InputError(f"{path}: {member.name}", "is damaged in the zip", fix="fetch the zip again")
    return content


def inflated(content: bytes, size_bytes: int) -> bytes:
    """Unpack at most ``size_bytes`` + 1; nothing if the bytes are damaged."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size_bytes + 1)
    except zlib.error:
        return b""


@dataclass(frozen=True, eq=False)
class ZipIndex:
    """Directory of one zip as flat arrays, sorted by name: 9 MB for 118,000 members, which workers share."""

    path: Path
    names: np.ndarray
    """UTF-8, padded with zeros."""
    members: Int64[np.ndarray, "m 5"]
    """Offset of the header, bytes in the zip, bytes unpacked, deflated or not, CRC-32."""

    def find(self, name: str) -> Member | None:
        """The member of that name."""
        wanted = name.encode()
        at = int(np.searchsorted(self.names, np.bytes_(wanted)))
        if at == len(self.names) or bytes(self.names[at]) != wanted:
            return None
        offset, stored_bytes, size_bytes, is_deflated, crc32 = self.members[at].tolist()
        return Member(name, offset, stored_bytes, size_bytes, bool(is_deflated), crc32)


def read_zip_index(path: Path) -> ZipIndex:
    """Read the directory of a zip.

    Raises:
        InputError: no readable zip, or one that is encrypted or packed by a method other than stored and deflated.
    """
    fix = "fetch it again, or move it out of the folder of the images"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(str(path), f"is no readable zip: {error}", fix=fix) from None
    for entry in entries:
        if entry.flag_bits & ENCRYPTED or entry.compress_type not in READABLE_METHODS:
            what = "is encrypted" if entry.flag_bits & ENCRYPTED else f"is packed by method {entry.compress_type}"
            fix = "unpack it into a folder, or move it out of the folder of the images"
            raise InputError(f"{path}: {entry.filename}", what, allowed="stored or deflated members", fix=fix)
    # Some programs write ./a.jpg, or backslashes, whatever the standard says. Of members of one name, which a program
    # leaves that changes a zip, the last counts, as where it is unpacked.
    named = {entry.filename.replace("\\", "/").removeprefix("./").encode(): entry for entry in entries}
    names = np.array(list(named), dtype=np.bytes_)
    columns = [
        (e.header_offset, e.compress_size, e.file_size, int(e.compress_type == zipfile.ZIP_DEFLATED), e.CRC)
        for e in named.values()
    ]
    order = np.argsort(names, kind="stable")
    return ZipIndex(path, names[order], np.array(columns, dtype=np.int64).reshape(-1, 5)[order])


class ImageFiles:
    """The images below a folder, or of one zip.

    Zips directly in the folder are found by their ending; their directories are read once, here, so that worker
    processes share them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        zips = [root] if root.is_file() else sorted(path for path in root.glob("*.[zZ][iI][pP]") if path.is_file())
        self.zips = [read_zip_index(path) for path in zips]
        self.is_folder: dict[Path, bool] = {}

    def find(self, names: Sequence[str]) -> ImageFile | None:
        """The first of these names (relative, with slashes) that exists; as a file rather than in a zip."""
        for name in names:
            path = self.root / name
            # Whether there is the folder is asked once, not for each image; Path.is_file raises for long names.
            if self.has_folder(path.parent) and os.path.isfile(path):
                return ImageFile(path)
            for index in self.zips:
                if member := index.find(name):
                    return ImageFile(index.path, member)
        return None

    def has_folder(self, folder: Path) -> bool:
        """Whether the folder exists; asked once."""
        if folder not in self.is_folder:
            self.is_folder[folder] = os.path.isdir(folder)
        return self.is_folder[folder]

    def of(self, store: AnnotationStore, image: int) -> ImageFile:
        """The file of the image at this position of the store.

        Raises:
            InputError: none of the names that LVIS uses for this image is there; they are listed.
        """
        candidates = image_candidates(*store.image_name(image))
        found = self.find(candidates)
        if found is None:
            raise InputError(
                f"{store.source_name}: image {store.image_ids[image]}",
                f"not found in {self.root} or a zip in it; tried {', '.join(candidates)}",
                fix="set the split's 'images' to the folder that holds the images or their zip, or add the file",
            )
        return found


@cache
def mmcv() -> Any:
    """The library of the published pixel chain; imported here alone, when it is needed, since it imports torch.

    It also imports yapf, which writes a grammar into the user's cache folder, in place, at its first import after an
    installation: jobs that start side by side, or after a kill, read half a file. They then write their own.
    """
    try:
        return importlib.import_module("mmcv")
    except (EOFError, pickle.UnpicklingError):
        before = dict(os.environ)
        try:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = folder
                return importlib.import_module("mmcv")
        finally:
            os.environ.clear()
            os.environ.update(before)


def read_image_bgr(file: ImageFile, height: int | None = None, width: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image as the published runs did: OpenCV through mmcv, EXIF orientation applied.

    Height and width are those that it must have, if it is annotated.

    Raises:
        InputError: the file is missing, truncated, or not of the annotated size.
    """
    content = file.read()
    image, complaint = decoded(content)
    if image is None or is_cut_short(content):
        if content and not content.startswith(USUAL_STARTS):
            what, fix = "is no complete image of a kind that is read", "convert it, or copy the file again"
            raise InputError(str(file), what, allowed=KINDS, fix=fix)
        raise InputError(str(file), "is no complete image", fix="copy the file again")
    if height is not None and image.shape[:2] != (height, width):
        raise InputError(
            str(file),
            f"is {image.shape[1]} x {image.shape[0]} pixels",
            allowed=f"{width} x {height}, as annotated",
            fix="use the images that belong to the annotations",
        )
    if complaint:
        warn_once(f"{file}: {complaint}: its pixels may be wrong from there on")
    return image


@cache
def warn_once(text: str) -> None:
    """A warning that is written once by each process."""
    log.warning("warning: %s", text)


def decoded(content: bytes) -> tuple[UInt8[np.ndarray, "h w 3"] | None, str]:
    """The upright image, None if there is none, and what its decoder complains of; empty if of nothing.

    OpenCV returns a damaged JPEG as if it were whole; libjpeg writes its only word about it to standard error.
    """
    with decoding, contextlib.ExitStack() as stack:
        try:
            stderr = os.dup(STDERR)
            stack.callback(os.close, stderr)
            said = stack.enter_context(os.fdopen(os.memfd_create("stderr"), "r+b"))
        except (OSError, AttributeError):  # closed, as in a daemon; not Linux
            return decoded_silently(content), ""
        os.dup2(said.fileno(), STDERR)
        try:
            image = decoded_silently(content)
        finally:
            os.dup2(stderr, STDERR)
        said.seek(0)
        lines = said.read().splitlines(keepends=True)
    complaints = [line for line in lines if COMPLAINTS.search(line)]
    for line in lines:  # of other threads
        if line not in complaints:
            os.write(STDERR, line)
    return image, b" ".join(complaints).decode(errors="replace").strip()


def decoded_silently(content: bytes, flag: str = "color") -> np.ndarray | None:
    """The image, or None."""
    try:
        # OpenCV asserts on an empty buffer, and that there are at most 2**30 pixels.
        image: np.ndarray | None = mmcv().imfrombytes(content, flag=flag) if content else None
    except cv2.error:
        return None
    return image


def is_cut_short(content: bytes) -> bool:
    """Whether a JPEG file is truncated, which OpenCV accepts: it fills the rest with grey.

    A file that ends with the end marker is not decoded again; Pillow, which is strict, decides about the others.
    """
    if not content.startswith(JPEG_START) or content.endswith(JPEG_END):
        return False
    try:
        # Image.open would refuse what it calls a decompression bomb, of fewer pixels than OpenCV decodes.
        with JpegImageFile(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError):
        return True
    return False
