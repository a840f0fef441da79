"""How the study is loaded, and what several rules ask of it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.common.configfile import load_configfile

sys.path.insert(0, workflow.basedir)

from lvis_rcnn.command import InputError
from lvis_rcnn.config import Study, load_study, settings_digest, settings_of_step

DEFAULT_STUDY = Path(workflow.basedir, "configs", "mini.yaml")
# A job that is its own process (run: directives, SLURM) is given the same --configfile again.
STUDY_FILE = (workflow.overwrite_configfiles or [DEFAULT_STUDY])[0]

# The default is loaded only when no study is given: Snakemake would merge the given one over it, key by key.
if not workflow.overwrite_configfiles:

    configfile: STUDY_FILE


# envs/*.post-deploy.sh is run from a copy in .snakemake and finds the lock file through this.
os.environ.update(LVIS_RCNN_HOME=str(workflow.basedir))


def load_the_study() -> Study:
    """The one study of this run, checked; its first error ends Snakemake before any job, in one line."""
    if len(workflow.overwrite_configfiles) > 1:
        sys.exit(
            "error: --configfile: more than one file; allowed: one study; to mend: name one of them"
        )
    try:
        loaded = load_study(STUDY_FILE)
    except InputError as error:
        sys.exit(f"error: {error}")
    if config != load_configfile(STUDY_FILE):
        sys.exit(
            f"error: --config: would change the study of {STUDY_FILE}; allowed: what the file says, since each step "
            "reads the file; to mend: copy the file, change the copy and give it to --configfile"
        )
    return loaded


def job_prefix() -> str:
    """What the shell of every job begins with; braces are doubled for Snakemake's formatting."""
    by_conda = "conda" in {
        str(method) for method in workflow.deployment_settings.deployment_method
    }
    variables = {
        "PYTHON": "python" if by_conda else shlex.quote(sys.executable),
        "PYTHONPATH": shlex.quote(str(workflow.basedir))
        + "${{PYTHONPATH:+:$PYTHONPATH}}",
        # Threads of torch that spin while they wait take the core of the one they wait for: beside one other busy
        # process, training on two cores took four times as long.
        "OMP_WAIT_POLICY": "${{OMP_WAIT_POLICY:-passive}}",
    }
    return f"set -euo pipefail; export {' '.join(f'{name}={value}' for name, value in variables.items())}; "


def untracked(value):
    """A parameter whose change reruns nothing: Snakemake does not compare functions that take ``output``."""

    def parameter(wildcards, output):
        return value

    return parameter


def settings(step: str) -> dict:
    """What reruns ``step``: the sections of the study that it uses."""
    return settings_of_step(study, step)


def digest(step: str) -> str:
    """With it a step refuses a study file that changed after the jobs were planned."""
    return settings_digest(study, step)


def gpus() -> int:
    """GPUs of a training or inference job."""
    return 1 if study.compute.device == "cuda" else 0


def earlier_rows_first(wildcards) -> int:
    """Priority of a training: on one machine the rows of the table appear in their order."""
    return len(study.backbones) - study.backbones.index(wildcards.backbone)


def drawn_folder() -> str:
    """Folder of the drawn dataset; studies that draw the same one share it."""
    draw = study.dataset.draw
    return f"results/data/drawn_seed{draw.seed}_{draw.train_images}_{draw.val_images}"


def annotation_file(split: str) -> str:
    """LVIS-format JSON of a split."""
    return (
        f"{drawn_folder()}/{split}.json"
        if study.dataset.draw
        else getattr(study.dataset, split).annotations
    )


def image_folder(split: str) -> str:
    """Folder that the image names of a split are relative to."""
    return (
        f"{drawn_folder()}/images"
        if study.dataset.draw
        else getattr(study.dataset, split).images
    )


def if_made_or_present(path: str) -> list[str]:
    """``path`` as an input where a rule makes it or it exists; the step itself says best what is missing."""
    return [path] if study.dataset.draw or Path(path).exists() else []


def annotation_source(wildcards) -> list[str]:
    """What a store is made from; the small manifest stands for drawn files, so that equal ones rebuild nothing."""
    if study.dataset.draw:
        return [
            f"{drawn_folder()}/manifest.json",
            ancient(annotation_file(wildcards.split)),
        ]
    return if_made_or_present(annotation_file(wildcards.split))


def annotations_of_split(wildcards, output) -> str:
    """:func:`annotation_file` for a rule with the wildcard ``split``; untracked."""
    return annotation_file(wildcards.split)


def threshold_option() -> str:
    """The oversampling threshold as an option; none leaves every image at one copy."""
    threshold = study.sampling.oversample_threshold
    return "" if threshold is None else f"--threshold {threshold}"


def of_all_runs(name: str) -> list[str]:
    """The file ``name`` of every backbone and seed."""
    return collect(
        "results/{study}/{backbone}/seed{seed}/{name}",
        study=study.study,
        backbone=study.backbones,
        seed=study.seeds,
        name=name,
    )


def say_where_the_table_is() -> None:
    """The last line of a study that ended well."""
    if Path("results/table.md").exists():
        logger.info("The table: results/table.md")


def write_table_of_what_exists() -> None:
    """After a failure: the rows there are, and for each other one why it is missing; quiet, the error matters more."""
    words = ["--study", STUDY_FILE, "--results", "results", "--out", "results/table.md"]
    done = subprocess.run(
        [sys.executable, "-m", "lvis_rcnn.report", "table", *words],
        env={**os.environ, "PYTHONPATH": str(workflow.basedir)},
        capture_output=True,
        text=True,
        check=False,
    )
    for table in Path("results").glob("table.*"):
        os.utime(
            table, (0, 0)
        )  # older than any result: no study may take this partial table for its finished one
    logger.info(
        done.stderr if done.returncode else "The table of what exists: results/table.md"
    )
