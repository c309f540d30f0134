#!/usr/bin/env bash
# Installs LeRobot, SyVLA and this policy into an environment of their own and runs all checks there, on the CPU.
#   integrations/lerobot_policy_syvla/run_checks.sh [FOLDER FOR THE ENVIRONMENT] [PYTEST ARGUMENTS]
#
# PYTHON: Python 3.12 or newer. TORCH: what to install first; on Linux it usually comes as a CUDA build of several GB, and
# pip's own settings (PIP_INDEX_URL, ...) choose another.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=${1:-.venv-lerobot}
shift || true
torch="torch==2.9.1 torchvision==0.24.1"
if [ "$(uname -m)" = x86_64 ]; then
    torch="$torch torchcodec==0.9.1" # the one built for this torch; it also needs FFmpeg's libraries, else LeRobot takes PyAV
fi
read -ra torch <<< "${TORCH:-$torch}"
test -x "$environment/bin/python" || "${PYTHON:-python3.12}" -m venv "$environment"
pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "${torch[@]}" 'setuptools>=77,<82'
"${pip[@]}" "${torch[@]}" -e '.[train,sim,peft,convert]' -e 'integrations/lerobot_policy_syvla[test]'
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$environment/bin/python" - <<'VERSIONS'
import platform
from importlib.metadata import version

names = "lerobot torch torchvision transformers datasets pandas pyarrow av peft accelerate numpy".split()
print(f"Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in names))
VERSIONS
cd integrations/lerobot_policy_syvla
python=$environment/bin/python
[ -x "$python" ] || python=$OLDPWD/$python
"$python" -m pytest "$@"
