"""AP so far on disk: which scores count, and how a person reads them."""

import json
import os

import pytest

from lvis_rcnn.runs.points import (
    kept_file,
    kept_files,
    read_so_far,
    scored_points,
    sentence,
    step_of,
    unscored,
    write_so_far,
)
from tests.helpers.study_records import point as helper_point
from tests.helpers.study_records import study_with

STUDY = study_with(evaluation={"score_at_steps": [20, 100], "score_images": 60})


def point(study=STUDY, step=20, **changes):
    return helper_point(study, step, 0.1234, **{"epoch": 1.25, "images": 60, **changes})


def put_weights(state_dir, step, scores=None):
    file = kept_file(state_dir, step)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"weights")
    if scores:
        file.with_suffix(".json").write_text(json.dumps(scores))
    return file


def test_weights_are_found_by_their_steps_and_scores_beside_them(tmp_path):
    assert (kept_files(tmp_path), unscored(None, STUDY)) == ([], [])
    later, first = put_weights(tmp_path, 123_456_789), put_weights(tmp_path, 20, point())
    (first.parent / ".step00000100.pth.abc").touch()  # being written
    (first.parent / "step_best.pth").touch()  # a person's
    assert [step_of(file) for file in kept_files(tmp_path)] == [20, 123_456_789]
    assert unscored(tmp_path, STUDY) == [later]
    assert scored_points(tmp_path, STUDY) == [point()]
    assert scored_points(tmp_path, STUDY, "of other annotations") == []
    # Written again by a resumed training: perhaps other weights.
    os.utime(first, (2e9, 2e9))
    assert unscored(tmp_path, STUDY) == [first, later]


@pytest.mark.parametrize(
    "changes",
    [
        {"settings_digest": "other"},
        {"detections_per_image": 299},
        {"images": 59},
        {"epoch": "1"},
        {"step": 100},
        {"images_of_split": 0},
    ],
)
def test_scores_of_other_settings_or_of_another_form_do_not_count(tmp_path, changes):
    file = put_weights(tmp_path, 20, point(**changes))
    assert unscored(tmp_path, STUDY) == [file]


def test_a_subset_of_more_images_than_there_are_is_the_whole(tmp_path):
    put_weights(tmp_path, 20, point(images=50, images_of_split=50))
    assert unscored(tmp_path, STUDY) == []
    every = study_with(evaluation={"score_at_steps": [20]})
    put_weights(tmp_path, 100, point(images=60))
    assert [step_of(file) for file in unscored(tmp_path, every)] == [100]


def test_the_points_of_another_training_or_other_settings_are_not_read(tmp_path):
    digest = "0123456789abcdef"
    assert read_so_far(tmp_path, digest, STUDY) == []
    points = [point(), point(step=100, settings_digest="other")]
    assert write_so_far(tmp_path, digest, points)
    written = (tmp_path / "ap_so_far.json").stat().st_ino
    assert not write_so_far(tmp_path, digest[:12], points)
    assert (tmp_path / "ap_so_far.json").stat().st_ino == written
    assert read_so_far(tmp_path, digest, STUDY) == read_so_far(tmp_path, digest[:12], STUDY) == [point()]
    assert read_so_far(tmp_path, "f" * 12, STUDY) == []
    (tmp_path / "ap_so_far.json").write_text('{"state": "0123456789ab"}')
    assert read_so_far(tmp_path, digest, STUDY) == []


def test_a_point_in_words():
    assert sentence(point()) == "step 20 (epoch 1.25): box AP 12.3, mask AP 6.2, on 60 of 100 images"
    whole = point(step=7674, epoch=8.0, images=100, segm={"AP": 0.062, "APr": 0.0})
    assert sentence(whole) == "step 7,674 (epoch 8): box AP 12.3, mask AP 6.2, APr 0.0, on 100 images"
