"""Whether a run is alive: one answer, in the results table as in ``status``."""

import os
import socket
import subprocess
import sys

import pytest

from lvis_rcnn.config.study import load_study
from lvis_rcnn.reporting.rows import rows_of
from lvis_rcnn.runs.states import has_died, states_of
from tests.conftest import write_study
from tests.steps.test_status import beat


def ended_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("heartbeat", "state", "cell"),
    [
        # 140 steps are left: eta_s says how long one of them takes.
        ({"age_s": 170, "eta_s": 140 * 1.0}, "running", "running 46 %"),
        ({"age_s": 200, "eta_s": 140 * 1.0}, "stalled", "stalled at 46 %"),
        ({"age_s": 400, "eta_s": 140 * 180.0}, "running", "running 46 %"),
        ({"age_s": 600, "eta_s": 140 * 180.0}, "stalled", "stalled at 46 %"),
        ({"age_s": 200, "eta_s": None}, "stalled", "stalled at 46 %"),
        # The clock was set back since.
        ({"age_s": -86400, "eta_s": None}, "stalled", "stalled at 46 %"),
        ({"state": "stopped", "age_s": 1e5}, "stopped", "stopped at 46 %"),
        ({"state": "failed", "error": "out of memory"}, "failed", "failed: out of memory"),
        ({"state": "done", "step": 260}, "trained", "waiting for inference"),
        ({"host": socket.gethostname(), "pid": ended_pid()}, "stopped", "stopped at 46 %"),
        ({"host": socket.gethostname(), "pid": os.getpid()}, "running", "running 46 %"),
    ],
)
def test_table_and_status_say_the_same_of_a_run(tmp_path, heartbeat, state, cell):
    study = load_study(write_study(tmp_path / "study.yaml", seeds=[0]))
    beat(tmp_path, **heartbeat)
    assert states_of(study, tmp_path, {}, {})[0].state == state
    run = rows_of(study, tmp_path, {})[0].runs[0]
    assert set(run.missing.values()) == {cell}


def test_only_a_process_of_this_host_is_known_to_have_died():
    pid = ended_pid()
    assert has_died(socket.gethostname(), pid)
    assert not has_died("elsewhere", pid)
    assert not has_died(socket.gethostname(), os.getpid())
