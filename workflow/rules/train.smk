rule train:
    """Train one backbone with one seed; an interrupted training goes on from its last checkpoint.

    Checkpoints are no outputs, since Snakemake deletes the outputs of a job that failed.
    """
    input:
        store="results/{study}/data/train.store",
        preflight="results/{study}/preflight.json",
        repeat_factors="results/{study}/repeat_factors",
        images=ancient(if_made_or_present(image_folder("train"))),
    output:
        model="results/{study}/{backbone}/seed{seed}/model.pth",
        summary="results/{study}/{backbone}/seed{seed}/train.json",
        history="results/{study}/{backbone}/seed{seed}/log.json",
    log:
        "results/{study}/logs/train_{backbone}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_{backbone}_seed{seed}.tsv"
    priority: heavier_first
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: training_cores
    resources:
        **training_resources(),
    params:
        settings=settings("train"),
        digest=digest("train"),
        study=untracked(STUDY_FILE),
        images=untracked(image_folder("train")),
        launcher=training_launcher,
        folder=subpath(output.model, parent=True),
    message:
        "Training {wildcards.backbone} (seed {wildcards.seed}) on {wildcards.study}"
    shell:
        "exec {params.launcher} lvis_rcnn.train --study {params.study:q} --settings-digest {params.digest}"
        " --backbone {wildcards.backbone} --seed {wildcards.seed}"
        " --store {input.store} --images {params.images:q} --repeat-factors {input.repeat_factors}"
        " --state results/state --out {params.folder} --log {log}"
