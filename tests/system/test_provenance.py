"""What produced a number is recorded wherever the package lies."""

import re
import subprocess

import pytest

from lvis_rcnn import __version__
from lvis_rcnn.system import provenance


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"rev-parse": "1a2b3c4d", "status": ""}, f"{__version__}-1a2b3c4d"),
        ({"rev-parse": "1a2b3c4d", "status": " M README.md"}, f"{__version__}-1a2b3c4d+dirty"),
        ({"rev-parse": None, "status": None}, __version__),
    ],
    ids=["clean", "dirty", "no repository"],
)
def test_code_version(monkeypatch, answers, expected):
    monkeypatch.setattr(provenance, "git", lambda command, *options: answers[command])
    assert provenance.code_version() == expected


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_without_git_or_repository_the_version_stands_alone(monkeypatch, error):
    def fails(*command, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    assert provenance.code_version() == __version__


def test_versions_are_those_of_the_lock_file_and_a_missing_library_is_no_error(monkeypatch):
    versions = provenance.library_versions()
    assert list(versions) == ["python", *provenance.LIBRARIES]
    assert all(re.match(r"\d+\.\d+", version) for version in versions.values())
    monkeypatch.setattr(provenance, "LIBRARIES", ("numpy", "another-build-of-opencv"))
    assert provenance.library_versions()["another-build-of-opencv"] == "not installed"
