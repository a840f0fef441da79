"""README.md and docs/: each command is run, run dry or parsed; links, paths and the map of the package are true."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lvis_rcnn
from lvis_rcnn import ROOMS, STEPS
from tests.conftest import REPOSITORY
from tests.helpers.forks import run_module
from tests.workflow.test_end_to_end import tiny_study

PACKAGE = Path(lvis_rcnn.__file__).parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BEGINNINGS = (
    r"(?:snakemake|python3? -m|torchrun|tensorboard|lvis-rcnn \w+|sbatch|git|cp|rm|bash|pytest|squeue|scontrol) "
)

# What the pages leave to their reader, in the order in which it is replaced.
FILLED = {
    "GT.json": "results/data/drawn_seed0_40_10/val.json",
    "DT.json": "results.json",
    "--show 508 539": "--show 41 42",
    "pth photos": "pth results/data/drawn_seed0_40_10/images --limit 3",
    "--images …": "--images results/data/drawn_seed0_40_10/images",
    "--study … --train-store … --val-store …": "--study configs/mini.yaml --train-store results/mini/data/train.store "
    "--val-store results/mini/data/val.store",
    "--store val.store": "--store results/mini/data/val.store",
    "export model.pth": "export results/mini/r50/seed0/model.pth",
    "import FILE": "import mask_rcnn_r50.pth",
    "show FILE": "show mask_rcnn_r50.pth",
    "compare A B": "compare results/mini/r50/seed0 results/mini/r101/seed0",
    "--study …": "--study configs/mini.yaml",
    " --watch 30": "",  # it would never end
}

# Run as typed, in this order: later ones read what earlier ones wrote. Other commands of Snakemake are dry runs, other
# commands of the package are parsed only.
TYPED = [
    "snakemake --cores 2 -n",
    "snakemake --cores 2",
    "python -m lvis_rcnn preflight --no-images --study … --train-store … --val-store … --out preflight.json",
    "python -m lvis_rcnn compare results/mini/r50/seed0 results/mini/r101/seed0",
    "snakemake --report report.html",
    "python -m lvis_rcnn report pictures --store results/mini/data/val.store --images … --detections "
    "results/mini/r50/seed0/detections --show 508 539 --out pictures",
    "python -m lvis_rcnn detect results/mini/r50/seed0/model.pth photos --out found",
    "python -m lvis_rcnn export --detections results/mini/r50/seed0/detections --out results.json",
    "python -m lvis_rcnn evaluate GT.json DT.json --bootstrap 1000 --out metrics.json",
    "python -m lvis_rcnn weights export model.pth --out mask_rcnn_r50.pth",
    "python -m lvis_rcnn weights import FILE --backbone r50 --store val.store --out model.pth",
    "python -m lvis_rcnn weights show FILE",
    "python -m lvis_rcnn report table --study configs/mini.yaml --results results --out results/mini/table.md",
    "python -m lvis_rcnn.config --check configs/mini.yaml",
    "python -m lvis_rcnn store --annotations GT.json --out val.store",
    "python -m lvis_rcnn",
    "python -m lvis_rcnn status",
    "python -m lvis_rcnn status --study configs/lvis_v1.yaml --watch 30",
    "python -m lvis_rcnn status --plan --study configs/lvis_v1.yaml",
    "snakemake --unlock",
    "rm -r results/mini/r50 results/state/mini/r50 && snakemake --cores 2",
]

# How the rest begins, and what tests it.
ELSEWHERE = {
    "python3 -m venv .venv && ": "installs gigabytes; its last command is typed above or runs this test",
    "python -m pytest": ".ci/run",
    "python -m tests.emulated_gpu": "training/test_emulated_gpu.py",
    "pytest ": ".ci/run, but for the long ones",
    "bash .ci/run": "runs this test",
    "snakemake --cores 8 --use-conda": "the tests marked conda",
    "snakemake --profile slurm results/table.md --unlock": "tests/slurm",
    "snakemake --lint": ".ci/run",
    "cp slurm/site.example.yaml ": "test_slurm_profile.py",
    "rm -r results/lvis_v0.5/": "typed above for the embedded study",
    "sbatch": "tests/slurm",
    "squeue": "SLURM's own",
    "scontrol": "SLURM's own",
    "tensorboard": "serves until it is stopped; training/test_log.py reads its files",
    "python -m pip install .": "test_wheel.py",
    "torchrun": "training/test_distributed.py",
    "python -m lvis_rcnn STEP": "no command",
    "python -m lvis_rcnn.STEP": "no command",
}


def commands() -> list[str]:
    """All commands of the pages: lines of fenced blocks without a language, and words between backquotes."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for language, block in FENCED.findall(text) if not language for line in block.splitlines()]
        found += [re.sub(r"\s+# .*", "", line).strip() for line in lines]
        found += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    return list(dict.fromkeys(one for one in found if re.match(BEGINNINGS, f"{one} ")))


def is_elsewhere(command: str) -> bool:
    """Whether another test runs it, or nothing can."""
    return command.startswith(tuple(ELSEWHERE))


def with_gaps_filled(command: str) -> str:
    """The command with a file of the tiny study for each that is left to the reader."""
    for gap, filling in FILLED.items():
        command = command.replace(gap, filling)
    return command


BY_NAME = ("python -m lvis_rcnn", "lvis-rcnn ")
STEP_COMMANDS = [one for one in commands() if one.startswith(BY_NAME) and not is_elsewhere(one)]
DRY = [one for one in commands() if one.startswith("snakemake ") and one not in TYPED and not is_elsewhere(one)]


def test_every_command_of_the_pages_is_accounted_for():
    there = commands()
    assert [one for one in there if one not in {*TYPED, *STEP_COMMANDS, *DRY} and not is_elsewhere(one)] == []
    assert [one for one in TYPED if one not in there] == []
    assert [start for start in ELSEWHERE if not any(one.startswith(start) for one in there)] == []


@pytest.mark.parametrize("command", [one for one in STEP_COMMANDS if one != "python -m lvis_rcnn"])
def test_a_command_of_the_package_has_these_arguments(command, monkeypatch):
    command = command.replace("lvis-rcnn ", "python -m lvis_rcnn ", 1) if command.startswith("lvis-rcnn ") else command
    _, _, name, *words = shlex.split(with_gaps_filled(command))
    if name == "lvis_rcnn":
        name = f"lvis_rcnn.{words.pop(0)}"
    module = importlib.import_module(f"{name}.__main__" if name == "lvis_rcnn.config" else name)
    parsed = []
    monkeypatch.setattr(module, "run_step", lambda parser, step: parsed.append(parser.parse_args()))
    monkeypatch.setattr(sys, "argv", [name, *words])
    module.main()
    assert len(parsed) == 1


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page):
    """Those of the checkout or, as development.md says, of the package; not what a user writes or a run leaves."""
    made = ("results/", "data/", "r50/", "configs/photos.yaml", "slurm/site.yaml")
    spans = re.findall(r"`([^`]+)`", FENCED.sub("", page.read_text(encoding="utf-8")))
    named = {span for span in spans if re.fullmatch(r"[\w./]*/[\w.]+\.(py|smk|yaml|json|md|sbatch)", span)}
    assert [one for one in named if not one.startswith(made) and not any(
        (folder / one).exists() for folder in (REPOSITORY, PACKAGE, REPOSITORY / "docs"))] == []  # fmt: skip


def test_the_readme_shows_the_package_as_it_is():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*STEPS]
    rooms = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", text, re.MULTILINE))
    assert [*rooms] == [*ROOMS]
    for room, line in rooms.items():
        for name in re.findall(r"`(\w+)/?`", line):
            assert (PACKAGE / room / f"{name}.py").exists() or (PACKAGE / room / name).is_dir(), f"{room}: {name}"


@pytest.mark.slow
def test_the_commands_of_the_pages_work_as_typed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, checkout / name)
    small = tiny_study(tmp_path, study="mini", backbones=["r50", "r101"], evaluation={"bootstrap_resamples": 200})
    shutil.copy2(small, checkout / "configs" / "mini.yaml")
    photos = {"train": {"annotations": "t.json", "images": "."}, "val": {"annotations": "v.json", "images": "."}}
    own = tiny_study(tmp_path, study="photos", dataset={"name": "photos", "draw": None, **photos})
    shutil.copy2(own, checkout / "configs" / "photos.yaml")
    for name in ("t.json", "v.json"):
        (checkout / name).write_text(json.dumps({}))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def type_in(command: str) -> None:
        for words in map(shlex.split, command.split(" && ")):
            if words[0] == "rm":
                subprocess.run(words, cwd=checkout, check=True)
                continue
            words = words[2:] if words[:2] == ["python", "-m"] else words
            code = run_module(words, checkout, environment, tmp_path / "printed")
            assert code == 0, f"{command}\n{(tmp_path / 'printed').read_text()}"

    for command in TYPED:
        type_in(with_gaps_filled(command))
    for command in DRY:
        type_in(f"{command} --dry-run --quiet rules")
