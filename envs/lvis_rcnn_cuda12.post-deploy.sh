#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.cuda12.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.cuda12.lock
echo "0323cbfd2da7a29dd81812cc1e407f934fd3dc1430d5c52be52d22900120dfd2  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
