"""Which solver and grid suit flows in general: `python -m benchmarks.flow_policies`.

`benchmarks.flow_steps` asks one trained checkpoint. Here stand beside it

- small policies of three tasks and two chunk lengths, trained here with the real loss (`benchmarks.chunk_end_policy`: poses in
  place of pictures), on observations of held-out demonstrations;
- flows that are known exactly: of targets around a few smooth chunks of 50 actions in 14 dimensions, as where several ways
  lead to a goal, with a narrow and a wide spread around each. No network is trained for them.

For each solver, grid and number of evaluations: the root mean square difference to 500 uniform Euler steps from the same
noise, in standard deviations of the actions. `of ten` is that error as a share of ten uniform Euler steps', and its mean over
the flows is geometric, so that no flow counts for more. With `--episodes` also successes in closed loop. `--table` prints the
table of the committed file; a figure stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.chunk_end_policy import (
    Robot,
    Statistics,
    closed_loop,
    demonstrations,
    make_chunks,
    make_model,
    observation,
    train,
)
from benchmarks.reporting import RESULTS, print_table, write_result
from syvla.modeling_syvla.flow_matching import integrate
from syvla.modeling_syvla.flow_solver import FlowSolver

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

REFERENCE_STEPS = 500
SOLVERS = ("euler:1", "euler:2", "ab2:1", "ab2:2", "ab2:2.5")
EVALUATIONS = (3, 4, 5, 6, 8, 10)
BASELINE = ("euler:1", 10)
CONTROL_HZ = 40.0
HELD_OUT = 8  # demonstrations whose frames are compared
OBSERVATIONS = 64


def policy_flow(task: str, chunk_size: int, options: argparse.Namespace) -> tuple[Velocity, torch.Tensor, Any]:
    """A policy trained here: its velocity, noise (B, T, D), and what `closed_loop` takes besides episodes."""
    robot = Robot(task, CONTROL_HZ)
    episodes = demonstrations(robot, options.demonstrations + HELD_OUT)
    statistics = Statistics.of(episodes[HELD_OUT:])
    model = make_model("hold", chunk_size, seed=0)
    train(model, make_chunks(episodes[HELD_OUT:], statistics, chunk_size), steps=options.train_steps, batch=64, seed=0)
    states = make_chunks(episodes[:HELD_OUT], statistics, chunk_size).states
    states = states[torch.linspace(0, len(states) - 1, min(OBSERVATIONS, len(states))).long()]
    with torch.no_grad():
        context = model.encode_expert_context(*observation(model, states))

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        flow: torch.Tensor = model.expert.predict_velocity(x, t, context)
        return flow

    noise = torch.randn(len(states), chunk_size, 5, generator=torch.Generator().manual_seed(1))
    return velocity, noise, (model, statistics, robot)


def mixture_flow(
    spread: float, modes: int = 4, steps: int = 50, dimensions: int = 14
) -> tuple[Velocity, torch.Tensor, torch.Tensor]:
    """The exact flow to targets normally distributed around a few smooth chunks, another few for each observation.

    Around the chunk m_k, `x_t = (1 - t) e + t a` is normal with mean `t m_k` and variance `s = (1 - t)^2 + (t spread)^2`, and
    the expected `a - e` given x there is `m_k + (t spread^2 - (1 - t)) / s (x - t m_k)`; over the chunks it is weighted by
    their probabilities given x.

    Returns:
        The velocity, noise (B, T, D), and the chunks (B, modes, T, D).
    """
    generator = torch.Generator().manual_seed(0)
    waves = torch.arange(1, 4) * math.pi * torch.linspace(0, 1, steps)[:, None]  # (T, 3)
    amplitudes, phases = (torch.randn(OBSERVATIONS, modes, 1, dimensions, 3, generator=generator) for _ in range(2))
    centers = (amplitudes * torch.cos(waves[:, None, :] + 3 * phases)).sum(-1)  # (B, modes, T, D)
    centers = centers / centers.std()

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 + (t * spread) ** 2
        away = x[:, None] - t * centers
        chance = (-away.square().sum((2, 3), keepdim=True) / (2 * variance)).softmax(1)
        return (chance * (centers + (t * spread**2 - (1 - t)) / variance * away)).sum(1)

    return velocity, torch.randn(OBSERVATIONS, steps, dimensions, generator=generator), centers


def solver_of(name: str, evaluations: int) -> FlowSolver:
    method, power = name.split(":")
    return FlowSolver(evaluations, method, float(power))


@torch.no_grad()
def errors(velocity: Velocity, noise: torch.Tensor) -> dict[str, dict[str, float]]:
    """Root mean square error by solver and number of evaluations, and that of another draw of the noise."""
    reference = integrate(velocity, noise, FlowSolver(REFERENCE_STEPS))

    def error(actions: torch.Tensor) -> float:
        return float((actions - reference).square().mean().sqrt())

    found = {
        name: {str(n): error(integrate(velocity, noise, solver_of(name, n))) for n in EVALUATIONS} for name in SOLVERS
    }
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    return {**found, "another draw": {"any": error(integrate(velocity, other, FlowSolver(50)))}}


@torch.no_grad()
def distances(velocity: Velocity, noise: torch.Tensor, centers: torch.Tensor) -> dict[str, dict[str, float]]:
    """Root mean square distance of the ends to the nearest chunk; without error it is the spread. As `errors` otherwise.

    An end at another chunk than the reference's is an error there, and none here: all of them are right.
    """

    def distance(name: str, evaluations: int) -> float:
        ends = integrate(velocity, noise, solver_of(name, evaluations))
        return float((ends[:, None] - centers).square().mean((2, 3)).amin(1).mean().sqrt())

    found = {name: {str(n): distance(name, n) for n in EVALUATIONS} for name in SOLVERS}
    return {**found, "reference": {"any": distance("euler:1", REFERENCE_STEPS)}}


def successes(policy: Any, options: argparse.Namespace) -> dict[str, int]:
    """Successful episodes of `options.episodes`, for the settings of `options.closed_loop`."""
    model, statistics, robot = policy
    found = {}
    for setting in options.closed_loop:
        name, _, evaluations = setting.rpartition(":")
        solver = solver_of(name, int(evaluations))
        model.config.flow_solver, model.config.flow_grid_power = solver.method, solver.grid_power
        model.config.num_inference_steps = solver.num_steps
        replan = model.config.chunk_size // 2
        outcomes = closed_loop(model, statistics, robot, episodes=options.episodes, replan_steps=replan)
        found[setting] = sum(outcome["success"] for outcome in outcomes)
        print(
            f"{robot.task}, chunk {model.config.chunk_size}, {setting}: {found[setting]} / {options.episodes}",
            flush=True,
        )
    return found


def relative(flows: Mapping[str, Any], name: str, evaluations: int) -> tuple[float, float]:
    """Error as a share of the baseline's: geometric mean over the flows, and the largest."""
    solver, n = BASELINE
    shares = [flow["errors"][name][str(evaluations)] / flow["errors"][solver][str(n)] for flow in flows.values()]
    return math.exp(sum(map(math.log, shares)) / len(shares)), max(shares)


def report(flows: Mapping[str, Any]) -> None:
    """Prints the table of all flows, with solvers as rows."""
    rows = []
    for name in SOLVERS:
        for n in EVALUATIONS:
            own = [flow["errors"][name][str(n)] for flow in flows.values()]
            rows.append([name, n, *own, *relative(flows, name, n)])
    rows.append(["another draw", "", *[flow["errors"]["another draw"]["any"] for flow in flows.values()], "", ""])
    print_table(["solver:power", "evaluations", *flows, "of ten", "worst"], rows)
    far = {name: flow["distances"] for name, flow in flows.items() if "distances" in flow}
    if far:
        print("distance of the ends to the nearest way:")
        print_table(
            ["solver:power", "evaluations", *far],
            [[name, n, *(flow[name][str(n)] for flow in far.values())] for name in SOLVERS for n in EVALUATIONS]
            + [["reference", REFERENCE_STEPS, *(flow["reference"]["any"] for flow in far.values())]],
        )
    for flow, figures in flows.items():
        if figures.get("successes"):
            print(f"{flow}, successes of {figures['episodes']}: {figures['successes']}")


def draw(path: Path, flows: Mapping[str, Any]) -> None:
    """Error against evaluations: a panel for each flow, a line for each solver and grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(flows))
    height = -(-len(flows) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(3.5 * columns, 3.3 * height), sharex=True, squeeze=False)
    for axis in axes.flat[len(flows) :]:
        axis.set_visible(False)
    for axis, (title, flow) in zip(axes.flat, flows.items(), strict=False):
        for name in SOLVERS:
            method, power = name.split(":")
            values = [flow["errors"][name][str(n)] for n in EVALUATIONS]
            style = "-" if method == "euler" else "--"
            axis.plot(EVALUATIONS, values, style, marker="o", markersize=3, label=f"{method}, power {power}")
        axis.axhline(flow["errors"][BASELINE[0]][str(BASELINE[1])], color="gray", linewidth=1, linestyle=":")
        axis.set(title=title, yscale="log")
        axis.grid(alpha=0.3, which="both")
    for axis in axes[:, 0]:
        axis.set_ylabel("rms error")
    for axis in axes[-1]:
        axis.set_xlabel("evaluations of the flow")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=["lift", "place", "bar_lift"])
    parser.add_argument("--chunk-sizes", nargs="*", type=int, default=[32, 50])
    parser.add_argument("--spreads", nargs="*", type=float, default=[0.05, 0.3], help="of the exactly known flows")
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--demonstrations", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=0, help="episodes for each policy and setting in closed loop")
    parser.add_argument(
        "--closed-loop", nargs="*", default=["euler:1:10", "ab2:2:4"], metavar="METHOD:POWER:EVALUATIONS"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the committed file alone")
    options = parser.parse_args(argv)
    if options.table:
        report(json.loads((RESULTS / "flow_policies.json").read_text(encoding="utf-8"))["flows"])
        return
    flows: dict[str, Any] = {}
    for task in options.tasks:
        for size in options.chunk_sizes:
            velocity, noise, policy = policy_flow(task, size, options)
            flow = flows[f"{task}, chunk {size}"] = {"errors": errors(velocity, noise), "observations": len(noise)}
            if options.episodes:
                flow |= {"successes": successes(policy, options), "episodes": options.episodes}
            print(f"{task}, chunk {size}: done", flush=True)
    for spread in options.spreads:
        velocity, noise, centers = mixture_flow(spread)
        flows[f"four ways, spread {spread}"] = {
            "errors": errors(velocity, noise),
            "distances": distances(velocity, noise, centers),
            "observations": len(noise),
        }
    report(flows)
    path = write_result(
        "flow_policies", {"settings": vars(options), "reference_steps": REFERENCE_STEPS, "flows": flows}
    )
    draw(path.with_suffix(".png"), flows)
    print(path)


if __name__ == "__main__":
    main()
