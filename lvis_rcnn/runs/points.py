"""AP so far: weights that a training keeps at points of its schedule, and their scores.

    STATE/points/step00001200.pth     the weights alone, as a model.pth; written by the training
    STATE/points/step00001200.json    their scores; ``lvis_rcnn track`` writes it and the following
    STATE/points/step00001200/        their detections, until they are scored
    RUN/ap_so_far.json                the scores of all points

STATE is the state folder of the training, RUN the folder of its results.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvis_rcnn.config.study import Study, digests_of
from lvis_rcnn.runs.identity import state_folder_name
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Point, SoFar
from lvis_rcnn.system.files import modified_at, write_json

SO_FAR = "ap_so_far.json"
METRICS_SAID = {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP"), "APr": ("segm", "APr")}


def kept_file(state_dir: Path, step: int) -> Path:
    """Where the weights after ``step`` steps are kept."""
    return state_dir / "points" / f"step{step:08d}.pth"


def kept_files(state_dir: Path) -> list[Path]:
    """The weights that are kept, by their steps."""
    found = (state_dir / "points").glob("step*.pth")
    return sorted((file for file in found if re.fullmatch("step[0-9]{8,}", file.stem)), key=step_of)


def step_of(weights: Path) -> int:
    """Steps after which these weights were kept."""
    return int(weights.stem.removeprefix("step"))


def is_of_study(point: Mapping[str, Any], study: Study, annotations_sha256: str | None = None) -> bool:
    """Whether a point was scored with the settings that the study has now, on these annotations if they are given."""
    most = study.evaluation.score_images or point["images_of_split"]
    return (
        point["annotations_sha256"] == (annotations_sha256 or point["annotations_sha256"])
        and point["settings_digest"] in digests_of(study, "infer")
        and point["detections_per_image"] == study.evaluation.detections_per_image
        and point["images"] == min(most, point["images_of_split"])
    )


def score_of(weights: Path, study: Study, annotations_sha256: str | None = None) -> dict[str, Any]:
    """The scores of these weights, as :func:`is_of_study`; empty where they have none.

    Scores are newer than their weights: a resumed training may write these again.
    """
    scores = weights.with_suffix(".json")
    point = read_json_object(scores, Point)
    fits = (
        point
        and point["step"] == step_of(weights)
        and is_of_study(point, study, annotations_sha256)
        and modified_at(scores) >= modified_at(weights)
    )
    return point if fits else {}


def unscored(state_dir: Path | None, study: Study, annotations_sha256: str | None = None) -> list[Path]:
    """Weights that wait to be scored."""
    kept = kept_files(state_dir) if state_dir else []
    return [file for file in kept if not score_of(file, study, annotations_sha256)]


def scored_points(state_dir: Path, study: Study, annotations_sha256: str | None = None) -> list[dict[str, Any]]:
    """The scores of all weights of a training that have some, by their steps."""
    return [point for file in kept_files(state_dir) if (point := score_of(file, study, annotations_sha256))]


def write_so_far(run_folder: Path, digest: str, points: Sequence[Mapping[str, Any]]) -> bool:
    """Write ap_so_far.json unless it holds the same; returns whether it did not. Arguments as :func:`read_so_far`."""
    record = {"format": "lvis_rcnn.ap_so_far", "version": 1, "state": state_folder_name(digest), "points": points}
    changed = read_json_object(run_folder / SO_FAR, SoFar) != record
    if changed:
        write_json(run_folder / SO_FAR, record)
    return changed


def read_so_far(run_folder: Path, digest: str, study: Study) -> list[dict[str, Any]]:
    """The points in ap_so_far.json; none where it is of another training than this or of other settings.

    Args:
        run_folder: of the results of the run.
        digest: of the training, or the first digits, the name of its state folder.
        study: with the settings as they are now.
    """
    record = read_json_object(run_folder / SO_FAR, SoFar)
    if not record or record["state"] != state_folder_name(digest):
        return []
    return [point for point in record["points"] if is_of_study(point, study)]


def sentence(point: Mapping[str, Any]) -> str:
    """Where a point is and what it scored, for a person; AP in percent."""
    values = {name: point.get(kind, {}).get(metric) for name, (kind, metric) in METRICS_SAID.items()}
    scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items() if value is not None)
    part = "" if point["images"] == point["images_of_split"] else f" of {point['images_of_split']:,}"
    where = f"step {point['step']:,} (epoch {point['epoch']:.3g})"
    return f"{where}: {scores}, on {point['images']:,}{part} images"


def last_sentence(points: Sequence[Mapping[str, Any]]) -> str:
    """:func:`sentence` of the last point; empty where there is none."""
    return sentence(points[-1]) if points else ""
