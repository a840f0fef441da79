from lvis_rcnn.runs.identity import SCORING_REVISION


rule evaluate:
    """Score the detections by the LVIS protocol."""
    input:
        detections="results/{study}/{group}/{member}/detections",
        annotations=ancient(of_split(paths.annotations)),
        subsets=paths.subset_files,
    output:
        metrics="results/{study}/{group}/{member}/metrics.json",
        matches="results/{study}/{group}/{member}/matches.npz",
    log:
        "results/{study}/logs/evaluate_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate_{group}_{member}.tsv"
    priority: 100
    conda:
        ENVIRONMENT
    threads: study.compute.threads
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        detections_per_image=study.evaluation.detections_per_image,
        resamples=study.evaluation.bootstrap_resamples,
        protocols=of_split(paths.scoring_options),
        revision=SCORING_REVISION,
        annotations=untracked(of_split(paths.annotation_file)),
    message:
        "Scoring {wildcards.group}/{wildcards.member} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.evaluate --annotations {params.annotations:q} --detections {input.detections}'
        " --detections-per-image {params.detections_per_image} --bootstrap {params.resamples} --processes {threads}"
        " {params.protocols}"
        " --matches {output.matches} --out {output.metrics} --log {log}"
