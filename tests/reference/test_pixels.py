"""Pixels, boxes and bitmaps beside MMDetection's own (tests/golden/pipeline_images.npz and pipeline_train.npz)."""

import numpy as np
import pytest
import torch

from lvis_rcnn.dataloader.batches import Sample, batch_pixels, read_target
from lvis_rcnn.dataloader.transforms import normalised, padded_size_hw, rescaled_size_hw
from lvis_rcnn.dataset.images import ImageFile, read_image_bgr
from lvis_rcnn.model.roi_losses import mask_targets
from tests.helpers.bitmaps import pasted
from tests.reference.golden_figures import arrays


def figure(name):
    return arrays("pipeline_images")[name]


@pytest.mark.parametrize("image", range(4))
def test_pixels_of_the_test_pipeline(image):
    original = figure(f"test{image}_original_bgr")
    long_edge_px, short_edge_px = figure(f"test{image}_scale").tolist()
    size_hw = rescaled_size_hw(*original.shape[:2], short_edge_px, long_edge_px)
    assert [*size_hw, 3] == figure(f"test{image}_resized_bgr_shape").tolist()
    assert list(padded_size_hw(size_hw)) == figure(f"test{image}_pad_shape").tolist()
    pixels = normalised(batch_pixels([Sample(0, original, size_hw, flip=False)], channels_last=False), [size_hw])
    assert list(pixels.shape) == figure(f"test{image}_input__shape").tolist()
    found = pixels.reshape(-1)[:: int(figure(f"test{image}_input__step"))].numpy()
    differences = np.abs(found - figure(f"test{image}_input__sample"))
    # Equal to the last bit on x86; another build of OpenCV may round a byte of the rescaled image otherwise (0.018).
    assert np.mean(differences > 1e-6) < 1e-3
    assert differences.max() < 0.02


@pytest.mark.parametrize("kind", ["jpeg", "jpeg_exif6", "jpeg_gray"])
def test_decoded_photographs(kind, tmp_path):
    # EXIF orientation 6 is a quarter turn; a grey photograph becomes three equal channels.
    path = tmp_path / "photograph.jpg"
    path.write_bytes(figure(f"{kind}_bytes").tobytes())
    expected = figure(f"{kind}_bgr")
    decoded = read_image_bgr(ImageFile(path), *expected.shape[:2]).astype(int)
    # Decoders of JPEG may differ by a rounding; a colour order or a turn would differ by far more.
    assert np.abs(decoded - expected).max() <= 2


def case(number):
    """Arrays of one training sample, the position of its image, and how it was rescaled and flipped."""
    figures = arrays("pipeline_train")
    height, width, long_edge_px, short_edge_px, flip = figures[f"case{number}_ori_hw_scale_flip"].tolist()
    return (
        {key.split("_", 1)[1]: value for key, value in figures.items() if key.startswith(f"case{number}_")},
        int(figures["img_ids"][number]),
        (height, width),
        rescaled_size_hw(height, width, *sorted((short_edge_px, long_edge_px))),
        bool(flip),
    )


@pytest.mark.parametrize("number", range(4))
def test_lvis_annotations_through_the_training_pipeline(golden_store, number):
    expected, image_id, _, size_hw, flip = case(number)
    image = golden_store.image_ids.tolist().index(image_id)
    assert list(size_hw) == expected["img_shape"].tolist()
    target = read_target(golden_store, image, size_hw, flip)
    kept = len(expected["labels"])  # the figures hold the first 12 instances
    assert (target.labels[:kept] - 1).tolist() == expected["labels"].tolist()
    assert np.abs(target.boxes_xyxy[:kept].numpy() - expected["bboxes"]).max() < 1e-3
    if golden_store.counts["run_length_masks"] and "masks_original" not in expected:
        return  # rebuilt annotations, with a rectangle where the figures hold no mask
    if "masks" in expected:
        assert np.array_equal(pasted(target.masks, size_hw)[:kept], expected["masks"])
    boxes = torch.from_numpy(expected["mt_proposals"])
    objects = torch.from_numpy(expected["mt_gt_inds"]).long()
    found = mask_targets(target.masks, boxes, objects, padded_size_hw(size_hw))
    assert np.array_equal(found.bool().numpy(), expected["mt_hard"])


@pytest.mark.parametrize("number", range(4))
def test_pixels_of_the_training_pipeline(number):
    expected, image_id, original_hw, size_hw, flip = case(number)
    original = np.random.RandomState(image_id).randint(0, 256, (*original_hw, 3), np.uint8)
    (pixels,) = normalised(batch_pixels([Sample(0, original, size_hw, flip)], channels_last=False), [size_hw])
    found = pixels[:, : size_hw[0], : size_hw[1]].numpy().transpose(1, 2, 0)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    bytes_bgr = np.rint(found * std + mean)[..., ::-1]
    for part, name in ((bytes_bgr[::5, ::5], "image_every5th"), (bytes_bgr[-64:, -64:], "image_corner64")):
        differences = np.abs(part - expected[name])
        assert np.mean(differences > 0) < 1e-3
        assert differences.max() <= 1
