"""The jump of commands where one action chunk follows another: `python -m benchmarks.chunk_stitching --model CHECKPOINT`.

A robot that asks ahead of time executes `--delay` steps of the old chunk after the observation that the new chunk
answers. The delay is simulated in control steps, so the figures do not depend on the machine's speed. Ways to go on:

- plain: enter the new chunk at step `delay` as it is;
- frozen: its first `delay` steps are bound to the old chunk, the others are free;
- stitched: real-time chunking's soft weights beyond them (what `ChunkExecutor(prefetch=...)` asks for);
- waiting: no delay, the robot stands still until the new chunk is there (for comparison).

jump: largest change over the joints between the last command of the old chunk and the first of the new one; "inside" is
the same between the commands inside chunks, the policy's own pace.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.reporting import print_table, write_result
from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy
from syvla.serving.contract.requests import PreviousChunk

WAYS = ("plain", "frozen", "stitched", "waiting")


def run_episode(
    policy: Any, environment: Any, seed: int, way: str, replan: int, delay: int
) -> tuple[list[float], list[float], bool]:
    """One closed-loop episode; (jumps at seams, changes inside chunks, success)."""
    observation, info = environment.reset(seed=seed)
    seams, inside = [], []
    chunk, position, last = None, 0, None
    pending: tuple[np.ndarray, int] | None = None  # new chunk, steps since its observation
    calls = 0
    while True:
        if chunk is None or (pending is None and position >= replan):
            previous = None
            if chunk is not None and way in ("frozen", "stitched"):
                rest = chunk[position : position + delay] if way == "frozen" else chunk[position:]
                previous = PreviousChunk(rest, delay)
            call = int(np.random.SeedSequence((seed, calls)).generate_state(1)[0])
            answer = policy.predict([observation], [info["instruction"]], seeds=[call], previous=[previous])
            calls += 1
            if chunk is None:
                chunk = answer.actions[0]
            else:
                pending = (answer.actions[0], 0)
        entered = pending is not None and pending[1] == (0 if way == "waiting" else delay)
        if entered:
            assert pending is not None
            (chunk, position), pending = pending, None
        command = chunk[position]
        if last is not None:
            (seams if entered else inside).append(float(np.abs(command - last).max()))
        observation, _, terminated, truncated, info = environment.step(command)
        last, position = command, position + 1
        pending = None if pending is None else (pending[0], pending[1] + 1)
        if terminated or truncated:
            return seams, inside, bool(info["success"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="outputs/demo/checkpoint", help="a trained checkpoint, such as that of make demo"
    )
    parser.add_argument("--env", default="tabletop")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--replan-steps", type=int, default=4, help="control steps between two requests")
    parser.add_argument("--delay", type=int, default=2, help="control steps from observation to answer")
    options = parser.parse_args(argv)
    environment = make_environment(options.env, options.task)
    policy = load_policy(options.model, environment)
    if options.replan_steps + options.delay > policy.chunk_size:
        parser.error(f"replan-steps + delay: expected at most the chunk's {policy.chunk_size} actions")
    rows, result = [], {}
    for way in WAYS:
        seams: list[float] = []
        inside: list[float] = []
        successes = 0
        for seed in tqdm(evaluation_seeds(0, options.episodes), desc=way, leave=False):
            jumps, changes, success = run_episode(policy, environment, seed, way, options.replan_steps, options.delay)
            seams, inside, successes = seams + jumps, inside + changes, successes + success
        figures = {
            "mean": float(np.mean(seams)),
            "p99": float(np.quantile(seams, 0.99)),
            "max": max(seams),
            "inside_mean": float(np.mean(inside)),
            "inside_max": max(inside),
            "seams": len(seams),
            "success": successes,
        }
        result[way] = figures
        rows.append([way, *(round(figures[key], 4) for key in ("mean", "p99", "max", "inside_mean", "inside_max"))])
        rows[-1] += [f"{successes}/{options.episodes}", len(seams)]
    environment.close()
    print_table(["way", "jump mean", "p99", "max", "inside mean", "inside max", "success", "seams"], rows)
    settings = {key: value for key, value in vars(options).items() if key != "model"}
    print(write_result("chunk_stitching", {"settings": settings, "ways": result}))


if __name__ == "__main__":
    main()
