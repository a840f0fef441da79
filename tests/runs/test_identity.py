"""What makes two runs the same: following our own advice never restarts one, and earlier versions' states are found."""

import json

import pytest

from lvis_rcnn.config.study import ON_A_GPU, Study, check_study, settings_of_step
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.runs.identity import ORDERS, TRAINER_REVISION, identities, own_identity
from lvis_rcnn.system.files import sha256_of_json
from tests.conftest import REPOSITORY

SAMPLING = read_yaml(REPOSITORY / "configs" / "mini_sampling.yaml")
# The state folders that runs of the studies of configs/ have had since before what has no effect was left out.
FOLDERS = {("mini_sampling", 0): "2b3c22f02e86", ("mini_sampling", 1): "7136412835bb", ("smoke", 0): "08639bf7ba21"}


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Checked annotations make a thousand identities slow."""
    monkeypatch.setitem(ON_A_GPU, ("compute", "threads"), (8, 1, 3, 4, 16))


def study_of(**changes) -> Study:
    values = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in SAMPLING.items()
    }
    return check_study(values, where="f")


def known(study, seed=0):
    return list(identities(study, "r50", seed, "a" * 64, {}))


def as_earlier_versions_named_it(study, seed=0):
    parts = {
        "revision": TRAINER_REVISION,
        "settings": sha256_of_json(settings_of_step(study, "train")),
        "backbone": "r50",
        "seed": seed,
        "annotations": "a" * 64,
        "initial_weights": None,
    }
    return sha256_of_json(parts)[:12]


SAME = [
    ({}, {"augmentation": {"skip_broken_images": True}}),
    ({"compute": {"device": "cuda"}}, {"compute": {"device": "cuda", "threads": 4}}),
    ({"compute": {"device": "cuda"}}, {"compute": {"device": "cuda", "channels_last": True}}),
    (
        {"compute": {"device": "cuda", "threads": 3, "channels_last": True}},
        {"compute": {"device": "cuda", "threads": 16}, "augmentation": {"skip_broken_images": True}},
    ),
]


@pytest.mark.parametrize(("before", "after"), SAME)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_cannot_change_the_result_does_not_change_a_run(before, after, seed):
    assert known(study_of(**before), seed)[0] == known(study_of(**after), seed)[0]


@pytest.mark.parametrize("changes", [{"compute": {"threads": 2}}, {"compute": {"channels_last": True}}])
def test_on_a_cpu_what_decides_about_the_last_bit_is_another_run(changes):
    digests = [{one.digest for one in known(study_of(**one))} for one in ({}, changes)]
    assert not digests[0] & digests[1]


@pytest.mark.parametrize(("before", "after"), SAME)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_of_an_earlier_version_goes_on_whatever_was_changed_since(tmp_path, before, after, seed):
    folder = as_earlier_versions_named_it(study_of(**before), seed)
    (tmp_path / folder).mkdir()
    (tmp_path / "0123456789ab").mkdir()  # of other settings
    own = own_identity(tmp_path, iter(known(study_of(**after), seed)))
    assert own.folder_name == folder
    if seed:
        assert own.order == "mmengine"


@pytest.mark.parametrize(("name", "seed"), FOLDERS)
def test_states_of_the_studies_of_the_repository_are_found(tmp_path, name, seed):
    study = check_study(read_yaml(REPOSITORY / "configs" / f"{name}.yaml"), where="f")
    (tmp_path / FOLDERS[name, seed]).mkdir()
    assert own_identity(tmp_path, iter(known(study, seed))).folder_name == FOLDERS[name, seed]
    if seed == 0:
        assert known(study)[0].folder_name == FOLDERS[name, seed]


def test_the_order_of_images_is_part_of_the_identity_of_seeds_above_0_alone():
    assert [one.order for one in known(study_of(), seed=0)] == ["independent"] * 2
    orders = [one.order for one in known(study_of(), seed=3)]
    assert sorted(set(orders), key=orders.index) == list(ORDERS)
    assert len({one.digest for one in known(study_of(), seed=3)}) == len(orders)


def test_of_several_states_the_one_that_came_furthest_goes_on(tmp_path):
    """As where a user followed the advice to skip broken images, and an earlier version began at step 0."""
    newest, earlier, *_ = known(study_of())
    for one, step in ((newest, 7), (earlier, 50_000)):
        (tmp_path / one.folder_name).mkdir()
        (tmp_path / one.folder_name / "progress.json").write_text(json.dumps({"step": step}))
    assert own_identity(tmp_path, iter(known(study_of()))) == earlier
    (tmp_path / earlier.folder_name / "progress.json").write_text("{")
    assert own_identity(tmp_path, iter(known(study_of()))) == newest
    assert own_identity(tmp_path / "none", iter(known(study_of()))) == newest
