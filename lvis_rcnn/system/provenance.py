"""Versions of the code and of the libraries, recorded beside every result."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lvis_rcnn import __version__

LIBRARIES = ("torch", "torchvision", "mmcv-lite", "opencv-python-headless", "lvis", "pycocotools", "numpy")


def code_version() -> str:
    """Version and commit of this package, with ``+dirty`` if files differ; the version alone without git."""
    commit = git("rev-parse", "--short=8", "HEAD")
    if commit is None:
        return __version__
    return f"{__version__}-{commit}" + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def git(*arguments: str) -> str | None:
    """Output of git in the package's repository; None without git or a repository."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a number depends on."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in LIBRARIES}}


def version_of(library: str) -> str:
    """Installed version, if any: a missing library (or another build of OpenCV) must not lose a trained model."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
