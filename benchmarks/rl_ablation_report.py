"""JSON, table and figure of `benchmarks.rl_ablation` out of the results that are there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from syvla.durable_files import write_json
from syvla.evaluation.closed_loop_result import describe_machine
from syvla.evaluation.published_tables import mean_and_interval, paper_table
from syvla.evaluation.success_rate import wilson_interval
from syvla.training.paper_tables.jobs import Job

if TYPE_CHECKING:
    from .rl_ablation_plan import Plan

PAPER_ROWS = {
    "il": "w/o RL",
    "similar": "SyVLA (all)",
    "random": "w/o Similar Sample",
    "none": "w/o Expert Dataset",
    "gae": "w/ Standard Advantage",
}
"""Our arms to the rows of the paper's Table 3; it has none for the others."""

MEANING = {
    "il": "imitation learning alone, where all others start",
    "similar": "RL with similar expert samples, advantage +1 (the method)",
    "random": "RL with random expert samples of the same task, advantage +1",
    "none": "RL on rollouts alone",
    "gae": "RL with similar expert samples, advantage by GAE",
    "imitation": "no RL: flow matching on the same similar samples",
    "recap": "flow matching on all rollouts and similar samples, the advantage as a word in the prompt",
    "nft": "bounded negatives for the flow, no ratio; similar expert samples",
}

Runs = dict[str, dict[int, dict[str, Any]]]
"""`result.json` by arm and seed."""


def write_report(plan: Plan, folder: Path, name: str) -> Path:
    """Writes `name`.json, .md and .png into `folder`; returns the JSON's path.

    Raises:
        ValueError: If no run is finished.
    """
    jobs = plan.runs()
    runs: Runs = {}
    for (arm, seed), job in jobs.items():
        if (result := job.result) is not None:
            runs.setdefault(arm, {})[seed] = result["summary"]
    if not runs:
        raise ValueError(f"{plan.output}: no run is finished yet; start without --report")
    arms = {arm: summarize(found, same_policy=arm == "il") for arm, found in runs.items()}
    settings = describe(plan, next(iter(jobs.values())))
    content = {
        "benchmark": "Similar-Sample Guided RL, ablation in simulation",
        "settings": settings,
        "arms": arms,
        "paper": {
            "where": "the paper's Table 3, folding a shirt with a real robot: another task, not to be compared in value",
            "success": {arm: paper_success(arm) for arm in arms},
        },
        "minus_il": {arm: difference(runs, arm, "il") for arm in arms if arm != "il" and "il" in arms},
        "similar_minus": {
            arm: difference(runs, "similar", arm) for arm in arms if arm != "similar" and "similar" in arms
        },
        "updates": curves(runs),
        "notes": NOTES,
        "machine": describe_machine(),
    }
    path = folder / f"{name}.json"
    write_json(path, content, allow_nan=True)
    path.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
    draw(content, runs, path.with_suffix(".png"))
    return path


def summarize(found: Mapping[int, Mapping[str, Any]], *, same_policy: bool = False) -> dict[str, Any]:
    """Success of one arm over its seeds.

    `wilson95` is Wilson's interval of all episodes together, which knows nothing of how training varies. `ci95` is Student's
    of the mean over seeds, cut to [0, 1]; with one seed, or the same policy for all of them, it is Wilson's.
    """
    rates = [run["success"] for run in found.values()]
    successes, episodes = (sum(run[key] for run in found.values()) for key in ("successes", "episodes"))
    mean, interval = mean_and_interval(rates)
    wilson = list(wilson_interval(successes, episodes))
    return {
        "seeds": list(found),
        "success": rates,
        "mean": mean,
        "ci95": wilson if interval is None or same_policy else [max(0.0, interval[0]), min(1.0, interval[1])],
        "wilson95": wilson,
        "successes": successes,
        "episodes": episodes,
        "seconds": [run["seconds"] for run in found.values()],
    }


def difference(runs: Runs, arm: str, other: str) -> dict[str, Any]:
    """Mean of (arm - other) over the seeds that both have, which share evaluation starts."""
    shared = [seed for seed in runs[arm] if seed in runs.get(other, {})]
    pairs = [runs[arm][seed]["success"] - runs[other][seed]["success"] for seed in shared]
    if not pairs:
        return {"mean": None, "ci95": None}
    mean, interval = mean_and_interval(pairs)
    return {"mean": mean, "ci95": None if interval is None else list(interval)}


def paper_success(arm: str) -> float | None:
    return paper_table("3").rows[PAPER_ROWS[arm]][0] if arm in PAPER_ROWS else None


def curves(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """What the figure shows, by arm."""
    il = runs.get("il", {})
    return {
        arm: [curve(run, il.get(seed)) for seed, run in found.items()] for arm, found in runs.items() if arm != "il"
    }


def curve(run: Mapping[str, Any], il: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the figure shows of one run."""
    log = run["log"]
    return {
        "seed": run["seed"],
        "success": [None if il is None else il["success"]]
        + [found["success"] for _, found in sorted(run["curve"].items(), key=lambda item: int(item[0]))],
        "rollout_success": [update["objective/success_rate"] for update in run["updates"]],
        "gradient_steps": run["gradient_steps"],
        "skipped_steps": sum(line["policy/skipped_steps"] or 0 for line in log),
        "refused": [update["refused"] for update in run["updates"]],
        "step": [line["step"] for line in log],
        "gradient_norm": [line.get("grad_norm/policy") for line in log],
        "clipped": [line.get("policy/clipfrac_avg") for line in log],
        "heldout_loss": run["heldout"],
    }


def describe(plan: Plan, job: Job) -> dict[str, Any]:
    """Settings of the runs, without the paths of this machine."""
    from .rl_ablation_run import build_parser

    options: argparse.Namespace = build_parser().parse_args(list(job.arguments))
    left_out = ("arm", "seed", "il", "value", "vectors", "dataset", "output", "logging_steps")
    return {
        "environment": "tabletop lift, one object, 32 x 32 pixels",
        **{name: value for name, value in vars(options).items() if name not in left_out},
        "seeds": list(plan.seeds),
        "imitation_learning": {"base": "syvla-tables --scale tiny", "demonstrations": 120, **plan.base},
        "value_warmup_steps": plan.value_steps,
        "retrieval_features": "policy:IL, the mean over the patches of what the action expert's image encoder sees",
    }


NOTES = [
    "One checkpoint of imitation learning for all runs; a seed decides rollouts, samples and noise, and names the evaluation "
    "starts, which are the same for all arms and are shared with neither demonstrations nor rollouts.",
    "`ci95` (95% over seeds) is the Student interval of the mean over seeds, cut to [0, 1]; `wilson95` is Wilson's of all "
    "episodes together. `il` is one policy, whose `ci95` is Wilson's as well.",
    "All RL arms take the same number of gradient steps: no stop at a KL, and the guard that would keep a policy from being "
    "published is set out of reach. Gradient clipping, the clamp of the log ratio and dual clipping are on in every arm.",
    "Rollouts are made in the process of the trainer, by the policy that it has published, recorded and read back as a policy "
    "server's are; only HTTP is left out. A simulator's success is the reward; reaching the time limit is failure, reward 0.",
    "Neither rollouts nor evaluation think. No pretrained CLIP model is used: similar samples are found by the features of the "
    "image encoder of the policy of imitation learning.",
    "The figure's points between the first and the last update are measured on the first `curve_episodes` of the starts.",
    "The control `imitation` draws the expert samples that `similar` would, in the same number per step, and has no rollout "
    "samples in its batches.",
]


def markdown(content: Mapping[str, Any]) -> str:
    """Our numbers beside the paper's."""
    settings = content["settings"]
    lines = [
        f"# {content['benchmark']}",
        "",
        "| arm | | success, ours | per seed | 95% over seeds | 95% Wilson | minus `il` | paper (real robot, theirs) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, row in content["arms"].items():
        paper = content["paper"]["success"][arm]
        gain = content["minus_il"].get(arm)
        cells = [
            f"`{arm}`",
            MEANING[arm],
            f"{row['mean']:.2f}",
            ", ".join(f"{rate:.2f}" for rate in row["success"]),
            _interval(row["ci95"]),
            _interval(row["wilson95"]),
            ""
            if gain is None or gain["mean"] is None
            else f"{gain['mean']:+.2f} {_interval(gain['ci95'], '+.2f')}".strip(),
            "not measured" if paper is None else f"{paper:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Seeds {', '.join(map(str, settings['seeds']))}; {settings['episodes']} evaluation episodes per seed; "
        f"{settings['updates']} updates of {settings['rollouts']} rollouts and {settings['steps']} gradient steps; learning "
        f"rate {settings['learning_rate']:g}, clip range {settings['cliprange']:g}, batch {settings['batch']}. The paper's "
        "column is its Table 3, folding a shirt with a real robot: another task, so compare the order and not the values.",
        "",
        *(f"- {note}" for note in content["notes"]),
        "",
        "`python -m benchmarks.rl_ablation`",
        "",
    ]
    return "\n".join(lines)


def _interval(bounds: Sequence[float] | None, form: str = ".2f") -> str:
    return "" if bounds is None else f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"


def draw(content: Mapping[str, Any], runs: Runs, path: Path) -> None:
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
    success.set(xlabel="update", ylabel="success", ylim=(-0.02, 1.02), title="closed-loop success, mean over seeds")
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
