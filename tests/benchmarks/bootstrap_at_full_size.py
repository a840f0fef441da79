"""CPU time and memory of the bootstrap over images, on a set of the size of LVIS v1 val.

    python tests/benchmarks/bootstrap_at_full_size.py [--images 19809] [--resamples 1000] [--kind bbox] [--folder DIR]

The set is that of score_and_lvis.py, drawn where it is not there. Match results are written and read again, as
``evaluate --matches`` and ``compare`` do; CPU is user and system time of one thread.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvis_rcnn.evaluation.average_precision import score
from lvis_rcnn.evaluation.bootstrap import resampled_metrics, resampling_of, weighted_metrics
from lvis_rcnn.evaluation.ground_truth import parse_truth
from lvis_rcnn.evaluation.matches import MatchesFile, read_matches, write_matches
from lvis_rcnn.evaluation.results import Kind, read_detections
from lvis_rcnn.evaluation.uncertainty import Sampled, intervals, metrics_of_runs
from tests.benchmarks.score_and_lvis import IMAGES, draw


def matched(folder: Path, kind: Kind, path: Path) -> dict[str, float | None]:
    """Score the set and write the match results; the metrics."""
    truth = parse_truth((folder / "truth.json").read_bytes(), "truth.json")
    scores = score(truth, read_detections(folder / "shards", truth, (kind,)), kind)
    outcomes = {kind: scores.outcomes}
    write_matches(path, MatchesFile("", "", 300, truth.category_ids, truth.frequencies, outcomes))
    return scores.metrics


def main() -> None:
    """Score, resample, say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--kind", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "score_and_lvis")
    args = parser.parse_args()
    folder = args.folder / f"{args.kind}_{args.images}"
    if not (folder / "truth.json").exists():
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        draw(folder, args.images, args.kind == "segm")
    path = folder / "matches.npz"
    clocks = [time.process_time()]
    metrics = matched(folder, args.kind, path)
    clocks.append(time.process_time())
    kept = read_matches(path)
    resampling = resampling_of(kept.outcomes[args.kind], kept.frequencies)
    clocks.append(time.process_time())
    samples = resampled_metrics(resampling, args.resamples, seed=0)
    clocks.append(time.process_time())
    spent = np.diff(clocks)
    ones = weighted_metrics(resampling, np.ones(resampling.num_images, np.int64))
    off = max(abs(value - (metrics[name] or 0)) for name, value in zip(metrics, ones, strict=True))
    size = path.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{args.kind}, {args.images} images: scored and written in {spent[0]:.1f} CPU s, {size:.1f} MB of match results"
    )
    print(f"prepared in {spent[1]:.1f} CPU s, {args.resamples} resamples in {spent[2]:.1f} CPU s, peak {peak:.2f} GB")
    print(f"with weights of 1 the metrics differ from the scorer's by {off:.1e} at most")
    bounds = intervals(Sampled(metrics_of_runs([{args.kind: metrics}], args.kind), samples[None]))
    print({name: bounds[name] for name in ("AP", "APr")})


if __name__ == "__main__":
    main()
