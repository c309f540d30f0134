#!/usr/bin/env bash
# Makes a virtual environment for one simulator and the light client: `syvla-eval --server URL` runs in it against a policy
# server that has torch and the model. For simulators whose pins cannot share an environment with them.
#   scripts/make_simulator_environment.sh metaworld|aloha|libero|adroit|tabletop [FOLDER]
# FOLDER is .venv-NAME by default, relative to the repository; PYTHON chooses the interpreter (3.11 or newer). None of the
# simulators brings torch: LIBERO's package asks for it, but its environments do not need it. Recording (`syvla-record`)
# needs the whole package.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?expected the name of a simulator: metaworld, aloha, libero, adroit or tabletop}
folder=${2:-.venv-$name}

# Requirements of extras, one a line, as pyproject.toml has them.
requirements() {
    "$folder/bin/python" - "$@" <<'PYTHON'
import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print("\n".join(line for name in sys.argv[1:] for line in extras[name]))
PYTHON
}

case $name in
    metaworld) extras=(sim metaworld) unresolved=() ;;
    aloha) extras=(sim) unresolved=('gym-aloha==0.1.5') ;; # its scene files only
    libero) extras=(sim libero) unresolved=('hf-libero==0.1.4' 'robosuite==1.4.0' 'bddl==1.0.1') ;;
    adroit) extras=(sim adroit) unresolved=() ;;
    tabletop) extras=(sim) unresolved=() ;;
    *) echo "expected metaworld, aloha, libero, adroit or tabletop, got '$name'" >&2; exit 2 ;;
esac

"${PYTHON:-python3}" -m venv "$folder"
install() { "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts "$@"; }
client=('numpy>=1.26,<3' 'pillow>=10.1' 'websockets>=15,<18' 'msgpack>=1.0.8,<2' 'httpx>=0.27,<1' 'tenacity>=8.3,<10' 'pyyaml>=6' 'wrapt>=1.16,<3')
requirements "${extras[@]}" | install -r /dev/stdin "${client[@]}"
if [ ${#unresolved[@]} -gt 0 ]; then install --no-deps "${unresolved[@]}"; fi
install --no-deps -e .

echo "made $folder; evaluate with:"
echo "  $folder/bin/syvla-eval --server ws://HOST:PORT --env $name --task TASK"
