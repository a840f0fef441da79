"""What a release says of itself agrees: version, changelog, revisions, continuous integration."""

import re
import tomllib

import yaml

from lvis_rcnn import __version__
from lvis_rcnn.runs.identity import SCORING_REVISION, TRAINER_REVISION
from tests.conftest import REPOSITORY


def test_the_version_is_written_in_the_package_and_cited():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lvis_rcnn.__version__"}
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == __version__


def test_the_changelog_begins_with_this_version_and_names_the_newest_revisions():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == __version__
    for name, newest in (("TRAINER_REVISION", TRAINER_REVISION), ("SCORING_REVISION", SCORING_REVISION)):
        assert max(map(int, re.findall(rf"`{name}` (\d+)", text))) == newest


def test_continuous_integration_runs_what_anyone_can_run():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in steps
    assert (REPOSITORY / ".ci" / "run").is_file()
