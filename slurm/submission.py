"""What stands between Snakemake and SLURM: refusals are said before the first job, and no job is tried without hope.

Snakemake's SLURM executor knows SLURM by three commands. ``slurm/bin`` holds a command of each name that asks SLURM's
own and mends its answer, so that no refusal for a moment fails a job and no ended job is waited for without end.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# What sbatch says when it would take the job at another time; slurm/bin/sbatch has the same words.
FOR_NOW = re.compile(
    "SubmitJob|contact slurm controller|Socket timed out|not responding|Zero Bytes|temporarily|standby mode"
    "|Connection (refused|timed out)"
)
# Failures in a row that left no word and no progress; twice what a trainer itself allows, since a job that is cancelled
# or loses its node before the trainer begins is as silent.
SILENT_FAILURES = 6
FIX = (
    "change resources: of the study, slurm/site.yaml (see slurm/site.example.yaml), or --set-resources RULE:NAME=VALUE"
)


def stand_between(workflow: Any, study_file: Path) -> None:
    """Prepare a run of Snakemake whose jobs SLURM runs; ends it with a line for each kind of job that SLURM refuses."""
    if workflow.executor_plugin.name != "slurm":
        return
    # For slurm/bin/sbatch.
    os.environ["LVIS_RCNN_TERMINAL"] = f"/proc/{os.getpid()}/fd/2"
    os.environ["LVIS_RCNN_STUDY_SHA256"] = hashlib.sha256(study_file.read_bytes()).hexdigest()
    errors = refusals(job for job in workflow.dag.needrun_jobs() if not job.is_local)
    if errors:
        sys.exit("\n".join(f"error: {error}; fix: {FIX}" for error in errors))
    os.environ["PATH"] = f"{Path(__file__).parent / 'bin'}:{os.environ['PATH']}"
    retry_with_hope_only()


def refusals(jobs: Iterable[Any]) -> list[str]:
    """Why SLURM would never start some of the jobs; jobs that ask the same are asked about once."""
    asked: dict[str, Any] = {}
    for job in jobs:
        asked.setdefault(test_command(job), job)
    limits = time_limits_minutes()
    found = [(job, too_long(job, limits) or refused(command)) for command, job in asked.items()]
    return list(dict.fromkeys(f"rule {job.rule.name}: {why}" for job, why in found if why))


def test_command(job: Any) -> str:
    """The executor's own sbatch command, which then submits nothing."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    account, partition = job.resources.get("slurm_account"), job.resources.get("slurm_partition")
    words = {
        "run_uuid": "test",
        "slurm_logfile": "/dev/null",
        "comment_str": "test",
        "account": f"-A '{account}'" if account else "",
        "partition": f"-p '{partition}'" if partition else "",
        "workdir": None,
    }
    return f"{get_submit_command(job, words)}{set_gres_string(job)} --test-only --wrap true"


def refused(command: str) -> str:
    """What SLURM says against a job, in one line; empty if it would take it, now or later."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    if done.returncode == 0 or FOR_NOW.search(said):
        return ""
    options = re.sub(r"^.*?--comment test|--test-only.*$", "", command)
    return f"SLURM refuses its jobs: {said.removeprefix('allocation failure: ')} (sbatch {' '.join(options.split())})"


def too_long(job: Any, limits: dict[str, float]) -> str:
    """Why a job is over the time limit of its partition, where it would be queued for ever; empty if it is not."""
    partition = str(job.resources.get("slurm_partition") or "")
    known = [limits[name] for name in partition.split(",") if name in limits]
    minutes = job.resources.get("runtime") or 0
    if not known or minutes <= max(known):
        return ""
    where = f"partition {partition}" if partition else "the default partition"
    return (
        f"asks for {minutes} minutes, and {where} allows {max(known):.0f}; a training of more goes on in its next job"
    )


def time_limits_minutes() -> dict[str, float]:
    """Time limit of each partition; that of the default one also without a name."""
    shown = subprocess.run(["scontrol", "show", "partition", "-o"], capture_output=True, text=True, check=False).stdout
    limits = {}
    for line in shown.splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        limits[words["PartitionName"]] = in_minutes(words.get("MaxTime", "UNLIMITED"))
        if words.get("Default") == "YES":
            limits[""] = limits[words["PartitionName"]]
    return limits


def in_minutes(time: str) -> float:
    """SLURM's days-hours:minutes:seconds in minutes."""
    if not re.fullmatch(r"(\d+-)?\d+:\d+:\d+", time):
        return float("inf")
    days, _, clock = time.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def retry_with_hope_only() -> None:
    """Let Snakemake submit no job again whose last tries ended the same way; it knows numbers of retries only."""
    from snakemake.jobs import Job

    usual: Callable[[Any], int] = Job.restart_times.fget
    ends: dict[Any, list[tuple[str, str]]] = {}

    def restart_times(job: Any) -> int:
        """Asked once after each failure."""
        ends.setdefault(job, []).append(end_of(job))
        return 0 if is_hopeless(ends[job]) else usual(job)

    Job.restart_times = property(restart_times)


def is_hopeless(ends: list[tuple[str, str]]) -> bool:
    """Whether the last tries ended in the same error at the same place, or in silence at the same place."""
    needed = 2 if ends[-1][0] else SILENT_FAILURES
    return len(ends) >= needed and len(set(ends[-needed:])) == 1


def end_of(job: Any) -> tuple[str, str]:
    """The error that a failed job logged, empty where it was killed, and how far it was."""
    from lvis_rcnn.runs import last_error

    error = last_error(Path(str(job.log[0]))) if job.log else ""
    return error, place_of(job.rule.name, job.wildcards)


def place_of(rule: str, wildcards: Any) -> str:
    """How far a step is that goes on where it was; empty for the others."""
    if rule == "train":
        state = Path("results/state", wildcards.study, wildcards.backbone, f"seed{wildcards.seed}")
        found = sorted(path.read_text() for path in state.glob("*/progress.json"))
        return " ".join(re.findall(r'"(?:step|saved_step)": \d+', " ".join(found)))
    if rule == "infer":
        state = Path("results/state", wildcards.study, wildcards.group, wildcards.member)
        return str(len(list(state.glob("infer-*/shard-*.npz"))))
    return ""
