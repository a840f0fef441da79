"""Training: stopped anywhere, it goes on to the same weights and the same log; whatever is wrong is one line.

How the loop resumes is shown with a network of a few numbers that has all that matters: batch statistics, dropout, and
losses that depend on pixels and labels. Two tests train the real one.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lvis_rcnn import train
from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.dataloader.batches import Batch, TrainingSteps
from lvis_rcnn.model.mask_rcnn import LOSS_NAMES
from lvis_rcnn.model.weights import load_model
from lvis_rcnn.runs.attempts import read_attempts
from lvis_rcnn.runs.identity import ORDERS, identities
from lvis_rcnn.runs.lease import Lease
from lvis_rcnn.runs.points import kept_file, kept_files, step_of
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.training import checkpoint, recorder, setup, solver
from lvis_rcnn.training import run as run_module
from lvis_rcnn.training import step as step_module
from lvis_rcnn.training.checkpoint import FolderLost
from lvis_rcnn.training.distributed import Ranks
from lvis_rcnn.training.log import Progress
from lvis_rcnn.training.run import Run
from tests.conftest import HANGS_S, REPOSITORY
from tests.helpers.few_numbers import FewNumbers, few_losses
from tests.helpers.tiny_run import MEASURED_KEYS, SMALLEST, TinyData, make_data, tiny_study, write_tiny_study

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def own_signal_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def few_numbers(monkeypatch):
    monkeypatch.setattr(setup, "MaskRcnn", FewNumbers)
    monkeypatch.setattr(step_module, "losses", few_losses)


def make_run(drawn, folder, **changes):
    folder.mkdir(exist_ok=True)
    study = tiny_study(folder, **changes)
    return Run(study, "r50", 0, drawn.train_store, drawn.images, drawn.repeat_factors, folder / "state", zoo={})


def outcome(run, folder):
    """Weights and log of a run, without what differs from one start to the next."""
    train.train(run, folder / "out", ALONE)
    weights, _ = load_model(folder / "out" / "model.pth")
    lines = [json.loads(line) for line in (folder / "out" / "log.json").read_text().splitlines()]
    return weights, [{key: value for key, value in line.items() if key not in MEASURED_KEYS} for line in lines]


def assert_same(ours, theirs):
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    assert ours[1] == theirs[1]


def times(values):
    """Losses of these values that have a gradient."""
    return lambda model, *others: {
        name: value * (1 + 0 * sum(weight.sum() for weight in model.parameters())) for name, value in values.items()
    }


class Killed(BaseException):
    """Stands for SIGKILL."""


def interrupt(monkeypatch, run, folder, step, how):
    """Start a run that ends during ``step``, and check that it left no output."""
    take_step = train.take_step

    def interrupted(training, groups, position, **options):
        if position == step:
            if how is Killed:
                raise Killed
            os.kill(os.getpid(), how)
        return take_step(training, groups, position, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "take_step", interrupted)
        with pytest.raises((SystemExit, Killed)) as ended:
            train.train(run, folder / "out", ALONE)
    assert not (folder / "out").exists()
    state = json.loads((run.state_dir / "progress.json").read_text())["state"]
    assert state == ("failed" if how is Killed else "stopped")
    return ended.value


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("log_every_steps", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_anywhere_it_ends_in_the_same_weights_and_log(drawn, tmp_path, monkeypatch, number, log_every_steps):
    resources = {"log_every_steps": log_every_steps}
    whole = outcome(make_run(drawn, tmp_path / "whole", resources=resources), tmp_path / "whole")
    assert [line["step"] for line in whole[1]] == ([1, 2, 3, 4, 5, 6] if log_every_steps == 1 else [4, 6])
    for step in (0, 2, 5):
        folder = tmp_path / f"stopped{step}"
        run = make_run(drawn, folder, resources=resources)
        assert interrupt(monkeypatch, run, folder, step, number).code == 75
        assert json.loads((run.state_dir / "progress.json").read_text())["step"] == step + 1
        assert_same(outcome(run, folder), whole)
        assert json.loads((folder / "out" / "train.json").read_text())["attempts"] == 2


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("saved_each_step", [True, False])
def test_killed_again_and_again_it_ends_in_the_same_weights_and_log(drawn, tmp_path, monkeypatch, saved_each_step):
    whole = outcome(make_run(drawn, tmp_path / "whole"), tmp_path / "whole")
    resources = {"checkpoint_seconds": 1e-9 if saved_each_step else 1e9}
    run = make_run(drawn, tmp_path / "killed", resources=resources)
    for step in (2, 3, 5):
        interrupt(monkeypatch, run, tmp_path / "killed", step, Killed)
    assert_same(outcome(run, tmp_path / "killed"), whole)
    attempts = json.loads((tmp_path / "killed" / "out" / "train.json").read_text())["attempts"]
    assert attempts == 4


@pytest.mark.usefixtures("few_numbers")
def test_a_kill_while_finishing_loses_nothing(drawn, tmp_path, monkeypatch):
    whole = outcome(make_run(drawn, tmp_path / "whole"), tmp_path / "whole")
    run = make_run(drawn, tmp_path / "killed")
    interrupt(monkeypatch, run, tmp_path / "killed", 5, signal.SIGTERM)  # all steps are done, and saved
    monkeypatch.setattr(train, "take_step", None)
    assert_same(outcome(run, tmp_path / "killed"), whole)


@pytest.mark.usefixtures("few_numbers")
def test_a_finished_run_is_exported_again_and_not_trained(drawn, tmp_path, monkeypatch):
    run = make_run(drawn, tmp_path / "run")
    first = outcome(run, tmp_path / "run")
    record = (tmp_path / "run" / "out" / "train.json").read_bytes()
    shutil.rmtree(tmp_path / "run" / "out")
    monkeypatch.setattr(setup, "MaskRcnn", None)
    assert_same(outcome(run, tmp_path / "run"), first)
    assert (tmp_path / "run" / "out" / "train.json").read_bytes() == record


@pytest.mark.usefixtures("few_numbers")
def test_a_finished_run_that_was_damaged_since_is_not_exported(drawn, tmp_path):
    run = make_run(drawn, tmp_path / "run")
    outcome(run, tmp_path / "run")
    (run.state_dir / "model.pth").unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        train.train(run, tmp_path / "run" / "out", ALONE)
    for name, message in (("model.pth", "not the file that train.json"), ("train.json", "damaged record")):
        (run.state_dir / name).unlink(missing_ok=True)
        (run.state_dir / name).write_bytes(b'{"cut')
        with pytest.raises(InputError, match=message):
            train.train(run, tmp_path / "run" / "out", ALONE)


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("changes", [{"model": {}}, {"progress": {"steps_of_later": 1}}, {"optimizer": {}}])
def test_a_checkpoint_that_does_not_fit_and_a_heartbeat_of_other_types_are_no_traceback(
    drawn, tmp_path, monkeypatch, changes
):
    run = make_run(drawn, tmp_path / "run")
    interrupt(monkeypatch, run, tmp_path / "run", 2, signal.SIGTERM)
    beat = json.loads((run.state_dir / "progress.json").read_text())
    (run.state_dir / "progress.json").write_text(json.dumps({**beat, "peak_memory_bytes": "many"}))
    state = checkpoint.load_checkpoint(run.state_dir, run.digest)
    assert state["run"] == run.digest
    checkpoint.write_checkpoint(run.state_dir, 4, {**state, **changes}, str)
    with pytest.raises(InputError, match="of another network or a later version"):
        train.train(run, tmp_path / "run" / "out", ALONE)
    checkpoint.remove(run.state_dir, lambda path: checkpoint.is_checkpoint(path) and checkpoint.step_of(path) == 4)
    train.train(run, tmp_path / "run" / "out", ALONE)


@pytest.mark.usefixtures("few_numbers")
def test_weights_at_the_points_of_a_study_outlive_checkpoints_and_kills(drawn, tmp_path, monkeypatch):
    points = {"score_at_steps": [2, 4, 6]}
    plain = outcome(make_run(drawn, tmp_path / "plain"), tmp_path / "plain")
    whole = make_run(drawn, tmp_path / "whole", evaluation=points)
    assert_same(outcome(whole, tmp_path / "whole"), plain)
    for every_s in (1e-9, 1e9):
        folder = tmp_path / str(every_s)
        run = make_run(drawn, folder, evaluation=points, resources={"checkpoint_seconds": every_s})
        assert run.digest == make_run(drawn, tmp_path / "plain").digest
        for step, kept in ((3, [2]), (5, [2, 4])):
            interrupt(monkeypatch, run, folder, step, Killed)
            assert [step_of(file) for file in kept_files(run.state_dir)] == kept
        # What a resumed training passes again it writes again; where its checkpoint is later, nothing is missing.
        kept_file(run.state_dir, 4).unlink()
        outcome(run, folder)
        assert [step_of(file) for file in kept_files(run.state_dir)] == ([2, 6] if every_s < 1 else [2, 4, 6])
        for file in kept_files(run.state_dir):
            assert file.read_bytes() == kept_file(whole.state_dir, step_of(file)).read_bytes()
    weights, meta = load_model(kept_file(whole.state_dir, 6))
    assert all(torch.equal(value, plain[0][name]) for name, value in weights.items())
    assert (meta["steps"], meta["backbone"], meta["run_digest"]) == (6, "r50", run.digest)
    assert not torch.equal(load_model(kept_file(whole.state_dir, 4))[0]["body.0.weight"], weights["body.0.weight"])


@pytest.mark.usefixtures("few_numbers")
def test_weights_that_cannot_be_kept_are_a_warning(drawn, tmp_path, caplog):
    run = make_run(drawn, tmp_path / "run", evaluation={"score_at_steps": [2]})
    run.state_dir.mkdir(parents=True)
    (run.state_dir / "points").write_text("no folder")
    outcome(run, tmp_path / "run")
    (line,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert line.endswith(
        "step00000002.pth cannot be written (File exists): these weights will not be scored; training goes on"
    )


def test_points_in_epochs_are_steps_of_the_oversampled_list(drawn, tmp_path):
    budget = {"epochs": 3, "steps": None}
    run = make_run(drawn, tmp_path, schedule=budget, evaluation={"score_at_epochs": [1, 3], "score_at_steps": [1]})
    in_epoch = run.recipe.steps_in_epoch
    assert run.kept_steps == {1, in_epoch, 3 * in_epoch}
    late = make_run(drawn, tmp_path, schedule=budget, evaluation={"score_at_steps": [3 * in_epoch + 1]})
    with pytest.raises(InputError, match=f"score_at_steps: names step .*, where .*; allowed: up to {3 * in_epoch}, "):
        train.train(late, tmp_path / "out", ALONE)


@pytest.mark.usefixtures("few_numbers")
def test_other_settings_do_not_meet_these_checkpoints(drawn, tmp_path, monkeypatch):
    run = make_run(drawn, tmp_path / "run")
    interrupt(monkeypatch, run, tmp_path / "run", 2, signal.SIGTERM)
    changed = make_run(drawn, tmp_path / "run", schedule={"learning_rate": 0.002})
    outcome(changed, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "out" / "train.json").read_text())["attempts"] == 1
    training = training_of(run)
    setup.restore(training)
    assert training.progress.step == 3


@pytest.mark.usefixtures("few_numbers")
def test_the_peak_memory_of_a_killed_start_counts(drawn, tmp_path, monkeypatch):
    run = make_run(drawn, tmp_path / "run")
    interrupt(monkeypatch, run, tmp_path / "run", 2, signal.SIGTERM)
    heartbeat = run.state_dir / "progress.json"
    beat = json.loads(heartbeat.read_text())
    assert beat["peak_memory_bytes"] > 2**20
    # After its last checkpoint, which knows nothing of it.
    heartbeat.write_text(json.dumps({**beat, "peak_memory_bytes": 2**40}))
    outcome(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "out" / "train.json").read_text())
    assert record["memory_gb"] == record["cost"]["peak_memory_gb"] == 1024


def training_of(run):
    return setup.new_training(run, ALONE, FewNumbers(None, run.store.num_labels, None))


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside threads, from Python 3.12 on
def test_reading_processes_change_nothing(drawn, tmp_path):
    alone, helped = (
        outcome(
            make_run(drawn, tmp_path / str(workers), resources={"loader_workers": workers}), tmp_path / str(workers)
        )
        for workers in (0, 2)
    )
    assert_same(alone, helped)


@pytest.mark.usefixtures("few_numbers")
def test_following_our_own_advice_never_restarts_a_run(drawn, tmp_path, monkeypatch):
    whole = outcome(make_run(drawn, tmp_path / "whole"), tmp_path / "whole")
    run = make_run(drawn, tmp_path / "run")
    interrupt(monkeypatch, run, tmp_path / "run", 3, signal.SIGTERM)
    skips = make_run(drawn, tmp_path / "run", augmentation={"skip_broken_images": True})
    assert_same(outcome(skips, tmp_path / "run"), whole)
    record = json.loads((tmp_path / "run" / "out" / "train.json").read_text())
    assert (record["attempts"], record["settings"]["augmentation"]["skip_broken_images"]) == (2, True)


@pytest.mark.usefixtures("few_numbers")
def test_a_run_that_was_begun_in_the_old_order_of_images_ends_in_it(drawn, tmp_path, monkeypatch):
    def begun(name, order):
        run = make_run(drawn, tmp_path / name)
        run = Run(**{**vars(run), "seed": 1})
        known = identities(run.study, "r50", 1, run.store.annotations_sha256, {})
        vars(run)["identity"] = next(one for one in known if one.order == order)
        return run

    old, new = (outcome(begun(order, order), tmp_path / order) for order in ORDERS[::-1])
    assert old[1] != new[1]
    run = begun("stopped", "mmengine")
    interrupt(monkeypatch, run, tmp_path / "stopped", 2, signal.SIGTERM)
    again = Run(**{**vars(make_run(drawn, tmp_path / "stopped")), "seed": 1})
    assert_same(outcome(again, tmp_path / "stopped"), old)
    assert json.loads((again.state_dir / "train.json").read_text())["image_order"] == "mmengine"


@pytest.mark.usefixtures("few_numbers")
def test_seeds_differ(drawn, tmp_path):
    runs = [make_run(drawn, tmp_path / "0"), make_run(drawn, tmp_path / "1")]
    other = Run(**{**vars(runs[1]), "seed": 1})
    assert outcome(runs[0], tmp_path / "0")[1] != outcome(other, tmp_path / "1")[1]


def test_a_loss_that_is_not_finite_is_named_and_touches_no_weight(drawn, tmp_path, monkeypatch, few_numbers):
    run = make_run(drawn, tmp_path / "run")
    training = training_of(run)
    before = {name: value.clone() for name, value in training.model.named_parameters()}

    values = {**dict.fromkeys(LOSS_NAMES, 1.0), "loss_cls": torch.nan, "loss_mask": torch.inf}
    monkeypatch.setattr(step_module, "losses", times(values))
    batch = Batch(torch.rand(2, 3, 32, 32), [(32, 32)] * 2, [(32, 32)] * 2, [17, 4], [])
    expected = r"step 3, images 17, 4: .*loss_cls = nan, loss_mask = inf; fix: lower schedule"
    queued = train.take_step(training, [batch], 3)
    with pytest.raises(InputError, match=expected):
        queued.values()
    assert all(torch.equal(value, before[name]) for name, value in training.model.named_parameters())


def test_labels_are_counted_once_and_not_where_a_loss_is_not_finite(drawn, tmp_path, monkeypatch, few_numbers):
    run = make_run(drawn, tmp_path / "run")
    training = training_of(run)
    items = TrainingSteps(drawn.train_store, drawn.images, run.recipe.stream, run.study.augmentation)
    steps = [[group.to(ALONE.device) for group in items[step]] for step in range(3)]
    of_steps = [
        torch.bincount(
            torch.cat([target.labels for batch in groups for target in batch.targets]),
            minlength=run.store.num_labels,
        )
        for groups in steps
    ]
    for step in range(2):
        train.take_step(training, steps[step], step).values()
    counts = of_steps[0] + of_steps[1]
    assert training.model.counters.cum_samples.tolist() == [counts.tolist()]

    def infinite(*given):
        return {name: value * torch.inf for name, value in few_losses(*given).items()}

    monkeypatch.setattr(step_module, "losses", infinite)
    with pytest.raises(InputError, match="is not finite"):
        train.take_step(training, steps[2], 2).values()
    monkeypatch.setattr(step_module, "losses", few_losses)
    assert training.model.counters.cum_samples.tolist() == [counts.tolist()]
    train.take_step(training, steps[2], 2).values()
    assert training.model.counters.cum_samples.tolist() == [sum(of_steps).tolist()]


@pytest.mark.usefixtures("few_numbers")
def test_after_an_error_the_heartbeat_says_why(drawn, tmp_path, monkeypatch):
    run = make_run(drawn, tmp_path / "run")
    monkeypatch.setattr(step_module, "losses", times({**dict.fromkeys(LOSS_NAMES, 1.0), "loss_cls": torch.nan}))
    with pytest.raises(InputError, match="step 0, images "):
        train.train(run, tmp_path / "run" / "out", ALONE)
    heartbeat = json.loads((run.state_dir / "progress.json").read_text())
    assert heartbeat["state"] == "failed"
    assert "loss is not finite: loss_cls = nan" in heartbeat["error"]
    assert [one.ended for one in read_attempts(run.state_dir)] == ["error"]


@pytest.mark.usefixtures("few_numbers")
def test_rates_and_random_numbers_depend_on_the_step_alone(drawn, tmp_path):
    run = make_run(drawn, tmp_path / "run")
    items = TrainingSteps(drawn.train_store, drawn.images, run.recipe.stream, run.study.augmentation)
    groups, results = [group.to(ALONE.device) for group in items[4]], []
    for noise in (0, 1):
        torch.manual_seed(7)
        training = training_of(run)
        torch.manual_seed(noise)
        queued = train.take_step(training, groups, 4)
        results.append((queued.values(), training.model.state_dict()))
        assert training.optimizer.param_groups[0]["lr"] == run.recipe.learning_rate(4)
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def test_gradients_are_clipped_where_the_study_says_so(drawn, tmp_path, monkeypatch, few_numbers):
    asked = []
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda parameters, limit, norm: asked.append(limit))
    outcome(make_run(drawn, tmp_path / "run", schedule={"gradient_clip_norm": 35.0}), tmp_path / "run")
    assert asked == [35.0] * 6


def test_the_published_optimizer_has_one_group(tmp_path):
    schedule = tiny_study(tmp_path, schedule={"optimizer": "sgd", "learning_rate": 0.02, "weight_decay": 1e-4}).schedule
    (group,) = solver.sgd(list(nn.Linear(2, 2).parameters()), schedule).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], len(group["params"])) == (0.02, 0.9, 1e-4, 2)


@pytest.mark.usefixtures("few_numbers")
def test_a_broken_image_is_named_once_and_counted_over_all_starts(drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn.folder, tmp_path / "data")
    copy = TinyData(tmp_path / "data")
    broken = sorted(copy.images.rglob("train/*.png"))[:3]
    for path in broken:
        path.write_bytes(b"")
    runs = [
        make_run(copy, tmp_path / name, augmentation={"skip_broken_images": True}, schedule={"steps": 20})
        for name in ("whole", "stopped")
    ]
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(train.log, "warning", lambda text, *words: lines.append(text % words))
        whole = outcome(runs[0], tmp_path / "whole")
    named = [line for line in lines if "an image is skipped, another takes its place: " in line]
    record = json.loads((tmp_path / "whole" / "out" / "train.json").read_text())
    assert len(named) == record["broken_images"] > 0
    assert record["skipped_images"] == whole[1][-1]["skipped_images"] > record["broken_images"]
    assert interrupt(monkeypatch, runs[1], tmp_path / "stopped", 9, signal.SIGTERM).code == 75
    assert_same(outcome(runs[1], tmp_path / "stopped"), whole)


# The command


def arguments(drawn, study, folder, **changes):
    options = {
        "--study": study,
        "--row": "r50",
        "--seed": 0,
        "--store": drawn.train_store,
        "--images": drawn.images,
        "--repeat-factors": drawn.repeat_factors,
        "--state": folder / "state",
        "--out": folder / "out",
        **changes,
    }
    return [str(part) for pair in options.items() for part in pair]


def error_of(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_processes_that_restored_different_steps_are_refused():
    class Behind(Ranks):
        def largest(self, value, step):
            return value + 40

    setup.require_same_step(ALONE, 5)
    with pytest.raises(InputError, match=r"rank 1 of 2: goes on from step 5, another from step 45; allowed: the same"):
        setup.require_same_step(Behind(1, 2, torch.device("cpu")), 5)


@pytest.mark.parametrize("change", [{"--row": "r101"}, {"--seed": 9}])
def test_a_run_that_is_not_of_the_study_is_refused(drawn, tmp_path, monkeypatch, capsys, change):
    line = error_of(monkeypatch, capsys, arguments(drawn, write_tiny_study(tmp_path), tmp_path, **change))
    assert "is not one of the study; allowed: r50/seed0; fix: name another one, or add" in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("cuda", "built"), [(None, "was built without CUDA"), ("13.0", "(CUDA 13.0) sees no GPU")])
def test_a_gpu_that_is_not_there_is_said(drawn, tmp_path, monkeypatch, capsys, cuda, built):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    study = write_tiny_study(tmp_path, compute={"device": "cuda"})
    line = error_of(monkeypatch, capsys, arguments(drawn, study, tmp_path))
    assert f"{study}: compute.device: is cuda, but torch {torch.__version__} {built}; allowed: cpu, or" in line


def test_a_study_that_changed_after_planning_is_refused(drawn, tmp_path, monkeypatch, capsys):
    words = arguments(drawn, write_tiny_study(tmp_path), tmp_path, **{"--settings-digest": "0" * 64})
    assert "the settings of step 'train' changed after this run was planned" in error_of(monkeypatch, capsys, words)


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        (["1"] * 3, "has factors of 3 images; allowed: those of the 8 images of "),
        (["0"] * 8, "no readable tables of repeat factors: no image is drawn"),
    ],
    ids=["another store", "nothing to train on"],
)
def test_unfit_repeat_factors_are_refused(drawn, tmp_path, monkeypatch, capsys, copies, expected):
    rows = [f"1,{copy}.0,{copy}" for copy in copies]
    (tmp_path / "images.csv").write_text("\n".join(["image_id,factor,copies", *rows]))
    (tmp_path / "summary.json").write_text('{"rounding": "ceil"}')
    words = arguments(drawn, write_tiny_study(tmp_path), tmp_path, **{"--repeat-factors": tmp_path})
    assert expected in error_of(monkeypatch, capsys, words)


def test_a_damaged_image_is_one_line(drawn, tmp_path, monkeypatch, capsys, few_numbers):
    shutil.copytree(drawn.images, tmp_path / "images")
    for file in (tmp_path / "images").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:200])
    words = arguments(drawn, write_tiny_study(tmp_path), tmp_path, **{"--images": tmp_path / "images"})
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    # What the run is comes first, then one line that says why it ends.
    *_, budget, line = capsys.readouterr().err.splitlines()
    assert budget.startswith("6 steps of 2 images")
    assert line.endswith("is no complete image; fix: copy the file again")


# The real network


@pytest.mark.parametrize(
    ("compute", "images_per_step"),
    [
        ({}, 2),
        pytest.param({"precision": "bf16"}, 2, marks=pytest.mark.slow),
        pytest.param({"groups_at_once": 2, "common_canvas": True}, 4, marks=pytest.mark.slow),
    ],
)
def test_the_real_network_learns_and_resumes(drawn, tmp_path, monkeypatch, compute, images_per_step):
    monkeypatch.setitem(BACKBONES, "r50", SMALLEST)
    changes = {"schedule": {"steps": 3, "images_per_step": images_per_step}, "compute": compute}
    whole = outcome(make_run(drawn, tmp_path / "whole", **changes), tmp_path / "whole")
    assert torch.bfloat16 not in {value.dtype for value in whole[0].values()}
    run = make_run(drawn, tmp_path / "stopped", **changes)
    interrupt(monkeypatch, run, tmp_path / "stopped", 1, signal.SIGTERM)
    assert_same(outcome(run, tmp_path / "stopped"), whole)
    assert set(LOSS_NAMES) < set(whole[1][0])
    for name in ("stopped", "whole"):
        shutil.rmtree(tmp_path / name)  # 100 MB of weights


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("module", "name", "starts"),
    [(train, "held_lease", 0), (setup, "load_checkpoint", 0), (recorder, "TrainingLog", 1)],
    ids=["waiting for the lease", "loading", "begun"],
)
def test_a_signal_before_the_first_step_ends_the_process_at_once(
    drawn, tmp_path, monkeypatch, module, name, starts, number
):
    run, usual = make_run(drawn, tmp_path / "run"), getattr(module, name)

    def signalled(*arguments, **options):
        os.kill(os.getpid(), number)
        pytest.fail("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, signalled)
        with pytest.raises(SystemExit, match="75"):
            train.train(run, tmp_path / "run" / "out", ALONE)
    assert [one.ended for one in read_attempts(run.state_dir)] == ["stopped"] * starts
    assert usual is getattr(module, name)
    outcome(run, tmp_path / "run")  # nothing holds the folder
    assert [one.ended for one in read_attempts(run.state_dir)] == ["stopped"] * starts + ["done"]


@pytest.mark.usefixtures("few_numbers")
def test_what_ends_a_run_is_recorded_where_another_trainer_has_taken_over(drawn, tmp_path, monkeypatch):
    run, lease = make_run(drawn, tmp_path / "run"), object.__new__(Lease)  # of nobody: no folder, no thread
    lease.why_lost, lease.asked = "", False
    monkeypatch.setattr(Lease, "why_not_held", lambda self: "another trainer has taken over")
    run.state_dir.mkdir(parents=True)
    training = training_of(run)

    def attempt(step, error):
        with recorder.recorded(training, lease) as of_run:
            of_run.saver.background = True
            training.progress.step = step
            of_run.save()
            lease.why_lost = lease.why_not_held()
            files = [run.state_dir / name for name in ("progress.json", "log.json")]
            before, of_run.heartbeat.written_s = [file.read_text() for file in files], -math.inf
            of_run.beat()
            of_run.write_line(None)
            assert [file.read_text() for file in files] == before
            if error:
                raise error

    with pytest.raises(ZeroDivisionError):
        attempt(3, ZeroDivisionError("what happened"))
    with pytest.raises(FolderLost, match="another trainer has taken over before step 4"):
        attempt(4, None)
    ends = [one.end for one in read_attempts(run.state_dir)]
    assert [(end.kind, end.step) for end in ends] == [("error", 3), ("error", 4)]
    assert ends[0].error == "ZeroDivisionError: what happened"
    # The heartbeat is the other trainer's by now.
    assert json.loads((run.state_dir / "progress.json").read_text())["state"] == "running"


@pytest.mark.usefixtures("few_numbers")
def test_a_slow_save_never_stalls_the_loop_and_is_waited_for_at_the_end(drawn, tmp_path, monkeypatch):
    run = make_run(drawn, tmp_path / "run", resources={"checkpoint_seconds": 1e-9})
    stands, written, taken = threading.Event(), [], []
    write_state = checkpoint.write_state

    def slow(handle, state):
        written.append(state["progress"]["step"])
        stands.wait(30)
        return write_state(handle, state)

    def take_step(training, groups, step, **options):
        taken.append(step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # with the first save still being written
            stands.set()
        return step_module.take_step(training, groups, step, **options)

    monkeypatch.setattr(checkpoint, "write_state", slow)
    monkeypatch.setattr(train, "take_step", take_step)
    monkeypatch.setattr(recorder.Recorder, "open", in_the_background(recorder.Recorder.open))
    with pytest.raises(SystemExit, match="75"):
        train.train(run, tmp_path / "run" / "out", ALONE)
    assert taken == [0, 1, 2, 3, 4, 5]
    assert written == [1, 6]
    assert checkpoint.load_checkpoint(run.state_dir)["progress"]["step"] == 6


def in_the_background(usual):
    """Opens a recorder whose saver works as on a GPU."""

    def opened(self):
        usual(self)
        self.saver.background = True

    return opened


@pytest.mark.usefixtures("few_numbers")
def test_the_model_lies_on_the_cpu_whatever_it_was_trained_on(drawn, tmp_path, monkeypatch):
    run, devices = make_run(drawn, tmp_path / "run"), []
    monkeypatch.setattr(run_module, "save_model", lambda path, weights, meta: devices.extend(weights.items()))
    monkeypatch.setattr(run_module, "run_record", lambda *arguments: {})
    run.state_dir.mkdir(parents=True)
    with FakeTensorMode():
        weights = {"weight": torch.empty(2, 3, device="cuda"), "steps": torch.empty((), device="cuda")}
        run_module.finish(run, weights, Progress())
    assert [(name, value.device.type) for name, value in devices] == [("weight", "cpu"), ("steps", "cpu")]


@pytest.mark.slow
def test_a_terminated_process_exits_with_the_code_that_says_start_me_again(drawn, tmp_path):
    study = write_tiny_study(tmp_path, schedule={"steps": 500})
    words = [*arguments(drawn, study, tmp_path), "--log", str(tmp_path / "train.log")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lvis_rcnn.train", *words], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    # It is first written before the loop, where a signal ends the process at once.
    while process.poll() is None and not any(
        json.loads(path.read_text())["step"] for path in (tmp_path / "state").rglob("progress.json")
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=HANGS_S)[1]
    assert process.returncode == 75
    assert error.splitlines()[:2] == [
        "initial weights: none, trained from scratch",
        "500 steps of 2 images, 1,000 images seen in 62.50 epochs; learning rate 0.001",
    ]
    assert re.fullmatch(r"stopped at step \d+ of 500; the next start goes on from there", error.splitlines()[-1])
    assert "stopped at step" in (tmp_path / "train.log").read_text().splitlines()[-1]
    shutil.rmtree(tmp_path / "state")
