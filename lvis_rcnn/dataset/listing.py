"""Images that a user names, as one list: files, folders with all that lies in them, and zips."""

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

from lvis_rcnn.dataset.images import ImageFile, read_zip_index
from lvis_rcnn.system.cli import TEMPORARY_BYTES, InputError

# What counts as an image in a folder or a zip; a file that is named itself may end otherwise.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff", ".gif"),
    *(".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)

MOST_BYTES = 255 - TEMPORARY_BYTES  # of the name of a picture that is written


@dataclass(frozen=True)
class Listed:
    """An image that was named, alone or by what it lies in."""

    file: ImageFile
    name: str
    """The path as it was typed; of a folder or zip, and where in it."""
    place: Path
    """Relative path of the picture that is drawn of it, a PNG: that in its folder or zip, unlike those before it."""


def listed_images(sources: Sequence[Path], out: Path) -> list[Listed]:
    """The images of files, folders (with all below them) and zips, in the order of ``sources``, then by name.

    Zips in folders are not opened. Hidden files, and all below ``out``, are no images of a folder.

    Args:
        sources: what the user named.
        out: where results are written, which an earlier call may have filled.

    Raises:
        InputError: a source does not exist, is a damaged zip, or holds no image, or a result would replace one of the
            images; nothing was read yet.
    """
    images: list[Listed] = []
    files: set[Path] = set()
    folders: set[Path] = set()
    for source in sources:
        found = list(images_of(source, out))
        if not found and source.resolve().is_relative_to(out.resolve()):
            what = f"lies in {out}, where results are written and no picture is looked for"
            raise InputError(str(source), what, fix="name another folder with --out")
        if not found:
            what = f"no image in it, by the endings {', '.join(ENDINGS)}"
            raise InputError(str(source), what, fix="name the images themselves, or another folder")
        for file, inside in found:
            name = f"{source}/{inside.lstrip('/')}" if inside else str(source)
            place = free_place(inside or source.name, files, folders)
            # A file system may have names that are no text.
            images.append(Listed(file, os.fsencode(name).decode(errors="replace"), place))
    inputs = {os.path.realpath(image.file.path) for image in images}
    for path in (out / image.place for image in images):
        if os.path.realpath(path) in inputs:
            raise InputError(str(path), "would be drawn over its own picture", fix="name another folder with --out")
    return images


def images_of(source: Path, out: Path) -> Iterator[tuple[ImageFile, str]]:
    """The images of one source, and where each lies in it; empty for a file."""
    if os.path.isdir(source):
        for path in files_below(source):
            inside = path.relative_to(source).as_posix()
            if is_image(inside) and path.is_file() and not path.resolve().is_relative_to(out.resolve()):
                yield ImageFile(path), inside
    elif not os.path.exists(source):
        raise InputError(str(source), "no such image, folder or zip", fix="name one that exists")
    elif source.suffix.lower() == ".zip":
        index = read_zip_index(source)
        for name in filter(is_image, (name.decode() for name in index.names.tolist())):
            yield ImageFile(source, index.find(name)), name
    else:
        yield ImageFile(source), ""


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files of a folder and those below it, linked ones too, sorted; none of a folder that lies in itself."""
    here = folder.resolve()
    if here not in above:
        for path in sorted(folder.iterdir()):
            yield from files_below(path, (*above, here)) if path.is_dir() else (path,)


def is_image(name: str) -> bool:
    """Whether a name ends as an image's, and neither it nor a folder of it is hidden (macOS adds ``__MACOSX``)."""
    path = PurePosixPath(name)
    hidden = (part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return path.suffix.lower() in ENDINGS and not any(hidden)


def free_place(name: str, files: set[Path], folders: set[Path]) -> Path:
    """``name`` as a PNG, inside the folder of results whatever a zip says, with a number where it is taken.

    Args:
        name: relative path of an image in its folder or zip.
        files: places that are taken; the new one is added.
        folders: their folders, which no file can replace; those of the new one are added.
    """
    *above, last = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    place = Path()
    for part in above:
        place = free_name(place, part, "", files)
    place = free_name(place, Path(last).with_suffix("").name, ".png", files | folders)
    files.add(place)
    folders.update(place.parents)
    return place


def free_name(folder: Path, stem: str, ending: str, taken: Container[Path]) -> Path:
    """A place in ``folder``, with a number where it is taken."""
    ends = chain([ending], (f"_{number}{ending}" for number in count(2)))
    return next(place for end in ends if (place := folder / fitting(stem, end)) not in taken)


def fitting(stem: str, end: str) -> str:
    """The name with ``end``, cut before it to what a file system takes; names in a zip are of any length."""
    stem = stem[:MOST_BYTES]
    while len(os.fsencode(stem + end)) > MOST_BYTES:
        stem = stem[:-1]
    return stem + end
