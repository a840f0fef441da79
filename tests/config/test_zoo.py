"""Published models and the files of LVIS as rows: which there are, wrong rows, and what a study lacks."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import DEFAULT_ZOO, Study, load_study
from lvis_rcnn.config.zoo import (
    ZooModel,
    digest_in_name,
    initial_model,
    initial_warnings,
    initial_zoo,
    lacking_files,
    lacking_weights,
    load_sources,
    load_zoo,
    published_file,
)
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY, write_study
from tests.helpers.file_server import serving

ZOO = load_zoo(DEFAULT_ZOO)
ROW = {"name": "a", "kind": "coco", "backbone": "r50", "schedule": "2x"}
ROW["urls"] = ["https://example.org/a-0123abcd.pth"]
CONTENT = bytes(range(256)) * 9000  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def write_zoo(folder: Path, *rows: Any) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump({"models": list(rows)}))
    return path


def model_at(*urls: str) -> ZooModel:
    return ZooModel(**{**ROW, "urls": urls})


def test_the_published_models_of_lvis_with_their_published_numbers() -> None:
    # configs/lvis/README.md of MMDetection: box AP and mask AP, Mem where it is given.
    printed = {
        "lvis_v0.5_r50": (26.1, 25.9, None),
        "lvis_v0.5_r101": (27.1, 27.0, None),
        "lvis_v0.5_x101_32x4d": (26.7, 26.9, None),
        "lvis_v0.5_x101_64x4d": (26.4, 26.0, None),
        "lvis_v1_r50": (22.5, 21.7, 9.1),
        "lvis_v1_r101": (24.6, 23.6, 10.8),
        "lvis_v1_x101_32x4d": (26.7, 25.5, 11.8),
        "lvis_v1_x101_64x4d": (27.2, 25.8, 14.6),
        # configs/seesaw_loss/README.md and metafile.yml.
        "lvis_v1_r50_seesaw_random": (25.6, 25.0, None),
        "lvis_v1_r50_seesaw_random_mask": (25.6, 25.4, None),
        "lvis_v1_r101_seesaw_random": (27.4, 26.7, None),
        "lvis_v1_r101_seesaw_random_mask": (27.2, 27.3, None),
        "lvis_v1_r50_seesaw": (27.6, 26.4, None),
        "lvis_v1_r50_seesaw_mask": (27.6, 26.8, None),
        "lvis_v1_r101_seesaw": (28.9, 27.6, None),
        "lvis_v1_r101_seesaw_mask": (28.9, 28.2, None),
    }
    found = {name: (row.box_ap, row.mask_ap, row.memory_gb) for name, row in ZOO.items() if row.kind[:4] == "lvis"}
    assert found == printed
    digests = ["dbd06831", "54582ee2", "3cf55ea2", "1c99a5ad", "aa78ac3d", "ec55ce32", "ebbc5c81", "43d9edfe"]
    digests += ["a698dd3d", "a1c11314", "8e6e6dd5", "a0b59c42", "392a804b", "cd0f6a12", "e68eb464", "1d817139"]
    assert [ZOO[name].sha256_prefix for name in printed] == digests


def test_published_methods_are_told_by_their_name() -> None:
    for name, row in ZOO.items():
        is_seesaw = "seesaw" in name
        assert row.classification == ("seesaw" if is_seesaw else "softmax")
        assert row.box_classifier == ("normalised" if is_seesaw else "linear")
        assert row.mask_predictor == ("normalised" if "normed_mask" in row.file_name else "linear")
        assert row.sampling == ("none" if "random" in name else "image")
        assert ("random" in row.file_name, "normed_mask" in row.file_name) == ("random" in name, "mask" in name)


@pytest.mark.parametrize(
    ("model", "sampling", "reference"),
    [
        ({}, {}, None),  # plain models of LVIS v1 were published 1x
        ({"classification": "seesaw", "box_classifier": "normalised"}, {}, "lvis_v1_r50_seesaw"),
        ({"classification": "seesaw"}, {}, None),
        ({"classification": "seesaw", "box_classifier": "normalised"}, {"frequency": "instance_aware"}, None),
        (
            {"classification": "seesaw", "box_classifier": "normalised", "mask_predictor": "normalised"},
            {"oversample_threshold": None},
            "lvis_v1_r50_seesaw_random_mask",
        ),
    ],
)
def test_a_row_is_compared_with_the_published_model_of_its_method(
    model: dict[str, Any], sampling: dict[str, Any], reference: str | None
) -> None:
    plain = load_study(REPOSITORY / "configs" / "lvis_v1.yaml")
    assert [name for name, row in ZOO.items() if row.is_trained_like(plain, "r50", "1x")] == ["lvis_v1_r50"]
    changes = {"model": plain.model.model_copy(update=model), "sampling": plain.sampling.model_copy(update=sampling)}
    study = plain.model_copy(update=changes)
    assert next((name for name, row in ZOO.items() if row.is_trained_like(study, "r50", "2x")), None) == reference


@pytest.mark.parametrize("name", ZOO)
def test_names_folders_and_files_of_a_row_agree(name: str) -> None:
    row = ZOO[name]
    assert name.partition("_seesaw")[0] == f"{row.kind}_{row.backbone}"
    if row.classification == "seesaw":  # in one folder, on one host
        stem = row.url.removesuffix(f"-{row.sha256_prefix}.pth")
        assert row.urls == (row.url,)
        assert row.log_url == f"{stem}.log.json"
        assert f"/{row.classification}_loss/mask_rcnn_{BACKBONES[row.backbone].file_stem}_" in stem
        assert stem.endswith(f"_{row.schedule}_{row.kind}")
        return
    if row.kind == "imagenet":
        stem = f"resnext{row.backbone[1:]}" if row.backbone[0] == "x" else row.backbone.replace("r", "resnet")
        assert row.file_name == f"{stem}-{row.sha256_prefix}.pth"
        return
    # The second host has the same files under the same paths.
    first, mirror = row.urls
    assert mirror == first.replace("https://download.openmmlab.com/", "https://mmassets.onedl.ai/") != first
    folder = row.url.split("/")[-2]
    assert row.file_name.startswith(folder)
    assert BACKBONES[row.backbone].file_stem in folder
    assert f"_{row.schedule}_{row.kind.replace('_v0.5', '')}" in folder
    assert row.log_url is not None
    assert row.log_url.split("/")[:-1] == row.url.split("/")[:-1]
    assert row.log_url.split("/")[-1].startswith(folder)


def test_the_coco_rows_are_the_place_holders_of_the_page() -> None:
    rows = [(row.backbone, row.sha256_prefix, row.box_ap, row.mask_ap) for row in ZOO.values() if row.kind == "coco"]
    assert rows == [
        ("r50", "3e542a40", 39.2, 35.4),
        ("r101", "14b391c7", 40.8, 36.6),
        ("x101_32x4d", "faef898c", 42.2, 37.8),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "voc"}, r'zoo.yaml: models\[0\]: kind: is "voc"; allowed: \'lvis_v0.5\', \'lvis_v1\', \'coco\' or'),
        ({"backbone": "r18"}, r"models\[0\]: backbone: is \"r18\"; allowed: 'r50', 'r101'"),
        ({"digest": "0123abcd"}, r"models\[0\]: digest: unknown key; allowed: name, kind, backbone, schedule, urls"),
        ({"urls": ["https://example.org/a.pth"]}, r"does not fit together; allowed: urls that end in one name, …-xxxx"),
        ({"urls": [*ROW["urls"], "https://b.org/b-0123abcd.pth"]}, r"does not fit together; allowed: urls that end in"),
        ({"urls": ["weights/a-0123abcd.pth"]}, r"models\[0\]: urls.0: is \"weights/a-0123abcd.pth\""),
        ({"urls": []}, r"models\[0\]: urls: is \[\]"),
        ({"url": ROW["urls"][0]}, r"models\[0\]: url: unknown key; allowed: .*urls"),
        ({"box_ap": 261}, r"models\[0\]: box_ap: is 261; allowed: less than or equal to 100"),
        ({"schedule": ""}, r"models\[0\]: does not fit together; allowed: a schedule, 1x or 2x, for every detector"),
        ({"kind": "imagenet"}, r"models\[0\]: does not fit together; allowed: a schedule"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert list(load_zoo(write_zoo(tmp_path, ROW))) == ["a"]
    with pytest.raises(InputError, match=message):
        load_zoo(write_zoo(tmp_path, {**ROW, **change}))


def test_an_incomplete_a_repeated_and_no_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"models\[0\]: urls: missing; allowed: name, kind"):
        load_zoo(write_zoo(tmp_path, {key: value for key, value in ROW.items() if key != "urls"}))
    with pytest.raises(InputError, match=r"zoo.yaml: model a: is repeated"):
        load_zoo(write_zoo(tmp_path, ROW, {**ROW, "backbone": "r101"}))
    with pytest.raises(InputError, match=r"models\[0\]: row: is \"r50\""):
        load_zoo(write_zoo(tmp_path, "r50"))


@pytest.mark.parametrize("text", ["", "- a", "rows: []", "models: {a: 1}", "models: []\nbase: x"])
def test_a_file_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "zoo.yaml").write_text(text)
    with pytest.raises(InputError, match=r"zoo.yaml: is no list of published models; allowed: one key, 'models'"):
        load_zoo(tmp_path / "zoo.yaml")


def test_a_missing_zoo(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"zoo.yaml: no such file of published models"):
        load_zoo(tmp_path / "zoo.yaml")


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("a-0123abcd.pth", "0123abcd"),
        ("a_20200505_003907-3e542a40.pth", "3e542a40"),
        ("a-0123ABCD.pth", None),
        ("a-0123abc.pth", None),
        ("a-0123abcde.pth", None),
        ("a-0123abcd.pth.part", None),
        ("model.pth", None),
        ("mine-20260131.pth", None),
        ("a-20995152.pth", "20995152"),
    ],
)
def test_the_digest_of_a_name(name: str, digest: str | None) -> None:
    assert digest_in_name(name) == digest


def test_an_absent_file_is_fetched_once_and_whole(tmp_path: Path) -> None:
    name, weights = f"a-{DIGEST[:8]}.pth", tmp_path / "data" / "weights"
    with serving({f"/{name}": CONTENT}) as (address, served):
        path = published_file(model_at(f"{address}/{name}"), weights)
        assert path == weights / name
        assert path.read_bytes() == CONTENT
        assert published_file(model_at(f"{address}/{name}"), weights) == path
    assert len(served.requests) == 1
    assert list(weights.iterdir()) == [path]


def test_a_mirror_has_the_file_that_the_first_host_lost_or_changed(tmp_path: Path) -> None:
    name = f"a-{DIGEST[:8]}.pth"
    with serving({f"/changed/{name}": CONTENT[:-1], f"/mirror/{name}": CONTENT}) as (address, served):
        model = model_at(*(f"{address}/{host}/{name}" for host in ("lost", "changed", "mirror")))
        assert published_file(model, tmp_path).read_bytes() == CONTENT
    assert [path.split("/")[1] for path, _ in served.requests] == ["lost", "changed", "mirror"]


def test_another_file_than_the_name_says_is_not_kept(tmp_path: Path) -> None:
    with serving({"/a-0123abcd.pth": CONTENT}) as (address, _):
        message = rf"a-0123abcd.pth: .*has the SHA-256 {DIGEST[:8]}, not 0123abcd\); fix: put the file into .*weights"
        with pytest.raises(InputError, match=message):
            published_file(model_at(f"{address}/a-0123abcd.pth"), tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_damaged_file_at_hand_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / f"a-{DIGEST[:8]}.pth"
    path.write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()[:8]
    message = f"its SHA-256 begins with {found}, .*; allowed: {DIGEST[:8]}, as its name says; fix: delete the file or"
    with pytest.raises(InputError, match=message):
        published_file(model_at(f"https://example.org/{path.name}"), tmp_path)
    assert path.read_bytes() == CONTENT[:-1]


def test_the_file_that_a_training_begins_with() -> None:
    for backbone in BACKBONES:
        assert initial_model(ZOO, "imagenet", backbone).name == f"imagenet_{backbone}"
    assert initial_model(ZOO, "coco", "r101").name == "coco_r101"
    message = r"model.weights: is coco, but .* for x101_64x4d; allowed: r50, r101, x101_32x4d with 'coco'; every"
    with pytest.raises(InputError, match=message):
        initial_model(ZOO, "coco", "x101_64x4d")


def test_what_will_be_fetched_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / ZOO["coco_r50"].file_name).touch()
    fetched, missing = initial_warnings(ZOO, [("coco", name) for name in ("r50", "r101", "x101_64x4d")], tmp_path)
    row = ZOO["coco_r101"]
    assert fetched == f"model.weights: {row.file_name} is not in {tmp_path}; training will fetch it from {row.url}"
    assert missing.startswith("model.weights: is coco, but the zoo has no file of that kind for x101_64x4d")
    assert missing.endswith("; its training will not start")
    assert list(initial_warnings(ZOO, [], tmp_path)) == []


RESULTS = yaml.safe_load((REPOSITORY / "configs" / "zoo" / "results.yaml").read_text())["results"]


def test_each_published_result_says_what_it_is_of_and_where_it_was_read() -> None:
    always = {"name", "kind", "backbone", "schedule", "sampling", "classification", "mask_ap", "source"}
    beside = {"box_classifier", "mask_predictor", "calibration", "beyond", "box_ap", "mask_apr", "mask_apc", "mask_apf"}
    for row in RESULTS:
        assert always <= row.keys() <= always | beside
    assert len({row["name"] for row in RESULTS}) == len(RESULTS)


def test_results_of_the_published_models_are_those_of_their_rows() -> None:
    plain = [row for row in RESULTS if "configs/lvis/metafile.yml" in row["source"]]
    assert len(plain) == 2
    for row in plain:
        model = ZOO[f"{row['kind']}_{row['backbone']}"]
        assert (model.schedule, model.box_ap, model.mask_ap) == (row["schedule"], row["box_ap"], row["mask_ap"])


@pytest.mark.parametrize(
    ("study", "is_read"), [("lvis_v1", True), ("lvis_v1_longtail", True), ("mini_longtail", False)]
)
def test_the_zoo_is_read_where_a_training_of_any_row_starts_from_it(study: str, is_read: bool) -> None:
    path = REPOSITORY / "configs" / f"{study}.yaml"
    assert initial_zoo(load_study(path), path) == (ZOO if is_read else {})


def test_the_results_of_methods_as_printed() -> None:
    """Mask AP of configs/seesaw_loss/metafile.yml of MMDetection 3.3.0, without and with normalised mask predictor."""
    seesaw = [row for row in RESULTS if row["classification"] == "seesaw"]
    printed = {("r50", "none"): (25.0, 25.4), ("r101", "none"): (26.7, 27.3)}
    printed |= {("r50", "rfs"): (26.4, 26.8), ("r101", "rfs"): (27.6, 28.2)}
    for of, aps in printed.items():
        found = {
            row.get("mask_predictor", "linear"): row["mask_ap"]
            for row in seesaw
            if (row["backbone"], row["sampling"]) == of
        }
        assert found == dict(zip(("linear", "normalised"), aps, strict=True))
    assert all((row["schedule"], row["box_classifier"]) == ("2x", "normalised") for row in seesaw)
    fracal = [row for row in RESULTS if row.get("calibration") == "fracal"]
    keys = ("mask_ap", "mask_apr", "mask_apc", "mask_apf")
    groups = {row["backbone"]: tuple(map(row.get, keys)) for row in fracal}
    assert groups == {"r50": (28.5, 23.0, 28.1, 31.5), "r101": (29.9, 24.6, 29.3, 32.8)}
    assert {row["beyond"] for row in fracal} == {"CARAFE upsampling"}
    assert len(RESULTS) == len(seesaw) + len(fracal) + 3
    assert {row["kind"] for row in RESULTS} == {"lvis_v1"}


def test_no_result_that_was_read_at_its_source_is_left_out() -> None:
    read = json.loads((REPOSITORY / "tests" / "golden" / "published_results.json").read_text())["read_at_source"]
    keys = ("box_AP", "mask_AP", "mask_APr", "mask_APc", "mask_APf")
    wanted = sorted(str([row["backbone"].replace("-", "").lower(), *map(row.get, keys)]) for row in read)
    ours = ([row["backbone"], *(row.get(key.lower()) for key in keys)] for row in RESULTS)
    assert sorted(map(str, ours)) == wanted


SOURCES = load_sources()
SOURCE = {"name": "a", "provides": "a.json", "urls": ["https://example.org/a.json.zip"]}


def write_sources(folder: Path, *rows: Any) -> Path:
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump({"files": list(rows)}))
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_names_files_and_addresses_of_a_source_agree(name: str) -> None:
    row = SOURCES[name]
    assert row.provides in (f"{name}.json", f"{name}.zip")
    assert row.zip_name == (f"{name}.json.zip" if row.is_unpacked else row.provides)
    assert {url.rsplit("/", 1)[-1] for url in row.urls} == {row.zip_name}
    assert len(row.urls) == len({url.split("/")[2] for url in row.urls}) == 2
    # A mirror is the bucket by its path: its address ends in host and path of the first.
    first = re.sub("^https?://", "", row.urls[0])
    assert row.urls[1].endswith(first)
    # Known by its digest, or by what it holds.
    assert (row.sha256 is None) == (row.size_bytes is None) == (row.counts is not None)


def test_the_published_sizes_and_digests() -> None:
    # TensorFlow Datasets, checksums of lvis and coco; v1: 4,809 images of val2017 and 15,000 of train2017 are val.
    assert {name: (row.size_bytes, str(row.sha256)[:8]) for name, row in SOURCES.items() if row.sha256} == {
        "lvis_v1_train": (350_264_821, "334a4caa"),
        "lvis_v1_val": (64_026_968, "5cae9a3c"),
        "train2017": (19_336_861_798, "69a8bb58"),
        "val2017": (815_585_330, "4f7e2ccb"),
    }
    counts = {name: (row.counts.images, row.counts.categories) for name, row in SOURCES.items() if row.counts}
    assert counts == {"lvis_v0.5_train": (57_263, 1230), "lvis_v0.5_val": (5_000, 1230)}
    assert SOURCES["lvis_v1_val"].images == ("val2017", "train2017")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"urls": []}, r"sources.yaml: files\[0\]: urls: is \[\]"),
        ({"urls": ["ftp://example.org/a.zip"]}, r"files\[0\]: urls.0: is \"ftp://"),
        ({"provides": "../a.json"}, r"files\[0\]: provides: is \"../a.json\""),
        ({"sha256": "0123"}, r"files\[0\]: sha256: is \"0123\""),
        ({"md5": "0123"}, r"files\[0\]: md5: unknown key; allowed: name, provides, urls, size_bytes, sha256"),
        ({"images": ["b"]}, r"sources.yaml: file a: images: names b; allowed: a; fix: add the row"),
    ],
)
def test_a_wrong_source_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert list(load_sources(write_sources(tmp_path, SOURCE))) == ["a"]
    with pytest.raises(InputError, match=message):
        load_sources(write_sources(tmp_path, {**SOURCE, **change}))


def test_a_row_twice_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources.yaml: file a: is repeated; fix"):
        load_sources(write_sources(tmp_path, SOURCE, SOURCE))
    with pytest.raises(InputError, match=r"is no list of files to fetch; allowed: one key, 'files', with a list of"):
        load_sources(DEFAULT_ZOO)


def names(study: Study) -> dict[str, str]:
    return {path: source.name for path, source in lacking_files(study, SOURCES).items()}


def test_what_the_studies_of_the_page_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = {"data/coco/train2017.zip": "train2017", "data/coco/val2017.zip": "val2017"}
    for name in ("lvis_v0.5", "lvis_v1"):
        path = REPOSITORY / "configs" / f"{name}.yaml"
        annotations = {f"data/{name}/annotations/{name}_{k}.json": f"{name}_{k}" for k in ("train", "val")}
        assert names(load_study(path)) == {**annotations, **images}
        assert [row.name for row in lacking_weights(load_study(path), path).values()] == [
            "imagenet_r50",
            "imagenet_r101",
            "imagenet_x101_32x4d",
            "imagenet_x101_64x4d",
        ]
    path = REPOSITORY / "configs" / "published.yaml"
    wanted = {f"data/{name}/annotations/{name}_val.json": f"{name}_val" for name in ("lvis_v0.5", "lvis_v1")}
    assert names(load_study(path)) == {**wanted, **images}
    assert set(lacking_weights(load_study(path), path)) == {
        f"data/weights/{row.file_name}"
        for row in ZOO.values()
        if row.kind.startswith("lvis") and row.classification == "softmax"
    }
    path = REPOSITORY / "configs" / "mini.yaml"
    assert names(load_study(path)) == lacking_weights(load_study(path), path) == {}


def study_of(folder: Path, annotations: str, images: str) -> Study:
    split = {"annotations": annotations, "images": images}
    dataset = {"name": "own", "draw": None, "train": split, "val": split}
    return load_study(write_study(folder / "own.yaml", dataset=dataset))


@pytest.mark.parametrize("at_hand", ["coco/train2017", "coco/train2017.zip", "coco/train2017 -> /not/mounted"])
def test_images_at_hand_are_not_fetched(tmp_path: Path, at_hand: str) -> None:
    place, _, target = at_hand.partition(" -> ")
    (tmp_path / "coco").mkdir()
    if target:
        (tmp_path / place).symlink_to(target)
    else:
        (tmp_path / place).mkdir()
    study = study_of(tmp_path, f"{tmp_path}/lvis_v1_train.json", f"{tmp_path}/coco")
    assert names(study) == {f"{tmp_path}/lvis_v1_train.json": "lvis_v1_train"}
    (tmp_path / "lvis_v1_train.json").touch()
    assert names(study) == {}


def test_a_split_that_names_the_unpacked_folder_itself(tmp_path: Path) -> None:
    study = study_of(tmp_path, f"{tmp_path}/lvis_v1_train.json", f"{tmp_path}/train2017")
    assert f"{tmp_path}/train2017/train2017.zip" in names(study)
    (tmp_path / "train2017").mkdir()
    assert list(names(study)) == [f"{tmp_path}/lvis_v1_train.json"]


def test_a_study_of_own_files_lacks_nothing_that_could_be_fetched(tmp_path: Path) -> None:
    assert names(study_of(tmp_path, "data/mine_train.json", "data/coco")) == {}


def test_initial_weights_at_hand_and_those_that_do_not_exist(tmp_path: Path) -> None:
    path = write_study(
        tmp_path / "a.yaml",
        model={"weights": "coco"},
        backbones=["r50", "r101", "x101_64x4d"],
        resources={"weights_dir": str(tmp_path)},
    )
    (tmp_path / ZOO["coco_r50"].file_name).touch()
    assert [row.name for row in lacking_weights(load_study(path), path).values()] == ["coco_r101"]
