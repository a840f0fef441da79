rule repeat_factors:
    """Say how often each training image is drawn."""
    input:
        store="results/{study}/data/train.store",
    output:
        directory("results/{study}/repeat_factors"),
    log:
        "results/{study}/logs/repeat_factors.log",
    benchmark:
        "results/{study}/benchmarks/repeat_factors.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=30,
    params:
        sampling=paths.sampling_options,
    message:
        "Computing how often each training image of {wildcards.study} is drawn"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.repeat_factors --store {input.store} {params.sampling}'
        " --out {output} --log {log}"
