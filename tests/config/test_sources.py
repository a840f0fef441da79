"""Where the files of LVIS come from, and which of them a study lacks."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvis_rcnn.config.study import DEFAULT_ZOO, Study, load_study
from lvis_rcnn.config.zoo import lacking_files, lacking_weights, load_sources, load_zoo
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY, write_study

SOURCES = load_sources()
ZOO = load_zoo(DEFAULT_ZOO)
ROW = {"name": "a", "provides": "a.json", "urls": ["https://example.org/a.json.zip"]}


def write_sources(folder: Path, *rows: Any) -> Path:
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump({"files": list(rows)}))
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_names_files_and_addresses_of_a_row_agree(name: str) -> None:
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
def test_a_wrong_row_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert list(load_sources(write_sources(tmp_path, ROW))) == ["a"]
    with pytest.raises(InputError, match=message):
        load_sources(write_sources(tmp_path, {**ROW, **change}))


def test_a_row_twice_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources.yaml: file a: is repeated; fix"):
        load_sources(write_sources(tmp_path, ROW, ROW))
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
        f"data/weights/{row.file_name}" for row in ZOO.values() if row.kind.startswith("lvis")
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
