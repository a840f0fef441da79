"""Figures of MMDetection 3.3.0 (tests/golden, described there) and the network they were computed with.

Its weights are no file: every tensor is a function of its MMDetection name and shape, with calibrated gains, biases and
statistics from weights_c20.npz.
"""

import gzip
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvis_rcnn.config.schema import BACKBONES, Inference, Model
from lvis_rcnn.dataloader.batches import Batch, Sample, batch_pixels
from lvis_rcnn.model.mask_rcnn import MaskRcnn
from lvis_rcnn.model.mmdet import to_ours

GOLDEN = Path(__file__).parents[1] / "golden"

# The recipe's numbers: config_r50_lvis05.json.
RECIPE = Model(weights="imagenet", normalization="fixed_batch", frozen_stages=1)
TEST = Inference(short_edge_px=800, long_edge_px=1333, score_threshold=1e-4, detections_per_image=300)


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz; a pair X__bits, X__shape is given as the boolean array X."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        found = {key: archive[key] for key in archive.files}
    for key in [key for key in found if key.endswith("__bits")]:
        shape = found.pop(key.replace("__bits", "__shape"))
        found[key.removesuffix("__bits")] = np.unpackbits(found.pop(key))[: shape.prod()].reshape(shape).astype(bool)
    return found


@cache
def table(name: str) -> Any:
    """A JSON file, packed or not."""
    path = GOLDEN / name
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on a name and a shape alone."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    return (random.random_sample(math.prod(shape)) * 2.0 - 1.0).reshape(shape)


def weight(key: str, shape: tuple[int, ...], vectors: dict[str, np.ndarray], gains: dict[str, float]) -> np.ndarray:
    """One entry of MMDetection's state dict."""
    layer, _, kind = key.rpartition(".")
    if not shape:
        return np.zeros((), np.int64)
    if key in vectors:
        return vectors[key].astype(np.float32)
    numbers = uniform(key, shape)
    if len(shape) > 1:
        # The deconvolution's weight is in x out.
        inputs = shape[0] if layer.endswith("upsample") else math.prod(shape[1:])
        scaled = numbers * math.sqrt(3.0 / inputs) * gains.get(key, math.sqrt(2.0))
        return scaled.astype(np.float32)
    norm = layer.rpartition(".")[2].startswith("bn") or layer.endswith("downsample.1")
    centre, width = {
        (True, "running_mean"): (0.0, 0.1),
        (True, "running_var"): (1.0, 0.3),
        (True, "weight"): (0.5, 0.1) if layer.endswith("bn3") else (1.0, 0.2),
        (True, "bias"): (0.0, 0.1),
        (False, "bias"): (0.0, 0.05),
    }[norm, kind]
    return (centre + width * numbers).astype(np.float32)


def mmdet_state(shapes: dict[str, list[int]], *, calibrated: bool) -> dict[str, torch.Tensor]:
    """MMDetection's state dict for keys and shapes."""
    sidecar = arrays("weights_c20") if calibrated else {}
    gains = dict(zip(sidecar.get("__gain_keys", []), sidecar.get("__gain_values", []), strict=True))
    return {key: torch.from_numpy(weight(key, tuple(shape), sidecar, gains)) for key, shape in shapes.items()}


@cache
def network(settings: Model = RECIPE) -> MaskRcnn:
    """The network of variant c20: R-50-FPN and 20 classes."""
    model = MaskRcnn(BACKBONES["r50"], 21, settings)
    model.load_state_dict(to_ours(mmdet_state(table("shapes_c20.json.gz"), calibrated=True)))
    return model


def golden_batch(*images: int) -> Batch:
    """Golden images as the test pipeline hands them to the network."""
    figures = arrays("eval_c20")
    sizes = [tuple(figures[f"img{image}_img_shape"].tolist()) for image in images]
    originals = [tuple(figures[f"img{image}_ori_shape"].tolist()) for image in images]
    samples = [
        Sample(image, figures[f"img{image}_original"], size, flip=False)
        for image, size in zip(images, sizes, strict=True)
    ]
    read = Batch(batch_pixels(samples, channels_last=False), sizes, originals, list(images), [])
    return read.to(torch.device("cpu"))
