"""Protocols beside AP@300: AP-fixed, boundary AP, subsets of the images, and all together."""

import copy
import gzip
import json
import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lvis_rcnn.config.protocols import Protocol, protocols_by_name
from lvis_rcnn.evaluation import protocols
from lvis_rcnn.evaluation.average_precision import Scores, score
from lvis_rcnn.evaluation.ground_truth import GroundTruth, parse_truth
from lvis_rcnn.evaluation.official import difference, official_package, official_scores
from lvis_rcnn.evaluation.protocols import score_protocols
from lvis_rcnn.evaluation.results import DetectionSet, detections_of, read_detections
from lvis_rcnn.evaluation.subsets import images_of_subset, only_images, read_ids
from lvis_rcnn.system.cli import InputError
from tests.conftest import LONGTAIL, LVIS_VAL_100
from tests.evaluation.test_average_precision import arrays, jittered, results_of, sets
from tests.evaluation.test_boundary import eroded_slowly
from tests.helpers.lvis_like import lvis_like
from tests.helpers.scored_boxes import BOAT, CUP, FAR, found, truth

FIXED, BOUNDARY = Protocol(is_fixed=True), Protocol(is_boundary=True)
CHALLENGE = Protocol(is_boundary=True, is_fixed=True)


def all_images(of: GroundTruth) -> dict[str, np.ndarray]:
    return {"": np.ones(len(of.image_ids), bool)}


def scored(of: GroundTruth, detections: DetectionSet, *wanted: Protocol, **more: Any) -> dict[tuple[str, str], Scores]:
    subsets = more.pop("subsets", {}) | all_images(of)
    return {(one.name, kind): scores for one, kind, scores in score_protocols(of, detections, wanted, subsets, **more)}


def require_equal(one: Any, other: Any) -> None:
    """Scores, or a part of them, are the same bit for bit."""
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            require_equal(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


def cut_to(dataset: dict[str, Any], records: list[dict[str, Any]], ids: set[int]) -> tuple[dict[str, Any], list]:
    """Both files without all other images."""
    cut = copy.copy(dataset)
    cut["images"] = [image for image in dataset["images"] if image["id"] in ids]
    cut["annotations"] = [one for one in dataset["annotations"] if one["image_id"] in ids]
    return cut, [record for record in records if record["image_id"] in ids]


EVERY = tuple(protocols_by_name(["some"]).values())


def require_as_cut(made: tuple[dict[str, Any], list[dict[str, Any]], int], seed: int) -> None:
    dataset, records, cap = made
    pick, ids = random.Random(seed), sorted(image["id"] for image in dataset["images"])
    some = set(pick.sample(ids, pick.randint(1, len(ids))))
    of, detections = arrays(dataset, records)
    subsets = {"some": np.isin(of.image_ids, list(some))}
    of_some = [one for one in EVERY if one.subset == "some"]
    ours = scored(of, detections, *of_some, subsets=subsets, detections_per_image=cap)
    cut_of, cut_detections = arrays(*cut_to(dataset, records, some))
    plain = [Protocol("", one.is_boundary, one.is_fixed) for one in of_some]
    cut = scored(cut_of, cut_detections, *plain, detections_per_image=cap)
    assert len(ours) == len(cut) == 6
    for name, kind in ours:
        require_equal(ours[name, kind], cut[name.removeprefix("some").removeprefix("_"), kind])


@settings(max_examples=5)
@given(sets, st.integers(0, 2**32))
def test_a_subset_scores_as_both_files_without_all_other_images(made, seed):
    require_as_cut(made, seed)


@pytest.mark.long
@settings(max_examples=300)
@given(sets, st.integers(0, 2**32))
def test_many_subsets_score_as_both_files_without_all_other_images(made, seed):
    require_as_cut(made, seed)


@settings(max_examples=5)
@given(sets)
def test_ap_beside_other_protocols_is_that_of_the_scorer_alone(made):
    dataset, records, cap = made
    of, detections = arrays(dataset, records)
    ours = scored(of, detections, Protocol(), FIXED, BOUNDARY, detections_per_image=cap)
    for kind in ("bbox", "segm"):
        require_equal(ours["", kind], score(of, detections, kind, cap))


def slow_boundary_ious(self: Any, image: int, category: int) -> Any:
    """In place of LVISEval.compute_iou: the boundary of each mask by erosion of its whole image."""
    objects, found = self._get_gt_dt(image, category)
    if not objects and not found:
        return []
    found = [found[at] for at in np.argsort([-one["score"] for one in found], kind="mergesort")]
    masks = [[one["segmentation"] for one in some] for some in (found, objects)]
    outlines = [[boundary_rle(mask) for mask in some] for some in masks]
    none = [0] * len(objects)
    return np.minimum(coco_mask.iou(*masks, none), coco_mask.iou(*outlines, none))


def boundary_rle(mask: dict[str, Any]) -> dict[str, Any]:
    pixels = eroded_slowly(coco_mask.decode(mask).astype(bool))
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


def boundary_disagreement(dataset: dict[str, Any], records: list[dict[str, Any]], cap: int) -> str:
    of, detections = arrays(dataset, records)
    ours = scored(of, detections, BOUNDARY, detections_per_image=cap)["boundary", "segm"]
    with official_package() as lvis, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lvis.LVISEval, "compute_iou", slow_boundary_ious)
        return difference(ours, official_scores(json.dumps(dataset).encode(), detections, "segm", cap))


@settings(max_examples=10)
@given(sets)
def test_boundary_ap_is_that_of_the_lvis_package_with_boundaries(made):
    assert boundary_disagreement(*made) == ""


@pytest.mark.slow
def test_boundary_ap_of_outlines_like_those_of_lvis():
    dataset = lvis_like(12, seed=1)
    assert boundary_disagreement(dataset, jittered(dataset, 2), 300) == ""


def test_processes_change_nothing(monkeypatch):
    monkeypatch.setattr("lvis_rcnn.evaluation.boundary.PAIRS_AT_ONCE", 3)
    calls = []
    # Processes of their own take seconds to start; that the parts are worked on elsewhere is tested with compare_masks.
    monkeypatch.setattr(
        "lvis_rcnn.evaluation.boundary.in_processes",
        lambda compare, parts, processes: [calls.append(processes) or compare(part) for part in parts],
    )
    boxes = [CUP, BOAT, FAR, *((x, 60.0, 20.0, 30.0) for x in (0.0, 5.0, 10.0))]
    of, detections = arrays(
        truth(*((1, 1, box) for box in boxes), frequencies="f"),
        json_of([found(1, 1, 0.5, x + 1, *rest) for x, *rest in boxes]),
    )
    in_parts = scored(of, detections, BOUNDARY, processes=2)["boundary", "segm"]
    assert len(calls) > 1
    assert set(calls) == {2}
    monkeypatch.setattr("lvis_rcnn.evaluation.boundary.PAIRS_AT_ONCE", 1 << 12)
    require_equal(in_parts, scored(of, detections, BOUNDARY)["boundary", "segm"])


def test_no_crowds_by_hand():
    """As for lvis and its branch of 2021, a crowd region is an object like any other: its boundary is compared, too."""
    dataset = truth((1, 1, BOAT), frequencies="f", num_images=1)
    dataset["annotations"][0]["iscrowd"] = 1
    x, y, width, height = BOAT
    # Most pixels are the same, so that masks overlap by 0.8; boundaries of 3 pixels overlap by 294 / 546.
    of, detections = arrays(dataset, json_of([found(1, 1, 0.5, x, y, width - 8, height)]))
    ours = scored(of, detections, Protocol(), BOUNDARY)
    found_at = {name: [ours[name, "segm"].metrics[metric] for metric in ("AP50", "AP75")] for name in ("", "boundary")}
    assert found_at == {"": pytest.approx([1, 1]), "boundary": pytest.approx([1, 0])}


def json_of(results: list) -> list[dict[str, Any]]:
    return [
        {
            "image_id": one.image_id,
            "category_id": one.category_id,
            "score": one.score,
            "bbox": list(one.bbox),
            "segmentation": {"size": list(one.segmentation.size), "counts": one.segmentation.counts},
        }
        for one in results
    ]


def fixed_disagreement(dataset: dict[str, Any], records: list[dict[str, Any]], kind: str, most: int) -> str:
    """AP-fixed beside the lvis package without its cap, given the best of each category, taken in plain Python."""
    text = json.dumps(dataset).encode()
    of = parse_truth(text, "truth.json")
    best = []
    for category in {record["category_id"] for record in records}:
        of_category = [place for place, record in enumerate(records) if record["category_id"] == category]
        best += sorted(of_category, key=lambda place: -records[place]["score"])[:most]
    kept = detections_of(results_of([records[place] for place in sorted(best)]), of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "DETECTIONS_PER_CATEGORY", most)
        ours = scored(of, detections_of(results_of(records), of), FIXED)["fixed", kind]
    return difference(ours, official_scores(text, kept, kind, 10**6))


@settings(max_examples=10)
@given(sets, st.sampled_from([1, 3, 10, 10_000]), st.sampled_from(["bbox", "segm"]))
def test_ap_fixed_is_that_of_the_lvis_package_without_its_cap(made, most, kind):
    dataset, records, _ = made
    assert fixed_disagreement(dataset, records, kind, most) == ""


@pytest.mark.long
@settings(max_examples=300)
@given(sets, st.sampled_from([1, 3, 10, 10_000]))
def test_ap_fixed_of_many_small_sets(made, most):
    dataset, records, _ = made
    assert fixed_disagreement(dataset, records, "bbox", most) == ""
    assert fixed_disagreement(dataset, records, "segm", most) == ""


def test_ap_fixed_cuts_before_the_federated_filter_and_keeps_the_first_of_equal_scores(monkeypatch):
    """Three places for a category: detections in images where it is not verified take some, in the file's order."""
    monkeypatch.setattr(protocols, "DETECTIONS_PER_CATEGORY", 3)
    dataset = truth((1, 1, CUP), frequencies="f", num_images=2)
    elsewhere = [found(2, 1, value, *FAR) for value in (0.9, 0.9, 0.5)]
    for place, ap in ((2, 1), (3, 0)):
        results = [*elsewhere[:place], found(1, 1, 0.5, *CUP), *elsewhere[place:]]
        of, detections = arrays(dataset, json_of(results))
        assert scored(of, detections, FIXED)["fixed", "bbox"].metrics["AP"] == pytest.approx(ap)


def test_ap_fixed_has_no_cap_on_an_image_and_ap_counts_300_as_before():
    dataset = truth((1, 1, CUP), frequencies="fc", num_images=1)
    results = [*[found(1, 2, 0.9, *FAR)] * 300, found(1, 1, 0.5, *CUP)]
    of, detections = arrays(dataset, json_of(results))
    ours = scored(of, detections, Protocol(), FIXED)
    assert [ours[name, "segm"].metrics["AP"] for name in ("", "fixed")] == [0, pytest.approx(1)]


def test_minival_is_what_is_of_val2017():
    dataset = truth((1, 1, CUP), frequencies="f", num_images=3)
    for image, folder in zip(dataset["images"], ("train2017", "val2017", "val2017"), strict=True):
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/000000000001.jpg"
    of, _ = arrays(dataset, [])
    assert images_of_subset(of, "minival", None).tolist() == [False, True, True]
    cut = only_images(of, images_of_subset(of, "minival", None))
    assert (cut.image_ids.tolist(), len(cut.annotation_ids), len(cut.coco_urls)) == ([2, 3], 0, 2)
    for image in dataset["images"]:
        del image["coco_url"]
    with pytest.raises(InputError, match="no image has val2017 in its coco_url"):
        images_of_subset(arrays(dataset, [])[0], "minival", None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1\nx\n", "no list of image ids: 'x'"),
        *((text, "no list of image ids") for text in ("1_0", "\uff11\uff12", "1 2", "1.0", "9" * 20)),
        ("", "is empty"),
        ("1\n1\n", "1 stands there twice"),
        ("9", "9 is not in"),
    ],
)
def test_a_file_of_ids_that_is_none(tmp_path, text, why):
    of, _ = arrays(truth((1, 1, CUP), num_images=3), [])
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(InputError, match=why):
        images_of_subset(of, "ids", tmp_path / "ids.txt")
    with pytest.raises(InputError, match="not readable"):
        images_of_subset(of, "ids", tmp_path / "none.txt")


def test_names():
    assert list(protocols_by_name()) == [
        *("fixed", "boundary", "boundary_fixed"),
        *("minival", "minival_fixed", "minival_boundary", "minival_boundary_fixed"),
    ]
    assert [one.title(300) for one in protocols_by_name().values()] == [
        *("AP-fixed of 300 an image", "Boundary AP", "Boundary AP-fixed of 300 an image"),
        *("minival", "minival AP-fixed of 300 an image", "minival Boundary AP"),
        "minival Boundary AP-fixed of 300 an image",
    ]
    assert FIXED.title(1000) == "AP-fixed"
    for names in (["fixed"], ["street", "street"], ["minival"]):
        with pytest.raises(ValueError, match="give each subset a name of its own"):
            protocols_by_name(names)


needs_golden = pytest.mark.skipif(not LONGTAIL.exists(), reason="the golden figures do not lie beside the checkout")

GOLDEN_NAMES = {
    "ap": {("", "bbox"): "cap300/bbox", ("", "segm"): "cap300/segm"}
    | {("fixed", kind): f"fixed10000/{kind}" for kind in ("bbox", "segm")},
    "boundary_ap": {("boundary", "segm"): "boundary_iou_api/cap300", ("boundary_fixed", "segm"): "lvis_challenge_2021"},
}


def golden_figures(number: int) -> dict[tuple[str, str], dict[str, Any]]:
    figures: dict[tuple[str, str], dict[str, Any]] = {}
    for name, wanted in GOLDEN_NAMES.items():
        stored = json.loads(gzip.decompress((LONGTAIL / f"{name}_detections_{number}.json.gz").read_bytes()))
        figures |= {key: stored[golden] for key, golden in wanted.items() if golden in stored}
    return figures


def require_golden(ours: Scores, of: GroundTruth, golden: dict[str, Any]) -> None:
    for name, value in golden["results"].items():
        same = name if "@" not in name else f"{name.partition('@')[0]}@300"
        assert ours.metrics[same] == pytest.approx(value, abs=1e-9), name
    categories = dict(zip(map(str, of.category_ids.tolist()), ours.category_ap, strict=True))
    assert {name: value for name, value in categories.items() if value is not None} == pytest.approx(
        golden["per_category"], abs=1e-9
    )


@needs_golden
@pytest.mark.slow
def test_golden_figures_of_300_detections_an_image(tmp_path):
    of = parse_truth(LVIS_VAL_100.read_bytes(), "truth.json")
    results = tmp_path / "results.json"
    results.write_bytes(gzip.decompress((LONGTAIL / "detections_300.json.gz").read_bytes()))
    ours = scored(of, read_detections(results, of), Protocol(), FIXED, BOUNDARY, CHALLENGE)
    golden = golden_figures(300)
    assert len(golden) == len(ours) == 6
    for key, figures in golden.items():
        require_golden(ours[key], of, figures)


def golden_detections(of: GroundTruth, number: int) -> list[dict[str, Any]]:
    """The results file of which the golden figures hold the columns."""
    with np.load(LONGTAIL / f"detections_{number}.npz") as archive:
        columns = {name: archive[name].tolist() for name in archive.files}
    dataset = json.loads(LVIS_VAL_100.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    objects = {one["id"]: one for one in dataset["annotations"]}
    names = ("image_id", "category_id", "score_int", "source_ann", "p0", "p1", "p2", "p3")
    records, drawn = [], {}
    for image, category, value, source, *places in zip(*(columns[name] for name in names), strict=True):
        height, width = sizes[image]
        pixels = np.zeros((height, width), np.uint8, order="F")
        if source:
            if source not in drawn:
                drawn[source] = coco_mask.decode(
                    coco_mask.merge(coco_mask.frPyObjects(objects[source]["segmentation"], height, width))
                )
            dx, dy = places[:2]
            rows, left_out = slice(max(dy, 0), height + min(dy, 0)), slice(max(-dy, 0), height + min(-dy, 0))
            columns_to, columns_from = slice(max(dx, 0), width + min(dx, 0)), slice(max(-dx, 0), width + min(-dx, 0))
            pixels[rows, columns_to] = drawn[source][left_out, columns_from]
        else:
            x, y, w, h = places
            pixels[y : y + h, x : x + w] = 1
        mask = coco_mask.encode(pixels)
        records.append(
            {"image_id": image, "category_id": category, "score": value / 2**20}
            | {"bbox": coco_mask.toBbox(mask).tolist()}
            | {"segmentation": {"size": [height, width], "counts": mask["counts"].decode()}}
        )
    return records


@needs_golden
@pytest.mark.long
def test_golden_figures_of_2000_detections_an_image(monkeypatch):
    of = parse_truth(LVIS_VAL_100.read_bytes(), "truth.json")
    detections = detections_of(results_of(golden_detections(of, 2000)), of)
    ours = scored(of, detections, Protocol(), FIXED, CHALLENGE)
    golden = golden_figures(2000)
    assert len(golden) == len(ours) == 5
    for key, figures in golden.items():
        require_golden(ours[key], of, figures)
    # What a cut at another place would give, too, is within a millionth, so that the digits are named.
    assert ours["fixed", "bbox"].metrics["AP"] == pytest.approx(0.587989194, abs=1e-9)
    assert ours["", "bbox"].metrics["AP"] == pytest.approx(0.580487592, abs=1e-9)
    monkeypatch.setattr(protocols, "DETECTIONS_PER_CATEGORY", 50)
    assert scored(of, detections, FIXED)["fixed", "bbox"].metrics["AP"] == pytest.approx(0.572811532, abs=1e-9)


def test_image_ids_in_any_form_of_lines(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf3\r\n\r\n +1 \n-2")
    assert read_ids(tmp_path / "ids.txt").tolist() == [3, 1, -2]


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "'' is no name"), ("-a", "'-a' is no name"), ("x_fixed", "x_fixed would be taken"), ("a_boundary", "taken")],
)
def test_a_subset_has_a_name_that_cannot_be_taken_for_another(name, message):
    with pytest.raises(ValueError, match=message):
        protocols_by_name(["street", name])
