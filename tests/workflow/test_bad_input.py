"""Bad data of one's own, as a user meets it: Snakemake stops before training, one line says why, nothing is left."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_snakemake, write_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LVIS-format dataset."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    words = ["--seed", "3", "--train-images", "6", "--val-images", "4", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "lvis_rcnn.draw", *words], cwd=REPOSITORY, check=True)
    return folder


def name_an_unknown_category(folder: Path) -> None:
    path = folder / "train.json"
    dataset = json.loads(path.read_text())
    dataset["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(dataset))


def first_image(folder: Path) -> Path:
    return sorted((folder / "images" / "train").iterdir())[0]


def truncate_first_image(folder: Path) -> None:
    path = first_image(folder)
    path.write_bytes(path.read_bytes()[:-40])


# One of each kind; tests/dataset/test_store.py has the others.
CASES = {
    "missing annotation file": (
        lambda folder: (folder / "train.json").unlink(),
        "set/train.json: no such file",
    ),
    "no JSON": (lambda folder: (folder / "train.json").write_text('{"images": ['), "train.json: "),
    "unknown category": (name_an_unknown_category, "annotation 1: "),
    "missing image": (lambda folder: first_image(folder).unlink(), "000001.png"),
    "truncated image": (truncate_first_image, "000001.png"),
}


@pytest.mark.parametrize(
    "case",
    # Those that the store refuses, and those that preflight does: of each kind one is enough before a release.
    [name if name in ("no JSON", "truncated image") else pytest.param(name, marks=pytest.mark.long) for name in CASES],
)
def test_bad_data_stops_before_training(drawn: Path, tmp_path: Path, case: str) -> None:
    damage, where = CASES[case]
    shutil.copytree(drawn, tmp_path / "set")
    damage(tmp_path / "set")
    splits = {split: {"annotations": f"set/{split}.json", "images": "set/images"} for split in ("train", "val")}
    study = write_study(tmp_path / "own.yaml", study="own", dataset={"name": "own", "draw": None, **splits})
    ended = run_snakemake("--cores", "1", "--configfile", study, cwd=tmp_path)
    errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    assert ended.code != 0
    assert len(set(errors)) == 1, ended.text
    assert where in errors[0]
    assert "fix: " in errors[0]
    assert "Traceback" not in ended.text
    assert not (tmp_path / "results" / "own" / "preflight.json").exists()
    assert not (tmp_path / "results" / "own" / "r50").exists()
    assert not (tmp_path / "results" / "state").exists()
