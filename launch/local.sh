#!/usr/bin/env bash
# One machine: its CPU, or every GPU it has.
#   launch/local.sh configs/demo.py runs/demo [--config.key=value ...]
#   PROCESSES=2 launch/local.sh configs/demo.py runs/demo
# SIGTERM and Ctrl-C make the run save and exit; the same command goes on.
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
PROCESSES=${PROCESSES:-1}  # more divide a CPU; one takes all GPUs
PORT=${PORT:-9876}         # of process 0, where the others find it
HEARTBEAT=${HEARTBEAT:-40} # seconds until the others end after one died

cd "$(dirname "$0")/.."
config=${1:?usage: launch/local.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: launch/local.sh CONFIG WORKDIR [--config.key=value ...]}
command=("$PYTHON" -m lmseg_jax.main --config "$config" --workdir "$workdir" "${@:3}")
if ((PROCESSES == 1)); then
  exec "${command[@]}"
fi

processes=()
signalled=0
stop() { kill -TERM "${processes[@]}" 2>/dev/null || true; }
trap 'signalled=1; stop' TERM INT
for ((process = 0; process < PROCESSES && !signalled; process++)); do
  "${command[@]}" --coordinator "localhost:$PORT" --processes "$PROCESSES" \
    --process "$process" --heartbeat "$HEARTBEAT" &
  processes+=($!)
done
if ((signalled)); then stop; fi # the last one may have started after the signal

worst=0
for process in "${!processes[@]}"; do
  while kill -0 "${processes[process]}" 2>/dev/null; do
    wait "${processes[process]}" || true # a signal ends it early
  done
  status=0
  wait "${processes[process]}" || status=$?
  if ((status != 0 && status != 130)); then
    echo "process $process ended with status $status" >&2
  fi
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
