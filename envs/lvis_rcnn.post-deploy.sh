#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.lock
echo "4e24255de855cf55b9da6f07b071b3a53e06f503ba2fc967db18d52768b9bd74  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
