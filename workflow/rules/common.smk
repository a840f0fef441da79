"""How the study is loaded, and what several rules ask of it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.common.configfile import load_configfile

sys.path.insert(0, workflow.basedir)

from lvis_rcnn.backbones import BACKBONES
from lvis_rcnn.command import InputError
from lvis_rcnn.config import (
    Study,
    load_study,
    settings_digest,
    settings_of_step,
    zoo_of,
)
from lvis_rcnn.published import SCORED_KINDS, scored_models
from lvis_rcnn.sources import (
    DEFAULT_SOURCES,
    lacking_files,
    lacking_weights,
    load_sources,
)

DEFAULT_STUDY = Path(workflow.basedir, "configs", "mini.yaml")
# Category and title of each plot in the report, which sorts neither: Results come first since they are written first.
PLOTS = {
    "ap_by_group": ("2 Plots", "AP of rare, common and frequent categories"),
    "ap_and_images": ("2 Plots", "AP of each category against its training images"),
    "ap_and_cost": ("2 Plots", "AP against inference time and memory"),
    "precision_recall_box": ("2 Plots", "precision and recall of boxes"),
    "precision_recall_mask": ("2 Plots", "precision and recall of masks"),
    "training_curves": ("4 Training", "loss, gradient norm, learning rate, speed"),
    "training_losses": ("4 Training", "parts of the loss"),
    "repeat_factors": ("5 Data", "repeat factors of categories"),
}
# The same of the pictures of a run.
PICTURES = {
    "chosen": "images with most rare objects, annotated and found",
    "random": "random images, annotated and found",
    "missed_rare": "missed objects of rare categories",
    "missed_common": "missed objects of common categories",
    "missed_frequent": "missed objects of frequent categories",
}
# The same of the pages of a study.
PAGES = {
    "table": ("1 Results", "the results table"),
    "per_category": ("1 Results", "AP of each category"),
    "preflight": ("5 Data", "preflight"),
    "provenance": ("6 Provenance and cost", "what the numbers were made with"),
    "cost": ("6 Provenance and cost", "time and memory of trainings and jobs"),
}
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
            "error: --configfile: more than one file; allowed: one study; fix: name one of them"
        )
    try:
        loaded = load_study(STUDY_FILE)
    except InputError as error:
        sys.exit(f"error: {error}")
    if config != load_configfile(STUDY_FILE):
        sys.exit(
            f"error: --config: would change the study of {STUDY_FILE}; allowed: what the file says, since each step "
            "reads the file; fix: copy the file, change the copy and give it to --configfile"
        )
    return loaded


def load_published() -> dict:
    """The published models of the study, checked as the study itself is."""
    try:
        return scored_models(study, Path(STUDY_FILE))
    except InputError as error:
        sys.exit(f"error: {error}")


def load_lacking() -> tuple[dict, dict]:
    """Files of the dataset, and published weights, that the study needs, that can be fetched and that are not at hand.

    A file that is at hand has no rule: Snakemake would delete it before it runs the rule again.
    """
    try:
        return (
            lacking_files(study, load_sources()),
            lacking_weights(study, Path(STUDY_FILE)),
        )
    except InputError as error:
        sys.exit(f"error: {error}")


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


def all_cores() -> int:
    """Threads of a job beside which no other runs on this machine; on a cluster its node is asked for exclusively."""
    return workflow.resource_settings.cores or study.compute.threads


def model_of_first_seed(wildcards) -> str:
    """The model that stands for its row."""
    return (
        f"results/{wildcards.study}/{wildcards.backbone}/seed{study.seeds[0]}/model.pth"
    )


def heavier_first(wildcards) -> int:
    """Priority of a training: what takes longest begins first, so that runs side by side end about together."""
    return 1 + list(BACKBONES).index(wildcards.backbone)


def drawn_folder() -> str:
    """Folder of the drawn dataset; studies that draw the same one share it."""
    draw = study.dataset.draw
    return f"results/data/drawn_seed{draw.seed}_{draw.train_images}_{draw.val_images}"


def annotation_file(split: str) -> str:
    """LVIS-format JSON of a split."""
    named = study.dataset.named(split)
    return named.annotations if named else f"{drawn_folder()}/{split}.json"


def image_folder(split: str) -> str:
    """Folder that the image names of a split are relative to."""
    named = study.dataset.named(split)
    return named.images if named else f"{drawn_folder()}/images"


def if_made_or_present(path: str) -> list[str]:
    """``path`` as an input where a rule makes it or it exists; the step itself says best what is missing."""
    is_drawn = study.dataset.draw and Path(path).is_relative_to(drawn_folder())
    made = is_drawn or path in lacking_dataset
    return [path] if made or Path(path).exists() else []


def annotation_source(wildcards) -> list[str]:
    """What a store is made from; the small manifest stands for drawn files, so that equal ones rebuild nothing."""
    file = annotation_file(wildcards.split)
    if study.dataset.named(wildcards.split):
        return if_made_or_present(file)
    return [f"{drawn_folder()}/manifest.json", ancient(file)]


def annotations_of_split(wildcards, output) -> str:
    """:func:`annotation_file` for a rule with the wildcard ``split``; untracked."""
    return annotation_file(wildcards.split)


def sampling_options() -> str:
    """The sampling settings as options; no threshold leaves every image at one copy."""
    sampling = study.sampling
    threshold = sampling.oversample_threshold
    given = "" if threshold is None else f"--threshold {threshold} "
    return f"{given}--rounding {sampling.rounding} --exponent {sampling.exponent}"


def split_of_model(model: str) -> str:
    """The validation split that a published model is scored on."""
    return {row.model: row.split for row in study.published}[model]


def store_of_model(wildcards) -> str:
    """Annotation store of the split that a published model is scored on."""
    return f"results/{study.study}/data/{split_of_model(wildcards.model)}.store"


def images_of_model(wildcards) -> list[str]:
    """Images of the split that a published model is scored on, as an input: newer ones measure nothing again."""
    return ancient(if_made_or_present(image_folder(split_of_model(wildcards.model))))


def image_folder_of_model(wildcards, output) -> str:
    """:func:`images_of_model` as a parameter; untracked."""
    return image_folder(split_of_model(wildcards.model))


def published_file(model: str) -> str:
    """Where the file of a published model lies, or will lie when it is fetched."""
    return f"{study.resources.weights_dir}/{published[model].file_name}"


def published_file_of_model(wildcards) -> str:
    """:func:`published_file` for a rule with the wildcard ``model``."""
    return published_file(wildcards.model)


def backbone_of_model(wildcards) -> str:
    """Backbone of a published model, for a rule with the wildcard ``model``."""
    return published[wildcards.model].backbone


def numbered(name: str, path: str) -> str:
    """Name of the job that fetches the row ``name`` to ``path``, with a number where a study wants it in two places."""
    paths = [other for other, row in lacking_dataset.items() if row.name == name]
    return f"fetch_{name}" + (f"_{paths.index(path)}" if paths.index(path) else "")


def weights_to_fetch() -> dict[str, str]:
    """Model of the zoo of each published file that is not at hand, by the file's name."""
    return {model.file_name: model.name for model in lacking_models.values()}


def model_of_file(wildcards, output) -> str:
    """Model of the zoo whose file is ``wildcards.file``; untracked, since the file names it."""
    return weights_to_fetch()[wildcards.file]


def split_of_run(wildcards) -> str:
    """The validation split that a run is scored on."""
    return split_of_model(wildcards.member) if wildcards.group == "published" else "val"


def store_of_run(wildcards) -> str:
    """Annotation store of the split that a run is scored on."""
    return f"results/{study.study}/data/{split_of_run(wildcards)}.store"


def images_of_run(wildcards) -> list[str]:
    """Images of that split, as an input: newer ones detect nothing again."""
    return ancient(if_made_or_present(image_folder(split_of_run(wildcards))))


def annotations_of_run(wildcards) -> list[str]:
    """Annotations of that split, as an input: the store says whether they are new."""
    return ancient(if_made_or_present(annotation_file(split_of_run(wildcards))))


def backbone_of_run(wildcards, output) -> str:
    """Backbone of a run; untracked, since its folder says it."""
    if wildcards.group == "published":
        return published[wildcards.member].backbone
    return wildcards.group


def image_folder_of_run(wildcards, output) -> str:
    """:func:`images_of_run` as a parameter; untracked."""
    return image_folder(split_of_run(wildcards))


def annotation_file_of_run(wildcards, output) -> str:
    """:func:`annotations_of_run` as a parameter; untracked."""
    return annotation_file(split_of_run(wildcards))


def of_trained_runs(name: str) -> list[str]:
    """The file ``name`` of every backbone and seed."""
    return collect(
        "results/{study}/{backbone}/seed{seed}/{name}",
        study=study.study,
        backbone=study.backbones,
        seed=study.seeds,
        name=name,
    )


def of_published_runs(name: str) -> list[str]:
    """The file ``name`` of every published model."""
    return collect(
        "results/{study}/published/{model}/{name}",
        study=study.study,
        model=published,
        name=name,
    )


def zoo_compared_with() -> list[str]:
    """The published numbers, where rows have any to be compared with."""
    has_any = published or study.dataset.name in SCORED_KINDS
    return [str(zoo_of(study, Path(STUDY_FILE)))] if has_any else []


def measurements() -> list[str]:
    """measure.json of every row."""
    of_trained = collect(
        "results/{study}/{backbone}/measure.json",
        study=study.study,
        backbone=study.backbones,
    )
    return of_trained + of_published_runs("measure.json")


def of_all_runs(name: str) -> list[str]:
    """The file ``name`` of every run that is scored."""
    return of_trained_runs(name) + of_published_runs(name)


def shown(path: str, caption: str, category: str, **labels: str):
    """A file that the report shows; its caption is workflow/report/CAPTION.rst."""
    caption = f"../report/{caption}.rst"
    return report(path, caption=caption, category=category, labels=labels)


def plots_shown() -> list:
    """The plots of a study, as the report shows them."""
    return [
        shown(f"results/{study.study}/plots/{name}.png", name, category, shows=title)
        for name, (category, title) in PLOTS.items()
    ]


def pages_shown() -> list:
    """The pages of a study, as the report shows them."""
    return [
        shown(f"results/{study.study}/{name}.html", name, category, shows=title)
        for name, (category, title) in PAGES.items()
    ]


def pictures_shown() -> list:
    """The pictures of a run, as the report shows them."""
    folder, run = "results/{study}/{group}/{member}/pictures", "{group}/{member}"
    return [
        shown(
            f"{folder}/{name}.png",
            name.split("_")[0],
            "3 Pictures",
            run=run,
            shows=title,
        )
        for name, title in PICTURES.items()
    ]


def runs_with_pictures() -> list[str]:
    """The first seed of each backbone, and every published model."""
    first = [f"{backbone}/seed{study.seeds[0]}" for backbone in study.backbones]
    return [*first, *(f"published/{model}" for model in published)]


def what_people_see() -> list[str]:
    """One output of each rule that makes plots, pictures and pages."""
    folder = f"results/{study.study}"
    pictures = collect(
        "{folder}/{run}/pictures/chosen.png", folder=folder, run=runs_with_pictures()
    )
    batch = [f"{folder}/training_batch.png"] if study.backbones else []
    plots = f"{folder}/plots/ap_by_group.png"
    compared = (
        [f"{folder}/comparison/comparison.txt"] if study.report.compare_with else []
    )
    return [f"{folder}/table.html", plots, *pictures, *batch, *compared]


def say_what_was_made() -> None:
    """After a run that wrote the table: where it lies, and what people see that was planned with it.

    What was planned is up to date now; what was not planned may be older than the table, so nothing is said of it.
    """
    dag = workflow.dag
    if workflow.touch or "table" not in {job.rule.name for job in dag.finished_jobs}:
        return
    logger.info("The table: results/table.md")
    up_to_date = set(dag.jobs) - set(dag.needrun_jobs())
    for name in ("plots", "pages", "pictures"):
        made = [job.output[0] for job in up_to_date if job.rule.name == name]
        if made:
            logger.info(f"The {name}: {place_of(name, made)}")
    for job in up_to_date:
        if job.rule.name == "compare":
            logger.info(f"The comparison: {job.output.text}")


def place_of(name: str, made: list[str]) -> str:
    """Where the outputs of all jobs of a rule lie, in one word for a shell."""
    folders = sorted({str(Path(path).parent) for path in made})
    if name == "pages":
        return f"{folders[0]}/*.html"
    return folders[0] if len(folders) == 1 else f"results/{study.study}/*/*/pictures"


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
