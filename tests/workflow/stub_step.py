"""Stands in for a step in the tests of the DAG: notes how it was called and makes the files the step would make."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lvis_rcnn.reporting import CARD, DIFFERENCES, PAGES, PICTURES, PLOTS
from lvis_rcnn.system.cli import InputError, run_step

STEP = Path(__file__).stem


def in_two_forms(folder: Path, names: object) -> list[Path]:
    return [folder / f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]  # type: ignore[attr-defined]


def fetched(args: argparse.Namespace) -> list[Path]:
    if not args.weights:
        return [args.out]
    # The conda environment of the tests is empty: nothing but the standard library is imported above.
    from lvis_rcnn.config.zoo import load_zoo

    return [args.out / load_zoo(args.zoo)[args.weights].file_name]


MAKES: dict[str, Callable[[argparse.Namespace], list[Path]]] = {
    "draw": lambda args: [
        args.out / name for name in ("train.json", "val.json", "images/train/000001.png", "manifest.json")
    ],
    "fetch": fetched,
    "store": lambda args: [args.out / "store.json"],
    "preflight": lambda args: [args.out, args.out.with_suffix(".txt")],
    "repeat_factors": lambda args: [args.out / "images.csv"],
    "calibrate": lambda args: [args.out],
    "weights": lambda args: [args.out, args.report],
    "train": lambda args: [args.out / name for name in ("model.pth", "train.json", "log.json")],
    "track": lambda args: [Path("results/tiny", *args.run, "ap_so_far.json")],
    "infer": lambda args: [args.out / name for name in ("detections/shard-00000.npz", "inference.json")],
    "measure": lambda args: [args.out],
    "evaluate": lambda args: [args.out, args.matches],
    "compare": lambda args: [args.out, args.out.with_suffix(".html"), *in_two_forms(args.plot, DIFFERENCES)],
    "report table": lambda args: [args.out.with_suffix(suffix) for suffix in (".md", ".tex", ".csv", ".json")],
    "report plots": lambda args: in_two_forms(args.out, PLOTS),
    "report pages": lambda args: [
        *(args.out / f"{name}.html" for name in PAGES),
        *(model.with_name(CARD) for model in args.out.glob("*/*/model.pth")),
    ],
    "report pictures": lambda args: [args.out / f"{name}.png" for name in PICTURES],
    "report batch": lambda args: [args.out],
}


def step(args: argparse.Namespace) -> None:
    call = {"step": STEP, "python": sys.executable, "path": os.environ["PYTHONPATH"], "arguments": sys.argv[1:]}
    with Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    if Path(f"meet_in_{STEP}").exists():
        meet()
    if Path(f"fail_{STEP}").exists():
        raise InputError("gt.json: annotation 7", "names no image")
    for file in MAKES[f"{STEP} {args.command}" if STEP == "report" else STEP](args):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("made by a stub\n")


def meet() -> None:
    """Wait until two steps are here."""
    Path(f"here_{os.getpid()}").touch()
    until_s = time.monotonic() + 120
    while len(list(Path().glob("here_*"))) < 2:
        if time.monotonic() > until_s:
            raise InputError("nobody", "came")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(outputs={})
    for name in ("log", "out", "zoo", "report", "matches", "plot"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--run", nargs=1)
    parser.add_argument("command", nargs="?")
    known, _ = parser.parse_known_args()
    parser.parse_args = lambda: known  # type: ignore[assignment,misc]
    run_step(parser, step)


main()
