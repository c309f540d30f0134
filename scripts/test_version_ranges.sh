#!/usr/bin/env bash
# Tests the ends of the ranges in pyproject.toml that `make test` does not: the oldest release of everything at once, and
# each end of the range of PyAV, whose API changes with most of its releases. `make test` and `make test-newest` run the
# newest.
#   scripts/test_version_ranges.sh [oldest|video]...      # both by default
# PYTHON chooses the interpreter (python3); the oldest releases have no wheels for Python 3.13. Environments: .venv-oldest,
# .venv-video.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
interpreter=${PYTHON:-python3}

oldest() {
    local python=.venv-oldest/bin/python
    test -x $python || "$interpreter" -m venv .venv-oldest
    # uv resolves to the oldest release that each requirement of pyproject.toml admits, which pip cannot.
    $python -m pip install -qq --disable-pip-version-check uv
    # The image processors of transformers 5.4 need torchvision; newer ones do without.
    $python -m uv pip install --quiet --python $python --resolution lowest-direct -e '.[test]' 'torchvision>=0.22'
    $python -m pytest -rs -n 2 --dist worksteal tests
}

# Oldest and newest major release of PyAV that pyproject.toml admits, as pip's requirements.
video_ends() {
    "$1" - <<'PYTHON'
import re, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
low, high = re.fullmatch(r"av>=(\d+),<(\d+)", next(line for line in extras["train"] if line.startswith("av>"))).groups()
print(f"av=={low}.0.0 av=={int(high) - 1}.*")
PYTHON
}

video() {
    local python=.venv-video/bin/python requirement files
    PYTHON=$interpreter scripts/install_environment.sh .venv-video
    files=$(grep -rlE 'import av|VideoWriter|RobotDatasetWriter|EpisodeVideo|import record' tests --include='test_*.py')
    for requirement in $(video_ends $python); do
        $python -m pip install -qq --disable-pip-version-check --no-warn-conflicts "$requirement"
        echo "PyAV $($python -c 'import av; print(av.__version__)'):"
        # shellcheck disable=SC2086  # one argument per file
        $python -m pytest -n 2 --dist worksteal $files
    done
}

if [ $# -eq 0 ]; then set -- oldest video; fi
for part in "$@"; do
    case $part in
        oldest | video) $part ;;
        *) echo "expected oldest or video, got '$part'" >&2; exit 2 ;;
    esac
done
