"""What the tests of leases share."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """As outside of SLURM, whatever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
