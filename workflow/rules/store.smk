rule store:
    """Turn an annotation file into a memory-mapped store."""
    input:
        lambda wildcards: paths.store_source(wildcards.split),
        ancient(lambda wildcards: paths.store_source_drawn(wildcards.split)),
    output:
        directory("results/{study}/data/{split}.store"),
    log:
        "results/{study}/logs/store_{split}.log",
    benchmark:
        "results/{study}/benchmarks/store_{split}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        annotations=untracked(lambda wildcards: paths.annotation_file(wildcards.split)),
        # Nothing where all is in LVIS's format: stores of such studies have never had it.
        options=(
            (lambda wildcards: paths.coco_options(wildcards.split))
            if any(map(paths.is_exhaustive, paths.splits))
            else untracked("")
        ),
    message:
        "Reading the {wildcards.split} annotations of {wildcards.study}: {params.annotations}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.store --annotations {params.annotations:q} {params.options} --out {output} --log {log}'
