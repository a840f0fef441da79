# The drawn dataset belongs to no study: those that draw the same one share the files.
if study.dataset.draw:

    rule draw:
        """Draw the embedded dataset."""
        output:
            train=f"{drawn_folder()}/train.json",
            val=f"{drawn_folder()}/val.json",
            images=directory(f"{drawn_folder()}/images"),
            manifest=f"{drawn_folder()}/manifest.json",
        log:
            f"results/{study.study}/logs/draw.log",
        benchmark:
            f"results/{study.study}/benchmarks/draw.tsv"
        conda:
            "../../envs/lvis_rcnn.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            seed=study.dataset.draw.seed,
            train_images=study.dataset.draw.train_images,
            val_images=study.dataset.draw.val_images,
            folder=untracked(drawn_folder()),
        message:
            "Drawing {params.train_images} training and {params.val_images} validation images (seed {params.seed})"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.draw --seed {params.seed} --train-images {params.train_images}'
            " --val-images {params.val_images} --out {params.folder} --log {log}"


rule store:
    """Turn an annotation file into a memory-mapped store."""
    input:
        annotation_source,
    output:
        directory("results/{study}/data/{split}.store"),
    log:
        "results/{study}/logs/store_{split}.log",
    benchmark:
        "results/{study}/benchmarks/store_{split}.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        annotations=annotations_of_split,
    message:
        "Reading the {wildcards.split} annotations of {wildcards.study}: {params.annotations}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.store --annotations {params.annotations:q} --out {output} --log {log}'
