"""What stands between Snakemake and SLURM, without a cluster: scripts stand for SLURM's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yte
from snakemake.exceptions import WorkflowError

from lvis_rcnn.config.study import load_study
from lvis_rcnn.runs.attempts import begin_attempt, end_attempt
from lvis_rcnn.system.cli import InputError
from tests.conftest import HANGS_S, REPOSITORY, write_study

sys.path += [str(REPOSITORY / "slurm"), str(REPOSITORY / "workflow")]

import submission
from site_settings import Site, load_site

SHEET = REPOSITORY / "slurm" / "site.example.yaml"
BIN = REPOSITORY / "slurm" / "bin"


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
        ("qos: yes", "qos: is True; allowed: text without quotes; fix: change the value"),
        ("1: lab", "1: unknown key; allowed: account, .*; fix: remove it"),
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


def test_what_a_site_says_reaches_slurm_as_one_option_through_the_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = "exclude: gpu[1-2] --hold\nreservation: a;b\nmail_user: $(id)\nmail_type: FAIL,END"
    options = site(monkeypatch, tmp_path, keys).options()
    words = subprocess.check_output(f"printf '%s|' {options}", shell=True, text=True)
    assert words == "--exclude=gpu[1-2] --hold|--reservation=a;b|--mail-user=$(id)|--mail-type=FAIL,END|"


def test_a_folder_of_the_site_may_be_written_as_in_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    for written, folder in (("$SCRATCH/lvis", "/scratch/me/lvis"), ("~/lvis", "/home/me/lvis")):
        site(monkeypatch, tmp_path, f"directory: {written}")
        assert profile(monkeypatch)["directory"] == folder


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

    def run(self, name: str, *words: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{before or BIN}:{self.folder / 'own'}:{os.environ['PATH']}"
        return subprocess.run(
            [shutil.which(name, path=path) or name, *words],
            cwd=self.folder,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGS_S,
        )


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def linked_folder(folder: Path) -> str:
    (folder / "link").symlink_to(BIN)
    return str(folder / "link")


def linked_commands(folder: Path) -> str:
    (folder / "bin").mkdir()
    for name in ("squeue", "sbatch", "sacct"):
        (folder / "bin" / name).symlink_to(BIN / name)
    return str(folder / "bin")


def second_checkout(folder: Path) -> str:
    shutil.copytree(BIN, folder / "second")
    return f"{folder / 'second'}:{BIN}"


def called_by_the_site(folder: Path) -> str:
    """A site's own command of each name, which calls by PATH what stands behind it."""
    (folder / "site").mkdir()
    for name in ("squeue", "sbatch", "sacct"):
        (folder / "site" / name).write_text(f'#!/bin/sh\nPATH=${{PATH#*site:}}\nexec {name} "$@"\n')
        (folder / "site" / name).chmod(0o755)
    return f"{BIN}:{folder / 'site'}:{BIN}"


PATHS: dict[str, Callable[[Path], str]] = {
    "plain": lambda folder: str(BIN),
    "..": lambda folder: f"{REPOSITORY}/tests/../slurm/bin",
    "//": lambda folder: f"{REPOSITORY}//slurm/bin/",
    "twice": lambda folder: f"{BIN}:{BIN}/.",
    "a link": linked_folder,
    "links to the commands": linked_commands,
    "two checkouts": second_checkout,
    "a command of the site": called_by_the_site,
}


@pytest.mark.parametrize("spelled", PATHS)
def test_no_command_calls_itself_however_path_names_it(commands: Commands, spelled: str) -> None:
    before = PATHS[spelled](commands.folder)
    commands.own("squeue", "echo '1|RUNNING|None'")
    commands.own("sbatch", "echo 17")
    commands.own("sacct", "echo '2|COMPLETED'")
    assert commands.run("squeue", "--name", "lvis_1", before=before).stdout == "1|RUNNING\n"
    assert commands.run("sbatch", "--wrap=true", before=before).stdout == "17\n"
    assert commands.run("sacct", "--name", "lvis_1", before=before).stdout == "2|COMPLETED\n"


def test_a_forgotten_job_is_judged_by_the_exit_code_that_it_has_noted(commands: Commands) -> None:
    commands.own("sbatch", 'echo "${1#--wrap=}" > script; echo 41')
    for number, code in ((41, 0), (42, 3)):
        assert commands.run("sbatch", f"--wrap=cd / && (exit {code})").stdout == "41\n"
        in_job = {**os.environ, "SLURM_SUBMIT_DIR": str(commands.folder), "SLURM_JOB_ID": str(number)}
        assert subprocess.run(["sh", commands.folder / "script"], env=in_job, check=False).returncode == code
    commands.own("squeue", "printf '%s\\n' '41|RUNNING|None' '42|RUNNING|None' '43|RUNNING|None'")
    commands.run("squeue", "--name", "lvis_1")
    commands.own("squeue", "true")
    assert commands.run("squeue", "--name", "lvis_1").stdout == "41|COMPLETED\n42|FAILED\n43|FAILED\n"


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


def test_squeue_tells_once_of_a_job_that_slurm_never_starts(commands: Commands) -> None:
    reasons = {7: "QOSMaxWallDurationPerJobLimit", 8: "Resources", 9: "JobHeldUser", 10: "QOSMaxJobsPerUserLimit"}
    commands.own("squeue", "; ".join(f"echo '{number}|PENDING|{reason}'" for number, reason in reasons.items()))
    terminal = commands.folder / "terminal"
    for _ in range(2):
        answer = commands.run("squeue", "--name", "lvis_1", LVIS_RCNN_TERMINAL=str(terminal))
        assert answer.stdout == "".join(f"{number}|PENDING\n" for number in reasons), answer.stderr
    told = terminal.read_text().splitlines()
    assert [line.split(" waits")[0] for line in told] == ["job 7", "job 9"]
    assert "(QOSMaxWallDurationPerJobLimit)" in told[0]


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
    (commands.folder / "terminal").touch()
    done = commands.run("sbatch", "--wrap", "true", LVIS_RCNN_TERMINAL=str(commands.folder / "terminal"))
    assert (done.returncode, done.stdout) == (0, "17\n")
    assert (commands.folder / "calls").read_text() == "sleep 5\n"
    assert "SLURM takes no job for now, trying again" in (commands.folder / "terminal").read_text()


def test_sbatch_submits_nothing_for_a_snakemake_that_has_died(commands: Commands) -> None:
    commands.own("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    commands.own("sleep", "echo sleep $1 >> calls")
    done = commands.run("sbatch", "--wrap=true", LVIS_RCNN_TERMINAL="/proc/0/fd/2")
    assert (done.returncode, done.stdout) == (1, "")
    assert (commands.folder / "calls").read_text() == "sleep 5\n"


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
    left = [f"{number}|4000M|1:00:00|rule_train_r50|/here" for number in (16, 17)]
    commands.own("squeue", f"printf '%s\\n' '{left[0]}' '{left[1]}'")
    words[1] = "lvis_2"
    terminal = commands.folder / "terminal"
    taken = commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc", LVIS_RCNN_TERMINAL=str(terminal))
    assert taken.stdout == "17\n", taken.stderr
    assert "with its own limits (memory 4000M, time 1:00:00)" in terminal.read_text()
    assert (commands.folder / "calls").read_text() == "scontrol update JobId=17 JobName=lvis_2\n"
    # Not that of another study, step or folder, nor one that cannot be had.
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="other").stdout == "18\n"
    for at, other in ((3, "rule_train_r101"), (5, "/there")):
        assert (
            commands.run("sbatch", *words[:at], other, *words[at + 1 :], LVIS_RCNN_STUDY_SHA256="abc").stdout == "18\n"
        )
    commands.own("scontrol", "exit 1")
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "18\n"


def test_a_left_job_is_looked_for_until_squeue_answers(commands: Commands) -> None:
    words = ["--job-name", "lvis_1", "--comment", "rule_train_r50", "-D", "/here", "--wrap", "true"]
    commands.own("sbatch", "echo 17")
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "17\n"
    commands.own("sbatch", "echo 18")
    commands.own("sleep", "echo sleep $1 >> calls")
    commands.own("squeue", "if [ -e calls ]; then echo '17|1M|1:00|rule_train_r50|/here'; else exit 1; fi")
    assert commands.run("sbatch", *words, LVIS_RCNN_STUDY_SHA256="abc").stdout == "17\n"
    assert (commands.folder / "calls").read_text().startswith("sleep 5\nscontrol update JobId=17")


def test_a_command_that_is_gone_is_named_and_nothing_else_is_said() -> None:
    done = subprocess.run(
        ["bash", "-c", f'. {BIN}/own.sh; "$(own no_such_command)" --version'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: no_such_command: not on PATH\n")


def test_a_left_job_is_known_by_what_the_study_says_not_by_how_it_is_written(tmp_path: Path) -> None:
    study = write_study(tmp_path / "tiny.yaml", study="tiny")
    before = submission.content_sha256(load_study(study))
    study.write_text(f"# a comment\n{study.read_text()}")
    assert submission.content_sha256(load_study(study)) == before
    # Limits are those that the left job has.
    assert submission.content_sha256(load_study(write_study(study, study="tiny", resources={"memory_mb": 1}))) == before
    for changes in ({"schedule": {"steps": 9}}, {"inference": {"nms_iou": 0.4}}, {"seeds": [1]}):
        assert submission.content_sha256(load_study(write_study(study, study="tiny", **changes))) != before


def put_commands(folder: Path, **scripts: str) -> str:
    """A folder with these commands, for PATH, beside what the shell itself needs."""
    folder.mkdir()
    for name, script in {"sbatch": "true", "squeue": "true", "scancel": "true", **scripts}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("there", [(), ("squeue", "scontrol")])
def test_a_machine_without_slurm_is_one_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: tuple[str, ...]
) -> None:
    (tmp_path / "bin").mkdir()
    for name in there:
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (refusal,) = submission.prepare(SimpleNamespace(), None)
    lacking = ", ".join(name for name in ("sbatch", "squeue", "scancel") if name not in there)
    assert refusal.startswith(f"--profile slurm: needs {lacking} of SLURM, not found on PATH; fix: ")


def test_where_scontrol_is_hidden_time_limits_are_not_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submission.time_limits_minutes() == {}


@pytest.mark.parametrize(
    ("queue", "reason", "refused"),
    [
        ("", "AssocMaxSubmitJobLimit", True),
        ("", "QOSMaxSubmitJobPerUserLimit", True),
        ("7", "AssocMaxSubmitJobLimit", True),  # the job of this Snakemake
        ("7\n8", "AssocMaxSubmitJobLimit", False),
        ("", "AssocGrpSubmitJobsLimit", False),  # jobs of others may fill it
        ("", "Unable to contact slurm controller", False),
    ],
)
def test_a_limit_on_submitted_jobs_that_no_job_fills_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queue: str, reason: str, refused: bool
) -> None:
    answers = {"squeue": f"echo '{queue}'", "sbatch": f"echo 'sbatch: error: {reason}' >&2; exit 1"}
    path = put_commands(tmp_path / "bin", **answers)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = SimpleNamespace(rule=SimpleNamespace(name="train"), resources={})
    monkeypatch.setattr(submission, "sbatch_command", lambda job: "sbatch --comment test --mem 1")
    assert [reason in found for found in submission.refusals([job])] == [True] * refused


def test_what_the_executor_itself_refuses_is_said_like_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Any) -> str:
        raise WorkflowError(f"Invalid GPU model format: {job.resources['gpu_model']}.\n Expected format: '<name>'")

    monkeypatch.setattr(submission, "sbatch_command", refuse)
    monkeypatch.setattr(submission, "queue_is_empty", lambda: False)
    job = SimpleNamespace(rule=SimpleNamespace(name="train"), resources={"gpu_model": "a-b"})
    (found,) = submission.refusals([job, job])
    assert found.startswith("rule train: ")
    assert "Invalid GPU model format: a-b. Expected" in found


@pytest.mark.parametrize(
    ("sent", "ends", "says"),
    [(signal.SIGUSR1, 137, "scontrol requeue 7"), (signal.SIGTERM, 0, "interrupted")],
    ids=["before the time limit", "scancel"],
)
def test_a_step_that_a_head_runs_itself_ends_with_it(tmp_path: Path, sent: int, ends: int, says: str) -> None:
    # Snakemake, which Ctrl-C ends, with a step that it runs here.
    snakemake = "trap 'echo interrupted >> calls; exit 0' INT\nsleep 300 & echo $! > step\nwhile :; do sleep 0.1; done"
    path = put_commands(tmp_path / "bin", snakemake=snakemake, scontrol='echo scontrol "$@" >> calls')
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    head = subprocess.Popen(["bash", REPOSITORY / "slurm" / "head.sbatch"], cwd=tmp_path, env=environment)
    try:
        step = int(until(lambda: (tmp_path / "step").read_text()))
        head.send_signal(sent)
        assert head.wait(30) == ends
    finally:
        head.kill()
    until(lambda: is_over(step) or "")
    assert says in (tmp_path / "calls").read_text()


def is_over(pid: int) -> str:
    """Words where a process has ended, though its parent, gone too, may not have asked."""
    status = Path(f"/proc/{pid}/status")
    return "gone" if not status.exists() or "\tZ" in status.read_text() else ""


def until(found: Callable[[], str]) -> str:
    """What comes in the end."""
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        try:
            if text := found():
                return text
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise AssertionError("nothing came")
