localrules:
    fetch_published,


if files_to_fetch():

    rule fetch_published:
        """Fetch a published file; where it comes from and its digest are the zoo's."""
        output:
            f"{study.resources.weights_dir}/{{file}}",
        log:
            f"results/{study.study}/logs/fetch_{{file}}.log",
        benchmark:
            f"results/{study.study}/benchmarks/fetch_{{file}}.tsv"
        wildcard_constraints:
            file="|".join(map(re.escape, files_to_fetch())),
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
            'exec "$PYTHON" -m lvis_rcnn.checkpoints fetch --zoo {params.zoo:q} --name {params.name}'
            " --folder {params.folder:q} --log {log}"


rule import_published:
    """Turn a published file into a model of this project."""
    input:
        file=published_file_of_model,
        store=store_of_model,
    output:
        model="results/{study}/published/{model}/model.pth",
        summary="results/{study}/published/{model}/import.json",
    log:
        "results/{study}/logs/import_published_{model}.log",
    benchmark:
        "results/{study}/benchmarks/import_published_{model}.tsv"
    conda:
        "../../envs/lvis_rcnn.yaml"
    threads: 1
    resources:
        mem_mb=study.resources.memory_mb,
        runtime=30,
    params:
        backbone=backbone_of_model,
    message:
        "Importing {wildcards.model}: {input.file}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.checkpoints import {input.file:q} --backbone {params.backbone}'
        " --store {input.store} --out {output.model} --report {output.summary} --log {log}"
