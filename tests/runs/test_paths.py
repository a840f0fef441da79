"""Names of files follow from the study alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.config.study import DEFAULT_ZOO, load_study
from lvis_rcnn.runs.paths import StudyPaths, backbone_of_run, load_study_paths, runs_of
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY, write_study

PUBLISHED = "published/lvis_v0.5_r101"
OF_FILES = {k: {"annotations": f"lvis/lvis_v1_{k}.json", "images": f"images of {k}"} for k in ("train", "val")}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def paths_of(tmp_path: Path, **changes: Any) -> StudyPaths:
    values = {"study": "tiny", "backbones": ["r50", "x101_32x4d"], "seeds": [3, 1], **changes}
    return load_study_paths(write_study(tmp_path / "tiny.yaml", **values))


def with_published(tmp_path: Path, **changes: Any) -> StudyPaths:
    dataset = {"splits": {"far": {"annotations": "far.json", "images": "far images"}}}
    published = [{"model": "lvis_v0.5_r101", "split": "far"}]
    return paths_of(tmp_path, model={"anchor_scale": 8}, dataset=dataset, published=published, **changes)


def test_rows_and_runs(tmp_path: Path) -> None:
    paths = with_published(tmp_path)
    assert paths.rows == ["r50", "x101_32x4d", PUBLISHED]
    assert paths.trained_runs == ["r50/seed3", "r50/seed1", "x101_32x4d/seed3", "x101_32x4d/seed1"]
    assert paths.runs == [*paths.trained_runs, PUBLISHED]
    assert paths.of_published("import.json") == [f"results/tiny/{PUBLISHED}/import.json"]
    assert paths.of_rows("measure.json")[1:] == [
        "results/tiny/x101_32x4d/measure.json",
        f"results/tiny/{PUBLISHED}/measure.json",
    ]
    assert paths.results_of("r50") == [
        "results/tiny/r50/seed3/metrics.json",
        "results/tiny/r50/seed1/metrics.json",
        "results/tiny/r50/measure.json",
    ]
    assert [paths.first_run(row) for row in paths.rows] == ["r50/seed3", "x101_32x4d/seed3", PUBLISHED]


def test_a_row_has_a_backbone_a_split_and_what_it_asks_for(tmp_path: Path) -> None:
    paths = with_published(tmp_path, resources={"of_backbone": {"x101_32x4d": {"memory_mb": 7}}})
    assert [paths.backbone_of(row) for row in paths.rows] == ["r50", "x101_32x4d", "r101"]
    assert [paths.split_of(row) for row in paths.rows] == ["val", "val", "far"]
    assert paths.asked("x101_32x4d").memory_mb == 7
    assert paths.asked("r50").memory_mb != 7


def test_the_first_row_is_trained_first_and_then_what_takes_longest(tmp_path: Path) -> None:
    study = write_study(tmp_path / "four.yaml", backbones=["r50", "r101", "x101_64x4d", "x101_32x4d"])
    paths = load_study_paths(study)
    order = sorted(paths.rows, key=paths.priority, reverse=True)
    assert order == ["r50", "x101_64x4d", "x101_32x4d", "r101"]
    assert min(map(paths.priority, paths.rows)) > 0


@pytest.mark.parametrize(
    ("wildcards", "row"),
    [
        ({"study": "tiny", "row": "r50", "seed": "1"}, "r50"),
        ({"row": PUBLISHED}, PUBLISHED),
        ({"group": "r50", "member": "seed1"}, "r50"),
        ({"group": "published", "member": "lvis_v0.5_r101"}, PUBLISHED),
        ({"model": "lvis_v0.5_r101"}, PUBLISHED),
    ],
)
def test_a_job_belongs_to_a_row_however_its_rule_names_it(tmp_path: Path, wildcards: dict[str, str], row: str) -> None:
    assert with_published(tmp_path).row_of(wildcards) == row


def test_only_a_study_that_calibrates_has_a_table_for_it(tmp_path: Path) -> None:
    assert (paths_of(tmp_path).calibration, paths_of(tmp_path).calibration_option("r50")) == ([], "")
    paths = paths_of(tmp_path, inference={"calibration": {"method": "norcal", "gamma": 0.6}})
    assert paths.calibration == ["results/tiny/calibration.csv"]
    assert paths.calibration_option("r50") == "--calibration results/tiny/calibration.csv"


def test_drawn_data_are_inputs_before_they_exist_and_their_manifest_stands_for_them(tmp_path: Path) -> None:
    paths = paths_of(tmp_path, dataset={"draw": {"seed": 2, "train_images": 30, "val_images": 4}})
    folder = "results/data/drawn_seed2_30_4"
    assert paths.annotation_file("val") == f"{folder}/val.json"
    assert paths.images("train") == [f"{folder}/images"]
    assert paths.store_source("val") == [f"{folder}/manifest.json"]
    assert paths.store_source_drawn("val") == [f"{folder}/val.json"]
    assert paths.store("val") == "results/tiny/data/val.store"


def test_files_of_a_user_are_inputs_where_they_exist_or_can_be_fetched(tmp_path: Path) -> None:
    own = {k: {"annotations": f"own/{k}.json", "images": "own/images"} for k in ("train", "val")}
    paths = paths_of(tmp_path, dataset={"name": "own", "draw": None, **own})
    assert (paths.store_source("train"), paths.store_source_drawn("train"), paths.images("val")) == ([], [], [])
    assert paths.zoo_compared_with == []
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "train.json").touch()
    assert (paths.store_source("train"), paths.images("val")) == (["own/train.json"], ["own/images"])
    lvis = paths_of(tmp_path, dataset={"name": "lvis", "draw": None, **OF_FILES})
    assert lvis.annotations("val") == ["lvis/lvis_v1_val.json"]
    names = [lvis.fetch_name(path) for path in lvis.missing_files]
    assert len(names) == len({*names})
    assert lvis.fetch_name("images of val/train2017.zip") == "fetch_train2017_1"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dataset": {"train": {"annotations": "bob's {new}/a.json", "images": "i"}}}, "dataset train: annotations"),
        ({"dataset": {"val": {"annotations": "a.json", "images": "bob's {new} photos"}}}, "dataset val: images"),
        ({"dataset": {"splits": {"far": {"annotations": "{far}.json", "images": "i"}}}}, "dataset far: annotations"),
        ({"resources": {"weights_dir": "{new}"}}, "resources.weights_dir"),
        ({"zoo": "{new}.yaml"}, "zoo"),
    ],
)
def test_a_path_that_snakemake_would_read_as_a_pattern_is_one_line(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    own = {"name": "own", "draw": None, **{k: {"annotations": f"{k}.json", "images": "i"} for k in ("train", "val")}}
    with pytest.raises(InputError, match=rf"tiny.yaml: {key}: is .*\{{.*\}}.*, whose braces .*; fix: rename it"):
        paths_of(tmp_path, **{**changes, "dataset": {**own, **changes.get("dataset", {})}})


def test_published_weights_are_fetched_where_they_are_missing(tmp_path: Path) -> None:
    paths = with_published(tmp_path, resources={"weights_dir": "my weights"})
    file = paths.published_file("lvis_v0.5_r101")
    assert file.startswith("my weights/mask_rcnn_r101")
    assert paths.weights_to_fetch == {Path(file).name: "lvis_v0.5_r101"}
    assert paths.zoo_compared_with == [str(DEFAULT_ZOO)]
    Path(file).parent.mkdir()
    Path(file).touch()
    assert with_published(tmp_path, resources={"weights_dir": "my weights"}).weights_to_fetch == {}


def test_training_memory_is_measured_of_rows_that_are_trained(tmp_path: Path) -> None:
    paths = with_published(tmp_path)
    assert paths.training_inputs("r50") == ["results/tiny/data/train.store", "results/tiny/repeat_factors"]
    assert paths.training_images("r50") == paths.images("train")
    assert paths.training_options("r50").startswith("--train-store results/tiny/data/train.store --train-images ")
    assert (paths.training_inputs(PUBLISHED), paths.training_images(PUBLISHED)) == ([], [])
    assert paths.training_options(PUBLISHED) == ""


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"oversample_threshold": 0.3}, "--threshold 0.3 --rounding stochastic --exponent 0.5"),
        ({"oversample_threshold": None}, "--rounding stochastic --exponent 0.5"),
        # The default is left out: a study that was finished before there was a choice plans nothing again.
        ({"oversample_threshold": None, "frequency": "image"}, "--rounding stochastic --exponent 0.5"),
        (
            {"oversample_threshold": None, "frequency": "instance_aware"},
            "--rounding stochastic --exponent 0.5 --frequency instance_aware",
        ),
    ],
)
def test_sampling_is_given_as_options(tmp_path: Path, changes: dict[str, Any], options: str) -> None:
    sampling = {"rounding": "stochastic", "exponent": 0.5, **changes}
    assert paths_of(tmp_path, sampling=sampling).sampling_options("r50") == options


def test_pictures_follow_from_the_rows(tmp_path: Path) -> None:
    assert with_published(tmp_path).pictures(["chosen", "random"]) == [
        f"results/tiny/{run}/pictures/{name}.png"
        for run in ("r50/seed3", "x101_32x4d/seed3", PUBLISHED)
        for name in ("chosen", "random")
    ]


def test_only_what_exists_is_named_at_the_end(tmp_path: Path) -> None:
    paths = paths_of(tmp_path)
    assert paths.results_to_look_at() == []
    for name in ("table.md", "r50/seed3/pictures/chosen.png"):
        file = Path(paths.folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    pictures = ("pictures", "results/tiny/*/*/pictures")
    assert paths.results_to_look_at() == [("table", "results/tiny/table.md"), pictures]


def test_a_comparison_needs_rows_in_common(tmp_path: Path) -> None:
    paths = paths_of(tmp_path, report={"compare_with": "before"})
    with pytest.raises(InputError, match=r"report.compare_with: nothing in results/before is scored"):
        paths.compared_pairs()
    for row in ("r50", "r101"):
        folder = Path("results", "before", row, "seed0")
        folder.mkdir(parents=True)
        (folder / "metrics.json").touch()
    assert paths.compared_pairs() == ["r50"]
    assert "results/before/r50/seed0/matches.npz" in paths.compared_files()
    with pytest.raises(InputError, match="no row in common"):
        paths_of(tmp_path, backbones=["x101_32x4d", "x101_64x4d"], report={"compare_with": "before"}).compared_pairs()


def test_every_process_of_snakemake_loads_it_without_what_only_steps_need() -> None:
    code = "import sys, lvis_rcnn.runs.paths; print({'torch', 'pandas', 'pycocotools', 'jaxtyping'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=DEFAULT_ZOO.parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("../../x", "run ../../x: is not one of the study; allowed: r50/seed0, r50/seed1; fix: "),
        ("r50/seed9", "run r50/seed9: is not one of the study"),
        ("r101/seed0", "run r101/seed0: is not one of the study"),
        ("published/lvis_v1_r50", "run published/lvis_v1_r50: is not one of the study"),
    ],
)
def test_a_run_that_is_not_of_the_study_is_refused(tmp_path, run, message):
    file = write_study(tmp_path / "tiny.yaml", study="tiny", backbones=["r50"], seeds=[0, 1])
    assert backbone_of_run(load_study(file), file, "r50/seed1") == "r50"
    with pytest.raises(InputError) as refused:
        backbone_of_run(load_study(file), file, run)
    assert message in str(refused.value)


def test_a_run_of_a_published_row_has_its_backbone():
    file = REPOSITORY / "configs" / "published.yaml"
    runs = runs_of(load_study(file), file)
    assert runs["published/lvis_v1_r101"] == "r101"
    assert len(runs) == 8
