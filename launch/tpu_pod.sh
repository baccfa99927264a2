#!/usr/bin/env bash
# A Cloud TPU slice: the same command on every host, which find each other.
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh configs/lmseg_semantic.py /mnt/shared/runs/x
# The project must lie in the same folder of every host; FOLDER names it.
set -euo pipefail
config=${1:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
workdir=${2:?usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG WORKDIR [--config.key=value ...]}
command=$(printf '%q ' .venv/bin/python -m lmseg_jax.main --distributed \
  --config "$config" --workdir "$workdir" "${@:3}")
exec gcloud compute tpus tpu-vm ssh "${TPU:?name of the TPU}" --zone "${ZONE:?its zone}" \
  --worker all --command "cd ${FOLDER:-lmseg_jax} && $command"
