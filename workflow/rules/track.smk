rule track:
    """Score the weights that a training kept on its way, those that nobody scored while it ran."""
    input:
        summary="results/{study}/{row}/seed{seed}/train.json",
        store=paths.store("val"),
        images=ancient(paths.images("val")),
        annotations=ancient(paths.annotations("val")),
        calibration=of_row(paths.calibration_of),
    output:
        "results/{study}/{row}/seed{seed}/ap_so_far.json",
    log:
        "results/{study}/logs/track_{row}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/track_{row}_seed{seed}.tsv"
    # After what the table waits for.
    priority: 0
    conda:
        ENVIRONMENT
    threads: study.compute.threads
    resources:
        **inference_resources(),
        runtime=INFERENCE_MINUTES,
    params:
        settings=settings_of_row("infer"),
        points=[study.evaluation.score_at_epochs, study.evaluation.score_at_steps],
        images=study.evaluation.score_images,
        detections_per_image=study.evaluation.detections_per_image,
        study=untracked(STUDY_FILE),
    message:
        "Scoring the weights that {wildcards.row} (seed {wildcards.seed}) of {wildcards.study} kept on its way"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.track --study {params.study:q} --run {wildcards.row}/seed{wildcards.seed} --log {log}'
