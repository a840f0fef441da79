"""What each job asks of the machine, from the study, the backbone and the site; SLURM gets it as options of sbatch.

The options are those of https://snakemake.github.io/snakemake-plugin-catalog/plugins/executor/slurm.html. On one machine
Snakemake starts no more jobs at once than there are cores and GPUs.
"""

sys.path.append(str(Path(workflow.basedir, "slurm")))

from lvis_rcnn.gpu_lease import gpus_of_this_machine
from site_settings import load_site
from submission import stand_between

site = load_site()

# Snakemake knows it by --jobs, which a profile for a cluster gives.
on_a_cluster = workflow.global_resources["_nodes"].value is not None

# Without a cluster, jobs queue for the GPUs that exist, unless --resources gpu=… says otherwise.
if study.compute.device == "cuda" and workflow.is_main_process and not on_a_cluster:
    if "gpu" not in workflow.global_resources:
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
        return {"all_gpus": 0}
    model = {"gpu_model": ask.gpu_model} if ask.gpu_model else {}
    return {"gpu": 1, "all_gpus": 1, "nodes": 1, **site.of_gpu_jobs(), **model}


def of_training(ask) -> dict:
    """Resources of a training.

    One node: all GPUs, in one task, whose launcher starts a process for each; ``nodes`` keeps SLURM from giving them on
    two. Several nodes: a task a node, started by srun from the job itself, which is what the resource ``mpi`` is for.
    """
    found = of_one_gpu(ask)
    if ask.nodes == 1:
        return found | ({"gpu": ask.gpus, "all_gpus": ask.gpus} if ask.gpus else {})
    model = found.pop("gpu_model", None)
    found.pop("gpu")
    gres = ":".join(["gpu", *([model] if model else []), str(ask.gpus)])
    return found | {
        "nodes": ask.nodes,
        "all_gpus": ask.nodes * ask.gpus,
        "gres": gres,
        "mpi": "srun",
        "tasks": ask.nodes,
        "tasks_per_gpu": -1,
    }


NAMES_OF_GPU_JOBS = (
    *("all_gpus", "gpu", "gpu_model", "gres", "nodes", "mpi", "tasks", "tasks_per_gpu"),
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
        "cpus_per_task": training_cores,
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

    return {name: named(name) for name in NAMES_OF_GPU_JOBS} | {
        "cpus_per_task": study.asked("").cpus_per_gpu
    }


def training_launcher(wildcards, output) -> str:
    """Words that start the processes of a training, before ``lvis_rcnn.train``; untracked, since it changes nothing."""
    ask = study.asked(wildcards.backbone)
    # After `--`, since torchrun takes the trainer's --log for one of its own that begin so.
    torchrun = f'"$PYTHON" -m torch.distributed.run --nproc-per-node {ask.gpus}'
    if ask.nodes > 1:
        # The job's script runs on its first node, which the launchers of all nodes meet at; a job has its own port.
        return (
            f"srun --nodes={ask.nodes} --ntasks-per-node=1 --gpus-per-node={ask.gpus} --cpus-per-task="
            f"{training_cores(wildcards)} {torchrun} --nnodes {ask.nodes} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
            ' --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 10000))" -m --'
        )
    if (ask.gpus or 1) > 1:
        # Outside SLURM, whose jobs have their GPUs already, the lease gives some; one GPU is leased by the trainer itself.
        return f'"$PYTHON" -m lvis_rcnn.system.gpus --gpus {ask.gpus} -- {torchrun} --standalone -m --'
    return '"$PYTHON" -m'


def say_resources() -> None:
    """Let the message of each job end with what it asks for; ``all_gpus`` is there for this alone."""
    for one in workflow.rules:
        if one.message and one.name not in workflow._localrules:
            # A dry run counts the threads of this machine.
            processors = "{resources.all_gpus} GPUs, {resources.cpus_per_task} CPUs"
            if "all_gpus" not in one.resources:
                processors = "{threads} CPU"
            one.message += (
                f" [{processors}, {{resources.mem_mb}} MB, {{resources.runtime}} min]"
            )


def use_environment_of_the_site() -> None:
    """Conda environments with the torch that the site's GPU drivers know."""
    for one in workflow.rules:
        if site.cuda == 12 and one.conda_env:
            one.conda_env = str(one.conda_env).replace(
                "lvis_rcnn.yaml", "lvis_rcnn_cuda12.yaml"
            )
