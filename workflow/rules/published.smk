rule import_published:
    """Turn a published file into a model of this project."""
    input:
        file=published_file_of_model,
        store=store_of_model,
    output:
        model="results/{study}/published/{model}/model.pth",
        summary="results/{study}/published/{model}/import.json",
    log:
        "results/{study}/logs/import_published_{model}.log",
    benchmark:
        "results/{study}/benchmarks/import_published_{model}.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=30,
    params:
        backbone=backbone_of_model,
    message:
        "Importing {wildcards.model}: {input.file}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.weights import {input.file:q} --backbone {params.backbone}'
        " --store {input.store} --out {output.model} --report {output.summary} --log {log}"
