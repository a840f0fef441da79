rule train:
    """Train one row with one seed; an interrupted training goes on from its last checkpoint.

    Checkpoints are no outputs, since Snakemake deletes the outputs of a job that failed.
    """
    input:
        store="results/{study}/data/train.store",
        preflight=of_row(paths.preflight),
        repeat_factors=of_row(paths.repeat_factors),
        images=ancient(paths.images("train")),
    output:
        model="results/{study}/{row}/seed{seed}/model.pth",
        summary="results/{study}/{row}/seed{seed}/train.json",
        history="results/{study}/{row}/seed{seed}/log.json",
    log:
        "results/{study}/logs/train_{row}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_{row}_seed{seed}.tsv"
    # Other rows use the training of one of these, also where their own model.pth is asked for.
    wildcard_constraints:
        row="|".join(map(re.escape, study.rows_to_train)),
    priority: of_row(paths.priority)
    conda:
        ENVIRONMENT
    threads: of_row(training_cores)
    resources:
        **training_resources(),
    params:
        settings=settings_of_row("train"),
        digest=digest_of_row("train"),
        study=untracked(STUDY_FILE),
        images=untracked(paths.image_folder("train")),
        launcher=untracked(of_row(training_launcher)),
        folder=subpath(output.model, parent=True),
    message:
        "Training {wildcards.row} (seed {wildcards.seed}) on {wildcards.study}"
    shell:
        "exec {params.launcher} lvis_rcnn.train --study {params.study:q} --settings-digest {params.digest}"
        " --row {wildcards.row} --seed {wildcards.seed}"
        " --store {input.store} --images {params.images:q} --repeat-factors {input.repeat_factors}"
        " --state results/state --out {params.folder} --log {log}"
