rule measure:
    """Measure memory and speed of a row on a device that does nothing else: all cores of a machine, or a whole node."""
    input:
        model=of_row(lambda row: paths.model(paths.first_run(row))),
        val_store=of_split(paths.store),
        val_images=ancient(of_split(paths.images)),
        training=of_row(paths.training_inputs),
        train_images=ancient(of_row(paths.training_images)),
        calibration=of_row(paths.calibration_of),
    output:
        "results/{study}/{row}/measure.json",
    log:
        "results/{study}/logs/measure_{row}.log",
    benchmark:
        "results/{study}/benchmarks/measure_{row}.tsv"
    # Where cores are scarce, after all scores: the tables that are shown between them would disturb it.
    priority: 0
    conda:
        ENVIRONMENT
    threads: ALL_CORES
    resources:
        **inference_resources(),
        runtime=60,
    params:
        settings=settings_of_row("measure"),
        digest=digest_of_row("measure"),
        # Records of published rows, once made by a rule of their own, hold their backbone, too. Snakemake compares sets of
        # values, in which the digest a second time is nothing new.
        recorded=of_row(
            lambda row: (
                digest("measure", row)
                if row in paths.trained_rows
                else paths.backbone_of(row)
            )
        ),
        study=untracked(STUDY_FILE),
        val_images=untracked(of_split(paths.image_folder)),
        training=untracked(of_row(paths.training_options)),
        calibration=untracked(of_row(paths.calibration_option)),
    message:
        "Measuring memory and speed of {wildcards.row} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.measure --study {params.study:q} --settings-digest {params.digest}'
        " --row {wildcards.row} --model {input.model}"
        " --val-store {input.val_store} --val-images {params.val_images:q} {params.training} {params.calibration} --out {output} --log {log}"
