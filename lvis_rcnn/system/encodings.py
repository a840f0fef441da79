"""What the first bytes of a text file say: a mark to skip, or that it is another kind of file."""

from lvis_rcnn.system.cli import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

UTF_16 = ("is UTF-16 or UTF-32, not UTF-8", "write it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW")

# First bytes in lower case -> what such a file is, and how to fix it.
OTHER_FILES = {
    b"\x1f\x8b": ("is compressed with gzip", "unpack it with gunzip"),
    b"pk\x03\x04": ("is a zip archive, as .npz and .pth are, too", "unpack it with unzip, or name another file"),
    b"bzh": ("is compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zxz": ("is compressed with xz", "unpack it with unxz"),
    b"(\xb5/\xfd": ("is compressed with zstd", "unpack it with unzstd"),
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"<!doctype": ("is an HTML page", "download the file again; a browser shows what the page says"),
    b"<?xml": ("is XML, as a server's error is", "download the file again; a browser shows what the page says"),
    b"<html": ("is an HTML page", "download the file again; a browser shows what the page says"),
    b"version https://git-lfs": ("is a pointer of Git LFS", "get the file with git lfs pull"),
}


# The same of data that a program may take, but not as text.
DATA = {
    b"\x80": ("is a pickle, as MMDetection's results.pkl is", "write JSON: MMDetection does, with outfile_prefix"),
    b"\x93NUMPY": ("is an array of NumPy", "write JSON, or load it and score it from Python"),
}


def other_kind(head: bytes) -> tuple[str, str] | None:
    """What a file with these first bytes is, and how to fix it; None where they are none of ``OTHER_FILES``."""
    start = head.lstrip().lower()
    return next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), None)


def text_start(head: bytes, where: str) -> int:
    """The byte at which the text of a file starts: 3 after a UTF-8 byte order mark, else 0.

    Args:
        head: its first bytes, 32 or more if there are so many.
        where: name of the file, for messages.

    Raises:
        InputError: it is compressed, an archive, in another encoding or a web page.
    """
    if len(head) > 4 and not head.strip(b"\0"):
        what, fix = "begins with zero bytes, as a file that was never wholly written", "get or write the file again"
        raise InputError(where, what, allowed="text in UTF-8", fix=fix)
    data = next((kind for magic, kind in DATA.items() if head.startswith(magic)), None)
    # UTF-16 writes every second byte of ASCII as 0.
    if kind := other_kind(head) or data or (UTF_16 if head[:4].count(0) >= 2 else None):
        raise InputError(where, kind[0], allowed="text in UTF-8", fix=kind[1])
    return len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
