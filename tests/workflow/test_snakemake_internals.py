"""Each private interface of Snakemake alone: what a release of it changes fails here, in a test that names it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.jobs import Job

from tests.conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "workflow"))

import snakemake_internals

# Nothing is submitted: it ends before the first job.
ON_SLURM = ["--executor", "slurm", "--jobs", "3"]
SNAKEFILE = """
import json, os, sys
sys.path.append({folder!r})
import snakemake_internals as internals
from pathlib import Path

{at_parse}

rule first:
    output: "first.txt"
    params: internals.untracked(lambda wildcards: config.get("value", 1))
    resources: gpu=1, mem_mb=100, runtime=5, cpus_per_task=2
    shell: "echo > {{output}}"

rule second:
    input: "first.txt"
    output: "second.txt"
    localrule: True
    shell: "echo > {{output}}"

onstart:
    {at_start}
"""


def said(tmp_path: Path, *words: str, at_parse: str = "", at_start: str = "pass") -> dict[str, object]:
    """What a Snakefile wrote to said.json while it was parsed, or before its first job."""
    text = SNAKEFILE.format(folder=str(REPOSITORY / "workflow"), at_parse=at_parse, at_start=at_start)
    (tmp_path / "Snakefile").write_text(text)
    command = [sys.executable, "-m", "snakemake", "second.txt", *(words or ("--cores", "3"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file = tmp_path / "said.json"
    return json.loads(file.read_text()) if file.exists() else {}


def tell(expression: str) -> str:
    return f'Path("said.json").write_text(json.dumps({{"it": {expression}}}))'


@pytest.mark.parametrize("named", [[], ["a.yaml"], ["a.yaml", "b.yaml"]])
def test_study_files(tmp_path: Path, named: list[str]) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("key: 1")
    words = ["-n", *(["--configfile", *named] if named else [])]
    told = said(tmp_path, *words, at_parse=tell("[file.name for file in internals.study_files(workflow)]"))
    assert told == {"it": named}


@pytest.mark.parametrize("text", ['{"rate": 1e-05, "on": true}', "rate: 1e-05\non: yes"])
def test_read_by_snakemake(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    words = ["-n", "--configfile", "a.yaml"]
    at_parse = tell('[config == internals.read_by_snakemake(Path("a.yaml")), str(config)]')
    assert said(tmp_path, *words, at_parse=at_parse)["it"][0] is True


def test_cores_and_no_cluster(tmp_path: Path) -> None:
    told = said(tmp_path, at_parse=tell("[internals.cores(workflow), internals.runs_on_a_cluster(workflow)]"))
    assert told == {"it": [3, False]}


def test_no_cores_and_a_cluster(tmp_path: Path) -> None:
    told = "[internals.cores(workflow), internals.runs_on_a_cluster(workflow)]"
    assert said(tmp_path, *ON_SLURM, at_start=f"{tell(told)}; os._exit(0)") == {"it": [None, True]}


@pytest.mark.parametrize(("words", "gpus"), [([], 2), (["--resources", "gpu=1"], 1)])
def test_limit_gpus(tmp_path: Path, words: list[str], gpus: int) -> None:
    limit = "internals.limit_gpus(workflow, lambda: 2)"
    asked = '[workflow.scheduler.resources["gpu"], internals.gpus(workflow)]'
    assert said(tmp_path, "--cores", "3", *words, at_parse=limit, at_start=tell(asked)) == {"it": [gpus, gpus]}


@pytest.mark.parametrize("quiet", ["rules", "progress", "all", ""])
def test_progress_is_said_unless_snakemake_is_quiet_about_its_own(tmp_path: Path, quiet: str) -> None:
    text = SNAKEFILE.format(
        folder=str(REPOSITORY / "workflow"), at_parse="", at_start="internals.say_progress('a line')"
    )
    (tmp_path / "Snakefile").write_text(text)
    command = [sys.executable, "-m", "snakemake", "second.txt", "--cores", "1", "--quiet", *quiet.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("a line\n" in done.stderr) == (quiet == "rules")


@pytest.mark.conda
def test_conda(tmp_path: Path, conda_stand_in: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in conda_stand_in.items():
        monkeypatch.setenv(name, value)
    uses = tell("internals.uses_conda(workflow)")
    assert said(tmp_path, "-n", at_parse=uses) == {"it": False}
    assert said(tmp_path, "--use-conda", "-n", at_parse=uses) == {"it": True}


@pytest.mark.parametrize(("words", "told"), [([], ["local", []]), (ON_SLURM, ["slurm", ["first"]])])
def test_executor_and_jobs_to_submit(tmp_path: Path, words: list[str], told: list[object]) -> None:
    names = "sorted(job.rule.name for job in internals.{}(workflow))".format
    asked = f"[internals.executor(workflow), {names('jobs_to_submit')}, {names('planned_jobs')}]"
    told = [*told, ["first", "second"]]
    assert said(tmp_path, *words, at_start=f"{tell(asked)}; os._exit(0)") == {"it": told}


def test_sbatch_command(tmp_path: Path) -> None:
    asked = tell("internals.sbatch_command(internals.jobs_to_submit(workflow)[0], '/here')")
    command = str(said(tmp_path, *ON_SLURM, at_start=f"{asked}; os._exit(0)")["it"])
    assert command.startswith("sbatch ")
    assert re.search(r" --job-name '?test'? ", command)
    assert re.search(r" --comment '?test'? ", command)
    assert re.search(r" -D '?/here'? ", command)
    for option in ("--mem 100", "-t 5", "--cpus-per-task=2", "--gpus=1"):
        assert option in command, command


def test_never_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "restart_times", property(lambda job: 3))
    snakemake_internals.never_retry(lambda job: job.pointless)
    job = object.__new__(type("Kind", (Job,), {"pointless": False}))
    assert job.restart_times == 3
    type(job).pointless = True
    assert job.restart_times == 0


def test_a_job_is_tried_again_as_often_as_restart_times_says(tmp_path: Path) -> None:
    """Snakemake asks after each failure."""
    patch = "internals.never_retry(lambda job: Path('tries').read_text().count('x') > 1)"
    text = SNAKEFILE.format(folder=str(REPOSITORY / "workflow"), at_parse=patch, at_start="pass")
    (tmp_path / "Snakefile").write_text(text.replace("echo > {output}", "printf x >> tries; exit 1", 1))
    command = [sys.executable, "-m", "snakemake", "first.txt", "--cores", "1", "--retries", "5"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    assert (tmp_path / "tries").read_text() == "xx"


def test_untracked(tmp_path: Path) -> None:
    said(tmp_path)
    assert (tmp_path / "second.txt").exists()
    command = [sys.executable, "-m", "snakemake", "second.txt", "-n", "--config", "value=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_private_names_stand_in_one_file() -> None:
    private = re.compile(
        r"\bworkflow\.(?!basedir\b|rst\b)\w+|snakemake\.(jobs|dag|common|scheduling)\b|snakemake_executor_plugin"
    )
    folders = [REPOSITORY / "workflow", REPOSITORY / "slurm", REPOSITORY / "profiles", REPOSITORY / "lvis_rcnn"]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".smk", ".yaml")]
    found = {path.name for path in [*files, REPOSITORY / "Snakefile"] if private.search(path.read_text())}
    assert found == {"snakemake_internals.py"}
