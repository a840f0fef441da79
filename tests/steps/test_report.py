"""The commands of the report write what they name, need no torch, and fail in one line."""

import contextlib
import io
import os
import re
import subprocess
import sys

import pytest

from lvis_rcnn import report
from lvis_rcnn.reporting import PAGES, plots_of
from tests.conftest import REPOSITORY
from tests.helpers.study_records import MINI

# Every command that needs no tensor, one after the other in one process.
ALL = """
import sys
from lvis_rcnn import report
for words in {calls!r}:
    sys.argv = ["report", *words]
    report.main()
sys.exit(any(name in sys.modules for name in ("torch", "snakemake", "lvis")))
"""


def test_table_plots_and_pages_of_nothing_are_written_without_torch_or_snakemake(tmp_path):
    (tmp_path / "results").mkdir()
    study = ["--study", str(REPOSITORY / "configs" / "smoke.yaml"), "--results", str(tmp_path / "results")]
    outputs = {"table": "table.md", "plots": "plots", "pages": "pages"}
    calls = [[name, *study, "--out", str(tmp_path / out)] for name, out in outputs.items()]
    command = [sys.executable, "-c", ALL.format(calls=calls)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("wrote ") for line in done.stderr.splitlines()) == 3
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {f"{name}.html" for name in PAGES}
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {*plots_of(calibrated=False, on_the_way=False)}


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_the_command_shows_the_table_and_where_it_is(tmp_path, monkeypatch, capsys):
    out, log = tmp_path / "table.md", tmp_path / "mini" / "logs" / "table.log"
    run_main(monkeypatch, "table", "--study", MINI, "--results", tmp_path, "--out", out, "--log", log)
    lines = capsys.readouterr().err.splitlines()
    assert str(out) in lines[-1]
    backbones = ["R-50-FPN", "R-101-FPN", "X-101-32x4d-FPN", "X-101-64x4d-FPN"]
    table = lines[[line.split()[:1] for line in lines].index(["Backbone"]) : lines.index("", 2)]
    assert table[0].split() == ["Backbone", *backbones]
    assert re.split(r" {2,}", table[2].strip()) == ["Style", *["pytorch"] * 4]
    assert max(map(len, lines[1:-1])) <= 100
    assert not any(line.startswith("Download") for line in lines)
    assert log.read_text().splitlines()[-1].endswith(lines[-1])


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        *((command, {"--results": "absent"}, "--results absent: no such folder") for command in ("table", "plots")),
        ("table", {"--results": os.fspath(MINI)}, "mini.yaml: is a file; fix: name the folder"),
        ("pages", {"--results": "absent"}, "fix: name the folder the steps wrote into"),
        ("table", {"--study": "absent.yaml"}, "absent.yaml: no such study file"),
    ],
)
def test_a_command_fails_in_one_line(tmp_path, monkeypatch, capsys, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = {"--study": os.fspath(MINI), "--results": ".", "--out": "table.md", **arguments}
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, command, *(text for pair in given.items() for text in pair))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plots", "pages", "pictures"])
def test_the_help_names_what_is_written(monkeypatch, name):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        run_main(monkeypatch, name, "--help")
    assert all(f"    {written} " in text.getvalue() for written in report.WRITTEN[name])
