#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.lock
echo "c541d3c194ad6a17c6fb0a0e58a407e36a14cd89aaa9e5b043ed36f284aa85b3  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
