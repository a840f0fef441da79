"""A training step as the network sees it: augmented, normalised and padded images, with the targets of its losses."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from lvis_rcnn.dataloader.batches import Batch, Target, TrainingSteps
from lvis_rcnn.dataloader.transforms import MEAN_RGB, STD_RGB
from lvis_rcnn.model.boxes import areas
from lvis_rcnn.reporting.drawing import COLOURS, RARE_MARK, Shown, captioned, draw_objects, sheet_of
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training.run import Run

IMAGES_IN_ROW = 2
MOST_IMAGES = 8
"""Images of a step that are drawn, the first ones."""


def colours_of(pixels: Float[torch.Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """An input of the network as an image again, to the nearest byte."""
    values = pixels.permute(1, 2, 0).numpy() * STD_RGB + MEAN_RGB
    image: np.ndarray = values.round().clip(0, 255).astype(np.uint8)
    return image


def target_objects(run: Run, target: Target, size_hw: tuple[int, int]) -> list[Shown]:
    """The targets of one image; large objects first, so that they are drawn below."""
    labels = target.labels.tolist()
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(dict.fromkeys(labels))}
    boxes = target.boxes_xyxy.tolist()
    objects = []
    for at in (-areas(target.boxes_xyxy.double())).argsort(stable=True).tolist():
        category = run.store.categories[labels[at] - 1]
        mask = mask_on(target, at, size_hw)
        x0, y0, x1, y1 = boxes[at]
        objects.append(Shown((x0, y0, x1, y1), mask, category.name, colours[labels[at]], category.frequency))
    return objects


def mask_on(target: Target, at: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The target's crop on a canvas of the network's input."""
    left, top, right, bottom = target.masks.frames_xyxy[at].tolist()
    first, last = target.masks.offsets[at : at + 2].tolist()
    mask = np.zeros(size_hw, np.uint8)
    mask[top:bottom, left:right] = target.masks.pixels[first:last].numpy().reshape(bottom - top, right - left)
    return mask


def batch_pictures(run: Run, batch: Batch, number: int) -> list[Image.Image]:
    """The images of one normalisation group, which share a canvas."""
    pictures, batch = [], batch.to(torch.device("cpu"))
    canvas_hw = (batch.pixels.shape[2], batch.pixels.shape[3])
    for pixels, target, (height, width), image in zip(
        batch.pixels, batch.targets, batch.sizes_hw, batch.image_ids, strict=True
    ):
        drawn = draw_objects(colours_of(pixels), target_objects(run, target, canvas_hw))
        size = f"{width} x {height} px on {canvas_hw[1]} x {canvas_hw[0]}"
        lines = [f"group {number}, image {image}: {len(target.labels)} targets", size]
        pictures += captioned([drawn], [lines])
    return pictures


def step_picture(run: Run, step: int) -> Image.Image:
    """The first images of an optimizer step, 0-based.

    Raises:
        InputError: an image cannot be read, or tables of repeat factors are not those of the store.
    """
    recipe = run.recipe
    if not 0 <= step < recipe.steps:
        raise InputError("--step", f"is {step}", allowed=f"0 to {recipe.steps - 1}", fix="change the value")
    groups = TrainingSteps(run.store_path, run.images_dir, recipe.stream, run.study.augmentation)[step]
    pictures = [picture for number, batch in enumerate(groups) for picture in batch_pictures(run, batch, number)]
    title = [
        f"Step {step} of {run.study.study}, seed {run.seed}, as the network sees it. {RARE_MARK} rare category",
        f"{min(len(pictures), MOST_IMAGES)} of {len(pictures)} images; boxes and masks are the targets of the losses",
    ]
    shown = pictures[:MOST_IMAGES]
    return sheet_of(title, [shown[at : at + IMAGES_IN_ROW] for at in range(0, len(shown), IMAGES_IN_ROW)])
