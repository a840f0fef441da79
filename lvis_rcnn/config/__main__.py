"""Checks study files, and writes the JSON Schema with which editors check them.

python -m lvis_rcnn.config --check configs/mini.yaml
python -m lvis_rcnn.config --schema workflow/schemas/study.schema.json
"""

import argparse
from pathlib import Path

from lvis_rcnn.config.study import Study, load_study
from lvis_rcnn.system.cli import log, run_step, step_parser
from lvis_rcnn.system.files import write_json


def step(args: argparse.Namespace) -> None:
    """Check study files, write the schema."""
    for path in args.check or []:
        load_study(path)
        log.info("%s: ok", path)
    if args.schema:
        write_json(
            args.schema, {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
        )
        log.info("wrote %s", args.schema)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--check", type=Path, nargs="+", metavar="FILE", help="study files to check")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="write the JSON Schema of a study file")
    run_step(parser, step)


if __name__ == "__main__":
    main()
