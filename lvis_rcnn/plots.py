"""Plots of a study, each as SVG for print and as PNG for the screen, from whatever exists.

    python -m lvis_rcnn.plots --study configs/mini.yaml --results results --out results/mini/plots

    training_curves, training_losses    how the trainings went, and where they were started again
    repeat_factors                      how often categories are drawn
    ap_and_images                       AP of each category against its training images
    ap_by_group                         AP of rare, common and frequent categories, with intervals
    ap_and_cost                         AP against inference time and memory
    precision_recall_box, _mask         mean precision at each recall, over categories and seeds

A plot that nothing can be drawn in says why. The same results give the same bytes.
"""

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvis_rcnn.attempts import read_attempts
from lvis_rcnn.category_plots import write_ap_and_images
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Study, load_study
from lvis_rcnn.curves import (
    IOUS,
    MEMBERS,
    History,
    write_precision_recall,
    write_training_curves,
    write_training_losses,
)
from lvis_rcnn.figures import write_reason
from lvis_rcnn.files import read_json_lines
from lvis_rcnn.published import known_models
from lvis_rcnn.row_plots import KINDS, metrics_of, row_name, write_ap_and_cost, write_ap_by_group
from lvis_rcnn.run_states import state_dirs
from lvis_rcnn.runs import read_json_object
from lvis_rcnn.sampling_figure import CategoryFigures, write_sampling_figure
from lvis_rcnn.table_rows import TRAINED, Row, rows_of
from lvis_rcnn.zoo import ZooModel


def histories_of(study: Study, results: Path, zoo: Mapping[str, ZooModel], rows: Sequence[Row]) -> list[History]:
    """What each training has logged, with its restarts; a run that goes on is read in its state folder."""
    histories = []
    for place, row in enumerate(row for row in rows if row.source == TRAINED):
        for run in row.runs:
            assert run.seed is not None
            state_dir, _ = state_dirs(study, results, row.backbone, run.seed, zoo)
            lines = read_json_lines((state_dir or run.folder) / "log.json")
            attempts = read_attempts(state_dir) if state_dir else []
            restarts = [attempt.first_step for attempt in attempts[1:]]
            histories.append(History(row.title, lines, restarts, place, run.seed))
    return histories


def read_category_figures(folder: Path) -> tuple[CategoryFigures, dict[int, int]] | None:
    """What the sampler's tables say of each category, and the training images of each id; None where there are none."""
    try:
        with (folder / "categories.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        figures = CategoryFigures(
            frequencies=np.array([row["frequency"] for row in rows]),
            image_counts=np.array([int(row["image_count"]) for row in rows]),
            factors=np.array([float(row["factor"]) for row in rows]),
            instances_once=np.array([int(row["instance_count"]) for row in rows]),
            instances_oversampled=np.array([float(row["instances_in_epoch"]) for row in rows]),
        )
        return figures, {int(row["category_id"]): int(row["image_count"]) for row in rows}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError) as error:
        mend = "write them again with python -m lvis_rcnn.repeat_factors"
        raise InputError(str(folder), f"no readable tables of repeat factors: {error!r}", mend=mend) from None


def write_plots(study: Study, study_file: Path, results: Path, out: Path, now_s: float) -> None:
    """Write every plot of a study into ``out``.

    Args:
        study: what should have been run.
        study_file: its file, which its zoo is relative to.
        results: folder that all steps write into.
        out: folder of the plots.
        now_s: Unix time; tells a live run from a dead one.

    Raises:
        InputError: tables of repeat factors are damaged.
    """
    zoo = known_models(study, study_file)
    rows = [row for row in rows_of(study, results, zoo, now_s) if row.runs]
    histories = histories_of(study, results, zoo, rows)
    write_training_curves(histories, out)
    write_training_losses(histories, out)
    counted = read_category_figures(results / study.study / "repeat_factors")
    write_repeat_factors(counted and counted[0], results / study.study / "repeat_factors", out)
    write_ap_and_images(rows, counted[1] if counted else {}, "segm", out)
    write_ap_by_group(rows, out)
    write_ap_and_cost(rows, out)
    write_precision_recalls(rows, out)


def write_precision_recalls(rows: Sequence[Row], out: Path) -> None:
    """Write precision_recall_box.{png,svg} and precision_recall_mask.{png,svg}."""
    mean_over = "categories and seeds" if any(len(metrics_of(row)) > 1 for row in rows) else "categories"
    for kind, word in KINDS.items():
        curves = {row_name(row): curves_of(row, kind) for row in rows}
        what = {"box": "boxes", "mask": "masks"}[word]
        write_precision_recall(curves, what, mean_over, f"precision_recall_{word}", out)


def curves_of(row: Row, kind: str) -> dict[str, Any] | None:
    """Curves of a row: the mean over its runs, so that the area under a line is the row's AP; None without any."""
    found = [metrics["curves"][kind] for metrics in metrics_of(row) if kind in metrics.get("curves", {})]
    if not found:
        return None
    lines = {group: {iou: mean_line([each[group][iou] for each in found]) for iou in IOUS} for group in MEMBERS}
    return {"recall": found[0]["recall"], **lines}


def mean_line(lines: Sequence[Sequence[float] | None]) -> list[float] | None:
    """Mean of lines, point by point; of those that are defined."""
    defined = [line for line in lines if line is not None]
    return np.mean(defined, axis=0).tolist() if defined else None


def write_repeat_factors(figures: CategoryFigures | None, folder: Path, out: Path) -> None:
    """Write repeat_factors.{png,svg} from the tables that the sampler wrote."""
    if figures is None:
        return write_reason(out / "repeat_factors", "no repeat factors were computed")
    said = read_json_object(folder / "summary.json")
    threshold = "no threshold" if said.get("threshold") is None else f"threshold {said['threshold']:g}"
    length = said.get("expected_epoch_length", 0)
    write_sampling_figure(
        figures, f"{threshold}, an epoch of {length:,.0f} from {said.get('images_kept', 0):,} images", out
    )


def step(args: argparse.Namespace) -> None:
    """Draw the plots of a study."""
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}", "no such folder", mend="name the folder the steps wrote into")
    study = load_study(args.study)
    write_plots(study, args.study, args.results, args.out, time.time())
    log.info("wrote the plots of %s: %s", study.study, args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder that all steps write into")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the plots")
    run_step(parser, step)


if __name__ == "__main__":
    main()
