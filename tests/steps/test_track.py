"""AP so far: weights that a training kept are scored as its model would be, once, and nothing waits for ever."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lvis_rcnn import infer, track, train
from lvis_rcnn.config import schema
from lvis_rcnn.config.study import load_study, settings_digest
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.evaluate import evaluate
from lvis_rcnn.evaluation.scoring import Scoring
from lvis_rcnn.inference import kept
from lvis_rcnn.inference.kept import evenly
from lvis_rcnn.runs.points import kept_file, kept_files, step_of, unscored
from lvis_rcnn.system.cli import log
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.run import Run
from tests.helpers.tiny_run import SMALLEST, TinyData, make_data, write_tiny_study

ALONE = Ranks(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("smallest_body")
POINTS = {"score_at_steps": [2, 3]}


@dataclass(frozen=True)
class Trained:
    """The folder that Snakemake would run in, with a run of three steps that kept its weights after two and three."""

    folder: Path
    data: TinyData

    @property
    def run(self) -> Path:
        return self.folder / "results" / "tiny" / "r50" / "seed0"

    @property
    def annotations(self) -> Path:
        return self.data.folder / "drawn" / "val.json"

    def study(self, **evaluation) -> Path:
        drawn = self.data.folder / "drawn"
        splits = {
            name: {"annotations": str(drawn / f"{name}.json"), "images": str(self.data.images)}
            for name in ("train", "val")
        }
        return write_tiny_study(
            self.folder,
            schedule={"steps": 3},
            dataset={"name": "tiny", "draw": None, **splits},
            evaluation={"bootstrap_resamples": 0, **POINTS, **evaluation},
        )

    @property
    def state_dir(self) -> Path:
        (found,) = (self.folder / "results" / "state" / "tiny" / "r50" / "seed0").glob("*/train.json")
        return found.parent

    def so_far(self) -> dict:
        return json.loads((self.run / "ap_so_far.json").read_text())


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trained = Trained(folder, make_data(tmp_path_factory.mktemp("data"), train_images=4, val_images=4))
    stores = folder / "results" / "tiny" / "data"
    stores.mkdir(parents=True)
    for store in (trained.data.train_store, trained.data.val_store):
        shutil.copytree(store, stores / store.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schema.BACKBONES, "r50", SMALLEST)
        data, study = trained.data, load_study(trained.study())
        places = (data.train_store, data.images, data.repeat_factors, folder / "results" / "state")
        train.train(Run(study, "r50", 0, *places, zoo={}), trained.run, ALONE)
    return trained


@pytest.fixture
def trained(once, tmp_path, monkeypatch):
    """A copy of its own for each test, in which it runs; the weights are links."""
    shutil.copytree(once.folder, tmp_path / "run", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "run")
    return Trained(tmp_path / "run", once.data)


def run_main(monkeypatch, study, *words):
    monkeypatch.setattr(sys, "argv", ["track", "--study", str(study), *words])
    track.main()


def scores_of_model(trained, folder, ids=None):
    """Metrics of the finished model, by the steps that score it, of the images of ``ids`` alone if there are any."""
    study, model = load_study(trained.study()), trained.run / "model.pth"
    infer.infer(study, "r50", model, trained.data.val_store, trained.data.images, folder / "state", folder, ALONE)
    if ids is None:
        return evaluate(trained.annotations, folder / "detections", Scoring(official="yes"))
    (folder / "part.txt").write_text("\n".join(map(str, ids)))
    scoring = Scoring(protocols=["part"], subset_files={"part": folder / "part.txt"})
    return evaluate(trained.annotations, folder / "detections", scoring)["protocols"]["part"]


def test_weights_of_the_last_step_score_as_the_model_and_nothing_is_scored_twice(trained, tmp_path, monkeypatch):
    study = trained.study()
    run_main(monkeypatch, study)
    record = trained.so_far()
    assert (record["format"], record["version"]) == ("lvis_rcnn.ap_so_far", 1)
    assert [(point["step"], point["images"], point["images_of_split"]) for point in record["points"]] == [
        (2, 4, 4),
        (3, 4, 4),
    ]
    assert [point["epoch"] for point in record["points"]] == sorted(point["epoch"] for point in record["points"])
    model = scores_of_model(trained, tmp_path / "model")
    assert {kind: record["points"][1][kind] for kind in ("bbox", "segm")} == {
        kind: model[kind] for kind in ("bbox", "segm")
    }
    assert record["points"][0]["model_sha256"] != record["points"][1]["model_sha256"]
    assert sorted(path.name for path in (trained.state_dir / "points").iterdir()) == [
        *("step00000002.json", "step00000002.pth", "step00000003.json", "step00000003.pth")
    ]
    assert len(list((trained.state_dir / "tensorboard" / "ap").iterdir())) == 1
    monkeypatch.setattr(kept, "scored_point", None)
    before = (trained.run / "ap_so_far.json").stat().st_mtime_ns
    run_main(monkeypatch, study)
    assert (trained.run / "ap_so_far.json").stat().st_mtime_ns == before
    # As a resumed training leaves them: written again, the same bytes.
    os.utime(kept_file(trained.state_dir, 2))
    run_main(monkeypatch, study, "--run", "r50/seed0")
    # Snakemake deletes the output of a job before it runs.
    (trained.run / "ap_so_far.json").unlink()
    run_main(monkeypatch, study, "--run", "r50/seed0")
    assert trained.so_far() == record


def test_a_subset_is_spread_over_the_split_and_scored_as_if_there_were_no_other_image(trained, tmp_path, monkeypatch):
    kept_file(trained.state_dir, 2).unlink()
    run_main(monkeypatch, trained.study(score_images=2))
    ids = open_store(trained.data.val_store).image_ids[[0, 2]].tolist()
    part = scores_of_model(trained, tmp_path / "model", ids)
    (last,) = trained.so_far()["points"]
    assert (last["step"], last["images"], last["images_of_split"]) == (3, 2, 4)
    assert {kind: last[kind] for kind in ("bbox", "segm")} == {kind: part[kind] for kind in ("bbox", "segm")}
    # Of other images, or of more detections, there is no score yet.
    assert unscored(trained.state_dir, load_study(trained.study(score_images=2))) == []
    for other in ({"score_images": 3}, {"score_images": 2, "detections_per_image": 9}):
        assert unscored(trained.state_dir, load_study(trained.study(**other))) == kept_files(trained.state_dir)


@pytest.mark.parametrize(("count", "most", "chosen"), [(7, 3, [0, 2, 4]), (7, 9, [*range(7)]), (3, None, [0, 1, 2])])
def test_images_are_chosen_evenly(count, most, chosen):
    assert evenly(count, most).tolist() == chosen


def stopped_at(trained, step, **beat):
    """The run as it was while it went on: without results, its heartbeat at a step."""
    for file in [*trained.run.glob("*"), trained.state_dir / "model.pth"]:
        file.unlink()
    state_dir = trained.state_dir
    (state_dir / "train.json").unlink()
    heartbeat = state_dir / "progress.json"
    values = {**json.loads(heartbeat.read_text()), "step": step, "state": "running", "host": "elsewhere", **beat}
    heartbeat.unlink()  # a link, which other tests read
    heartbeat.write_text(json.dumps(values))
    return state_dir


def in_no_time(weights, sha256, backbone, on, device):
    """Stands for ``kept.scored_point``."""
    point = {"step": step_of(weights), "epoch": 0.5, "model_sha256": sha256, "images": 4, "images_of_split": 4}
    point |= {"settings_digest": settings_digest(on.study, "infer"), "detections_per_image": 300, "scored_at": 0.0}
    point |= {"annotations_sha256": open_store(on.store).annotations_sha256}
    return point | {"bbox": {"AP": 0.25}, "segm": {"AP": 0.5}}


def test_while_it_trains_it_is_scored_and_the_watch_ends_with_it(trained, monkeypatch):
    state_dir, seen = stopped_at(trained, 2), []
    later = kept_file(state_dir, 3)
    later.rename(trained.folder / "later.pth")

    def sleep(seconds):
        seen.append(([point["step"] for point in trained.so_far()["points"]], seconds))
        assert len(seen) < 3
        if len(seen) == 2:
            (trained.folder / "later.pth").rename(later)
            heartbeat = json.loads((state_dir / "progress.json").read_text())
            (state_dir / "progress.json").write_text(json.dumps({**heartbeat, "state": "done"}))
            (state_dir / "train.json").write_text("{}")

    monkeypatch.setattr(kept, "scored_point", in_no_time)
    monkeypatch.setattr(track.time, "sleep", sleep)
    run_main(monkeypatch, trained.study(), "--watch", "7")
    assert seen == [([2], 7), ([2], 7)]
    assert [point["step"] for point in trained.so_far()["points"]] == [2, 3]


@pytest.mark.parametrize("state", ["stopped", "failed", "running"])
def test_the_watch_ends_when_no_training_has_been_alive_for_long(trained, monkeypatch, state):
    state_dir = stopped_at(trained, 2, state=state)
    for file in kept_files(state_dir):
        file.unlink()
    os.utime(state_dir / "progress.json", (1e9, 1e9))  # running, and long silent: stalled
    slept, lines = [], []
    now = track.time.monotonic()
    monkeypatch.setattr(track.time, "monotonic", lambda: now + sum(slept))
    monkeypatch.setattr(track.time, "sleep", slept.append)
    monkeypatch.setattr(log, "info", lambda text, *values: lines.append(text % values))
    run_main(monkeypatch, trained.study(), "--watch", "700")
    assert slept == [700] * 6  # not a divisor of the hour, at which rounding would decide
    assert lines[-1] == "no training has been alive for 60 minutes; the next start goes on"
    assert not (trained.run / "ap_so_far.json").exists()


def test_what_a_trained_run_scored_appears_whole(trained, monkeypatch):
    """It is the output of a rule then, which would not run again for what is missing."""

    def killed(weights, *given):
        if weights.name == "step00000003.pth":
            raise KeyboardInterrupt
        return in_no_time(weights, *given)

    monkeypatch.setattr(kept, "scored_point", killed)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, trained.study())
    assert not (trained.run / "ap_so_far.json").exists()
    monkeypatch.setattr(kept, "scored_point", in_no_time)
    run_main(monkeypatch, trained.study())
    assert [point["step"] for point in trained.so_far()["points"]] == [2, 3]


def test_a_training_that_passed_its_points_before_they_were_named_has_none(trained, monkeypatch, capsys):
    for file in kept_files(trained.state_dir):
        file.unlink()
    run_main(monkeypatch, trained.study())
    assert trained.so_far()["points"] == []
    assert "warning: the training of r50 seed 0 kept no weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluation", "words", "message"),
    [
        ({"score_at_steps": []}, [], "tiny.yaml: evaluation: names no points of a training to be scored; fix: add"),
        ({}, ["--run", "r101/seed0"], "--run r101/seed0: is none of the study's; allowed: r50/seed0"),
    ],
)
def test_what_cannot_be_tracked_is_one_line(trained, monkeypatch, capsys, evaluation, words, message):
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, trained.study(**evaluation), *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_weights_of_another_step_or_run_are_not_scored(trained, monkeypatch, capsys):
    kept_file(trained.state_dir, 2).unlink()
    shutil.copy(kept_file(trained.state_dir, 3), kept_file(trained.state_dir, 2))
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, trained.study())
    assert "step00000002.pth: holds weights of step 3 of run " in capsys.readouterr().err


def test_annotations_that_are_not_those_of_the_store_are_refused(trained, monkeypatch, capsys):
    store = trained.folder / "results" / "tiny" / "data" / "val.store" / "store.json"
    record = json.loads(store.read_text())
    store.unlink()
    store.write_text(json.dumps({**record, "annotations_sha256": "0" * 64}))
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, trained.study())
    assert "val.store: is of other annotations than " in capsys.readouterr().err
