#!/usr/bin/env bash
# What a GPU shows, from a bare machine with Python 3.11 or newer: environment, then `python -m benchmarks.gpu_checks`.
#
#   scripts/gpu_checks.sh              # a machine with a CUDA device; below nine minutes once packages are there
#   scripts/gpu_checks.sh --rehearse   # the same on a CPU with small models
#
# VENV names another environment, TORCH another torch (a CUDA build such as TORCH=torch==2.14.1).
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
make --no-print-directory VENV="$VENV" ${TORCH:+TORCH="$TORCH"} "$VENV/.installed"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$VENV/bin/python" -m benchmarks.gpu_checks "$@"
