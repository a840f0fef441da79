"""The cluster that the tests of this folder share, and a run that they are compared with."""

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.one_machine import SCORED, Cluster, Study, running_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A SLURM cluster on this machine, with accounting; waits for that of another pytest, since /etc/slurm has one."""
    with (Path(tempfile.gettempdir()) / "lvis_rcnn_slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running_cluster() as cluster:
            yield cluster


@pytest.fixture(scope="session")
def calm(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A run that nothing disturbed, without SLURM."""
    study = Study(tmp_path_factory.mktemp("calm") / "toy", environment={"STEP_S": "0"}).write()
    study.run_here(SCORED)
    return study
