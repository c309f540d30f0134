"""JSON, table and figure of `benchmarks.rl_ablation` out of the results that are there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from syvla.durable_files import write_json
from syvla.evaluation.closed_loop_result import describe_machine
from syvla.evaluation.published_tables import mean_and_interval, paper_table
from syvla.evaluation.success_rate import wilson_interval
from syvla.training.paper_tables.jobs import Job

from .rl_ablation_figures import draw, draw_by_rollouts
from .rl_ablation_statistics import contrasts

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
    "continued": "no RL: flow matching on all demonstrations, for as many steps",
    "near_zero": "as `similar`, the rollouts' advantages within 0.001 of 0",
    "dagger": "no RL: similar samples and the expert's corrections in rollouts",
    "both": "as `similar`, with the expert's corrections among its samples",
    "pi_rl": "after Pi-RL: flow-SDE ratio and noise in rollouts, PPO clip, GAE, no experts (a variant of our own)",
    "simplevla_rl": "after SimpleVLA-RL: flow-SDE ratio, group-relative advantages, no KL, no experts (a variant of our own)",
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
        "contrasts": contrasts(
            {arm: {seed: run["success"] for seed, run in found.items()} for arm, found in runs.items()}
        ),
        "updates": curves(runs),
        "notes": NOTES + (UNSEEN_NOTES if plan.design.recordings else LIFT_NOTES),
        "machine": describe_machine(),
    }
    path = folder / f"{name}.json"
    write_json(path, content, allow_nan=True)
    path.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
    draw(content, path.with_suffix(".png"))
    draw_by_rollouts(content, path.with_name(f"{name}_rollouts.png"))
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
        "outcomes": {str(seed): run["outcomes"] for seed, run in found.items() if "outcomes" in run},
        "commands": {
            "evaluation": _commands([run for run in found.values() if "commands" in run]),
            "rollouts": _commands([made for run in found.values() for made in run.get("rollouts", {}).values()]),
        },
        "gradient_norm": _norms(
            [line.get("grad_norm/policy") for run in found.values() for line in run.get("log", [])]
        ),
    }


def _commands(counts: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Shares of commands that the robot cannot carry out as they are; None where none were counted."""
    total = sum(count["commands"] for count in counts)
    names = ("beyond_position", "beyond_speed")
    return {name: sum(count[name] for count in counts) / total for name in names} if total else None


def _norms(values: Sequence[float | None]) -> dict[str, float] | None:
    """Of the policy's gradients before clipping, means of a few steps each."""
    known = sorted(value for value in values if value is not None)
    return {"median": median(known), "largest": known[-1]} if known else None


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
    left_out = ("arm", "seed", "il", "value", "vectors", "dataset", "all_data", "output", "logging_steps")
    recordings = plan.design.recordings
    own = {"base": "training/recipes/demo.yaml", **plan.design.base}
    own["demonstrations"] = {name: recording.episodes for name, recording in recordings.items()}
    tables = {"base": "syvla-tables --scale tiny", "demonstrations": 120}
    return {
        "design": plan.design.name,
        "environment": plan.design.environment,
        **{name: value for name, value in vars(options).items() if name not in left_out},
        "seeds": sorted({seed for _, seed in plan.runs()}),
        "imitation_learning": {**(own if recordings else tables), **plan.base},
        "value_warmup_steps": plan.value_steps,
        "retrieval_features": "policy:IL, the mean over the patches of what the action expert's image encoder sees",
    }


NOTES = [
    "One checkpoint of imitation learning for all runs; a seed decides rollouts, samples and noise. Evaluation starts are the "
    "same for all arms and are shared with neither demonstrations nor rollouts.",
    "`ci95` (95% over seeds) is the Student interval of the mean over seeds, cut to [0, 1]; `wilson95` is Wilson's of all "
    "episodes together. `il` is one policy, whose `ci95` is Wilson's as well.",
    "All RL arms take the same number of gradient steps: no stop at a KL, and the guard that would keep a policy from being "
    "published is set out of reach. Gradient clipping, the clamp of the log ratio and dual clipping are on in every arm.",
    "Rollouts are made in the process of the trainer, by the policy that it has published, recorded and read back as a policy "
    "server's are; only HTTP is left out. A simulator's success is the reward; reaching the time limit is failure, reward 0.",
    "No pretrained CLIP model is used: similar samples are found by the features of the image encoder of the policy of "
    "imitation learning.",
    "The figure's points between the first and the last update are measured on the first `curve_episodes` of the starts.",
    "The control `imitation` draws the expert samples that `similar` would, in the same number per step, and has no rollout "
    "samples in its batches.",
]

LIFT_NOTES = [
    "Neither rollouts nor evaluation think. A seed names its evaluation starts. Decoupling is off, and the value model is not "
    "fitted to rollouts but in the arms `recap`, `nft` and `pi_rl`.",
]

UNSEEN_NOTES = [
    "All seeds share their evaluation starts too, so intervals over seeds say nothing about other starts.",
    "Expert samples are any frames of the 120 demonstrations of the task; `continued` imitates those of all three tasks.",
    "`pi_rl` and `simplevla_rl` are variants of our own trainer, not those programs. In their rollouts one step of the flow is "
    "stochastic, in evaluation none. Commands beyond a limit are counted, and the simulator clips them.",
    "In `dagger` and `both` the scripted expert takes over in rollouts after `takeover_after` control steps. A rollout with a "
    "takeover is a failure of the policy.",
]


def markdown(content: Mapping[str, Any]) -> str:
    """Our numbers beside the paper's."""
    settings = content["settings"]
    lines = [
        f"# {content['benchmark']}",
        "",
        "| arm | | success, ours | per seed | 95% over seeds | 95% Wilson | minus `il` | gradient norm, median and largest | "
        "commands beyond position / speed in rollouts, % | paper (real robot, theirs) |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
            "" if (norm := row["gradient_norm"]) is None else f"{norm['median']:.3g}, {norm['largest']:.3g}",
            _shares(row["commands"]["rollouts"]),
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
        *_contrast_lines(content["contrasts"]),
        f"`python -m benchmarks.rl_ablation --design {settings['design']}`",
        "",
    ]
    return "\n".join(lines)


def _shares(counts: Mapping[str, float] | None) -> str:
    return "" if counts is None else f"{100 * counts['beyond_position']:.1f} / {100 * counts['beyond_speed']:.1f}"


def _contrast_lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A table of the contrasts; nothing without any."""
    if not any(found.values()):
        return []
    lines = [
        "| contrast | seeds | difference | 95%, Student | p, paired t | p, permutation | power at 0.07 |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, own in found.items():
        for name, facts in own.items():
            tests = [facts.get(f"{test}_holm", facts[test]) for test in ("p_t", "p_permutation")]
            cells = [f"{name}{' (primary, Holm)' if family == 'primary' else ''}", str(facts["seeds"])]
            cells += [f"{facts['mean']:+.3f}", _interval(facts["ci95"], "+.3f")]
            cells += ["" if value is None else f"{value:.3f}" for value in tests]
            cells.append("" if facts["power"] is None else f"{facts['power']['power']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _interval(bounds: Sequence[float] | None, form: str = ".2f") -> str:
    return "" if bounds is None else f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"
