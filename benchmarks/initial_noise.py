"""Where the flow begins at inference, its mean or drawn noise: `python -m benchmarks.initial_noise`.

A flow policy can begin at zero, the mean of its noise (`--noise zero` of `syvla-serve` and `syvla-eval`), and then has one
answer to an observation. Whether that costs or brings success is measured in closed loop: the same checkpoint, solver and
starts, once from zero and once from each of several draws of the noise. Every start is its own control.

Each condition is written when it is done and is not run again. Raw outcomes, one letter per start in the order of the starts,
go into `benchmarks/results/initial_noise.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import RESULTS
from syvla.durable_files import write_json
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.closed_loop_result import describe_machine
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy
from syvla.evaluation.success_rate import wilson_interval

SUCCESS, FAILURE = "s", "f"
ZERO = "zero"
REARRANGEMENTS = 20_000


class DrawnAnew:
    """A policy whose noise is another draw: `draw` 0 is the one that evaluation takes by itself.

    Args:
        policy: See `syvla.evaluation.policy.Policy`.
        draw: Which one.
    """

    def __init__(self, policy: Any, draw: int) -> None:
        self.name, self.chunk_size = policy.name, policy.chunk_size
        self._policy, self._draw = policy, draw

    def identity(self) -> dict[str, Any]:
        return {**self._policy.identity(), "draw": self._draw}

    def predict(self, observations: Any, instructions: Any, *, seeds: Sequence[int]) -> Any:
        if self._draw:
            seeds = [int(np.random.SeedSequence((seed, self._draw)).generate_state(1)[0]) for seed in seeds]
        return self._policy.predict(observations, instructions, seeds=seeds)


def measure(options: argparse.Namespace, condition: str) -> str:
    """Outcomes of all starts under "zero" or "draw K"."""
    noise = "zero" if condition == ZERO else "random"
    with closing(make_environment("tabletop", options.task)) as environment:
        policy = load_policy(options.checkpoint, environment, device="cpu", think=options.think, noise=noise)
    draw = 0 if condition == ZERO else int(condition.removeprefix("draw "))
    result = evaluate_closed_loop(
        DrawnAnew(policy, draw),
        "tabletop",
        options.task,
        episodes=options.episodes,
        batch_size=options.batch_size,
        progress=False,
    )
    if result.errors:
        raise RuntimeError(f"{condition}: the environment crashed: {result.errors[0].error}")
    return "".join(SUCCESS if record.success else FAILURE for record in result.records)


def mcnemar(first: str, second: str) -> dict[str, Any]:
    """Exact two-sided test of two conditions on the same starts: binomial among the starts on which they differ."""
    gained = sum(a == SUCCESS and b == FAILURE for a, b in zip(first, second, strict=True))
    lost = sum(a == FAILURE and b == SUCCESS for a, b in zip(first, second, strict=True))
    differing = gained + lost
    tail = sum(math.comb(differing, k) for k in range(min(gained, lost) + 1)) / 2**differing
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}


def paired(zero: str, draws: Sequence[str]) -> dict[str, Any]:
    """Zero against all draws at once, start by start.

    The interval is of the mean difference when starts are drawn anew (percentile bootstrap). The test rearranges the outcomes
    of each start: if zero were one more draw, any of them might have been its outcome.
    """
    outcomes = np.array([[float(letter == SUCCESS) for letter in own] for own in (zero, *draws)])  # (1 + K, starts)
    count, starts = outcomes.shape
    differences = outcomes[0] - outcomes[1:].mean(0)
    generator = np.random.default_rng(0)
    means = differences[generator.integers(0, starts, (REARRANGEMENTS, starts))].mean(1)
    chosen = generator.integers(0, count, (REARRANGEMENTS, starts))
    own = outcomes[chosen, np.arange(starts)]
    rearranged = (own - (outcomes.sum(0) - own) / (count - 1)).mean(1)
    hits = int((np.abs(rearranged) >= abs(differences.mean()) - 1e-12).sum())
    return {
        "difference": float(differences.mean()),
        "bootstrap95": [float(bound) for bound in np.quantile(means, (0.025, 0.975))],
        "p": (hits + 1) / (REARRANGEMENTS + 1),
    }


def summarize(outcomes: Mapping[str, str]) -> dict[str, Any]:
    """Rates, tests and intervals of the conditions that are there."""
    rates = {
        name: {"successes": own.count(SUCCESS), "wilson95": list(wilson_interval(own.count(SUCCESS), len(own)))}
        for name, own in outcomes.items()
    }
    draws = [own for name, own in outcomes.items() if name != ZERO]
    if ZERO not in outcomes or not draws:
        return {"rates": rates}
    return {
        "rates": rates,
        "drawn_mean": sum(own.count(SUCCESS) for own in draws) / sum(map(len, draws)),
        "zero_minus_drawn": paired(outcomes[ZERO], draws),
        "mcnemar": {name: mcnemar(outcomes[ZERO], own) for name, own in outcomes.items() if name != ZERO},
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/tabletop-lift", help="folder of a trained policy")
    parser.add_argument("--task", default="lift", help="of the tabletop")
    parser.add_argument("--think", action="store_true", help="think before each chunk")
    parser.add_argument("--episodes", type=int, default=200, help="starts, the same for all conditions")
    parser.add_argument("--draws", type=int, default=5, help="draws of the noise")
    parser.add_argument("--batch-size", type=int, default=20, help="episodes in lockstep")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import torch

    torch.set_num_threads(1)
    options = build_parser().parse_args(argv)
    path = options.results / "initial_noise.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = f"{options.task}, {'thinking' if options.think else 'without thoughts'}"
    settings = {
        "checkpoint": options.checkpoint,
        "episodes": options.episodes,
        "solver": "as the checkpoint says",
        "replan_steps": "the whole chunk",
    }
    own = known.get(section, {"settings": settings, "outcomes": {}})
    if own["settings"] != settings:
        print(f"initial_noise: {path} has other settings under {section!r}; name another --results", file=sys.stderr)
        return 1
    for condition in (ZERO, *(f"draw {number}" for number in range(options.draws))):
        if condition not in own["outcomes"]:
            own["outcomes"][condition] = measure(options, condition)
            known[section] = {**own, **summarize(own["outcomes"]), "machine": describe_machine()}
            write_json(path, known)
        print(f"{condition}: {own['outcomes'][condition].count(SUCCESS)} of {options.episodes}", flush=True)
    print(json.dumps(summarize(own["outcomes"]), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
