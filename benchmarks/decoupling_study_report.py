"""What `benchmarks.decoupling_study` reports: one JSON with all raw outcomes, and tables and figures made from it alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoupling_study_closed_loop import SPLITS
from benchmarks.decoupling_study_plan import ARMS
from benchmarks.decoupling_study_statistics import analyze, success_matrix
from benchmarks.reporting import print_table
from syvla.durable_files import write_text

MAPPED = ("weakest", "off", "random", "silent_weakest", "silent_off")
"""Arms of the second figure, which have one number of query tokens."""


def save(path: Path, facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Facts of the study, and a line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run, sort_keys=True) for run in runs)
    head = "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in facts.items())
    write_text(path, f'{{{head}"runs": [\n{lines}\n]}}\n')


def load(path: Path) -> dict[str, Any]:
    """As saved.

    Raises:
        FileNotFoundError: There are no outcomes yet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there are no outcomes to report; run the study first")
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return study


def remake(path: Path) -> dict[str, Any]:
    """Prints the tables of a study's JSON, and draws both figures beside it; returns the analysis."""
    runs = load(path)["runs"]
    found = analyze(runs)
    print_table(["arm", "seeds", *(f"{split}, 95% t" for split in SPLITS)], _arm_rows(found))
    for family in ("primary", "secondary"):
        if found[family]:
            print()
            print_table(
                ["contrast", "seeds", "difference", "95% t", "seeds and starts", "p", "Holm", "power"],
                _rows(found, family),
            )
    draw_success(runs, found, path.with_name(f"{path.stem}_success.png"))
    draw_maps(runs, path.with_name(f"{path.stem}_maps.png"))
    return found


def _arm_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [ARMS[arm].label, own[SPLITS[0]]["seeds"], *(_with_interval(own[split]) for split in SPLITS)]
        for arm, own in found["arms"].items()
    ]


def _rows(found: Mapping[str, Any], family: str) -> list[list[Any]]:
    return [
        [
            name,
            own["seeds"],
            f"{100 * own['mean']:+.1f}",
            _interval(own["t_interval"]),
            _interval(own["bootstrap_interval"]),
            f"{own['p']:.4f}",
            f"{own['p_holm']:.4f}" if "p_holm" in own else "",
            "" if own["power"] is None else f"{own['power']:.2f}",
        ]
        for name, own in found[family].items()
    ]


def _with_interval(own: Mapping[str, Any]) -> str:
    return f"{100 * own['mean']:.1f}% {_interval(own['t_interval'])}".strip()


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def draw_success(runs: Sequence[Mapping[str, Any]], found: Mapping[str, Any], path: Path) -> None:
    """Success by arm: mean with its 95% t interval over training seeds, and a point for each seed."""
    from matplotlib.figure import Figure

    arms = [arm for arm in ARMS if arm in found["arms"]]
    figure = Figure(figsize=(8.4, 0.42 * len(arms) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(SPLITS), sharey=True, squeeze=False)[0]
    for panel, split in zip(axes, SPLITS, strict=True):
        for place, arm in enumerate(arms):
            y, own = len(arms) - 1 - place, found["arms"][arm][split]
            color = "C0" if ARMS[arm].main else "0.45"
            rates = [100 * float(values.mean()) for values in success_matrix(runs, arm, [split]).values()]
            panel.plot(rates, [y] * len(rates), "o", color=color, alpha=0.45, ms=4, mew=0)
            if own["t_interval"]:
                panel.plot([100 * end for end in own["t_interval"]], [y - 0.22] * 2, color=color, lw=2)
            panel.plot(100 * own["mean"], y - 0.22, "D", color=color, ms=5)
        panel.set_xlim(0, 100)
        panel.set_xlabel("success [%]")
        panel.set_title({"in_domain": "in domain", "ood": "out of distribution"}[split], fontsize=10)
        panel.grid(axis="x", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(arms)), [ARMS[arm].label for arm in reversed(arms)])
    figure.savefig(path, dpi=150)


def maps(runs: Sequence[Mapping[str, Any]], arm: str) -> dict[str, np.ndarray]:
    """Seeds x query states of one arm: share of masks, share of attention, and the probes."""
    own = sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
    looked = [run["mechanism"] for run in own]
    return {
        "share of masks": np.array([found["masks"]["share"] for found in looked]),
        "share of attention": np.array([found["attention"] for found in looked]),
        **{
            f"probe: {kind}": np.array([found["probes"][kind].get("each", []) for found in looked])
            for kind in ("place", "name", "number")
        },
    }


def draw_maps(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each arm, a row for each map; in a map a row for each training seed, a column for each query state."""
    from matplotlib.figure import Figure

    found = {arm: maps(runs, arm) for arm in MAPPED if any(run["arm"] == arm for run in runs)}
    if not found:
        return
    kinds = list(next(iter(found.values())))
    figure = Figure(figsize=(2.1 * len(found) + 1.2, 1.7 * len(kinds) + 0.4), layout="constrained")
    axes = figure.subplots(len(kinds), len(found), squeeze=False)
    for row, kind in enumerate(kinds):
        probe = kind.startswith("probe")
        highest = (
            1.0 if probe else max((float(own[kind].max()) for own in found.values() if own[kind].size), default=1.0)
        )
        for column, (arm, own) in enumerate(found.items()):
            panel = axes[row][column]
            if own[kind].size:
                image = panel.imshow(own[kind], vmin=0, vmax=highest, cmap="viridis", aspect="auto")
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(ARMS[arm].label, fontsize=8)
            if column == 0:
                panel.set_ylabel(kind, fontsize=8)
            if row == len(kinds) - 1:
                panel.set_xlabel("query state", fontsize=8)
        figure.colorbar(image, ax=list(axes[row]), fraction=0.03)
    figure.savefig(path, dpi=150)
