"""What each job asks of the machine, from the study, the backbone and the site; SLURM gets it as options of sbatch.

The options are those of https://snakemake.github.io/snakemake-plugin-catalog/plugins/executor/slurm.html. On one machine
Snakemake starts no more jobs at once than there are cores and GPUs.
"""

sys.path.append(str(Path(workflow.basedir, "slurm")))

from lvis_rcnn.gpu_lease import gpus_of_this_machine
from site_settings import load_site
from submission import stand_between

site = load_site()

# Without a cluster (--jobs), jobs queue for the GPUs that exist, unless --resources gpu=… says otherwise.
if study.compute.device == "cuda" and workflow.is_main_process:
    here = workflow.global_resources
    if here["_nodes"].value is None and "gpu" not in here:
        workflow.register_resource("gpu", len(gpus_of_this_machine()))

# Reading LVIS takes 0.6 GB, scoring its validation images beside the lvis package itself about 7.
MEMORY_MB_WITHOUT_GPU = 12000


# An inference of 20,000 images, with what it lost to interruptions; it goes on from its last shard.
INFERENCE_MINUTES = 240


def inference_minutes() -> int:
    """Time limit of an inference: short ones start sooner."""
    return min(study.resources.runtime_minutes, INFERENCE_MINUTES)


def memory_without_gpu_mb(wildcards, attempt) -> int:
    """Memory of a step that trains and infers nothing; more for each attempt, since too little may have ended it."""
    return attempt * min(study.resources.memory_mb, MEMORY_MB_WITHOUT_GPU)


def of_one_gpu(ask) -> dict:
    """Resources of a job with one GPU of the kind that ``ask`` names; of one without where it asks for none."""
    if not ask.gpus:
        return {}
    model = {"gpu_model": ask.gpu_model} if ask.gpu_model else {}
    return {"gpu": 1, "nodes": 1, **site.of_gpu_jobs(), **model}


def of_training(ask) -> dict:
    """Resources of a training.

    One node: all GPUs, in one task, whose launcher starts a process for each; ``nodes`` keeps SLURM from giving them on
    two. Several nodes: a task a node, started by srun from the job itself, which is what the resource ``mpi`` is for.
    """
    found = of_one_gpu(ask)
    if ask.nodes == 1:
        return found | ({"gpu": ask.gpus} if ask.gpus else {})
    model = found.pop("gpu_model", None)
    found.pop("gpu")
    gres = ":".join(["gpu", *([model] if model else []), str(ask.gpus)])
    return found | {
        "nodes": ask.nodes,
        "gres": gres,
        "mpi": "srun",
        "tasks": ask.nodes,
        "tasks_per_gpu": -1,
    }


NAMES_OF_GPU_JOBS = (
    *("gpu", "gpu_model", "gres", "nodes", "mpi", "tasks", "tasks_per_gpu"),
    *("slurm_partition", "qos", "constraint"),
)


def training_resources() -> dict:
    """Resources of the rule that trains, as functions of its wildcards; None is no resource."""

    def named(name):
        return lambda wildcards: of_training(study.asked(wildcards.backbone)).get(name)

    def memory_mb(wildcards):
        ask = study.asked(wildcards.backbone)
        return ask.memory_mb * (ask.gpus or 1)

    def runtime(wildcards):
        return study.asked(wildcards.backbone).runtime_minutes

    return {name: named(name) for name in NAMES_OF_GPU_JOBS} | {
        "mem_mb": memory_mb,
        "runtime": runtime,
    }


def training_cores(wildcards) -> int:
    """CPU cores of a training, on each of its nodes."""
    ask = study.asked(wildcards.backbone)
    return ask.cpus_per_gpu * (ask.gpus or 1)


def inference_resources() -> dict:
    """Resources of the rule that infers, with one GPU where the study has any."""

    def named(name):
        return lambda wildcards: of_one_gpu(study.asked("")).get(name)

    return {name: named(name) for name in NAMES_OF_GPU_JOBS}


def training_launcher(wildcards, output) -> str:
    """Words that start the processes of a training, before ``-m lvis_rcnn.train``; untracked, since it changes nothing."""
    ask = study.asked(wildcards.backbone)
    torchrun = f'"$PYTHON" -m torch.distributed.run --nproc-per-node {ask.gpus}'
    if ask.nodes > 1:
        # The job's script runs on its first node, which the launchers of all nodes meet at; a job has its own port.
        return (
            f"srun --nodes={ask.nodes} --ntasks-per-node=1 --gpus-per-node={ask.gpus} --cpus-per-task="
            f"{training_cores(wildcards)} {torchrun} --nnodes {ask.nodes} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
            ' --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 10000))"'
        )
    if (ask.gpus or 1) > 1:
        return f"{leased(ask.gpus)}{torchrun} --standalone"
    return f'{leased(ask.gpus)}"$PYTHON"'


def inference_launcher(wildcards, output) -> str:
    """Words that start an inference; untracked, as those of a training."""
    return f'{leased(1 if study.asked("").gpus else 0)}"$PYTHON"'


def leased(gpus: int | None) -> str:
    """Words that give a job GPUs of its own; SLURM does that itself, and the lease then does nothing."""
    return f'"$PYTHON" -m lvis_rcnn.gpu_lease --gpus {gpus} -- ' if gpus else ""
