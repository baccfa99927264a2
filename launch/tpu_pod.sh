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

config=${1:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
command=$(printf '%q ' "$PYTHON" -m lmseg_jax.main --distributed --heartbeat "$HEARTBEAT" \
  --config "$config" --workdir "$workdir" "${@:3}")

train() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all \
    --command "cd $(printf '%q' "$FOLDER") && $command"
}
ready() {
  [[ $(gcloud compute tpus tpu-vm describe "$TPU" --zone "$ZONE" --format 'value(state)') == READY ]]
}
until train; do
  status=$?
  sleep "$PAUSE" # one that is being taken away still says READY for a moment
  if ((status != 130)) && ready; then
    exit "$status" # neither stopped nor taken away: the run said what is wrong
  fi
  until ready; do sleep "$PAUSE"; done
done
