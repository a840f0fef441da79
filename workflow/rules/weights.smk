rule import_published:
    """Turn a published file into a model of this project."""
    input:
        file=lambda wildcards: paths.published_file(wildcards.model),
        store=of_split(paths.store),
    output:
        model="results/{study}/published/{model}/model.pth",
        summary="results/{study}/published/{model}/import.json",
    log:
        "results/{study}/logs/import_published_{model}.log",
    benchmark:
        "results/{study}/benchmarks/import_published_{model}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=30,
    params:
        backbone=of_row(paths.backbone_of),
    message:
        "Importing {wildcards.model}: {input.file}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.weights import {input.file:q} --backbone {params.backbone}'
        " --store {input.store} --out {output.model} --report {output.summary} --log {log}"
