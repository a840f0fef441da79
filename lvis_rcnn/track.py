"""Score weights that trainings have kept on their way, while they go on: AP so far.

    python -m lvis_rcnn track --study configs/lvis_v0.5.yaml
    python -m lvis_rcnn track --study configs/lvis_v0.5.yaml --watch 60

A training keeps its weights at the points that evaluation.score_at_epochs and score_at_steps of its study name. This
step scores those that have no scores yet, on evaluation.score_images of the validation images, and writes
RUN/ap_so_far.json, which `status`, the table and the plots read, and event files for TensorBoard. It needs nothing of a
running training but these files, and takes a GPU or the cores of one inference for itself while it scores. Start it in
the folder that Snakemake runs in. What is scored is never scored again; stopped anywhere, the next start goes on.

With --watch it looks again every so many seconds, until all runs are trained and scored, or no training has been alive
for an hour.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from lvis_rcnn.config.zoo import initial_zoo
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.inference.kept import Validation, score_weights, write_ap_events
from lvis_rcnn.runs.paths import RESULTS, StudyPaths, load_study_paths
from lvis_rcnn.runs.points import SO_FAR, last_sentence, scored_points, unscored, write_so_far
from lvis_rcnn.runs.states import RunState, state_of
from lvis_rcnn.system.cli import InputError, add_number, log, run_step, step_parser
from lvis_rcnn.training.distributed import process_device, require_device
from lvis_rcnn.training.run import is_finished

# Trainings that wait in a queue give no sign of life; the watch keeps its GPU for no longer than this meanwhile.
SILENT_S = 3600.0


def track(paths: StudyPaths, runs: Sequence[str], watch_s: float | None) -> None:
    """Score the weights of some runs that wait for it; with ``watch_s`` go on until all are trained and scored."""

    @cache
    def device() -> torch.device:
        """A GPU is taken when there is something to score, and then kept."""
        require_device(paths.study, paths.study_file)
        return process_device(paths.study.compute.device, 0)

    alive_at = time.monotonic()
    while True:
        states = states_of_runs(paths, runs)
        scored = sum(score_run(paths, state, device) for state in states)
        if watch_s is None or all(state.is_trained for state in states):
            return
        if scored or any(state.state == "running" for state in states):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > SILENT_S:
            log.info("no training has been alive for %.0f minutes; the next start goes on", SILENT_S / 60)
            return
        time.sleep(watch_s)


def states_of_runs(paths: StudyPaths, runs: Sequence[str]) -> list[RunState]:
    """The states of these runs, named as ``r50/seed0``."""
    zoo = initial_zoo(paths.study, paths.study_file)
    split = [run.split("/seed") for run in runs]
    return [state_of(paths.study, Path(RESULTS), row, int(seed), zoo) for row, seed in split]


def score_run(paths: StudyPaths, state: RunState, device: Callable[[], torch.device]) -> int:
    """Score the weights of a run that wait for it, and write its ap_so_far.json; returns how many there were."""
    waiting = unscored(state.state_dir, paths.study_of(state.row), scored_annotations(paths))
    for weights in waiting:
        score_weights(weights, paths.backbone_of(state.row), validation_of(paths, state.row), device())
        write_scores(paths, state)
    if not waiting:
        write_scores(paths, state)
    return len(waiting)


def write_scores(paths: StudyPaths, state: RunState) -> None:
    """Write ap_so_far.json and the event files where they change.

    That of a trained run is the output of a rule: it is written once all its weights are scored, and then even if there
    are none, as where points were added to the study after the training had passed them.
    """
    study, folder, state_dir = paths.study_of(state.row), state.run.folder, state.state_dir
    if state_dir is None:
        if state.is_trained and not (folder / SO_FAR).exists():
            write_so_far(folder, state.run.records["train"].get("run_digest", ""), [])
        return
    wanted, ended = scored_annotations(paths), is_finished(state_dir)
    points = scored_points(state_dir, study, wanted)
    if (ended and unscored(state_dir, study, wanted)) or not (ended or points):
        return
    if write_so_far(folder, state_dir.name, points) and points:
        write_ap_events(state_dir / "tensorboard" / "ap", points)
        log.info("%s, %s", state.name, last_sentence(points))
    elif not points:
        log.warning("warning: the training of %s kept no weights: its points came into the study later", state.name)


def scored_annotations(paths: StudyPaths) -> str:
    """Digest of the validation annotations."""
    return open_store(Path(paths.store("val"))).annotations_sha256


def validation_of(paths: StudyPaths, row: str) -> Validation:
    """The validation split of a study, and the settings of a row."""
    calibration = paths.calibration_of(row)
    exhaustive, counted = paths.is_exhaustive("val"), paths.frequency_files("val")
    return Validation(
        paths.study_of(row),
        Path(paths.store("val")),
        Path(paths.image_folder("val")),
        Path(paths.annotation_file("val")),
        exhaustive,
        Path(counted[0]) if counted else None,
        Path(calibration[0]) if calibration else None,
    )


def step(args: argparse.Namespace) -> None:
    """Track the runs that the arguments name."""
    paths = load_study_paths(args.study)
    if not paths.study.evaluation.scores_on_the_way:
        fix = "add score_at_epochs or score_at_steps to evaluation; a training that runs must be started again for them"
        raise InputError(f"{args.study}: evaluation", "names no points of a training to be scored", fix=fix)
    if unknown := [run for run in args.run if run not in paths.trained_runs]:
        raise InputError(f"--run {unknown[0]}", "is none of the study's", allowed=", ".join(paths.trained_runs))
    track(paths, args.run or paths.trained_runs, args.watch)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file (configs/*.yaml)")
    runs = "runs to score, as r50/seed0 (default: all)"
    parser.add_argument("--run", action="extend", nargs="+", default=[], metavar="NAME", help=runs)
    watch = "look again every SECONDS until all runs are trained and scored (default: once)"
    add_number(parser, "--watch", watch, 0, 86400, kind=float, above=True, metavar="SECONDS")
    run_step(parser, step)


if __name__ == "__main__":
    main()
