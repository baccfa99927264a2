#!/usr/bin/env bash
# One machine: CPU, or every GPU it has.
#   launch/local.sh configs/demo.py runs/demo [--config.key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: launch/local.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: launch/local.sh CONFIG WORKDIR [--config.key=value ...]}
exec "${PYTHON:-.venv/bin/python}" -m lmseg_jax.main \
  --config "$config" --workdir "$workdir" "${@:3}"
