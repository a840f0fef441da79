rule infer:
    """Detect objects in the validation images."""
    input:
        model=lambda wildcards: paths.model(f"{wildcards.group}/{wildcards.member}"),
        store=of_split(paths.store),
        images=ancient(of_split(paths.images)),
        calibration=of_row(paths.calibration_of),
    output:
        detections=directory("results/{study}/{group}/{member}/detections"),
        summary="results/{study}/{group}/{member}/inference.json",
    log:
        "results/{study}/logs/infer_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/infer_{group}_{member}.tsv"
    priority: 100
    conda:
        ENVIRONMENT
    threads: study.compute.threads
    resources:
        **inference_resources(),
        runtime=INFERENCE_MINUTES,
    params:
        settings=settings_of_row("infer"),
        digest=digest_of_row("infer"),
        study=untracked(STUDY_FILE),
        images=untracked(of_split(paths.image_folder)),
        calibration=untracked(of_row(paths.calibration_option)),
        folder=subpath(output.summary, parent=True),
    message:
        "Detecting with {wildcards.group}/{wildcards.member} in the validation images of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.infer --study {params.study:q} --settings-digest {params.digest}'
        " --model {input.model} --store {input.store} --images {params.images:q} {params.calibration}"
        " --state results/state --run {wildcards.group}/{wildcards.member} --out {params.folder} --log {log}"
