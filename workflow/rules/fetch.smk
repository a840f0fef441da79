rule fetch:
    """Bring all that a study needs and that is not at hand, where there is a network: a login or transfer node."""
    input:
        [*paths.missing_files, *paths.missing_weights],
    localrule: True
    message:
        "All that can be fetched for this study is here"


if paths.missing_weights:

    rule fetch_published:
        """Fetch a published file; where it comes from and its digest are the zoo's."""
        output:
            f"{study.resources.weights_dir}/{{file}}",
        log:
            f"{paths.folder}/logs/fetch_{{file}}.log",
        benchmark:
            f"{paths.folder}/benchmarks/fetch_{{file}}.tsv"
        wildcard_constraints:
            file="|".join(map(re.escape, paths.weights_to_fetch)),
        localrule: True
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=2000,
            runtime=120,
        params:
            zoo=untracked(paths.zoo),
            name=untracked(lambda wildcards: paths.weights_to_fetch[wildcards.file]),
            folder=untracked(study.resources.weights_dir),
        message:
            "Fetching {wildcards.file}"
        shell:
            'exec "$PYTHON" -m lvis_rcnn.fetch --zoo {params.zoo:q} --weights {params.name}'
            " --out {params.folder:q} --log {log}"


# A rule of each file, since a study names the path of each. What came of an interrupted download lies beside it and is
# no output: Snakemake deletes the outputs of a job that failed. A file that is at hand has no rule, for the same reason.
for path, source in paths.missing_files.items():

    rule:
        name:
            paths.fetch_name(path)
        output:
            path,
        log:
            f"{paths.folder}/logs/{paths.fetch_name(path)}.log",
        benchmark:
            f"{paths.folder}/benchmarks/{paths.fetch_name(path)}.tsv"
        localrule: True
        conda:
            ENVIRONMENT
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
