#!/usr/bin/env bash
# Installs lmms-eval with what its image tasks use, and without the rest of its 73 requirements.
#   scripts/install_lmms_eval.sh [PYTHON] [CONSTRAINTS FILE]
# For a Python that has SyVLA with its extra `train`.
set -euo pipefail
python=${1:-python}
constraints=()
if [ -n "${2:-}" ]; then constraints=(--constraint "$2"); fi

install() {
    "$python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts ${constraints[@]+"${constraints[@]}"} "$@"
}

# It imports a private module that is gone from filelock 4.3. Its command prints its scores with pytablewriter, which asks
# for an older python-dateutil than it needs. A package comes after what it needs, so that where it can be imported it works.
install 'filelock<4.3' 'evaluate>=0.4' loguru pytz sacrebleu tenacity
install --no-deps pytablewriter dataproperty mbstrdecoder pathvalidate tabledata tcolorpy typepy 'chardet>=3.0.4,<6'
install --no-deps 'lmms-eval==0.7.3'
