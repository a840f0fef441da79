"""How often the 95 % intervals of the bootstrap hold what a much larger draw of the same distribution scores.

    python tests/benchmarks/bootstrap_coverage.py [--sets 200] [--resamples 1000] [--images 200]

Each set has 200 images and six categories, two of each frequency, the rarest in about 36 images, none in fewer than 20.
Images differ in how hard they are, so that their objects and detections are not independent. The value to be held is
that of one draw of 50 times as many images.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, score
from lvis_rcnn.evaluation.bootstrap import Resampling, intervals, resampled_metrics, resampling_of
from lvis_rcnn.evaluation.ground_truth import GroundTruth
from lvis_rcnn.evaluation.results import DetectionSet

# Of each category: how many images show it, and how well it is found.
SHOWN_IN = np.array([0.18, 0.2, 0.3, 0.35, 0.5, 0.6])
FOUND = np.array([0.5, 0.6, 0.6, 0.7, 0.7, 0.8])
FREQUENCIES = tuple("rrccff")
FEWEST_IMAGES = 20
LARGER = 50
SIDE_PX = 640


def drawn(random: np.random.Generator, images: int) -> tuple[GroundTruth, DetectionSet]:
    """Images of one distribution, and what a detector of one distribution finds in them."""
    ease = random.normal(0, 1, images)
    shown = random.random((images, len(SHOWN_IN))) < SHOWN_IN
    counts = np.where(shown, random.geometric(0.5, shown.shape), 0)
    image, category = (np.repeat(at, counts[shown]) for at in np.nonzero(shown))
    sides = np.exp(random.normal(np.log(50), 0.8, (len(image), 2))).clip(6, 500)
    boxes = np.concatenate([random.uniform(0, SIDE_PX, (len(image), 2)), sides], axis=1)
    truth = GroundTruth(
        where="drawn",
        image_ids=np.arange(1, images + 1),
        sizes_hw=np.full((images, 2), 2 * SIDE_PX),
        category_ids=np.arange(1, len(SHOWN_IN) + 1),
        labels=np.arange(1, len(SHOWN_IN) + 1),
        names=FREQUENCIES,
        frequencies=FREQUENCIES,
        negatives=np.argwhere(~shown),
        not_exhaustive=np.zeros((0, 2), np.int64),
        annotation_ids=np.arange(1, len(image) + 1),
        images=image,
        categories=category,
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        ignored=np.zeros(len(image), bool),
        outlines=(),
    )
    skill = FOUND[category] + 0.15 * ease[image]
    right = np.flatnonzero(random.random(len(image)) < skill)
    shift = random.normal(0, 0.08, (len(right), 4)) * np.exp(-0.3 * ease[image[right], None])
    near = boxes[right] + shift * boxes[right][:, [2, 3, 2, 3]]
    wrong = random.poisson(1.2 * np.exp(-0.3 * ease)[:, None] * SHOWN_IN * 2)
    wrong_image, wrong_category = (np.repeat(at, wrong.reshape(-1)) for at in np.divmod(np.arange(wrong.size), 6))
    far_sides = np.exp(random.normal(np.log(50), 0.8, (len(wrong_image), 2))).clip(6, 500)
    far = np.concatenate([random.uniform(0, SIDE_PX, (len(wrong_image), 2)), far_sides], axis=1)
    scores = np.concatenate([random.normal(1, 1, len(right)), random.normal(0, 1, len(wrong_image))])
    found = DetectionSet(
        where="drawn",
        image_ids=np.concatenate([image[right], wrong_image]) + 1,
        category_ids=np.concatenate([category[right], wrong_category]) + 1,
        scores=scores,
        boxes_xywh=np.concatenate([near, far]),
        masks=None,
    )
    return truth, found


def prepared(random: np.random.Generator, images: int, fewest: int = 0) -> tuple[dict[str, float | None], Resampling]:
    """Metrics of a set and the resampling of its resamples; no category is in fewer images than ``fewest``."""
    while True:
        truth, found = drawn(random, images)
        pairs = np.unique(truth.categories * images + truth.images)
        if np.bincount(pairs // images, minlength=len(SHOWN_IN)).min() >= fewest:
            scores = score(truth, found, "bbox")
            return scores.metrics, resampling_of(scores.outcomes, truth.frequencies)


def main() -> None:
    """Draw, resample, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    clock = time.process_time()
    of_large, _ = prepared(np.random.default_rng(2**32), LARGER * args.images)
    truths = np.array([of_large[name] for name in METRIC_NAMES])
    rows = []
    for number in tqdm(range(args.sets), desc="sets", disable=None):
        estimates, resampling = prepared(np.random.default_rng(number), args.images, FEWEST_IMAGES)
        samples = resampled_metrics(resampling, args.resamples, number)
        mirrored = np.array([bounds or (np.nan, np.nan) for bounds in intervals(estimates, samples).values()])
        plain = np.nanpercentile(samples, [2.5, 97.5], axis=0).T
        rows.append([np.array(list(estimates.values()), float)[:, None], mirrored, plain])
    estimates, mirrored, plain = (np.array(columns) for columns in zip(*rows, strict=True))
    inside = [(bounds[..., 0] <= truths) & (truths <= bounds[..., 1]) for bounds in (mirrored, plain)]
    off = (estimates[..., 0] - truths).mean(axis=0) / estimates[..., 0].std(axis=0)
    error = (0.95 * 0.05 / args.sets) ** 0.5
    spent = time.process_time() - clock
    print(f"{args.sets} sets of {args.images} images, {args.resamples} resamples each: {spent:.0f} CPU s.")
    print(f"Share of intervals that hold the value of {LARGER} times as many images, give or take {error:.3f}:")
    print(f"{'':8}  value  basic  percentiles  estimates too high by, in their standard deviations")
    for place, name in enumerate(METRIC_NAMES):
        held = [each[:, place].mean() for each in inside]
        print(f"{name:8} {truths[place]:6.3f}  {held[0]:5.3f}  {held[1]:11.3f}  {off[place]:5.2f}")


if __name__ == "__main__":
    main()
