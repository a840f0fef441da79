"""Mask R-CNN with four backbones on LVIS, from annotations to a results table.

A study is one file of configs/; without --configfile it is configs/mini.yaml. Each rule calls one command of the
package lvis_rcnn, which reads files and writes files. `rule all` writes below results/<study>/ only, so that studies can
run side by side.
"""

import signal

from snakemake.utils import min_version

min_version("9.19")


# What rules share: the study, checked; names of files; what a job asks of the machine.
include: "workflow/rules/study.smk"
include: "workflow/rules/paths.smk"
include: "workflow/rules/resources.smk"


# What the report opens with.
report: "workflow/report/workflow.rst"


# A run is a row with a seed, r50/seed0, or a published model, published/lvis_v0.5_r50: group/member.
wildcard_constraints:
    study=re.escape(study.study),
    row="|".join(map(re.escape, paths.rows)),
    sampled=f"(?:{'|'.join(map(re.escape, paths.samplings))})",
    seed="|".join(map(str, study.seeds)),
    group="|".join([*map(re.escape, paths.trained_rows), "published"]),
    member="|".join(
        [*(f"seed{seed}" for seed in study.seeds), *map(re.escape, paths.published)]
    ),
    model="|".join(map(re.escape, paths.published)),
    split="|".join(map(re.escape, ["train", "val", *study.dataset.splits])),


shell.prefix(job_prefix())


include: "workflow/rules/draw.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/store.smk"


if paths.trained_rows:

    include: "workflow/rules/preflight.smk"
    include: "workflow/rules/repeat_factors.smk"
    include: "workflow/rules/train.smk"


if paths.so_far:

    include: "workflow/rules/track.smk"


if paths.calibration:

    include: "workflow/rules/calibrate.smk"


if paths.published:

    include: "workflow/rules/weights.smk"


include: "workflow/rules/infer.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


if study.report.compare_with:

    include: "workflow/rules/compare.smk"


rule all:
    input:
        runs=paths.of_runs("metrics.json"),
        # Whatever is named here is made again when it is deleted; a model is not, which may have taken weeks.
        measured=paths.of_rows("measure.json"),
        so_far=paths.so_far,
        table=[*map(str, rules.table.output)],
        pages=[*map(str, rules.pages.output)],
        plots=[*map(str, rules.plots.output)],
        pictures=paths.pictures(PICTURES),
        batch=[f"{paths.folder}/training_batch.png"] if paths.trained_rows else [],
        compared=[*map(str, rules.compare.output)] if study.report.compare_with else [],


# `snakemake r50`: that row alone, with all its seeds, up to its scores and its measurement.
for row in paths.trained_rows:

    rule:
        name:
            row
        input:
            paths.results_of(row),
        localrule: True


onstart:
    planned = snakemake_internals.planned_jobs(workflow)
    if snakemake_internals.executor(workflow) == "slurm":
        refusals.extend(submission.prepare(workflow, study))
    elif not on_a_cluster:
        refusals.extend(lacking_gpus(planned))
    if refusals:
        sys.exit("\n".join(f"error: {refusal}" for refusal in refusals))
    # A terminal that closes ends Snakemake as Ctrl-C does, without leaving its lock; under nohup it goes on.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # Imported here, since each job's process of Snakemake reads this file, and only the main one needs it.
    from progress_lines import start_telling

    files = {str(file) for job in planned for file in job.output}
    # Trainings on this machine show a bar on a terminal.
    shows_bars = sys.stderr.isatty() and not on_a_cluster
    start_telling(
        paths, files, snakemake_internals.say_progress, shows_bars=shows_bars
    )


onsuccess:
    from progress_lines import writing_table

    with writing_table:
        for left in Path(paths.folder).glob("partial_table.*"):
            left.unlink()
    found = paths.results_to_look_at()
    if found:
        of_study = f" --configfile {STUDY_FILE}" * bool(named_files)
        whole = f"snakemake --report report.html{of_study}"
        found.append(("report, all in one file, is made by", whole))
    for name, place in found:
        logger.info(f"The {name}: {place}")


# The rows there are, and why each other one is missing; quiet, since the error matters more.
onerror:
    from progress_lines import table_so_far

    done = table_so_far(paths)
    where = f"The table of what exists: {paths.folder}/partial_table.md"
    logger.info(done.stderr if done.returncode else where)
