#!/bin/bash
# Run by Snakemake inside the new environment, from a copy of this script in .snakemake. The digest stands here so that a
# new requirements.lock is a new script, and so a new environment.
set -euo pipefail
lock=${LVIS_RCNN_HOME:-.}/requirements.lock
echo "0447c0257ebb8b1089136ea0b0215ee2d3e8928fd40711199e269b441b664117  $lock" | sha256sum --check --quiet
python -m pip install --no-deps --require-hashes -r "$lock"
