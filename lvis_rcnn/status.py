"""Show the state of every run of a study: progress, speed and time left, or why it is not running.

    python -m lvis_rcnn status
    python -m lvis_rcnn status --study configs/lvis_v1.yaml --watch 30
    python -m lvis_rcnn status --plan

Reads the files of runs in RESULTS, whether or not Snakemake is running, on any host that sees the folder. A run is
stalled if its heartbeat is more than three minutes old, or three steps if those are longer (runs/states.py). --plan
shows what would run: which runs start from the beginning or resume, how long it will take, and which steps are left.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from lvis_rcnn.config.study import Study, add_studies, load_study
from lvis_rcnn.config.zoo import initial_zoo, scored_models
from lvis_rcnn.runs.points import last_sentence, step_of, unscored
from lvis_rcnn.runs.states import STATES, RunState, Work, processor_hours, states_of, work_left
from lvis_rcnn.system.cli import add_number, check_folder, duration, rate, run_step, step_parser
from lvis_rcnn.system.files import stats_below

TEXT_COLUMNS = {"row", "state", "where", "training", "speed from", "then"}
# Columns that are left out on a narrow terminal, in this order.
LEAST_NEEDED = ("where", "speed from", "starts", "images/s", "s/step")
CLEAR_SCREEN = "\x1b[H\x1b[2J"

TableRow = dict[str, str]


def status_text(study: Study, states: Sequence[RunState], width: int | None = None) -> str:
    """Table and notes of the runs of a study, within ``width`` characters if possible."""
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    return page(f"{study.study}: {summary}", [status_row(state) for state in states], notes(study, states), width)


def status_row(state: RunState) -> TableRow:
    """The table row of a run; unknown cells are empty."""
    beat, record = state.heartbeat, state.run.records.get("train", {})
    step = state.steps if state.is_trained else beat.get("step")
    images_per_s, eta_s, loss = beat.get("images_per_s"), beat.get("eta_s"), beat.get("loss")
    started = state.steps is not None and step is not None
    return {
        "row": state.row,
        "seed": "" if state.run.seed is None else str(state.run.seed),
        "state": state.state,
        "step": f"{step}/{state.steps}" if started else "",
        "%": f"{100 * step // state.steps}" if started and step is not None and state.steps else "",
        "images/s": "" if images_per_s is None else rate(images_per_s),
        "ETA": duration(eta_s) if eta_s is not None and state.state == "running" else "",
        "loss": "" if loss is None else f"{loss:.3f}",
        "starts": str(beat.get("attempt", record.get("attempts", ""))),
        "where": where(state),
    }


def where(state: RunState) -> str:
    """Host and job of a run; the host without its domain."""
    host, job = str(state.heartbeat.get("host", "")).split(".")[0], state.heartbeat.get("job")
    return f"{host}, job {job}" if job else host


def notes(study: Study, states: Sequence[RunState]) -> list[str]:
    """Notes below the table: reasons for states, old state folders with their disk space, AP so far."""
    lines = [f"{state.name} {state.state}: {state.reason}" for state in states if state.reason]
    for state in states:
        if state.older:
            number, folder = len(state.older), state.older[0].parent
            what = f"{number} older state folder{'s' if number > 1 else ''}, of other settings, data or code"
            megabytes = sum(file.st_size for older in state.older for file in stats_below(older)) / 1e6
            lines.append(f"{state.name}: {what}, in {folder}: {megabytes:,.1f} MB")
    return [*lines, *ap_so_far(study, states)]


def ap_so_far(study: Study, states: Sequence[RunState]) -> list[str]:
    """The last scores of each run that is not finished, and which of its weights are still to be scored."""
    lines = []
    for state in states:
        if state.run.so_far and state.state != "done":
            lines.append(f"{state.name}: AP so far, {last_sentence(state.run.so_far)}")
        asked = study.evaluation.scores_on_the_way and state.state_dir
        if waiting := unscored(state.state_dir, study.of_row(state.row)) if asked else []:
            steps = ", ".join(f"{step_of(file):,}" for file in waiting)
            lines.append(f"{state.name}: weights of step {steps} are not scored: python -m lvis_rcnn track --study …")
    return lines


def plan_text(study: Study, states: Sequence[RunState], width: int | None = None) -> str:
    """Table and totals of what would run, within ``width`` characters if possible."""
    works = work_left(study, states)
    if not works:
        return f"{study.study}: nothing would run, every run is done"
    unfinished = sum(work.state.state != "done" for work in works)
    unmeasured = sum(work.state.is_unmeasured for work in works)
    parts = [f"{unfinished} of {len(states)} runs are not done"] if unfinished else ["every run is done"]
    parts += [f"{unmeasured} row{'s' * (unmeasured > 1)} to be measured"] if unmeasured else []
    title = f"{study.study}: {', '.join(parts)}"
    return page(title, [plan_row(study, work) for work in works], totals(study, works), width)


def unit(study: Study) -> str:
    """The unit of processor time of a study."""
    return "GPU-hours" if study.compute.device == "cuda" else "CPU-hours"


def plan_row(study: Study, work: Work) -> TableRow:
    """The table row of a run in the plan; the cells of training are empty where none is left."""
    state, hours = work.state, processor_hours(study, work)
    trained = {"training": "" if state.run.seed is None else work.training, "time": "", unit(study): ""}
    pace = None if state.is_trained else work.pace
    about = "~" if pace and pace.is_estimated else ""
    if not state.is_trained:
        trained["time"] = "unknown" if work.seconds is None else f"{about}{duration(work.seconds)}"
        trained[unit(study)] = "unknown" if hours is None else f"{about}{hours:.2f}"
    return {
        "row": state.row,
        "seed": "" if state.run.seed is None else str(state.run.seed),
        **trained,
        "s/step": "" if pace is None else f"{about}{pace.seconds_per_step:.3g}",
        "speed from": "" if pace is None else pace.basis,
        "then": ", ".join(work.then),
    }


def totals(study: Study, works: Sequence[Work]) -> list[str]:
    """What all runs of a plan need together, and the runs for which that is unknown."""
    steps = Counter(step for work in works for step in (["train"] if not work.state.is_trained else []) + work.then)
    lines = ["to do: " + ", ".join(f"{number} x {step}" for step, number in steps.items())]
    trained = [(work, processor_hours(study, work)) for work in works if not work.state.is_trained]
    known = [(hours, work.pace) for work, hours in trained if hours is not None]
    estimated = sum(hours for hours, pace in known if pace and pace.is_estimated)
    if known:
        part = f", {estimated:.2f} of them estimated by arithmetic (docs/performance.md)" * (estimated > 0)
        rest = " plus what is unknown" * (len(known) < len(trained))
        lines.append(f"training: {sum(hours for hours, _ in known):.2f} {unit(study)}{part}{rest}")
    if unknown := ", ".join(work.state.name for work, hours in trained if hours is None):
        lines.append(f"unknown until preflight has counted the optimizer steps: {unknown}")
    return lines


def page(title: str, rows: Sequence[TableRow], lines: Sequence[str], width: int | None) -> str:
    """Title, table and the lines below it, which name the columns that did not fit."""
    table, left_out = table_within(rows, width)
    more = [f"too narrow for: {', '.join(left_out)}"] if left_out else []
    return "\n".join([title, "", table, *([""] if lines or more else []), *lines, *more])


def table_within(rows: Sequence[TableRow], width: int | None) -> tuple[str, list[str]]:
    """A plain table, and the columns left out to fit ``width`` characters; None for any width."""
    expendable = [name for name in LEAST_NEEDED if name in rows[0]]
    for number in range(len(expendable) + 1):
        left_out = expendable[:number]
        table = plain_table([{name: row[name] for name in row if name not in left_out} for row in rows])
        if width is None or max(map(len, table.splitlines())) <= width:
            break
    return table, left_out


def plain_table(rows: Sequence[TableRow]) -> str:
    """A plain table; text is aligned left, numbers right."""
    aligned = ["left" if name in TEXT_COLUMNS else "right" for name in rows[0]]
    # The header is passed as a row, since tabulate makes columns with headers two characters wider.
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    table = tabulate(lines, tablefmt="plain", disable_numparse=True, colalign=aligned)
    return "\n".join(line.rstrip() for line in table.splitlines())


def study_text(study_file: Path, results: Path, plan: bool) -> str:
    """Status or plan of a study, as wide as the terminal.

    Raises:
        InputError: the study or its zoo is wrong.
    """
    study = load_study(study_file)
    states = states_of(study, results, scored_models(study, study_file), initial_zoo(study, study_file))
    # Any width where the output is not a terminal, unless COLUMNS is set.
    width = shutil.get_terminal_size(fallback=(0, 0)).columns or None
    return (plan_text if plan else status_text)(study, states, width)


def watch(text: Callable[[], str], seconds: float) -> None:
    """Show a text every ``seconds`` until Ctrl-C, which is not an error."""
    try:
        while True:
            now = f"{text()}\n\n{time.strftime('%H:%M:%S')}, every {seconds:g} s until Ctrl-C"
            print(f"{CLEAR_SCREEN if sys.stdout.isatty() else ''}{now}", flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        print()


def step(args: argparse.Namespace) -> None:
    """Show the studies that the arguments name."""
    check_folder("--results", args.results, fix="name the folder the steps write into")

    def text() -> str:
        return "\n\n".join(study_text(study, args.results, args.plan) for study in args.study)

    if args.watch is None:
        print(text())
    else:
        watch(text, args.watch)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    add_studies(parser)
    watch = "show it every SECONDS until Ctrl-C"
    add_number(parser, "--watch", watch, 0, 86400, kind=float, above=True, metavar="SECONDS")
    parser.add_argument(
        "--plan", action="store_true", help="show what would run, from which step, and how long it takes"
    )
    run_step(parser, step)


if __name__ == "__main__":
    main()
