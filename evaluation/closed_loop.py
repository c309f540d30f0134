"""Closed-loop evaluation: a policy acts in an environment until success or the time limit; success rates result.

Episode i of a task uses environment seed `EVALUATION_SEED_OFFSET + SEEDS_PER_RUN * seed + i`, which no demonstration
uses; the noise of a policy call is derived from that seed and the call's number. So an episode's outcome depends
neither on the batch it ran in nor on the order, up to the rounding differences of batched arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .command_line import environment_option
from .environments import ENVIRONMENTS, make_environment
from .environments.base import EVALUATION_SEED_OFFSET
from .episode_records import EpisodeRecord, fingerprint
from .lockstep import LockstepRunner
from .policy import BASELINES, Policy, load_policy
from .success_rate import SuccessRate

SEEDS_PER_RUN = 10_000
"""Evaluation seeds set apart for each `seed`, so that runs with different seeds share no episode."""


@dataclass
class ClosedLoopResult:
    """Episodes of one evaluation.

    Attributes:
        records: One per episode, by task in the order asked for, then by seed.
        settings: Everything that decides an episode's outcome besides task and seed.
        seconds: Wall-clock seconds of this run, without episodes taken from an earlier one.
    """

    records: list[EpisodeRecord]
    settings: dict[str, Any]
    seconds: float

    @property
    def total(self) -> SuccessRate:
        """Success rate over all episodes."""
        return SuccessRate.of(record.success for record in self.records)

    @property
    def by_task(self) -> dict[str, SuccessRate]:
        """Success rate of each task."""
        tasks = dict.fromkeys(record.task for record in self.records)
        return {task: SuccessRate.of(r.success for r in self.records if r.task == task) for task in tasks}

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the single episodes."""
        solved = [record.steps for record in self.records if record.success]
        calls = sum(record.policy_calls for record in self.records)
        waited = sum(record.policy_calls * record.policy_seconds for record in self.records)
        failures = [record.failure_reason for record in self.records if record.failure_reason]
        return {
            "tasks": {task: rate.to_dict() for task, rate in self.by_task.items()},
            "total": self.total.to_dict(),
            "mean_steps_to_success": float(np.mean(solved)) if solved else None,
            "mean_policy_seconds": waited / calls if calls else None,
            "failures": {reason: failures.count(reason) for reason in dict.fromkeys(failures)},
            "seeds": sorted({record.seed for record in self.records}),
            "seconds": round(self.seconds, 1),
            "settings": self.settings,
        }


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Environment seeds of an evaluation run.

    Raises:
        ValueError: If `seed` is negative or `episodes` leaves no seed apart for the next run.
    """
    if seed < 0 or not 1 <= episodes <= SEEDS_PER_RUN:
        raise ValueError(
            f"expected seed >= 0 and 1 <= episodes <= {SEEDS_PER_RUN}, got {seed=} {episodes=}; for more episodes use"
            " several seeds"
        )
    first = EVALUATION_SEED_OFFSET + SEEDS_PER_RUN * seed
    return list(range(first, first + episodes))


def evaluate_closed_loop(
    policy: Policy | str,
    env: str = "tabletop",
    tasks: str | Sequence[str] = "lift",
    *,
    episodes: int = 40,
    seed: int = 0,
    batch_size: int = 8,
    replan_steps: int | None = None,
    environment_options: Mapping[str, Any] | None = None,
    policy_options: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    video_episodes: int = 0,
    progress: bool = True,
) -> ClosedLoopResult:
    """Runs a policy in an environment and counts successes.

    Args:
        policy: A policy, or what `load_policy` takes: folder or Hub id of a checkpoint, "expert" or "still".
        env: Name of the environment back-end.
        tasks: Task name or names.
        episodes: Episodes per task.
        seed: Which set of evaluation episodes; every seed names its own.
        batch_size: Episodes that run in lockstep.
        replan_steps: Actions executed of each chunk. None executes the whole chunk.
        environment_options: Keyword arguments of `make_environment`, such as `max_steps`.
        policy_options: Keyword arguments of `load_policy` where `policy` is a string, such as `think`.
        output: Folder for `episodes.jsonl`, and recordings in `videos/`. Episodes found there under the same settings
            are not run again.
        video_episodes: Number of episodes per task to record; needs `output`.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If an argument is out of range or a task is unknown.
    """
    started = time.monotonic()
    seeds = evaluation_seeds(seed, episodes)
    if batch_size < 1 or not tasks:
        raise ValueError(f"expected batch_size >= 1 and at least one task, got {batch_size=} {tasks=}")
    if video_episodes and output is None:
        raise ValueError("video_episodes: recordings need a folder; set output")
    options = dict(environment_options or {})
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if isinstance(policy, str):
        sample = make_environment(env, names[0], **options)
        try:
            policy = load_policy(policy, sample, **(policy_options or {}))
        finally:
            sample.close()
    replan = policy.chunk_size if replan_steps is None else replan_steps
    if not 1 <= replan <= policy.chunk_size:
        raise ValueError(
            f"replan_steps: expected 1 to {policy.chunk_size}, the policy's chunk size, got {replan_steps}"
        )
    settings = {"env": env, "environment_options": options, "replan_steps": replan, **policy.identity()}
    folder = Path(output) if output is not None else None
    runner = LockstepRunner(policy, replan, fingerprint(settings), folder, progress)
    records: list[EpisodeRecord] = []
    for task in names:
        records += runner.run(env, task, options, seeds, set(seeds[:video_episodes]), batch_size)
    return ClosedLoopResult(records, settings, time.monotonic() - started)


def write_summary(result: ClosedLoopResult, path: Path) -> None:
    """Writes `result.to_dict()` as JSON, whole or not at all."""
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    os.replace(partial, path)


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-eval`."""
    parser = argparse.ArgumentParser(
        prog="syvla-eval",
        description="Closed-loop success rate of a policy, with its 95% Wilson interval.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    baselines = " or ".join(repr(name) for name in BASELINES)
    parser.add_argument("--model", required=True, help=f"checkpoint folder or Hub id, or {baselines}")
    parser.add_argument("--env", default="tabletop", choices=sorted(ENVIRONMENTS), help="environment back-end")
    parser.add_argument(
        "--task", action="append", default=argparse.SUPPRESS, help="task, repeat for several (default: lift)"
    )
    parser.add_argument("--episodes", type=int, default=40, help="episodes per task")
    parser.add_argument("--seed", type=int, default=0, help="which set of evaluation episodes; each names its own")
    parser.add_argument("--batch-size", type=int, default=8, help="episodes that run in lockstep")
    parser.add_argument("--replan-steps", type=int, help="actions executed of each chunk; by default all of them")
    parser.add_argument("--think", action="store_true", help="generate a thought before each action chunk")
    parser.add_argument("--max-new-tokens", type=int, help="longest thought in tokens; by default the model's")
    parser.add_argument("--num-steps", type=int, help="Euler steps of the flow; by default the model's")
    parser.add_argument("--device", help="torch device; by default a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="parameter dtype, such as bfloat16; auto: the checkpoint's")
    parser.add_argument(
        "--env-option",
        type=environment_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment argument (JSON), such as max_steps=200",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation"), help="folder of the results")
    parser.add_argument("--video-episodes", type=int, default=0, help="episodes per task to record")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-eval`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    names = ("think", "max_new_tokens", "num_steps", "device", "dtype")
    try:
        result = evaluate_closed_loop(
            arguments.model,
            arguments.env,
            getattr(arguments, "task", "lift"),
            episodes=arguments.episodes,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            replan_steps=arguments.replan_steps,
            environment_options=dict(arguments.env_option),
            policy_options={} if arguments.model in BASELINES else {name: getattr(arguments, name) for name in names},
            output=arguments.output,
            video_episodes=arguments.video_episodes,
            progress=not arguments.quiet,
        )
    except (OSError, ValueError, ImportError) as error:
        print(f"syvla-eval: {error}", file=sys.stderr)
        return 1
    write_summary(result, arguments.output / "summary.json")
    for task, rate in result.by_task.items():
        print(f"{task}: {rate}")
    if len(result.by_task) > 1:
        print(f"total: {result.total}")
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
