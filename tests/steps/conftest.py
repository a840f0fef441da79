"""The untrained network that inference and its measurement are tested with."""

import pytest

from lvis_rcnn.config import schema
from lvis_rcnn.dataset.store import open_store
from tests.helpers.tiny_run import SMALLEST, save_untrained


@pytest.fixture
def smallest_body(monkeypatch):
    monkeypatch.setitem(schema.BACKBONES, "r50", SMALLEST)


@pytest.fixture(scope="module")
def model_path(drawn, tmp_path_factory):
    """An untrained model of the module's drawn data: it finds something everywhere."""
    return save_untrained(tmp_path_factory.mktemp("model"), open_store(drawn.val_store))
