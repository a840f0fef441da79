"""Seesaw loss (Wang et al. 2021, arXiv 2008.10032), as MMDetection 3.3.0 computes it (models/losses/seesaw_loss.py).

The classifier has C + 2 outputs: z of the C classes, and two logits o of background and object. With y the class of a
region, N_j how often class j was a label so far, this group's regions included, and s = softmax(z), a constant:

    M_yj = min(1, max(N_j, 1) / max(N_y, 1)) ^ p          mitigation: rare classes are pushed down less by frequent ones
    C_yj = max(1, s_j / max(s_y, eps)) ^ q                compensation: but as much where they are wrongly preferred
    L    = -z_y + log sum_j M_yj C_yj exp(z_j)            of positive regions; M_yy = C_yy = 1
    L_o  = cross entropy of o, object or background       of all regions

The two are added; each is a sum over the regions of a group divided by the number of all of them. At test time the
score of a class is softmax(z) times the probability of object in softmax(o), and counts play no part. With p = q = 0 L
is cross entropy over the classes.

The columns are background, the classes, object: MMDetection's (classes, object, background) rolled by one, as are the
C + 1 of plain softmax.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import nn
from torch.nn.functional import cross_entropy

from lvis_rcnn.config.schema import Seesaw


def losses_of_classes(
    logits: Float[torch.Tensor, "p classes"],
    classes: Int64[torch.Tensor, " p"],
    counts: Int64[torch.Tensor, "p classes"],
    settings: Seesaw,
) -> Float[torch.Tensor, " p"]:
    """L of positive regions.

    Args:
        logits: z.
        classes: y, from 0.
        counts: N as each region sees it.
        settings: p (``mitigation``), q (``compensation``) and eps.
    """
    own = classes[:, None]
    seen = counts.clamp(min=1).to(logits.dtype)
    log_mitigation = settings.mitigation * (seen / seen.gather(1, own)).clamp(max=1).log()
    log_scores = logits.detach().log_softmax(dim=1)
    log_own = log_scores.gather(1, own).clamp(min=math.log(settings.epsilon))
    log_compensation = settings.compensation * (log_scores - log_own).clamp(min=0)
    return cross_entropy(logits + log_mitigation + log_compensation, classes, reduction="none")


def losses_of_objectness(
    logits: Float[torch.Tensor, "r outputs"], labels: Int64[torch.Tensor, " r"]
) -> Float[torch.Tensor, " r"]:
    """L_o of all regions; label 0 is the background."""
    return cross_entropy(objectness(logits), (labels > 0).long(), reduction="none")


def objectness(logits: Float[torch.Tensor, "r outputs"]) -> Float[torch.Tensor, "r 2"]:
    """o: background, object."""
    return torch.stack([logits[:, 0], logits[:, -1]], dim=1)


def seesaw_scores(logits: Float[torch.Tensor, "r outputs"]) -> Float[torch.Tensor, "r classes"]:
    """Scores of the classes at test time (MMDetection's ``get_activation``); with the background's they add up to 1."""
    return logits[:, 1:-1].softmax(dim=1) * objectness(logits).softmax(dim=1)[:, 1:]


class LabelCounters(nn.Module):
    """How many regions of each label were trained on, in all steps so far.

    A normalisation group sees the counts at the start of its step and its own regions, as each process of MMDetection
    does. The counts of a step's groups are added after it, so that they do not depend on processes, passes or order.
    MMDetection never adds up the counts of its processes: each has its own, of which the first one's are saved. Several
    ``counters`` are that: group g of a step sees and feeds the row g modulo their number.

    MMDetection's counts are float32, which cannot count on beyond 2^24; these are integers.
    """

    cum_samples: torch.Tensor

    def __init__(self, settings: Seesaw, num_labels: int) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("cum_samples", torch.zeros(settings.counters, num_labels, dtype=torch.int64))
        self.of_step: list[tuple[int, torch.Tensor]] = []

    def count(
        self, labels: Int64[torch.Tensor, " r"], group_of: Int64[torch.Tensor, " r"], numbers: Sequence[int]
    ) -> Int64[torch.Tensor, "groups labels"]:
        """Note the labels of the groups of a pass; returns the counts that each of them sees.

        Args:
            labels: of all regions of the pass.
            group_of: place of the group of each region in the pass.
            numbers: of the groups, their places in the step.
        """
        counters, num_labels = self.cum_samples.shape
        cells = labels.new_zeros(len(numbers) * num_labels)
        cells = cells.index_add(0, group_of * num_labels + labels, torch.ones_like(labels))
        own = cells.view(len(numbers), num_labels)
        rows = [number % counters for number in numbers]
        self.of_step += zip(rows, own, strict=True)
        return torch.stack([self.cum_samples[row] for row in rows]) + own

    def taken(self) -> Int64[torch.Tensor, "counters labels"]:
        """The counts of all groups since the last call, which are forgotten then."""
        counts = torch.zeros_like(self.cum_samples)
        for row, own in self.of_step:
            counts[row] += own
        self.of_step = []
        return counts

    def add(self, counts: Float[torch.Tensor, " cells"], is_finite: Bool[torch.Tensor, ""]) -> None:
        """Add the counts of a step, summed over all processes, unless the step was not finite and changed nothing."""
        self.cum_samples += counts.view_as(self.cum_samples).long() * is_finite


def counters_of(model: nn.Module) -> LabelCounters | None:
    """The counters of a network; None where its loss has none."""
    return next((module for module in model.modules() if isinstance(module, LabelCounters)), None)
