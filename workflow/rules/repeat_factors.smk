rule repeat_factors:
    """Say how often each training image is drawn, once for all rows that are sampled alike."""
    input:
        store="results/{study}/data/train.store",
    output:
        directory("results/{study}/repeat_factors{sampled}"),
    log:
        "results/{study}/logs/repeat_factors{sampled}.log",
    benchmark:
        "results/{study}/benchmarks/repeat_factors{sampled}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=30,
    params:
        sampling=lambda wildcards: paths.sampling_options(
            paths.samplings[wildcards.sampled]
        ),
    message:
        "Computing how often each training image of {wildcards.study} is drawn"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.repeat_factors --store {input.store} {params.sampling}'
        " --out {output} --log {log}"
