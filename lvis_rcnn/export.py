"""Write the detections of a run as an LVIS results file, which the LVIS server and other scorers take.

python -m lvis_rcnn export --detections results/mini/r50/seed0/detections --out results.json
"""

import argparse
from pathlib import Path

from lvis_rcnn.dataset.detections import export_results
from lvis_rcnn.system.cli import add_output, log, run_step, step_parser


def step(args: argparse.Namespace) -> None:
    """Export the detections of one folder."""
    count = export_results(args.detections, args.out)
    log.info("wrote %d detections: %s", count, args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--detections", type=Path, required=True, metavar="DIR", help="folder of shards")
    add_output(parser, "--out", "results file to write", suffix=".json")
    run_step(parser, step)


if __name__ == "__main__":
    main()
