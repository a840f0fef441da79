"""The rooms of the package: each imports only rooms before it, and the first six run without torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lvis_rcnn
from lvis_rcnn import ROOMS, STEPS, WITHOUT_TORCH
from lvis_rcnn import __main__ as main_module
from lvis_rcnn.__main__ import EXTRAS, RENAMED, SCORER, extra_of, main

PACKAGE = Path(lvis_rcnn.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in STEPS)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    froms = [(node.module, node.names) for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return (
        plain | {module for module, _ in froms} | {f"{module}.{name.name}" for module, names in froms for name in names}
    )


def rooms_imported(path: Path) -> set[str]:
    """Rooms, steps and what else lies in the package's folder, of which a file imports something."""
    parts = [name.split(".") for name in imported(path) if name.startswith("lvis_rcnn.")]
    return {part[1] for part in parts if part[1] in {one.stem for one in PACKAGE.iterdir()}}


def place_of(path: Path) -> str:
    """The room of a file, or its step."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it_and_nobody_imports_a_step(path):
    place = place_of(path)
    allowed = {*ROOMS[: ROOMS.index(place) + 1]} if place in ROOMS else {*ROOMS}
    assert rooms_imported(path) <= allowed


def test_every_folder_is_a_room_and_every_other_module_a_step():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert (folders, modules) == ({*ROOMS}, {*STEPS})


def test_the_face_of_a_room_names_each_of_its_files():
    for room in [*ROOMS, "dataset/mini"]:
        folder = PACKAGE / room
        there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__pycache__"}
        face = (folder / "__init__.py").read_text()
        named = [name.strip("/") for name in re.findall(r"^ *([\w/]+)  +\w", face, re.MULTILINE)]
        assert sorted(named) == sorted(there - {"__init__"}), room


def test_the_first_rooms_run_without_torch():
    files = [path for path in FILES if place_of(path) in WITHOUT_TORCH and path.stem not in ("__init__", "__main__")]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_the_package_knows_no_snakemake():
    assert [path for path in FILES if any(name.partition(".")[0] == "snakemake" for name in imported(path))] == []


def test_all_steps_are_listed_and_run_by_one_name(tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "lvis_rcnn", *words], capture_output=True, text=True, check=False)

    listed = run()
    assert [line.split()[0] for line in listed.stdout.splitlines()[-len(STEPS) :]] == [*STEPS]
    assert all(len(line) > 30 for line in listed.stdout.splitlines()[-len(STEPS) :])
    assert "usage: python -m lvis_rcnn export" in run("export", "--help").stdout
    assert run("--version").stdout.strip() == lvis_rcnn.__version__


def third_party(module: str, seen: set[str]) -> set[str]:
    """Packages that a module of ours imports, itself or through others of ours."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists()), None)
    if file is None or module in seen:
        return set()
    seen.add(module)
    names = imported(file)
    ours = {name for name in names if name.startswith("lvis_rcnn")}
    return {name.partition(".")[0] for name in names - ours}.union(*(third_party(name, seen) for name in ours))


OF_THE_SCORER = {"numpy", "msgspec", "pycocotools", "tabulate", "jinja2", "markupsafe", "tqdm", "jaxtyping"}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_imports_what_its_extra_installs(step):
    # lvis is for the official check, tensorboard for a log, difference_plots for compare --plot.
    extra, optional = extra_of(step), {"lvis", "tensorboard", "__future__", *sys.stdlib_module_names}
    allowed = OF_THE_SCORER | optional | ({*EXTRAS[extra]} if extra else set())
    assert third_party(f"lvis_rcnn.{step}", {"lvis_rcnn.reporting.difference_plots"}) <= allowed


@pytest.mark.parametrize("step", SCORER)
def test_the_scorer_starts_without_the_packages_of_the_extras(step):
    absent = {*EXTRAS["workflow"], "lvis", "snakemake"}
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import lvis_rcnn.{step} as step; step.main()"
    ended = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout[:6]) == (0, "usage:"), ended.stderr


def test_steps_that_are_not_installed_are_listed_as_such(monkeypatch, capsys):
    monkeypatch.setattr(main_module, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lvis-rcnn"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("(not installed)")} == {*STEPS} - {*SCORER}
    assert "pip install 'lvis-rcnn[workflow]'" in lines[-1]
    monkeypatch.setattr(sys, "argv", ["lvis-rcnn", "train", "--help"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.fullmatch(
        r"error: train: not installed; allowed: export, evaluate, compare; fix: .*'lvis-rcnn\[train\]'.*\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("exprt", "error: exprt: no such step; allowed: draw, .*; fix: write 'export'"),
        ("", "error: '': no such step; .*; fix: name one of them"),
        ("--log x evaluate", "fix: write options after the step: python -m lvis_rcnn evaluate --log …"),
        ("mini --seed 0", "fix: write draw, its name now"),
        ("pictures", "fix: write report pictures, its name now"),
        ("gpu_lease", "fix: write python -m lvis_rcnn.system.gpus"),
        ("config --check x", "fix: write python -m lvis_rcnn.config"),
    ],
)
def test_a_word_that_is_no_step_is_explained(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["lvis_rcnn", *(words.split() or [""])])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.search(message, capsys.readouterr().err)


def test_each_old_name_of_the_documentation_is_known():
    text = (PACKAGE.parent / "docs" / "commands.md").read_text().partition("## Old names")[2]
    olds = set(re.findall(r"^\| `lvis_rcnn\.(\w+)|`(\w+)`, `\w+` \| `lvis_rcnn.report", text, re.MULTILINE))
    named = {name for pair in olds for name in pair if name} | {"pages", "pictures"}
    assert named - {*STEPS} == {*RENAMED, "gpu_lease"}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_says_in_the_imperative_what_it_does(step):
    first = ast.get_docstring(ast.parse((PACKAGE / f"{step}.py").read_text())).split()[0]
    assert re.fullmatch("[A-Z][a-z]+(?<!s)", first)
    assert first not in ("The", "A", "Memory")
