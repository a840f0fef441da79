#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.cuda12.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.cuda12.lock
echo "ed6fe07cb32da1f60846f060c1507c627f2b989fe76078ecd660bdfe44d2173b  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
