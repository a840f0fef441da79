"""Images in folders and in zips: found by every name that LVIS uses, read whole, or refused by name."""

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lvis_rcnn.dataset.images as images
from lvis_rcnn.dataset.images import ImageFile, ImageFiles, decoded, read_image_bgr, read_zip_index
from lvis_rcnn.system.cli import InputError
from tests.helpers.small_dataset import build, small_dataset

CONTENT = b"not much of an image" * 10


def pack(path, members, method=zipfile.ZIP_STORED):
    """A zip with these members; a folder entry in front, as COCO's have."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("train2017")
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("images_dir", [".", "train2017"])
@pytest.mark.parametrize("file_name", ["COCO_train2014_000000000009.jpg", None])
def test_images_are_found_by_coco_url(tmp_path, images_dir, file_name):
    dataset = small_dataset()
    dataset["images"][0]["file_name"] = file_name
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "000000000007.jpg").touch()
    found = ImageFiles(tmp_path / images_dir).of(build(tmp_path, dataset), 0)
    assert found.path.samefile(tmp_path / "train2017" / "000000000007.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("root", "name"), [(".", "train2017.zip"), ("a.zip", "a.zip"), (".", "A.ZIP")])
def test_images_are_read_from_a_zip(tmp_path, method, root, name):
    store = build(tmp_path, small_dataset())
    members = {f"train2017/{n:012}.jpg": CONTENT + bytes([n]) for n in (9, 7, 250)}
    pack(tmp_path / name, members, method)
    found = ImageFiles(tmp_path / root).of(store, 0)
    assert str(found) == f"{tmp_path}/{name}: train2017/000000000007.jpg"
    assert found.read() == CONTENT + b"\7"
    assert found.size_bytes == len(CONTENT) + 1
    assert pickle.loads(pickle.dumps(ImageFiles(tmp_path))).of(store, 0).read() == CONTENT + b"\7"


def test_a_file_in_a_folder_wins(tmp_path):
    pack(tmp_path / "train2017.zip", {"train2017/1.jpg": b"packed", "train2017/2.jpg": b"packed"})
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "2.jpg").write_bytes(b"unpacked")
    files = ImageFiles(tmp_path)
    assert [files.find([f"train2017/{n}.jpg"]).read() for n in (1, 2)] == [b"packed", b"unpacked"]
    assert files.find(["train2017/3.jpg", "train2017"]) is None


@given(
    st.sets(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:"), min_size=1), max_size=8)
)
def test_every_member_of_a_zip_is_found_and_no_other(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("zips") / "some.zip"
    pack(path, {name: name.encode() for name in names})
    index = read_zip_index(path)
    assert {name: index.find(name).size_bytes for name in names} == {name: len(name.encode()) for name in names}
    assert index.find("".join(names) + "x") is None


def test_a_missing_image_names_what_was_tried(tmp_path):
    store = build(tmp_path, small_dataset())
    tried = r"image 9: not found in .* or a zip in it; tried val2017/000000000009.jpg, 000000000009.jpg"
    with pytest.raises(InputError, match=tried):
        ImageFiles(tmp_path).of(store, 2)


def test_an_impossible_file_name_is_a_missing_image(tmp_path):
    dataset = small_dataset()
    dataset["images"][1]["file_name"] = "x" * 5000 + "\0"
    with pytest.raises(InputError, match="image 3: not found"):
        ImageFiles(tmp_path).of(build(tmp_path, dataset), 1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [0, 40])
def test_a_damaged_member_is_named(tmp_path, method, at):
    pack(tmp_path / "a.zip", {"1.jpg": CONTENT}, method)
    found = ImageFiles(tmp_path).find(["1.jpg"])
    content = bytearray(found.path.read_bytes())
    content[found.member.header_offset + at] ^= 0xFF
    found.path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.zip: 1.jpg: is damaged in the zip; fix: fetch the zip again"):
        found.read()


def test_a_zip_that_lies_about_a_size_is_damaged(tmp_path):
    pack(tmp_path / "a.zip", {"1.jpg": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.rindex(b"PK\1\2") + 24  # the unpacked size in the directory
    content[at : at + 4] = (100).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="is damaged in the zip"):
        ImageFiles(tmp_path).find(["1.jpg"]).read()


@pytest.mark.parametrize("kept", [0, 10, -30])
def test_a_truncated_zip_is_refused(tmp_path, kept):
    pack(tmp_path / "a.zip", {"1.jpg": CONTENT})
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"a.zip: is no readable zip: .*; fix: fetch it again, or move it out"):
        ImageFiles(tmp_path)


def test_other_methods_are_refused(tmp_path):
    pack(tmp_path / "a.zip", {"1.jpg": CONTENT}, zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match=r"a.zip: 1.jpg: is packed by method 14; allowed: stored or deflated members"):
        ImageFiles(tmp_path)


def test_of_members_of_one_name_the_last_counts(tmp_path):
    pack(tmp_path / "a.zip", {"1.jpg": b"first", "2.jpg": b"other"})
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("./1.jpg", b"corrected")
    files = ImageFiles(tmp_path)
    assert [files.find([name]).read() for name in ("1.jpg", "2.jpg")] == [b"corrected", b"other"]
    assert len(files.zips[0].names) == 2


def test_an_image_that_the_disk_does_not_give_is_named():
    with pytest.raises(InputError, match=r"/proc/self/mem: cannot be read \(Input/output error\); fix: restore"):
        ImageFile(Path("/proc/self/mem")).read()


def test_a_zip_that_vanishes_is_named(tmp_path):
    pack(tmp_path / "a.zip", {"1.jpg": CONTENT})
    found = ImageFiles(tmp_path).find(["1.jpg"])
    found.path.unlink()
    with pytest.raises(InputError, match=r"a.zip: 1.jpg: cannot be read \(No such file or directory\)"):
        found.read()


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 320), st.sampled_from([0, 2]), st.integers(0, 99))))
def test_part_of_a_zip_is_read_like_a_file(tmp_path_factory, content, moves):
    path = tmp_path_factory.mktemp("zips") / "a.zip"
    pack(path, {"0.jpg": CONTENT, "1.jpg": content, "2.jpg": CONTENT})
    ours, theirs = ImageFiles(path).find(["1.jpg"]).open_unchecked(), io.BytesIO(content)
    for position, whence, count in moves:
        assert ours.seek(-min(position, len(content)) if whence else position, whence) == theirs.seek(
            -min(position, len(content)) if whence else position, whence
        )
        assert ours.read(count) == theirs.read(count)
    ours.close()


def damaged_jpeg(folder):
    """A JPEG whose second half was lost, but for the end marker."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    content = cv2.imencode(".jpg", pixels)[1].tobytes()
    (folder / "a.jpg").write_bytes(content[: len(content) // 2] + content[-2:])
    return ImageFile(folder / "a.jpg")


def test_what_the_decoder_says_of_an_image_is_said_once_with_its_name(tmp_path, capfd, monkeypatch):
    said = []
    monkeypatch.setattr(images.log, "warning", lambda text, *values: said.append(text % values))
    file = damaged_jpeg(tmp_path)
    assert read_image_bgr(file, 40, 60).shape == read_image_bgr(file, 40, 60).shape == (40, 60, 3)
    assert [line.split(": ")[:3] for line in said] == [["warning", str(file), "Corrupt JPEG data"]]
    assert capfd.readouterr().err == ""


def test_what_others_write_while_an_image_is_decoded_is_not_lost(capfd, monkeypatch):
    def writes(content):
        os.write(2, b"other\nCorrupt JPEG data: x\nmore")

    monkeypatch.setattr(images, "decoded_silently", writes)
    assert decoded(b"")[1] == "Corrupt JPEG data: x"
    assert capfd.readouterr().err == "other\nmore"


def test_without_standard_error_images_are_decoded(tmp_path, monkeypatch):
    file = damaged_jpeg(tmp_path)

    def closed(number):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(images.os, "dup", closed)
    image, said = decoded(file.read())
    assert (image.shape, said) == ((40, 60, 3), "")


def test_pillows_limit_of_pixels_is_none_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    whole = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(whole + b"more")
    assert read_image_bgr(ImageFile(tmp_path / "a.jpg"), 40, 60).shape == (40, 60, 3)
    (tmp_path / "a.jpg").write_bytes(whole[:-20] + b"more")
    with pytest.raises(InputError, match=r"a.jpg: is no complete image"):
        read_image_bgr(ImageFile(tmp_path / "a.jpg"), 40, 60)


def test_an_image_that_opencv_asserts_on_is_named(tmp_path):
    header = b"P6 65536 65536 255\n"  # 2**32 pixels
    (tmp_path / "a.ppm").write_bytes(header + bytes(100))
    with pytest.raises(InputError, match=r"a.ppm: is no complete image of a kind .*allowed: JPEG, .*fix: convert it"):
        read_image_bgr(ImageFile(tmp_path / "a.ppm"), 65536, 65536)
