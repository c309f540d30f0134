"""What fewer flow steps cost in accuracy: `python -m benchmarks.flow_steps --checkpoint outputs/demo/checkpoint`.

The checkpoint is one of a trained policy, such as that of `make demo`, which also drives the simulator to the observations
that are compared. For each solver, time grid and number of evaluations: the difference between its action chunks and those
of 500 uniform Euler steps, on the same observations, query states and noise, in standard deviations of the recorded
actions. Two draws of the noise are the yardstick: an error far below theirs is lost in what the policy leaves to chance
anyway. With `--episodes` also the success rate in closed loop. Writes a figure beside the JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine_bound import describe_device, device_name
from benchmarks.reporting import print_table, write_section
from syvla.evaluation.closed_loop import evaluate_closed_loop, evaluation_seeds
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy

REFERENCE_STEPS = 500
LEAST_DEVIATION = 1e-3
"""Radians or meters; a dimension that stood still in the recordings has no scale to measure an error by."""

SOLVERS = ("euler:1", "euler:2", "euler:2.5", "ab2:1", "ab2:2", "ab2:2.5")
"""`flow_solver:flow_grid_power` of a configuration."""


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


def chunks(
    policy: Any, inputs: Any, intention: Any, num_steps: int, solver: str = "euler:1", first_seed: int = 0
) -> np.ndarray:
    """(B, T, D), in standard deviations of the recorded actions; D of them that move at all."""
    set_solver(policy, solver)
    seeds = range(first_seed, first_seed + len(inputs.states))
    actions = policy.denoise(inputs, intention, seeds=seeds, num_steps=num_steps)
    deviation = np.asarray(policy.processor.embodiments[policy.embodiment]["statistics"]["action"]["std"])
    moves = deviation > LEAST_DEVIATION
    return np.asarray(actions[..., moves] / deviation[moves])


def set_solver(policy: Any, solver: str) -> None:
    """Gives a policy the solver and the grid of a text such as "ab2:2.5"."""
    config = policy.model.config
    config.flow_solver, power = solver.split(":")
    config.flow_grid_power = float(power)


def distance(actions: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Root mean square over all, 99th percentile, and the largest difference."""
    error = np.abs(actions - reference)
    return {
        "rms": float(np.sqrt(np.square(error).mean())),
        "p99": float(np.quantile(error, 0.99)),
        "max": float(error.max()),
    }


def draw(path: Path, errors: Mapping[str, Mapping[str, Mapping[str, float]]], chance: float) -> None:
    """Error against evaluations, a line for each solver and grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2))
    for solver, by_steps in errors.items():
        method, power = solver.split(":")
        steps = [int(n) for n in by_steps]
        style = "-" if method == "euler" else "--"
        axis.plot(
            steps, [by_steps[str(n)]["rms"] for n in steps], style, marker="o", label=f"{method}, grid power {power}"
        )
    axis.axhline(chance, color="gray", linewidth=1, linestyle=":", label="another draw of the noise")
    axis.set(xlabel="evaluations of the flow", ylabel="rms error (standard deviations of the actions)", yscale="log")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a trained policy")
    parser.add_argument("--env", default="tabletop")
    parser.add_argument("--task", default="lift")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 10, 20], help="evaluations to compare"
    )
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), metavar="METHOD:POWER", help="solvers and grids")
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
    chance = distance(chunks(policy, inputs, intention, REFERENCE_STEPS, first_seed=10_000), reference)
    errors: dict[str, dict[str, dict[str, float]]] = {}
    success: dict[str, dict[str, float]] = {}
    rows: list[list[Any]] = []
    for solver in options.solvers:
        errors[solver], success[solver] = {}, {}
        for n in options.steps:
            error = errors[solver][str(n)] = distance(chunks(policy, inputs, intention, n, solver), reference)
            if options.episodes:
                success[solver][str(n)] = _success(options, n, solver)
            rate = [success[solver][str(n)]] if options.episodes else []
            rows.append([solver, n, *error.values(), error["rms"] / chance["rms"], *rate])
    print(
        f"{len(observations)} observations of {options.observe} episodes; errors in standard deviations of the actions"
    )
    header = ["solver:power", "evaluations", "rms error", "99%", "largest", "of chance"]
    print_table([*header, *(["success"] if options.episodes else [])], rows)
    print(f"two draws of the noise at {REFERENCE_STEPS} steps: rms {chance['rms']:.3f}, largest {chance['max']:.3f}")
    result = {
        "checkpoint": options.checkpoint,
        "observations": len(observations),
        "reference_steps": REFERENCE_STEPS,
        "rms_between_noise_draws": chance["rms"],
        "max_between_noise_draws": chance["max"],
        "errors": errors,
        "closed_loop_episodes": options.episodes,
        "closed_loop_success": success,
    }
    device = str(policy.model.device.type)
    path = write_section("flow_steps", device_name(device), result, describe_device(device))
    draw(path.with_suffix(".png"), errors, chance["rms"])
    print(path)


def _success(options: argparse.Namespace, num_steps: int, solver: str) -> float:
    with closing(make_environment(options.env, options.task)) as environment:
        policy = load_policy(options.checkpoint, environment, device=options.device, num_steps=num_steps)
    set_solver(policy, solver)
    result = evaluate_closed_loop(
        policy,
        options.env,
        options.task,
        episodes=options.episodes,
    )
    return result.total.rate


if __name__ == "__main__":
    main()
