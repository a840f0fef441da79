"""Pages say what the records say, need nothing but themselves, and say what is not there."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_rcnn.config.study import Study
from lvis_rcnn.reporting import PAGES
from lvis_rcnn.reporting.html import Column, cell, page, paragraph, sortable_table
from lvis_rcnn.reporting.pages import from_markdown, job_costs, write_pages
from tests.conftest import REPOSITORY
from tests.reporting.test_plots import put_everything
from tests.steps.test_report import NOW_S, put, study_with


def written(results: Path, study: Study) -> dict[str, str]:
    """The text of each page by its name."""
    write_pages(study, Path("study.yaml"), results, results / "pages", NOW_S)
    pages = {path.stem: path.read_text() for path in (results / "pages").iterdir()}
    assert set(pages) == {*PAGES}
    return pages


def rows_of_table(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    tags = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    return [[html.unescape(re.sub("<[^>]*>", "", one)) for one in line] for line in tags]


def test_pages_of_a_finished_study(tmp_path):
    study = study_with()
    put_everything(tmp_path, study)
    measured = "s\tmax_rss\tcpu_time\n90.0\t2048.0\t60.0\n"
    put(tmp_path / "mini" / "benchmarks" / "train_r50_seed0.tsv", measured)
    put(tmp_path / "mini" / "preflight.txt", "Preflight of study mini: ok, <no> warning\n")
    pages = written(tmp_path, study)
    assert rows_of_table(pages["table"])[1][:5] == ["R-50-FPN", "pytorch", "260 it", "0.88", "12.3"]
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
    assert ["code version", "0.1.0-aaaa1111"] in rows_of_table(pages["provenance"])
    assert ["versions", "python 3.11.9; torch 2.15.0; torchvision 0.29.2"] in rows_of_table(pages["provenance"])
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
    assert job_costs(tmp_path) == [["plots", 0.5, 0.1, memory]]


def test_names_cannot_break_a_page():
    name = '<script>"&'
    text = page(name, [paragraph(name), sortable_table([Column(name), Column("AP", 1)], [[name, 1.0]], "things")])
    assert name not in text
    assert text.count("&lt;script&gt;&quot;&amp;") == 5


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (Column("AP", 1, full=100), 12.345, '<td class="number bar" data-by="12.345" style="--part:12%">12.3</td>'),
        (Column("images", 0), 12345, '<td class="number" data-by="12345">12,345</td>'),
        (Column("AP", 1, full=100), None, '<td class="number" data-by="">-</td>'),
        (Column("name"), None, "<td></td>"),
        (Column("name"), "50 a", "<td>50 a</td>"),
        (Column("AP", by_number=True), "23.1 [21.0, 25.2]", '<td data-by="23.1">23.1 [21.0, 25.2]</td>'),
        (Column("AP", by_number=True), "22.4 ± 1.0", '<td data-by="22.4">22.4 ± 1.0</td>'),
        (Column("AP", by_number=True), "-0.1 (-0.2 !)", '<td data-by="-0.1">-0.1 (-0.2 !)</td>'),
        (Column("GB", by_number=True), "0.88†", '<td data-by="0.88">0.88†</td>'),
        (Column("images", by_number=True), "2.40 M", '<td data-by="2.4e+06">2.40 M</td>'),
        (Column("images", by_number=True), "11.5 k", '<td data-by="11500">11.5 k</td>'),
        (Column("AP", by_number=True), "running 63 %", '<td data-by="">running 63 %</td>'),
        (Column("AP", by_number=True), "- (not trained here)", '<td data-by="">- (not trained here)</td>'),
    ],
)
def test_cells_carry_what_they_sort_by(column, value, expected):
    assert cell(column, value) == expected


def test_cells_are_freed_of_what_makes_them_safe_in_markdown():
    assert from_markdown(r"failed: a \| b &lt;c \\") == "failed: a | b <c \\"


def test_an_interval_is_not_broken_and_the_best_stands_out():
    text = from_markdown("**21.2 [18.2, 22.0]**")
    assert cell(Column("AP"), text) == "<td><strong>21.2 [18.2,\N{NO-BREAK SPACE}22.0]</strong></td>"
    assert cell(Column("AP"), from_markdown("21.2 [18.2, 22.0]")) == "<td>21.2 [18.2,\N{NO-BREAK SPACE}22.0]</td>"


def test_the_command_writes_without_torch_and_names_a_missing_folder(tmp_path):
    (tmp_path / "results").mkdir()
    code = "import sys; from lvis_rcnn import report; report.main(); sys.exit('torch' in sys.modules)"

    def call(results: str) -> subprocess.CompletedProcess[str]:
        study = str(REPOSITORY / "configs" / "smoke.yaml")
        words = ["--study", study, "--results", str(tmp_path / results), "--out", str(tmp_path / "out")]
        command = [sys.executable, "-c", code, "pages", *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    done = call("results")
    assert (done.returncode, done.stderr.splitlines()[-1].split(": ")[0]) == (0, "wrote the pages of smoke")
    done = call("nowhere")
    assert done.returncode == 2
    assert "nowhere: no such folder; fix: name the folder the steps wrote into" in done.stderr
