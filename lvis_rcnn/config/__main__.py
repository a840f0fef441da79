"""Check study files, and write the JSON Schema with which editors check them.

python -m lvis_rcnn.config --check configs/mini.yaml
python -m lvis_rcnn.config --schema workflow/schemas/study.schema.json
"""

import argparse
import sys
from pathlib import Path

from lvis_rcnn.config.study import Study, load_study
from lvis_rcnn.system.cli import EXIT_BAD_INPUT, InputError, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import write_json


def step(args: argparse.Namespace) -> None:
    """Check all study files, each with a line of its own, and write the schema."""
    if not args.check and not args.schema:
        raise InputError("lvis_rcnn.config", "has nothing to do", allowed="--check FILE, --schema FILE", fix="add one")
    if wrong := [path for path in args.check or [] if not is_good(path)]:
        log.debug("%d of %d files are wrong", len(wrong), len(args.check))
        sys.exit(EXIT_BAD_INPUT)
    if args.schema:
        write_json(
            args.schema, {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
        )
        log.info("wrote %s", args.schema)


def is_good(path: Path) -> bool:
    """Whether a study file can be used, which is also logged."""
    try:
        load_study(path)
    except InputError as error:
        log.error("error: %s", error)
        return False
    log.info("%s: ok", path)
    return True


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--check", type=Path, action="extend", nargs="+", metavar="FILE", help="study files to check")
    add_output(parser, "--schema", "write the JSON Schema of a study file", suffix=".json", required=False)
    run_step(parser, step)


if __name__ == "__main__":
    main()
