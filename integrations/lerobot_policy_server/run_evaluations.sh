#!/usr/bin/env bash
# Evaluates small random LeRobot policies through the bridge: every policy in every environment, by `syvla-eval --server`.
#   LEROBOT_PYTHON=.venv-lerobot-server/bin/python PYTHON=.venv/bin/python \
#     integrations/lerobot_policy_server/run_evaluations.sh OUTPUT
# LEROBOT_PYTHON has LeRobot, PYTHON has SyVLA with its simulators (extras sim, aloha and serve).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bridge=$root/integrations/lerobot_policy_server
output=$(realpath -m "$1")
lerobot=$(realpath -s "$LEROBOT_PYTHON")
python=$(realpath -s "$PYTHON")
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$root:$bridge
mkdir -p "$output"
for robot in ${ROBOTS:-tabletop aloha}; do
    [ "$robot" = tabletop ] && task=lift || task=transfer_cube
    for kind in ${KINDS:-act smolvla pi0 pi05 xvla diffusion groot wall_x}; do
        options=()
        if [ "$kind" = diffusion ]; then options=(--repeat-observation); fi
        test -d "$output/${kind}_$robot" || "$lerobot" "$bridge/tests/small_policies.py" "$output" "$robot" "$kind"
        cd "$output"
        "$lerobot" "$bridge/tests/serve_small.py" --policy "${kind}_$robot" --device cpu --port 0 "${options[@]}" \
            > "$output/server.log" 2>&1 &
        server=$!
        trap 'kill $server 2>/dev/null || true' EXIT
        until url=$(grep -o 'ws://[0-9.:]*' "$output/server.log"); do
            kill -0 "$server" || { cat "$output/server.log"; exit 1; }
            sleep 1
        done
        "$python" -m syvla.evaluation.closed_loop --server "$url" --model "$kind" --env "$robot" --task "$task" --episodes 2 \
            --env-option image_size=96 --env-option max_steps=40 --output "$output/results/${kind}_$robot" --quiet
        kill "$server"
        wait "$server" || true
    done
done
"$python" - "$output/results" <<'TABLE'
import json
import sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).glob("*/summary.json")):
    summary = json.loads(path.read_text())
    total, latency = summary["total"], summary["latency"]
    print(f"{path.parent.name}: {total['successes']} of {total['episodes']}, replan {summary['settings']['replan_steps']}, "
          f"{latency['p50']:.2f} s a call, {summary['failures']}")
TABLE
