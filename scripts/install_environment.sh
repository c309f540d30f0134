#!/usr/bin/env bash
# Makes a virtual environment with SyVLA (editable), what its demo and tests need, and torch; says only what went wrong.
#   scripts/install_environment.sh [FOLDER]     # .venv by default
# Environment variables:
#   PYTHON       interpreter of a new environment (python3)
#   CONSTRAINTS  "tested": constraints/python-X.Y.txt, the exact set that passed the whole suite with this Python (default);
#                "none": the newest releases that pyproject.toml admits, also where older ones are installed; or a file
#   TORCH        torch's requirement, such as torch==2.14.1; by default the constraints' version
#   EXTRA        what of pyproject.toml is installed: test (default), play or train
# The constraints that were used are left in FOLDER/constraints.txt, what pip said in FOLDER/install.log.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv}
interpreter=${PYTHON:-python3}
wanted=${CONSTRAINTS:-tested}
torch=${TORCH:-}
extra=${EXTRA:-test}

fail() {
    echo "SyVLA was not installed: $*" >&2
    exit 1
}

if ! [ -x "$folder/bin/python" ]; then
    "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "it needs Python 3.11 or newer, but $interpreter is $("$interpreter" --version 2>&1);" \
            "name a newer one: make PYTHON=python3.12 ..."
    "$interpreter" -m venv "$folder" || fail "$interpreter cannot make a virtual environment in $folder"
fi
python=$folder/bin/python
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run; delete $folder"

upgrade=()
case $wanted in
    none) constraints=/dev/null upgrade=(--upgrade --upgrade-strategy eager) ;;
    tested) constraints=constraints/python-$version.txt ;;
    *) constraints=$wanted ;;
esac
if ! [ -r "$constraints" ]; then
    known=$(for file in constraints/python-*.txt; do basename "$file" .txt | cut -d- -f2; done | paste -sd ' ' -)
    fail "there is no $constraints, so nothing is known to work with Python $version (tested: $known);" \
        "name another Python (make PYTHON=python3.12 VENV=.venv-3.12 ...) or take the newest releases (make CONSTRAINTS=none ...)"
fi
# Another torch than the tested one was asked for: the rest stays as tested.
filter='^$'
if [ -n "$torch" ]; then filter+='|^torch=='; fi
# Gradio takes pillow below 13 and decides on what belongs to it; the rest stays as tested.
if [ "$extra" = play ]; then filter+='|^pillow=='; fi
grep -Ev "$filter" "$constraints" > "$folder/constraints.txt"

echo "Installing into $folder (Python $version, $([ "$wanted" = none ] && echo newest releases || echo "$constraints")) ..."
for requirement in "${torch:-torch}" ".[$extra]"; do
    if [ "$requirement" = ".[$extra]" ]; then arguments=(-e ".[$extra]"); else arguments=("$requirement"); fi
    "$python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts ${upgrade[@]+"${upgrade[@]}"} \
        --constraint "$folder/constraints.txt" "${arguments[@]}" > "$folder/install.log" 2>&1 ||
        fail "$requirement: $("$python" scripts/pip_failure.py < "$folder/install.log") (all of it: $folder/install.log)"
done
