#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.lock
echo "2c500c43afd2748c7f6ec58c4da00c0235e74a90861858e6cfdd842497fe3d5e  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
