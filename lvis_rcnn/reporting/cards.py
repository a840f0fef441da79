"""The model card of each run, README.md beside its model: what it is, its scores, how to load it, its licence.

Header and sections are those of model hubs (Mitchell et al. 2019, arXiv 1810.03993), so that the folder of a run can be
published as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study
from lvis_rcnn.evaluation.calibration import title_of
from lvis_rcnn.evaluation.results import KINDS
from lvis_rcnn.reporting import CARD
from lvis_rcnn.reporting.notes import titled
from lvis_rcnn.reporting.rows import PROTOCOL_METRICS, RESCORED, Row
from lvis_rcnn.runs.records import QUANTITIES, RunRecord
from lvis_rcnn.system.files import write_text

COSTS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
APACHE = "apache-2.0"
LICENCES = {
    "drawn": (APACHE, "Apache-2.0, as the code and the embedded dataset that it was trained on."),
    "published": (APACHE, "Apache-2.0: the weights are those that MMDetection publishes."),
    "other": (
        "other",
        "The code is Apache-2.0. These weights were trained on data with a licence of its own (LVIS: annotations CC BY"
        " 4.0, COCO's images under those of their photographers). State here, and in the first lines, under which"
        " licence you publish them.",
    ),
}


def write_cards(study: Study, rows: Sequence[Row], out: Path) -> None:
    """Write the card of each run that has a model into its folder below ``out``, and remove those of runs without."""
    for row in rows:
        for run in row.runs:
            path = out / run.folder.relative_to(run.folder.parents[1]) / CARD
            if "train" in run.records or "import" in run.records:
                write_text(path, "\n".join(card(study, row, run)) + "\n")
            else:
                path.unlink(missing_ok=True)


def card(study: Study, row: Row, run: RunRecord) -> Iterator[str]:
    """Lines of the card of one run."""
    origin = "published" if row.source == RESCORED else "drawn" if study.dataset.draw else "other"
    licence, terms = LICENCES[origin]
    yield from ("---", f"license: {licence}", "pipeline_tag: image-segmentation")
    yield from ("tags: [instance-segmentation, object-detection, mask-rcnn, lvis]", "---", "")
    yield f"# Mask R-CNN {row.title}, {row.scored_on}" + (f", seed {run.seed}" if run.seed is not None else "")
    yield from ("", f"Boxes, masks and categories of objects in images. {titled(study)}.", "")
    yield from table_lines(("", ""), facts(run, run.records.get("train", {}), run.records.get("import", {})))
    yield from ("", "## Scores", "", *score_lines(row, run))
    yield from ("", "## Use", "", "With lvis-rcnn:", "", "```")
    own = study.of_row(row.name) if row.name else study
    table = " --calibration calibration.csv" if own.inference.calibration else ""
    yield f"python -m lvis_rcnn detect model.pth photos --out found{table}        # pictures and results.json"
    if own.model.normalization != "group":
        yield "python -m lvis_rcnn weights export model.pth --out theirs.pth  # for MMDetection 2.x and 3.x"
    yield from ("```", "", "Keep `inference.json` beside `model.pth`: it holds the settings of the test images.")
    if settings := own.inference.calibration:
        yield f"Scores are calibrated ({title_of(settings)}) by `calibration.csv` of its study: keep that, too."
    yield from ("", "## Limits", "", *(f"* {limit}" for limit in limits(row, origin)), "", "## Licence", "", terms)


def facts(run: RunRecord, trained: Mapping[str, Any], imported: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the model is and how it was made, as far as its records say."""
    yield "file", f"`model.pth`, SHA-256 `{(trained or imported)['model_sha256']}`"
    if imported:
        yield "made of", f"`{imported['file']}`, SHA-256 `{imported['sha256']}`"
        return
    cost, versions = trained.get("cost", {}), trained.get("versions", {})
    seen = run.value(QUANTITIES["images_seen"])
    told = {
        "also called": f"`{trained['model_file']}`",
        "training annotations": trained.get("annotations_sha256") and f"SHA-256 `{trained['annotations_sha256']}`",
        "categories": trained.get("num_categories"),
        "initial weights": (trained.get("initial_weights") or "").removeprefix("initial weights: "),
        "optimizer steps": trained.get("steps"),
        "images seen": seen and f"{seen:,.0f}",
        "training images": trained.get("resolution"),
        "device": trained.get("device"),
        "precision": trained.get("precision"),
        "cost": ", ".join(f"{cost[key]:.2f} {words}" for key, words in COSTS.items() if cost.get(key)),
        "code": trained.get("code_version"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "finished": trained.get("finished_at"),
    }
    yield from ((name, str(value)) for name, value in told.items() if value)


def score_lines(row: Row, run: RunRecord) -> Iterator[str]:
    """Its metrics in percent with their intervals, and what they are of."""
    scored = run.records.get("evaluate")
    if scored is None:
        yield f"Not scored: {run.missing.get('evaluate', 'no metrics.json')}."
        return
    lines = [
        (word, *(with_interval(run, f"{word}_{metric}") for metric in PROTOCOL_METRICS))
        for kind, word in KINDS.items()
        if kind in scored
    ]
    yield from table_lines(("", *PROTOCOL_METRICS), lines)
    images = f", {scored['images']:,} images" if "images" in scored else ""
    yield from ("", f"AP in percent, on {row.scored_on}{images}; {scored.get('protocol', 'LVIS')}.")
    if "intervals" in scored:
        yield (
            "In brackets: 95 % intervals of the mean over sets of as many images from the same source, for these"
            " weights and categories."
        )


def with_interval(run: RunRecord, name: str) -> str:
    """A metric as the card prints it; - where it is undefined."""
    value, bounds = run.value(QUANTITIES[name]), run.interval(QUANTITIES[name])
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else "")


def limits(row: Row, origin: str) -> Iterator[str]:
    """What a reader of the scores must know."""
    if origin == "drawn":
        yield "It was trained on synthetic images, which lvis-rcnn draws, and does not know what photographs look like."
    yield "It was not tested on images unlike those of its training data; a score is no probability of being right."
    if row.images_seen_before:
        what = (
            f"{row.images_seen_before:,} of the scored images are among those that its initial weights were trained on"
        )
        yield f"{what}: its AP is not of unseen images."


def table_lines(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield from (f"| {' | '.join(head)} |", "|" + ":--|" * len(head))
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
