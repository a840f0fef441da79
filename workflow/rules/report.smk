localrules:
    table,
    pages,


rule table:
    """Write the results table."""
    input:
        metrics=of_all_runs("metrics.json"),
        trainings=of_trained_runs("train.json"),
        imports=of_published_runs("import.json"),
        inferences=of_all_runs("inference.json"),
        measurements=measurements(),
        zoo=zoo_compared_with(),
    output:
        page=shown(
            "results/table.md",
            "table",
            "1 Results",
            shows="the results table, as Markdown with links",
        ),
        others=multiext("results/table", ".csv", ".json"),
        kept=multiext(f"results/{study.study}/table", ".md", ".csv", ".json"),
    log:
        f"results/{study.study}/logs/table.log",
    benchmark:
        f"results/{study.study}/benchmarks/table.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
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


rule pages:
    """Write the pages of a study: the table, every category, cost, provenance, preflight."""
    input:
        metrics=of_all_runs("metrics.json"),
        trainings=of_trained_runs("train.json"),
        imports=of_published_runs("import.json"),
        inferences=of_all_runs("inference.json"),
        measurements=measurements(),
        zoo=zoo_compared_with(),
        preflight=(f"results/{study.study}/preflight.txt" if study.backbones else []),
        repeat_factors=(
            f"results/{study.study}/repeat_factors" if study.backbones else []
        ),
    output:
        pages_shown(),
    log:
        f"results/{study.study}/logs/pages.log",
    benchmark:
        f"results/{study.study}/benchmarks/pages.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
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
        metrics=of_all_runs("metrics.json"),
        inferences=of_all_runs("inference.json"),
        measurements=measurements(),
        histories=of_trained_runs("log.json"),
        repeat_factors=(
            f"results/{study.study}/repeat_factors" if study.backbones else []
        ),
    output:
        plots_shown(),
        collect(f"results/{study.study}/plots/{{name}}.svg", name=PLOTS),
    log:
        f"results/{study.study}/logs/plots.log",
    benchmark:
        f"results/{study.study}/benchmarks/plots.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
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
        store=store_of_run,
        images=images_of_run,
    output:
        pictures_shown(),
    log:
        "results/{study}/logs/pictures_{group}_{member}.log",
    benchmark:
        "results/{study}/benchmarks/pictures_{group}_{member}.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: 1
    resources:
        mem_mb=study.resources.memory_mb,
        runtime=60,
    params:
        images=image_folder_of_run,
        folder=subpath(output[0], parent=True),
    message:
        "Drawing the pictures of {wildcards.group}/{wildcards.member} of {wildcards.study}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.report pictures --store {input.store} --images {params.images:q}'
        " --detections {input.detections} --out {params.folder} --log {log}"


if study.backbones:

    rule training_pictures:
        """Draw the first training step, as the network sees it."""
        input:
            store="results/{study}/data/train.store",
            repeat_factors="results/{study}/repeat_factors",
            images=ancient(if_made_or_present(image_folder("train"))),
        output:
            shown(
                "results/{study}/training_batch.png",
                "training_batch",
                "4 Training",
                shows="the first training step, as the network sees it",
            ),
        log:
            "results/{study}/logs/training_pictures.log",
        benchmark:
            "results/{study}/benchmarks/training_pictures.tsv"
        conda:
            "../../envs/lvis_rcnn.yaml"
        threads: 1
        resources:
            mem_mb=study.resources.memory_mb,
            runtime=30,
        params:
            settings=settings("preflight"),
            study=untracked(STUDY_FILE),
            images=untracked(image_folder("train")),
        message:
            "Drawing the first training step of {wildcards.study}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.report batch --study {params.study:q} --store {input.store}'
            " --images {params.images:q} --repeat-factors {input.repeat_factors} --out {output} --log {log}"


if study.report.compare_with:

    include: "compared.smk"

    rule compare:
        """Say how the rows of the study differ from those of another one."""
        input:
            metrics=of_all_runs("metrics.json"),
            matches=of_all_runs("matches.npz"),
            other=files_of_other,
        output:
            differences_shown(),
            collect(
                "{folder}/{name}.svg",
                folder=[Path(COMPARISON, pair) for pair in pairs],
                name=DIFFERENCES,
            ),
            text=f"{COMPARISON}/comparison.txt",
            page=shown(
                f"{COMPARISON}/comparison.html",
                "comparison",
                "1 Results",
                shows=f"differences from {COMPARED_WITH}, with intervals",
            ),
        log:
            f"results/{study.study}/logs/compare.log",
        benchmark:
            f"results/{study.study}/benchmarks/compare.tsv"
        conda:
            "../../envs/lvis_rcnn.yaml"
        threads: 1
        resources:
            mem_mb=memory_without_gpu_mb,
            runtime=60,
        params:
            first=f"results/{COMPARED_WITH}",
            second=subpath(output.text, ancestor=2),
            runs=runs_of_study(),
            folder=subpath(output.text, parent=True),
        message:
            f"Comparing {study.study} with {COMPARED_WITH}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.compare {params.first} {params.second} --only {params.runs}'
            " --plot {params.folder} --out {output.text} --log {log}"
