rule calibrate:
    """Count images and objects of each category in training, and how they spread: what calibration corrects scores by."""
    input:
        store=paths.store("train"),
    output:
        shown(*paths.calibration, "calibration", CALIBRATION),
    log:
        f"{paths.folder}/logs/calibrate.log",
    benchmark:
        f"{paths.folder}/benchmarks/calibrate.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=30,
    message:
        f"Counting the categories in the training images of {study.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.calibrate --store {input.store} --out {output} --log {log}'
