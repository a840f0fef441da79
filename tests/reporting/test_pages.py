"""Pages say what the records say, need nothing but themselves, and say what is not there."""

import html
import json
import re
from pathlib import Path

import pytest

from lvis_rcnn.config.study import Study
from lvis_rcnn.reporting import PAGES
from lvis_rcnn.reporting.html import Column, cell, page
from lvis_rcnn.reporting.pages import in_html, job_costs, write_pages
from tests.helpers.study_records import put, put_everything, put_log, study_with


def written(results: Path, study: Study) -> dict[str, str]:
    """The text of each page by its name."""
    write_pages(study, Path("study.yaml"), results, results / "pages")
    pages = {path.stem: path.read_text() for path in (results / "pages").glob("*.html")}
    assert set(pages) == {*PAGES}
    return pages


def rows_of_table(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    tags = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    return [[html.unescape(re.sub("<[^>]*>", "", one)) for one in line] for line in tags]


def test_pages_of_a_finished_study(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    record = tmp_path / "mini" / "r50" / "seed0" / "train.json"
    put(record, json.loads(record.read_text()) | {"elapsed_s": 360.0, "ranks": 1, "attempts": 2})
    measured = "s\tmax_rss\tcpu_time\n90.0\t2048.0\t60.0\n"
    put(tmp_path / "mini" / "benchmarks" / "train_r50_seed0.tsv", measured)
    put(tmp_path / "mini" / "preflight.txt", "Preflight of study mini: ok, <no> warning\n")
    pages = written(tmp_path, study)
    steps, kept = f"{study.schedule.steps}\N{NO-BREAK SPACE}steps", study.inference.detections_per_image
    assert rows_of_table(pages["table"])[1][:5] == ["R-50-FPN", "pytorch", steps, "0.88", "12.3"]
    assert "Study mini, seed 0; code 0.1.0-aaaa1111" in pages["table"]
    assert rows_of_table(pages["per_category"]) == [
        ["category", "group", "training images", "objects", "mask AP R-50-FPN", "box AP R-50-FPN"],
        ["kite", "rare", "3", "-", "20.0", "10.0"],
        ["cup", "rare", "9", "-", "40.0", "30.0"],
        ["bear", "common", "50", "-", "-", "-"],
        ["tree", "frequent", "200", "-", "75.0", "50.0"],
    ]
    assert "1 jobs, 1m in all, 1m of CPU time." in pages["cost"]
    assert ["train_r50_seed0", "90.0", "60.0", "2.00"] in rows_of_table(pages["cost"])
    # The hours of the results table, of all starts; not only those of the steps that were kept.
    costs = dict(zip(*rows_of_table(pages["cost"])[:2], strict=True))
    assert [costs[name] for name in ("CPU-hours", "GPU-hours", "peak memory, GB")] == ["0.25", "0.00", "0.88"]
    for name in ("table", "per_category", "provenance"):
        assert f"The detector kept at most {kept} detections an image; 300 would count" in pages[name], name
    assert ["code version", "0.1.0-aaaa1111"] in rows_of_table(pages["provenance"])
    assert ["versions", "python 3.11.9; torch 2.15.0; torchvision 0.29.2"] in rows_of_table(pages["provenance"])
    assert rows_of_table(pages["provenance"])[-3][:4] == ["R-50-FPN", "cpu", "0.88", "12.35"]
    assert "ok, &lt;no&gt; warning" in pages["preflight"]


def test_pages_need_nothing_from_elsewhere_and_are_the_same_every_time(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    pages = written(tmp_path, study)
    for text in pages.values():
        assert not re.search(r"https?:|<link|src=|@import|url\(", text)
    assert written(tmp_path, study) == pages


def test_pages_of_nothing_say_so(tmp_path):
    pages = written(tmp_path, study_with())
    for name, words in (
        ("table", "not started"),
        ("per_category", "No run is scored yet."),
        ("cost", "Nothing is trained yet."),
        ("cost", "No job has been measured yet."),
        ("provenance", "No run has a record yet."),
        ("preflight", "Data and settings have not been checked, or nothing is trained."),
    ):
        assert words in pages[name], name


def test_a_failed_preflight_is_shown(tmp_path):
    put(tmp_path / "mini" / "preflight_failed.txt", "3 images are missing")
    assert "3 images are missing" in written(tmp_path, study_with())["preflight"]


@pytest.mark.parametrize(("measured", "memory"), [("NA", None), ("-", None), ("1024", 1.0)])
def test_what_snakemake_could_not_measure_is_missing(tmp_path, measured, memory):
    put(tmp_path / "plots.tsv", f"s\tmax_rss\tcpu_time\n0.5\t{measured}\t0.1\n")
    (tmp_path / "folder.tsv").mkdir()
    (tmp_path / "other.tsv").write_bytes(b"s\n\xff\n")
    assert job_costs(tmp_path) == [["other", None, None, None], ["plots", 0.5, 0.1, memory]]


def test_names_cannot_break_a_page(tmp_path):
    name = '<script>"&'
    columns, rows = [Column(name), Column("AP", 1)], [[name, 1.0]]
    text = page("table", name, columns=columns, rows=rows, methods=[], notes=[name], provenance=[])
    assert name not in text
    assert text.count("&lt;script&gt;&#34;&amp;") == 5
    study = study_with()
    put_log(tmp_path, study, "train_r50_seed0", "error: a | b <c\n")
    assert "Failed: R-50-FPN: a | b &lt;c." in written(tmp_path, study)["table"]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (
            Column("AP", 1, full=100),
            12.345,
            ({"class": "number bar", "data-by": "12.345", "style": "--part:12%"}, "12.3"),
        ),
        (Column("images", 0), 12345, ({"class": "number", "data-by": "12345"}, "12,345")),
        (Column("AP", 1, full=100), None, ({"class": "number", "data-by": ""}, "-")),
        (Column("name"), None, ({}, "")),
        (Column("name"), "50 a", ({}, "50 a")),
        (Column("group", is_group=True), "rare", ({"class": "rare"}, "rare")),
        *(
            (Column("AP", by_number=True), text, ({"data-by": by}, text))
            for text, by in {
                "23.1 [21.0, 25.2]": "23.1",
                "22.4 ± 1.0": "22.4",
                "-0.1 (-0.2 !)": "-0.1",
                "0.88†": "0.88",
                "2.40 M": "2.4e+06",
                "11.5 k": "11500",
                "running 63 %": "",
                "- (not trained here)": "",
            }.items()
        ),
    ],
)
def test_cells_carry_what_they_sort_by(column, value, expected):
    attributes, text = cell(column, value)
    assert ({name: one for name, one in attributes.items() if one is not None}, text) == expected


def test_an_interval_is_not_broken_and_the_best_stands_out():
    column, interval = Column("AP", by_number=True), "21.2 [18.2,\N{NO-BREAK SPACE}22.0]"
    assert cell(column, in_html("21.2 [18.2, 22.0]", is_best=False))[1] == interval
    attributes, text = cell(column, in_html("21.2 [18.2, 22.0]", is_best=True))
    assert (attributes["data-by"], text) == ("21.2", f"<strong>{interval}</strong>")
