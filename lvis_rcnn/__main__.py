"""All steps by one name: ``python -m lvis_rcnn STEP …`` is ``python -m lvis_rcnn.STEP …``.

python -m lvis_rcnn            the steps, one line each
python -m lvis_rcnn STEP -h    what a step takes
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from lvis_rcnn import STEPS, __version__
from lvis_rcnn.system.cli import EXIT_BAD_INPUT, InputError

# Commands that have another name since the package has folders; docs/commands.md shows their arguments.
RENAMED = {
    "mini": "draw",
    "annotations": "store",
    "checkpoints": "weights, or fetch for what it downloaded",
    "plots": "report plots",
    "pages": "report pages",
    "pictures": "report pictures",
    "training_pictures": "report batch",
    "detections": "export",
}
MODULES = {"config": "config", "gpu_lease": "system.gpus", "gpus": "system.gpus"}


def overview() -> str:
    """The steps with the first line of each one's docstring, read without importing the steps."""
    texts = {step: Path(__file__).with_name(f"{step}.py").read_text(encoding="utf-8") for step in STEPS}
    firsts = {step: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for step, text in texts.items()}
    return "\n".join([__doc__ or "", *(f"    {step:<16}{first.rstrip('.:')}" for step, first in firsts.items())])


def what_was_meant(words: list[str]) -> str:
    """How to write a command whose first word is no step."""
    if words[0] in RENAMED:
        return f"write {RENAMED[words[0]]}, its name now"
    if words[0] in MODULES:
        return f"write python -m lvis_rcnn.{MODULES[words[0]]}"
    if words[0].startswith("-") and (steps := [word for word in words if word in STEPS]):
        return f"write options after the step: python -m lvis_rcnn {steps[0]} {words[0]} …"
    close = difflib.get_close_matches(words[0], STEPS, n=1)
    return f"write {close[0]!r}" if close else "name one of them"


def main() -> None:
    """Run the step that is named, or list them all."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        print(__version__)
        return
    if words[0] not in STEPS:
        error = InputError(words[0] or "''", "no such step", allowed=", ".join(STEPS), fix=what_was_meant(words))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"lvis_rcnn.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
