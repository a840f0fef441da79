#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.lock
echo "daed2b6aa7cb03b67af6c0157d954bf2909e63204c9800c842442edbf00dca99  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
