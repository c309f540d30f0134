"""What belongs into a chunk's steps after the end of an episode: `python -m benchmarks.chunk_end`.

Trains one small policy per task, chunk length, `chunk_end` (the arm) and seed. Arms of one seed share initial weights,
demonstrations, order of the samples, noise and times, number of steps, and the noise of every call in closed loop, so they
differ by `chunk_end` alone. The policies read poses instead of pictures (`benchmarks.chunk_end_policy`): the question is
about the sequence of actions, and what pictures would cost goes into seeds and episodes instead.

The steps of training are few on purpose: a policy that always or never succeeds shows no difference.

- closed loop: successes on evaluation seeds, which no demonstration uses; once with half of each chunk executed, once with
  all of it. The difference from "noise" has a 95% t interval over training seeds, and the smallest difference that the
  comparison would have found in four of five repetitions.
- error: squared error of the *real* steps of held-out chunks with at least half padding, in normalized units. "as trained"
  puts into the padded steps what training put there, at every flow step; "as served" lets the policy fill them, as a robot
  gets it. Where both agree, training saw what inference sees.

Raw outcomes per episode are in `benchmarks/results/chunk_end.json`, which every run is added to. Started again it goes on
with the runs that are missing. `--table` prints the table of that file alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.chunk_end_policy import (
    EPISODE_SECONDS,
    Robot,
    Statistics,
    closed_loop,
    demonstrations,
    end_errors,
    make_chunks,
    make_model,
    train,
)
from benchmarks.reporting import RESULTS, print_table
from syvla.durable_files import write_text
from syvla.evaluation.success_rate import SuccessRate
from syvla.modeling_syvla.consistent_design import CHUNK_ENDS

HELD_OUT = 24  # demonstrations for the error, beside those to train on
CONTROL_HZ = {8: 10.0, 32: 40.0}  # by chunk length: 0.8 s each, so that either is shorter than an episode
BASELINE = "noise"
KEYS = ("task", "chunk_size", "arm", "seed", "train_steps", "batch_size", "demonstrations", "closed_loop_episodes")


def load_runs(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    return runs


def save_runs(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """One line for each run."""
    lines = ",\n".join(json.dumps(run) for run in runs)
    write_text(path, f'{{"torch": {json.dumps(torch.__version__)}, "runs": [\n{lines}\n]}}\n')


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """Trains one policy and measures it."""
    robot = Robot(key["task"], CONTROL_HZ[key["chunk_size"]])
    recorded = demonstrations(robot, key["demonstrations"] + HELD_OUT)
    training, held_out = recorded[:-HELD_OUT], recorded[-HELD_OUT:]
    statistics = Statistics.of(training)
    model = make_model(key["arm"], key["chunk_size"], key["seed"])
    chunks = make_chunks(training, statistics, key["chunk_size"])
    train(model, chunks, steps=key["train_steps"], batch=key["batch_size"], seed=key["seed"])
    replans = {"half": key["chunk_size"] // 2, "whole": key["chunk_size"]}
    return {
        **key,
        "control_hz": robot.control_hz,
        "episode_seconds": EPISODE_SECONDS,
        "padded_share": float((~chunks.real).float().mean()),
        "errors": end_errors(model, make_chunks(held_out, statistics, key["chunk_size"])),
        "episodes": {
            name: closed_loop(model, statistics, robot, episodes=key["closed_loop_episodes"], replan_steps=steps)
            for name, steps in replans.items()
        },
    }


def difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean of (arm - baseline) over seeds, half of its 95% t interval, and what a power of 80% could have found.

    The last two are NaN for a single seed.
    """
    from scipy.stats import t

    values = np.array([arm - baseline for arm, baseline in pairs])
    if len(values) < 2:
        return float(values.mean()), math.nan, math.nan
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    freedom = len(values) - 1
    reach = float(t.ppf(0.975, freedom) + t.ppf(0.8, freedom))
    return float(values.mean()), float(t.ppf(0.975, freedom)) * error, reach * error


def table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row per task, chunk length and arm."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for run in runs:
        group = (run["task"], run["chunk_size"], run["train_steps"], run["batch_size"], run["arm"])
        groups.setdefault(group, {})[run["seed"]] = run
    rows = []
    for group in sorted(groups, key=lambda g: (*g[:-1], CHUNK_ENDS.index(g[-1]))):
        own, baseline = groups[group], groups.get((*group[:-1], BASELINE), {})
        errors = [np.mean([v for r in own.values() for v in r["errors"][way]]) for way in ("as trained", "as served")]
        row = [group[0], str(group[1]), group[-1], str(len(own)), *(f"{e:.4f}" for e in errors)]
        shared = [seed for seed in own if seed in baseline] if group[-1] != BASELINE else []
        row.append(_difference_text([(_served(own[s]), _served(baseline[s])) for s in shared], 1, 3))
        for replan in ("half", "whole"):
            row.append(str(SuccessRate.of(e["success"] for r in own.values() for e in r["episodes"][replan])))
            pairs = [(_rate(own[seed], replan), _rate(baseline[seed], replan)) for seed in shared]
            row.append(_difference_text(pairs, 100, 1))
        rows.append(row)
    return rows


def _difference_text(pairs: Sequence[tuple[float, float]], factor: float, digits: int) -> str:
    """Mean, half of the interval, and in brackets what could have been found; empty without pairs."""
    if not pairs:
        return ""
    mean, half, power = (factor * value for value in difference(pairs))
    return f"{mean:+.{digits}f} +- {half:.{digits}f} ({power:.{digits}f})"


def _served(run: dict[str, Any]) -> float:
    return float(np.mean(run["errors"]["as served"]))


def _rate(run: dict[str, Any], replan: str) -> float:
    return float(np.mean([e["success"] for e in run["episodes"][replan]]))


HEADER = [
    "task", "chunk", "arm", "seeds", "as trained", "as served", "minus noise (detectable)",
    "half executed", "minus noise (detectable)", "whole executed", "minus noise (detectable)",
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "chunk_end.json")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--tasks", nargs="+", default=["place"], choices=["place", "lift"])
    parser.add_argument("--chunks", nargs="+", type=int, default=[32], choices=sorted(CONTROL_HZ))
    parser.add_argument("--arms", nargs="+", default=list(CHUNK_ENDS), choices=CHUNK_ENDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--train-steps", type=int, default=330)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=60, help="closed-loop episodes per policy and way to execute")
    options = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for seed in [] if options.table else options.seeds:
        for chunk_size in options.chunks:
            for task in options.tasks:
                for arm in options.arms:
                    values = (
                        task, chunk_size, arm, seed, options.train_steps, options.batch_size, options.demonstrations,
                        options.episodes,
                    )  # fmt: skip
                    key = dict(zip(KEYS, values, strict=True))
                    runs = load_runs(options.output)
                    if any(all(run[name] == value for name, value in key.items()) for run in runs):
                        continue
                    runs.append(measure(key))
                    save_runs(options.output, runs)
                    print("done", *values, flush=True)
    print_table(HEADER, table(load_runs(options.output)))


if __name__ == "__main__":
    main()
