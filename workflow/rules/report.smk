# What rules of this file read, and of which they show nothing where it is not there.
of_all_runs = {
    "metrics": paths.of_runs("metrics.json"),
    "trainings": paths.of_trained_runs("train.json"),
    "imports": paths.of_published("import.json"),
    "inferences": paths.of_runs("inference.json"),
    "measurements": paths.of_rows("measure.json"),
    "zoo": paths.zoo_compared_with,
}
plots_of_study = plots_of(
    calibrated=bool(paths.calibration), on_the_way=bool(paths.so_far)
)
if_trained = {
    "repeat_factors": [paths.repeat_factors(row) for row in study.sampled_rows[:1]]
}


rule table:
    """Write the results table."""
    input:
        **of_all_runs,
    output:
        page=shown(f"{paths.folder}/table.md", "table", TABLE),
        others=multiext(f"{paths.folder}/table", ".tex", ".csv", ".json"),
    log:
        f"{paths.folder}/logs/table.log",
    benchmark:
        f"{paths.folder}/benchmarks/table.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        name=study.study,
        settings=settings("report"),
        study=untracked(STUDY_FILE),
    message:
        "Writing the table of {params.name}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report table --study {params.study:q} --results results'
        " --out {output.page} --log {log}"


rule results_table:
    """Write the table where any study may: results/table.md is that of the study it was last asked of."""
    input:
        f"{paths.folder}/table.md",
    output:
        page="results/table.md",
        others=multiext("results/table", ".tex", ".csv", ".json"),
    log:
        f"{paths.folder}/logs/results_table.log",
    benchmark:
        f"{paths.folder}/benchmarks/results_table.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        name=study.study,
        study=untracked(STUDY_FILE),
    message:
        "Writing the table of {params.name} to {output.page}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report table --study {params.study:q} --results results'
        " --out {output.page} --log {log}"


rule pages:
    """Write the pages of a study (the table, every category, cost, provenance, preflight) and the card of each model."""
    input:
        **of_all_runs,
        **if_trained,
        preflight=paths.preflight_pages,
    output:
        [
            shown(f"{paths.folder}/{name}.html", name, where)
            for name, where in PAGES.items()
        ],
        paths.of_runs(CARD),
    log:
        f"{paths.folder}/logs/pages.log",
    benchmark:
        f"{paths.folder}/benchmarks/pages.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        name=study.study,
        settings=settings("report"),
        study=untracked(STUDY_FILE),
        folder=subpath(output[0], parent=True),
    message:
        f"Writing the pages of {study.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report pages --study {params.study:q} --results results --out {params.folder} --log {log}'


rule plots:
    """Draw the plots of a study."""
    input:
        **if_trained,
        metrics=paths.of_runs("metrics.json"),
        inferences=paths.of_runs("inference.json"),
        measurements=paths.of_rows("measure.json"),
        histories=paths.of_trained_runs("log.json"),
        calibration=paths.calibration,
        so_far=paths.so_far,
    output:
        [
            shown(f"{paths.folder}/plots/{name}.png", name, where)
            for name, where in plots_of_study.items()
        ],
        [f"{paths.folder}/plots/{name}.svg" for name in plots_of_study],
    log:
        f"{paths.folder}/logs/plots.log",
    benchmark:
        f"{paths.folder}/benchmarks/plots.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=settings("report"),
        study=untracked(STUDY_FILE),
        folder=subpath(output[0], parent=True),
    message:
        f"Drawing the plots of {study.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report plots --study {params.study:q} --results results --out {params.folder} --log {log}'


rule pictures:
    """Draw annotations beside detections, and what was missed."""
    input:
        detections="results/{study}/{group}/{member}/detections",
        store=of_split(paths.store),
        images=ancient(of_split(paths.images)),
    output:
        [
            shown(
                f"results/{{study}}/{{group}}/{{member}}/pictures/{name}.png",
                name.split("_")[0],
                where,
                run="{group}/{member}",
            )
            for name, where in PICTURES.items()
        ],
    log:
        "results/{study}/logs/pictures_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/pictures_{group}_{member}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=study.resources.memory_mb,
        runtime=60,
    params:
        images=untracked(of_split(paths.image_folder)),
        folder=subpath(output[0], parent=True),
    message:
        "Drawing the pictures of {wildcards.group}/{wildcards.member} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report pictures --store {input.store} --images {params.images:q}'
        " --detections {input.detections} --out {params.folder} --log {log}"


if paths.trained_rows:

    rule training_pictures:
        """Draw the first training step, as the network sees it."""
        input:
            store="results/{study}/data/train.store",
            repeat_factors=paths.repeat_factors(paths.trained_rows[0]),
            images=ancient(paths.images("train")),
        output:
            shown(
                "results/{study}/training_batch.png", "training_batch", TRAINING_BATCH
            ),
        log:
            "results/{study}/logs/training_pictures.log",
        benchmark:
            "results/{study}/benchmarks/training_pictures.tsv"
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=study.resources.memory_mb,
            runtime=30,
        params:
            settings=settings("preflight", paths.trained_rows[0]),
            study=untracked(STUDY_FILE),
            images=untracked(paths.image_folder("train")),
        message:
            "Drawing the first training step of {wildcards.study}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.report batch --study {params.study:q} --store {input.store}'
            " --images {params.images:q} --repeat-factors {input.repeat_factors} --out {output} --log {log}"
