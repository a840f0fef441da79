"""How the box head classifies regions: outputs, losses and scores, a row of ``CLASSIFICATIONS`` for each way.

Label 0 is the background, whose column is the first one; labels 1 to C are classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch.nn.functional import cross_entropy

from lvis_rcnn.model.seesaw import LabelCounters, losses_of_classes, losses_of_objectness, seesaw_scores


@dataclass(frozen=True)
class Labels:
    """Labels of the regions of a pass."""

    of_regions: Int64[torch.Tensor, " r"]
    positive: Int64[torch.Tensor, " p"]
    """Rows of those that are not background."""
    group_of: Int64[torch.Tensor, " r"]
    """Place of the normalisation group of each region in the pass."""
    numbers: Sequence[int]
    """Of these groups, their places in the step."""


def softmax_losses(
    logits: Float[torch.Tensor, "r outputs"], labels: Labels, counters: LabelCounters | None, reduction: str
) -> Float[torch.Tensor, "*r"]:
    """Cross entropy over classes and background."""
    return cross_entropy(logits, labels.of_regions, reduction=reduction)


def softmax_scores(logits: Float[torch.Tensor, "r outputs"]) -> Float[torch.Tensor, "r classes"]:
    """Probabilities of the classes; the background takes the rest."""
    return logits.softmax(dim=1)[:, 1:]


def seesaw_losses(
    logits: Float[torch.Tensor, "r outputs"], labels: Labels, counters: LabelCounters | None, reduction: str
) -> Float[torch.Tensor, "*r"]:
    """Seesaw loss over the classes, of positive regions, and cross entropy of objectness."""
    assert counters is not None
    counts = counters.count(labels.of_regions, labels.group_of, labels.numbers)
    of_positive = counts[labels.group_of[labels.positive], 1:]
    classes = labels.of_regions[labels.positive] - 1
    of_classes = losses_of_classes(logits[labels.positive, 1:-1], classes, of_positive, counters.settings)
    losses = losses_of_objectness(logits, labels.of_regions).index_add(0, labels.positive, of_classes)
    return losses.sum() if reduction == "sum" else losses


@dataclass(frozen=True)
class Classification:
    """One way to classify regions."""

    more_outputs: int
    """Beside those of the C + 1 labels."""
    counts_labels: bool
    """Whether its losses depend on how often each label was seen."""
    losses: Callable[[torch.Tensor, Labels, LabelCounters | None, str], torch.Tensor]
    """Of logits (float32 or float64), labels, counters and reduction: each region's (none), or their sum."""
    scores: Callable[[torch.Tensor], torch.Tensor]
    """Of logits: the score of each class at test time, of 0 to 1."""


# A new one is also a value of ``classification`` in config/schema.py.
CLASSIFICATIONS = {
    "softmax": Classification(0, False, softmax_losses, softmax_scores),
    "seesaw": Classification(1, True, seesaw_losses, seesaw_scores),
}


def class_scores(logits: Float[torch.Tensor, "r outputs"], classification: str) -> Float[torch.Tensor, "r classes"]:
    """Scores of the classes (labels 1 to C) at test time, before threshold and NMS."""
    return CLASSIFICATIONS[classification].scores(logits)
