"""Every private or undocumented interface of Snakemake and its SLURM executor that this workflow uses, each once.

A release of either may break one: tests/workflow/test_snakemake_internals.py has a test of each, which then fails
alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake.common.configfile import load_configfile
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.enums import Quietness


def study_files(workflow: Any) -> list[Path]:
    """Files of ``--configfile``, on the command line or in a profile."""
    return [Path(file) for file in workflow.overwrite_configfiles or []]


def read_by_snakemake(study_file: Path) -> dict[str, Any]:
    """The keys of a file of ``--configfile``: of JSON, where 1e-05 is a number, or of YAML 1.1, where it is text."""
    return load_configfile(study_file)


def runs_on_a_cluster(workflow: Any) -> bool:
    """Whether ``--jobs`` limits the jobs at a time, as a profile for a cluster does; otherwise ``--cores`` does."""
    return workflow.global_resources["_nodes"].value is not None


def limit_gpus(workflow: Any, count: Callable[[], int]) -> None:
    """Let jobs queue for ``count()`` GPUs, where ``--resources gpu=…`` says nothing and this process schedules jobs."""
    if workflow.is_main_process and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", count())


def cores(workflow: Any) -> int | None:
    """Cores that ``--cores`` allows; None where nothing says it, as on a cluster, where ``workflow.cores`` raises."""
    return workflow.resource_settings.cores


def uses_conda(workflow: Any) -> bool:
    """Whether jobs run in the environments of their ``conda:`` directives."""
    return "conda" in {str(method) for method in workflow.deployment_settings.deployment_method}


def executor(workflow: Any) -> str:
    """Name of the executor, known once jobs are about to start."""
    return workflow.executor_plugin.name


def gpus(workflow: Any) -> int:
    """GPUs that jobs queue for, as :func:`limit_gpus` or ``--resources gpu=…`` says."""
    return int(workflow.global_resources["gpu"].value)


def say_progress(line: str) -> None:
    """Print a line, but not where ``--quiet`` or ``--quiet progress`` silences Snakemake's own progress."""
    logger.info(line, extra={"quietness": Quietness.PROGRESS})


def planned_jobs(workflow: Any) -> list[Job]:
    """Jobs that are about to run."""
    return list(workflow.dag.needrun_jobs())


def jobs_to_submit(workflow: Any) -> list[Job]:
    """Those of them that run elsewhere than here."""
    return [job for job in planned_jobs(workflow) if not job.is_local]


def sbatch_command(job: Job, workdir: str | None = None) -> str:
    """The command that the SLURM executor submits ``job`` with, for a shell, without what the job runs.

    ``slurm/bin/sbatch`` reads its ``--job-name``, ``--comment`` and ``-D`` (``workdir``), each a word before its value.
    """
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    account, partition = job.resources.get("slurm_account"), job.resources.get("slurm_partition")
    words = {
        "run_uuid": "test",
        "slurm_logfile": "/dev/null",
        "comment_str": "test",
        "account": f"-A '{account}'" if account else "",
        "partition": f"-p '{partition}'" if partition else "",
        "workdir": workdir,
    }
    return f"{get_submit_command(job, words)}{set_gres_string(job)}"


def never_retry(is_pointless: Callable[[Job], bool]) -> None:
    """Submit a failed job again only where ``is_pointless(job)`` is false, whatever number of retries is left."""
    usual = Job.restart_times.fget
    Job.restart_times = property(lambda job: 0 if is_pointless(job) else usual(job))


def untracked(value: Any) -> Callable[[Any, Any], Any]:
    """A parameter whose change reruns nothing: ``value``, or what it returns for the wildcards of a job.

    Snakemake compares no parameter whose function takes ``output``.
    """

    def parameter(wildcards: Any, output: Any) -> Any:
        return value(wildcards) if callable(value) else value

    return parameter
