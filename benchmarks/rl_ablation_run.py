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
from syvla.training.paper_tables.scales import STATISTICS_TOLERANCE
from syvla.training.rl.objective_settings import unread_by

VALUE_FIT = {"value_fit_max_steps": 200}
TAKEOVERS = ("dagger", "both")
"""Arms in whose rollouts the scripted expert takes over from a policy that has not succeeded in time."""

ARMS: dict[str, dict[str, Any]] = {
    "il": {},
    "similar": {"expert_mode": "similar"},
    "random": {"expert_mode": "random"},
    "none": {"expert_mode": "none"},
    "gae": {"expert_mode": "similar", "expert_advantages": "gae"},
    "imitation": {"expert_mode": "similar", "objective": "imitation"},
    "continued": {"expert_mode": "random", "same_task": False, "objective": "imitation"},
    "near_zero": {"expert_mode": "similar", "advantage_clip": 1e-3},
    "dagger": {"expert_mode": "similar", "objective": "dagger"},
    "both": {"expert_mode": "similar"},
    "recap": {"expert_mode": "similar", "objective": "recap", **VALUE_FIT},
    "nft": {"expert_mode": "similar", "objective": "nft", **VALUE_FIT},
    "pi_rl": {"expert_mode": "none", "ratio_method": "flow_sde", **VALUE_FIT},
    "simplevla_rl": {
        "expert_mode": "none",
        "ratio_method": "flow_sde",
        "rollout_advantages": "group",
        "advantage_clip": 4.0,  # of 16 rollouts no standardized reward lies further away
    },
}
"""Options of `syvla-ppo` by arm; `il` is the policy that all others start from. The first six are those of the committed
figures. `pi_rl` and `simplevla_rl` are variants of our own trainer after Pi-RL and SimpleVLA-RL, not those programs: what is
told apart is the ratio, the noise in rollouts, the advantages, and that there are no expert samples. No arm has a KL term."""

ROLLOUT_RUN = 1000
"""Rollouts use the evaluation seeds of runs from this number on, evaluation those below: they share no start."""


def rollout_seeds(seed: int, version: int, count: int) -> list[int]:
    """Environment seeds of the rollouts that the policy of `version` makes in the run of `seed`."""
    return evaluation_seeds(ROLLOUT_RUN + 100 * seed + version, count)


def robot_data(dataset: Path, *, thoughts: bool = False) -> str:
    """The demonstrations as the commands take them; thoughts are left out where neither rollouts nor evaluation think."""
    left_out = {} if thoughts else {"thought_source": None}
    return json.dumps({"path": str(dataset), "embodiment": EMBODIMENT, "cameras": CAMERAS, **left_out})


def trainer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command line of `syvla-ppo`, as names and values."""
    output = arguments.output
    datasets = arguments.all_data or arguments.dataset if arguments.arm == "continued" else arguments.dataset
    options = {
        "model_path": arguments.il,
        "value_model_path": arguments.value,
        "retrieval_path": arguments.vectors,
        "encoder": f"policy:{arguments.il}",
        "statistics_tolerance": STATISTICS_TOLERANCE,  # of several tasks' common statistics those of one differ
        "robot_datasets": [robot_data(dataset, thoughts=bool(arguments.think)) for dataset in datasets],
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
        "value_fit_max_steps": arguments.value_fit_max_steps,
        "min_advantage_spread": 0,  # equal gradient steps for all, whatever the advantages say
        "intention_decoupling": bool(arguments.decoupling),
        # A rollout that reaches the time limit has failed: the rewarder says 0, and nothing is bootstrapped.
        "bootstrap_timeouts": False,
        "use_thoughts": bool(arguments.think),
        # Equal gradient steps for all: no early stop, and no guard that would put an arm's policy back.
        "target_kl": 0,
        "guard_heldout_cfm": arguments.guard,
        "wait_timeout_s": 0,
        "heldout_share": 0.1,
        "same_task": bool(arguments.same_task),
        "logging_steps": arguments.logging_steps,
        "save_total_limit": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **ARMS[arguments.arm],
    }
    unread = unread_by(str(options.get("objective", "ppo")), str(options.get("rollout_advantages", "gae")))
    if arguments.arm in ("dagger", "imitation", "continued") or "rollout_advantages" in options:
        unread |= {"value_model_path"}
    return {name: value for name, value in options.items() if name not in unread}


def command_words(options: Mapping[str, Any]) -> list[str]:
    """A command line; a list or tuple is an option with several values."""
    words: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


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
        return success(folder, starts(arguments), episodes, settings) if version > 0 and episodes else {}

    publisher = RobotPublisher(
        arguments.output / "policies",
        updates=updates,
        rollouts=arguments.output / "rollouts",
        rollout_seeds=lambda version: rollout_seeds(arguments.seed, version, arguments.rollouts),
        settings=settings,
        measure=measure,
    )
    words = command_words(trainer_options(arguments))
    trainer = train_ppo(*parse_recipe((ModelArguments, RLDataArguments, SyVLAPPOConfig), words), publisher=publisher)
    version = trainer.rl.version
    final = publisher.curve[version]
    if final.get("episodes") != arguments.episodes:  # an update was refused, so that there was no last version
        final = success(publisher.root / f"v{version:04d}", starts(arguments), arguments.episodes, settings)
    return {
        **final,
        "curve": {str(v): found for v, found in publisher.curve.items() if found},
        "rollouts": {str(v): dict(made) for v, made in publisher.made.items()},
        "updates": trainer.rl.history,
        "heldout": [trainer.rl.baseline_cfm, *(update["policy/cfm_heldout"] for update in trainer.rl.history)],
        "gradient_steps": trainer.state.global_step,
        "log": [_finite(entry) for entry in trainer.state.log_history if "loss" in entry],
    }


def starts(arguments: argparse.Namespace) -> int:
    """Number of the evaluation run on whose starts this one is measured."""
    return int(arguments.starts if arguments.starts is not None else arguments.seed)


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
    parser.add_argument("--dataset", required=True, type=Path, nargs="+", help="demonstrations")
    parser.add_argument("--all_data", type=Path, nargs="*", help="of the arm continued, if more than --dataset")
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
    parser.add_argument("--task", default=RobotSettings.task, help="of rollouts and evaluation")
    parser.add_argument("--split", default=RobotSettings.split, help="in_domain or ood, of rollouts and evaluation")
    parser.add_argument("--starts", type=int, help="evaluation run whose starts are used; default: that of the seed")
    parser.add_argument(
        "--think", type=int, choices=(0, 1), default=0, help="thoughts in rollouts, evaluation and updates"
    )
    parser.add_argument("--decoupling", type=int, choices=(0, 1), default=0, help="Intention Decoupling in the update")
    parser.add_argument("--value_fit_max_steps", type=int, default=0, help="value-only steps before each update")
    parser.add_argument(
        "--same_task", type=int, choices=(0, 1), default=1, help="experts with the rollout's instruction"
    )
    parser.add_argument("--takeover_after", type=int, default=20, help="of the arms dagger and both, control steps")
    parser.add_argument("--max_steps", type=int, default=RobotSettings.max_steps, help="control steps per episode")
    parser.add_argument("--replan_steps", type=int, default=RobotSettings.replan_steps)
    parser.add_argument("--logging_steps", type=int, default=5)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the arm and writes `result.json`; returns the exit status."""
    import torch

    torch.set_num_threads(1)  # the tiny model gains nothing from more
    arguments = build_parser().parse_args(argv)
    settings = RobotSettings(
        task=arguments.task,
        max_steps=arguments.max_steps,
        replan_steps=arguments.replan_steps,
        split=arguments.split,
        think=bool(arguments.think),
        takeover_after=arguments.takeover_after if arguments.arm in TAKEOVERS else None,
    )
    started = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.arm == "il":
        result = success(arguments.il, starts(arguments), arguments.episodes, settings)
    else:
        result = train(arguments, settings)
    facts = {"arm": arguments.arm, "seed": arguments.seed, "seconds": round(time.monotonic() - started, 1)}
    write_json(arguments.output / "result.json", {**facts, **result}, allow_nan=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
