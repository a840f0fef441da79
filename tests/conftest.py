"""What several test files share: running Snakemake, and study files made of the smoke study."""

import copy
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from lvis_rcnn.config.yaml_files import read_yaml
from tests.helpers.forks import run_module
from tests.helpers.lvis_like import write_lvis_like

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
# A process of a test that has not ended after so many seconds hangs, on busy and slow cores as well.
HANGS_S = 600.0
# 100 images of LVIS v0.5, which are not redistributed: where they lie beside the checkout, tests run with them as well.
LVIS_VAL_100 = SHARED_DATA / "lvis_val_100.json"
# Figures of the authors' programs for AP-fixed and boundary AP of generated detections on these images.
LONGTAIL = REPOSITORY.parent / "shared" / "golden" / "longtail"
AND_REAL = ["real"] if LVIS_VAL_100.exists() else []

# No test depends on time: cores that others use make examples slow, and nothing wrong.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """A limit for .ci/run, whose time is bounded on any cores."""
    parser.addoption("--begin-before", type=float, metavar="TIME", help="skip tests not begun by this Unix time")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before its fixtures are made: they may take longer than the test."""
    skip_if_late(item.config)


def skip_if_late(config: pytest.Config) -> None:
    """Skip a test for which the time that was given is over; the summary names it."""
    before = config.getoption("--begin-before")
    if before is not None and time.time() > before:
        pytest.skip("no time left on these slow cores")


# On busy cores the stand-in dies of a signal in 6 of 45 calls, its work done: threads of py-rattler outlive Python.
CONDA = """#!/bin/sh
for attempt in 1 2 3 4 5; do
    '{stand_in}' "$@"
    code=$?
    [ $code -lt 128 ] && exit $code
done
exit $code
"""


@dataclass(frozen=True)
class Ended:
    """A Snakemake process that ended: its exit code and all it printed."""

    code: int
    text: str

    def jobs(self) -> dict[str, int]:
        """Planned jobs of each rule, ``all`` left out; empty if nothing is to be done."""
        if "Nothing to be done" in self.text:
            return {}
        lines = iter(self.text.split("Job stats:\n", 1)[1].splitlines()[2:])
        table = dict(line.split() for line in iter(lambda: next(lines), "") if line.split())
        return {rule: int(count) for rule, count in table.items() if rule not in ("all", "total")}


def snakemake_command(*arguments: str | Path, workflow: Path = REPOSITORY) -> list[str]:
    """Words of a Snakemake call on the Snakefile of ``workflow``."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", workflow / "Snakefile", *arguments]
    return [str(word) for word in words]


def run_snakemake(
    *arguments: str | Path, cwd: Path, workflow: Path = REPOSITORY, env: dict[str, str] | None = None
) -> Ended:
    """Run Snakemake as a user does, from ``cwd``."""
    words = snakemake_command(*arguments, workflow=workflow)[2:]
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        code = run_module(words, cwd, {**os.environ, **(env or {})}, Path(output.name))
        return Ended(code, output.read())


def write_study(path: Path, **changes: Any) -> Path:
    """Write configs/smoke.yaml to ``path`` with sections replaced or, where both are mappings, updated."""
    values = copy.deepcopy(read_yaml(REPOSITORY / "configs" / "smoke.yaml"))
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small study that ran to its end, to read or to copy, not to change.

    It takes a minute: of the processes of pytest-xdist, whose folders lie side by side, one makes it for all.
    """
    from tests.workflow.test_end_to_end import FINISHED, run, tiny_study

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, is_finished = base / "finished_study", base / "finished_study.finished"
    with (base / "finished_study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            ended = run(tiny_study(folder, **FINISHED))
            assert ended.code == 0, ended.text
            assert "Warning" not in ended.text
            is_finished.touch()
    return folder


def copy_study(finished: Path, folder: Path) -> None:
    """Copy a finished study with all that Snakemake knows of it; models, which nothing writes in place, are linked."""

    def copy(source: str, target: str) -> None:
        os.link(source, target) if source.endswith(".pth") else shutil.copy2(source, target)

    shutil.copytree(finished, folder, copy_function=copy, dirs_exist_ok=True)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_arrives() -> None:
    """A shell starts background jobs with SIGINT ignored, and their processes inherit it; tests of Ctrl-C need it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Tests that use torch share the cores with others, and their numbers must not depend on how many there are."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def no_log_left_open() -> Iterator[None]:
    """A step's log ends with its test: the stream it writes to is captured anew for each."""
    yield
    logger = logging.getLogger("lvis_rcnn")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session", params=["generated", *AND_REAL])
def lvis_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations with all that LVIS has: generated ones, and the real ones where they are at hand."""
    if request.param == "real":
        return LVIS_VAL_100
    return write_lvis_like(tmp_path_factory.mktemp("lvis_like") / "lvis_like.json")


@pytest.fixture(scope="session")
def conda_stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which ``conda`` is the stand-in of the folder beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "conda"
    if not (folder / "bin" / "conda").exists():
        pytest.skip(f"no conda stand-in in {folder}")
    conda = tmp_path_factory.mktemp("conda") / "conda"
    conda.write_text(CONDA.format(stand_in=folder / "bin" / "conda"))
    conda.chmod(0o755)
    path = f"{conda.parent}:{folder / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "CONDA_SHIM_PYTHON": sys.executable, "CONDA_STAND_IN": str(folder)}
