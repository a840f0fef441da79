# The drawn dataset belongs to no study: those that draw the same one share the files.
if study.dataset.draw:

    rule draw:
        """Draw the embedded dataset."""
        output:
            train=f"{paths.drawn_folder}/train.json",
            val=f"{paths.drawn_folder}/val.json",
            images=directory(f"{paths.drawn_folder}/images"),
            manifest=f"{paths.drawn_folder}/manifest.json",
        log:
            f"{paths.folder}/logs/draw.log",
        benchmark:
            f"{paths.folder}/benchmarks/draw.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            seed=study.dataset.draw.seed,
            train_images=study.dataset.draw.train_images,
            val_images=study.dataset.draw.val_images,
            folder=untracked(paths.drawn_folder),
        message:
            "Drawing {params.train_images} training and {params.val_images} validation images (seed {params.seed})"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.draw --seed {params.seed} --train-images {params.train_images}'
            " --val-images {params.val_images} --out {params.folder} --log {log}"
