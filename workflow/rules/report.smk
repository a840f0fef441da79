localrules:
    table,


rule table:
    """Write the results table."""
    input:
        metrics=of_all_runs("metrics.json"),
        trainings=of_trained_runs("train.json"),
        imports=of_published_runs("import.json"),
        inferences=of_all_runs("inference.json"),
        measurements=measurements(),
        zoo=str(zoo_of(study, Path(STUDY_FILE))) if published else [],
    output:
        page=report(
            "results/table.md", caption="../report/table.rst", category="Results"
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
