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
    put(Path("b"), "x.jfif")
    with zipfile.ZipFile("c.ZIP", "w") as archive:
        for name in ("in/z.webp", "../../x.png", "/etc/w.png", "__MACOSX/in/z.webp", "in/z.json"):
            archive.writestr(name, name)
    images = listed_images([Path("b"), Path("a"), Path("c.ZIP")], out=Path("a/found"))
    assert [(image.name, str(image.place)) for image in images] == [
        ("b/x.jfif", "x.png"),
        ("a/deep/er/y.png", "deep/er/y.png"),
        ("a/x.JPG", "x_2.png"),
        ("a/x.png", "x_3.png"),
        ("c.ZIP/../../x.png", "x_4.png"),
        ("c.ZIP/etc/w.png", "etc/w.png"),
        ("c.ZIP/in/z.webp", "in/z.png"),
    ]
    # As they were written: the right bytes of each.
    read = [image.file.read().decode() for image in images]
    assert read == ["x.jfif", "deep/er/y.png", "x.JPG", "x.png", "../../x.png", "/etc/w.png", "in/z.webp"]


def test_linked_folders_are_listed_and_loops_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("far"), "x.png", "deep/y.png")
    put(Path("a"), "own.png", "b/z.png")
    for link, place in (("a/linked", "far"), ("a/b/up", "a"), ("far/deep/back", "a")):
        Path(link).symlink_to(Path(place).absolute())
    names = [image.name for image in listed_images([Path("a")], out=Path("found"))]
    assert names == ["a/b/z.png", "a/linked/deep/y.png", "a/linked/x.png", "a/own.png"]


def test_no_picture_takes_the_place_of_another_or_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = ("a.jpg", "a.png/b.png", "c.png/d.png", "e/c.png", "f" * 300 + ".png", "f" * 300 + ".jpg")
    with zipfile.ZipFile("c.zip", "w") as archive:
        for name in members:
            archive.writestr(name, name)
    put(Path(), "c.png", "ä" * 124 + ".png")
    images = listed_images([Path("c.zip"), Path("c.png"), Path("ä" * 124 + ".png")], out=Path("out"))
    places = [str(image.place) for image in images]
    # Of the names that no file can have, with the temporary file's 10 bytes more, the ends are lost.
    cut = ["f" * 241 + ".png", "f" * 239 + "_2.png"]
    assert places == ["a.png", "a.png_2/b.png", "c.png/d.png", "e/c.png", *cut, "c_2.png", "ä" * 120 + ".png"]


def test_no_result_takes_the_place_of_a_picture_that_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("a"), "x.jpg", "y.png", "deep/z.png")
    Path("link").symlink_to("a")
    message = "link/y.png: would be drawn over its own picture; fix: name another folder with --out"
    with pytest.raises(InputError, match=message):
        listed_images([Path("a/x.jpg"), Path("a/y.png")], out=Path("link"))
    assert [str(image.place) for image in listed_images([Path("a/x.jpg")], out=Path("a"))] == ["x.png"]
    with pytest.raises(InputError, match=r"a/deep: lies in a, where results are written .*; fix: name another folder"):
        listed_images([Path("a/deep")], out=Path("a"))


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
