"""Whatever a cluster does to a run, it ends with the weights and the scores of a run that nothing disturbed.

Each fault is a `snakemake --profile slurm` of its own on the cluster of cluster.sh that trains, detects and scores, and
whose training is hit in its middle. Some run at the same time; each is a test of its own. One goes on to the table.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import skip_if_late
from tests.slurm.one_machine import SCORED, Cluster, Study, said, start_cluster, wait_until

pytestmark = pytest.mark.slurm

SIDE_BY_SIDE = 3  # they mostly wait, but on slow cores


def require_same(study: Study, calm: Study) -> None:
    """Weights, log and scores are those of the calm run."""
    ours, theirs = study.weights(), calm.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert study.log_lines() == calm.log_lines()
    assert study.metrics() == calm.metrics()


def hit_by_the_time_limit(study: Study, cluster: Cluster) -> None:
    study.wait_for_step(1, attempt=2)


def cancelled(study: Study, cluster: Cluster) -> None:
    said("scancel", study.wait_for_step(8))


def requeued(study: Study, cluster: Cluster) -> None:
    said("scontrol", "requeue", study.wait_for_step(8))


def killed(study: Study, cluster: Cluster) -> None:
    study.wait_for_step(8)
    os.kill(study.heartbeat()["pid"], signal.SIGKILL)


def preempted(study: Study, cluster: Cluster) -> None:
    node = said("squeue", "--noheader", "--format=%N", "--job", study.wait_for_step(8)).strip()
    words = ["--account=lab", "--partition=urgent", f"--nodelist={node}", "--gres=gpu:2", "--output=/dev/null"]
    said("sbatch", *words, "--wrap", "sleep 5")


def on_a_node_that_fails(study: Study, cluster: Cluster) -> None:
    job = study.wait_for_step(8)
    node = said("squeue", "--noheader", "--format=%N", "--job", job).strip()
    said("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    pid = study.heartbeat()["pid"]
    wait_until(lambda: study.job() != job and not Path(f"/proc/{pid}").exists(), "the job has left the node")

    def is_back() -> bool:
        # Again and again: what comes back too early cannot start the job and is drained; resuming what is up fails.
        said("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        time.sleep(1)
        return study.heartbeat()["attempt"] == 2

    wait_until(is_back, f"the training goes on:\n{study.said()}")


def head_killed_and_forgotten(study: Study, cluster: Cluster) -> None:
    head_killed_and_started_again(study, cluster, forget=True)


def head_killed_and_started_again(study: Study, cluster: Cluster, forget: bool = False) -> None:
    study.wait_for_step(2)  # early: the training has to last until Snakemake has submitted it again, on busy cores too
    assert study.head is not None
    study.head.kill()
    study.head.wait()
    if forget:
        shutil.rmtree(study.folder / ".snakemake" / "slurm_jobs")
    unlocked = subprocess.run(
        study.command("--unlock"), cwd=study.folder, env=study.environ(), capture_output=True, text=True, check=False
    )
    assert unlocked.returncode == 0, unlocked.stderr
    study.start()


def controller_restarted(study: Study, cluster: Cluster) -> None:
    study.wait_for_step(8)
    cluster.stop_daemon("slurmctld")
    time.sleep(8)
    start_cluster(cluster.state)


def accounting_away(study: Study, cluster: Cluster) -> None:
    study.wait_for_step(4)
    cluster.stop_daemon("slurmdbd")
    study.wait_for_step(20)
    start_cluster(cluster.state)


def refused_for_now(study: Study, cluster: Cluster) -> None:
    words = ["--account=lab", "--qos=narrow", "--output=/dev/null", "--parsable", "--wrap", "sleep 600"]
    jobs = [said("sbatch", *words).strip() for _ in range(2)]
    study.start()
    wait_until(lambda: "SLURM takes no job for now, trying again" in study.said(), "a submission waits")
    said("scancel", *jobs)


@dataclass(frozen=True)
class Fault:
    """What hits a training, on which site, and how it is seen afterwards."""

    hit: Callable[[Study, Cluster], None]
    submitted: int
    """Jobs of the training that Snakemake submits."""
    starts: int
    """Starts of the trainer."""
    ended: str | None = "stopped"
    """How the first start ended by its own account; None where it could give none."""
    site: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    target: str = SCORED
    environment: dict[str, str] = field(default_factory=dict)
    or_more: bool = False
    """There may be more jobs and starts than these."""
    alone: bool = False
    """Hits the whole cluster."""
    akin: bool = False
    """Another one is much like it: left to the long tests."""


FAULTS = {
    "scancel": Fault(cancelled, submitted=2, starts=2),
    "requeue": Fault(requeued, submitted=1, starts=2),
    "sigkill": Fault(killed, submitted=2, starts=2, ended=None),
    "head_killed": Fault(
        head_killed_and_started_again,
        submitted=2,
        starts=1,
        ended="done",
        target="results/toy/table.md",
        environment={"STEP_S": "5"},
    ),
    # Where the first job clears up late, it takes away what the second has written, which is then run once more.
    # Steps of 8 s: on slow cores the second job takes a minute to begin, and the first must not have ended by then.
    "head_killed_and_its_notes_lost": Fault(
        head_killed_and_forgotten, submitted=2, starts=2, environment={"STEP_S": "8"}, or_more=True
    ),
    "time_limit": Fault(
        hit_by_the_time_limit,
        submitted=2,
        starts=2,
        # SLURM counts minutes and signals up to one early: the first job is stopped after 40 to 100 s.
        study={"resources": {"runtime_minutes": 2}},
        environment={"STEP_S": "4.5"},
        or_more=True,
    ),
    # Three share two nodes: what preempts one may preempt another a second time, before it has begun. On slow cores a
    # training may not be done with saving when the grace is over: then SLURM itself queues the job again.
    "preempted_with_grace": Fault(preempted, submitted=1, starts=2, site={"gpu_partition": "spot_grace"}, or_more=True),
    "preempted_without_grace": Fault(
        preempted, submitted=1, starts=2, site={"gpu_partition": "spot"}, or_more=True, akin=True
    ),
    "preempted_and_not_queued_again": Fault(
        preempted, submitted=2, starts=2, site={"gpu_partition": "spot_lost"}, or_more=True, akin=True
    ),
    "refused_for_now": Fault(refused_for_now, submitted=1, starts=1, ended="done", site={"qos": "narrow"}),
    # Where the node comes back before it has cleared up, it cannot start the job again, and SLURM holds it.
    "node_down": Fault(on_a_node_that_fails, submitted=1, starts=2, site={"gpu_partition": "fragile"}, or_more=True),
    "controller_restarted": Fault(controller_restarted, submitted=1, starts=1, ended="done", alone=True),
    "accounting_away": Fault(accounting_away, submitted=1, starts=1, ended="done", alone=True, akin=True),
}


@pytest.fixture(scope="module")
def outcomes(
    slurm: Cluster, calm: Study, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, "Future[Study]"]]:
    """Every fault that is tested, under way: some at once, those that hit the whole cluster one by one at the end."""
    wanted = {
        item.callspec.params["fault"]
        for item in request.session.items
        if "[" in item.name and item.path == request.path
    }
    folder = tmp_path_factory.mktemp("faults")

    def disturbed(name: str, fault: Fault) -> Study:
        skip_if_late(request.config)
        study = (
            Study(folder / name, fault.site, fault.environment, (fault.target,)).write(**fault.study).prepared_as(calm)
        )
        if fault.hit is not refused_for_now:
            study.start()
        try:
            fault.hit(study, slurm)
            assert study.wait() == 0, study.said()
        finally:
            study.end()
        return study

    def after(others: list["Future[Study]"], name: str, fault: Fault) -> Study:
        futures.wait(others)
        return disturbed(name, fault)

    chosen = {name: fault for name, fault in FAULTS.items() if name in wanted}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool, ThreadPoolExecutor(1) as last:
        begun = {name: pool.submit(disturbed, name, fault) for name, fault in chosen.items() if not fault.alone}
        others = list(begun.values())
        yield begun | {name: last.submit(after, others, name, fault) for name, fault in chosen.items() if fault.alone}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=pytest.mark.long) if fault.akin else name for name, fault in FAULTS.items()]
)
def test_a_run_ends_as_if_undisturbed(outcomes: dict[str, "Future[Study]"], calm: Study, fault: str) -> None:
    expected, study = FAULTS[fault], outcomes[fault].result()
    require_same(study, calm)
    assert (study.folder / expected.target).exists()
    attempts = study.attempts()
    submitted = study.submissions("train")
    if expected.or_more:
        assert len(submitted) >= expected.submitted, study.said()
        assert len(attempts) >= expected.starts, attempts
    else:
        assert (len(submitted), len(attempts)) == (expected.submitted, expected.starts), (study.said(), attempts)
    assert attempts[0].ended == expected.ended, attempts
    assert attempts[-1].ended == "done"
    # It went on from where it was saved, and never did two trainers take the same step.
    assert all(attempt.begin.step > 0 for attempt in attempts[1:]), attempts
