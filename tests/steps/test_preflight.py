import copy
import csv
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lvis_rcnn import preflight as preflight_step
from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import check_study
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.dataloader import batches
from lvis_rcnn.dataset import checks
from lvis_rcnn.dataset.checks import image_errors, image_finding
from lvis_rcnn.dataset.images import ImageFile, read_image_bgr
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.dataset.versions import LvisVersion
from lvis_rcnn.preflight import (
    image_folders,
    machine_warnings,
    preflight,
    run_bytes,
    write_page,
)
from lvis_rcnn.reporting.preflight_text import page_text
from lvis_rcnn.runs.price import estimated_hours
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.memory import StepMemory
from tests.conftest import SHARED_DATA, write_study

REPOSITORY = Path(__file__).parents[2]
PHOTOS = SHARED_DATA / "photos"
HEIGHT, WIDTH = 40, 60


def study(**sections):
    """The embedded study with some of its settings changed."""
    values = copy.deepcopy(read_yaml(REPOSITORY / "configs" / "mini.yaml"))
    values["schedule"].update(steps=300, images_per_step=4, normalisation_group=4, learning_rate=1e-3)
    values["sampling"].update(oversample_threshold=0.05)
    for section, changes in sections.items():
        values.setdefault(section, {}).update(changes)
    return check_study(values, "study.yaml")


def dataset(split, first_id=1):
    """Four images: two PNG, one JPEG, and one without annotation."""
    names = [
        f"{split}/{first_id}.png",
        f"{split}/{first_id + 1}.png",
        f"{split}/{first_id + 2}.jpg",
        f"{split}/none.png",
    ]
    images = [
        {"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": name}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for image_id, name in enumerate(names, start=first_id)
    ]
    annotations = [
        {"id": n, "image_id": image_id, "category_id": category_id, "bbox": [0, 0, 4, 4], "area": 8}
        | {"segmentation": [[0, 0, 4, 0, 4, 4]]}
        for n, (image_id, category_id) in enumerate(
            [(first_id, 1), (first_id + 1, 1), (first_id + 2, 1), (first_id, 2)], start=1
        )
    ]
    categories = [{"id": c, "name": name, "frequency": "r"} for c, name in enumerate(["bear", "cup"], start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw(folder, data):
    """The image files of a dataset."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for image in data["images"]:
        file = folder / image["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def store(folder, name, data):
    (folder / f"{name}.json").write_text(json.dumps(data))
    build_store(folder / f"{name}.json", folder / f"{name}.store")
    return open_store(folder / f"{name}.store")


def check(folder, train=None, val=None, settings=None, images=True):
    """Preflight of two splits whose images, as far as they were drawn, are in ``folder``."""
    train = store(folder, "train", train or dataset("train"))
    val = store(folder, "val", val or dataset("val", first_id=11))
    return preflight(settings or study(), train, val, (folder, folder) if images else None)


def test_sound_data_gives_a_page_without_errors(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path, dataset(split, 1 if split == "train" else 11))
    page = check(tmp_path)
    assert page.errors == []
    assert page.facts["train"]["images"] == 4
    assert page.facts["train"]["rare_categories"] == 2
    # Category 2 is in one of three images: sqrt(0.05 / (1 / 3)) < 1, so an epoch is the three annotated images.
    expected = {"epoch_length": 3, "steps_in_epoch": 1, "steps": 300, "images_seen": 900, "epochs": 300}
    assert expected.items() <= page.facts["schedule"].items()
    assert page.warnings == [warning for warning in page.warnings if "repeats nothing" in warning]
    write_page(page, tmp_path / "out" / "preflight.json")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["preflight.json", "preflight.txt"]
    assert json.loads((tmp_path / "out" / "preflight.json").read_text())["errors"] == []
    text = (tmp_path / "out" / "preflight.txt").read_text()
    assert text.startswith("Preflight of study mini: ok, 1 warning(s), image files checked\n")
    assert "300 steps of 4 images: 900 seen" in text
    assert "2x, 24 epochs, is 24 steps, 72 images seen" in text
    assert len(text.splitlines()) < 60


def test_the_page_of_coco_files_says_in_one_line_what_their_ap_is(tmp_path):
    stores = []
    for split, first_id in (("train", 1), ("val", 11)):
        data = dataset(split, first_id)
        for record in (*data["images"], *data["categories"]):
            for key in ("neg_category_ids", "not_exhaustive_category_ids", "frequency"):
                record.pop(key, None)
        (tmp_path / f"{split}.json").write_text(json.dumps(data))
        build_store(tmp_path / f"{split}.json", tmp_path / f"{split}.store", coco_exhaustive=True)
        stores.append(open_store(tmp_path / f"{split}.store"))
    named = {split: {"annotations": split, "images": "images", "exhaustive": True} for split in ("train", "val")}
    page = preflight(study(dataset={"draw": None, **named}), *stores, None)
    assert page.errors == []
    lines = [line for line in page_text(page).splitlines() if "not COCO's AP" in line]
    assert len(lines) == 1
    assert "COCO" not in page_text(preflight(study(), *stores, None))


def pages_training(folder, **sections):
    """The part of the page that speaks of the training."""
    text = page_text(check(folder, settings=study(**sections), images=False))
    return text.split("Training, each run\n")[1]


def test_the_page_says_what_trainings_cost_and_that_it_is_an_estimate(tmp_path):
    settings = study().model_copy(update={"backbones": ("r50", "r101"), "seeds": (0, 1)})
    page = check(tmp_path, settings=settings, images=False)
    hours = {row: estimated_hours(settings, row, page.facts["schedule"]["steps"]) for row in ("r50", "r101")}
    assert {row: of["hours"] for row, of in page.facts["price"]["of_a_run"].items()} == hours
    lines = page_text(page).splitlines()
    whole = f"{2 * sum(hours.values()):,.2g} core-hours of a CPU core with AVX-512"
    (at,) = (
        at for at, line in enumerate(lines) if line.startswith("Price of all trainings, estimated from arithmetic")
    )
    assert lines[at].endswith(whole)
    assert lines[at + 3].split()[0] == "r101"
    assert lines[at + 3].endswith(f"{hours['r101']:,.2g} core-hours, each of 2 seeds")


def test_the_page_says_what_2x_comes_to_after_oversampling(tmp_path):
    """Category 2 is in 1 of 3 images: sqrt(1 / (1 / 3)) = 1.73, so an epoch has 4 images."""
    recipe = {"steps": None, "epochs": 2, "images_per_step": 2, "normalisation_group": 2, "learning_rate_images": 2}
    text = pages_training(tmp_path, sampling={"oversample_threshold": 1}, schedule=recipe)
    assert text.startswith(
        "  4 steps of 2 images: 8 seen\n"
        "  an epoch is 4 images, 2 steps\n"
        "  so 2.00 epochs; 2x, 24 epochs, is 48 steps, 96 images seen\n"
        "  learning rate 0.001\n"
    )


def test_the_page_says_how_long_a_stochastic_epoch_is_on_average(tmp_path):
    text = pages_training(tmp_path, sampling={"oversample_threshold": 1, "rounding": "stochastic"})
    assert f"  an epoch is {2 + 3**0.5:.1f} images on average (stochastic rounding), the first " in text
    text = pages_training(tmp_path, sampling={"oversample_threshold": 1, "rounding": "stochastic", "exponent": 1})
    assert "  an epoch is 5.0 images on average (stochastic rounding), the first 5 images, 2 steps\n" in text


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("1.png", lambda data: b"", r"train/1.png is empty \(0 bytes\)"),
        ("1.png", lambda data: b"<html>404</html>", "is no image of a known format"),
        ("1.png", cut, "is damaged: "),
        (
            "1.png",
            lambda data: data[:-12],
            "is truncated: it has no end mark",
        ),  # OpenCV reads nothing, Pillow everything
        ("1.png", lambda data: data + b"more", None),
        ("3.jpg", cut, "is damaged: .*truncated"),
        ("3.jpg", lambda data: data + b"\0\0", None),  # cameras append to the end mark
        ("3.jpg", lambda data: data[:20], "is (damaged|no image)"),
    ],
)
def test_damaged_files_are_found(tmp_path, name, damage, problem):
    draw(tmp_path, dataset("train"))
    draw(tmp_path, dataset("val", 11))
    file = tmp_path / "train" / name
    file.write_bytes(damage(file.read_bytes()))
    errors = check(tmp_path).errors
    assert len(errors) == (0 if problem is None else 1)
    if problem is not None:
        with pytest.raises(InputError, match=f"train.json: image {name[0]}: .*{problem}.*fix: fetch the file again"):
            write_page(check(tmp_path), tmp_path / "out" / "preflight.json")


def test_broken_training_images_are_warnings_where_training_skips_them(tmp_path):
    draw(tmp_path, dataset("train"))
    draw(tmp_path, dataset("val", 11))
    skips = study(augmentation={"skip_broken_images": True})
    (tmp_path / "train" / "1.png").unlink()
    assert len(check(tmp_path).errors) == 1
    page = check(tmp_path, settings=skips)
    assert (page.errors, page.missing_images) == ([], [])
    assert any(re.search("train.json: image 1: .*not found.*; training skips it$", one) for one in page.warnings)
    (tmp_path / "val" / "11.png").unlink()
    assert len(check(tmp_path, settings=skips).errors) == 1
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    assert len(check(tmp_path, settings=skips).errors) == 2  # nothing is left to train on


def test_another_size_is_found(tmp_path):
    draw(tmp_path, dataset("train"))
    file = tmp_path / "train" / "1.png"
    assert image_finding(ImageFile(file), HEIGHT, WIDTH) == ("", "")
    assert image_finding(ImageFile(file), WIDTH, HEIGHT).error == "is 60 x 40 pixels, annotated as 40 x 60"


def test_a_text_that_pillow_does_not_read_is_left_to_the_decoder(tmp_path):
    texts = PngInfo()
    texts.add_text("workflow", "x" * 2**21, zip=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png", pnginfo=texts)
    assert image_finding(ImageFile(tmp_path / "a.png"), HEIGHT, WIDTH) == ("", "")
    assert "as OpenCV decodes it" in image_finding(ImageFile(tmp_path / "a.png"), WIDTH, HEIGHT).error


def exif(orientation_type, value, order="<", tag=0x0112):
    """EXIF data of one entry, an orientation, without the word before them."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IHHHI4sI", 8, 1, tag, orientation_type, 1, value, 0)


def segment(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def chunk(content):
    return struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))


EXIF = b"Exif\0\0"
SHORT, BYTE, TEXT, LONG = 3, 1, 2, 4
TURNED, OTHER = exif(SHORT, b"\6\0\0\0"), exif(TEXT, b"abc\0", tag=0x010F)
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


# Format, where the EXIF data are put (of a WebP, how many further pictures it has), and whether OpenCV follows them.
TURNS = {
    "EXIF": ("JPEG", 2, segment(EXIF + TURNED), True),
    "XMP": ("JPEG", 2, segment(EXIF + OTHER) + segment(XMP), False),
    "XMP and EXIF": ("JPEG", 2, segment(XMP) + segment(EXIF + TURNED), True),
    "second EXIF": ("JPEG", 2, segment(EXIF + OTHER) + segment(EXIF + TURNED), True),
    "LONG": ("JPEG", 2, segment(EXIF + exif(LONG, b"\0\0\0\6", ">")), False),
    "BYTE": ("JPEG", 2, segment(EXIF + exif(BYTE, b"\6\0\0\0", ">")), False),
    "ASCII": ("JPEG", 2, segment(EXIF + exif(TEXT, b"\6\0\0\0")), True),
    "damaged": ("JPEG", 2, segment(EXIF + b"XI" + TURNED[2:]), False),
    "eXIf": ("PNG", 33, chunk(TURNED), True),
    "eXIf with its word": ("PNG", 33, chunk(EXIF + TURNED), False),
    "second eXIf": ("PNG", 33, chunk(OTHER) + chunk(TURNED), False),
    "eXIf after pixels": ("PNG", -12, chunk(TURNED), True),
    "WebP": ("WEBP", 0, EXIF + TURNED, True),
    "animated": ("WEBP", 2, EXIF + TURNED, False),
}


@pytest.mark.parametrize("case", TURNS)
def test_an_image_is_turned_as_the_decoder_turns_it(tmp_path, case):
    image_format, at, metadata, is_turned = TURNS[case]
    if image_format == "WEBP":
        more = [Image.new("RGB", (WIDTH, HEIGHT))] * at
        content = encoded("WEBP", exif=metadata, save_all=True, append_images=more)
    else:
        content = encoded(image_format)
        content = content[:at] + metadata + content[at:]
    file = ImageFile(tmp_path / "image")
    file.path.write_bytes(content)
    size = (WIDTH, HEIGHT) if is_turned else (HEIGHT, WIDTH)
    assert read_image_bgr(file).shape[:2] == size
    assert image_finding(file, *size) == ("", "")
    assert f"is {size[1]} x {size[0]} pixels" in image_finding(file, *size[::-1]).error


def encoded(image_format, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "image_format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM", "ICO", "PDF", "TGA"]
)
@pytest.mark.parametrize("decode", [False, True])
def test_preflight_takes_the_formats_that_training_reads_and_no_other(tmp_path, image_format, decode):
    file = ImageFile(tmp_path / "image")
    file.path.write_bytes(encoded(image_format))
    try:
        read_image_bgr(file, HEIGHT, WIDTH)
        is_read = True
    except InputError:
        is_read = False
    found = image_finding(file, HEIGHT, WIDTH, decode=decode)
    assert (found.error == "") == is_read, found
    assert is_read or image_format in ("ICO", "PDF", "TGA", "AVIF", "GIF")  # OpenCV may be built without the last two
    if is_read:
        assert re.search("is 60 x 40 pixels", image_finding(file, WIDTH, HEIGHT, decode=decode).error)


def test_a_bmp_with_its_own_places_of_the_colours_is_taken_as_its_decoder_takes_it(tmp_path):
    header = struct.pack("<IiiHHIIiiII", 40, 4, 3, 1, 32, 3, 48, 0, 0, 0, 0)  # 4 x 3 pixels, BITFIELDS: R, G, B
    colours = struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)
    file = tmp_path / "image.bmp"
    file.write_bytes(b"BM" + struct.pack("<IHHI", 66 + 48, 0, 0, 66) + header + colours + bytes(range(48)))
    assert image_finding(ImageFile(file), 3, 4) == ("", "")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("most_px", [WIDTH * HEIGHT // 3, WIDTH * HEIGHT - 1], ids=["refused by Pillow", "warned of"])
@pytest.mark.parametrize(("image_format", "more"), [("JPEG", b""), ("JPEG", b"more"), ("PNG", b""), ("BMP", b"")])
def test_pillows_limit_of_pixels_is_none_of_ours(tmp_path, monkeypatch, image_format, more, most_px):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most_px)
    (tmp_path / "image").write_bytes(encoded(image_format) + more)
    assert image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH) == ("", "")
    (tmp_path / "image").write_bytes(encoded(image_format)[:-20] + more)
    assert image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH).error.startswith("is ")


def test_of_more_pixels_than_headers_are_trusted_with_opencv_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MOST_PIXELS", WIDTH * HEIGHT - 1)
    (tmp_path / "image").write_bytes(encoded("PNG")[:-100])
    assert "OpenCV cannot decode it" in image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH).error


def test_a_webp_whose_chunk_says_another_length_is_taken_as_the_decoder_takes_it(tmp_path):
    content = bytearray(encoded("WEBP"))
    content[16] -= 2
    file = ImageFile(tmp_path / "image")
    file.path.write_bytes(content)
    assert read_image_bgr(file).shape == (HEIGHT, WIDTH, 3)
    assert image_finding(file, HEIGHT, WIDTH) == ("", "")


@pytest.mark.parametrize("orientation", [0, 9])
def test_a_tiff_of_no_known_orientation_is_not_damaged(tmp_path, orientation):
    (tmp_path / "image").write_bytes(encoded("TIFF", tiffinfo={0x112: orientation}))
    assert image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH, decode=True) == ("", "")


def test_a_png_of_a_wrong_checksum_outside_its_pixels_is_taken_as_the_decoder_takes_it(tmp_path):
    png = encoded("PNG")
    text = (4).to_bytes(4, "big") + b"tEXta\0bc" + bytes(4)  # with a wrong checksum, behind the header
    for content in (png[:33] + text + png[33:], png[:-1] + b"x"):  # and of the last chunk
        (tmp_path / "image").write_bytes(content)
        assert not image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH).error


def with_zeros(data):
    return data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :]


def ended_early(data):
    return data[: len(data) // 2] + data[-12 if data.startswith(b"\x89PNG") else -2 :]


@pytest.mark.parametrize(
    ("options", "damage", "error", "warning"),
    [
        ({"format": "JPEG"}, ended_early, "is damaged inside: Corrupt JPEG data: premature end", ""),
        ({"format": "JPEG"}, with_zeros, "|is damaged inside", "|may be damaged inside: Corrupt JPEG data"),
        ({"format": "JPEG", "progressive": True}, with_zeros, "is damaged inside: Corrupt JPEG data", ""),
        ({"format": "JPEG"}, lambda data: data[:-2] + bytes(40) + data[-2:], "", "may be damaged inside: Corrupt JPEG"),
        ({"format": "JPEG"}, lambda data: data, "", ""),
        ({"format": "PNG"}, with_zeros, "is no image of a known format, or is damaged: OpenCV", ""),
        ({"format": "PNG"}, ended_early, "is no image of a known format, or is damaged: OpenCV", ""),
    ],
)
def test_damage_inside_is_found_by_decoding_alone(tmp_path, capfd, options, damage, error, warning):
    image_format = options.pop("format")
    (tmp_path / "image").write_bytes(damage(encoded(image_format, **options)))
    found = image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH, decode=True)
    for text, pattern in zip(found, (error, warning), strict=True):
        assert re.match(f"(?:{pattern})" if pattern else "$", text), found
    assert any(found) == (error + warning != "")
    assert "Corrupt JPEG" not in capfd.readouterr().err
    assert image_finding(ImageFile(tmp_path / "image"), HEIGHT, WIDTH) == ("", "")  # header and end are sound


@pytest.mark.parametrize(("setting", "count"), [(None, 1), (True, 1), (False, 0)])
def test_few_images_are_decoded_and_all_where_it_is_asked_for(tmp_path, setting, count):
    draw(tmp_path, dataset("train"))
    draw(tmp_path, dataset("val", 11))
    file = tmp_path / "train" / "3.jpg"
    file.write_bytes(ended_early(file.read_bytes()))
    assert len(check(tmp_path, settings=study(resources={"decode_images": setting})).errors) == count


def test_many_images_are_not_decoded_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("lvis_rcnn.preflight.DECODED_IMAGES", 7)
    test_few_images_are_decoded_and_all_where_it_is_asked_for(tmp_path, setting=None, count=0)
    test_few_images_are_decoded_and_all_where_it_is_asked_for(tmp_path, setting=True, count=1)


@pytest.mark.parametrize(("most", "left"), [(396, 1), (4096, 15), (65536, None)])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_16_bits_whose_values_vanish_are_named(tmp_path, most, left, suffix):
    draw(tmp_path, dataset("train"))
    draw(tmp_path, dataset("val", 11))
    pixels = np.random.default_rng(0).integers(0, most, (HEIGHT, WIDTH), np.uint16)
    pixels[0, 0] = most - 1
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), pixels)
    (tmp_path / f"deep.{suffix}").rename(tmp_path / "train" / "1.png")
    page = check(tmp_path, settings=study(resources={"decode_images": False}))
    told = [warning for warning in page.warnings if "uint16" in warning]
    assert page.errors == []
    assert len(told) == (left is not None)
    if told:
        assert told[0].startswith(f"train.json: image 1: {tmp_path}/train/1.png holds uint16 values up to {most - 1}, ")
        assert re.search(f"decoding leaves 0 to ({left}|{left + 1}) of 255: nearly black", told[0])


def test_an_image_too_thin_to_be_rescaled_is_named(tmp_path):
    val = dataset("val", 11)
    val["images"][0].update(height=2, width=8000)
    val["annotations"] = val["annotations"][1:3]
    page = check(tmp_path, val=val, images=False)
    (told,) = [warning for warning in page.warnings if "pixel thin" in warning]
    assert "val.json: 1 images become 1 pixel thin when they are rescaled" in told
    assert "11 (8000 x 2)" in told


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    data = dataset("train")
    data["images"] += [dict(data["images"][0], id=n, file_name=f"train/{n}.png") for n in range(100, 700)]
    draw(tmp_path, dataset("val", 11))
    draw(tmp_path, dataset("train"))
    (error,) = check(tmp_path, train=data).errors
    assert str(error).startswith(
        f"train.json: image 100: 600 of 604 images not found in {tmp_path}: train/100.png, train/101.png, "
        "train/102.png, train/103.png, train/104.png, ... (595 more); fix: set the split's 'images'"
    )


def test_missing_images_of_coco_are_said_to_be_fetched_in_which_zips(tmp_path):
    data = dataset("train")
    for number, name in ((100, "val2017/1.jpg"), (101, "train2017/1.jpg"), (102, "mine/1.jpg")):
        url = f"http://images.cocodataset.org/{name}"
        data["images"].append(dict(data["images"][0], id=number, coco_url=url, file_name=None))
    draw(tmp_path, dataset("val", 11))
    draw(tmp_path, dataset("train"))
    page = check(tmp_path, train=data)
    (error,) = page.errors
    assert page.missing_images == ["val2017/1.jpg", "train2017/1.jpg", "mine/1.jpg"]
    fetch = "COCO has 1 in train2017.zip and 1 in val2017.zip, which the target fetch of Snakemake brings"
    assert str(error).endswith(f"or add the files; {fetch}")


def test_many_damaged_files_are_shortened(tmp_path):
    data = dataset("train")
    data["images"] += [dict(data["images"][0], id=n, file_name=f"train/{n}.png") for n in range(100, 110)]
    draw(tmp_path, dataset("val", 11))
    draw(tmp_path, data)
    for n in range(100, 110):
        (tmp_path / "train" / f"{n}.png").write_bytes(b"")
    errors = check(tmp_path, train=data).errors
    assert len(errors) == 6
    assert "5 more images are damaged" in str(errors[-1])


def renamed(data):
    data["categories"][1]["name"] = "mug"
    return "categories\\[1\\]: is 'mug', id 2, but 'cup', id 2, in train.json"


def added(data):
    data["categories"].append({"id": 3, "name": "kite", "frequency": "r"})
    return "val.json: 3 categories, but 2 in train.json; .*one dataset version"


def reordered(data):
    data["categories"].reverse()
    return "categories\\[0\\]: is 'cup', id 2, .*sort the categories of both files by id"


@pytest.mark.parametrize("change", [renamed, added, reordered])
def test_both_splits_have_the_same_categories(tmp_path, change):
    val = dataset("val", 11)
    message = change(val)
    page = check(tmp_path, val=val, images=False)
    with pytest.raises(InputError, match=message):
        write_page(page, tmp_path / "preflight.json")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"augmentation": {"short_edges_px": [88, 200]}}, "augmentation.short_edges_px: 200 px is above long_edge_px"),
        ({"inference": {"short_edge_px": 2000}}, "inference.short_edge_px: 2000 px is above long_edge_px"),
        ({"model": {"rois_per_image": 4, "roi_positive_fraction": 0.2}}, "0.2 of 4 regions leaves no positive one"),
    ],
)
def test_settings_that_cannot_go_together(tmp_path, sections, message):
    (error,) = check(tmp_path, settings=study(**sections), images=False).errors
    assert message in str(error)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"sampling": {"oversample_threshold": 1e-3}},
            "oversample_threshold repeats nothing: even the rarest category",
        ),
        ({"schedule": {"steps": 300, "warmup_steps": 300}}, "warmup_steps is 300 of 300 steps"),
        (
            {"schedule": {"steps": None, "epochs": 2, "policy": "step", "decay_at_epochs": [1, 2]}},
            "[2] are never reached",
        ),
        ({"schedule": {"normalisation_group": 1}}, "batch statistics of a single image"),
        (
            {"schedule": {"learning_rate_images": 16}},
            "schedule: learning rate 0.00025: 0.001 is for steps of 16 images and is scaled linearly to 4",
        ),
    ],
)
def test_settings_that_are_rarely_meant(tmp_path, sections, message):
    page = check(tmp_path, settings=study(**sections), images=False)
    assert page.errors == []
    assert any(message in warning for warning in page.warnings), page.warnings


BOX, POLYGON = [20, 4, 10, 6], [[20, 4, 30, 4, 30, 10, 20, 10]]


@pytest.mark.parametrize(
    ("box", "polygons", "fits"),
    [
        (BOX, POLYGON, True),
        ([20, 4, 30, 10], POLYGON, False),  # two corners
        ([4, 20, 6, 10], POLYGON, False),  # y before x
        (BOX, [[20 / 60, 0.1, 0.5, 0.1, 0.5, 0.25]], False),
        ([20, 4, 1, 6], [[20, 4, 20.4, 4, 20.4, 10]], True),  # a thin object
        (BOX, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 1, 1]}, True),  # of masks nothing is said
    ],
)
def test_boxes_that_are_not_those_of_their_polygons(tmp_path, box, polygons, fits):
    train = dataset("train")
    for annotation in train["annotations"]:
        annotation.update(bbox=box, segmentation=polygons)
    warnings = "\n".join(check(tmp_path, train=train, images=False).warnings)
    told = "train.json: 4 of 4 annotations looked at have a box that is not that of their polygons, first annotation "
    assert fits != (told in warnings)
    assert "val.json: 4 of 4" not in warnings


def test_data_that_is_rarely_meant(tmp_path):
    train = dataset("train")
    train["images"][0]["neg_category_ids"] = [2]
    train["annotations"][0].update(bbox=[58, 0, 4, 4], area=0)
    train["categories"].append({"id": 3, "name": "kite", "frequency": "f"})
    train["categories"][0]["frequency"] = "c"
    val = copy.deepcopy(train)
    val["categories"][2]["frequency"] = "r"
    val["annotations"][1].update(category_id=3)
    val["annotations"].append(val["annotations"][0] | {"id": 9, "category_id": 4, "area": 0})
    for data in (train, val):
        data["categories"] += [{"id": n, "name": f"thing {n}", "frequency": "r"} for n in (4, 5)]
    warnings = "\n".join(check(tmp_path, train=train, val=val, images=False).warnings)
    assert "train.json: 1 boxes overshoot their image" in warnings
    assert "train.json: 1 annotations with area 0: neither" in warnings
    assert "train.json: 1 categories of an image are annotated and listed as absent" in warnings
    assert "train.json: 1 of 2 categories have a frequency that is not that of their images" in warnings
    unseen = "train.json: 3 of 5 categories have no training image; 1 of them, with objects in val.json, score 0"
    assert f"{unseen} (kite), others are not scored\n" in warnings
    assert "model.weights" not in warnings
    assert (
        "val.json: 1 categories have another frequency (r, c, f) than in train.json; APr, APc and APf follow val"
        in warnings
    )
    assert "4 images are in both splits" in warnings


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"bbox": [0, 0, 1, 1], "area": 0.7}, "train", "train.json: all boxes lie between 0 and 1"),
        ({"bbox": [0.1, 0.5, 0.9, 0.5], "area": 0.4}, "val", "val.json: all boxes lie between 0 and 1"),
        ({"area": 0}, "val", "val.json: none of 4 annotations is scored: 4 with area 0; allowed: area above 0"),
    ],
)
def test_data_that_gives_no_figures_is_an_error(tmp_path, changes, split, message):
    data = {"train": dataset("train"), "val": dataset("val", first_id=11)}
    for annotation in data[split]["annotations"]:
        annotation.update(changes)
    (error,) = check(tmp_path, **data, images=False).errors
    assert str(error).startswith(message)


def test_categories_without_training_images_and_validation_objects_are_not_scored(tmp_path):
    data = dataset("train")
    data["categories"].append({"id": 3, "name": "kite", "frequency": "f"})
    warnings = check(tmp_path, train=data, val=data, images=False).warnings
    assert any("none of them has objects in val.json, so none is scored" in line for line in warnings)


def test_images_with_more_objects_than_detections_are_told(tmp_path):
    """One image holds 7 objects of which 1 is ignored; 5 detections count: 1 of 8 objects cannot be found."""
    val = dataset("val", first_id=11)
    val["annotations"] += [val["annotations"][0] | {"id": n, "ignore": n == 10} for n in range(6, 11)]
    settings = study(inference={"detections_per_image": 5})
    warnings = check(tmp_path, val=val, settings=settings, images=False).warnings
    expected = "val.json: 1 images hold more objects (up to 6) than the 5 detections of an image that count: 12.5% of"
    assert [line for line in warnings if "hold more" in line] == [f"{expected} all objects cannot be found"]


def test_coco_weights_that_saw_validation_images_are_told(tmp_path):
    """Three quarters of the validation images of LVIS v1 are of COCO train2017; those of v0.5 are all of val2017."""
    val = dataset("val", first_id=11)
    for image, split in zip(val["images"], ["train2017"] * 3 + ["val2017"], strict=True):
        image["coco_url"] = f"http://images.cocodataset.org/{split}/{image['id']}.jpg"
    coco = study(model={"weights": "coco", "normalization": "fixed_batch"})
    page = check(tmp_path, val=val, settings=coco, images=False)
    assert any("model.weights: coco: 3 of 4 validation images are of COCO train2017" in one for one in page.warnings)
    assert page.facts["val_images_seen_by_initial_weights"] == 3
    for data, settings in ((None, coco), (val, study())):
        other = check(tmp_path, val=data, settings=settings, images=False)
        assert "val_images_seen_by_initial_weights" not in other.facts
        assert not any("unseen images" in one for one in other.warnings)


def test_a_protocol_whose_images_are_not_there_is_an_error(tmp_path):
    (tmp_path / "ids.txt").write_text("11\n999\n")
    asked = {"protocols": ["minival_fixed", "ids"], "subsets": [str(tmp_path / "ids.txt")]}
    val = dataset("val", first_id=11)
    page = check(tmp_path, val=val, settings=study(evaluation=asked), images=False)
    minival, ids = map(str, page.errors)
    assert "evaluation.protocols: has minival, but no image of val.json has val2017 in its coco_url;" in minival
    assert "ids.txt: image id 999 is not in val.json; allowed: ids of its images;" in ids
    val["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/11.jpg"
    asked = {"protocols": ["minival"]}
    assert not check(tmp_path, val=val, settings=study(evaluation=asked), images=False).errors


def test_minival_of_the_whole_v1_val_has_a_known_number_of_images(tmp_path, monkeypatch):
    val = dataset("val", first_id=11)
    val["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/11.jpg"
    like_v1 = LvisVersion("v1", "", (0, 0, 0), {"val": (4, None)}, 3)
    monkeypatch.setattr("lvis_rcnn.preflight.version_of", lambda categories: like_v1)
    warnings = check(tmp_path, val=val, settings=study(evaluation={"protocols": ["minival"]}), images=False).warnings
    assert "val.json: minival has 1 images here, and 3 elsewhere" in warnings
    assert not any("minival" in one for one in check(tmp_path, val=val, settings=study(), images=False).warnings)


def test_what_is_not_trained_on_is_counted(tmp_path):
    val = dataset("val", first_id=11)
    for annotation, changes in zip(
        val["annotations"],
        ({"iscrowd": 1}, {"bbox": [60, 0, 4, 4]}, {"bbox": [0, 0, 0.5, 4]}, {"ignore": 1}),
        strict=True,
    ):
        annotation.update(changes)
    page = check(tmp_path, val=val, images=False)
    assert [line for line in page.warnings if line.startswith("val.json: 1 ")] == [
        "val.json: 1 annotations with a box below one pixel: scored, but not trained on",
        "val.json: 1 annotations with a box outside the image: scored, but not trained on",
        "val.json: 1 annotations marked iscrowd: scored as any object, but not trained on",
        "val.json: 1 annotations marked ignore (plain COCO: iscrowd): neither trained on nor scored",
    ]
    assert re.search(r"\n  crowds +0 +1\n", page_text(page))


def test_equal_names_in_different_folders_are_no_overlap(tmp_path):
    data = dataset("images")
    draw(tmp_path / "train", data)
    draw(tmp_path / "val", data)
    train, val = store(tmp_path, "train", data), store(tmp_path, "val", data)
    page = preflight(study(), train, val, (tmp_path / "train", tmp_path / "val"))
    assert page.errors == []
    assert not any("both splits" in warning for warning in page.warnings)


def test_image_folders_are_asked_for():
    assert image_folders(None, None, skip=True) is None
    with pytest.raises(InputError, match=r"--val-images: missing; fix: name the folder, or .* --no-images"):
        image_folders(Path("train"), None, skip=False)


def test_the_command_leaves_only_the_failed_page(tmp_path):
    store(tmp_path, "train", dataset("train"))
    store(tmp_path, "val", dataset("val", 11))
    draw(tmp_path, dataset("train"))
    out = tmp_path / "out" / "preflight.json"
    out.parent.mkdir()
    out.write_text("of an earlier run")
    command = [sys.executable, "-m", "lvis_rcnn.preflight", "--study", "configs/mini.yaml", "--out", out]
    for split in ("train", "val"):
        command += [f"--{split}-store", tmp_path / f"{split}.store", f"--{split}-images", tmp_path]
    bad = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert bad.returncode == 2
    last = bad.stderr.splitlines()[-1]
    assert last.startswith(f"error: val.json: image 11: 4 of 4 images not found in {tmp_path}: val/11.png")
    assert last.endswith(f"(page: {tmp_path}/out/preflight_failed.txt)")
    assert "Traceback" not in bad.stderr
    assert sorted(file.name for file in out.parent.iterdir()) == ["preflight_failed.json", "preflight_failed.txt"]
    assert json.loads((out.parent / "preflight_failed.json").read_text())["missing_images"][1] == "val/12.png"
    assert "FAILED, 1 error(s)" in (out.parent / "preflight_failed.txt").read_text()
    draw(tmp_path, dataset("val", 11))
    good = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert re.search(r"ok; \d+ steps, [\d,]+ images seen, [\d.]+ epochs of 3 images", good.stderr)
    assert sorted(file.name for file in out.parent.iterdir()) == ["preflight.json", "preflight.txt"]


@pytest.fixture(params=["generated", *(["real"] if PHOTOS.is_dir() else [])])
def photos(request, tmp_path):
    """Images and annotations under COCO's names: drawn ones, and photographs where they are at hand."""
    if request.param == "real":
        return PHOTOS
    for split, first_id in (("train", 1), ("val", 11)):
        data = dataset(split, first_id)
        for image in data["images"]:
            image["file_name"] = f"{split}2017/{image['id']:012}.jpg"
        draw(tmp_path, data)
        for image in data["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{image.pop('file_name')}"
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"photos_{split}.json").write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize("in_split_folder", [False, True])
def test_images_under_the_names_of_coco(photos, tmp_path, in_split_folder):
    stores = []
    for split in ("train", "val"):
        build_store(photos / "annotations" / f"photos_{split}.json", tmp_path / split)
        stores.append(open_store(tmp_path / split))
    folders = (photos / "train2017", photos / "val2017") if in_split_folder else (photos, photos)
    page = preflight(study(), *stores, folders)
    assert page.errors == []
    assert "image files checked" in page_text(page)


def lvis(name, **changes):
    """A dataset of one image with the categories of a version."""
    with (REPOSITORY / "tests" / "golden" / f"lvis_{name}_train_counts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = dataset("train")
    keys = ("name", "frequency", "synset")
    data["categories"] = [{"id": int(row["id"]), **{key: row[key] for key in keys}} for row in rows]
    return data


def version_messages(folder, version, dataset_name="photos", file_name="train"):
    """What preflight says of two splits that have the categories of a version."""
    ours, theirs = store(folder, file_name, lvis(version)), store(folder, "val", lvis(version))
    return preflight(study(dataset={"name": dataset_name}), ours, theirs, None)


def test_a_version_is_known_by_its_content(tmp_path):
    page = version_messages(tmp_path, "v1")
    assert page.errors == []
    assert page.facts["train"]["version"] == "LVIS v1"
    assert "train.json: 4 images; LVIS v1 has 100,170 in train, 19,809 in val" in page.warnings
    assert "LVIS v1" in page_text(page)
    assert check(tmp_path, images=False).facts["train"]["version"] == "not LVIS"


@pytest.mark.parametrize(
    ("dataset_name", "file_name", "message"),
    [
        ("lvis_v0.5", "train", "dataset.name: names LVIS v0.5, but the categories of train.json are those of v1; "),
        ("lvis_v1", "lvis_v0.5_train", "lvis_v0.5_train.json: names LVIS v0.5, but the categories of lvis_v0.5_tr"),
    ],
)
def test_v1_renamed_to_v05_is_refused(tmp_path, dataset_name, file_name, message):
    errors = version_messages(tmp_path, "v1", dataset_name, file_name).errors
    assert str(errors[0]).startswith(message)
    assert "allowed: v1, by content; fix: use the file of LVIS v0.5" in str(errors[0])


@pytest.mark.parametrize(
    ("member", "is_found"),
    [
        ("./val2017/{}", True),
        ("val2017\\{}", True),
        (".\\val2017\\{}", True),
        ("coco/val2017/{}", False),
        ("photos/{}", False),
        ("val2017/none-{}", None),
    ],
)
def test_members_of_a_zip_are_found_or_named(tmp_path, member, is_found):
    val = dataset("val2017", first_id=11)
    draw(tmp_path / "loose", val)
    names = [Path(image["file_name"]).name for image in val["images"]]
    (tmp_path / "images").mkdir()
    with zipfile.ZipFile(tmp_path / "images" / "val2017.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "loose" / "val2017" / name, member.format(name))
    problems = image_errors(store(tmp_path, "val", val), tmp_path / "images").problems
    assert (problems == []) is (is_found is True)
    told = f"; val2017.zip holds 4 of these names in other folders: {member.format('11.png')}, not val2017/11.png"
    assert (told in "".join(map(str, problems))) is (is_found is False)
    assert "Snakemake" not in "".join(map(str, problems))


def test_a_name_written_on_windows_is_found(tmp_path):
    val = dataset("val")
    draw(tmp_path, val)
    for image in val["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")
    assert image_errors(store(tmp_path, "val", val), tmp_path).problems == []


def test_images_in_a_zip_are_checked(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / "loose", dataset(split, 1 if split == "train" else 11))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted((tmp_path / "loose").rglob("*.*")):
            content = file.read_bytes()
            archive.writestr(
                str(file.relative_to(tmp_path / "loose")), content[:-20] if file.name == "1.png" else content
            )
    (error,) = check(tmp_path).errors
    assert str(error).startswith(f"train.json: image 1: {tmp_path}/all.zip: train/1.png is truncated")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_disk_of_a_run(backbone):
    """Parameter counts at 1230 classes are published: MMDetection's own structures."""
    published = {"r50": 50_585_636, "r101": 69_577_764, "x101_32x4d": 69_206_308, "x101_64x4d": 108_483_876}
    assert run_bytes(study(), backbone, 1231) == 28 * published[backbone]
    kept = study(evaluation={"score_at_steps": [100, 200]})
    assert run_bytes(kept, backbone, 1231) == 36 * published[backbone]


def test_the_memory_of_a_pass_is_told_for_a_gpu(tmp_path, monkeypatch):
    memory = StepMemory(state=10 * 2**30, casts=2**30, image=8 * 2**30)
    monkeypatch.setattr(preflight_step, "step_memory", lambda study, backbone, num_labels: memory)
    changes = {"compute": {"device": "cuda"}, "schedule": {"images_per_step": 16, "normalisation_group": 2}}
    text = page_text(check(tmp_path, settings=study(**changes), images=False))
    # 0.7 of 80 GB hold 10 + 5 * 8, and 11 + 11 * 4.
    assert "  r50         fp32  2 images  26.0 GB, 16 images 138.0 GB; 80 GB hold 2 of 8 groups at once\n" in text
    assert "  x101_64x4d  bf16  2 images  19.0 GB, 16 images  75.0 GB; 80 GB hold 5 of 8 groups at once\n" in text
    assert "Memory of" not in page_text(check(tmp_path, images=False))  # a CPU's is that of the processes


def test_too_little_shared_memory_for_the_loader_is_told_here_too(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "free_shared_memory", lambda: 10**6)
    changes = {"schedule": {"images_per_step": 16}, "augmentation": {"short_edges_px": [96, 104], "long_edge_px": 160}}
    (line,) = machine_warnings(study(**changes, resources={"loader_workers": 4, "memory_mb": 1}), tmp_path, 26)
    # 4 workers, 2 steps each, 16 images of 128 x 160 pixels of 3 bytes.
    assert re.match(r"/dev/shm: has 1 MB .* 4 loader workers fill up to 8 with .*; a training on this machine", line)


def test_too_little_disk_or_memory_is_told(tmp_path, monkeypatch):
    mini = study(resources={"memory_mb": 10**9})
    assert [line.split(":")[0] for line in machine_warnings(mini, tmp_path, 26)][-1].startswith(
        "resources.memory_mb is"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    (line,) = machine_warnings(study(resources={"memory_mb": 1}), tmp_path / "new", 26)
    assert line == f"{tmp_path}/new: 1.0 GB free; checkpoints and models of the study take about 7.6 GB"


ROWS = {
    "short": {"backbone": "r50", "schedule": {"steps": 7}},
    "few": {"backbone": "r50", "inference": {"nms_iou": 0.4}},
}


def test_a_row_is_checked_with_its_own_settings(tmp_path):
    settings = study(rows=ROWS)
    page = check(tmp_path, settings=settings.of_row("short"), images=False)
    assert (page.facts["schedule"]["steps"], page.facts["backbones"]) == (7, ["r50"])
    whole = check(tmp_path, settings=settings, images=False)
    assert (whole.facts["schedule"]["steps"], whole.facts["backbones"]) == (300, list(BACKBONES))


def test_a_row_that_is_not_of_the_study_is_refused(tmp_path, monkeypatch, capsys):
    words = ["--study", write_study(tmp_path / "a.yaml", rows=ROWS), "--row", "long", "--no-images"]
    words += ["--train-store", tmp_path, "--val-store", tmp_path, "--out", tmp_path / "preflight.json"]
    monkeypatch.setattr(sys, "argv", ["preflight", *map(str, words)])
    with pytest.raises(SystemExit):
        preflight_step.main()
    assert re.search("error: --row long: is no row .*; allowed: .*, short, few; fix: ", capsys.readouterr().err)
