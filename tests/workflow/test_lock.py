"""requirements.lock installs what pyproject.toml asks for, anywhere, and nothing else."""

import hashlib
import importlib.metadata
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCK = (REPOSITORY / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCK, flags=re.MULTILINE))


def normalized(requirement: str) -> str:
    """The package's name as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()  # type: ignore[index]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *chain(*extras), *project["dependency-groups"]["dev"]]
    wanted = [one for one in wanted if not one.startswith("lvis-rcnn[")]
    assert {normalized(requirement) for requirement in wanted} <= set(PINNED)


def test_what_only_making_the_lock_needs_stands_in_its_command() -> None:
    # `uv pip install -r requirements.lock` reads [tool.uv.pip] as well, and refuses extras, which a lock has none of.
    assert "pip" not in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["uv"]
    assert "--all-extras" in LOCK.partition("absl")[0]


def test_pins_of_exact_requirements_agree() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    exact = dict(one.split("==") for one in project["dependency-groups"]["dev"] if "==" in one)
    assert {name: PINNED[name] for name in exact} == exact


def test_every_file_has_a_digest_and_none_an_address() -> None:
    requirements = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert all(
        re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?|[a-z0-9.-]+==\S+( ; .*)? \\", r) for r in requirements
    )
    assert not re.search(r"https?:|file:|^--| @ ", "\n".join(requirements), flags=re.MULTILINE)


def test_only_the_headless_opencv_is_installed() -> None:
    assert "opencv-python-headless" in PINNED
    assert re.search(r"^opencv-python==\S+ ; sys_platform == 'never'", LOCK, flags=re.MULTILINE)


def test_the_conda_environment_installs_this_very_lock() -> None:
    script = (REPOSITORY / "envs" / "lvis_rcnn.post-deploy.sh").read_text()
    digest = hashlib.sha256(LOCK.encode()).hexdigest()
    assert digest in script, f"put the digest of requirements.lock into the script: {digest}"


OF_TORCH = ("torch", "nvidia-", "triton", "cuda-")


def test_the_lock_for_cuda_12_differs_in_torch_alone() -> None:
    text = (REPOSITORY / "requirements.cuda12.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, flags=re.MULTILINE))
    assert (pins["torch"], pins["nvidia-cuda-runtime-cu12"].split(".")[0]) == ("2.10.0", "12")
    ours = {name: pin for name, pin in PINNED.items() if not name.startswith(OF_TORCH)}
    theirs = {name: pin for name, pin in pins.items() if not name.startswith(OF_TORCH)}
    assert theirs == ours


def test_the_conda_environment_for_cuda_12_installs_its_lock() -> None:
    script = (REPOSITORY / "envs" / "lvis_rcnn_cuda12.post-deploy.sh").read_text()
    lock = (REPOSITORY / "requirements.cuda12.lock").read_bytes()
    assert hashlib.sha256(lock).hexdigest() in script
    assert "requirements.cuda12.lock" in script
    # Python and pip alone come from conda, from the channel that needs no licence.
    both = [
        (REPOSITORY / "envs" / f"lvis_rcnn{kind}.yaml").read_text().split("channels:")[1] for kind in ("", "_cuda12")
    ]
    assert both[0] == both[1]


def test_the_opencv_that_is_installed_needs_no_display() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("opencv-python")
    assert importlib.metadata.version("opencv-python-headless")
