"""Stands in for a step in the tests of the DAG: notes how it was called and makes the files the step would make."""

import argparse
import json
import os
import sys
from pathlib import Path

from lvis_rcnn.system.cli import InputError, run_step

STEP = Path(__file__).stem
PLOTS = (
    *("training_curves", "training_losses", "repeat_factors", "ap_and_images", "ap_by_group", "ap_and_cost"),
    *("precision_recall_box", "precision_recall_mask"),
)
FILES = {
    "mini": ["train.json", "val.json", "images/train/000001.png", "manifest.json"],
    "annotations": ["store.json"],
    "repeat_factors": ["images.csv"],
    "train": ["model.pth", "train.json", "log.json"],
    "plots": [f"{name}.{suffix}" for name in PLOTS for suffix in ("png", "svg")],
    "pictures": [f"{name}.png" for name in ("chosen", "random", "missed_rare", "missed_common", "missed_frequent")],
    "pages": [f"{name}.html" for name in ("table", "per_category", "cost", "provenance", "preflight")],
    "infer": ["detections/shard-00000.npz", "inference.json"],
}


def step(args: argparse.Namespace) -> None:
    call = {"step": STEP, "python": sys.executable, "path": os.environ["PYTHONPATH"], "arguments": sys.argv[1:]}
    with Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    if Path(f"fail_{STEP}").exists():
        raise InputError("gt.json: annotation 7", "names no image")
    if STEP == "report" and args.command == "compare":
        plots = ("differences", "category_differences")
        files = [
            args.out,
            args.out.with_suffix(".html"),
            *(args.plot / f"{name}.{suffix}" for name in plots for suffix in ("png", "svg")),
        ]
    elif STEP == "report":
        study = Path(args.study).read_text().split("study: ", 1)[1].split("\n", 1)[0]
        bases = [args.out.with_suffix(""), args.results / study / "table"]
        files = [base.with_suffix(suffix) for base in bases for suffix in (".md", ".csv", ".json")]
    elif STEP == "checkpoints" and args.command == "fetch":
        # The conda environment of the tests is empty: nothing but the standard library is imported above.
        from lvis_rcnn.config.zoo import load_zoo

        files = [args.folder / load_zoo(args.zoo)[args.name].file_name]
    elif STEP == "checkpoints":
        files = [args.out, args.report]
    elif STEP == "preflight":
        files = [args.out, args.out.with_suffix(".txt")]
    else:
        files = [args.out / name for name in FILES[STEP]] if STEP in FILES else [args.out]
    for file in [*files, *([args.matches] if args.matches else [])]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("made by a stub\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--study")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--matches", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("command", nargs="?")
    known, _ = parser.parse_known_args()
    parser.parse_args = lambda: known  # type: ignore[assignment,misc]
    run_step(parser, step)


main()
