"""Compare two runs, rows or studies, metric by metric, with intervals and p values.

    python -m lvis_rcnn compare results/mini/r50/seed0 results/mini/r101/seed0
    python -m lvis_rcnn compare results/mini_no_sampling results/mini_sampling --plot results/sampling
    python -m lvis_rcnn compare GT.json A.json B.json

FIRST and SECOND must be scored on the same annotations; where three files are named, annotations and the results of any
two detectors, these are scored now, and the last two compared. Prints every metric with its difference, SECOND minus
FIRST in percentage points, its 95 % interval and p value from resamples of the images that both share, the categories
that changed most, and the settings that differ. FIRST and SECOND are runs, rows (means over seeds, whose variance
widens the intervals; of the same trainings, seed by seed) or studies, of which rows of the same name are compared, or
single rows whatever their names; or what `evaluate --out` wrote, by its name.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from lvis_rcnn.config import MOST_RESAMPLES
from lvis_rcnn.evaluation.bootstrap import SEED
from lvis_rcnn.evaluation.compare import ScoredRow, compare, row_pairs, scored_now
from lvis_rcnn.evaluation.interface import annotations_of
from lvis_rcnn.reporting.comparison import comparison_text
from lvis_rcnn.reporting.html import text_page
from lvis_rcnn.system.cli import InputError, add_number, add_output, add_seed, log, run_step, step_parser
from lvis_rcnn.system.files import write_text


def pairs_of(args: argparse.Namespace) -> dict[str, tuple[ScoredRow, ScoredRow]]:
    """Rows to compare, by the name of the pair."""
    if args.third is not None and args.only:
        raise InputError("--only", "is of runs, and results files are compared", fix="leave it out")
    if args.third is None and args.coco_exhaustive:
        raise InputError("--coco-exhaustive", "is of annotations, and scored runs are compared", fix="leave it out")
    if args.third is None:
        return row_pairs(args.first, args.second, args.only, args.protocol)
    annotations = annotations_of(args.first, args.coco_exhaustive)
    first, second = (scored_now(annotations, path, args.protocol) for path in (args.second, args.third))
    return {"": ((first,), (second,))}


def step(args: argparse.Namespace) -> None:
    """Compare what the arguments name, and print or write the result."""
    if args.plot and any(find_spec(module) is None for module in ("matplotlib", "pydantic", "yaml")):
        raise InputError("--plot", "plots are not installed", fix="python -m pip install 'lvis-rcnn[train]'")
    names = [str(path) for path in (args.first, args.second, args.third) if path is not None][-2:]
    texts = []
    for name, (first, second) in pairs_of(args).items():
        found = compare(first, second, args.resamples, args.seed)
        text = comparison_text(first, second, found, args.resamples, args.seed)
        texts.append(f"{name}\n\n{text}" if name else text)
        if args.plot:
            from lvis_rcnn.reporting.difference_plots import write_difference_plots  # matplotlib is not the scorer's

            write_difference_plots(first, second, found, (names[0], names[1]), args.plot / name)
            log.info("wrote %s and category_differences.png beside it", args.plot / name / "differences.png")
    text = "\n\n".join(texts)
    if args.out is None:
        print(text)
        return
    write_text(args.out, f"{text}\n")
    write_text(args.out.with_suffix(".html"), text_page(f"{names[1]} compared with {names[0]}", text))
    log.info("wrote %s (also .html)", args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    scored = "folder of a run, a row or a study, or a metrics.json; or annotations, before two results files"
    parser.add_argument("first", type=Path, metavar="FIRST", help=scored)
    parser.add_argument("second", type=Path, metavar="SECOND", help="another one; or the first results file")
    parser.add_argument("third", type=Path, nargs="?", metavar="THIRD", help="the second results file")
    exhaustive = "of three files the first is plain COCO (see evaluate --help)"
    parser.add_argument("--coco-exhaustive", action="store_true", help=exhaustive)
    resamples = f"resamples of the images, 1 to {MOST_RESAMPLES:,} (default: 1000)"
    add_number(parser, "--resamples", resamples, 1, MOST_RESAMPLES, default=1000, metavar="N")
    seed = f"seed of the resamples, 0 or more (default: {SEED})"
    add_seed(parser, seed, default=SEED, metavar="N")
    plots = "folder for differences.png, category_differences.png and .svg"
    add_output(parser, "--plot", plots, is_folder=True, required=False)
    text = "comparison.txt to write, with .html beside it"
    add_output(parser, "--out", text, suffix=".txt", beside=(".html",), required=False)
    only = "runs of SECOND to use, as r50/seed0 (default: all)"
    parser.add_argument("--only", action="extend", nargs="+", default=[], metavar="RUN", help=only)
    protocol = "compare by a further protocol that both were scored by, as fixed or minival (default: AP@300)"
    parser.add_argument("--protocol", default="", metavar="NAME", help=protocol)
    run_step(parser, step)


if __name__ == "__main__":
    main()
