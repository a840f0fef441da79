"""The list of files in the package's docstring is its method: complete, and in the order of imports."""

import ast
import re
from pathlib import Path

import lvis_rcnn

PACKAGE = Path(lvis_rcnn.__file__).parent
MODULES = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" and path.stem != "__init__"} | {"model"}


def listed() -> list[str]:
    """Modules in the order of the docstring; ``mini*`` stands for its modules."""
    text = (lvis_rcnn.__doc__ or "").partition("above it:")[2].partition("Axes")[0]
    names = [
        name.strip("/")
        for line in re.findall(r"^    ([\w*/]+(?:, [\w*/]+)*)", text, re.MULTILINE)
        for name in line.split(", ")
    ]
    return [module for name in names for module in (drawn() if name == "mini*" else [name])]


def drawn() -> list[str]:
    return sorted(name for name in MODULES if name.startswith("mini"))


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[1] for name in names if name.startswith("lvis_rcnn.")}


def test_every_module_is_listed_once():
    assert sorted(listed()) == sorted(MODULES)


def test_a_module_imports_only_modules_above_it():
    place = {name: number for number, name in enumerate(listed())}
    files = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    below = [
        (path.name, other)
        for path, name in files.items()
        for other in imported(path)
        if name != "__init__" and place[other] > place[name] and not {name, other} <= set(drawn())
    ]
    assert below == []
