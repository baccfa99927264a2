#!/usr/bin/env bash
# A Cloud TPU slice: the same command on every host, which find each other.
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh configs/lmseg_semantic.py /mnt/shared/runs/x
# The project must lie in the same folder of every host. Where the slice was taken away, this waits
# until one of its name is ready, and goes on.
set -euo pipefail
TPU=${TPU:?name of the TPU}
ZONE=${ZONE:?its zone}
FOLDER=${FOLDER:-lmseg_jax} # of the project, on the hosts
PYTHON=${PYTHON:-.venv/bin/python}
HEARTBEAT=${HEARTBEAT:-40} # seconds until the others end after one died
PAUSE=${PAUSE:-60}         # seconds before each look whether the slice is well
TRIES=${TRIES:-10}         # failures in a row on a slice that is well: it may still be installing

config=${1:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
command=$(printf '%q ' "$PYTHON" -m lmseg_jax.main --distributed --heartbeat "$HEARTBEAT" \
  --config "$config" --workdir "$workdir" "${@:3}")

set -m # a child is a process group, which the trap ends as a whole
trap 'kill %% 2>/dev/null || true; exit 130' INT TERM
await() { # bash heeds a trap while it waits, not while a command runs
  "$@" </dev/null & # a read from the terminal would stop it
  wait "$!"
}
train() {
  await gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all \
    --command "cd $(printf '%q' "$FOLDER") && $command"
}
state() { gcloud compute tpus tpu-vm describe "$TPU" --zone "$ZONE" --format 'value(state)'; }

state >/dev/null # a wrong name or an expired login ends here
failures=0
until train; do
  status=$?
  if ((status == 2)); then exit 2; fi # the user's error
  await sleep "$PAUSE" # a slice that is being taken away still says READY for a moment
  if [[ $(state) != READY ]]; then
    failures=0
    until [[ $(state) == READY ]]; do await sleep "$PAUSE"; done
  elif ((status == 130)); then
    failures=0 # one of its hosts was asked to stop
  elif ((++failures >= TRIES)); then
    exit "$status"
  fi
done
