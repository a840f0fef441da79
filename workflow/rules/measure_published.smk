rule measure_published:
    """Measure the speed of a published model on a device that does nothing else."""
    input:
        model="results/{study}/published/{model}/model.pth",
        val_store=store_of_model,
        val_images=images_of_model,
    output:
        "results/{study}/published/{model}/measure.json",
    log:
        "results/{study}/logs/measure_published_{model}.log",
    benchmark:
        "results/{study}/benchmarks/measure_published_{model}.tsv"
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
        val_images=image_folder_of_model,
        backbone=backbone_of_model,
    message:
        "Measuring the speed of {wildcards.model}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.measure --study {params.study:q} --settings-digest {params.digest}'
        " --backbone {params.backbone} --model {input.model}"
        " --val-store {input.val_store} --val-images {params.val_images:q} --out {output} --log {log}"
