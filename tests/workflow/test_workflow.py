"""The DAG as a user meets it: what is planned, what reruns, what stops it; stubs stand for the steps."""

import base64
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn import STEPS
from lvis_rcnn.config.study import DEFAULT_ZOO, load_study, read_yaml, settings_digest, settings_of_step
from lvis_rcnn.config.zoo import load_zoo
from tests.conftest import REPOSITORY, Ended, run_snakemake, snakemake_command, write_study
from tests.system.test_cli import seen_on_a_terminal

ZOO = load_zoo(DEFAULT_ZOO)
MODEL = "lvis_v0.5_r50"
PUBLISHED = ZOO[MODEL]
EVERY_STEP = {"store": 2, "preflight": 1, "repeat_factors": 1, "table": 1}
# What people see: all of it follows from the metrics, but for the pictures of runs and of the first training step.
RENEWED = {"table": 1, "plots": 1, "pages": 1}


def scored(number: int) -> dict[str, int]:
    return dict.fromkeys(("train", "infer", "evaluate"), number)


def runs(number: int) -> dict[str, int]:
    return {**scored(number), "measure": number}


def shown(number: int) -> dict[str, int]:
    return {**runs(number), "pictures": number, **RENEWED}


def fetched(*names: str) -> dict[str, int]:
    return {f"fetch_{name}": 1 for name in names}


def published(number: int) -> dict[str, int]:
    steps = ("fetch_published", "import_published", "measure", "infer", "evaluate", "pictures")
    return dict.fromkeys(steps, number) | RENEWED


@dataclass(frozen=True)
class Stubbed:
    """A copy of the workflow whose steps are stubs, and a folder in which its studies run."""

    workflow: Path
    folder: Path

    def study(self, **changes: Any) -> Path:
        return write_study(self.folder / "tiny.yaml", **{"study": "tiny", "backbones": ["r50", "r101"], **changes})

    def snakemake(self, *arguments: str | Path, study: Path | None = None, **more: Any) -> Ended:
        chosen = study or self.folder / "tiny.yaml"
        return run_snakemake(*arguments, "--configfile", chosen, cwd=self.folder, **{"workflow": self.workflow, **more})

    def plan(self, *arguments: str | Path, **more: Any) -> dict[str, int]:
        ended = self.snakemake(*arguments, "-n", **more)
        assert ended.code == 0, ended.text
        return ended.jobs()

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]


def stub_workflow(folder: Path) -> Path:
    """Copy the workflow to ``folder``, with stubs for its steps."""
    for name in ("workflow", "profiles", "envs", "slurm", "configs", "lvis_rcnn"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    for step in set(STEPS) - {"export", "status"}:
        shutil.copy(REPOSITORY / "tests" / "workflow" / "stub_step.py", folder / "lvis_rcnn" / f"{step}.py")
    return folder


def last_lines(ended: Ended) -> list[str]:
    """What the workflow itself says at the end, before Snakemake names its log."""
    lines = ended.text.splitlines()
    ends = next(at for at, line in enumerate(lines) if line.startswith("Complete log(s): "))
    return list(reversed(list(itertools.takewhile(lambda line: line.startswith("The "), reversed(lines[:ends])))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Stubbed:
    """A finished study of two backbones, run with another Python first on PATH."""
    base = tmp_path_factory.mktemp("stubbed")
    (base / "decoy").mkdir()
    (base / "decoy" / "python").write_text("#!/bin/sh\necho 'a decoy ran' >&2\nexit 1\n")
    (base / "decoy" / "python").chmod(0o755)
    (base / "run").mkdir()
    stubbed = Stubbed(stub_workflow(base / "checkout"), base / "run")
    stubbed.study()
    ended = stubbed.snakemake("--cores", "2", env={"PATH": f"{base / 'decoy'}:{os.environ['PATH']}"})
    assert ended.code == 0, ended.text
    assert last_lines(ended) == [
        "The table: results/tiny/table.md",
        "The pages: results/tiny/*.html",
        "The plots: results/tiny/plots",
        "The pictures: results/tiny/*/*/pictures",
        "The report, all in one file, is made by: snakemake --report report.html "
        f"--configfile {stubbed.folder / 'tiny.yaml'}",
    ]
    assert "Training r101 (seed 0) on tiny" in ended.text
    return stubbed


def test_steps_run_in_snakemakes_own_python_and_find_the_package_of_the_checkout(finished: Stubbed) -> None:
    calls = finished.calls()
    assert {call["step"] for call in calls} >= {"draw", "store", "train", "infer", "evaluate", "report"}
    assert {call["python"] for call in calls} == {sys.executable}
    assert {call["path"].split(":")[0] for call in calls} == {str(finished.workflow)}


def test_logs_and_benchmarks_are_named_after_steps(finished: Stubbed) -> None:
    steps = ["draw", "store_train", "store_val", "preflight", "repeat_factors", "table", "plots", "pages"]
    steps += ["training_pictures"]
    steps += ["measure_r50", "measure_r101"]
    of_runs = ("train", "infer", "evaluate", "pictures")
    steps += [f"{step}_{backbone}_seed0" for step in of_runs for backbone in ("r50", "r101")]
    results = finished.folder / "results" / "tiny"
    assert {path.stem for path in (results / "logs").iterdir()} == set(steps)
    assert {path.stem for path in (results / "benchmarks").iterdir()} == set(steps)


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        pytest.param({"title": "other {new} one"}, RENEWED, id="title"),
        pytest.param({"dataset": {"name": "other"}}, RENEWED, id="name of the dataset"),
        pytest.param({"augmentation": {"skip_broken_images": True}}, {}, id="broken images"),
        pytest.param({"evaluation": {"detections_per_image": 9}}, {"evaluate": 2, **RENEWED}, id="evaluation"),
        pytest.param({"evaluation": {"protocols": ["fixed", "boundary"]}}, {"evaluate": 2, **RENEWED}, id="protocols"),
        pytest.param({"evaluation": {"score_at_steps": [9]}}, {"track": 2, "plots": 1}, id="points of trainings"),
        pytest.param(
            {"inference": {"nms_iou": 0.4}},
            {"infer": 2, "measure": 2, "evaluate": 2, "pictures": 2, **RENEWED},
            id="inference",
        ),
        pytest.param(
            {"inference": {"calibration": {"method": "norcal", "gamma": 0.6}}},
            {"calibrate": 1, "infer": 2, "measure": 2, "evaluate": 2, "pictures": 2, **RENEWED},
            id="calibration",
        ),
        pytest.param({"schedule": {"steps": 9}}, {"preflight": 1, **shown(2), "training_pictures": 1}, id="schedule"),
        pytest.param(
            {"sampling": {"oversample_threshold": None}},
            {"preflight": 1, "repeat_factors": 1, **shown(2), "training_pictures": 1},
            id="sampling",
        ),
        pytest.param({"backbones": ["r50", "r101", "x101_32x4d"]}, shown(1), id="one more backbone"),
        pytest.param(
            {"rows": {"plain": {"backbone": "r50", "sampling": {"oversample_threshold": None}}}},
            {"preflight_of_row": 1, "repeat_factors": 1, **shown(1)},
            id="one more row",
        ),
        pytest.param(
            {"rows": {"few": {"backbone": "r50", "inference": {"detections_per_image": 9}}}},
            {step: number for step, number in shown(1).items() if step != "train"},
            id="a row that uses the training of another",
        ),
    ],
)
def test_a_change_reruns_what_it_touches(finished: Stubbed, changes: dict[str, Any], jobs: dict[str, int]) -> None:
    finished.study(**changes)
    try:
        assert finished.plan() == jobs
    finally:
        finished.study()


def test_a_row_that_uses_the_training_of_another_is_never_trained_itself(finished: Stubbed) -> None:
    finished.study(rows={"few": {"backbone": "r50", "inference": {"detections_per_image": 9}}})
    try:
        ended = finished.snakemake("results/tiny/few/seed0/model.pth", "-n")
        assert "No rule to produce results/tiny/few/seed0/model.pth" in ended.text
    finally:
        finished.study()


def test_comments_resources_renewed_times_and_a_moved_checkout_rerun_nothing(finished: Stubbed, tmp_path: Path) -> None:
    other_place = Stubbed(stub_workflow(tmp_path / "moved"), finished.folder)
    for drawn in finished.folder.glob("results/data/*/*.json"):
        drawn.touch()
    study = finished.study(resources={"memory_mb": 1})
    study.write_text(f"# a comment\n{study.read_text()}")
    try:
        assert other_place.plan() == {}
    finally:
        finished.study()


def test_one_backbone_alone_can_be_run_again(finished: Stubbed, tmp_path: Path) -> None:
    only_r50 = {**runs(1), "table": 1}
    ended = finished.snakemake("results/tiny/table.md", "-R", "results/tiny/r50/seed0/model.pth", "-n")
    assert ended.jobs() == only_r50
    assert "Training r50" in ended.text
    shutil.move(finished.folder / "results" / "tiny" / "r50", tmp_path / "r50")
    try:
        assert finished.plan() == shown(1)
        assert finished.plan("results/tiny/r50/seed0/metrics.json") == scored(1)
    finally:
        shutil.move(tmp_path / "r50", finished.folder / "results" / "tiny" / "r50")


def put_scored(finished: Stubbed, *runs: str, text: str = "scored") -> None:
    """What a comparison reads of another study."""
    for run in runs:
        folder = finished.folder / "results" / run
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "matches.npz"):
            (folder / name).write_text(text)


def test_a_study_is_compared_with_the_one_it_names_and_trained_no_more_for_it(finished: Stubbed) -> None:
    study = finished.folder / "with_sampler.yaml"
    without = write_study(study, study="with_sampler", seeds=[0, 1])
    ended = finished.snakemake("--cores", "2", study=without)
    assert ended.code == 0, ended.text
    assert "compare" not in ended.jobs()
    put_scored(finished, "before/r50/seed0", "before/r50/seed1")
    write_study(study, study="with_sampler", seeds=[0, 1], report={"compare_with": "before"})
    assert finished.plan(study=study) == {"compare": 1, **RENEWED}
    ended = finished.snakemake("--cores", "2", study=study)
    assert ended.code == 0, ended.text
    assert "Comparing with_sampler with before" in ended.text
    assert "The comparison: results/with_sampler/comparison/comparison.txt" in ended.text
    (call,) = [call["arguments"] for call in finished.calls() if call["step"] == "compare"]
    folder = "results/with_sampler/comparison"
    assert call[:5] == ["results/before", "results/with_sampler", "--only", "r50/seed0", "r50/seed1"]
    assert call[5:9] == ["--plot", folder, "--out", f"{folder}/comparison.txt"]
    assert finished.plan(study=study) == {}
    put_scored(finished, "before/r50/seed1", text="scored again")
    assert finished.plan(study=study) == {"compare": 1}


def test_rows_of_one_name_are_compared_each_in_its_folder(finished: Stubbed) -> None:
    put_scored(finished, "many/r50/seed0", "many/r101/seed0", "many/x101_32x4d/seed0", "unlike/x101_32x4d/seed0")
    finished.study(report={"compare_with": "many"})
    try:
        assert finished.plan() == {"compare": 1, **RENEWED}
        made = re.findall(r"^results/tiny/comparison/(\S+)", finished.snakemake("--summary").text, re.MULTILINE)
        names = [f"{name}.{suffix}" for name in ("differences", "category_differences") for suffix in ("png", "svg")]
        assert sorted(made) == sorted(
            ["comparison.txt", "comparison.html", *(f"{row}/{name}" for row in ("r50", "r101") for name in names)]
        )
        finished.study(report={"compare_with": "unlike"})
        ended = finished.snakemake("--cores", "1")
        message = (
            "error: results/tiny: has no row in common with results/unlike: r50, r101; there x101_32x4d; allowed: "
        )
        assert message in ended.text.splitlines()[-1]
    finally:
        finished.study()


def test_what_is_not_there_to_compare_with_is_one_line_before_any_job_and_no_hindrance_to_a_plan(
    finished: Stubbed, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "later.yaml", study="later", report={"compare_with": "earlier"})
    ended = finished.snakemake("--cores", "1", study=study)
    assert ended.code != 0
    told = (
        f"{study}: report.compare_with: nothing in results/earlier is scored; allowed: a study that ran here up to its "
        f"scores; fix: run it first: snakemake --cores 2 --configfile {tmp_path / 'earlier.yaml'}"
    )
    assert ended.text.splitlines()[-1] == f"error: {told}"
    assert "Traceback" not in ended.text
    assert not (finished.folder / "results" / "later").exists()
    ended = finished.snakemake("-n", study=study)
    assert (ended.code, ended.jobs()["compare"]) == (0, 1)
    assert ended.text.count(f"would end before any job: {told}\n") == 1
    # What compares nothing needs no other study.
    assert finished.plan("results/later/r50/seed0/metrics.json", study=study)["train"] == 1
    assert finished.snakemake("results/later/repeat_factors", "--cores", "1", study=study).code == 0


def test_studies_share_the_drawn_data_and_take_turns_in_the_table_of_the_last_one(finished: Stubbed) -> None:
    other = write_study(finished.folder / "other.yaml", study="other")
    ended = finished.snakemake("results/table.md", "--cores", "2", study=other)
    assert ended.code == 0, ended.text
    assert ended.jobs() == {**EVERY_STEP, **runs(1), "results_table": 1}
    assert finished.plan() == {}
    assert finished.plan("results/table.md", study=other) == {}
    assert finished.snakemake("results/table.md", "--cores", "2").jobs() == {"results_table": 1}
    assert finished.plan("results/table.md") == {}
    assert finished.plan("results/table.md", study=other) == {"results_table": 1}


def test_two_studies_run_at_the_same_time_in_one_folder(finished: Stubbed) -> None:
    meeting = finished.folder / "meet_in_train"
    meeting.touch()
    commands = []
    for name in ("left", "right"):
        study = write_study(finished.folder / f"{name}.yaml", study=name)
        words = ("--cores", "1", "--configfile", study)
        commands.append(snakemake_command(*words, workflow=finished.workflow))
    try:
        both = [
            subprocess.Popen(words, cwd=finished.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for words in commands
        ]
        # A training of either waits until that of the other has begun.
        ended = [Ended(process.wait(), text) for process in both for text in process.communicate()[:1]]
    finally:
        meeting.unlink()
    for name, one in zip(("left", "right"), ended, strict=True):
        assert one.code == 0, one.text
        assert f"The table: results/{name}/table.md" in one.text
        assert (finished.folder / "results" / name / "table.md").exists()


@pytest.mark.slow
def test_a_terminal_that_closes_leaves_no_lock(finished: Stubbed) -> None:
    draw = {"seed": 7, "train_images": 8, "val_images": 5}
    study = write_study(finished.folder / "closed.yaml", study="closed", dataset={"draw": draw})
    words = snakemake_command("draw", "--cores", "1", "--configfile", study, workflow=finished.workflow)
    for here in finished.folder.glob("here_*"):
        here.unlink()
    (finished.folder / "meet_in_draw").touch()
    process = subprocess.Popen(words, cwd=finished.folder, start_new_session=True)
    try:
        while process.poll() is None and not any(finished.folder.glob("here_*")):
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGHUP)
        (finished.folder / "meet_in_draw").unlink()
    assert process.wait() == 1
    assert finished.snakemake("draw", "--cores", "1", study=study).code == 0


@pytest.mark.parametrize(("value", "plain"), [("", False), ("1", True)])
def test_no_color_is_heeded_on_a_terminal(tmp_path: Path, value: str, plain: bool) -> None:
    words = snakemake_command("--configfile", REPOSITORY / "configs" / "smoke.yaml", "--cores", "2", "-n")
    seen = seen_on_a_terminal(*words, cwd=tmp_path, NO_COLOR=value)
    assert "This was a dry-run" in seen
    assert ("\x1b[" not in seen) is plain


def test_a_dataset_of_files_is_followed_by_its_annotations_not_by_its_images(finished: Stubbed) -> None:
    splits = {name: {"annotations": f"own/{name}.json", "images": "own/images"} for name in ("train", "val")}
    study = write_study(finished.folder / "own.yaml", study="own", dataset={"name": "own", "draw": None, **splits})
    (finished.folder / "own" / "images").mkdir(parents=True)
    for name in splits:
        (finished.folder / "own" / f"{name}.json").write_text("{}")
    ended = finished.snakemake("results/own/table.md", "--cores", "2", study=study)
    assert ended.code == 0, ended.text
    (finished.folder / "own" / "images" / "one more.jpg").touch()
    assert finished.plan("results/own/table.md", study=study) == {}
    (finished.folder / "own" / "train.json").write_text("{ }")
    assert finished.plan("results/own/table.md", study=study) == {
        "store": 1,
        "preflight": 1,
        "repeat_factors": 1,
        **runs(1),
        "table": 1,
    }


def test_a_failed_step_shows_its_line_and_leaves_the_table_of_what_exists(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    stubbed = Stubbed(stub_workflow(tmp_path / "checkout"), tmp_path / "run")
    stubbed.study(backbones=["r50"])
    flag = stubbed.folder / "fail_preflight"
    flag.touch()
    ended = stubbed.snakemake("--cores", "2")
    assert ended.code != 0
    assert "\nerror: gt.json: annotation 7: names no image\n" in ended.text
    assert "The table of what exists: results/tiny/partial_table.md" in ended.text
    assert (stubbed.folder / "results" / "tiny" / "partial_table.json").exists()
    assert not (stubbed.folder / "results" / "tiny" / "table.md").exists()
    assert "train" not in [call["step"] for call in stubbed.calls()]
    log = (stubbed.folder / "results" / "tiny" / "logs" / "preflight.log").read_text()
    assert log.endswith("error: gt.json: annotation 7: names no image\n")
    flag.unlink()
    ended = stubbed.snakemake("--cores", "2")
    assert (ended.code, ended.jobs()["table"]) == (0, 1), ended.text
    assert not list((stubbed.folder / "results" / "tiny").glob("partial_table.*"))


def test_a_job_that_is_its_own_process_loads_the_same_study(finished: Stubbed) -> None:
    words = [
        "--mode",
        "subprocess",
        "--nolock",
        "--no-hooks",
        "--force",
        "--cores",
        "1",
        "--allowed-rules",
        "preflight",
    ]
    ended = finished.snakemake(*words, "--target-jobs", "preflight:study=tiny")
    assert ended.code == 0, ended.text
    arguments = finished.calls()[-1]["arguments"]
    assert arguments[arguments.index("--study") + 1] == str(finished.folder / "tiny.yaml")


@pytest.mark.parametrize(
    ("arguments", "study", "jobs"),
    [
        ([], "mini", {"draw": 1, "training_pictures": 1, **EVERY_STEP, **shown(4)}),
        (
            ["--configfile", "configs/smoke.yaml"],
            "smoke",
            {"draw": 1, "training_pictures": 1, **EVERY_STEP, **shown(1)},
        ),
        (
            ["--configfile", "configs/lvis_v1.yaml"],
            "lvis_v1",
            {**fetched("lvis_v1_train", "lvis_v1_val"), "training_pictures": 1, **EVERY_STEP, **shown(4), "track": 4},
        ),
        (
            ["--cores", "8", "--configfile", "configs/published.yaml"],
            "published",
            {**fetched("lvis_v0.5_val", "lvis_v1_val"), "store": 2, **published(8)},
        ),
        (
            ["--profile", "slurm", "results/table.md"],
            "lvis_v0.5",
            {**fetched("lvis_v0.5_train", "lvis_v0.5_val"), **EVERY_STEP, **runs(4), "results_table": 1},
        ),
        (
            ["--profile", "slurm", "--configfile", "configs/smoke.yaml"],
            "smoke",
            {"draw": 1, "training_pictures": 1, **EVERY_STEP, **shown(1)},
        ),
    ],
    ids=["default", "smoke", "lvis_v1", "published", "slurm", "slurm with another study"],
)
def test_every_study_is_loaded_alone(tmp_path: Path, arguments: list[str], study: str, jobs: dict[str, int]) -> None:
    # That the merged config equals the file is checked by the Snakefile itself: see the test of --config below.
    checkout = stub_workflow(tmp_path / "checkout")
    ended = run_snakemake(*arguments, "-n", cwd=checkout, workflow=checkout)
    assert ended.code == 0, ended.text
    assert f"Config file(s): [PosixPath('{checkout}/configs/{study}.yaml')]" in ended.text
    assert ended.jobs() == jobs


@pytest.fixture(scope="module")
def with_published(finished: Stubbed) -> Path:
    """A study of a trained and a published row, run once; the published file was at hand."""
    zoo = finished.folder / "zoo.yaml"
    shutil.copy(DEFAULT_ZOO, zoo)
    changes = {
        "model": {"anchor_scale": 8},
        "zoo": "zoo.yaml",
        "published": [{"model": "lvis_v0.5_r50", "split": "far"}],
    }
    (finished.folder / "far.json").write_text("{}")
    dataset = {"splits": {"far": {"annotations": "far.json", "images": "far images"}}}
    resources = {"weights_dir": "my weights"}
    study = write_study(finished.folder / "both.yaml", study="both", dataset=dataset, resources=resources, **changes)
    (finished.folder / "my weights").mkdir()
    (finished.folder / "my weights" / PUBLISHED.file_name).write_text("weights")
    ended = finished.snakemake("--cores", "2", study=study)
    assert ended.code == 0, ended.text
    of_both = {"import_published": 1, **shown(2), "train": 1}
    assert ended.jobs() == {**EVERY_STEP, "store": 3, "training_pictures": 1, **of_both}
    return study


def arguments_of(finished: Stubbed, step: str, folder: str) -> dict[str, str]:
    """Options of the last call of ``step`` that wrote into ``folder``."""
    calls = [call["arguments"] for call in finished.calls() if call["step"] == step]
    words = [call for call in calls if any(folder in word for word in call)][-1]
    return {word: after for word, after in itertools.pairwise(words) if word.startswith("--")}


def test_a_published_model_is_imported_detected_with_and_scored_on_its_split(
    finished: Stubbed, with_published: Path
) -> None:
    folder = "results/both/published/lvis_v0.5_r50"
    made = arguments_of(finished, "weights", folder)
    assert made["--backbone"] == "r50"
    assert made["--store"] == "results/both/data/far.store"
    assert (made["--out"], made["--report"]) == (f"{folder}/model.pth", f"{folder}/import.json")
    (call,) = [call["arguments"] for call in finished.calls() if call["step"] == "weights"]
    assert call[:2] == ["import", f"my weights/{PUBLISHED.file_name}"]
    detected = arguments_of(finished, "infer", folder)
    assert detected["--run"] == "published/lvis_v0.5_r50"
    assert (detected["--store"], detected["--images"]) == (made["--store"], "far images")
    assert (detected["--model"], detected["--out"]) == (made["--out"], folder)
    assert arguments_of(finished, "evaluate", folder)["--annotations"] == "far.json"
    trained = arguments_of(finished, "infer", "results/both/r50/seed0")
    assert trained["--run"] == "r50/seed0"
    assert trained["--store"] == "results/both/data/val.store"


def test_a_published_model_is_calibrated_by_the_split_that_the_study_says_it_was_trained_on(
    finished: Stubbed, with_published: Path
) -> None:
    """Nothing is trained or checked before a training; of the training split only the annotations are read."""
    splits = {name: {"annotations": "far.json", "images": "far images"} for name in ("train", "val")}
    values = {**read_yaml(with_published), "study": "calibrated", "backbones": [], "published": [{"model": MODEL}]}
    values["dataset"] = {"name": "far", **splits}
    values["inference"]["calibration"] = {"method": "norcal", "gamma": 0.6}
    study = finished.folder / "calibrated.yaml"
    study.write_text(json.dumps(values))
    scores, folder = f"results/calibrated/published/{MODEL}/metrics.json", f"results/calibrated/published/{MODEL}"
    ended = finished.snakemake(scores, "--cores", "2", study=study)
    assert ended.code == 0, ended.text
    once = dict.fromkeys(("calibrate", "import_published", "infer", "evaluate"), 1)
    assert ended.jobs() == {"store": 2, **once}
    table = "results/calibrated/calibration.csv"
    assert arguments_of(finished, "calibrate", table)["--store"] == "results/calibrated/data/train.store"
    assert arguments_of(finished, "infer", folder)["--calibration"] == table
    assert finished.plan(study=study) == {"measure": 1, "pictures": 1, **RENEWED}
    values["inference"]["calibration"] = {"method": "fracal"}
    study.write_text(json.dumps(values))
    assert finished.plan(scores, study=study) == {"infer": 1, "evaluate": 1}
    assert "--calibration" not in arguments_of(finished, "infer", "results/both/r50/seed0")


def recorded_parameters(folder: Path, output: str) -> set[str]:
    """Parameters whose change reruns the job of an output, as Snakemake has recorded them."""
    record = folder / ".snakemake" / "metadata" / base64.b64encode(output.encode()).decode()
    return set(json.loads(record.read_text())["params"])


def test_a_measurement_is_recorded_as_it_always_was(finished: Stubbed, with_published: Path) -> None:
    """So that no measurement of an earlier version is made again: those of published rows had a rule of their own."""
    study = load_study(with_published)
    always = {repr(settings_of_step(study, "measure")), repr(settings_digest(study, "measure"))}
    assert recorded_parameters(finished.folder, "results/both/r50/measure.json") == always
    published = recorded_parameters(finished.folder, "results/both/published/lvis_v0.5_r50/measure.json")
    assert published == {*always, repr("r50")}
    given = arguments_of(finished, "measure", "results/both/r50/measure.json")
    assert given["--train-store"] == "results/both/data/train.store"
    given = arguments_of(finished, "measure", "results/both/published/lvis_v0.5_r50/measure.json")
    assert (given["--row"], given["--val-store"]) == ("published/lvis_v0.5_r50", "results/both/data/far.store")
    assert "--train-store" not in given


@pytest.mark.slow
def test_a_published_row_reruns_where_it_changes(finished: Stubbed, with_published: Path) -> None:
    again = {"import_published": 1, "measure": 1, "infer": 1, "evaluate": 1, "pictures": 1, **RENEWED}
    file, zoo = finished.folder / "my weights" / PUBLISHED.file_name, finished.folder / "zoo.yaml"
    kept = zoo.read_text()
    assert finished.plan(study=with_published) == {}
    zoo.write_text(kept.replace("26.1", "26.2"))
    assert finished.plan(study=with_published) == {"table": 1, "pages": 1}
    zoo.write_text(kept)
    file.write_text("other weights")
    try:
        assert finished.plan(study=with_published) == again
        assert finished.plan("results/both/published/lvis_v0.5_r50/model.pth", study=with_published) == {
            "import_published": 1
        }
    finally:
        file.write_text("weights")


def test_a_published_file_at_hand_is_never_made_again_and_an_absent_one_is_fetched(
    finished: Stubbed, with_published: Path, tmp_path: Path
) -> None:
    assert "fetch_published" not in finished.plan("--forceall", study=with_published)
    file = finished.folder / "my weights" / PUBLISHED.file_name
    shutil.move(file, tmp_path)
    try:
        assert finished.plan("--forceall", study=with_published)["fetch_published"] == 1
        ended = finished.snakemake("--cores", "1", str(file.relative_to(finished.folder)), study=with_published)
        assert ended.code == 0, ended.text
        assert file.read_text() == "made by a stub\n"
        (call,) = [call["arguments"] for call in finished.calls() if "--weights" in call["arguments"]]
        zoo = str(finished.folder / "zoo.yaml")
        assert call[:6] == ["--zoo", zoo, "--weights", "lvis_v0.5_r50", "--out", "my weights"]
    finally:
        shutil.move(tmp_path / PUBLISHED.file_name, file)


@pytest.fixture(scope="module")
def of_lvis(finished: Stubbed) -> Path:
    """A study of LVIS v1, of which the images of one zip and one of two initial weights are at hand."""
    splits = {k: {"annotations": f"lvis/lvis_v1_{k}.json", "images": "coco"} for k in ("train", "val")}
    changes = {"model": {"weights": "imagenet"}, "backbones": ["r50", "r101"], "resources": {"weights_dir": "weights"}}
    study = write_study(
        finished.folder / "lvis.yaml", study="lvis", dataset={"name": "lvis", "draw": None, **splits}, **changes
    )
    (finished.folder / "coco" / "val2017").mkdir(parents=True)
    (finished.folder / "weights").mkdir()
    (finished.folder / "weights" / ZOO["imagenet_r101"].file_name).touch()
    return study


@pytest.mark.slow
def test_fetch_brings_what_a_study_lacks_and_nothing_else(finished: Stubbed, of_lvis: Path) -> None:
    annotations = fetched("lvis_v1_train", "lvis_v1_val")
    assert finished.plan("results/lvis/data/val.store", study=of_lvis) == {**fetched("lvis_v1_val"), "store": 1}
    assert finished.plan("results/lvis/table.md", study=of_lvis) == {**annotations, **EVERY_STEP, **runs(2)}
    wanted = {"fetch": 1, **annotations, **fetched("train2017"), "fetch_published": 1}
    assert finished.plan("fetch", study=of_lvis) == wanted
    ended = finished.snakemake("fetch", "--cores", "2", study=of_lvis)
    assert ended.code == 0, ended.text
    assert "Fetching lvis_v1_val.json.zip for lvis/lvis_v1_val.json" in ended.text
    calls = [call["arguments"] for call in finished.calls() if "--sources" in call["arguments"]]
    sources = str(finished.workflow / "configs" / "zoo" / "lvis.yaml")
    assert sorted(call[:6] for call in calls) == [
        ["--sources", sources, "--name", name, "--out", out]
        for name, out in [
            ("lvis_v1_train", "lvis/lvis_v1_train.json"),
            ("lvis_v1_val", "lvis/lvis_v1_val.json"),
            ("train2017", "coco/train2017.zip"),
        ]
    ]
    assert (finished.folder / "weights" / ZOO["imagenet_r50"].file_name).exists()
    # Now that all is here no rule would touch it, not even if every job is to run again.
    assert finished.plan("fetch", study=of_lvis) == {"fetch": 1}
    assert finished.plan("results/lvis/table.md", "--forceall", study=of_lvis) == {**EVERY_STEP, **runs(2)}


def test_a_zip_that_two_splits_want_in_different_folders(finished: Stubbed, tmp_path: Path) -> None:
    splits = {k: {"annotations": f"other/lvis_v1_{k}.json", "images": f"images of {k}"} for k in ("train", "val")}
    study = write_study(tmp_path / "two.yaml", study="two", dataset={"name": "lvis", "draw": None, **splits})
    zips = fetched("train2017", "train2017_1", "val2017")
    assert finished.plan("fetch", study=study) == {"fetch": 1, **fetched("lvis_v1_train", "lvis_v1_val"), **zips}


def test_an_interrupted_download_leaves_its_part_where_snakemake_does_not_delete_it(
    finished: Stubbed, of_lvis: Path
) -> None:
    out, part, flag = (finished.folder / name for name in ("lvis/lvis_v1_val.json", "lvis/a.part", "fail_fetch"))
    out.unlink(missing_ok=True)
    part.parent.mkdir(exist_ok=True)
    for file in (part, flag):
        file.touch()
    try:
        ended = finished.snakemake("lvis/lvis_v1_val.json", "--cores", "1", study=of_lvis)
        assert ended.code != 0
        assert part.exists()
        assert not out.exists()
    finally:
        flag.unlink()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("coco_r50", "is a model of kind coco, whose categories are not those of LVIS; allowed: lvis_v0.5_r50, "),
        ("imagenet_x101_32x4d", "is a model of kind imagenet, whose categories are not those of LVIS; allowed: lvis_"),
        ("lvis_r50", "is not in the zoo; allowed: lvis_v0.5_r50, "),
    ],
)
def test_a_model_that_cannot_be_scored_on_lvis_is_one_line_before_any_job(
    tmp_path: Path, model: str, message: str
) -> None:
    path = write_study(tmp_path / "bad.yaml", model={"anchor_scale": 8}, published=[{"model": model}])
    ended = run_snakemake("--cores", "1", "--configfile", path, cwd=tmp_path)
    assert ended.code != 0
    assert ended.text.splitlines()[-1].startswith(f"error: {path}: published {model}: {message}")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"stepz": 3}}, "schedule.stepz: unknown key; allowed: images_per_step,"),
        ({"sampling": {"oversample_threshold": 0}}, "sampling.oversample_threshold: is 0; allowed: greater than 0"),
    ],
)
def test_an_error_in_the_study_is_one_line_before_any_job(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_study(tmp_path / "bad.yaml", **changes)
    ended = run_snakemake("--cores", "1", "--configfile", path, cwd=tmp_path)
    assert ended.code != 0
    assert f"error: {path}: {message}" in ended.text.splitlines()[-1]
    assert "Traceback" not in ended.text
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configfile", "configs/smoke.yaml", "configs/mini.yaml"], "error: --configfile: more than one file"),
        (["--configfile", "configs/smoke.yaml", "--config", "seeds=[1]"], "error: --config: would change the study of"),
    ],
)
def test_a_study_is_one_file(arguments: list[str], message: str) -> None:
    ended = run_snakemake(*arguments, "-n", cwd=REPOSITORY)
    assert ended.code != 0
    assert ended.text.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("use", ["module lvis:\n    snakefile: {}\nuse rule * from lvis\n", "include: {}\n"])
def test_another_workflow_cannot_include_this_one(tmp_path: Path, use: str) -> None:
    (tmp_path / "Snakefile").write_text(use.format(repr(str(REPOSITORY / "Snakefile"))))
    ended = run_snakemake("--cores", "1", "-n", cwd=tmp_path, workflow=tmp_path)
    assert ended.code != 0
    assert "Traceback" not in ended.text
    assert ended.text.splitlines()[-1].startswith("error: lvis-rcnn is neither a module nor an include")


def test_another_directory_finds_the_default_study_and_the_package(tmp_path: Path) -> None:
    checkout, elsewhere = stub_workflow(tmp_path / "checkout"), tmp_path / "elsewhere"
    words = ["--cores", "1", "--directory", elsewhere, "results/mini/repeat_factors"]
    ended = run_snakemake(*words, cwd=tmp_path, workflow=checkout)
    assert ended.code == 0, ended.text
    assert (elsewhere / "results" / "mini" / "repeat_factors" / "images.csv").exists()


def test_the_package_is_found_in_the_processes_of_torchrun(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lvis_rcnn.config"]
    done = subprocess.run(
        [sys.executable, *words, "--check", str(REPOSITORY / "configs" / "mini.yaml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("mini.yaml: ok") == 2


def test_a_backbone_is_a_target(finished: Stubbed, tmp_path: Path) -> None:
    assert finished.plan("r50") == {}
    shutil.move(finished.folder / "results" / "tiny" / "r50", tmp_path / "r50")
    try:
        assert finished.plan("r101") == {}
        assert finished.plan("r50") == {**runs(1), "r50": 1}
    finally:
        shutil.move(tmp_path / "r50", finished.folder / "results" / "tiny" / "r50")


def test_a_deleted_measurement_is_made_again(finished: Stubbed, tmp_path: Path) -> None:
    record = finished.folder / "results" / "tiny" / "r101" / "measure.json"
    shutil.move(record, tmp_path)
    try:
        assert finished.plan() == {"measure": 1, **RENEWED}
    finally:
        shutil.move(tmp_path / "measure.json", record)


def test_whatever_is_made_to_be_looked_at_is_made_again_when_it_is_deleted(finished: Stubbed, tmp_path: Path) -> None:
    of_run = "r101/seed0/pictures"
    names = ["table.csv", "provenance.html", "plots/training_curves.svg", f"{of_run}/missed_frequent.png"]
    results = finished.folder / "results" / "tiny"
    for number, name in enumerate(names):
        shutil.move(results / name, tmp_path / str(number))
    try:
        assert finished.plan() == {**RENEWED, "pictures": 1}
    finally:
        for number, name in enumerate(names):
            shutil.move(tmp_path / str(number), results / name)


def test_a_study_on_gpus_that_the_machine_lacks_is_one_line_before_any_job(finished: Stubbed, tmp_path: Path) -> None:
    groups = {"images_per_step": 4, "normalisation_group": 2}
    two = {"compute": {"device": "cuda"}, "resources": {"gpus": 2}, "schedule": groups}
    study = write_study(tmp_path / "on_gpus.yaml", study="on_gpus", **two)
    ended = finished.snakemake("--cores", "1", study=study, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert ended.code != 0
    told = f"error: {study}: compute.device: is cuda, and a job needs 2 GPUs, of which this machine has 1; allowed: "
    assert ended.text.splitlines()[-1].startswith(told), ended.text
    assert "Traceback" not in ended.text
    assert not (finished.folder / "results" / "on_gpus").exists()
    # What needs no GPU runs on a login node, too.
    target = ("results/on_gpus/repeat_factors", "--cores", "1")
    assert finished.snakemake(*target, study=study, env={"CUDA_VISIBLE_DEVICES": ""}).code == 0


def test_scoring_alone_is_run_again(finished: Stubbed) -> None:
    assert finished.plan("results/tiny/table.md", "-R", "evaluate") == {"evaluate": 2, "table": 1}
    one = finished.plan("results/tiny/table.md", "-R", "results/tiny/r50/seed0/metrics.json")
    assert one == {"evaluate": 1, "table": 1}


def test_a_further_seed_of_a_finished_study_is_all_that_is_run(finished: Stubbed) -> None:
    finished.study(seeds=[0, 1])
    try:
        assert finished.plan("results/tiny/r50/seed1/metrics.json") == scored(1)
        assert finished.plan() == {**scored(2), **RENEWED}
    finally:
        finished.study()


def test_training_from_scratch_begins_with_nothing(finished: Stubbed, tmp_path: Path) -> None:
    # As the README says: the results alone would be linked again from the finished state.
    for folder in ("results/tiny/r101", "results/state/tiny/r101"):
        if (finished.folder / folder).exists():
            shutil.move(finished.folder / folder, tmp_path / folder.replace("/", "_"))
    try:
        # No target: to a table that is there nothing that came before is missing.
        assert finished.plan() == shown(1)
    finally:
        shutil.move(tmp_path / "results_tiny_r101", finished.folder / "results/tiny/r101")


@pytest.mark.conda
def test_conda_on_or_off_and_a_comment_in_its_environment_rerun_nothing(
    finished: Stubbed, conda_stand_in: dict[str, str]
) -> None:
    assert finished.plan("--use-conda", env=conda_stand_in) == {}
    environment = finished.workflow / "envs" / "lvis_rcnn.yaml"
    kept = environment.read_text()
    environment.write_text(f"# a comment\n{kept}")
    try:
        assert finished.plan() == {}
        assert finished.plan("--use-conda", env=conda_stand_in) == {}
    finally:
        environment.write_text(kept)


@pytest.mark.conda
def test_the_environments_of_conda_are_understood(tmp_path: Path, conda_stand_in: dict[str, str]) -> None:
    ended = run_snakemake("--cores", "2", "--use-conda", "-n", cwd=tmp_path, env=conda_stand_in)
    assert ended.code == 0, ended.text
    assert ended.jobs() == {"draw": 1, "training_pictures": 1, **EVERY_STEP, **shown(4)}


@pytest.mark.conda
def test_a_step_runs_in_its_conda_environment_and_finds_the_package(
    tmp_path: Path, conda_stand_in: dict[str, str]
) -> None:
    maker, channel = Path(conda_stand_in["CONDA_STAND_IN"]) / "mkchannel.py", tmp_path / "channel"
    subprocess.run([Path(sys.base_prefix) / "bin" / "python3", maker, channel, sys.base_prefix], check=True)
    (tmp_path / "run").mkdir()
    stubbed = Stubbed(stub_workflow(tmp_path / "checkout"), tmp_path / "run")
    stubbed.study()
    # An empty lock file in place of gigabytes: the script must still find it, and refuse it when its digest is another.
    script = stubbed.workflow / "envs" / "lvis_rcnn.post-deploy.sh"
    digest = re.compile(r"\b[0-9a-f]{64}\b")
    (stubbed.workflow / "requirements.lock").write_text("")
    environment = conda_stand_in | {"CONDA_SHIM_CHANNEL": channel.as_uri(), "CONDA_SHIM_CACHE": str(tmp_path / "cache")}
    words = ["--cores", "2", "--use-conda", "results/data/drawn_seed0_480_100/manifest.json"]
    assert stubbed.snakemake(*words, env=environment).code != 0
    script.write_text(digest.sub(hashlib.sha256(b"").hexdigest(), script.read_text()))
    ended = stubbed.snakemake(*words, env=environment)
    assert ended.code == 0, ended.text
    (call,) = stubbed.calls()
    assert Path(call["python"]).is_relative_to(stubbed.folder / ".snakemake" / "conda")
    assert call["path"].split(":")[0] == str(stubbed.workflow)


def test_jobs_queue_for_the_gpus_of_this_machine(finished: Stubbed, tmp_path: Path) -> None:
    study = write_study(tmp_path / "gpus.yaml", study="gpus", compute={"device": "cuda"})
    words = ["results/gpus/r50/seed0/model.pth", "--cores", "2"]
    here = {"CUDA_VISIBLE_DEVICES": "3,5"}
    ended = finished.snakemake(*words, study=study, env=here)
    assert ended.code == 0, ended.text
    assert re.search(r"Provided resources: gpu=\D*2\b", ended.text)
    ended = finished.snakemake(*words, "--forceall", "--resources", "gpu=1", study=study, env=here)
    assert re.search(r"Provided resources: gpu=\D*1\b", ended.text)


@pytest.mark.parametrize(
    ("resources", "launcher"),
    [
        ({}, 'exec "$PYTHON" -m lvis_rcnn.train '),
        (
            {"gpus": 4},
            'exec "$PYTHON" -m lvis_rcnn.system.gpus --gpus 4 -- "$PYTHON" -m torch.distributed.run --nproc-per-node 4 '
            "--standalone -m -- lvis_rcnn.train ",
        ),
        (
            {"gpus": 2, "nodes": 2, "cpus_per_gpu": 3},
            'exec srun --nodes=2 --ntasks-per-node=1 --gpus-per-node=2 --cpus-per-task=6 "$PYTHON" -m '
            "torch.distributed.run --nproc-per-node 2 --nnodes 2 --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID ",
        ),
    ],
)
def test_a_training_is_started_on_what_the_study_asks_for(
    finished: Stubbed, tmp_path: Path, resources: dict[str, int], launcher: str
) -> None:
    schedule = {"images_per_step": 8, "normalisation_group": 2}
    study = write_study(tmp_path / "asks.yaml", study="asks", schedule=schedule, resources=resources)
    ended = finished.snakemake("results/asks/r50/seed0/model.pth", "--cores", "9", "-n", "-p", study=study)
    assert ended.code == 0, ended.text
    assert launcher in ended.text
