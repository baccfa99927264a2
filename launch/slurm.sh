#!/usr/bin/env bash
# Slurm: one process a GPU; JAX reads who is who from Slurm's environment.
#   sbatch --nodes=2 launch/slurm.sh configs/lmseg_semantic.py /shared/runs/semantic [...]
# Five minutes before its time is up, or when preempted, the run saves and the job queues again.
#SBATCH --job-name=lmseg
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
HEARTBEAT=${HEARTBEAT:-40} # seconds until the others end after one died
GRACE=${GRACE:-240}        # seconds it may take to save, less than --signal leaves

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
config=${1:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]}

late=0 cancelled=0 end=$((2 ** 40))
# scancel tells the tasks; srun would answer a SIGTERM by killing them
trap 'late=1; end=$((SECONDS + GRACE)); scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
# of the user, or of Slurm, which itself queues again what it preempts
trap 'cancelled=1; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
# the first task that has saved and left does not end the others
srun --kill-on-bad-exit=0 "$PYTHON" -m lmseg_jax.main --distributed --heartbeat "$HEARTBEAT" \
  --config "$config" --workdir "$workdir" "${@:3}" &
step=$!
while ((SECONDS < end)) && kill -0 "$step" 2>/dev/null; do
  sleep 1 || true # it gets the signals to the whole job, too
done
status=130 # of a run that is still evaluating, from a checkpoint on; the requeue ends it
if ! kill -0 "$step" 2>/dev/null; then
  status=0
  wait "$step" || status=$?
fi
# a preemption with a grace time tells the tasks only: 130, or 143 before the first update
if ((!cancelled && (status == 130 || status == 143 || late && status))); then
  echo "stopped with status $status; the job queues again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
