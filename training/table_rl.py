"""Commands of the RL arms of Tables 3, 10 and 11. `syvla-tables --list` prints them; it does not run them.

Their rollouts come from a robot or a simulator at the policy server, and each one's 0/1 reward from a person or from the
environment, so that no single command makes such a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.table_jobs import Job
from training.table_scales import Scale

RL_ARMS: dict[str, Mapping[str, Any]] = {
    "SyVLA": {},
    "SyVLA (all)": {},
    "w/o Expert Dataset": {"expert_mode": "none"},
    "w/o Similar Sample": {"expert_mode": "random"},
    "w/o Similar Retrieval": {"expert_mode": "random"},
    "w/ Standard Advantage": {"expert_advantages": "gae"},
}
"""The paper's row to options of `training/ppo.py`."""


def rl_jobs(row: str, scale: Scale, seed: int, measures: str) -> list[Job]:
    """Value warm-up, the RL run, and the server that its rollouts come from; empty for a row that is no RL arm of ours."""
    if row not in RL_ARMS:
        return []
    start = scale.run_folder("all", seed, measures)
    value, output = start / "value", start / "rl" / ("_".join(map(str, RL_ARMS[row].values())) or "similar")
    data = scale.robot_data(measures)
    warmup = ("--policy_path", str(start / "checkpoint"), "--robot_datasets", *data, "--output_dir", str(value))
    options = {
        "config": "training/recipes/tables/rl.yaml",
        "model_path": start / "checkpoint",
        "value_model_path": value,
        **RL_ARMS[row],
        "seed": seed,
        "output_dir": output,
    }
    words = [word for name, text in options.items() for word in (f"--{name}", str(text))]
    serve = ("--model", str(start / "checkpoint"), "--think", "on", "--record", str(output / "rollouts"))
    launcher = ("accelerate", "launch")
    return [
        Job("training.value_warmup", warmup, value, launcher=launcher),
        Job("training.ppo", (*words, "--robot_datasets", *data), output, launcher=launcher),
        Job("serving.serve_command", serve, output / "rollouts"),
    ]
