"""Rows of a study that change more than the backbone."""

import copy
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.config.study import (
    RESERVED,
    RESERVED_STARTS,
    SECTIONS_OF_STEP,
    Study,
    check_study,
    load_study,
    load_study_for_step,
    settings_digest,
)
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.runs.paths import SAMPLED, load_study_paths, name_end, trained_run
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY, write_study

SMOKE = read_yaml(REPOSITORY / "configs" / "smoke.yaml")
PLAIN = {"backbone": "r50", "sampling": {"oversample_threshold": None}}
ROWS = {
    "plain": PLAIN,
    "rfs": {"backbone": "r50", "title": "RFS"},
    "few": {"backbone": "r50", "inference": {"detections_per_image": 5}},
    "large": {"backbone": "r101"},
    "plain_few": {**PLAIN, "inference": {"detections_per_image": 5}},
}


def study_of(rows: dict[str, Any], **changes: Any) -> Study:
    return check_study(copy.deepcopy({**SMOKE, "backbones": [], "rows": rows, **changes}), "a.yaml")


def test_a_row_has_its_own_settings_and_those_of_the_study() -> None:
    study = study_of(ROWS)
    assert study.trained_rows == ("plain", "rfs", "few", "large", "plain_few")
    assert [study.title_of(row) for row in ("plain", "rfs")] == ["plain", "RFS"]
    assert [study.backbone_of(row) for row in ("plain", "large")] == ["r50", "r101"]
    assert study.sampled_rows == ["rfs", "few", "large", "plain", "plain_few"]
    plain, few = study.of_row("plain"), study.of_row("few")
    assert plain.sampling == study.sampling.model_copy(update={"oversample_threshold": None})
    assert few.inference == study.inference.model_copy(update={"detections_per_image": 5})
    unchanged = set(Study.model_fields) - {"backbones", "rows", "published", "report", "sampling"}
    assert all(getattr(plain, section) == getattr(study, section) for section in unchanged)
    assert plain.of_row("plain") == plain


def test_a_row_named_by_its_backbone_is_what_it_always_was() -> None:
    alone, with_rows = check_study(SMOKE, "a"), study_of({"plain": PLAIN}, backbones=["r50"])
    assert with_rows.trained_rows == ("r50", "plain")
    for step in set(SECTIONS_OF_STEP) - {"preflight", "report"}:
        assert settings_digest(with_rows.of_row("r50"), step) == settings_digest(alone, step)


def test_what_a_row_sees_is_made_once_for_all_that_ask_and_anew_of_a_changed_copy(tmp_path: Path) -> None:
    study = study_of(ROWS)
    assert study.of_row("plain") is study.of_row("plain")
    changed = study.model_copy(update={"title": "other"})
    assert changed.model_fields_set == study.model_fields_set
    assert (changed.of_row("plain").title, study.of_row("plain").title) == ("other", study.title)
    paths = load_study_paths(write_study(tmp_path / "rows.yaml", backbones=[], rows=ROWS))
    assert paths.samplings is paths.samplings  # each job of a sampling asks
    assert paths.checks is paths.checks


def test_rows_that_differ_in_inference_alone_share_a_training() -> None:
    study = study_of(ROWS)
    assert {row: study.trained_as(row) for row in study.trained_rows} == {
        **{row: row for row in ("plain", "rfs", "large")},
        **{"few": "rfs", "plain_few": "plain"},
    }
    assert trained_run(study, "few/seed1") == "rfs/seed1"
    assert trained_run(study, "published/lvis_v1_r50") == "published/lvis_v1_r50"
    assert {row: name_end(study, row, SAMPLED) for row in ("plain", "plain_few", "few")} == {
        **{"plain": "_plain", "plain_few": "_plain"},
        **{"few": ""},
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": {"model": {}}}, "a.yaml: rows.a.backbone: missing; fix: add the key"),
        (
            {"a": {"backbone": "r50", "modell": {}}},
            "rows.a.modell: unknown key; allowed: backbone, title, .*write 'model'",
        ),
        (
            {"a": {"backbone": "r50", "model": {"anchor_scal": 4}}},
            "a.yaml: row a: model.anchor_scal: unknown key; .*write",
        ),
        (
            {"a": {"backbone": "r50", "schedule": {"steps": "many"}}},
            'a.yaml: row a: schedule.steps: is "many"; allowed: ',
        ),
        (
            {"a": {"backbone": "r50"}, "b": {"backbone": "r50", "title": "B"}},
            "row b: has the backbone and all settings of",
        ),
        ({"table": {"backbone": "r50"}}, "a name other than table for that row, which the workflow uses itself"),
        ({"r101": {"backbone": "r50"}}, "a name other than r101 for that row"),
        ({"fetch_x": {"backbone": "r50"}}, "a name other than fetch_x for that row"),
        ({"repeat_factors_a": {"backbone": "r50"}}, "a name other than repeat_factors_a for that row"),
        ({"a.b": {"backbone": "r50"}}, 'rows.a.b.*: is "a.b"; allowed: '),
        ({"a": {"backbone": "r50", "schedule": {"images_per_step": 3}}}, "row a: schedule: does not fit together"),
    ],
)
def test_a_wrong_row_is_named(rows: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_of(rows)


def test_the_baseline_is_one_of_the_rows() -> None:
    assert study_of(ROWS, report={"baseline": "plain"}).report.baseline == "plain"
    with pytest.raises(InputError, match=r"report\.baseline among the trained rows plain, rfs, .*, not r50"):
        study_of(ROWS, report={"baseline": "r50"})


def test_a_step_sees_the_study_as_its_row_does(tmp_path: Path) -> None:
    file = write_study(tmp_path / "tiny.yaml", backbones=[], rows=ROWS)
    own = load_study(file).of_row("plain")
    assert load_study_for_step(file, "train", settings_digest(own, "train"), "plain") == own
    with pytest.raises(InputError, match="the settings of step 'train' changed"):
        load_study_for_step(file, "train", settings_digest(own, "train"), "rfs")


def test_names_of_rules_and_folders_are_reserved(tmp_path: Path) -> None:
    """Names of files have an ending, which no row has; a drawn study stands for one with files of its own."""
    rules = {
        word
        for file in (REPOSITORY / "workflow" / "rules").glob("*.smk")
        for line in file.read_text().splitlines()
        if line.strip().startswith("rule ") and (word := line.split()[1].rstrip(":"))
    }
    assert {rule for rule in rules | {"all"} if not rule.startswith(RESERVED_STARTS)} <= RESERVED
    paths = load_study_paths(write_study(tmp_path / "tiny.yaml", backbones=[], rows=ROWS))
    folders = {Path(paths.store("val")).parent.name, Path(paths.repeat_factors("rfs")).name}
    assert folders <= RESERVED
