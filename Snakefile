"""Mask R-CNN with four backbones on LVIS, from annotations to results/table.md.

A study is one file of configs/; without --configfile it is configs/mini.yaml. Each rule calls one command of the
package lvis_rcnn, which reads files and writes files.
"""

from snakemake.utils import min_version

min_version("9.19")


# How the study is loaded, and the few functions that rules share.
include: "workflow/rules/common.smk"


# What the report opens with.
report: "workflow/report/workflow.rst"


study = load_the_study()
published = load_published()
lacking_dataset, lacking_models = load_lacking()


# What jobs ask of the machine, and what stands between Snakemake and SLURM.
include: "workflow/rules/jobs.smk"


# A run is a backbone with a seed, r50/seed0, or a published model, published/lvis_v0.5_r50: group/member.
wildcard_constraints:
    study=re.escape(study.study),
    backbone="|".join(study.backbones),
    seed="|".join(map(str, study.seeds)),
    group="|".join([*study.backbones, "published"]),
    member="|".join(
        [*(f"seed{seed}" for seed in study.seeds), *map(re.escape, published)]
    ),
    model="|".join(map(re.escape, published)),
    split="|".join(map(re.escape, ["train", "val", *study.dataset.splits])),


# A job finds the package under --directory, in conda environments (where PYTHONPATH is unset from outside) and in the
# processes that torchrun starts; its Python is the one Snakemake runs in, whatever PATH says, unless conda provides one.
shell.prefix(job_prefix())


include: "workflow/rules/download.smk"
include: "workflow/rules/data.smk"


if study.backbones:

    include: "workflow/rules/preflight.smk"
    include: "workflow/rules/sampling.smk"
    include: "workflow/rules/train.smk"
    include: "workflow/rules/measure.smk"


if published:

    include: "workflow/rules/published.smk"
    include: "workflow/rules/measure_published.smk"


include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


use_environment_of_the_site()
if on_a_cluster:
    say_resources()


rule all:
    input:
        runs=of_all_runs("metrics.json"),
        # Whatever is named here is made again when it is deleted; a model is not, which may have taken weeks.
        measured=measurements(),
        table="results/table.md",
        shown=what_people_see(),


# `snakemake r50`: that backbone alone, with all its seeds, up to its scores and its measurement.
for backbone in study.backbones:

    rule:
        name:
            backbone
        input:
            [
                made
                for made in of_trained_runs("metrics.json") + measurements()
                if f"/{backbone}/" in made
            ],
        localrule: True


onstart:
    stand_between(workflow, Path(STUDY_FILE))


onsuccess:
    say_what_was_made()


onerror:
    write_table_of_what_exists()
