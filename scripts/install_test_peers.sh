#!/usr/bin/env bash
# Installs what the suite tests against but pip cannot resolve beside the newest torch: packages whose pins are narrower
# than what they run with, so they go in without their requirements and without pip's report on them. What cannot be
# installed is one line with its reason, and its tests skip. Exit status: 0 all installed, 3 something is missing.
#   scripts/install_test_peers.sh [PYTHON] [CONSTRAINTS FILE]
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
constraints=()
if [ -n "${2:-}" ]; then constraints=(--constraint "$2"); fi
status=0
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

install() {
    "$python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts ${constraints[@]+"${constraints[@]}"} "$@"
}

# peer NAME COMMAND...: runs the commands in turn; the first that fails says why on one line. A package comes after what
# it needs, so that where it can be imported it also works.
peer() {
    local name=$1 step
    shift
    for step in "$@"; do
        if ! eval "$step" 2> "$errors"; then
            echo "not installed: $name ($("$python" scripts/pip_failure.py < "$errors")); its tests skip"
            status=3
            return
        fi
    done
}

peer lmms-eval "scripts/install_lmms_eval.sh '$python' '${2:-}'"

# openpi's client asks for numpy < 2 and runs with numpy 2.
peer openpi-client "install dm-tree" "install --no-deps 'openpi-client==0.1.2'"

# Simulators. hf-libero and robosuite ask for training libraries, a display's OpenCV and a compiler that their environments
# do not need; of gym-aloha only the scene files are used, without dm-control.
peer metaworld "install -e '.[metaworld]'"
peer LIBERO "install -e '.[libero]'" "install --no-deps 'hf-libero==0.1.4' 'robosuite==1.4.0' 'bddl==1.0.1'"
peer gymnasium-robotics "install -e '.[adroit]'"
peer gym-aloha "install --no-deps 'gym-aloha==0.1.5'"

# TRL, whose trainers train the text model (3.4 MB; it needs nothing that the extras do not bring).
peer TRL "install --no-deps 'trl>=1.16,<2'"

# DeepSpeed, for ZeRO-2 on CPU processes; its kernels are not built.
peer DeepSpeed "DS_BUILD_OPS=0 install --no-build-isolation 'deepspeed>=0.17,<1'"

exit $status
