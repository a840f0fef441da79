rule preflight:
    """Find what is wrong with data and settings before a run begins."""
    input:
        train_store="results/{study}/data/train.store",
        val_store="results/{study}/data/val.store",
        train_images=ancient(paths.images("train")),
        val_images=ancient(paths.images("val")),
    output:
        summary="results/{study}/preflight.json",
        text="results/{study}/preflight.txt",
    log:
        "results/{study}/logs/preflight.log",
    benchmark:
        "results/{study}/benchmarks/preflight.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        settings=settings("preflight"),
        study=untracked(STUDY_FILE),
        train_images=untracked(paths.image_folder("train")),
        val_images=untracked(paths.image_folder("val")),
    message:
        "Checking data and settings of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.preflight --study {params.study:q}'
        " --train-store {input.train_store} --val-store {input.val_store}"
        " --train-images {params.train_images:q} --val-images {params.val_images:q}"
        " --out {output.summary} --log {log}"


if paths.checks:

    rule preflight_of_row:
        """Find what is wrong with the settings of a row, once those of the study and its data are right."""
        input:
            train_store="results/{study}/data/train.store",
            val_store="results/{study}/data/val.store",
            of_study="results/{study}/preflight.json",
        output:
            summary="results/{study}/preflight_{row}.json",
            text="results/{study}/preflight_{row}.txt",
        log:
            "results/{study}/logs/preflight_{row}.log",
        benchmark:
            "results/{study}/benchmarks/preflight_{row}.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=memory_without_gpu_mb,
            runtime=60,
        params:
            settings=settings_of_row("preflight"),
            study=untracked(STUDY_FILE),
        message:
            "Checking the settings of {wildcards.row} of {wildcards.study}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.preflight --study {params.study:q} --row {wildcards.row} --no-images'
            " --train-store {input.train_store} --val-store {input.val_store} --out {output.summary} --log {log}"
