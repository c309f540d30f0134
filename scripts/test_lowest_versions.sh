#!/usr/bin/env bash
# Runs the model and processor tests with the oldest transformers that pyproject.toml admits, in an environment of its own.
#   scripts/test_lowest_versions.sh [FOLDER FOR THE ENVIRONMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-lowest}
test -x "$environment/bin/python" || python3 -m venv "$environment"
# transformers 5.4 needs torchvision for its image processors, and the two must match.
read -ra torch <<< "${TORCH:-torch==2.14.1 torchvision==0.29.1}"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check "${torch[@]}"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test]' 'transformers==5.4.0'
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$environment/bin/python" -m pytest tests/modeling_syvla tests/processing tests/training
