#!/usr/bin/env bash
# Installs LeRobot and the bridge into an environment of their own and runs all checks there, on the CPU.
#   integrations/lerobot_policy_server/run_checks.sh [FOLDER FOR THE ENVIRONMENT] [PYTEST ARGUMENTS]
#
# PYTHON: Python 3.12 or newer. TORCH: what to install first; on Linux it usually comes as a CUDA build of several GB.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=${1:-.venv-lerobot-server}
shift || true
read -ra torch <<< "${TORCH:-torch==2.9.1 torchvision==0.24.1}"
test -x "$environment/bin/python" || "${PYTHON:-python3.12}" -m venv "$environment"
pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "${torch[@]}" 'setuptools>=77,<82'
"${pip[@]}" "${torch[@]}" -e . -e 'integrations/lerobot_policy_server[test]'
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=$(realpath "$environment/bin/python")
cd integrations/lerobot_policy_server
"$python" -m pytest "$@"
