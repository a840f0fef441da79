"""Weights of MMDetection's whole networks that take no room: every tensor is a few numbers seen many times."""

from pathlib import Path
from typing import Any

import torch

from lvis_rcnn.config.schema import Backbone, Model
from lvis_rcnn.model.mmdet import CLASSIFIER, KEY_MAP, PUBLISHED, layout
from lvis_rcnn.system.files import sha256_of_file

CLASSIFIER_THERE = next(theirs for theirs, ours in KEY_MAP if ours == CLASSIFIER)


def flat_state(backbone: Backbone, num_categories: int, settings: Model = PUBLISHED) -> dict[str, torch.Tensor]:
    """A state dict in which every tensor has another number; the classifier's rows are 0, 1, ..."""
    return {
        key: rows_of(shape) if key.startswith(CLASSIFIER_THERE) else flat(shape, number)
        for number, (key, shape) in enumerate(layout(backbone, num_categories, settings).items(), start=1)
    }


def flat(shape: tuple[int, ...], number: float) -> torch.Tensor:
    """One number everywhere; a batch counter is an integer."""
    return torch.tensor(float(number)).expand(shape) if shape else torch.tensor(int(number))


def rows_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Row i is i everywhere."""
    return torch.arange(float(shape[0])).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def write_old(path: Path, content: Any) -> Path:
    """Write as published files are, in the format of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def write_published(folder: Path, stem: str, content: Any) -> Path:
    """The same under a name that carries its digest."""
    path = write_old(folder / "unnamed.pth", content)
    return path.rename(folder / f"{stem}-{sha256_of_file(path)[:8]}.pth")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """The same keys with the same numbers of the same type, NaN included."""
    return found.keys() == expected.keys() and all(
        value.dtype == expected[key].dtype
        and value.shape == expected[key].shape
        and torch.equal(value.nan_to_num(), expected[key].nan_to_num())
        and torch.equal(value.isnan(), expected[key].isnan())
        for key, value in found.items()
    )
