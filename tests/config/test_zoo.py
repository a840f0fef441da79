"""Published models as rows of a file: which there are, wrong rows, and a file fetched whole or not at all."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import DEFAULT_ZOO
from lvis_rcnn.config.zoo import ZooModel, digest_in_name, initial_model, initial_warnings, load_zoo, published_file
from lvis_rcnn.system.cli import InputError

ZOO = load_zoo(DEFAULT_ZOO)
ROW = {"name": "a", "kind": "coco", "backbone": "r50", "schedule": "2x", "url": "https://example.org/a-0123abcd.pth"}
CONTENT = bytes(range(256)) * 9000  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def write_zoo(folder: Path, *rows: Any) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump({"models": list(rows)}))
    return path


def model_at(url: str) -> ZooModel:
    return ZooModel(**{**ROW, "url": url})


def test_the_eight_published_models_of_lvis_with_their_published_numbers() -> None:
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
    }
    found = {name: (row.box_ap, row.mask_ap, row.memory_gb) for name, row in ZOO.items() if row.kind[:4] == "lvis"}
    assert found == printed
    digests = ["dbd06831", "54582ee2", "3cf55ea2", "1c99a5ad", "aa78ac3d", "ec55ce32", "ebbc5c81", "43d9edfe"]
    assert [ZOO[name].sha256_prefix for name in printed] == digests


@pytest.mark.parametrize("name", ZOO)
def test_names_folders_and_files_of_a_row_agree(name: str) -> None:
    row = ZOO[name]
    assert name == f"{row.kind}_{row.backbone}"
    if row.kind == "imagenet":
        stem = f"resnext{row.backbone[1:]}" if row.backbone[0] == "x" else row.backbone.replace("r", "resnet")
        assert row.file_name == f"{stem}-{row.sha256_prefix}.pth"
        return
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
        ({"digest": "0123abcd"}, r"models\[0\]: digest: unknown key; allowed: name, kind, backbone, schedule, url"),
        ({"url": "https://example.org/a.pth"}, r"does not fit together; allowed: a url that ends in -xxxxxxxx\.pth"),
        ({"url": "weights/a-0123abcd.pth"}, r"models\[0\]: url: is \"weights/a-0123abcd.pth\""),
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
    with pytest.raises(InputError, match=r"models\[0\]: url: missing; allowed: name, kind"):
        load_zoo(write_zoo(tmp_path, {key: value for key, value in ROW.items() if key != "url"}))
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
    ],
)
def test_the_digest_of_a_name(name: str, digest: str | None) -> None:
    assert digest_in_name(name) == digest


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of the folder ``served``, on this machine only."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_an_absent_file_is_fetched_once_and_whole(server: str, tmp_path: Path) -> None:
    served, weights = tmp_path / "served" / f"a-{DIGEST[:8]}.pth", tmp_path / "data" / "weights"
    served.write_bytes(CONTENT)
    model = model_at(f"{server}/{served.name}")
    path = published_file(model, weights)
    assert path == weights / served.name
    assert path.read_bytes() == CONTENT
    served.unlink()
    assert published_file(model, weights) == path
    assert list(weights.iterdir()) == [path]


def test_another_file_than_the_name_says_is_not_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "a-0123abcd.pth").write_bytes(CONTENT)
    message = rf"a-0123abcd.pth: the file has the SHA-256 {DIGEST[:8]}, not 0123abcd\); fix: put the file into"
    with pytest.raises(InputError, match=message):
        published_file(model_at(f"{server}/a-0123abcd.pth"), tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_file_that_cannot_be_fetched_says_from_where_and_whither(server: str, tmp_path: Path) -> None:
    url = f"{server}/a-0123abcd.pth"
    message = rf"weights/a-0123abcd.pth: is missing and cannot be fetched \({url}: .*404.*\); fix: put the file into "
    with pytest.raises(InputError, match=message + ".*weights"):
        published_file(model_at(url), tmp_path / "weights")
    with pytest.raises(InputError, match=r"cannot be fetched \(.*cannot be reached.*refused.*\)"):
        published_file(model_at("http://127.0.0.1:9/a-0123abcd.pth"), tmp_path / "weights")
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
    fetched, missing = initial_warnings(ZOO, "coco", ["r50", "r101", "x101_64x4d"], tmp_path)
    row = ZOO["coco_r101"]
    assert fetched == f"model.weights: {row.file_name} is not in {tmp_path}; training will fetch it from {row.url}"
    assert missing.startswith("model.weights: is coco, but the zoo has no file of that kind for x101_64x4d")
    assert missing.endswith("; its training will not start")
    assert list(initial_warnings(ZOO, "none", ["r50"], tmp_path)) == []
