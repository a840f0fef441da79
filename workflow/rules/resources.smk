"""What each job asks of the machine, from the study, the row and the site; SLURM gets it as options of sbatch.

The options are those of https://snakemake.github.io/snakemake-plugin-catalog/plugins/executor/slurm.html. On one machine
Snakemake starts no more jobs at once than there are cores and GPUs.
"""

import shlex

import submission
from lvis_rcnn.system.gpus import gpus_of_this_machine
from site_settings import load_site

site = load_site()
# Why Snakemake ends before its first job: what a plan finds, and what SLURM refuses.
refusals = []
on_a_cluster = snakemake_internals.runs_on_a_cluster(workflow)

# Without a cluster, jobs queue for the GPUs that exist.
if study.compute.device == "cuda" and not on_a_cluster:
    snakemake_internals.limit_gpus(workflow, lambda: len(gpus_of_this_machine()))


def lacking_gpus(jobs):
    """Why planned jobs cannot run on this machine: none where it has the GPUs that the study says they need.

    Snakemake itself would lower what a job asks for to what there is, and start it.
    """
    if study.compute.device != "cuda":
        return []
    asked = {"train": lambda job: paths.asked(job.wildcards.row).gpus or 1}
    asked |= dict.fromkeys(("infer", "measure", "track"), lambda job: 1)
    most = max(
        (asked[job.rule.name](job) for job in jobs if job.rule.name in asked), default=0
    )
    there = max(snakemake_internals.gpus(workflow), len(gpus_of_this_machine()))
    if most <= there:
        return []
    return [
        f"{STUDY_FILE}: compute.device: is cuda, and a job needs {most} GPU{'s' * (most > 1)}, of which this machine has "
        f"{there}; allowed: those that CUDA_VISIBLE_DEVICES or nvidia-smi -L names; fix: run it where there are GPUs, on "
        "SLURM (--profile slurm), or set compute.device: cpu; if there are some that are not seen: --resources gpu=N"
    ]


# Conda environment of all steps, with the torch that the GPU drivers of the site know.
ENVIRONMENT = str(
    Path(workflow.basedir, "envs", f"lvis_rcnn{'_cuda12' * (site.cuda == 12)}.yaml")
)
# Threads of a job beside which no other runs on this machine; on a cluster its node is asked for exclusively.
ALL_CORES = snakemake_internals.cores(workflow) or study.compute.threads
# Reading LVIS takes 0.6 GB, scoring its validation images beside the lvis package itself about 7.
MEMORY_MB_WITHOUT_GPU = 12000
# An inference of 20,000 images, with what it lost to interruptions; it goes on from its last shard. Short jobs start
# sooner.
INFERENCE_MINUTES = min(study.resources.runtime_minutes, 240)


def job_prefix():
    """What the shell of every job begins with; braces are doubled for Snakemake's formatting.

    A job finds the package under --directory, in conda environments (where PYTHONPATH is unset from outside) and in the
    processes that torchrun starts; its Python is the one Snakemake runs in, whatever PATH says, unless conda has one.
    """
    by_conda = snakemake_internals.uses_conda(workflow)
    variables = {
        "PYTHON": "python" if by_conda else shlex.quote(sys.executable),
        "PYTHONPATH": shlex.quote(str(workflow.basedir))
        + "${{PYTHONPATH:+:$PYTHONPATH}}",
        # Threads of torch that spin while they wait take the core of the one they wait for: beside one other busy
        # process, training on two cores took four times as long.
        "OMP_WAIT_POLICY": "${{OMP_WAIT_POLICY:-passive}}",
    }
    return f"set -euo pipefail; export {' '.join(f'{name}={value}' for name, value in variables.items())}; "


def memory_without_gpu_mb(wildcards, attempt):
    """Memory of a step that trains and infers nothing; more for each attempt, since too little may have ended it."""
    return attempt * min(study.resources.memory_mb, MEMORY_MB_WITHOUT_GPU)


def of_one_gpu(ask):
    """Resources of a job with one GPU of the kind that ``ask`` names; none where it asks for no GPU."""
    model = {"gpu_model": ask.gpu_model} if ask.gpu_model else {}
    return {"gpu": 1, "nodes": 1, **site.of_gpu_jobs(), **model} if ask.gpus else {}


def of_training(ask):
    """Resources of a training.

    One node: all GPUs, in one task, whose launcher starts a process for each; ``nodes`` keeps SLURM from giving them on
    two. Several nodes: a task a node, started by srun from the job itself, which is what the resource ``mpi`` is for.
    """
    found = of_one_gpu(ask)
    if ask.nodes == 1:
        return found | ({"gpu": ask.gpus} if ask.gpus else {})
    del found["gpu"]
    model = found.pop("gpu_model", None)
    gres = ":".join(["gpu", *([model] if model else []), str(ask.gpus)])
    of_tasks = {"mpi": "srun", "tasks": ask.nodes, "tasks_per_gpu": -1}
    return found | of_tasks | {"nodes": ask.nodes, "gres": gres}


def training_resources():
    """Resources of the rule that trains, as functions of the row; None is no resource."""

    def named(name):
        return of_row(lambda row: of_training(paths.asked(row)).get(name))

    names = ("gpu", "gpu_model", "gres", "nodes", "mpi", "tasks", "tasks_per_gpu")
    names += ("slurm_partition", "qos", "constraint")
    return {name: named(name) for name in names} | {
        "cpus_per_task": of_row(training_cores),
        "mem_mb": of_row(
            lambda row: paths.asked(row).memory_mb * (paths.asked(row).gpus or 1)
        ),
        "runtime": of_row(lambda row: paths.asked(row).runtime_minutes),
    }


def training_cores(row):
    """CPU cores of a training, on each of its nodes."""
    return paths.asked(row).cpus_per_gpu * (paths.asked(row).gpus or 1)


def inference_resources():
    """Resources of a rule that infers, with one GPU where the study has any."""
    return of_one_gpu(study.asked("")) | {
        "cpus_per_task": study.asked("").cpus_per_gpu,
        "mem_mb": study.resources.memory_mb,
    }


def training_launcher(row):
    """Words that start the processes of a training, before the name of its module."""
    ask = paths.asked(row)
    # After `--`, since torchrun takes the trainer's --log for one of its own that begin so.
    torchrun = f'"$PYTHON" -m torch.distributed.run --nproc-per-node {ask.gpus}'
    if ask.nodes > 1:
        # The job's script runs on its first node, which the launchers of all nodes meet at; a job has its own port.
        return (
            f"srun --nodes={ask.nodes} --ntasks-per-node=1 --gpus-per-node={ask.gpus} --cpus-per-task="
            f"{training_cores(row)} {torchrun} --nnodes {ask.nodes} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
            ' --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 10000))" -m --'
        )
    if (ask.gpus or 1) > 1:
        # Outside SLURM, whose jobs have their GPUs already, system.gpus reserves some; the trainer itself reserves one.
        return f'"$PYTHON" -m lvis_rcnn.system.gpus --gpus {ask.gpus} -- {torchrun} --standalone -m --'
    return '"$PYTHON" -m'
