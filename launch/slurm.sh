#!/usr/bin/env bash
# Slurm: one process a GPU; JAX reads who is who from Slurm's environment.
#   sbatch --nodes=2 launch/slurm.sh configs/lmseg_semantic.py /shared/runs/semantic [...]
#SBATCH --job-name=lmseg
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
config=${1:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}
exec srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m lmseg_jax.main --distributed \
  --config "$config" --workdir "$workdir" "${@:3}"
