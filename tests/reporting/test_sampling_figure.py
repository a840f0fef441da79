"""The picture of the sampler says what the tables say."""

import numpy as np
from PIL import Image

from lvis_rcnn.reporting.score_plots import CategoryFigures, write_sampling_figure

FIGURES = CategoryFigures(
    frequencies=np.array(["r", "c", "f", "r"]),
    image_counts=np.array([3, 40, 400, 0]),
    factors=np.array([4.5, 1.2, 1.0, 1.0]),
    instances_once=np.array([10, 100, 1000, 0]),
    instances_oversampled=np.array([45.0, 130.0, 1100.0, 0.0]),
)


def test_the_picture_says_the_gains_and_is_the_same_every_time(tmp_path):
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
        write_sampling_figure(FIGURES, "train.json: threshold 0.001", tmp_path / folder)
    for name in ("repeat_factors.png", "repeat_factors.svg"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    text = (tmp_path / "once" / "repeat_factors.svg").read_text()
    for words in ("train.json: threshold 0.001", "x 4.50", "x 1.30", "x 1.10", "rare", "common", "frequent"):
        assert f"<!-- {words} -->" in text
    with Image.open(tmp_path / "once" / "repeat_factors.png") as picture:
        assert picture.size == (1152, 512)
