"""Every command of the README is typed, in a checkout whose embedded study is a tiny one; some only as a dry run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.workflow.test_end_to_end import tiny_study

BEGINNINGS = r"(?:snakemake|python3? -m|tensorboard|sbatch|git clone|cp|rm -r|bash|pytest|squeue|scontrol) "

# What the README leaves to its reader, in the order in which it is replaced.
FILLED = {
    "GT.json": "results/data/drawn_seed0_40_10/val.json",
    "DT.json": "results.json",
    "--show 508 539": "--show 41 42",
    "--images …": "--images results/data/drawn_seed0_40_10/images",
    "--study … --train-store … --val-store …": "--study configs/mini.yaml --train-store results/mini/data/train.store "
    "--val-store results/mini/data/val.store",
    "--store val.store": "--store results/mini/data/val.store",
    "export model.pth": "export results/mini/r50/seed0/model.pth",
    "import FILE": "import mask_rcnn_r50.pth",
    "show FILE": "show mask_rcnn_r50.pth",
    "--study … --watch 30": "--study configs/mini.yaml",
    " --watch 30": "",  # it would never end
}

# In this order: later ones read what earlier ones wrote.
TYPED = [
    "snakemake --cores 2 -n",
    "snakemake --cores 2",
    "snakemake --cores 2 results/mini/r50/seed0/metrics.json",
    "python -m lvis_rcnn.preflight --no-images --study … --train-store … --val-store … --out preflight.json",
    "python -m lvis_rcnn.compare results/mini/r50/seed0 results/mini/r101/seed0",
    "snakemake --report report.html",
    "python -m lvis_rcnn.report pictures --store results/mini/data/val.store --images … --detections "
    "results/mini/r50/seed0/detections --show 508 539 --out pictures",
    "python -m lvis_rcnn.export --detections results/mini/r50/seed0/detections --out results.json",
    "python -m lvis_rcnn.evaluate --annotations GT.json --detections DT.json --bootstrap 1000 --out metrics.json",
    "python -m lvis_rcnn.weights export model.pth --out mask_rcnn_r50.pth",
    "python -m lvis_rcnn.weights import FILE --backbone r50 --store val.store --out model.pth",
    "python -m lvis_rcnn.weights show FILE",
    "python -m lvis_rcnn.report table --study configs/mini.yaml --results results --out results/table.md",
    "python -m lvis_rcnn.status",
    "python -m lvis_rcnn.status --study configs/lvis_v1.yaml --watch 30",
    "python -m lvis_rcnn.status --plan --study configs/lvis_v1.yaml",
    "python -m lvis_rcnn.status --study configs/lvis_v0.5.yaml",
    "python -m lvis_rcnn.status --study … --watch 30",
    "snakemake --unlock",
    "rm -r results/mini/r50 results/state/mini/r50 && snakemake --cores 2",
]

# Gigabytes, a cluster, conda or hours: a dry run; what runs them whole stands beside it.
DRY = {
    "snakemake --cores 2 --configfile configs/smoke.yaml": "test_end_to_end.py, on fewer images",
    "snakemake --cores 2 --configfile configs/mini_no_sampling.yaml": "test_end_to_end.py, its steps on fewer images",
    "snakemake --cores 2 --configfile configs/mini_sampling.yaml": "test_compare.py, its comparison",
    "snakemake --cores 2 --configfile configs/photos.yaml": "test_workflow.py",
    "snakemake --cores 2 results/photos/preflight.txt --configfile configs/photos.yaml": "test_workflow.py",
    "snakemake --cores 8 --configfile configs/published.yaml": "test_published.py",
    "snakemake --cores 2 fetch --configfile configs/lvis_v1.yaml": "test_workflow.py",
    "snakemake --cores 2 fetch --configfile configs/lvis_v0.5.yaml": "test_workflow.py",
    "snakemake --profile slurm results/table.md": "tests/slurm",
    "snakemake --profile slurm r50": "tests/slurm",
    "snakemake --profile slurm": "tests/slurm",
    "snakemake --profile slurm results/lvis_v0.5/r50/seed0/metrics.json": "tests/slurm",
    "snakemake --profile slurm results/table.md -R evaluate": "test_workflow.py",
}

LOCKED = "python3 -m venv .venv && .venv/bin/python -m pip install --no-deps --require-hashes -r requirements.lock && "
ELSEWHERE = {
    "snakemake --cores 8 --use-conda": "the tests marked conda",
    f"{LOCKED}.venv/bin/snakemake --cores 2": "installs gigabytes; its last command is typed above",
    f"{LOCKED}.venv/bin/python -m pytest -n 2": "the run that this test is part of",
    f"{LOCKED}. .venv/bin/activate": "installs gigabytes",
    "git clone https://…/lvis-rcnn && cd lvis-rcnn": "tests/slurm",
    "cp slurm/site.example.yaml slurm/site.yaml": "test_slurm_profile.py",
    "sbatch --account lab --time 1-0 slurm/head.sbatch results/table.md --configfile configs/lvis_v0.5.yaml":
        "tests/slurm",
    "snakemake --profile slurm results/table.md --unlock": "tests/slurm",
    "rm -r results/lvis_v0.5/r50 results/state/lvis_v0.5/r50": "typed above for the embedded study",
    "tensorboard --logdir results/state/mini": "serves until it is stopped; test_tensorboard_files.py reads the files",
    "squeue --me -o '%i %P %T %M %r %k'": "SLURM's own",
    "scontrol show job ID": "SLURM's own",
    "scontrol requeue": "tests/slurm",
    "bash .ci/run": "runs this test",
    "pytest -m slow": ".ci/run",
    'pytest -n 2 -m "long and not slurm"': "by hand",
    "pytest -m slurm tests/slurm": ".ci/run",
}  # fmt: skip


def commands() -> list[str]:
    """All commands of the README: lines of its fenced blocks without a language, and words between backquotes."""
    text = (REPOSITORY / "README.md").read_text()
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    lines = [line for language, block in fenced.findall(text) if not language for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", fenced.sub("", text))
    found = [re.sub(r"\s+# .*", "", line).strip() for line in lines]
    found += [" ".join(span.split()) for span in spans]
    return list(dict.fromkeys(one for one in found if re.match(BEGINNINGS, f"{one} ")))


def test_every_command_of_the_readme_is_accounted_for():
    named = {"sbatch", "squeue", "scontrol", "snakemake --lint"}  # what something needs or does
    assert set(commands()) - named == {*TYPED, *DRY, *ELSEWHERE}


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_typed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, checkout / name)
    small = tiny_study(tmp_path, study="mini", backbones=["r50", "r101"], evaluation={"bootstrap_resamples": 20})
    shutil.copy2(small, checkout / "configs" / "mini.yaml")
    photos = {"train": {"annotations": "t.json", "images": "."}, "val": {"annotations": "v.json", "images": "."}}
    own = tiny_study(tmp_path, study="photos", dataset={"name": "photos", "draw": None, **photos})
    shutil.copy2(own, checkout / "configs" / "photos.yaml")
    for name in ("t.json", "v.json"):
        (checkout / name).write_text(json.dumps({}))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def type_in(command: str) -> None:
        done = subprocess.run(
            command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    for command in TYPED:
        for gap, filling in FILLED.items():
            command = command.replace(gap, filling)
        type_in(command)
    for command in DRY:
        type_in(f"{command} --dry-run --quiet rules")
