"""Pixels and targets: the published chain by hand, and the same batches however they are read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvis_rcnn.config.schema import Augmentation
from lvis_rcnn.dataloader import batches as batches_module
from lvis_rcnn.dataloader import transforms
from lvis_rcnn.dataloader.repeat_factors import read_sampling
from lvis_rcnn.dataloader.sampler import SampleStream
from lvis_rcnn.dataset.images import ImageFile, ImageFiles, read_image_bgr
from lvis_rcnn.dataset.store import build_store, open_store
from lvis_rcnn.system.cli import InputError
from tests.conftest import HANGS_S, REPOSITORY
from tests.helpers.bitmaps import pasted
from tests.helpers.tiny_run import TinyData, make_data

relaxed = settings(max_examples=40)

AUGMENTATION = Augmentation(short_edges_px=(48, 56, 64), long_edge_px=96, flip_probability=0.5)
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 20.0, 10.0, 20.0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def stream_of(store, factors, seed=0, images_per_step=2):
    """A step is one normalisation group."""
    portrait = np.asarray(store.widths < store.heights)
    return SampleStream(factors, "ceil", portrait, seed, group_size=images_per_step, groups_per_step=1)


def make_steps(drawn, seed=0, images_per_step=2):
    factors = read_sampling(drawn.repeat_factors).factors
    stream = stream_of(open_store(drawn.train_store), factors, seed, images_per_step)
    return batches_module.TrainingSteps(drawn.train_store, drawn.images, stream, AUGMENTATION)


def annotation(number, bbox, area=100.0, category=4, polygon=SQUARE):
    keys = {"id": number, "image_id": 7, "category_id": category}
    return {**keys, "bbox": bbox, "area": area, "segmentation": [polygon]}


def make_store(folder, annotations, height=40, width=60, **image):
    """A store of one image with three categories of ids 4, 8 and 15."""
    names = image or {"file_name": "image.png"}
    content = {
        "images": [
            {"id": 7, "height": height, "width": width, **names}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        ],
        "annotations": annotations,
        "categories": [{"id": id, "name": f"c{id}", "frequency": "f"} for id in (4, 8, 15)],
    }
    (folder / "ground_truth.json").write_text(json.dumps(content))
    build_store(folder / "ground_truth.json", folder / "store")
    return open_store(folder / "store")


# Sizes


@pytest.mark.parametrize(
    ("original_hw", "short_px", "long_px", "expected_hw"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 900), 800, 1333, (444, 1333)),  # the long edge decides
        ((267, 400), 704, 1333, (704, 1055)),  # a floor instead of a rounding gives 703 here
        ((64, 96), 64, 96, (64, 96)),
        ((2, 8000), 64, 96, (1, 96)),  # not 0, which OpenCV asserts on
        ((8000, 2), 800, 1333, (1333, 1)),
    ],
)
def test_rescaled_sizes_by_hand(original_hw, short_px, long_px, expected_hw):
    assert transforms.rescaled_size_hw(*original_hw, short_px, long_px) == expected_hw


@relaxed
@given(st.integers(32, 5000), st.integers(32, 5000), st.sampled_from([640, 672, 704, 736, 768, 800]))
def test_rescaled_sizes_keep_the_ratio_and_the_limits(height, width, short_px):
    new_h, new_w = transforms.rescaled_size_hw(height, width, short_px, 1333)
    factor = min(1333 / max(height, width), short_px / min(height, width))
    assert (new_h, new_w) == (int(height * factor + 0.5), int(width * factor + 0.5))
    assert max(new_h, new_w) <= 1333
    assert min(new_h, new_w) <= short_px
    assert max(new_h, new_w) == 1333 or min(new_h, new_w) == short_px


# Pixels


def network_input(samples, channels_last=False):
    pixels = batches_module.batch_pixels(samples, channels_last)
    return transforms.normalised(pixels, [sample.size_hw for sample in samples])


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_equal_a_chain_written_out(drawn, flip):
    path = sorted(drawn.images.rglob("*.png"))[0]
    image_bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    height, width = image_bgr.shape[:2]
    assert np.array_equal(read_image_bgr(ImageFile(path), height, width), image_bgr)
    (found,) = network_input([batches_module.Sample(0, image_bgr, (50, 70), flip)])
    resized = cv2.resize(image_bgr, (70, 50), interpolation=cv2.INTER_LINEAR)
    rgb = (resized[:, ::-1] if flip else resized)[:, :, ::-1].astype(np.float64)
    expected = np.zeros((3, 64, 96))
    expected[:, :50, :70] = ((rgb - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]).transpose(2, 0, 1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    assert (found[:, 50:] == 0).all()
    assert (found[:, :, 70:] == 0).all()


@relaxed
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.booleans(),
    st.booleans(),
)
def test_pixels_are_the_published_operations_to_the_bit(original_hw, size_hw, flip, channels_last):
    image = np.random.default_rng(0).integers(0, 256, (*original_hw, 3), np.uint8)
    resized = mmcv.imresize(image, size_hw[::-1], interpolation="bilinear")
    rgb = mmcv.bgr2rgb(mmcv.imflip(resized) if flip else resized).astype(np.float32)
    expected = mmcv.impad_to_multiple((rgb - transforms.MEAN_RGB) / transforms.STD_RGB, 32).transpose(2, 0, 1)
    (found,) = network_input([batches_module.Sample(0, image, size_hw, flip)], channels_last)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_byte_of_every_channel_is_normalised_to_the_bit(layout):
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 32, 256).contiguous(memory_format=layout)
    found = transforms.normalised(pixels, [(32, 256), (16, 256)])
    values = (np.arange(256, dtype=np.float32)[:, None] - transforms.MEAN_RGB) / transforms.STD_RGB
    assert (found.dtype, found.stride()) == (torch.float32, pixels.stride())
    assert np.array_equal(found[0].numpy(), np.broadcast_to(values.T[:, None], (3, 32, 256)))
    assert torch.equal(found[1, :, :16], found[0, :, :16])
    assert not found[1, :, 16:].any()


@pytest.mark.parametrize(("channels_last", "strides"), [(False, (12288, 4096, 64, 1)), (True, (12288, 1, 192, 3))])
def test_a_batch_is_padded_right_and_below(channels_last, strides):
    samples = [
        batches_module.Sample(0, np.full((4, 4, 3), 255, np.uint8), size, False) for size in ((32, 64), (64, 30))
    ]
    batch = network_input(samples, channels_last)
    assert (batch.shape, batch.stride()) == ((2, 3, 64, 64), strides)
    assert (batch[0, :, :32] > 2).all()
    assert (batch[0, :, 32:] == 0).all()
    assert (batch[1, :, :, :30] > 2).all()
    assert (batch[1, :, :, 30:] == 0).all()


def saved(path, height=40, width=60, **options):
    pixels = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = saved(tmp_path / "turned.jpg", exif=exif)
    assert read_image_bgr(ImageFile(path), 60, 40).shape == (60, 40, 3)
    with pytest.raises(InputError, match=r"turned.jpg: is 40 x 60 pixels; allowed: 60 x 40, as annotated; fix: "):
        read_image_bgr(ImageFile(path), 40, 60)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.png: cannot be read \(No such file or directory\); fix: restore"):
        read_image_bgr(ImageFile(tmp_path / "gone.png"), 40, 60)


@pytest.mark.parametrize("kept", [0, 10, 0.5], ids=["empty", "header", "half"])
def test_a_truncated_image_is_named(tmp_path, kept):
    path = saved(tmp_path / "cut.png")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut.png: is no complete image; fix: copy the file again"):
        read_image_bgr(ImageFile(path), 40, 60)


def test_a_jpeg_that_is_cut_short_is_named_and_one_with_more_behind_it_read(tmp_path):
    path = saved(tmp_path / "photograph.jpg")
    content = path.read_bytes()
    path.write_bytes(content + b"\0\0")  # cameras append to the end mark
    assert read_image_bgr(ImageFile(path), 40, 60).shape == (40, 60, 3)
    path.write_bytes(content[:-40])  # OpenCV alone fills the rest with grey
    with pytest.raises(InputError, match=r"photograph.jpg: is no complete image; fix: copy the file again"):
        read_image_bgr(ImageFile(path), 40, 60)


# Targets


def test_unusable_annotations_are_left_out(tmp_path):
    usable = annotation(1, [10, 5, 20, 15])
    store = make_store(
        tmp_path,
        [
            usable,
            annotation(2, [10, 5, 20, 15], area=0.0),
            annotation(3, [10, 5, 0.9, 15]),
            annotation(4, [10, 5, 20, 0.9]),
            annotation(5, [10, 5, 1, 1], category=15),
            annotation(6, [50, 30, 20, 20]),  # overshoots, but touches the image
            annotation(7, [60, 5, 20, 15]),
            annotation(8, [10, -15, 20, 15]),
            usable | {"id": 9, "iscrowd": 1},
            usable | {"id": 10, "ignore": 1},
        ],
    )
    assert store.annotation_ids[store.is_trained].tolist() == [1, 5, 6]


def test_a_target_by_hand(tmp_path):
    store = make_store(tmp_path, [annotation(1, [10, 5, 20, 15], category=8), annotation(2, [50, 30, 20, 20])])
    target = batches_module.read_target(store, 0, (80, 120), flip=False)
    assert target.labels.tolist() == [2, 1]
    assert target.boxes_xyxy.tolist() == [[20, 10, 60, 40], [100, 60, 120, 80]]
    expected = np.zeros((80, 120), np.uint8)
    expected[10:40, 20:60] = 1
    assert np.array_equal(pasted(target.masks, (80, 120))[0], expected)
    flipped = batches_module.read_target(store, 0, (80, 120), flip=True)
    assert flipped.boxes_xyxy.tolist() == [[60, 10, 100, 40], [0, 60, 20, 80]]
    assert np.array_equal(pasted(flipped.masks, (80, 120))[0], expected[:, ::-1])


def test_an_image_may_end_with_no_object(tmp_path):
    store = make_store(tmp_path, [annotation(1, [10, 5, 20, 15], area=0.0)])
    saved(tmp_path / "image.png")
    steps = batches_module.TrainingSteps(
        store.path, tmp_path, stream_of(store, np.ones(1), images_per_step=1), AUGMENTATION
    )
    ((target,),) = [group.targets for group in steps[0]]
    assert target.boxes_xyxy.shape == (0, 4)
    assert target.masks.frames_xyxy.shape == (0, 4)


def test_a_box_that_rescaling_flattens_is_left_out():
    boxes = np.array([[1, 1, 2, 2], [3, 3, 3, 5], [3, 5, 9, 5]], np.float32)
    assert batches_module.has_area(boxes).tolist() == [True, False, False]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "tolerance_px"), [(1, 0), (1.5, 1)])
def test_masks_and_boxes_agree(drawn, flip, scale, tolerance_px):
    store = open_store(drawn.train_store)
    for image in range(store.num_images):
        size_hw = (int(store.heights[image] * scale), int(store.widths[image] * scale))
        target = batches_module.read_target(store, image, size_hw, flip)
        for mask, box in zip(pasted(target.masks, size_hw), target.boxes_xyxy.tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.subtract(extent, box)).max() <= tolerance_px


@relaxed
@given(
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.tuples(*[st.floats(0, 0.8)] * 2, *[st.floats(0.05, 0.5)] * 2),
    st.tuples(st.integers(8, 120), st.integers(8, 120)),
)
def test_flipping_twice_gives_the_box_back(original_hw, fractions, size_hw):
    height, width = original_hw
    boxes = np.array([fractions]) * [width, height, width, height]
    plain = batches_module.target_boxes_xyxy(boxes, original_hw, size_hw, flip=False)
    flipped = batches_module.target_boxes_xyxy(boxes, original_hw, size_hw, flip=True)
    assert (plain >= 0).all()
    assert (plain <= [size_hw[1], size_hw[0]] * 2).all()
    np.testing.assert_allclose(size_hw[1] - flipped[:, [2, 0]], plain[:, [0, 2]], atol=1e-4)
    assert np.array_equal(flipped[:, 1::2], plain[:, 1::2])


def test_images_are_found_under_the_names_of_v05(tmp_path):
    (tmp_path / "val2017").mkdir()
    saved(tmp_path / "val2017" / "000000000007.png")
    names = {
        "file_name": "COCO_val2014_000000000007.png",
        "coco_url": "http://images.cocodataset.org/val2017/000000000007.png",
    }
    store = make_store(tmp_path, [annotation(1, [10, 5, 20, 15])], **names)
    assert batches_module.TestImages(store.path, tmp_path, 40, 60)[[0]].pixels.shape == (1, 3, 64, 64)


# Steps


def same(step, other_step):
    for one, other in zip(step, other_step, strict=True):
        same_batch(one, other)


def same_batch(one, other):
    assert one.image_ids == other.image_ids
    assert one.sizes_hw == other.sizes_hw
    assert torch.equal(one.pixels, other.pixels)
    for ours, theirs in zip(one.targets, other.targets, strict=True):
        assert torch.equal(ours.boxes_xyxy, theirs.boxes_xyxy)
        assert torch.equal(ours.labels, theirs.labels)
        for field in ("frames_xyxy", "offsets", "pixels"):
            assert torch.equal(getattr(ours.masks, field), getattr(theirs.masks, field))


def test_a_step_depends_on_seed_and_step_alone(drawn):
    steps = make_steps(drawn)
    later_first = [steps[step] for step in (5, 2)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    for batch, step in zip(later_first, (5, 2), strict=True):
        same(batch, make_steps(drawn)[step])
    others = [make_steps(drawn, seed=1)[step] for step in (5, 2)]
    assert any(ours[0].image_ids != theirs[0].image_ids for ours, theirs in zip(later_first, others, strict=True))


def test_both_flips_and_all_scales_are_drawn(drawn):
    steps = make_steps(drawn, images_per_step=1)
    assert {min(steps[step][0].sizes_hw[0]) for step in range(24)} >= {48, 56}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside threads, from Python 3.12 on
def test_workers_read_the_same_batches(drawn):
    steps = make_steps(drawn)
    alone, together = (list(batches_module.read_in_order(steps, range(2, 7), workers)) for workers in (0, 2))
    assert len(alone) == 5
    assert {batch.pixels.dtype for step in together for batch in step} == {torch.uint8}
    for one, other in zip(alone, together, strict=True):
        same(one, other)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_workers_too(tmp_path, workers):
    store = make_store(tmp_path, [annotation(1, [10, 5, 20, 15])])
    (tmp_path / "image.png").write_bytes(b"")
    batches = batches_module.read_in_order(batches_module.TestImages(store.path, tmp_path, 40, 60), [[0]], workers)
    expected = f"{tmp_path / 'image.png'}: is no complete image; fix: copy the file again"
    with pytest.raises(InputError) as raised:
        next(batches)
    assert str(raised.value) == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_worker_writes_into_memory_that_is_shared(monkeypatch, layout):
    alone = batches_module.zero_bytes((2, 3, 32, 64), layout)
    monkeypatch.setattr(batches_module, "get_worker_info", lambda: "a worker")
    shared = batches_module.zero_bytes((2, 3, 32, 64), layout)
    assert not alone.any()
    assert not shared.any()
    assert (alone.is_shared(), shared.is_shared()) == (False, True)
    assert (shared.shape, shared.stride(), shared.dtype) == (alone.shape, alone.stride(), alone.dtype)


# Broken images


def skipping(drawn, skip=True, workers=0):
    """What five steps of two images are, where broken images are skipped."""
    steps = make_steps(drawn)
    steps.augmentation = AUGMENTATION.model_copy(update={"skip_broken_images": skip})
    return list(batches_module.read_in_order(steps, range(5), workers))


@pytest.fixture
def broken(drawn, tmp_path):
    """The data with one image broken that the second step sees, and the id of this image."""
    shutil.copytree(drawn.folder, tmp_path / "data")
    copy = TinyData(tmp_path / "data")
    image_id = skipping(drawn)[1][0].image_ids[1]
    store = open_store(copy.train_store)
    files = ImageFiles(copy.images)
    files.of(store, store.image_ids.tolist().index(image_id)).path.write_bytes(b"")
    return copy, image_id


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_another_image_takes_the_place_of_a_broken_one_whatever_reads_it(drawn, broken):
    copy, image_id = broken
    sound, found = skipping(drawn), skipping(copy)
    for together in (skipping(copy, workers=1), skipping(copy, workers=2)):
        for one, other in zip(found, together, strict=True):
            same(one, other)
            assert one[0].broken == other[0].broken
    for (before,), (after,) in zip(sound, found, strict=True):
        assert image_id not in after.image_ids
        assert len(after.image_ids) == 2
        assert len(after.broken) == before.image_ids.count(image_id)
        for old, new in zip(before.image_ids, after.image_ids, strict=True):
            assert (old == new) is (old != image_id)
    assert "is no complete image; fix: copy the file again" in found[1][0].broken[0]


def test_a_broken_image_ends_a_study_that_does_not_skip(broken):
    with pytest.raises(InputError, match="is no complete image; fix: copy the file again"):
        skipping(broken[0], skip=False)


def test_when_all_images_are_broken_none_is_skipped(broken):
    copy, _ = broken
    for path in copy.images.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"images: 20 images in a row cannot be read, the last one: .*fix: restore"):
        skipping(copy)


# Batches for a GPU


def pinned_batch(drawn):
    (batch,) = make_steps(drawn)[0]
    return batch, batch.pin_memory()


def test_pinning_keeps_every_value(drawn, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(tensor) or tensor.clone())
    batch, pinned = pinned_batch(drawn)
    same_batch(batch, pinned)
    assert len(asked) == 1 + 5 * len(batch.targets)  # pixels; boxes, labels and three tensors of masks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_batches_for_a_gpu_are_pinned_and_channels_last(drawn):
    steps = make_steps(drawn)
    steps.channels_last = True
    for workers in (0, 1):
        ((batch,),) = batches_module.read_in_order(steps, range(1), workers, pinned=True)
        same_batch(batch, make_steps(drawn)[0][0])
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert all(tensor.is_pinned() for tensor in (batch.pixels, batch.targets[0].masks.pixels))
        on_gpu = batch.to(torch.device("cuda"))
        assert on_gpu.pixels.is_contiguous(memory_format=torch.channels_last)
        same_batch(on_gpu.mapped(torch.Tensor.cpu), batch.to(torch.device("cpu")))


def test_shared_memory_that_is_too_small_is_said_before_anything_is_read(monkeypatch):
    # 2 items of 16 images of 800 x 1344 pixels, 3 bytes each: 103.2 MB for each worker.
    monkeypatch.setattr(batches_module, "free_shared_memory", lambda: 420_000_000)
    batches_module.require_shared_memory(16, 800, 1333, workers=4)
    expected = (
        "/dev/shm: has 420 MB of shared memory free, and 5 loader workers fill up to 516 with images that they read "
        "ahead; allowed: 103 MB for each worker; fix: set resources.loader_workers to 4, or give the container more "
        "(--shm-size)"
    )
    with pytest.raises(InputError) as raised:
        batches_module.require_shared_memory(16, 800, 1333, workers=5)
    assert str(raised.value) == expected
    monkeypatch.setattr(batches_module, "free_shared_memory", lambda: 0)
    batches_module.require_shared_memory(16, 800, 1333, workers=0)  # reads in the process itself
    monkeypatch.setattr(batches_module, "free_shared_memory", lambda: None)
    batches_module.require_shared_memory(16, 800, 1333, workers=5)


SIGNALLED = """
import os, signal, sys, time
from pathlib import Path
from torch.utils.data import Dataset
from lvis_rcnn.dataloader import batches as data

class Slow(Dataset):
    def __getitem__(self, index):
        time.sleep(0.2)
        return index

signal.signal(signal.SIGTERM, lambda number, frame: None)
batches = data.read_in_order(Slow(), range(6), 2)
print(next(batches))
os.killpg(os.getpgrp(), signal.SIGTERM)  # what a cluster does at the time limit
print(*batches)
"""


def test_workers_outlive_a_signal_to_the_whole_job():
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=HANGS_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["0", "1", "2", "3", "4", "5"]), ended.stderr


LEFT = """
import os, torch
from multiprocessing import connection
from torch.utils.data import Dataset
from lvis_rcnn.dataloader import batches as data

class Tensors(Dataset):
    def __getitem__(self, index):
        return torch.zeros(8)

def leave(worker, key):
    worker.close()
    os._exit(130)

connection.answer_challenge = leave  # the parent's first words to a worker that hands it a tensor
next(data.read_in_order(Tensors(), range(4), 1))
"""


@pytest.mark.slow
def test_workers_are_silent_about_a_parent_that_left():
    ended = subprocess.run(
        [sys.executable, "-c", LEFT], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_other_errors_of_a_worker_are_shown(capsys):
    batches_module.report_unless_parent_left(ValueError, ValueError("no such key"), None)
    assert capsys.readouterr().err == "ValueError: no such key\n"


@relaxed
@given(st.integers(0, 30))
def test_test_images_come_in_file_order(drawn, image):
    images = batches_module.TestImages(drawn.val_store, drawn.images, 48, 96)
    image %= images.store.num_images
    batch = images[[image]]
    assert batch.image_ids == [int(images.store.image_ids[image])]
    assert batch.targets == []
    assert images.files.of(images.store, image).path.exists()


@pytest.mark.slow
def test_mmcv_is_imported_beside_half_a_cache(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import lvis_rcnn.dataloader.transforms"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run(words, cwd=REPOSITORY, env=environment, check=True)
    caches = [path for path in tmp_path.rglob("*.pickle") if path.is_file()]
    assert caches
    for cache in caches:
        cache.write_bytes(cache.read_bytes()[:100])
    subprocess.run(words, cwd=REPOSITORY, env=environment, check=True)
