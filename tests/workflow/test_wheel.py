"""The package as pip installs it: the scorer starts by its name, and the rest says how to install it."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.scored_boxes import GOOD, TWO_KINDS, write


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)


def checkout(folder: Path) -> Path:
    """The tracked files of this checkout, so that building writes nothing into it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_command_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = ("--disable-pip-version-check", "--no-index", "--no-deps")
    build = ("wheel", *offline, "--no-build-isolation", "-w", tmp_path, checkout(tmp_path / "checkout"))
    built = run(sys.executable, "-m", "pip", *build, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = {path for path in (REPOSITORY / "lvis_rcnn").rglob("*.*") if "__pycache__" not in path.parts}
    assert {name for name in names if "dist-info" not in name} == {str(one.relative_to(REPOSITORY)) for one in package}
    # Beside the environment of the tests, whose packages stand in for those that pip would download.
    target = tmp_path / "installed"
    installed = run(sys.executable, "-m", "pip", "install", *offline, "--target", target, wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    monkeypatch.setenv("PYTHONPATH", str(target))
    command = sys.executable, target / "bin" / "lvis-rcnn"
    assert run(*command, "evaluate", "--help", cwd=tmp_path).stdout.startswith("usage: lvis-rcnn evaluate ")
    annotations, results = write(tmp_path / "truth.json", TWO_KINDS), write(tmp_path / "results.json", GOOD)
    scored = run(*command, "evaluate", annotations, results, cwd=tmp_path)
    assert scored.stdout.count(" Average Precision  (AP)") == 18, scored.stderr
    compared = run(*command, "compare", annotations, results, results, "--resamples", "2", cwd=tmp_path)
    assert compared.stdout.startswith(f"A: {results}\nB: {results}\n"), compared.stderr


def test_the_backend_that_builds_the_wheel_is_in_the_lock():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (backend,) = project["build-system"]["requires"]
    assert f"\n{backend.partition('>=')[0]}==" in (REPOSITORY / "requirements.lock").read_text()
    assert project["project"]["scripts"] == {"lvis-rcnn": "lvis_rcnn.__main__:main"}
