"""What a cluster and a user of it need beside the workflow: ``slurm/site.yaml``, or variables of the environment.

Read by ``slurm/profile.yaml`` and ``workflow/rules/resources.smk``; nothing here is needed: a missing file is no error.
A new key is written here and in ``slurm/site.example.yaml``; resources.smk says which jobs it is for.
"""

import difflib
import os
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Site:
    """Keys of ``slurm/site.yaml``, each described in ``slurm/site.example.yaml``."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    gpu_partition: str = ""
    gpu_qos: str = ""
    gpu_constraint: str = ""
    gpu_model: str = ""
    exclude: str = ""
    reservation: str = ""
    mail_user: str = ""
    mail_type: str = "FAIL"
    directory: str = ""
    conda_prefix: str = ""
    cuda: int = 13
    max_jobs: int = 100
    seconds_to_save: int = 180
    seconds_between_checks: int = 40

    def options(self, *more: str) -> str:
        """Options of sbatch that no resource of Snakemake stands for."""
        mailed = {"mail-user": self.mail_user, "mail-type": self.mail_type} if self.mail_user else {}
        named = given({"exclude": self.exclude, "reservation": self.reservation} | mailed)
        # The executor hands them to a shell as they are.
        return " ".join([*(f"--{name}={shlex.quote(value)}" for name, value in named.items()), *more])

    def of_all_jobs(self) -> dict[str, str]:
        """Resources of every job."""
        named = {"slurm_account": self.account, "slurm_partition": self.partition, "qos": self.qos}
        return given(named | {"constraint": self.constraint, "slurm_extra": self.options()})

    def of_gpu_jobs(self) -> dict[str, str]:
        """Resources of jobs that hold a GPU, which win over those of every job."""
        named = {"slurm_partition": self.gpu_partition, "qos": self.gpu_qos, "constraint": self.gpu_constraint}
        return given(named | {"gpu_model": self.gpu_model})


# SLURM's own name where it has one.
VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
    "conda_prefix": "SNAKEMAKE_CONDA_PREFIX",
}


def given(values: dict[str, str]) -> dict[str, str]:
    """Values that are not empty."""
    return {name: value for name, value in values.items() if value}


def quoted(values: dict[str, str]) -> dict[str, str]:
    """As a profile needs them: Snakemake evaluates resources as Python."""
    return {name: repr(value) for name, value in values.items()}


def site_file() -> Path:
    """The one file that a user adds: beside the profile, or where LVIS_RCNN_SITE says."""
    return Path(os.environ.get("LVIS_RCNN_SITE") or Path(__file__).with_name("site.yaml"))


def load_site() -> Site:
    """The site's settings; the environment wins over the file. A mistake ends the process with one line."""
    path = site_file()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        if "LVIS_RCNN_SITE" in os.environ:
            sys.exit(f"error: LVIS_RCNN_SITE: {path}: no such file; fix: name a file as slurm/site.example.yaml")
        found = {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        sys.exit(f"error: {path}: not readable as YAML: {' '.join(str(error).split())}; fix: correct the file")
    if not isinstance(found, dict):
        sys.exit(f"error: {path}: holds no keys; allowed: lines such as 'account: lab'; fix: correct the file")
    kinds = {field.name: type(field.default) for field in fields(Site)}
    from_environment = {name: value for name in kinds if (value := os.environ.get(variable(name)))}
    return Site(
        **{
            name: checked(str(path) if name in found else variable(name), name, value, kinds)
            for name, value in {**found, **from_environment}.items()
        }
    )


def variable(name: str) -> str:
    """The variable of the environment that sets a key."""
    return VARIABLES.get(name, f"LVIS_RCNN_{name.upper()}")


def checked(where: str, name: str, value: object, kinds: dict[str, type]) -> str | int:
    """A value of the right kind; otherwise the end, with one line."""
    if name not in kinds:
        close = difflib.get_close_matches(str(name), kinds, n=1)
        fix = f"write {close[0]!r}" if close else "remove it"
        sys.exit(f"error: {where}: {name}: unknown key; allowed: {', '.join(kinds)}; fix: {fix}")
    if kinds[name] is int:
        if str(value).isdecimal() and int(str(value)) > 0:
            return int(str(value))
        sys.exit(f"error: {where}: {name}: is {value!r}; allowed: a whole number above 0; fix: change the value")
    is_text = isinstance(value, str | int) and not isinstance(value, bool)
    if is_text and not any(letter in str(value) for letter in "'\"\\\n"):
        return str(value)
    sys.exit(f"error: {where}: {name}: is {value!r}; allowed: text without quotes; fix: change the value")
