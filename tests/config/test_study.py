import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.config.__main__ import main
from lvis_rcnn.config.study import (
    DEFAULT_ZOO,
    SECTIONS_OF_STEP,
    Study,
    check_study,
    load_study,
    load_study_for_step,
    settings_digest,
    settings_of_step,
    zoo_of,
)
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.system.cli import InputError

REPOSITORY = Path(__file__).parents[2]
STUDIES = sorted((REPOSITORY / "configs").glob("*.yaml"))
MINI = read_yaml(REPOSITORY / "configs" / "mini.yaml")
REMOVED = object()
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
FILES = {"annotations": "a.json", "images": "a"}


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The values of mini with the key at ``path`` set or removed."""
    values = copy.deepcopy(MINI)
    *sections, key = path.split(".")
    here = values
    for section in sections:
        here = here[section]
    if value is REMOVED:
        del here[key]
    else:
        here[key] = value
    return values


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_is_valid(path: Path) -> None:
    study = load_study(path)
    assert study.study == path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=../workflow/schemas/study.schema.json\n")


def test_the_studies_of_the_sampler_differ_in_nothing_else() -> None:
    both = [read_yaml(REPOSITORY / "configs" / f"{name}.yaml") for name in ("mini_sampling", "mini_no_sampling")]
    for values in both:
        del values["study"], values["title"]
    assert both[0].pop("sampling") == MINI["sampling"]
    assert both[1].pop("sampling") == {"oversample_threshold": None}
    assert both[0].pop("report") == {"compare_with": "mini_no_sampling"}
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schedule.stepz", 3, r"f: schedule\.stepz: unknown key; allowed: images_per_step, .*; fix: write 'steps'"),
        ("nonsense", 3, r"f: nonsense: unknown key; allowed: study, title, .*; fix: remove it"),
        ("schedule.steps", "3", r'f: schedule\.steps: is "3"; allowed: a valid integer'),
        ("schedule.steps", 3.0, r"f: schedule\.steps: is 3\.0; allowed: a valid integer"),
        ("schedule.steps", True, r"f: schedule\.steps: is true; allowed: a valid integer"),
        ("schedule.steps", 0, r"f: schedule\.steps: is 0; allowed: greater than or equal to 1"),
        ("augmentation.short_edges_px", [], r"short_edges_px: is \[\]; allowed: at least one entry"),
        ("schedule.steps", REMOVED, r"f: schedule: does not fit .*allowed: exactly one of 'epochs' and 'steps'"),
        ("schedule.epochs", 3, r"f: schedule: does not fit together; allowed: exactly one of 'epochs' and 'steps'"),
        ("schedule.policy", "step", r"policy 'step' needs the budget in 'epochs'"),
        ("schedule.learning_rate", float("nan"), r"f: schedule\.learning_rate: is NaN; allowed: a finite number"),
        ("sampling.exponent", 60, r"sampling\.exponent: is 60; allowed: less than or equal to 2"),
        ("evaluation", {"bootstrap_resamples": 2**31 - 1}, r"resamples: is .*; allowed: less than or equal to 100000"),
        ("sampling.oversample_threshold", 0, r"oversample_threshold: is 0; allowed: greater than 0"),
        ("sampling.oversample_threshold", -1e-3, r"oversample_threshold: is -0\.001; allowed: greater than 0"),
        ("sampling.oversample_threshold", 2, r"oversample_threshold: is 2; allowed: less than or equal to 1"),
        ("backbones", ["r18"], r"f: backbones\.0: is \"r18\"; allowed: 'r50', 'r101', 'x101_32x4d' or 'x101_64x4d'"),
        ("backbones", [], r"f: study file: does not fit .*at least one row: of backbones, .* or of published models"),
        ("seeds", [], r"f: study file: does not fit .*allowed: backbones are trained, which also needs seeds"),
        ("schedule", REMOVED, r"f: study file: does not fit .*backbones are trained, which also needs schedule"),
        ("published", [{"model": "a"}, {"model": "a"}], r"published must not repeat an entry"),
        ("published", [{"model": "a"}], r"published models with model\.anchor_scale 8, which they were trained with"),
        ("published", [{"modle": "a"}], r"f: published\.0\.modle: unknown key .*allowed: model, split; .*'model'"),
        ("dataset.splits", {"b": {"annotation": "a"}}, r"dataset\.splits\.b\.annotation: .*write 'annotations'"),
        ("dataset.splits", {"train": {"annotations": "a", "images": "b"}}, r"names of 'splits' other than train and"),
        (
            "dataset.splits",
            {"b": {"annotations": "a", "images": ""}},
            r"images: is \"\"; allowed: a text that is not empty",
        ),
        ("resources.weights_dir", "", r"weights_dir: is \"\"; allowed: a text that is not empty"),
        (
            "dataset",
            {"name": "a", "train": {**FILES, "exhaustive": True}, "val": FILES},
            r"exhaustive for both train and",
        ),
        ("backbones", ["r50", "r50"], r"backbones must not repeat an entry"),
        ("seeds", [1, 1], r"seeds must not repeat an entry"),
        ("seeds", [2**32], r"seeds\.0: is 4294967296; allowed: less than or equal to 4294967295"),
        *(
            ("title", f"a{one}b", r'title: is "a.*b"; allowed: one line of text without control characters; fix: ')
            for one in "\0\a\n\x1b\x85\u2029\u202e\u2067"
        ),
        ("resources.weights_dir", "a\0b", r"resources\.weights_dir: .*allowed: one line"),
        ("rows", {"x": {"backbone": "r50", "title": "a\nb"}}, r"rows\.x\.title: .*allowed: one line"),
        ("report", {"base_url": "http://a/\nb"}, r"report\.base_url: .*allowed: one line"),
        ("study", "a" * 101, r"study: .*allowed: at most 100 lower-case"),
        ("sampling.frequency", "images", r"frequency: is \"images\"; allowed: 'image' or 'instance_aware'"),
        ("model.classification", "sigmoid", r"classification: is \"sigmoid\"; allowed: 'softmax' or 'seesaw'"),
        ("model.seesaw", {"counters": 8}, r"allowed: model\.seesaw only with model\.classification seesaw"),
        ("model.frozen_stages", 2, r"with weights: none, frozen_stages must be 0"),
        ("model.normalization", "fixed_batch", r"with weights: none, .* normalization batch or group"),
        ("compute.device", "gpu", r"f: compute\.device: is \"gpu\"; allowed: 'cpu' or 'cuda'"),
        (
            "inference.detections_per_image",
            301,
            r"per_image at most 300, not 301, or fixed in evaluation\.pro",
        ),
        ("inference.detections_per_image", 10_001, r"is 10001; allowed: less than or equal to 10000"),
        ("inference.calibration", {"method": "x"}, r"calibration\.method: is \"x\"; allowed: 'norcal' or 'fracal'"),
        ("inference.calibration", {"gamma": 1}, r"f: inference\.calibration\.method: missing; fix: add the key"),
        (
            "inference.calibration",
            {"method": "norcal"},
            r"f: inference\.calibration: .*allowed: norcal with gamma, for",
        ),
        ("inference.calibration", {"method": "norcal", "gamma": -1}, r"gamma: is -1; allowed: greater than or equal"),
        ("inference.calibration", {"method": "norcal", "gamma": 1, "base": 2}, r"allowed: norcal without base, which"),
        ("inference.calibration", {"method": "fracal", "gamma": 1}, r"allowed: fracal without gamma, which is not its"),
        ("inference.calibration", {"method": "fracal", "base": 1}, r"calibration\.base: is 1; allowed: greater than 1"),
        ("inference.calibration", {"method": "fracal", "lambda": 2}, r"lambda: unknown key; allowed: method, gamma, d"),
        ("evaluation", {"protocols": ["ap300"]}, r"allowed: protocols among fixed, boundary, .*, not ap300"),
        ("evaluation", {"protocols": ["fixed", "fixed"]}, r"protocols must not repeat an entry"),
        ("evaluation", {"protocols": ["a"], "subsets": ["a.txt", "x/a.txt"]}, r"two protocols would be named a:"),
        ("evaluation", {"subsets": ["a.txt"]}, r"subsets that a protocol is of, not a: name it in protocols"),
        (
            "evaluation",
            {"score_at_epochs": [1]},
            r"score_at_steps, not score_at_epochs, since schedule\.steps is the b",
        ),
        ("evaluation", {"score_at_steps": [9999]}, r"evaluation\.score_at_steps up to schedule\.steps, \d+, not 9999"),
        (
            "evaluation",
            {"score_at_steps": [0]},
            r"f: evaluation\.score_at_steps\.0: is 0; allowed: greater than or equal",
        ),
        ("evaluation", {"score_at_steps": [9, 9]}, r"at most 12 points in score_at_epochs and .*, none of them twice"),
        ("evaluation", {"score_at_steps": [*range(1, 14)]}, r"at most 12 points in score_at_epochs and score_at_steps"),
        ("evaluation", {"score_images": 9}, r"score_images only with score_at_epochs or score_at_steps"),
        ("dataset.draw", None, r"f: dataset: does not fit together; allowed: either 'draw', or both 'train' and 'val'"),
        ("dataset.val", {"annotations": "a", "images": "b"}, r"f: dataset: does not fit together; allowed: either 'dr"),
        ("dataset.train", {"annotations": "a.json"}, r"f: dataset\.train\.images: missing; fix: add the key"),
        ("study", "../x", r"f: study: is \"\.\./x\"; allowed: at most 100 lower-case letters, digits, '_' and '\.'"),
        ("study", "state", r"a name other than data, state and table\.\*"),
        ("augmentation", 3, r"f: augmentation: is 3; allowed: an object"),
        (
            "report",
            {"compare_with": "../x"},
            r"f: report\.compare_with: is \"\.\./x\"; allowed: at most 100 lower-case letters, digits, '_' and '\.'",
        ),
        ("report", {"compare_with": "mini"}, r"allowed: report\.compare_with of another study than mini itself"),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        check_study(with_value(path, value), where="f")
    assert "\n" not in str(error.value)


def test_a_misspelt_key_is_named_before_the_missing_one_and_the_rest_is_counted() -> None:
    values = with_value("compute", REMOVED) | {"compte": MINI["compute"], "seeds": "x"}
    with pytest.raises(InputError, match=r"compte: unknown key \(and 2 more\);.*fix: write 'compute'"):
        check_study(values, where="f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"not readable as YAML: while parsing"),
        ("study: a\nstudy: b\n", r"not readable as YAML: key 'study' is repeated"),
        ("schedule: {steps: 1, steps: 2}\n", r"key 'steps' is repeated"),
        ("\udcff", r"not readable as YAML: 'utf-8' codec"),
        ("steps: 0260\n", r"0260 has leading zeros, which may mean octal: write 260, or in quotes.* line 1, column 8"),
        ("\nseeds: [0, -010]\n", r"-010 has .*: write -10, or in quotes.* line 2, column 12"),
        ("steps: 00\n", r"00 has leading zeros, .*: write 0, "),
        ("steps: 0x" + 4000 * "f" + "\n", r"0xf+ is too large"),
        ("rows: {yes: {}}\n", r"a key that is no text"),
        ("steps: 1:30\n", r"1:30 would be a number in base 60: write it in decimal, or in quotes"),
        ("rate: 1:20.5\n", r"1:20.5 would be a number in base 60"),
        ("steps: 1" + "0" * 5000, r"'10+' cannot be read as int in .* line 1"),
        ("steps: !!int ''\n", r"'' cannot be read as int in .* line 1"),
        ("title: !!set {a, b}\n", r"a value cannot be read as set in .* line 1"),
        ("title: !!binary aGVsbG8=\n", r"'aGVsbG8=' cannot be read as binary in .* line 1"),
        ("title: 2020-13-45\n", r"'2020-13-45' cannot be read as timestamp in .* line 1"),
        ("2020-01-01: 3\n", r"a key that is no text: write it in quotes in .* line 1"),
        ("? [1]\n: 3\n", r"a key that is no text"),
        ("a: {<<: {images: 3}}\n", r"keys of another section \(<<\) are not copied: write them out in .* line 1"),
        (ALIASES, r"more than 100,000 values, each alias \(\*\) written out in .* line 1"),
        ("a: &a [*a]\n", r"not readable as YAML: found unconstructable recursive node"),
        ('title: "a\\ud83d"\n', r"'a\\ud83d' cannot be read as str in .* line 1"),
        ("a: " + "[" * 500 + "]" * 500, r"not readable as YAML: nested too deeply"),
        ("", r"study file: is null; allowed: an object"),
        ("title: 2020-01-01\n", r"study: missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        load_study(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such study file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="not readable: Is a directory"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3", 3),
        ("3.", 3.0),
        ("00.5", 0.5),
        ("0", 0),
        ("0x1F", 31),
        ("'010'", "010"),
    ],
)
def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path, text: str, number: float | str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}\n")
    value = read_yaml(path)["a"]
    assert value == number
    assert type(value) is type(number)


def test_settings_ignore_defaults_written_out() -> None:
    plain = check_study(MINI, where="f")
    full = check_study(plain.model_dump(mode="json"), where="f")
    for step in SECTIONS_OF_STEP:
        assert settings_of_step(full, step) == settings_of_step(plain, step)


@pytest.mark.parametrize(
    ("path", "value", "steps"),
    [
        ("schedule.steps", 7, {"preflight", "train", "measure", "report"}),
        ("compute.threads", 77, {"train", "infer", "measure"}),
        ("inference.score_threshold", 0.123, {"infer", "measure"}),
        ("inference.calibration", {"method": "fracal"}, {"infer", "measure"}),
        ("model.rois_per_image", 77, {"preflight", "train", "infer", "measure"}),
        ("title", "other", {"report"}),
        ("dataset.name", "other", {"report"}),
        ("backbones", ["r50"], {"report"}),
        ("report", {"compare_with": "other"}, {"report"}),
        ("evaluation", {"detections_per_image": 200}, set()),
        ("evaluation", {"protocols": ["fixed", "a_boundary"], "subsets": ["ids/a.txt"]}, set()),
        ("resources.memory_mb", 1, set()),
        ("study", "other", set()),
    ],
)
def test_a_step_depends_on_its_own_sections_only(path: str, value: Any, steps: set[str]) -> None:
    before, after = check_study(MINI, where="f"), check_study(with_value(path, value), where="f")
    assert {step for step in SECTIONS_OF_STEP if settings_digest(before, step) != settings_digest(after, step)} == steps


def published_only(**changes: Any) -> dict[str, Any]:
    """Values of a study that trains nothing."""
    return {**read_yaml(REPOSITORY / "configs" / "published.yaml"), **changes}


def test_a_study_that_trains_nothing_needs_no_section_of_training(tmp_path: Path) -> None:
    study = check_study(published_only(), where="f")
    assert (study.backbones, study.seeds, study.dataset.scored_splits) == ((), (), ("lvis_v0.5", "lvis_v1"))
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(published_only()))
    assert load_study_for_step(path, "infer", settings_digest(study, "infer")) == study
    with pytest.raises(InputError, match=r"trains nothing: step 'train' has no settings; fix: name another study"):
        load_study_for_step(path, "train", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"published": []}, r"at least one row: of backbones, which are trained, or of published models"),
        ({"published": [{"model": "a"}]}, r"published a on one of the splits lvis_v0\.5, lvis_v1, not on val"),
        ({"backbones": ["r50"]}, r"also needs sampling, augmentation, schedule, seeds"),
        (
            {"inference": {**MINI["inference"], "calibration": {"method": "fracal"}}},
            r"inference\.calibration with dataset\.draw, or dataset\.train and dataset\.val: it counts the categories",
        ),
        ({"dataset": {"name": "a"}}, r"either 'draw', or both 'train' and 'val', or only 'splits'"),
        (
            {key: MINI[key] for key in ("backbones", "seeds", "sampling", "augmentation", "schedule")},
            r"backbones are trained, which also needs dataset\.draw, or dataset\.train and dataset\.val",
        ),
    ],
)
def test_what_a_study_of_published_models_must_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_study(published_only(**changes), where="f")


def test_published_rows_change_the_report_alone_and_train_nothing_again() -> None:
    values = with_value("model.anchor_scale", 8)
    without = check_study(values, where="f")
    beside = check_study({**values, "published": [{"model": "a"}], "zoo": "zoo.yaml"}, where="f")
    changed = {step for step in SECTIONS_OF_STEP if settings_digest(without, step) != settings_digest(beside, step)}
    assert changed == {"report"}


@pytest.mark.parametrize(
    ("zoo", "expected"),
    [(None, DEFAULT_ZOO), ("zoo/a.yaml", Path("configs/zoo/a.yaml")), ("/else/a.yaml", Path("/else/a.yaml"))],
)
def test_the_zoo_is_the_checkouts_or_named_from_the_study_file(zoo: str | None, expected: Path) -> None:
    study = check_study(published_only(zoo=zoo), where="f")
    assert zoo_of(study, Path("configs/published.yaml")) == expected


def test_preflight_reruns_nothing_that_train_would_not_rerun() -> None:
    assert set(SECTIONS_OF_STEP["preflight"]) <= set(SECTIONS_OF_STEP["train"])


def test_a_step_refuses_a_file_that_changed_after_planning(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(MINI))
    planned = settings_digest(load_study(path), "train")
    path.write_text(json.dumps(with_value("evaluation", {"detections_per_image": 200})))
    assert isinstance(load_study_for_step(path, "train", planned), Study)
    assert isinstance(load_study_for_step(path, "train", None), Study)
    path.write_text(json.dumps(with_value("schedule.steps", 7)))
    with pytest.raises(InputError, match=r"settings of step 'train' changed .*fix: start snakemake again"):
        load_study_for_step(path, "train", planned)


def test_a_study_cannot_change_after_loading() -> None:
    study = check_study(MINI, where="f")
    with pytest.raises(ValueError, match="frozen"):
        study.schedule.steps = 1  # type: ignore[misc]


def test_the_schema_for_editors_is_in_step_with_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["config", "--schema", str(tmp_path / "schema.json"), "--check", *map(str, STUDIES)]
    )
    main()
    made, kept = tmp_path / "schema.json", REPOSITORY / "workflow" / "schemas" / "study.schema.json"
    assert made.read_text() == kept.read_text(), "run: python -m lvis_rcnn.config --schema " + str(kept)


def test_all_files_are_checked_and_each_has_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = REPOSITORY / "configs" / "mini.yaml"
    (tmp_path / "bad.yaml").write_text("study: [")
    names = [tmp_path / "absent.yaml", good, tmp_path / "bad.yaml"]
    monkeypatch.setattr(sys, "argv", ["config", "--check", *map(str, names)])
    with pytest.raises(SystemExit, match="2"):
        main()
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first[:7], second, third[:7]) == ("error: ", f"{good}: ok", "error: ")
    monkeypatch.setattr(sys, "argv", ["config"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "has nothing to do; allowed: --check FILE, --schema FILE; fix: " in capsys.readouterr().err


def test_every_key_of_the_schema_is_described_or_a_section() -> None:
    schema = Study.model_json_schema()
    for section in schema["$defs"].values():
        for key, value in section["properties"].items():
            assert value.get("description"), key


def asking(**resources: Any) -> Study:
    """The study of mini, of 2 images a step, each a group, with these resources."""
    values = copy.deepcopy(MINI)
    values["schedule"]["normalisation_group"] = 1
    values["resources"] |= resources
    return check_study(values, "study.yaml")


def test_a_backbone_asks_what_all_do_but_for_what_it_says_itself() -> None:
    own = {"x101_64x4d": {"gpus": 2, "gpu_model": "h100", "runtime_minutes": 90}}
    study = asking(gpus=1, cpus_per_gpu=8, of_backbone=own)
    common, special = study.asked("r50"), study.asked("x101_64x4d")
    assert (common.gpus, common.nodes, common.gpu_model, common.cpus_per_gpu) == (1, 1, None, 8)
    assert (special.gpus, special.gpu_model, special.runtime_minutes) == (2, "h100", 90)
    assert (special.nodes, special.cpus_per_gpu, special.memory_mb) == (1, 8, common.memory_mb)


def test_what_is_not_said_follows_from_the_device() -> None:
    assert asking().asked("r50").gpus is None
    assert asking().asked("r50").cpus_per_gpu == MINI["compute"]["threads"]
    on_gpu = load_study(REPOSITORY / "configs" / "lvis_v0.5.yaml")
    assert (on_gpu.asked("r50").gpus, on_gpu.asked("r50").cpus_per_gpu) == (1, 8)


@pytest.mark.parametrize(
    ("resources", "allowed"),
    [
        (
            {"gpus": 3},
            "resources.gpus \\* resources.nodes at most 2, the normalisation groups of a step, not 3 \\(r50\\)",
        ),
        ({"gpus": 2, "nodes": 3}, "resources.gpus \\* resources.nodes at most 2, .* not 6"),
        ({"of_backbone": {"r101": {"gpus": 8}}}, "not 8 \\(r101\\)"),
        ({"nodes": 2}, "resources.nodes above 1 with resources.gpus for each of them"),
    ],
)
def test_processes_without_work_are_refused(resources: dict[str, Any], allowed: str) -> None:
    with pytest.raises(InputError, match=f"^study.yaml: study file: does not fit together; allowed: .*{allowed}"):
        asking(**resources)
