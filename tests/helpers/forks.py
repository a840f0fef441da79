"""``python -m NAME …`` in a fork of a process that has imported what many such calls share: most of a call is imports.

The fork forgets the package and the tests, so that a call finds those of its own checkout, as in a new process.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["snakemake.cli", "snakemake.report", "pydantic", "pandas", "smart_open"])


def run_module(words: list[str], cwd: Path, environment: Mapping[str, str], output: Path) -> int:
    """Run the module ``words[0]`` with arguments; its exit code. What it prints goes to a file."""
    process = SERVER.Process(target=become, args=(words, str(cwd), dict(environment), str(output)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def become(words: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    """In the fork: what Python does between its start and the first line of a module."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in [name for name in sys.modules if name.split(".")[0] in ("lvis_rcnn", "tests")]:
        del sys.modules[name]
    here = str(Path(__file__).parents[2])
    sys.path[:] = [cwd, *(path for path in sys.path if path not in ("", here))]
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
