"""Figures of `benchmarks.rl_ablation`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.decoupling_study_statistics import t_interval

BY_ROLLOUTS = {
    "imitation": "imitation of similar samples",
    "dagger": "DAgger",
    "similar": "RL",
    "both": "RL and corrections",
}
"""Arms that are compared by how many rollouts they took."""


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Success by update, the policy's gradient norm before clipping by step, and the held-out loss by update."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    success, norm, heldout = figure.subplots(1, 3)
    for number, (arm, curves) in enumerate(content["updates"].items()):
        color = f"C{number}"
        for run in curves:
            success.plot(range(len(run["success"])), run["success"], color=color, alpha=0.25)
            norm.plot(run["step"], run["gradient_norm"], color=color, alpha=0.25, linewidth=0.8)
        for axes, key in ((success, "success"), (heldout, "heldout_loss")):
            means = [fmean(values) for values in zip(*(run[key] for run in curves), strict=False) if None not in values]
            axes.plot(range(len(means)), means, "o-", color=color, label=arm, linewidth=1.8, markersize=4)
        points = zip(*(run["gradient_norm"] for run in curves), strict=False)
        means = [fmean(known) if (known := [v for v in values if v is not None]) else float("nan") for values in points]
        norm.plot(curves[0]["step"][: len(means)], means, color=color, label=arm, linewidth=1.6)
    success.set(
        xlabel=f"updates, of {content['settings']['rollouts']} rollouts each",
        ylabel="success",
        ylim=(-0.02, 1.02),
        title="closed-loop success, mean over seeds",
    )
    norm.set(xlabel="gradient step", yscale="log", title="gradient norm before clipping")
    norm.set_ylim(bottom=1e-4)  # exactly zero where every sample is clipped
    heldout.set(xlabel="update", yscale="log", title="held-out flow-matching loss")
    updates = content["settings"]["updates"]
    for axes in (success, heldout):
        axes.set_xticks(range(updates + 1))
    for axes in (success, norm, heldout):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    success.legend(frameon=False)
    figure.savefig(path)


def draw_by_rollouts(content: Mapping[str, Any], path: Path) -> None:
    """Success against rollouts of imitation, DAgger, RL and both, with Student's 95% intervals over seeds.

    Nothing is drawn where none of these arms ran.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = {arm: content["updates"][arm] for arm in BY_ROLLOUTS if arm in content["updates"]}
    if not arms:
        return
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    each = content["settings"]["rollouts"]
    for place, (arm, curves) in enumerate(arms.items()):
        by_version = [
            [value for value in values if value is not None]
            for values in zip(*(r["success"] for r in curves), strict=False)
        ]
        points = [(each * version, np.array(values)) for version, values in enumerate(by_version) if values]
        rollouts = [x + 0.6 * (place - 1.5) for x, _ in points]  # beside one another, so that all bars can be seen
        means = [float(values.mean()) for _, values in points]
        halves = [(t_interval(values)[1] - values.mean()) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(rollouts, means, yerr=halves, marker="o", capsize=3, label=BY_ROLLOUTS[arm])
    axes.set(xlabel="rollouts", ylabel="success", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
