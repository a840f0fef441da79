rule measure:
    """Measure memory and speed of a row on a device that does nothing else: all cores of a machine, or a whole node."""
    input:
        model=model_of_first_seed,
        val_store="results/{study}/data/val.store",
        val_images=ancient(if_made_or_present(image_folder("val"))),
        train_store="results/{study}/data/train.store",
        train_images=ancient(if_made_or_present(image_folder("train"))),
        repeat_factors="results/{study}/repeat_factors",
    output:
        "results/{study}/{backbone}/measure.json",
    log:
        "results/{study}/logs/measure_{backbone}.log",
    benchmark:
        "results/{study}/benchmarks/measure_{backbone}.tsv"
    priority: 100
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: all_cores()
    resources:
        **inference_resources(),
        mem_mb=study.resources.memory_mb,
        runtime=60,
    params:
        settings=settings("measure"),
        digest=digest("measure"),
        study=untracked(STUDY_FILE),
        val_images=untracked(image_folder("val")),
        train_images=untracked(image_folder("train")),
    message:
        "Measuring memory and speed of {wildcards.backbone} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.measure --study {params.study:q} --settings-digest {params.digest}'
        " --backbone {wildcards.backbone} --model {input.model}"
        " --val-store {input.val_store} --val-images {params.val_images:q}"
        " --train-store {input.train_store} --train-images {params.train_images:q}"
        " --repeat-factors {input.repeat_factors} --out {output} --log {log}"
