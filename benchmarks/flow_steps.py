"""What fewer flow steps cost in accuracy: `python -m benchmarks.flow_steps --checkpoint outputs/demo/checkpoint`.

The checkpoint is one of a trained policy, such as that of `make demo`, which also drives the simulator to the observations
that are compared. For each number of Euler steps N: the difference between its action chunks and those of 50 steps, on the
same observations, query states and noise, in standard deviations of the recorded actions. Two draws of the noise at 50
steps are the yardstick: an error far below theirs is lost in what the policy leaves to chance anyway. With `--episodes`
also the success rate in closed loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks.machine_bound import describe_device, device_name
from benchmarks.reporting import print_table, write_section
from syvla.evaluation.closed_loop import evaluate_closed_loop, evaluation_seeds
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy

REFERENCE_STEPS = 50


def visited(policy: Any, environment: Any, episodes: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Observations and instructions at the beginning of every chunk of `episodes` episodes."""
    observations: list[dict[str, Any]] = []
    instructions: list[str] = []
    for seed in evaluation_seeds(0, episodes):
        observation, info = environment.reset(seed=seed)
        ended = False
        while not ended:
            observations.append(observation)
            instructions.append(info["instruction"])
            chunk = policy.predict([observation], instructions[-1:], seeds=[len(observations)]).actions[0]
            for action in chunk:
                observation, _, terminated, truncated, _ = environment.step(action)
                if ended := terminated or truncated:
                    break
    return observations, instructions


def chunks(policy: Any, inputs: Any, intention: Any, num_steps: int, first_seed: int = 0) -> np.ndarray:
    """(B, T, D), in standard deviations of the recorded actions."""
    seeds = range(first_seed, first_seed + len(inputs.states))
    actions = policy.denoise(inputs, intention, seeds=seeds, num_steps=num_steps)
    deviation = policy.processor.embodiments[policy.embodiment]["statistics"]["action"]["std"]
    return actions / np.maximum(np.asarray(deviation), 1e-6)


def distance(actions: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Root mean square over all, and the largest difference."""
    error = actions - reference
    return {"rms": float(np.sqrt(np.square(error).mean())), "max": float(np.abs(error).max())}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a trained policy")
    parser.add_argument("--env", default="tabletop")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 5, 10, 20], help="flow steps to compare")
    parser.add_argument("--observe", type=int, default=5, help="episodes whose observations are compared")
    parser.add_argument("--episodes", type=int, default=0, help="episodes per number of steps in closed loop")
    parser.add_argument("--device")
    options = parser.parse_args(argv)
    with closing(make_environment(options.env, options.task)) as environment:
        policy: Any = load_policy(options.checkpoint, environment, device=options.device)
        observations, instructions = visited(policy, environment, options.observe)
    images, states = ([observation[part] for observation in observations] for part in ("images", "state"))
    inputs = policy.inputs(images, states, instructions)
    intention = policy.intention(inputs)
    reference = chunks(policy, inputs, intention, REFERENCE_STEPS)
    chance = distance(chunks(policy, inputs, intention, REFERENCE_STEPS, 10_000), reference)
    errors = {n: distance(chunks(policy, inputs, intention, n), reference) for n in options.steps}
    success = {n: _success(options, n) for n in options.steps} if options.episodes else {}
    header = ["flow steps", "rms error", "of chance", "largest", *(["success"] if success else [])]
    rows: list[list[Any]] = [
        [n, e["rms"], e["rms"] / chance["rms"], e["max"], *([success[n]] if success else [])] for n, e in errors.items()
    ]
    print(
        f"{len(observations)} observations of {options.observe} episodes; errors in standard deviations of the actions"
    )
    print_table(header, rows)
    print(f"two draws of the noise at {REFERENCE_STEPS} steps: rms {chance['rms']:.3f}, largest {chance['max']:.3f}")
    result = {
        "checkpoint": options.checkpoint,
        "observations": len(observations),
        "reference_steps": REFERENCE_STEPS,
        "rms_between_noise_draws": chance["rms"],
        "max_between_noise_draws": chance["max"],
        "errors": {str(n): error for n, error in errors.items()},
        "closed_loop_episodes": options.episodes,
        "closed_loop_success": {str(n): rate for n, rate in success.items()},
    }
    device = str(policy.model.device.type)
    print(write_section("flow_steps", device_name(device), result, describe_device(device)))


def _success(options: argparse.Namespace, num_steps: int) -> float:
    result = evaluate_closed_loop(
        options.checkpoint,
        options.env,
        options.task,
        episodes=options.episodes,
        policy_options={"num_steps": num_steps, "device": options.device},
    )
    return result.total.rate


if __name__ == "__main__":
    main()
