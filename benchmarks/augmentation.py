"""What image augmentation is worth where the pictures change: `python -m benchmarks.augmentation`.

Trains one small policy (`benchmarks.augmentation_policy`: pictures, joint values, the real expert and flow, no VLM) per
strength of `--augmentation` and seed on demonstrations of the unchanged tabletop. Each is measured there, and with its
`shift` option in other light, with the head camera mounted otherwise, and on other tables; a shift is drawn anew in every
episode. Policies of one seed share initial weights, order of the samples, noise and times, number of steps, and in closed
loop episodes, shifts and noise, so they differ by the augmentation alone.

Raw outcomes per episode are in `benchmarks/results/augmentation.json`, which every run is added to. Started again it goes on
with the runs that are missing. `--table` prints the table of that file, and draws the figure beside it.

The column of differences is the mean over training seeds with its 95% t interval, which one seed has none of; success has
Wilson's over episodes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.augmentation_policy import closed_loop, demonstrations, make_model, train
from benchmarks.chunk_end import difference, load_runs, save_runs
from benchmarks.reporting import RESULTS, print_table
from syvla.evaluation.environments.tabletop.visual_shifts import SHIFTS
from syvla.evaluation.success_rate import SuccessRate
from syvla.processing.augmentation import STRENGTHS

WORLDS = ("as trained", *SHIFTS)
BASELINE = "none"
KEYS = ("task", "strength", "seed", "train_steps", "batch_size", "demonstrations", "closed_loop_episodes")


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """Trains one policy and measures it in every world."""
    data = demonstrations(key["task"], key["demonstrations"])
    model = make_model(key["seed"])
    started = time.perf_counter()
    loss = train(
        model, data, strength=key["strength"], steps=key["train_steps"], batch=key["batch_size"], seed=key["seed"]
    )
    trained = time.perf_counter() - started
    episodes = {
        world: closed_loop(
            model,
            data.statistics,
            key["task"],
            None if world == WORLDS[0] else world,
            episodes=key["closed_loop_episodes"],
        )
        for world in WORLDS
    }
    return {**key, "frames": len(data.states), "last_loss": loss, "train_seconds": trained, "episodes": episodes}


def rates(runs: Sequence[dict[str, Any]], world: str) -> SuccessRate:
    return SuccessRate.of(e["success"] for run in runs for e in run["episodes"][world])


def table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row per strength and world."""
    rows = []
    for strength in [s for s in STRENGTHS if any(run["strength"] == s for run in runs)]:
        own = {run["seed"]: run for run in runs if run["strength"] == strength}
        base = {run["seed"]: run for run in runs if run["strength"] == BASELINE and run["seed"] in own}
        for world in WORLDS:
            row = [strength, world, str(len(own)), str(rates(list(own.values()), world)), ""]
            if strength != BASELINE and base:
                pairs = [(_rate(own[seed], world), _rate(base[seed], world)) for seed in sorted(base)]
                mean, half, _ = (100 * value for value in difference(pairs))
                row[-1] = f"{mean:+.1f} +- {half:.1f}" if len(pairs) > 1 else f"{mean:+.1f}"
            rows.append(row)
    return rows


def _rate(run: dict[str, Any], world: str) -> float:
    outcomes = [e["success"] for e in run["episodes"][world]]
    return sum(outcomes) / len(outcomes)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of success with Wilson's interval, a point for each training seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    strengths = [s for s in STRENGTHS if any(run["strength"] == s for run in runs)]
    width = 0.8 / len(strengths)
    for number, strength in enumerate(strengths):
        own = [run for run in runs if run["strength"] == strength]
        for place, world in enumerate(WORLDS):
            rate = rates(own, world)
            x = place + (number - (len(strengths) - 1) / 2) * width
            low, high = rate.interval
            label = f"augmentation: {strength}" if place == 0 else None
            axes.bar(x, 100 * rate.rate, 0.92 * width, color=f"C{number}", alpha=0.55, label=label)
            errors = [[100 * (rate.rate - low)], [100 * (high - rate.rate)]]
            axes.errorbar(x, 100 * rate.rate, errors, color="0.2", capsize=3, lw=1)
            points = [100 * _rate(run, world) for run in own]
            axes.plot([x] * len(points), points, "o", color=f"C{number}", ms=4, mec="white", mew=0.5)
    axes.set_xticks(range(len(WORLDS)), WORLDS)
    axes.set_ylabel("success [%]")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(strengths), frameon=False)
    figure.savefig(path, dpi=150)


HEADER = ["augmentation", "world", "seeds", "success", "minus none, points"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "augmentation.json")
    parser.add_argument("--table", action="store_true", help="only print the table and draw the figure")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--strengths", nargs="+", default=["none", "default"], choices=STRENGTHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=50, help="closed-loop episodes per policy and world")
    options = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for seed in [] if options.table else options.seeds:
        for strength in options.strengths:
            values = (
                options.task, strength, seed, options.train_steps, options.batch_size, options.demonstrations,
                options.episodes,
            )  # fmt: skip
            key = dict(zip(KEYS, values, strict=True))
            runs = load_runs(options.output)
            if any(all(run[name] == value for name, value in key.items()) for run in runs):
                continue
            runs.append(measure(key))
            save_runs(options.output, runs)
            print("done", *values, flush=True)
    runs = load_runs(options.output)
    print_table(HEADER, table(runs))
    if runs:
        draw(runs, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
