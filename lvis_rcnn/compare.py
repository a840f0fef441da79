"""Compares two runs, rows or studies, metric by metric, with intervals and p values.

    python -m lvis_rcnn compare results/mini/r50/seed0 results/mini/r101/seed0
    python -m lvis_rcnn compare results/mini_no_sampling results/mini_sampling --plot results/sampling

Both must be scored with match results on the same annotations. Prints every metric with its difference, SECOND minus
FIRST in percentage points, its 95 % interval and p value from resamples of the images that both share, the categories
that changed most, and the settings that differ. FIRST and SECOND are runs, rows (means over seeds, whose variance
widens the intervals) or studies, of which rows of the same name are compared, or single rows whatever their names.
"""

import argparse
from pathlib import Path

from lvis_rcnn.evaluation.bootstrap import SEED
from lvis_rcnn.evaluation.compare import compare, row_pairs
from lvis_rcnn.reporting.comparison import comparison_text, write_difference_plots
from lvis_rcnn.reporting.html import text_page
from lvis_rcnn.system.cli import InputError, integer_of_at_least, log, run_step, step_parser
from lvis_rcnn.system.files import write_text


def step(args: argparse.Namespace) -> None:
    """Compare what the arguments name, and print or write the result."""
    if args.out and args.out.suffix != ".txt":
        raise InputError(f"--out {args.out}", "is not a text file", allowed="a name that ends in .txt")
    texts = []
    for name, (first, second) in row_pairs(args.first, args.second, args.only).items():
        found = compare(first, second, args.resamples, args.seed)
        text = comparison_text(first, second, found, args.resamples, args.seed)
        texts.append(f"{name}\n\n{text}" if name else text)
        if args.plot:
            write_difference_plots(first, second, found, (str(args.first), str(args.second)), args.plot / name)
            log.info("wrote %s and category_differences.png beside it", args.plot / name / "differences.png")
    text = "\n\n".join(texts)
    if args.out is None:
        print(text)
        return
    write_text(args.out, f"{text}\n")
    write_text(args.out.with_suffix(".html"), text_page(f"{args.second} compared with {args.first}", text))
    log.info("wrote %s (also .html)", args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="folder of a run, a row or a study")
    resamples = "resamples of the images, 1 or more (default: 1000)"
    parser.add_argument("--resamples", type=integer_of_at_least(1), default=1000, metavar="N", help=resamples)
    seed = f"seed of the resamples, 0 or more (default: {SEED})"
    parser.add_argument("--seed", type=integer_of_at_least(0), default=SEED, metavar="N", help=seed)
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="folder for differences.png, category_differences.png and .svg"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="comparison.txt to write, with .html beside it")
    only = "runs of SECOND to use, as r50/seed0 (default: all)"
    parser.add_argument("--only", nargs="+", default=(), metavar="RUN", help=only)
    run_step(parser, step)


if __name__ == "__main__":
    main()
