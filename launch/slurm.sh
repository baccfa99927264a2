#!/usr/bin/env bash
# Slurm: one process a GPU; JAX reads who is who from Slurm's environment.
#   sbatch --nodes=2 launch/slurm.sh configs/lmseg_semantic.py /shared/runs/semantic [...]
# Two minutes before its time is up, or when it is preempted, the run saves and the job queues again.
#SBATCH --job-name=lmseg
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
HEARTBEAT=${HEARTBEAT:-40} # seconds until the others end after one died

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
config=${1:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}

ended=0
trap 'ended=1' TERM # of scancel and preemption; the early signal comes to the tasks only
status=0
# the first task that has saved and left does not end the others
srun --kill-on-bad-exit=0 "$PYTHON" -m lmseg_jax.main --distributed --heartbeat "$HEARTBEAT" \
  --config "$config" --workdir "$workdir" "${@:3}" || status=$?
if ((status == 130 && !ended)); then
  echo "time is up; the job queues again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
