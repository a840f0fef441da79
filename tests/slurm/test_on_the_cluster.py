"""Studies as a user runs them on a cluster: what they ask for and cost, what is refused, who looks after them."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.slurm.one_machine import LONG_S, SCORED, Cluster, Study, running_cluster, said, start_cluster, wait_until

pytestmark = pytest.mark.slurm

BACKBONES = ["r50", "r101", "x101_32x4d", "x101_64x4d"]


def gpus_held() -> dict[str, str]:
    """Node and number of the GPUs of each job that runs."""
    shown = said("scontrol", "show", "job", "-o", "-d", check=False)
    found = re.findall(r"JobId=(\d+) .*? Nodes=(\S+) CPU_IDs=\S+ Mem=\S+ GRES=gpu:toy:\d+\(IDX:([^)]+)\)", shown)
    return {job: f"{node}:{number}" for job, node, number in found}


@pytest.fixture(scope="module")
def side_by_side(slurm: Cluster, calm: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, str]]:
    """Four backbones that trained at the same time, and the GPUs they held."""
    slurm.settle()
    scored = tuple(SCORED.replace("r50", backbone) for backbone in BACKBONES)
    study = Study(tmp_path_factory.mktemp("four") / "toy", environment={"STEP_S": "1"}, targets=scored)
    study.write(backbones=BACKBONES).prepared_as(calm).start()
    assert study.head is not None
    most: dict[str, str] = {}
    try:
        while study.head.poll() is None and len(most) < len(BACKBONES):
            most = max(most, gpus_held(), key=len)
            time.sleep(0.5)
        assert study.wait() == 0, study.said()
    finally:
        study.end()
    return study, most


def test_four_backbones_train_side_by_side_each_on_a_gpu_of_its_own(
    slurm: Cluster, side_by_side: tuple[Study, dict[str, str]]
) -> None:
    study, held = side_by_side
    assert len(set(held.values())) == len(BACKBONES), (held, slurm.shown())
    assert all((study.folder / target).exists() for target in study.targets)
    assert sorted(study.submissions("train")) == sorted(held)


def test_steps_without_a_gpu_hold_none(side_by_side: tuple[Study, dict[str, str]]) -> None:
    study, _ = side_by_side
    for rule, asked in (("evaluate", False), ("train", True), ("infer", True)):
        for job in study.submissions(rule):
            (line,) = said("sacct", "-X", "-n", "-P", "-j", job, "-o", "Partition,ReqTRES").splitlines()
            assert ("gres/gpu" in line) is asked, line
            assert line.startswith("gpu|" if asked else "cpu|")


def test_a_run_knows_what_it_cost(side_by_side: tuple[Study, dict[str, str]]) -> None:
    study, _ = side_by_side
    for backbone in BACKBONES:
        record = json.loads((study.folder / "results" / "toy" / backbone / "seed0" / "train.json").read_text())
        (attempt,) = study.attempts(backbone)
        (line,) = said(
            *("sacct", "-X", "-n", "-P", "-j", attempt.begin.job or ""),
            *("-o", "ElapsedRaw,AllocTRES,NCPUS,Eligible,Start"),
        ).splitlines()
        elapsed_s, resources, cpus, eligible, started = line.split("|")
        assert "gres/gpu=1" in resources
        waited_s = time.mktime(time.strptime(started, "%Y-%m-%dT%H:%M:%S"))
        waited_s -= time.mktime(time.strptime(eligible, "%Y-%m-%dT%H:%M:%S"))
        cost = record["cost"]
        # SLURM counts until Snakemake has ended in the job, some seconds after the trainer.
        assert int(elapsed_s) - 30 <= cost["gpu_hours"] * 3600 <= int(elapsed_s) + 1
        assert cost["cpu_hours"] == pytest.approx(cost["gpu_hours"] * int(cpus))
        assert cost["waited_s"] == pytest.approx(waited_s, abs=1)
        assert cost["starts"] == 1
        assert cost["peak_memory_gb"] == record["memory_gb"]


NO_SUCH_NODE = "rule train: SLURM refuses its jobs: Requested node configuration is not available"


@pytest.mark.parametrize(
    ("site", "changes", "messages"),
    [
        (
            {"partition": "nope", "gpu_partition": "nowhere"},
            {},
            [
                "rule train: SLURM refuses its jobs: .*invalid partition specified: nowhere",
                "rule evaluate: SLURM refuses its jobs: .*invalid partition specified: nope",
            ],
        ),
        ({"account": "nobody"}, {}, [r"rule \w+: SLURM refuses its jobs: Invalid account or account/partition"]),
        ({}, {"gpu_model": "h100"}, [NO_SUCH_NODE]),
        pytest.param({}, {"gpus": 3}, [NO_SUCH_NODE], marks=pytest.mark.long),
        pytest.param({}, {"memory_mb": 100000}, [NO_SUCH_NODE], marks=pytest.mark.long),
        ({}, {"runtime_minutes": 99}, ["rule train: asks for 99 minutes, and partition gpu allows 60; a training"]),
    ],
)
def test_what_slurm_would_refuse_for_good_ends_before_any_job(
    slurm: Cluster, calm: Study, tmp_path: Path, site: dict[str, str], changes: dict[str, Any], messages: list[str]
) -> None:
    study = Study(tmp_path / "toy", site).write(resources=changes, schedule={"images_per_step": 8}).prepared_as(calm)
    study.start()
    assert study.wait() != 0
    for message in messages:
        assert re.search(rf"^error: {message}", study.said(), re.MULTILINE), study.said()
    assert "fix: change resources: of the study, slurm/site.yaml" in study.said()
    assert "Traceback" not in study.said()
    assert "submitted" not in study.said()
    # No lock is left.
    assert not list((study.folder / ".snakemake" / "locks").glob("*"))


def test_an_error_that_comes_again_stops_after_the_second_try_and_no_other_run_with_it(
    slurm: Cluster, calm: Study, tmp_path: Path
) -> None:
    # No checkpoint: slow cores would take one in the second try alone, which is a step gained, and another try.
    unsaved = {"STEP_S": "0", "CHECKPOINT_S": "600"}
    study = Study(tmp_path / "toy", environment=unsaved, targets=("results/toy/table.md",))
    study.write(backbones=["r50", "r101"]).prepared_as(calm)
    (study.folder / "crash_at").write_text("12 r101")
    study.start()
    assert study.wait() != 0
    assert len(study.submissions("train")) == 3, study.said()
    assert [attempt.ended for attempt in study.attempts("r101")] == ["error", "error"]
    r50, r101 = json.loads((study.folder / "results" / "toy" / "partial_table.json").read_text())["rows"]
    assert not r50["missing"]
    assert "no step can be taken here" in json.dumps(r101["missing"])


def test_snakemake_as_a_job_is_queued_again_before_its_time_limit_and_takes_over(
    slurm: Cluster, calm: Study, tmp_path: Path
) -> None:
    study = Study(tmp_path / "toy", environment={"STEP_S": "4"}).write().prepared_as(calm)
    for name in ("Snakefile", "slurm", "workflow", "profiles", "lvis_rcnn", "envs", "configs", ".venv"):
        (study.folder / name).symlink_to(REPOSITORY / name)
    words = ["--account=lab", "--time=2", "--parsable", "slurm/head.sbatch", SCORED, "--configfile", "toy.yaml"]
    done = subprocess.run(["sbatch", *words], cwd=study.folder, env=study.environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head = done.stdout.strip()
    log = study.folder / f"head-{head}.log"

    def state() -> str:
        return said("squeue", "--noheader", "--states=all", "--format=%T", "--job", head).strip()

    wait_until(lambda: state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), "the head has ended", 2 * LONG_S)
    assert state() == "COMPLETED", log.read_text()
    assert "queued again, the jobs go on" in log.read_text()
    assert "goes on, which an earlier Snakemake has left" in log.read_text()
    assert [attempt.ended for attempt in study.attempts()] == ["done"]
    assert (study.folder / SCORED).exists()


# Few steps: once rounding moves a box across a threshold, the two are different trainings.
FEW = {"images_per_step": 4, "normalisation_group": 1, "steps": 5}
TRAINED = "results/toy/r50/seed0/model.pth"


@pytest.fixture(scope="module")
def of_one_process(calm: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("one_process") / "toy", environment={"STEP_S": "0"})
    study.write(schedule=FEW).prepared_as(calm).run_here(TRAINED)
    return study


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 2), (1, 2)])
def test_several_nodes_train_what_one_process_does(
    slurm: Cluster, calm: Study, of_one_process: Study, tmp_path: Path, nodes: int, gpus: int
) -> None:
    slurm.settle()
    environment = {"STEP_S": "0", "GLOO_SOCKET_IFNAME": "lo"}
    study = Study(tmp_path / "toy", environment=environment, targets=(TRAINED,))
    study.write(schedule=FEW, resources={"nodes": nodes, "gpus": gpus}).prepared_as(calm).start()
    try:
        assert study.wait() == 0, study.said()
    finally:
        study.end()
    record = json.loads((study.folder / "results" / "toy" / "r50" / "seed0" / "train.json").read_text())
    assert record["ranks"] == nodes * gpus
    (job,) = study.submissions("train")
    (line,) = said("sacct", "-X", "-n", "-P", "-j", job, "-o", "AllocTRES").splitlines()
    assert f"gres/gpu={nodes * gpus}" in line
    assert f"node={nodes}" in line
    ours, theirs = study.weights(), of_one_process.weights()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_a_cluster_without_accounting(
    slurm: Cluster, calm: Study, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = str(slurm.state / "etc" / "slurm.conf")
    folder = tmp_path_factory.mktemp("without")
    monkeypatch.setenv("LVIS_RCNN_TEST_SLURM_PORT", "17100")
    try:
        with running_cluster("--no-accounting"):
            study = Study(folder / "toy", {"account": ""}, {"STEP_S": "0"}).write().prepared_as(calm)
            study.start()
            assert study.wait() == 0, study.said()
    finally:
        monkeypatch.undo()
        os.environ["SLURM_CONF"] = conf
        start_cluster(slurm.state)
    assert (study.folder / SCORED).exists()


BY_ANOTHER_USER = """
set -eu
cd "$(dirname "$0")"
export PATH="$PWD/bin:$PATH" LVIS_RCNN_STUDY_SHA256=abc LVIS_RCNN_TERMINAL="$PWD/terminal"
words=(--account lab --partition gpu --gpus 1 --output /dev/null --comment rule_train -D "$PWD" --wrap "sleep 60")
first=$(sbatch --parsable --job-name lvis_1 "${words[@]}")
second=$(sbatch --parsable --job-name lvis_2 "${words[@]}")
[ "$first" = "$second" ]
squeue --format='%i|%T' --name lvis_2 | grep "^$first|"
scancel "$first"
for _ in 1 2 3 4 5 6 7 8 9; do squeue --format='%i|%T' --name lvis_2 | grep "^$first|CANCELLED" && exit; sleep 1; done
squeue --format='%i|%T' --name lvis_2; exit 1
"""


@pytest.fixture
def another_user(slurm: Cluster) -> Iterator[tuple[str, Path]]:
    """A user of the cluster who is not root, and a folder of theirs."""
    user, folder = "lvis_rcnn_test", Path(tempfile.mkdtemp(prefix="lvis_rcnn_user_"))
    if shutil.which("useradd") is None:
        pytest.skip("no useradd here")
    subprocess.run(["useradd", "--create-home", user], check=True, capture_output=True)
    try:
        said("sacctmgr", "-i", "add", "user", user, "Account=lab", check=False)  # a second test finds it there
        yield user, folder
    finally:
        subprocess.run(["userdel", "--remove", user], check=False, capture_output=True)
        shutil.rmtree(folder)


def test_the_commands_beside_those_of_slurm_serve_another_user(another_user: tuple[str, Path]) -> None:
    user, folder = another_user
    shutil.copytree(REPOSITORY / "slurm" / "bin", folder / "bin")
    (folder / "script").write_text(BY_ANOTHER_USER)
    subprocess.run(["chown", "-R", user, folder], check=True)
    done = subprocess.run(
        ["runuser", "--user", user, "--", "bash", folder / "script"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on, which an earlier Snakemake has left" in (folder / "terminal").read_text()


def test_another_user_than_root(calm: Study, another_user: tuple[str, Path]) -> None:
    user, folder = another_user
    study = Study(folder / "toy", environment={"STEP_S": "0", "HOME": f"/home/{user}", "USER": user}).write()
    study.prepared_as(calm)
    subprocess.run(["chown", "-R", user, folder], check=True)

    def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
        command = ["runuser", "--user", user, "--", *study.command(*words)]
        return subprocess.run(
            command, cwd=study.folder, env=study.environ(), capture_output=True, text=True, timeout=LONG_S, check=False
        )

    if run("--version").returncode != 0:
        pytest.skip("another user cannot read this checkout or its Python")
    done = run("--profile", REPOSITORY / "slurm", SCORED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (study.folder / SCORED).owner() == user


def test_as_typed_in_a_fresh_clone(slurm: Cluster, tmp_path: Path) -> None:
    cloned = subprocess.run(["git", "clone", "--quiet", REPOSITORY, tmp_path / "clone"], capture_output=True, text=True)
    assert cloned.returncode == 0, cloned.stderr
    study = Study(tmp_path / "clone", environment={"SBATCH_ACCOUNT": "lab", "STEP_S": "0"})
    environment = {key: value for key, value in study.environ().items() if key != "LVIS_RCNN_SITE"}
    environment |= {"LVIS_RCNN_SECONDS_BETWEEN_CHECKS": "4", "PATH": f"{REPOSITORY}/.venv/bin:{environment['PATH']}"}

    def typed(words: str) -> str:
        done = subprocess.run(
            f"snakemake {words}", shell=True, cwd=study.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    plan = typed("--profile slurm results/table.md -n")
    assert "Training x101_64x4d (seed 0) on lvis_v0.5" in plan
    text = typed("--profile slurm results/table.md --configfile configs/smoke.yaml")
    assert "The table: results/smoke/table.md" in text
    assert json.loads((study.folder / "results" / "table.json").read_text())["study"] == "smoke"


def test_steps_run_in_their_conda_environment_on_the_nodes(
    slurm: Cluster, tmp_path: Path, conda_stand_in: dict[str, str]
) -> None:
    from tests.workflow.test_workflow import Stubbed, stub_workflow

    maker, channel = Path(conda_stand_in["CONDA_STAND_IN"]) / "mkchannel.py", tmp_path / "channel"
    subprocess.run([Path(sys.base_prefix) / "bin" / "python3", maker, channel, sys.base_prefix], check=True)
    (tmp_path / "run").mkdir()
    stubbed = Stubbed(stub_workflow(tmp_path / "checkout"), tmp_path / "run")
    stubbed.study()
    # An empty lock file in place of gigabytes.
    (stubbed.workflow / "requirements.lock").write_text("")
    script = stubbed.workflow / "envs" / "lvis_rcnn.post-deploy.sh"
    script.write_text(re.sub(r"\b[0-9a-f]{64}\b", hashlib.sha256(b"").hexdigest(), script.read_text()))
    environment = {
        **{"CONDA_SHIM_CHANNEL": channel.as_uri(), "CONDA_SHIM_CACHE": str(tmp_path / "cache"), **conda_stand_in},
        **{"SBATCH_ACCOUNT": "lab", "LVIS_RCNN_SECONDS_BETWEEN_CHECKS": "4"},
    }
    words = ["results/data/drawn_seed0_480_100/manifest.json", "--profile", stubbed.workflow / "slurm", "--use-conda"]
    ended = stubbed.snakemake(*words, env=environment)
    assert ended.code == 0, ended.text
    assert "has been submitted with SLURM jobid" in ended.text
    (call,) = stubbed.calls()
    assert Path(call["python"]).is_relative_to(stubbed.folder / ".snakemake" / "conda")
