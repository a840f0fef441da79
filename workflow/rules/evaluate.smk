rule infer:
    """Detect objects in the validation images."""
    input:
        model="results/{study}/{group}/{member}/model.pth",
        store=store_of_run,
        images=images_of_run,
    output:
        detections=directory("results/{study}/{group}/{member}/detections"),
        summary="results/{study}/{group}/{member}/inference.json",
    log:
        "results/{study}/logs/infer_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/infer_{group}_{member}.tsv"
    priority: 100
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: study.compute.threads
    resources:
        **inference_resources(),
        mem_mb=study.resources.memory_mb,
        runtime=inference_minutes(),
    params:
        settings=settings("infer"),
        digest=digest("infer"),
        study=untracked(STUDY_FILE),
        images=image_folder_of_run,
        backbone=backbone_of_run,
        folder=subpath(output.summary, parent=True),
    message:
        "Detecting with {wildcards.group}/{wildcards.member} in the validation images of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.infer --study {params.study:q} --settings-digest {params.digest}'
        " --backbone {params.backbone} --model {input.model} --store {input.store} --images {params.images:q}"
        " --state results/state --run {wildcards.group}/{wildcards.member} --out {params.folder} --log {log}"


rule evaluate:
    """Score the detections by the LVIS protocol."""
    input:
        detections="results/{study}/{group}/{member}/detections",
        annotations=annotations_of_run,
    output:
        metrics="results/{study}/{group}/{member}/metrics.json",
        matches="results/{study}/{group}/{member}/matches.npz",
    log:
        "results/{study}/logs/evaluate_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate_{group}_{member}.tsv"
    priority: 100
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        detections_per_image=study.evaluation.detections_per_image,
        resamples=study.evaluation.bootstrap_resamples,
        annotations=annotation_file_of_run,
    message:
        "Scoring {wildcards.group}/{wildcards.member} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.evaluate --annotations {params.annotations:q} --detections {input.detections}'
        " --detections-per-image {params.detections_per_image} --bootstrap {params.resamples} --processes {threads}"
        " --matches {output.matches} --out {output.metrics} --log {log}"
