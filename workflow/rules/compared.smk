"""What differs from another study, whose results this workflow reads and never makes."""

from lvis_rcnn.pairs import pair_names, rows_of_study

COMPARED_WITH = study.report.compare_with
COMPARISON = f"results/{study.study}/comparison"
# The plots of a pair of rows, and what they show.
DIFFERENCES = {
    "differences": "differences",
    "category_differences": "differences of each category",
}


def compared_pairs() -> tuple[list[str], str]:
    """Names of the pairs of rows; none, and why, where there is nothing to compare with."""
    other = Path("results", COMPARED_WITH)
    ours = [*study.backbones, *(f"published/{model}" for model in published)]
    where = f"{STUDY_FILE}: report.compare_with"
    try:
        if not (others := rows_of_study(other)):
            file = Path(STUDY_FILE).with_name(f"{COMPARED_WITH}.yaml")
            raise InputError(
                where,
                f"nothing in {other} is scored",
                allowed="a study that ran here up to its scores",
                fix=f"run it first: snakemake --cores 2 --configfile {file}",
            )
        return list(pair_names(other, others, Path("results", study.study), ours)), ""
    except InputError as error:
        return [], str(error)


pairs, nothing_to_compare = compared_pairs()


def files_of_other(wildcards) -> list[str]:
    """Scores and match results of the other study; without them Snakemake ends before any job, a dry run goes on."""
    if nothing_to_compare and workflow.executor_plugin and not workflow.dryrun:
        sys.exit(f"error: {nothing_to_compare}")
    if nothing_to_compare:
        logger.warning(f"would end before any job: {nothing_to_compare}")
        return []
    rows = rows_of_study(Path("results", COMPARED_WITH)).values()
    scores = [file for files in rows for file in files]
    return [*map(str, scores), *(str(file.with_name("matches.npz")) for file in scores)]


def runs_of_study() -> list[str]:
    """Every run of this study, as r50/seed0: runs that it no longer names may lie beside them."""
    folder = Path("results", study.study)
    return [
        str(Path(file).parent.relative_to(folder))
        for file in of_all_runs("metrics.json")
    ]


def differences_shown() -> list:
    """The plots of every pair of rows, as the report shows them."""
    return [
        shown(
            str(Path(COMPARISON, pair, f"{name}.png")),
            name,
            "2 Plots",
            shows=f"{title} from {COMPARED_WITH}" + (f", {pair}" if pair else ""),
        )
        for pair in pairs
        for name, title in DIFFERENCES.items()
    ]
