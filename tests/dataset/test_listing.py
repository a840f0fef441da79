"""Files, folders and zips become one list of images, each with a place of its own."""

import re
import zipfile
from pathlib import Path

import pytest

from lvis_rcnn.dataset.listing import listed_images
from lvis_rcnn.system.cli import InputError


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_each_image_of_a_source_is_listed_once_and_drawn_inside_the_folder_of_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("a"), "x.JPG", "deep/er/y.png", "notes.txt", ".hidden/z.png", "found/x.png", "x.png")
    put(Path("b"), "x.jpeg")
    with zipfile.ZipFile("c.ZIP", "w") as archive:
        for name in ("in/z.webp", "../../x.png", "/etc/w.png", "__MACOSX/in/z.webp", "in/z.json"):
            archive.writestr(name, name)
    images = listed_images([Path("b/x.jpeg"), Path("a"), Path("c.ZIP")], out=Path("a/found"))
    assert [(image.name, str(image.place)) for image in images] == [
        ("b/x.jpeg", "x.png"),
        ("a/deep/er/y.png", "deep/er/y.png"),
        ("a/x.JPG", "x_2.png"),
        ("a/x.png", "x_3.png"),
        ("c.ZIP/../../x.png", "x_4.png"),
        ("c.ZIP/etc/w.png", "etc/w.png"),
        ("c.ZIP/in/z.webp", "in/z.png"),
    ]
    # As they were written: the right bytes of each.
    read = [image.file.read().decode() for image in images]
    assert read == ["x.jpeg", "deep/er/y.png", "x.JPG", "x.png", "../../x.png", "/etc/w.png", "in/z.webp"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none", "none: no such image, folder or zip"),
        ("texts", "texts: no image in it"),
        ("a.zip", "a.zip: is no read"),
    ],
)
def test_what_holds_no_image_is_refused_at_once(tmp_path, monkeypatch, name, what):
    monkeypatch.chdir(tmp_path)
    put(Path("texts"), "a.txt")
    Path("a.zip").write_text("no zip")
    with pytest.raises(InputError, match=f"^{re.escape(what)}"):
        listed_images([Path("texts/a.txt"), Path(name)], out=Path("out"))
