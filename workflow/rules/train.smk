rule train:
    """Train one row with one seed; an interrupted training goes on from its last checkpoint.

    Checkpoints are no outputs, since Snakemake deletes the outputs of a job that failed.
    """
    input:
        store="results/{study}/data/train.store",
        preflight="results/{study}/preflight.json",
        repeat_factors="results/{study}/repeat_factors",
        images=ancient(paths.images("train")),
    output:
        model="results/{study}/{row}/seed{seed}/model.pth",
        summary="results/{study}/{row}/seed{seed}/train.json",
        history="results/{study}/{row}/seed{seed}/log.json",
    log:
        "results/{study}/logs/train_{row}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_{row}_seed{seed}.tsv"
    priority: of_row(paths.priority)
    conda:
        ENVIRONMENT
    threads: of_row(training_cores)
    resources:
        **training_resources(),
    params:
        settings=settings("train"),
        digest=digest("train"),
        study=untracked(STUDY_FILE),
        images=untracked(paths.image_folder("train")),
        backbone=untracked(of_row(paths.backbone_of)),
        launcher=untracked(of_row(training_launcher)),
        folder=subpath(output.model, parent=True),
    message:
        "Training {wildcards.row} (seed {wildcards.seed}) on {wildcards.study}"
    shell:
        "exec {params.launcher} lvis_rcnn.train --study {params.study:q} --settings-digest {params.digest}"
        " --backbone {params.backbone} --seed {wildcards.seed}"
        " --store {input.store} --images {params.images:q} --repeat-factors {input.repeat_factors}"
        " --state results/state --out {params.folder} --log {log}"
