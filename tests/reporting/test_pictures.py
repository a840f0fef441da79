"""Pictures show ground truth and detections; labels never cover each other; the same files give the same bytes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from lvis_rcnn.dataset.detections import Detections, pack_rles, shard_path, write_shard
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.reporting import PICTURES, drawing
from lvis_rcnn.reporting.drawing import (
    COLOURS,
    LINE_PX,
    MOST_LABELS,
    WHITE,
    Shown,
    captioned,
    cut,
    draw_label,
    draw_objects,
    factor_of,
    font,
    label_size,
    labelled,
    overlap,
    place_labels,
    scaled_box,
    sheet_of,
    wrap,
)
from lvis_rcnn.reporting.pictures import (
    NOT_JUDGED,
    Scenes,
    best_line,
    colours_of_objects,
    detected_as,
    how_chosen,
    images_with_rare_objects,
    judged,
    mask_of_annotation,
    missed,
    misses_sheet,
    pair,
    pixels_rgb,
    positions_of,
    random_images,
    read_scenes,
    shown_detection,
    surroundings,
    worst,
    write_pictures,
)
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.batch_picture import colours_of, step_picture
from tests.conftest import REPOSITORY
from tests.helpers.tiny_run import make_data, tiny_study

WIDTH, HEIGHT = 64, 48


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def dataset() -> dict[str, object]:
    """Three images: a bear and a kite; a kite alone; nothing."""
    images = [
        {"id": number, "height": HEIGHT, "width": WIDTH, "file_name": f"{number}.png", "neg_category_ids": [],
         "not_exhaustive_category_ids": [30] if number == 11 else []}
        for number in (11, 12, 13)
    ]  # fmt: skip
    objects = [(1, 11, 20, 4, 4, 20), (2, 11, 30, 40, 8, 16), (3, 12, 30, 10, 10, 12)]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, side, side], "area": side * side,
         "segmentation": square(x, y, side)}
        for number, image, category, x, y, side in objects
    ]  # fmt: skip
    categories = [
        {"id": 20, "name": "bear", "frequency": "f"},
        {"id": 30, "name": "kite", "frequency": "r"},
        {"id": 40, "name": "cup", "frequency": "c"},
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def put_detections(folder: Path, *found: tuple[int, int, float, tuple[float, float, float]]) -> None:
    """(image, category, score, (x, y, side)) each."""
    masks = [coco_mask.merge(coco_mask.frPyObjects(square(*place), HEIGHT, WIDTH)) for _, _, _, place in found]
    boxes = np.array([[x, y, side, side] for _, _, _, (x, y, side) in found], np.float32).reshape(-1, 4)
    ids, categories, scores = (np.array([row[at] for row in found]) for at in range(3))
    detections = Detections(
        ids.astype(np.int64), categories.astype(np.int64), scores.astype(np.float32), boxes, *pack_rles(masks)
    )
    write_shard(shard_path(folder, 0), detections)


@pytest.fixture
def scenes(tmp_path: Path) -> Scenes:
    """The bear is found, one kite taken for a bear, the other not found; one detection is of an unknown category."""
    (tmp_path / "val.json").write_text(json.dumps(dataset()))
    build_store(tmp_path / "val.json", tmp_path / "val.store")
    (tmp_path / "images").mkdir()
    for number in (11, 12, 13):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    put_detections(
        tmp_path / "detections",
        (11, 20, 0.9, (5, 5, 20)),
        (11, 20, 0.4, (40, 9, 16)),
        (11, 99, 0.8, (40, 9, 16)),
        (11, 30, 0.2, (10, 30, 16)),
    )
    return read_scenes(open_store(tmp_path / "val.store"), tmp_path / "images", tmp_path / "detections")


def test_an_object_is_missed_unless_a_detection_of_its_category_overlaps_it(scenes):
    assert missed(scenes).tolist() == [False, True, True]
    assert detected_as(scenes, 0, 1) == "detected as bear 0.40"
    assert detected_as(scenes, 0, 0) == "detected as bear 0.90"
    assert detected_as(scenes, 1, 2) == "no detection with score >= 0.3"


def test_a_missed_object_is_not_named_after_noise(scenes):
    scenes.found.scores[1] = 0.29
    assert detected_as(scenes, 0, 1) == "closest detection: IoU 0.00"
    scenes.found.scores[0] = 0.1
    assert detected_as(scenes, 0, 1) == "no detection with score >= 0.3"


def test_sheets_of_misses_say_how_many_and_why_there_are_none(scenes, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "lvis_rcnn.reporting.pictures.sheet_of", lambda title, rows: titles.append(title) or sheet_of(title, rows)
    )
    for group in "rcf":
        misses_sheet(scenes, missed(scenes), group)
    assert [title[0] for title in titles] == [
        "2 of 2 objects of rare categories were missed",
        "no objects of common categories",
        "none of 1 objects of frequent categories was missed",
    ]


def test_the_worst_misses_are_the_largest_few_of_a_category(scenes):
    rows = np.array([0, 1, 2])
    assert worst(scenes.store, rows) == [0, 1, 2]
    assert worst(scenes.store, np.array([2, 1])) == [1, 2]


def test_misses_of_one_category_fill_the_sheet(scenes, monkeypatch):
    monkeypatch.setattr("lvis_rcnn.reporting.pictures.MISSES_OF_CATEGORY", 1)
    # The bear is larger than both kites, of which the second is the third choice.
    assert worst(scenes.store, np.array([2, 1, 0])) == [0, 1, 2]
    monkeypatch.setattr("lvis_rcnn.reporting.pictures.MISSES_SHOWN", 2)
    assert worst(scenes.store, np.array([2, 1])) == [1, 2]


def test_captions_count_what_is_there_and_say_how_many_are_drawn(scenes, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "lvis_rcnn.reporting.pictures.captioned",
        lambda pictures, lines: captions.append(lines) or captioned(pictures, lines),
    )
    pair(scenes, 0, 0.3)
    monkeypatch.setattr("lvis_rcnn.reporting.pictures.MOST_DETECTIONS", 1)
    pair(scenes, 0, 0.3)
    assert [lines[0] for _, lines in captions] == [
        "2 detections with score >= 0.3: 1 right, 1 wrong, 0 not judged",
        "2 detections with score >= 0.3: 1 right, 1 wrong, 0 not judged; the best 1 are drawn",
    ]


def test_a_detection_finds_the_object_of_its_category_that_it_overlaps_most_and_each_is_found_once(scenes):
    # Best first: 0 finds the bear, 1 calls the kite a bear; of kites (row 3) not every one is annotated in this image.
    assert judged(scenes, 0, [0, 1]) == ({0: 0}, set())
    assert judged(scenes, 0, [1, 0]) == ({0: 0}, set())
    assert judged(scenes, 0, [0, 0, 3]) == ({0: 0}, {3})
    scenes.found.boxes_xywh[1] = scenes.found.boxes_xywh[0]
    assert judged(scenes, 0, [0, 1]) == ({0: 0}, set())
    assert judged(scenes, 0, [1, 0]) == ({1: 0}, set())
    # Kites are annotated in the second image, bears are neither annotated nor known to be absent there.
    assert judged(scenes, 1, [0, 3]) == ({}, {0})
    assert judged(scenes, 2, []) == ({}, set())


def test_objects_of_one_category_have_different_colours(tmp_path):
    values = dataset()
    bear, kite = values["annotations"][:2]  # type: ignore[index]
    mixed = [kite, bear, bear, kite, bear, bear, kite]
    values["annotations"] = [one | {"id": number} for number, one in enumerate(mixed, start=1)]
    (tmp_path / "many.json").write_text(json.dumps(values))
    build_store(tmp_path / "many.json", tmp_path / "many.store")
    store = open_store(tmp_path / "many.store")
    colours = colours_of_objects(store, 0)
    for label in (1, 2):
        of_label = [colour for row, colour in colours.items() if store.labels[row] == label]
        assert len(set(of_label)) == len(of_label) > 2


def test_marks_and_colours_say_what_is_right(scenes, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lvis_rcnn.reporting.pictures.draw_objects",
        lambda pixels, objects: drawn.append(objects) or draw_objects(pixels, objects),
    )
    pair(scenes, 0, 0.1)
    left, right = drawn
    assert [one.text for one in right] == ["✓ bear 0.90", "✗ bear 0.40", "? kite 0.20"]
    of_bear = next(one.colour for one in left if one.text == "bear")
    assert [one.colour for one in right] == [of_bear, WHITE, NOT_JUDGED]
    assert {one.colour for one in left} <= {*COLOURS} - {NOT_JUDGED}


def test_titles_say_what_the_images_are_and_how_many(scenes, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "lvis_rcnn.reporting.pictures.sheet_of", lambda title, rows: titles.append(title[0]) or sheet_of(title, rows)
    )
    write_pictures(scenes, tmp_path / "few", shown=[], number=10, seed=0, least_score=0.3)
    write_pictures(scenes, tmp_path / "some", shown=[], number=1, seed=0, least_score=0.3)
    assert [title.partition("detections (right), ")[2] for title in titles if "right" in title.split(",")[0]] == [
        "2 images with most rare objects, and 1 with most objects",
        "0 images drawn at random, seed 0 (there are no others)",
        "1 image with most rare objects",
        "1 image drawn at random, seed 0",
    ]
    monkeypatch.setattr("lvis_rcnn.reporting.pictures.rare_objects", lambda store: np.zeros(3, np.int64))
    assert how_chosen(scenes.store, [0, 1]) == "2 images with most objects (none is of a rare category)"


def test_chosen_images_have_most_rare_objects_and_random_ones_are_others(scenes):
    assert images_with_rare_objects(scenes.store, 2) == [0, 1]
    assert random_images(scenes.store, 5, 0, without=[0]) == [1, 2]
    drawn = [random_images(scenes.store, 1, seed, without=[]) for seed in range(20)]
    assert drawn == [random_images(scenes.store, 1, seed, without=[]) for seed in range(20)]
    assert len({tuple(images) for images in drawn}) == 3


def test_an_unknown_image_is_named(scenes):
    assert positions_of(scenes.store, [13, 11]) == [2, 0]
    with pytest.raises(InputError, match=r"--show 7: no image of val.json"):
        positions_of(scenes.store, [7])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is no complete image"), (b"nonsense", "is no complete image"), (None, "is 9 x 8 pixels; allowed: 64 x 48")],
)
def test_a_wrong_image_is_named(scenes, content, message):
    path = scenes.files.root / "12.png"
    if content is None:
        Image.new("RGB", (9, 8)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"12.png: {message}"):
        pixels_rgb(scenes, 1)


def test_masks_are_those_of_polygons_and_of_runs(scenes, tmp_path):
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:24, 4:24] = 1
    assert np.array_equal(mask_of_annotation(scenes.store, 0, (HEIGHT, WIDTH)), expected)
    values = dataset()
    runs = {"size": [HEIGHT, WIDTH], "counts": [3, 5, HEIGHT * WIDTH - 8]}
    values["annotations"][0] |= {"segmentation": runs, "area": 5}  # type: ignore[index]
    (tmp_path / "runs.json").write_text(json.dumps(values))
    build_store(tmp_path / "runs.json", tmp_path / "runs.store")
    mask = mask_of_annotation(open_store(tmp_path / "runs.store"), 0, (HEIGHT, WIDTH))
    assert (mask.sum(), mask[3:8, 0].sum()) == (5, 5)


def test_a_detection_whose_mask_was_left_out_is_a_box_alone(scenes, tmp_path):
    found = scenes.found
    bare = dataclasses.replace(scenes, found=dataclasses.replace(found, has_mask=found.scores > 0.5))
    assert not shown_detection(bare, 1, (0, 0, 0)).mask.any()
    assert shown_detection(bare, 0, (0, 0, 0)).mask.sum() == 400
    assert best_line(scenes, [0, 1, 3]) == "3 at any score, the highest 0.90"
    assert "2 have no mask" in best_line(bare, [0, 1, 3])
    write_pictures(bare, tmp_path / "bare", shown=[], number=2, seed=0, least_score=0.3)


def test_objects_outside_their_image_are_drawn_at_its_border(scenes, tmp_path):
    values = dataset()
    for box in ([WIDTH + 40, 5, 8, 8], [5, -60, 8, 8]):
        values["annotations"].append(  # type: ignore[attr-defined]
            values["annotations"][1] | {"id": box[0], "bbox": box, "segmentation": square(*box[:3])}  # type: ignore[index]
        )
    (tmp_path / "outside.json").write_text(json.dumps(values))
    build_store(tmp_path / "outside.json", tmp_path / "outside.store")
    outside = read_scenes(open_store(tmp_path / "outside.store"), tmp_path / "images", tmp_path / "detections")
    write_pictures(outside, tmp_path / "pictures", shown=[], number=2, seed=0, least_score=0.3)
    assert len(list((tmp_path / "pictures").iterdir())) == len(PICTURES)


def test_detections_of_another_split_are_refused(scenes, tmp_path):
    put_detections(tmp_path / "other", *[(image, 20, 0.9, (5, 5, 20)) for image in (11, 7, 7, 8)])
    message = r"other: detections of 2 images that val.json does not have, the first is image 7; .*fix: name the store"
    with pytest.raises(InputError, match=message):
        read_scenes(scenes.store, tmp_path / "images", tmp_path / "other")


def test_the_same_files_give_the_same_pictures_and_the_command_needs_no_torch(scenes, tmp_path):
    write_pictures(scenes, tmp_path / "once", shown=[], number=2, seed=0, least_score=0.3)
    options = {"--store": "val.store", "--images": "images", "--detections": "detections", "--out": "again"}
    words = [word for option, name in options.items() for word in (option, str(tmp_path / name))]
    code = "import sys; sys.modules['torch'] = None; from lvis_rcnn import report; report.main()"
    command = [sys.executable, "-c", code, "pictures", *words, "--number", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == sorted(f"{name}.png" for name in PICTURES)
    for name in (f"{name}.png" for name in PICTURES):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_objects_are_tinted_and_outlined_and_small_images_enlarged():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    picture = np.array(
        draw_objects(np.zeros((40, 60, 3), np.uint8), [Shown((20, 10, 50, 30), mask, "cup", (200, 100, 50))])
    )
    assert picture.shape == (320, 480, 3)
    assert picture[160, 280].tolist() == [60, 30, 15]
    assert picture[300, 20].tolist() == [0, 0, 0]
    assert (picture == (200, 100, 50)).all(axis=2).any()


@pytest.mark.parametrize(
    ("size", "factor"), [((96, 130), (4, 1)), ((480, 640), (1, 1)), ((3000, 2000), (1, 3)), ((460, 1), (1, 1))]
)
def test_images_are_shown_at_whole_factors(size, factor):
    assert factor_of(*size) == factor


NUMBER = st.integers(0, 300)
LABELLED = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER, st.integers(5, 160))


@settings(max_examples=40)
@given(objects=st.lists(LABELLED, max_size=15), canvas=st.tuples(st.integers(20, 300), st.integers(10, 300)))
def test_labels_lie_on_the_canvas_and_never_cover_each_other(objects, canvas):
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d, _ in objects]
    sizes = [(width, LINE_PX) for *_, width in objects]
    placed = place_labels(boxes, sizes, canvas)
    assert len(placed) == len(objects)
    kept = [one for one in placed if one is not None]
    for at, one in enumerate(kept):
        assert 0 <= one[0] < one[2] <= canvas[0]
        assert 0 <= one[1] < one[3] <= canvas[1]
        assert not any(overlap(one, other) for other in kept[:at])
    if placed and sizes[0][0] <= canvas[0] and canvas[1] >= LINE_PX:
        assert placed[0] is not None


def test_a_label_stands_on_its_box_and_gives_way_below():
    box = (50, 50, 90, 80)
    assert place_labels([box, box], [(30, 18)] * 2, (200, 200)) == [(50, 32, 80, 50), (50, 80, 80, 98)]


def in_one_place(number: int, height: int = 100, **more: str) -> list[Shown]:
    """Objects whose labels have to go far away."""
    mask = np.zeros((height, 200), np.uint8)
    return [Shown((80, 40, 110, 60), mask, f"label {at}", COLOURS[at % len(COLOURS)], **more) for at in range(number)]


def test_rare_objects_keep_their_labels_and_a_line_says_how_many_have_none():
    objects = in_one_place(MOST_LABELS) + in_one_place(1, frequency="c") + in_one_place(2, frequency="r")
    kept = labelled(objects)
    assert kept == [MOST_LABELS + 1, MOST_LABELS + 2, MOST_LABELS, *range(MOST_LABELS - 3)]
    blank = np.zeros((100, 200, 3), np.uint8)
    with_all, without = draw_objects(blank, objects[:MOST_LABELS]), draw_objects(blank, objects)
    assert (with_all.height, without.height) == (300, 300 + LINE_PX)


def test_the_line_counts_what_has_no_label(monkeypatch):
    said = []
    monkeypatch.setattr(drawing, "footed", lambda picture, line: said.append(line) or picture)
    draw_objects(np.zeros((100, 200, 3), np.uint8), in_one_place(MOST_LABELS + 2))
    # 600 x 24 pixels: labels of one height, each wider than 50.
    draw_objects(np.zeros((8, 200, 3), np.uint8), in_one_place(30, height=8))
    assert said[0] == "2 of 42 without a label"
    assert 18 < int(said[1].split()[0]) < 30


def test_labels_leave_most_of_a_crowded_picture_free():
    objects = [dataclasses.replace(one, text=f"a category of a long name {one.text}") for one in in_one_place(250)]
    labels, blank = [], np.zeros((100, 200, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw_label", lambda pen, text, colour, place: labels.append(place))
        picture = draw_objects(blank, objects)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in labels)
    assert 0.15 < area / (picture.width * (picture.height - LINE_PX)) <= 0.25


def test_no_line_runs_over_a_label():
    objects = in_one_place(25)
    picture = draw_objects(np.zeros((100, 200, 3), np.uint8), objects)
    box = scaled_box(objects[0].box_xyxy, picture.height / 100, picture.size)
    places = place_labels([box] * 25, [label_size(one.label) for one in objects], picture.size)
    for one, place in zip(objects, places, strict=True):
        assert place is not None
        alone = Image.new("RGB", picture.size)
        draw_label(ImageDraw.Draw(alone), one.text, one.colour, place)
        assert picture.crop(place).tobytes() == alone.crop(place).tobytes(), one.text


def test_text_is_cut_to_its_picture():
    text = "a very long name of a category, and more"
    short = cut(text, 90)
    assert font().getlength(short) <= 90
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert cut("cup", 90) == "cup"
    assert short.removesuffix("…") in ("a very", "a very long")
    assert cut("unbreakable" * 9, 90).startswith("unbreak")
    assert wrap(text, 90) == ["a very long", "name of a", "category,", "and more"]
    assert (wrap("", 90), wrap("unbreakable" * 9, 90)) == ([""], [cut("unbreakable" * 9, 90)])
    # Pictures of a row begin at the same height.
    one, other = captioned([Image.new("RGB", (90, 10)), Image.new("RGB", (400, 20))], [[text, ""], ["cup"]])
    assert (one.size, other.size) == ((90, 10 + 5 * LINE_PX), (400, 20 + 5 * LINE_PX))


def test_surroundings_stay_in_the_image():
    assert surroundings((4, 4, 24, 24), (HEIGHT, WIDTH)) == (0, 0, 49, 48)
    assert surroundings((100, 100, 200, 140), (400, 400)) == (50, 50, 251, 191)


def test_the_input_of_the_network_becomes_colours_again():
    from lvis_rcnn.dataloader.batches import Sample, batch_pixels
    from lvis_rcnn.dataloader.transforms import normalised

    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    (pixels,) = normalised(batch_pixels([Sample(0, image, (32, 64), flip=False)], channels_last=False), [(32, 64)])
    assert np.array_equal(colours_of(pixels), image[..., ::-1])
    assert colours_of(torch.zeros(3, 1, 1)).tolist() == [[[124, 116, 104]]]


@pytest.mark.slow
def test_a_training_step_is_drawn_from_its_targets(tmp_path):
    from lvis_rcnn.training.run import Run

    data, study = make_data(tmp_path), tiny_study(tmp_path)
    run = Run(study, "r50", 0, data.train_store, data.images, data.repeat_factors, tmp_path, {})
    once, again = step_picture(run, 0), step_picture(run, 0)
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != step_picture(run, 1).tobytes()
    with pytest.raises(InputError, match="--step: is 6; allowed: 0 to 5; fix: change the value"):
        step_picture(run, 6)
