"""All steps by one name: ``python -m lvis_rcnn STEP …`` is ``python -m lvis_rcnn.STEP …``.

python -m lvis_rcnn            the steps, one line each
python -m lvis_rcnn STEP -h    what a step takes

Where the package is installed by pip, ``lvis-rcnn STEP …`` is the same.
"""

import ast
import difflib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from lvis_rcnn import STEPS, __version__
from lvis_rcnn.system.cli import EXIT_BAD_INPUT, InputError, usual_streams

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

# Steps of the scorer, which need nothing but what pip installs with it; all others need an extra of pyproject.toml.
SCORER = ("export", "evaluate", "compare")
# Modules of each extra that the steps import.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "torchvision", "mmcv", "cv2", "PIL", "pydantic", "yaml", "simdjson", "matplotlib")
}
EXTRAS |= {"workflow": (*EXTRAS["train"], "pandas")}


def extra_of(step: str) -> str | None:
    """The extra of the package that a step needs; None where the scorer alone has all."""
    return None if step in SCORER else "workflow" if step == "report" else "train"


def lacks(step: str) -> bool:
    """Whether a step cannot run, since its extra is not installed."""
    extra = extra_of(step)
    return extra is not None and any(find_spec(module) is None for module in EXTRAS[extra])


def how_to_install(extra: str | None) -> str:
    """What to type for an extra."""
    return f"python -m pip install 'lvis-rcnn[{extra}]', or the lock of a checkout as its README.md says"


def overview() -> str:
    """The steps with the first line of each one's docstring, read without importing the steps."""
    texts = {step: Path(__file__).with_name(f"{step}.py").read_text(encoding="utf-8") for step in STEPS}
    firsts = {step: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for step, text in texts.items()}
    lacking = [step for step in STEPS if lacks(step)]
    lines = [
        f"    {step:<16}{first.rstrip('.:')}{' (not installed)' if step in lacking else ''}"
        for step, first in firsts.items()
    ]
    fix = [f"\nFor the steps that are not installed: {how_to_install('workflow')}."] if lacking else []
    return "\n".join([__doc__ or "", *lines, *fix])


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


def refusal(words: list[str]) -> InputError | None:
    """Why a command cannot run: its first word is no step, or the step is not installed."""
    if words[0] not in STEPS:
        return InputError(words[0] or "''", "no such step", allowed=", ".join(STEPS), fix=what_was_meant(words))
    if lacks(words[0]):
        installed = ", ".join(step for step in STEPS if not lacks(step))
        return InputError(words[0], "not installed", allowed=installed, fix=how_to_install(extra_of(words[0])))
    return None


@usual_streams()
def main() -> None:
    """Run the step that is named, or list them all."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        print(__version__)
        return
    if error := refusal(words):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"lvis_rcnn.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
