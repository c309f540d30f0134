"""Policies, batches and command lines, made as LeRobot's tools make them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHUNK = 8  # of the tiny model


def policy_config(**fields: Any) -> Any:
    """Config of a policy on the CPU that stays on this machine."""
    from lerobot.policies.factory import make_policy_config

    return make_policy_config("syvla", device="cpu", push_to_hub=False, **fields)


def make(root: Path, config: Any) -> tuple[Any, Any, Any, Any]:
    """(policy, preprocessor, postprocessor, dataset), made as lerobot-train makes them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    meta = LeRobotDatasetMetadata("local/recording", root=root)
    deltas = {"action": [step / meta.fps for step in config.action_delta_indices]}
    dataset = LeRobotDataset("local/recording", root=root, delta_timestamps=deltas, video_backend="pyav")
    policy = make_policy(config, ds_meta=dataset.meta)
    pre, post = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    return policy, pre, post, dataset


def frames(dataset: Any, indices: list[int]) -> dict[str, Any]:
    """A batch as lerobot-train's data loader makes it."""
    from lerobot.utils.collate import lerobot_collate_fn

    return lerobot_collate_fn([dataset[i] for i in indices])


def observation(dataset: Any, index: int) -> dict[str, Any]:
    """What a policy sees when it acts: no actions, no index, one instruction."""
    item = dataset[index]
    kept = {key: value[None] for key, value in item.items() if key.startswith("observation.")}
    return {**kept, "task": [item["task"]]}


def run_tool(tool: str, *arguments: str, python_path: Path | None = None) -> str:
    """Runs one of LeRobot's command-line tools; returns what it printed, or fails with its last lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    program = Path(sys.executable).with_name(tool)
    result = subprocess.run(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert result.returncode == 0, f"{tool} {' '.join(arguments)}\n" + "\n".join(result.stdout.splitlines()[-40:])
    return result.stdout
