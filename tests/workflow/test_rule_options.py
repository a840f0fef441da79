"""The commands of the rules have only options that their step knows: jobs of tests run stand-ins, which know any."""

import importlib
import re
import sys

import pytest

from tests.conftest import REPOSITORY

RULES = [*(REPOSITORY / "workflow" / "rules").glob("*.smk"), REPOSITORY / "Snakefile"]
# From the name of a step to the end of its strings in quotes.
COMMAND = re.compile(r"(?:-m|launcher\}) lvis_rcnn\.(\w+)((?:[^\"'\n]*[\"']\s*f?[\"'])*[^\"'\n]*)")
# lvis_rcnn.system.gpus starts another command.
COMMANDS = [(step, text) for path in RULES for step, text in COMMAND.findall(path.read_text()) if step != "system"]


@pytest.mark.parametrize(("step", "text"), COMMANDS, ids=[step for step, _ in COMMANDS])
def test_a_rule_gives_its_step_options_that_it_knows(step, text, monkeypatch, capsys):
    module = importlib.import_module(f"lvis_rcnn.{step}")
    words = text.split()[:1] if step in ("report", "weights") else []
    monkeypatch.setattr(sys, "argv", [step, *words, "--help"])
    with pytest.raises(SystemExit):
        module.main()
    known = capsys.readouterr().out
    options = re.findall(r"(?<!\S)--[a-z][a-z-]*", text)
    assert [option for option in options if not re.search(rf"{option}\b(?!-)", known)] == []


def test_there_are_commands():
    assert {"fetch", "train", "infer", "evaluate", "report"} <= {step for step, _ in COMMANDS}
