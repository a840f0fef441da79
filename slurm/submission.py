"""What stands between Snakemake and SLURM: what SLURM would refuse is said before the first job.

Snakemake's SLURM executor knows SLURM by three commands. ``slurm/bin`` holds a command of each name that asks SLURM's
own and mends its answer, so that no refusal for a moment fails a job and no ended job is waited for without end.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake_internals import jobs_to_submit, never_retry, sbatch_command

from lvis_rcnn.system.files import sha256_of_json

# What sbatch says when it would take the job at another time; slurm/bin/sbatch has the same words.
FOR_NOW = re.compile(
    "SubmitJob|contact slurm controller|Socket timed out|not responding|Zero Bytes|temporarily|standby mode"
    "|Connection (refused|timed out)"
)
# A limit that nobody else's jobs fill.
MOST_JOBS_OF_A_USER = re.compile("(Assoc|QOS)MaxSubmitJob(PerUser)?Limit")
WITHOUT_SLURM = "start it on a login node of the cluster, or here without SLURM: snakemake --cores 2 in its place"
FIX = (
    "change resources: of the study, slurm/site.yaml (see slurm/site.example.yaml), or --set-resources RULE:NAME=VALUE"
)
# Without scontrol, which some sites hide, time limits of partitions are not known and left jobs are not taken over.
NEEDED = ("sbatch", "squeue", "scancel")


def prepare(workflow: Any, study: Any) -> list[str]:
    """Prepare a run of Snakemake whose jobs SLURM runs; return why SLURM would never start some of them."""
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        return [f"--profile slurm: needs {', '.join(absent)} of SLURM, not found on PATH; fix: {WITHOUT_SLURM}"]
    # For slurm/bin/sbatch.
    os.environ["LVIS_RCNN_TERMINAL"] = f"/proc/{os.getpid()}/fd/2"
    os.environ["LVIS_RCNN_STUDY_SHA256"] = content_sha256(study)
    errors = refusals(jobs_to_submit(workflow))
    os.environ["PATH"] = f"{Path(__file__).resolve().with_name('bin')}:{os.environ['PATH']}"
    never_retry(is_pointless)
    return [f"{error}; fix: {FIX}" for error in errors]


def content_sha256(study: Any) -> str:
    """Digest of what a left job and this study must have in common: what the study says, however it is written.

    Except for what its jobs ask of the machine: a left job keeps what it has.
    """
    return sha256_of_json(study.model_dump(mode="json", exclude_defaults=True, exclude={"resources"}))


def refusals(jobs: Iterable[Any]) -> list[str]:
    """Why SLURM would never start some of the jobs; jobs that ask the same are asked about once."""
    asked: dict[str, Any] = {}
    found = []
    for job in jobs:
        try:
            asked.setdefault(f"{sbatch_command(job)} --test-only --wrap true", job)
        except WorkflowError as error:
            found.append((job, f"Snakemake's SLURM executor refuses its jobs: {' '.join(str(error).split())}"))
    limits, has_no_job = time_limits_minutes(), queue_is_empty()
    found += [(job, too_long(job, limits) or refused(command, has_no_job)) for command, job in asked.items()]
    return list(dict.fromkeys(f"rule {job.rule.name}: {why}" for job, why in found if why))


def queue_is_empty() -> bool:
    """Whether this user has no job in the queue but, possibly, the one that this Snakemake is."""
    words = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%A"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode == 0 and set(done.stdout.split()) <= {os.environ.get("SLURM_JOB_ID", "")}


def refused(command: str, has_no_job: bool) -> str:
    """What SLURM says against a job, in one line; empty if it would take it, now or later.

    Args:
        command: as :func:`snakemake_internals.sbatch_command`, to be tested only.
        has_no_job: as :func:`queue_is_empty`; then a limit on the user's submitted jobs leaves no room for any.
    """
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    never = has_no_job and MOST_JOBS_OF_A_USER.search(said)
    if done.returncode == 0 or (FOR_NOW.search(said) and not never):
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
    """Time limit of each partition, that of the default one also without a name; none where scontrol is hidden."""
    if shutil.which("scontrol") is None:
        return {}
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


def is_pointless(job: Any) -> bool:
    """Whether a failed job is a training whose next start lvis_rcnn/runs/attempts.py would refuse, or has refused."""
    from lvis_rcnn.runs.attempts import is_refusal, would_refuse
    from lvis_rcnn.runs.records import last_error

    if job.rule.name != "train":
        return False
    run = Path("results/state", job.wildcards.study, job.wildcards.row, f"seed{job.wildcards.seed}")
    starts = max(run.glob("*/attempts.jsonl"), key=lambda file: file.stat().st_mtime, default=None)
    error = last_error(Path(str(job.log[0])))
    return is_refusal(error) or (starts is not None and would_refuse(starts.parent))
