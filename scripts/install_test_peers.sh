#!/usr/bin/env bash
# Installs what the suite tests against but pip cannot resolve beside the newest torch: packages whose pins are narrower
# than what they run with. Their tests skip, with the reason, where this script has not run. pip reports these pins as
# lines that begin with "ERROR"; the script has failed only if its exit status is not 0.
#   scripts/install_test_peers.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# lmms-eval's five tasks need these alone of its 73 requirements (82 MB instead of 955 MB).
install --no-deps 'lmms-eval==0.7.3'
install 'filelock<4.3' # it imports a private module that is gone from filelock 4.3
install 'evaluate>=0.4' loguru pytz sacrebleu tenacity

# openpi's client asks for numpy < 2 and runs with numpy 2.
install --no-deps 'openpi-client==0.1.2'
install dm-tree

# Simulators. hf-libero and robosuite ask for training libraries, a display's OpenCV and a compiler that their environments
# do not need; of gym-aloha only the scene files are used, without dm-control.
install -e '.[metaworld,libero]'
install --no-deps 'gym-aloha==0.1.5' 'hf-libero==0.1.4' 'robosuite==1.4.0' 'bddl==1.0.1'

# DeepSpeed, for ZeRO-2 on CPU processes; its kernels are not built.
DS_BUILD_OPS=0 install --no-build-isolation 'deepspeed>=0.17,<1'
