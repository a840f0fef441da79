"""Seesaw loss is that of its authors: figures of MMDetection, and an independent form of the formula, by property."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lvis_rcnn.config.schema import Seesaw
from lvis_rcnn.model.classification import CLASSIFICATIONS, Labels, class_scores
from lvis_rcnn.model.seesaw import LabelCounters, losses_of_classes, losses_of_objectness
from tests.conftest import LONGTAIL, REPOSITORY

SMALL = REPOSITORY / "tests" / "golden" / "seesaw_c20.npz"
LARGE = LONGTAIL / "seesaw_c1230.npz"
# What differs from the recipe, with the weight of the losses.
CASES = {
    "recipe": ({}, 1.0),
    "p0": ({"mitigation": 0.0}, 1.0),
    "q0": ({"compensation": 0.0}, 1.0),
    "p0q0": ({"mitigation": 0.0, "compensation": 0.0}, 1.0),
    "eps_half": ({"epsilon": 0.5}, 1.0),
    "p2q1": ({"mitigation": 2.0, "compensation": 1.0, "epsilon": 1e-4}, 1.0),
    "weights": ({}, 2.5),
    "no_avg_factor": ({}, 1.0),
    "reduction_none": ({}, 1.0),
    "one_sum": ({}, 1.0),
    "no_positives": ({}, 1.0),
}
TOLERANCES = {torch.float64: ("f64_", 1e-9), torch.float32: ("", 2e-6)}
files = pytest.mark.parametrize(
    ("file", "case"),
    [
        *((SMALL, case) for case in CASES),
        # Of 1,230 categories, where they lie beside the checkout.
        *((LARGE, case) for case in ("recipe", "after_epoch") if LARGE.exists()),
    ],
)


def ours(rows):
    """Classes, object, background: the background goes first, here and in counts."""
    return torch.from_numpy(rows).roll(1, -1)


def logits_of(figures, case, step):
    """From the seed, as the figures' rule says."""
    seed, (_, number, classes, _) = int(figures[f"{case}/seed"]), figures[f"{case}/shape"].tolist()
    drawn = np.random.RandomState(seed + 10 * step).standard_normal((number, classes + 2))
    logits = (3 * drawn).astype(np.float32)
    assert hashlib.sha256(logits.tobytes()).hexdigest()[:16] == figures[f"{case}/step{step}/logits_sha"]
    return logits


def counters_at_start(figures, case):
    counters = LabelCounters(Seesaw(**CASES.get(case, ({}, 1))[0]), int(figures[f"{case}/shape"][2]) + 1)
    start = f"{case}/start_cum_samples"
    if start in figures:
        counters.cum_samples[0] = ours(figures[start])
    return counters


def add_step(counters):
    counters.add(counters.taken().flatten().float(), torch.tensor(True))


def both_losses(counters, logits, labels):
    """Of positive regions, and of all."""
    positive = labels.nonzero()[:, 0]
    counts = counters.count(labels, torch.zeros_like(labels), [0])[:, 1:].expand(len(positive), -1)
    of_classes = losses_of_classes(logits[positive, 1:-1], labels[positive] - 1, counts, counters.settings)
    return of_classes, losses_of_objectness(logits, labels), positive


@files
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_losses_gradients_and_counters_are_mmdetections(file, case, dtype):
    figures, (prefix, tolerance) = np.load(file), TOLERANCES[dtype]
    counters = counters_at_start(figures, case)
    for step in range(int(figures[f"{case}/shape"][0])):
        known = {key.rpartition("/")[2]: figures[key] for key in figures if key.startswith(f"{case}/step{step}/")}
        logits = ours(logits_of(figures, case, step)).to(dtype).requires_grad_()
        labels = (torch.from_numpy(known["labels"]) + 1) % (logits.shape[1] - 1)
        of_classes, of_objects, positive = both_losses(counters, logits, labels)
        add_step(counters)
        weights = torch.from_numpy(known.get("label_weights", np.ones(len(labels), np.float32))).to(dtype)
        parts = [weights[positive] * of_classes * CASES.get(case, (0, 1))[1], weights * of_objects]
        parts[1] = parts[1] * CASES.get(case, (0, 1))[1]
        if case == "no_avg_factor":
            parts = [part.mean() for part in parts]
        elif case != "reduction_none":
            parts = [part.sum() / (float(known["avg_factor"]) + 2**-23) for part in parts]
        sum(part.sum() for part in parts).backward()
        names = ["loss_cls"] if case == "one_sum" else ["loss_cls_classes", "loss_cls_objectness"]
        for name, part in zip(names, [sum(parts)] if case == "one_sum" else parts, strict=True):
            np.testing.assert_allclose(part.detach(), known[prefix + name], rtol=tolerance, atol=1e-12)
        gradient = logits.grad.roll(-1, 1)
        np.testing.assert_allclose(gradient[: len(known["grad"])], known["grad"], atol=2e-6, rtol=0)
        np.testing.assert_allclose(gradient.double().norm(dim=1), known["grad_row_norm"], atol=2e-6, rtol=0)
        assert counters.cum_samples[0].roll(-1).tolist() == known["cum_samples"].tolist()


@files
def test_scores_at_test_time_are_mmdetections(file, case):
    figures = np.load(file)
    if f"{case}/step0/activation" not in figures:
        pytest.skip("no scores in this case")
    logits = ours(logits_of(figures, case, 0))
    scores = class_scores(logits, "seesaw")
    expected = figures[f"{case}/step0/activation"]
    np.testing.assert_allclose(scores[: len(expected)], expected[:, :-1], atol=1e-6, rtol=0)
    background = torch.stack([logits[:, 0], logits[:, -1]]).softmax(dim=0)[0]
    with_background = torch.cat([scores, background[:, None]], dim=1)
    assert with_background.argmax(dim=1).tolist() == figures[f"{case}/step0/activation_argmax"].tolist()
    np.testing.assert_allclose(with_background.sum(dim=1), figures[f"{case}/step0/activation_row_sum"], atol=1e-6)


def drawn(seed, regions=12, classes=5):
    """Logits in double precision, labels (0 is background) of two groups, and counts so far."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(regions, classes + 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes + 1, (regions,), generator=generator)
    counters = LabelCounters(Seesaw(), classes + 1)
    counters.cum_samples += torch.randint(200, counters.cum_samples.shape, generator=generator)
    group_of = torch.arange(regions) * 2 // regions
    return logits, Labels(labels, labels.nonzero()[:, 0], group_of, [0, 1]), counters


def row_losses(logits, labels, counters, reduction="none"):
    return CLASSIFICATIONS["seesaw"].losses(logits, labels, counters, reduction)


def test_gradients_are_those_of_differences():
    """The compensation is a constant, so that differences are taken of the loss with that of one point."""
    logits, labels, _ = drawn(0)
    positive, classes = labels.positive, labels.of_regions[labels.positive] - 1
    counts = torch.randint(1, 50, (len(positive), 5), generator=torch.Generator().manual_seed(1))
    fixed = logits[positive, 1:-1].clone()

    def with_constant_scores(z):
        """The loss at z, compensated by the scores of ``fixed``."""
        scores = fixed.softmax(dim=1)
        ratios = (scores / scores.gather(1, classes[:, None]).clamp(min=0.01)).clamp(min=1)
        return losses_of_classes(z + 2 * ratios.log(), classes, counts, Seesaw(compensation=0))

    z = fixed.clone().requires_grad_()
    assert torch.autograd.gradcheck(with_constant_scores, z)
    assert torch.autograd.gradcheck(lambda o: losses_of_objectness(o, labels.of_regions), logits.requires_grad_())
    (by_differences,) = torch.autograd.grad(with_constant_scores(z).sum(), z)
    (found,) = torch.autograd.grad(losses_of_classes(z, classes, counts, Seesaw()).sum(), z)
    torch.testing.assert_close(found, by_differences)


def as_a_sum(z, y, counts, p, q, eps):
    """The formula of one region as it is printed, in numpy."""
    scores = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    total = 0.0
    for j in range(len(z)):
        mitigation = min(1.0, max(counts[j], 1) / max(counts[y], 1)) ** p
        compensation = max(1.0, scores[j] / max(scores[y], eps)) ** q
        total += (1.0 if j == y else mitigation * compensation) * np.exp(z[j])
    return np.log(total) - z[y]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 3), st.floats(0, 3), st.floats(1e-4, 1))
def test_the_formula_as_printed(seed, p, q, eps):
    logits, labels, counters = drawn(seed)
    counters.settings = Seesaw(mitigation=p, compensation=q, epsilon=eps)
    found = row_losses(logits, labels, counters)
    for row, label in enumerate(labels.of_regions.tolist()):
        of_group = labels.group_of == labels.group_of[row]
        counts = counters.cum_samples[0] + torch.bincount(labels.of_regions[of_group], minlength=6)
        margin = float(logits[row, -1] - logits[row, 0])
        expected = np.log1p(np.exp(-margin if label else margin))
        if label:
            expected += as_a_sum(logits[row, 1:-1].numpy(), label - 1, counts[1:].numpy(), p, q, eps)
        assert float(found[row]) == pytest.approx(expected, rel=1e-9)
    assert float(row_losses(logits, labels, counters, "sum")) == pytest.approx(float(found.sum()), rel=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_without_both_factors_it_is_softmax_over_classes_and_objectness(seed):
    logits, labels, counters = drawn(seed)
    counters.settings = Seesaw(mitigation=0, compensation=0)
    is_object = (labels.of_regions > 0).double()
    expected = binary_cross_entropy_with_logits(logits[:, -1] - logits[:, 0], is_object, reduction="none")
    of_classes = cross_entropy(logits[labels.positive, 1:-1], labels.of_regions[labels.positive] - 1, reduction="none")
    expected[labels.positive] += of_classes
    torch.testing.assert_close(row_losses(logits, labels, counters), expected)


def test_by_hand():
    """Two classes, seen 10 and 1 times; a region of the rare class is pushed down by the frequent one as it is, and a
    region of the frequent class pushes the rare one down by (1 / 10) ^ p."""
    z, counts = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[10, 1]] * 2)
    found = losses_of_classes(z, torch.tensor([0, 1]), counts, Seesaw(mitigation=1, compensation=0))
    assert found.tolist() == pytest.approx([np.log(1.1), np.log(2)])
    # The wrong class has score 0.8, the right one 0.2: 4 ^ q = 16 times as much.
    z = torch.tensor([[0.2, 0.8]], dtype=torch.float64).log()
    found = losses_of_classes(z, torch.tensor([0]), torch.tensor([[5, 5]]), Seesaw())
    assert found.tolist() == pytest.approx([np.log((0.2 + 16 * 0.8) / 0.2)])


def test_a_group_sees_the_steps_before_and_itself_and_the_step_adds_all():
    counters = LabelCounters(Seesaw(), 3)
    counters.cum_samples += torch.tensor([100, 10, 1])
    labels, group_of = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    assert counters.count(labels, group_of, [0, 1]).tolist() == [[101, 11, 1], [100, 11, 2]]
    assert counters.count(torch.tensor([2]), torch.tensor([0]), [2]).tolist() == [[100, 10, 2]]
    assert counters.taken().tolist() == [[1, 2, 2]]
    assert counters.taken().tolist() == [[0, 0, 0]]  # nothing is counted twice
    assert counters.cum_samples.tolist() == [[100, 10, 1]]  # until the step is taken
    assert list(counters.state_dict()) == ["cum_samples"]


def test_several_counters_are_processes_that_never_add_up():
    """Groups 0 and 2 share the first of two, and do not see each other within a step."""
    counters = LabelCounters(Seesaw(counters=2), 2)
    for step in range(3):
        seen = counters.count(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), [0, 1, 2])
        assert seen.tolist() == [[step + 1, step], [0, step + 1], [step, step + 1]]
        add_step(counters)
    assert counters.cum_samples.tolist() == [[3, 3], [0, 3]]
