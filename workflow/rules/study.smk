"""The study of this run, checked; a mistake in it ends Snakemake with one line before any job."""

import os
import re
import sys
from pathlib import Path

if not Path(workflow.basedir, "workflow", "snakemake_internals.py").exists():
    sys.exit(
        "error: lvis-rcnn is neither a module nor an include of another workflow; fix: run it by itself: "
        "snakemake --snakefile LVIS_RCNN/Snakefile --directory FOLDER --configfile STUDY"
    )
# Names of environments and the shell of every job begin with these.
for place in (str(workflow.basedir), sys.executable):
    if set(place) & set("{}"):
        sys.exit(
            f"error: {place}: has braces, which Snakemake would read as a wildcard; allowed: a path without; "
            "fix: move the checkout, or its Python, elsewhere"
        )
for folder in ("", "workflow", "slurm"):
    sys.path.insert(0, str(Path(workflow.basedir, folder)))

import snakemake_internals
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.runs.paths import load_study_paths

# envs/*.post-deploy.sh is run from a copy in .snakemake and finds the lock file through this.
os.environ.update(LVIS_RCNN_HOME=str(workflow.basedir))

named_files = snakemake_internals.study_files(workflow)
if len(named_files) > 1:
    sys.exit(
        "error: --configfile: more than one file; allowed: one study; fix: name one of them"
    )
STUDY_FILE = (named_files or [Path(workflow.basedir, "configs", "mini.yaml")])[0]

# Only where no study is given: Snakemake would merge the given one over it, key by key.
if not named_files:

    configfile: STUDY_FILE


try:
    paths = load_study_paths(STUDY_FILE)
except InputError as error:
    sys.exit(f"error: {error}")
if config != snakemake_internals.read_by_snakemake(STUDY_FILE):
    sys.exit(
        f"error: --config: would change the study of {STUDY_FILE}; allowed: what the file says, since each step reads "
        "the file; fix: copy the file, change the copy and give it to --configfile"
    )
study = paths.study
