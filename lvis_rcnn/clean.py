"""Remove what finished runs leave in results/state, which nothing reads any more; without --remove only list it.

    python -m lvis_rcnn clean --study configs/mini.yaml
    python -m lvis_rcnn clean --study configs/mini.yaml --remove

A run is finished when it is trained, detected in and scored with the settings of the study file as it is now. Its
models, detections and scores stay, and Snakemake has nothing to do afterwards. State of unfinished runs, of other
settings, and whatever a process still holds is left alone. A rule that is forced to run again begins at its beginning.
"""

import argparse
import contextlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lvis_rcnn.config.study import Study, add_studies, load_study, zoo_of
from lvis_rcnn.config.zoo import load_zoo, scored_models
from lvis_rcnn.runs.identity import state_folder_name
from lvis_rcnn.runs.inference import inference_folder
from lvis_rcnn.runs.lease import is_held
from lvis_rcnn.runs.paths import state_of_run
from lvis_rcnn.runs.points import unscored
from lvis_rcnn.runs.states import RunState, states_of
from lvis_rcnn.system.cli import check_folder, log, run_step, step_parser
from lvis_rcnn.system.files import stats_below


def leftovers(study: Study, results: Path, state: RunState) -> list[Path]:
    """The state folders of a finished run: those that its records name, of its training and of its inference."""
    records = state.run.records
    names = [inference_folder(records["infer"])]
    if not state.run.uses and (digest := records.get("train", {}).get("run_digest")):
        names.append(state_folder_name(digest))
    run = state_of_run(results, study, str(state.run.folder.relative_to(results / study.study)))
    return [run / name for name in names if (run / name).is_dir()]


def bytes_freed(folders: Sequence[Path]) -> float:
    """Disk that removing them frees; a file that results/ shares by a hard link frees none."""
    files = [file for folder in folders for file in stats_below(folder)]
    links = Counter(file.st_ino for file in files)
    return sum(file.st_size / file.st_nlink for file in files if links[file.st_ino] == file.st_nlink)


def clean(study: Study, study_file: Path, results: Path, *, remove: bool) -> float:
    """List or remove the state of the finished runs of a study; returns the bytes that this frees."""
    states = states_of(study, results, scored_models(study, study_file), load_zoo(zoo_of(study, study_file)))
    freed = 0.0
    for state in states:
        if state.state != "done":
            log.info("%s: kept, since it is not finished (%s)", state.name, state.state)
            continue
        folders = leftovers(study, results, state)
        if held := [folder for folder in folders if is_held(folder)]:
            log.info("%s: kept, since a process holds %s", state.name, held[0])
            continue
        if study.evaluation.scores_on_the_way and unscored(state.state_dir, study.of_row(state.row)):
            log.info("%s: kept, since weights of it are not scored: python -m lvis_rcnn track", state.name)
            continue
        freed += bytes_freed(folders)
        for folder in folders:
            does = "removing" if remove else "would remove"
            log.info("%s: %s %s, %.1f MB", state.name, does, folder, bytes_freed([folder]) / 1e6)
            if remove:
                with contextlib.suppress(FileNotFoundError):  # another clean is removing it
                    shutil.rmtree(folder)
                remove_if_empty(folder.parent, results / "state")
    return freed


def remove_if_empty(folder: Path, stop: Path) -> None:
    """Remove a folder and those above it, below ``stop``, that are empty."""
    with contextlib.suppress(OSError):
        while folder != stop:
            folder.rmdir()
            folder = folder.parent


def step(args: argparse.Namespace) -> None:
    """Clean the studies that the arguments name."""
    check_folder("--results", args.results, fix="name the folder the steps write into")
    freed = sum(clean(load_study(file), file, args.results, remove=args.remove) for file in args.study)
    if args.remove:
        log.info("%.1f MB are free again", freed / 1e6)
    else:
        log.info("nothing was removed; the same command with --remove frees %.1f MB", freed / 1e6)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    add_studies(parser)
    parser.add_argument("--remove", action="store_true", help="remove it, not only list it")
    run_step(parser, step)


if __name__ == "__main__":
    main()
