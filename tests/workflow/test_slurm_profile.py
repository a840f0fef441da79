"""What stands between Snakemake and SLURM, without a cluster: scripts stand for SLURM's commands."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yte

from lvis_rcnn.runs.attempts import begin_attempt, end_attempt
from lvis_rcnn.system.cli import InputError
from tests.conftest import REPOSITORY

sys.path += [str(REPOSITORY / "slurm"), str(REPOSITORY / "workflow")]

import submission
from site_settings import Site, load_site

SHEET = REPOSITORY / "slurm" / "site.example.yaml"


@pytest.fixture(autouse=True)
def no_site_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("SBATCH_", "LVIS_RCNN_")):
            monkeypatch.delenv(name)
    (tmp_path / "empty.yaml").touch()
    monkeypatch.setenv("LVIS_RCNN_SITE", str(tmp_path / "empty.yaml"))


def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Site:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    monkeypatch.setenv("LVIS_RCNN_SITE", str(path))
    return load_site()


def profile(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(REPOSITORY)
    with open("slurm/profile.yaml") as file:
        return yte.process_yaml(file, require_use_yte=True)


def test_a_site_comes_from_its_file_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_site() == Site()
    found = site(monkeypatch, tmp_path, "account: lab\nmax_jobs: 4\n")
    assert (found.account, found.max_jobs) == ("lab", 4)
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    monkeypatch.setenv("LVIS_RCNN_MAX_JOBS", "7")
    assert (load_site().account, load_site().max_jobs) == ("other", 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acount: lab", "acount: unknown key; allowed: account, .*; fix: write 'account'"),
        ("max_jobs: many", "max_jobs: is 'many'; allowed: a whole number above 0; fix: change the value"),
        ('qos: "a\'b"', 'qos: is "a\'b"; allowed: text without quotes; fix: change the value'),
        ("- a", "holds no keys; allowed: lines such as 'account: lab'; fix: correct the file"),
        ("a: [", "not readable as YAML: .*; fix: correct the file"),
    ],
)
def test_a_mistake_in_the_site_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/site.yaml: {message}$"):
        site(monkeypatch, tmp_path, text)


def test_a_site_file_that_was_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LVIS_RCNN_SITE", str(tmp_path / "none.yaml"))
    with pytest.raises(SystemExit, match=r"^error: LVIS_RCNN_SITE: .*none.yaml: no such file; fix: "):
        load_site()


def test_the_example_names_every_key_and_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import fields

    from site_settings import variable

    text = SHEET.read_text()
    for field in fields(Site):
        assert f"# {field.name}: " in text
        assert f"({variable(field.name)})" in text
    uncommented = "\n".join(
        line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and ": " in line
    )
    known = {field.name for field in fields(Site)}
    chosen = [line for line in uncommented.splitlines() if line.split(":")[0] in known]
    assert site(monkeypatch, tmp_path, "\n".join(chosen)).gpu_model == "a100"


def test_the_profile_holds_what_the_site_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = profile(monkeypatch)
    assert plain["default-resources"] == {"runtime": 60, "mem_mb": 4000}
    assert plain["set-resources"]["train"]["slurm_extra"] == "'--signal=TERM@180'"
    assert (plain["jobs"], plain["slurm-init-seconds-before-status-checks"]) == (100, 40)
    assert "directory" not in plain
    keys = "account: lab\nexclude: n1\nmail_user: me@x.org\nseconds_to_save: 60\ndirectory: /scratch\nconda_prefix: /c"
    site(monkeypatch, tmp_path, keys)
    filled = profile(monkeypatch)
    mail = "--exclude=n1 --mail-user=me@x.org --mail-type=FAIL"
    assert filled["default-resources"]["slurm_account"] == "'lab'"
    assert filled["default-resources"]["slurm_extra"] == f"'{mail}'"
    assert filled["set-resources"]["train"]["slurm_extra"] == f"'{mail} --signal=TERM@60'"
    assert (filled["directory"], filled["conda-prefix"]) == ("/scratch", "/c")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("1:00:00", 60), ("2-12:30:00", 3630), ("0:00:30", 0.5), ("UNLIMITED", float("inf"))],
)
def test_time_limits_are_read_as_slurm_writes_them(time: str, minutes: float) -> None:
    assert submission.in_minutes(time) == minutes


def test_a_training_that_cannot_start_again_is_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log, state = Path("train.log"), Path("results/state/tiny/r50/seed0/digest")
    state.mkdir(parents=True)
    wildcards = SimpleNamespace(study="tiny", row="r50", seed="0")
    job = SimpleNamespace(rule=SimpleNamespace(name="train"), wildcards=wildcards, log=[log])

    def fail_at(step: int) -> None:
        end_attempt(state, begin_attempt(state, 0), "error", step, RuntimeError("boom"))
        log.write_text("error: boom\n")

    fail_at(3)
    assert not submission.is_pointless(job)
    fail_at(7)
    assert not submission.is_pointless(job)
    fail_at(7)
    assert submission.is_pointless(job)
    with pytest.raises(InputError) as refusal:
        begin_attempt(state, 0)
    (state / "attempts.jsonl").unlink()
    log.write_text(f"a line\nerror: {refusal.value}\n")
    assert submission.is_pointless(job)
    job.rule.name = "infer"
    assert not submission.is_pointless(job)


class Commands:
    """Scripts in the place of SLURM's commands, behind those of slurm/bin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "own").mkdir()
        self.own("squeue", "true")
        self.own("scontrol", 'echo scontrol "$@" >> calls')

    def own(self, name: str, script: str) -> None:
        path = self.folder / "own" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{REPOSITORY / 'slurm' / 'bin'}:{self.folder / 'own'}:{os.environ['PATH']}"
        return subprocess.run(
            [name, *words],
            cwd=self.folder,
            env={**os.environ, "PATH": path, **environment},
            executable=REPOSITORY / "slurm" / "bin" / name,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_squeue_fails_what_is_over_and_what_was_forgotten(commands: Commands) -> None:
    words = ("--format=%i|%T", "--name", "lvis_1")
    states = {1: "RUNNING", 2: "PREEMPTED", 3: "NODE_FAIL", 4: "COMPLETED", 5: "REQUEUED"}
    commands.own("squeue", "; ".join(f"echo '{number}|{state}|None'" for number, state in states.items()))
    assert commands.run("squeue", *words).stdout == "1|RUNNING\n2|FAILED\n3|FAILED\n4|COMPLETED\n5|REQUEUED\n"
    commands.own("squeue", "echo '1|COMPLETED|None'")
    assert commands.run("squeue", *words).stdout == "1|COMPLETED\n2|FAILED\n3|FAILED\n4|FAILED\n5|FAILED\n"
    assert "6|" not in commands.run("squeue", "--name", "lvis_2").stdout
    commands.own("squeue", "echo 'controller away' >&2; exit 1")
    silent = commands.run("squeue", *words)
    assert (silent.returncode, silent.stdout) == (1, "")


def test_squeue_gives_up_a_job_that_no_node_could_start(commands: Commands) -> None:
    reasons = {7: "launch failed requeued held", 8: "Resources", 9: "launch_failed_requeued_held", 77: "JobHeldUser"}
    commands.own("squeue", "; ".join(f"echo '{number}|PENDING|{reason}'" for number, reason in reasons.items()))
    commands.own("scancel", 'echo scancel "$@" >> calls')
    answer = commands.run("squeue", "--name", "lvis_1")
    assert answer.stdout == "7|FAILED\n8|PENDING\n9|FAILED\n77|PENDING\n", answer.stderr
    assert (commands.folder / "calls").read_text() == "scancel 7 9\n"


def test_sacct_says_what_the_executor_understands(commands: Commands) -> None:
    commands.own("sacct", "printf '%s\\n' '1|CANCELLED by 1000' '2|COMPLETED' '3|PREEMPTED'")
    assert commands.run("sacct").stdout == "1|CANCELLED\n2|COMPLETED\n3|FAILED\n"


def test_sacct_lets_squeue_answer_where_it_cannot(commands: Commands) -> None:
    commands.own("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    commands.own("squeue", "echo '3|PREEMPTED|None'")
    assert commands.run("sacct", "--format=JobIdRaw,State", "--name", "lvis_1").stdout == "3|FAILED\n"


def test_sbatch_waits_where_it_is_refused_for_now(commands: Commands) -> None:
    commands.own(
        "sbatch",
        "if [ -e tried ]; then echo 17; exit; fi; touch tried\n"
        "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1",
    )
    commands.own("sleep", "echo sleep $1 >> calls")
    done = commands.run("sbatch", "--wrap", "true", LVIS_RCNN_TERMINAL=str(commands.folder / "terminal"))
    assert (done.returncode, done.stdout) == (0, "17\n")
    assert (commands.folder / "calls").read_text() == "sleep 5\n"
    assert "SLURM takes no job for now, trying again" in (commands.folder / "terminal").read_text()


def test_sbatch_passes_every_other_refusal_on_at_once(commands: Commands) -> None:
    commands.own("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 3")
    done = commands.run("sbatch", "--wrap", "true")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "sbatch: error: invalid partition specified: nope\n"


def test_sbatch_takes_over_the_job_of_the_same_step_and_study(commands: Commands) -> None:
    words = ["--job-name", "lvis_1", "--comment", "rule_train_r50", "-D", "/here", "--wrap", "true"]
    commands.own("sbatch", "echo 17")
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "17\n"
    commands.own("sbatch", "echo 18")
    commands.own("squeue", "printf '%s\\n' '16|rule_train_r50|/here' '17|rule_train_r50|/here'")
    words[1] = "lvis_2"
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "17\n"
    assert (commands.folder / "calls").read_text() == "scontrol update JobId=17 JobName=lvis_2\n"
    # Not that of another study, step or folder, nor one that cannot be had.
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="other").stdout == "18\n"
    for at, other in ((3, "rule_train_r101"), (5, "/there")):
        assert (
            commands.run("sbatch", *words[:at], other, *words[at + 1 :], LVIS_RCNN_STUDY_SHA256="abc").stdout == "18\n"
        )
    commands.own("scontrol", "exit 1")
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "18\n"
