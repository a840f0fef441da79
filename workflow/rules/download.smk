localrules:
    fetch,


rule fetch:
    """Bring all that a study needs and that is not at hand, where there is a network: a login or transfer node."""
    input:
        [*lacking_dataset, *lacking_models],
    message:
        "All that can be fetched for this study is here"


if lacking_models:

    localrules:
        fetch_published,

    rule fetch_published:
        """Fetch a published file; where it comes from and its digest are the zoo's."""
        output:
            f"{study.resources.weights_dir}/{{file}}",
        log:
            f"results/{study.study}/logs/fetch_{{file}}.log",
        benchmark:
            f"results/{study.study}/benchmarks/fetch_{{file}}.tsv"
        wildcard_constraints:
            file="|".join(map(re.escape, weights_to_fetch())),
        conda:
            "../../envs/lvis_rcnn.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=120,
        params:
            zoo=untracked(zoo_of(study, Path(STUDY_FILE))),
            name=model_of_file,
            folder=untracked(study.resources.weights_dir),
        message:
            "Fetching {wildcards.file}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.fetch --zoo {params.zoo:q} --weights {params.name}'
            " --folder {params.folder:q} --log {log}"


# A rule of each file, since a study names the path of each. What came of an interrupted download lies beside it and is
# no output: Snakemake deletes the outputs of a job that failed.
for path, source in lacking_dataset.items():

    rule:
        name:
            numbered(source.name, path)
        output:
            path,
        log:
            f"results/{study.study}/logs/{numbered(source.name, path)}.log",
        benchmark:
            f"results/{study.study}/benchmarks/{numbered(source.name, path)}.tsv"
        localrule: True
        conda:
            "../../envs/lvis_rcnn.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=1440,
        params:
            sources=untracked(DEFAULT_SOURCES),
            source=untracked(source.name),
        message:
            f"Fetching {source.zip_name} for {path}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.fetch --sources {params.sources:q} --name {params.source} --out {output:q}'
            " --log {log}"
