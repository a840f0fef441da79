"""How often 95 % intervals hold the mean metric over sets of as many images, and how often equal detectors "differ".

    python tests/benchmarks/bootstrap_coverage.py [--designs six mini ...] [--sets 400] [--resamples 200]

Each set of images has six runs of one detector, that is with its chance drawn anew. The value to be held is the mean
over all sets and runs. Intervals are of single runs, of means over three and over five of them, and of differences of
one run each and of three each, whose true value is 0. "Seeds" stands for runs that differ as a whole, too: each has an
effect of its own on each metric, as large as the standard deviation that images cause; "of the first" means of the
first three alone.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, score
from lvis_rcnn.evaluation.bootstrap import resampled_metrics, resampling_of
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.results import DetectionSet
from lvis_rcnn.evaluation.uncertainty import Estimate, Sampled, differs_from_seeds, estimates, holm, metrics_of_runs

RUNS = 6
SIDE_PX = 640
SHOWN = ("AP", "APr", "APc", "APf", "APs", "APl")
PRIMARY = ("AP", "APr")


@dataclass(frozen=True)
class Design:
    """Images of one source, and how well a detector finds what they show."""

    images: int
    frequencies: str
    """r, c or f of each category."""
    shown_in: np.ndarray
    """Share of images that show each category."""
    found: np.ndarray
    """Share of its objects that are found."""
    fewest_images: int = 0
    """A set in which a category is shown in fewer images is drawn again."""
    verified: float = 1
    """Share of the other images that are known not to show a category; what is found on the rest counts for nothing."""
    incomplete: float = 0
    """Share of the images that show a category on which further finds count for nothing (not exhaustive)."""

    @classmethod
    def of_groups(cls, images: int, *groups: np.ndarray, verified: float = 1, incomplete: float = 0) -> "Design":
        """Rare, common and frequent categories, shown in these shares of the images."""
        found = [np.full(len(group), share) for group, share in zip(groups, (0.45, 0.6, 0.75), strict=True)]
        names = "".join(letter * len(group) for letter, group in zip("rcf", groups, strict=True))
        return cls(images, names, np.concatenate(groups), np.concatenate(found), 0, verified, incomplete)


# Frequencies of 150 categories. "federated" has as many negatives for each image that shows a category (3.2), and as
# large a share of incomplete ones, as 100 images of LVIS v0.5 val.
LONG_TAIL = np.linspace(0.0025, 0.007, 60), np.linspace(0.01, 0.03, 50), np.linspace(0.04, 0.15, 40)


DESIGNS = {
    "six": Design(
        200, "rrccff", np.array([0.18, 0.2, 0.3, 0.35, 0.5, 0.6]), np.array([0.5, 0.6, 0.6, 0.7, 0.7, 0.8]), 20
    ),
    "mini": Design.of_groups(100, np.full(7, 0.085), np.full(9, 0.14), np.full(10, 0.18)),
    "long_tail": Design.of_groups(600, *LONG_TAIL),
    "federated": Design.of_groups(600, *LONG_TAIL, verified=0.11, incomplete=0.05),
}


def drawn_truth(design: Design, random: np.random.Generator) -> tuple[GroundTruth, np.ndarray]:
    """A set of images, and how easy each is: its objects and detections are not independent."""
    while True:
        shown = random.random((design.images, len(design.shown_in))) < design.shown_in
        if shown.sum(axis=0).min() >= design.fewest_images:
            break
    annotators = random.spawn(1)[0]  # draws of their own: those of designs without them stay as they are
    negatives = ~shown & (annotators.random(shown.shape) < design.verified)
    incomplete = shown & (annotators.random(shown.shape) < design.incomplete)
    ease = random.normal(0, 1, design.images)
    counts = np.where(shown, random.geometric(0.5, shown.shape), 0)
    image, category = (np.repeat(at, counts[shown]) for at in np.nonzero(shown))
    boxes = drawn_boxes(random, len(image))
    ids = np.arange(1, len(design.shown_in) + 1)
    truth = GroundTruth(
        where="drawn",
        image_ids=np.arange(1, design.images + 1),
        sizes_hw=np.full((design.images, 2), 2 * SIDE_PX),
        category_ids=ids,
        labels=ids,
        names=tuple(map(str, ids)),
        frequencies=tuple(design.frequencies),
        negatives=np.argwhere(negatives),
        not_exhaustive=np.argwhere(incomplete),
        annotation_ids=np.arange(1, len(image) + 1),
        images=image,
        categories=category,
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        ignored=np.zeros(len(image), bool),
        outlines=(),
    )
    return truth, ease


def drawn_boxes(random: np.random.Generator, number: int) -> np.ndarray:
    """Boxes of all sizes anywhere, as x, y, width, height."""
    sides = np.exp(random.normal(np.log(50), 0.8, (number, 2))).clip(6, 500)
    return np.concatenate([random.uniform(0, SIDE_PX, (number, 2)), sides], axis=1)


def drawn_detections(design: Design, truth: GroundTruth, ease: np.ndarray, random: np.random.Generator) -> DetectionSet:
    """What a run of the detector finds."""
    image, category, boxes = truth.images, truth.categories, truth.boxes_xywh
    right = np.flatnonzero(random.random(len(image)) < design.found[category] + 0.15 * ease[image])
    shift = random.normal(0, 0.08, (len(right), 4)) * np.exp(-0.3 * ease[image[right], None])
    near = boxes[right] + shift * boxes[right][:, [2, 3, 2, 3]]
    wrong = random.poisson(1.2 * np.exp(-0.3 * ease)[:, None] * design.shown_in * 2)
    at = np.repeat(np.arange(wrong.size), wrong.reshape(-1))
    wrong_image, wrong_category = np.divmod(at, len(design.shown_in))
    scores = np.concatenate([random.normal(1, 1, len(right)), random.normal(0, 1, len(at))])
    return DetectionSet(
        where="drawn",
        image_ids=np.concatenate([image[right], wrong_image]) + 1,
        category_ids=np.concatenate([category[right], wrong_category]) + 1,
        scores=scores,
        boxes_xywh=np.concatenate([near, drawn_boxes(random, len(at))]),
        masks=None,
    )


def drawn_set(design: Design, number: int, resamples: int) -> Sampled:
    """The metrics of six runs on one set of images, and of their resamples."""
    random = np.random.default_rng([number, 1, 1])  # not the numbers of any resample
    truth, ease = drawn_truth(design, random)
    scored = [score(truth, drawn_detections(design, truth, ease, random), "bbox") for _ in range(RUNS)]
    samples = [resampled_metrics(resampling_of(one.outcomes, truth.frequencies), resamples, number) for one in scored]
    return Sampled(metrics_of_runs([{"bbox": one.metrics} for one in scored], "bbox"), np.array(samples))


def part(drawn: Sampled, runs: slice, effects: np.ndarray) -> Sampled:
    """Some of the runs, each with an effect of its own."""
    return Sampled(drawn.metrics[runs] + effects[runs], drawn.samples[runs] + effects[runs][:, None])


# What an interval is of: the runs, and those that are subtracted.
CASES: dict[str, tuple[slice, slice | None]] = {
    "one run": (slice(0, 1), None),
    "mean of 3": (slice(0, 3), None),
    "mean of 5": (slice(0, 5), None),
    "one minus one": (slice(0, 1), slice(1, 2)),
    "3 minus 3": (slice(0, 3), slice(3, 6)),
}


# Which runs have effects of their own.
EFFECTS = {"": [0] * RUNS, ", seeds": [1] * RUNS, ", seeds of the first": [1, 1, 1, 0, 0, 0]}


def report(drawn: list[Sampled]) -> None:
    """Print coverage and mean half width, in 1.96 true standard deviations, of each case and metric."""
    metrics = np.array([one.metrics for one in drawn])
    means = np.nanmean(metrics, axis=(0, 1))
    deviations = np.nanstd(metrics.mean(axis=1), axis=0, ddof=1)
    print(f"{'':30}" + "".join(f"{name:>14}" for name in SHOWN) + "   any primary p < 0.05 (Holm)")
    for kind, shares in EFFECTS.items():
        random = np.random.default_rng(1)
        effects = [random.normal(0, 1, (RUNS, 1)) * deviations * np.array(shares)[:, None] for _ in drawn]
        for title, (runs, minus) in CASES.items():
            if kind and (title.startswith("one") or (not all(shares) and minus is None)):
                continue
            found = [
                estimates(part(one, runs, effect), part(one, minus, effect) if minus else None)
                for one, effect in zip(drawn, effects, strict=True)
            ]
            aims = dict(zip(METRIC_NAMES, 0 * means if minus else means, strict=True))
            print_case(title + kind, found, aims, is_difference=minus is not None)
        for number in (2, 3, 5) if all(shares) else ():
            of_sets = [(one.metrics + effect)[:, 0] for one, effect in zip(drawn, effects, strict=True)]
            alarms = [is_alarm(values, number) for values in of_sets]
            print(f"another run is marked '!' beside {number} seeds: {np.mean(alarms):.3f}")


def is_alarm(values: np.ndarray, number: int) -> bool:
    """Whether the last run is called different from the first ones."""
    first = values[:number]
    return differs_from_seeds(float(values[-1]), float(first.mean()), float(first.std(ddof=1)), number)


def print_case(
    title: str, found: list[dict[str, Estimate | None]], aims: dict[str, float], is_difference: bool
) -> None:
    """One line of the table: of each metric the share of intervals that hold the aim, and their mean half width."""
    cells = []
    for name in SHOWN:
        given = [estimate for one in found if (estimate := one[name])]
        held = [one.interval[0] <= aims[name] <= one.interval[1] for one in given]
        half = np.mean([one.interval[1] - one.value for one in given])
        true = 1.96 * np.std([one.value for one in given], ddof=1)
        cells.append(f"{np.mean(held):6.3f} ({half / true:.2f})")
    corrected = [holm({name: estimate.p for name in PRIMARY if (estimate := one[name])}) for one in found]
    any_shown = np.mean([any(p < 0.05 for p in one.values()) for one in corrected])
    print(f"{title:30}" + "".join(f"{text:>14}" for text in cells) + (f"   {any_shown:.3f}" if is_difference else ""))


def main() -> None:
    """Draw, score, resample, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=200)
    args = parser.parse_args()
    for name in args.designs:
        clock = time.process_time()
        numbers = tqdm(range(args.sets), desc=name, unit="set", disable=None)
        drawn = [drawn_set(DESIGNS[name], number, args.resamples) for number in numbers]
        spent, error = time.process_time() - clock, (0.95 * 0.05 / args.sets) ** 0.5
        sizes = f"{args.sets} sets of {DESIGNS[name].images} images, {args.resamples} resamples"
        print(f"\n{name}: {sizes}; give or take {error:.3f}; {spent:.0f} CPU s")
        print("Share of intervals that hold the true value (half width / 1.96 true standard deviations):")
        report(drawn)


if __name__ == "__main__":
    main()
