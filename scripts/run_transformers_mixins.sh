#!/usr/bin/env bash
# Runs transformers' own common model tests (ModelTesterMixin) on the tiny models, from the source distribution of the
# installed version, and prints a table of what fails and why; docs/contracts.md holds it. Nothing else of it is kept.
# GenerationTesterMixin is in no distribution on PyPI. Exit status: 0 if all that fails is on the list of what does not apply.
#   scripts/run_transformers_mixins.sh [PYTHON] [--write docs/contracts.md]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-.venv/bin/python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$("$python" -c 'import transformers; print(transformers.__version__)')
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest "$folder" "transformers==$version"
tar -xzf "$folder/transformers-$version.tar.gz" -C "$folder" "transformers-$version/tests"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/packages" parameterized
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTHONPATH="$PWD:$PWD/tests/support:$folder/packages" "$python" scripts/run_transformers_mixins.py "$folder/transformers-$version" "${@:2}"
