rule infer:
    """Detect objects in the validation images."""
    input:
        model="results/{study}/{backbone}/seed{seed}/model.pth",
        store="results/{study}/data/val.store",
        images=ancient(if_made_or_present(image_folder("val"))),
    output:
        detections=directory("results/{study}/{backbone}/seed{seed}/detections"),
        summary="results/{study}/{backbone}/seed{seed}/inference.json",
    log:
        "results/{study}/logs/infer_{backbone}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/infer_{backbone}_seed{seed}.tsv"
    priority: 100
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: study.compute.threads
    resources:
        gpu=gpus(),
        mem_mb=study.resources.memory_mb,
        runtime=study.resources.runtime_minutes,
    params:
        settings=settings("infer"),
        digest=digest("infer"),
        study=untracked(STUDY_FILE),
        images=untracked(image_folder("val")),
        folder=subpath(output.summary, parent=True),
    message:
        "Detecting with {wildcards.backbone} (seed {wildcards.seed}) in the validation images of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.infer --study {params.study:q} --settings-digest {params.digest}'
        " --backbone {wildcards.backbone} --model {input.model} --store {input.store} --images {params.images:q}"
        " --state results/state --out {params.folder} --log {log}"


rule evaluate:
    """Score the detections by the LVIS protocol."""
    input:
        detections="results/{study}/{backbone}/seed{seed}/detections",
        annotations=ancient(if_made_or_present(annotation_file("val"))),
    output:
        "results/{study}/{backbone}/seed{seed}/metrics.json",
    log:
        "results/{study}/logs/evaluate_{backbone}_seed{seed}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate_{backbone}_seed{seed}.tsv"
    priority: 100
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: 1
    resources:
        mem_mb=study.resources.memory_mb,
        runtime=120,
    params:
        detections_per_image=study.evaluation.detections_per_image,
        annotations=untracked(annotation_file("val")),
    message:
        "Scoring {wildcards.backbone} (seed {wildcards.seed}) of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.evaluate --annotations {params.annotations:q} --detections {input.detections}'
        " --detections-per-image {params.detections_per_image} --out {output} --log {log}"
