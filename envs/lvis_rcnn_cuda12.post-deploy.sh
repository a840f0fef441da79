#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.cuda12.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.cuda12.lock
echo "fdd6ba8b675efdcfc6484749d2bfbf55a59d3241809fe68bb20b6299259b3b53  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
