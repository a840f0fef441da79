"""The cluster of cluster.sh, and studies that run on it; imported by the tests beside it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lvis_rcnn.model.weights import load_model
from lvis_rcnn.runs.attempts import Attempt, read_attempts
from tests.conftest import REPOSITORY, write_study

HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
SCORED = "results/toy/r50/seed0/metrics.json"
"""The last of what a run computes: what a study then draws and lists costs twice as many jobs."""
HELD_GPU = "GresUsed=gpu:toy:[1-9]"
LONG_S = 900.0  # far more than anything here takes on busy cores

# A training of some 15 seconds on a few drawn images; see small/sitecustomize.py.
TOY: dict[str, Any] = {
    "study": "toy",
    "title": "toy",
    "dataset": {"draw": {"seed": 0, "train_images": 24, "val_images": 8}},
    "schedule": {
        **{"steps": 30, "images_per_step": 2, "normalisation_group": 2, "warmup_steps": 4},
        **{"optimizer": "sgd", "learning_rate": 0.005},
    },
    "model": {"normalization": "group"},
    "augmentation": {"short_edges_px": [32], "long_edge_px": 48},
    "inference": {"short_edge_px": 32, "long_edge_px": 48},
    # The GPU is a copy of /dev/null: it is allocated, and the CPU computes.
    "resources": {"log_every_steps": 1, "gpus": 1, "memory_mb": 2000},
}
SITE = {
    "account": "lab",
    "partition": "cpu",
    "gpu_partition": "gpu",
    "seconds_between_checks": 4,
    "seconds_to_save": 20,
}


def said(*command: str | Path, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = LONG_S) -> Any:
    """The first value of ``condition`` that is true."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs; ``with_accounting`` tells whether it has a database."""

    state: Path
    with_accounting: bool = True

    def pid(self, daemon: str) -> int:
        return int((self.state / "run" / f"{daemon}.pid").read_text())

    def stop_daemon(self, daemon: str) -> None:
        pid = self.pid(daemon)
        assert Path(f"/proc/{pid}/comm").read_text().strip() == daemon
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"{daemon} has ended", 60)

    def settle(self) -> None:
        """Have the whole cluster: end what earlier tests have left, put drained nodes back, wait until all are idle."""
        end = time.monotonic() + 90
        while not self.is_idle():
            assert time.monotonic() < end, f"the cluster does not become idle:\n{self.shown()}"
            # What has just ended cannot be cancelled, and what is up cannot be put back.
            said("scancel", *(said("squeue", "--noheader", "--format=%i").split() or ["0"]), check=False)
            for node in said("sinfo", "--noheader", "--Node", "--states=down,drain", "--format=%N").split():
                said("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            time.sleep(0.5)
        # A controller that was restarted while jobs began and ended may count a GPU as used for ever; it counts anew.
        if re.search(HELD_GPU, self.shown()):
            self.stop_daemon("slurmctld")
            start_cluster(self.state, *["--no-accounting"] * (not self.with_accounting))
            assert not re.search(HELD_GPU, self.shown()), f"GPUs are held by no job:\n{self.shown()}"

    def is_idle(self) -> bool:
        """Whether no job is left and all nodes wait for one."""
        return set(said("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"}

    def shown(self) -> str:
        """Jobs, nodes and why nodes were taken out of service, for a message."""
        jobs = said("squeue", "--format=%i %T %r %N %k %Z")
        return f"{jobs}{said('sinfo', '--list-reasons')}{said('scontrol', 'show', 'node', '--details')}"


def start_cluster(state: Path, *options: str) -> None:
    """Start what does not run yet."""
    # Daemons would keep a pipe open.
    with (state.parent / "cluster.log").open("a") as log:
        done = subprocess.run([HERE / "cluster.sh", "start", state, *options], stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (state.parent / "cluster.log").read_text()


@contextmanager
def running_cluster(*options: str) -> Iterator[Cluster]:
    """A cluster until the end of the block; skips the test where there can be none."""
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM cluster")
    if Path("/etc/slurm/slurm.conf").exists() and not Path("/etc/slurm/slurm.conf").is_symlink():
        pytest.skip("this machine belongs to a SLURM cluster")
    # Other users must reach it, which they do not below pytest's own folders.
    state = Path(tempfile.mkdtemp(prefix="lvis_rcnn_slurm_")) / "cluster"
    state.parent.chmod(0o755)
    state.mkdir()
    os.environ["SLURM_CONF"] = str(state / "etc" / "slurm.conf")
    try:
        start_cluster(state, *options)
        yield Cluster(state, with_accounting="--no-accounting" not in options)
    finally:
        subprocess.run([HERE / "cluster.sh", "stop", state], check=True)
        del os.environ["SLURM_CONF"]
        shutil.rmtree(state.parent)


@dataclass
class Study:
    """A study in a folder of its own, whose trainings and inferences are jobs."""

    folder: Path
    site: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = (SCORED,)
    head: "subprocess.Popen[bytes] | None" = None

    def write(self, **changes: Any) -> "Study":
        """Write the files that it is made of."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {
            key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else value for key, value in TOY.items()
        }
        write_study(self.folder / "toy.yaml", **{**values, **changes})
        (self.folder / "site.yaml").write_text(yaml.safe_dump({**SITE, **self.site}))
        return self

    def prepared_as(self, other: "Study") -> "Study":
        """Take over what comes before training: drawn images, stores, checks."""
        kept = ("data", "preflight.json", "preflight.txt", "repeat_factors")
        shutil.copytree(other.folder / "results" / "data", self.folder / "results" / "data")
        for name in kept:
            source, target = (one / "results" / "toy" / name for one in (other.folder, self.folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
        return self

    def environ(self) -> dict[str, str]:
        mine = {
            "LVIS_RCNN_SITE": str(self.folder / "site.yaml"),
            "PYTHONPATH": str(HERE / "small"),
            "STEP_S": "0.3",
            "CHECKPOINT_S": "2",
            **self.environment,
        }
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, **mine}

    def command(self, *words: str | Path) -> list[str]:
        start = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", *words]
        return [str(word) for word in [*start, "--configfile", self.folder / "toy.yaml"]]

    def start(self) -> None:
        """Start Snakemake with the profile, in a session of its own."""
        with (self.folder / "head.log").open("ab") as log:
            self.head = subprocess.Popen(
                self.command("--profile", REPOSITORY / "slurm", *self.targets),
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> int:
        """The exit code of Snakemake."""
        assert self.head is not None
        try:
            return self.head.wait(LONG_S)
        except subprocess.TimeoutExpired:
            self.head.kill()
            raise AssertionError(
                f"Snakemake does not end:\n{self.said()}\n{said('squeue', '-o', '%i %T %r %k %Z')}"
            ) from None

    def run_here(self, *words: str) -> str:
        """Run Snakemake without SLURM."""
        done = subprocess.run(
            self.command("--cores", "2", *words),
            cwd=self.folder,
            env={**self.environ(), "CUDA_VISIBLE_DEVICES": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def said(self) -> str:
        return (self.folder / "head.log").read_text()

    def submissions(self, rule: str) -> list[str]:
        """Ids of the jobs of a rule that Snakemake submitted."""
        return re.findall(rf"SLURM jobid (\d+) \(log: \S+/rule_{rule}/", self.said())

    def job(self, rule: str = "train") -> str:
        """The id of a job of this study that runs now; empty where there is none."""
        for line in said("squeue", "--noheader", "--states=RUNNING", "--format=%i|%k|%Z").splitlines():
            number, comment, folder = line.split("|")
            if comment.startswith(f"rule_{rule}_") and folder == str(self.folder):
                return number
        return ""

    def state(self, backbone: str = "r50") -> Path | None:
        found = self.folder.glob(f"results/state/toy/{backbone}/seed0/*/attempts.jsonl")
        return next((path.parent for path in found), None)

    def heartbeat(self, backbone: str = "r50") -> dict[str, Any]:
        state = self.state(backbone)
        try:
            return json.loads((state / "progress.json").read_text()) if state else {}
        except (OSError, ValueError):
            return {}

    def wait_for_step(self, step: int, attempt: int = 1) -> str:
        """The job that trains, once it has come there; it has saved before."""

        def is_there() -> bool:
            assert self.head is not None
            assert self.head.poll() is None, self.said()
            beat = self.heartbeat()
            return bool(beat) and beat["attempt"] >= attempt and beat["step"] >= step and beat["saved_step"] > 0

        wait_until(is_there, f"{self.folder.name} is at step {step}:\n{self.said()}")
        return wait_until(self.job, "the training runs")

    def attempts(self, backbone: str = "r50") -> list[Attempt]:
        state = self.state(backbone)
        return read_attempts(state) if state else []

    def weights(self, backbone: str = "r50") -> dict[str, torch.Tensor]:
        return load_model(self.folder / "results" / "toy" / backbone / "seed0" / "model.pth")[0]

    def log_lines(self, backbone: str = "r50") -> list[tuple[int, float]]:
        """Step and loss of each logged step."""
        text = (self.folder / "results" / "toy" / backbone / "seed0" / "log.json").read_text()
        return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]

    def metrics(self, backbone: str = "r50") -> dict[str, Any]:
        found = json.loads((self.folder / "results" / "toy" / backbone / "seed0" / "metrics.json").read_text())
        return {kind: found[kind] for kind in ("bbox", "segm")}

    def end(self) -> None:
        """End what a failed test has left: Snakemake, and its jobs, which would hold GPUs of the tests that follow."""
        if self.head is not None and self.head.poll() is None:
            self.head.kill()
            self.head.wait()
        # What has just ended cannot be cancelled.
        for line in said("squeue", "--noheader", "--format=%i|%Z", check=False).splitlines():
            if line.partition("|")[2] == str(self.folder):
                said("scancel", line.partition("|")[0], check=False)
