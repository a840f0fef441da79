# The results of the other study are read and never made. Where there are none, Snakemake ends before any job that
# compares; a dry run and other targets go on.
compared_with = study.report.compare_with
compared_folder = f"{paths.folder}/comparison"
try:
    compared_pairs, nothing_to_compare = paths.compared_pairs(), ""
except InputError as error:
    compared_pairs, nothing_to_compare = [], str(error)


def files_of_other(wildcards):
    """Results of the other study; Snakemake asks for them where its plan has a comparison."""
    if nothing_to_compare:
        logger.warning(f"would end before any job: {nothing_to_compare}")
        refusals.append(nothing_to_compare)
    return paths.compared_files()


def from_other(chapter_and_title, pair=""):
    """Chapter of a comparison in the report, and its title with what is compared."""
    chapter, title = chapter_and_title
    return chapter, f"{title} from {compared_with}" + f", {pair}" * bool(pair)


rule compare:
    """Say how the rows of the study differ from those of another one."""
    input:
        metrics=paths.of_runs("metrics.json"),
        matches=paths.of_runs("matches.npz"),
        other=files_of_other,
    output:
        [
            shown(
                f"{Path(compared_folder, pair)}/{name}.png",
                name,
                from_other(where, pair),
            )
            for pair in compared_pairs
            for name, where in DIFFERENCES.items()
        ],
        [
            f"{Path(compared_folder, pair)}/{name}.svg"
            for pair in compared_pairs
            for name in DIFFERENCES
        ],
        text=f"{compared_folder}/comparison.txt",
        page=shown(
            f"{compared_folder}/comparison.html",
            "comparison",
            from_other(COMPARISON),
        ),
    log:
        f"{paths.folder}/logs/compare.log",
    benchmark:
        f"{paths.folder}/benchmarks/compare.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_without_gpu_mb,
        runtime=60,
    params:
        first=f"results/{compared_with}",
        second=subpath(output.text, ancestor=2),
        runs=paths.runs,
        folder=subpath(output.text, parent=True),
    message:
        f"Comparing {study.study} with {compared_with}"
    shell:
        'exec "$PYTHON" -m lvis_rcnn.compare {params.first} {params.second} --only {params.runs}'
        " --plot {params.folder} --out {output.text} --log {log}"
