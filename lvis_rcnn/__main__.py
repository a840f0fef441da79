"""All steps by one name: ``python -m lvis_rcnn STEP …`` is ``python -m lvis_rcnn.STEP …``.

python -m lvis_rcnn            the steps, one line each
python -m lvis_rcnn STEP -h    what a step takes
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from lvis_rcnn import STEPS
from lvis_rcnn.system.cli import EXIT_BAD_INPUT, InputError


def overview() -> str:
    """The steps with the first line of each one's docstring, read without importing the steps."""
    texts = {step: Path(__file__).with_name(f"{step}.py").read_text(encoding="utf-8") for step in STEPS}
    firsts = {step: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for step, text in texts.items()}
    return "\n".join([__doc__ or "", *(f"    {step:<16}{first.rstrip('.:')}" for step, first in firsts.items())])


def main() -> None:
    """Run the step that is named, or list them all."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] not in STEPS:
        close = difflib.get_close_matches(words[0], STEPS, n=1)
        fix = f"write {close[0]!r}" if close else "name one of them"
        print(f"error: {InputError(words[0], 'no such step', allowed=', '.join(STEPS), fix=fix)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"lvis_rcnn.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
