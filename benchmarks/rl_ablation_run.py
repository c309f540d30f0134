"""One run of `benchmarks.rl_ablation`: one arm with one seed, through the shipped `syvla.training.ppo`.

    python -m benchmarks.rl_ablation_run --arm similar --seed 0 --il IL --value VALUE --vectors VECTORS --dataset DATA \
        --output outputs/rl_ablation/runs/similar/seed0

Also measures imitation alone (`--arm il`), which trains nothing. Writes `result.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rl_robot import RobotPublisher, RobotSettings, success
from syvla.durable_files import write_json
from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.training.demo import CAMERAS, EMBODIMENT
from syvla.training.rl.objective_settings import unread_by

ARMS: dict[str, dict[str, Any]] = {
    "il": {},
    "similar": {"expert_mode": "similar"},
    "random": {"expert_mode": "random"},
    "none": {"expert_mode": "none"},
    "gae": {"expert_mode": "similar", "expert_advantages": "gae"},
    "imitation": {"expert_mode": "similar", "objective": "imitation"},
    "recap": {"expert_mode": "similar", "objective": "recap", "value_fit_max_steps": 200},
    "nft": {"expert_mode": "similar", "objective": "nft", "value_fit_max_steps": 200},
}
"""Options of `syvla-ppo` by arm; `il` is the policy that all others start from. "recap" and "nft" fit the value
model to failures first; the others are as the committed figures were measured."""

ROLLOUT_RUN = 1000
"""Rollouts use the evaluation seeds of runs from this number on, evaluation those below: they share no start."""


def rollout_seeds(seed: int, version: int, count: int) -> list[int]:
    """Environment seeds of the rollouts that the policy of `version` makes in the run of `seed`."""
    return evaluation_seeds(ROLLOUT_RUN + 100 * seed + version, count)


def robot_data(dataset: Path) -> str:
    """The demonstrations as the commands take them; thoughts are left out, since neither rollouts nor evaluation think."""
    return json.dumps({"path": str(dataset), "embodiment": EMBODIMENT, "cameras": CAMERAS, "thought_source": None})


def trainer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command line of `syvla-ppo`, as names and values."""
    output = arguments.output
    options = {
        "model_path": arguments.il,
        "value_model_path": arguments.value,
        "retrieval_path": arguments.vectors,
        "encoder": f"policy:{arguments.il}",
        "robot_datasets": robot_data(arguments.dataset),
        "rollout_cameras": json.dumps(CAMERAS),
        "rollouts_path": output / "rollouts",
        "output_dir": output / "trainer",
        "decision_steps": arguments.replan_steps,
        "seed": arguments.seed,
        "max_rl_updates": arguments.updates,
        "rollouts_per_update": arguments.rollouts,
        "steps_per_update": arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "num_flow_samples": arguments.flow_samples,
        "learning_rate": arguments.learning_rate,
        "cliprange": arguments.cliprange,
        "num_value_only_steps": arguments.value_only_steps,
        # As the committed figures were measured.
        "value_fit_max_steps": 0,
        "min_advantage_spread": 0,
        "intention_decoupling": False,
        # A rollout that reaches the time limit has failed: the rewarder says 0, and nothing is bootstrapped.
        "bootstrap_timeouts": False,
        "use_thoughts": False,
        # Equal gradient steps for all: no early stop, and no guard that would put an arm's policy back.
        "target_kl": 0,
        "guard_heldout_cfm": arguments.guard,
        "wait_timeout_s": 0,
        "heldout_share": 0.1,
        "logging_steps": arguments.logging_steps,
        "save_total_limit": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **ARMS[arguments.arm],
    }
    unread = unread_by(str(options.get("objective", "ppo")))
    return {name: value for name, value in options.items() if name not in unread}


def train(arguments: argparse.Namespace, settings: RobotSettings) -> dict[str, Any]:
    """Trains the arm, with rollouts by the robot in between. Returns what became of it."""
    from syvla.training.ppo import RLDataArguments
    from syvla.training.ppo import train as train_ppo
    from syvla.training.rl.config import SyVLAPPOConfig
    from syvla.training.run.arguments import ModelArguments
    from syvla.training.run.recipe import parse_recipe

    updates = arguments.updates

    def measure(version: int, folder: Path) -> Mapping[str, Any]:
        episodes = arguments.episodes if version == updates else arguments.curve_episodes
        return success(folder, arguments.seed, episodes, settings) if version > 0 and episodes else {}

    publisher = RobotPublisher(
        arguments.output / "policies",
        updates=updates,
        rollouts=arguments.output / "rollouts",
        rollout_seeds=lambda version: rollout_seeds(arguments.seed, version, arguments.rollouts),
        settings=settings,
        measure=measure,
    )
    words = [text for name, value in trainer_options(arguments).items() for text in (f"--{name}", str(value))]
    trainer = train_ppo(*parse_recipe((ModelArguments, RLDataArguments, SyVLAPPOConfig), words), publisher=publisher)
    version = trainer.rl.version
    final = publisher.curve[version]
    if final.get("episodes") != arguments.episodes:  # an update was refused, so that there was no last version
        final = success(publisher.root / f"v{version:04d}", arguments.seed, arguments.episodes, settings)
    return {
        **final,
        "curve": {str(v): found for v, found in publisher.curve.items() if found},
        "updates": trainer.rl.history,
        "heldout": [trainer.rl.baseline_cfm, *(update["policy/cfm_heldout"] for update in trainer.rl.history)],
        "gradient_steps": trainer.state.global_step,
        "log": [_finite(entry) for entry in trainer.state.log_history if "loss" in entry],
    }


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The log line's numbers as JSON knows them."""
    return {k: v if math.isfinite(v) else None for k, v in entry.items() if isinstance(v, (int, float))}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", required=True, choices=tuple(ARMS))
    parser.add_argument(
        "--seed", required=True, type=int, help="of training and rollouts, and of the evaluation's starts"
    )
    parser.add_argument("--il", required=True, type=Path, help="checkpoint of imitation learning")
    parser.add_argument("--value", required=True, type=Path, help="its warmed-up value model")
    parser.add_argument("--vectors", required=True, type=Path, help="folder of syvla-encode")
    parser.add_argument("--dataset", required=True, type=Path, help="demonstrations")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--updates", type=int, default=2, help="updates")
    parser.add_argument("--rollouts", type=int, default=16, help="rollouts per update")
    parser.add_argument("--steps", type=int, default=40, help="gradient steps per update")
    parser.add_argument("--batch", type=int, default=16, help="samples per step, rollout and expert samples together")
    parser.add_argument("--flow_samples", type=int, default=4, help="points of the flow per sample")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--cliprange", type=float, default=0.2)
    parser.add_argument("--value_only_steps", type=int, default=0)
    parser.add_argument("--guard", type=float, default=1e6, help="guard_heldout_cfm; large: every update is published")
    parser.add_argument("--episodes", type=int, default=60, help="evaluation episodes of the last policy")
    parser.add_argument("--curve_episodes", type=int, default=20, help="the first of them, for those in between")
    parser.add_argument("--max_steps", type=int, default=RobotSettings.max_steps, help="control steps per episode")
    parser.add_argument("--replan_steps", type=int, default=RobotSettings.replan_steps)
    parser.add_argument("--logging_steps", type=int, default=5)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the arm and writes `result.json`; returns the exit status."""
    import torch

    torch.set_num_threads(1)  # the tiny model gains nothing from more
    arguments = build_parser().parse_args(argv)
    settings = RobotSettings(max_steps=arguments.max_steps, replan_steps=arguments.replan_steps)
    started = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.arm == "il":
        result = success(arguments.il, arguments.seed, arguments.episodes, settings)
    else:
        result = train(arguments, settings)
    facts = {"arm": arguments.arm, "seed": arguments.seed, "seconds": round(time.monotonic() - started, 1)}
    write_json(arguments.output / "result.json", {**facts, **result}, allow_nan=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
