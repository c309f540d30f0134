"""Closed-loop evaluations in the forms of a model card: `model-index` entries and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult


def eval_results(summary: dict[str, Any]) -> list[EvalResult]:
    """`model-index` entries of one `summary.json` of `syvla-eval`, one success rate per task.

    Raises:
        ValueError: If the summary is not of a SyVLA policy, lacks episodes, or contradicts itself.
    """
    settings = summary.get("settings")
    if not isinstance(settings, dict) or not isinstance(summary.get("tasks"), dict) or not summary["tasks"]:
        raise ValueError("expected the summary.json of syvla-eval with 'tasks' and 'settings'")
    if settings.get("policy") != "syvla":
        raise ValueError(f"expected results of a SyVLA checkpoint, got those of the policy {settings.get('policy')!r}")
    results = []
    for task, rate in summary["tasks"].items():
        episodes, successes = rate.get("episodes") or 0, rate.get("successes") or 0
        if not episodes > 0 or not 0 <= successes <= episodes:
            raise ValueError(f"tasks.{task}: expected successes out of at least one episode, got {rate}")
        low, high = rate["interval"]
        results.append(
            EvalResult(
                task_type="robotics",
                task_name="Closed-loop control",
                dataset_type=settings["env"],
                dataset_name=f"{settings['env']}: {task}",
                dataset_config=task,
                dataset_args={
                    "episodes": episodes,
                    "successes": successes,
                    "first_seed": min(summary.get("seeds") or [0]),
                    **{k: settings[k] for k in ("replan_steps", "think", "num_steps", "weights") if k in settings},
                },
                metric_type="success_rate",
                metric_name="Success rate",
                metric_value=round(successes / episodes, 4),
                metric_args={"wilson_95_low": round(low, 4), "wilson_95_high": round(high, 4)},
            )
        )
    return results


def results_table(summaries: Sequence[dict[str, Any]] | None, results: Sequence[EvalResult] | None = None) -> str:
    """Markdown table of evaluations, or a sentence that there are none."""
    results = [r for summary in summaries or [] for r in eval_results(summary)] + list(results or [])
    if not results:
        return "Not evaluated: no success rate is claimed."
    lines = [
        "| environment | task | success rate | 95% interval | episodes | first seed | thinks |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        run, interval = result.dataset_args or {}, result.metric_args or {}
        between = "not given"
        if "wilson_95_low" in interval:
            between = f"{interval['wilson_95_low']:.1%} to {interval['wilson_95_high']:.1%}"
        rate = f"{result.metric_value:.1%}" if isinstance(result.metric_value, float) else str(result.metric_value)
        cells = (
            result.dataset_type,
            result.dataset_config or result.dataset_name,
            rate,
            between,
            run.get("episodes", "not given"),
            run.get("first_seed", "not given"),
            "not given" if run.get("think") is None else ("yes" if run["think"] else "no"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
