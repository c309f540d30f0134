"""Positive and negative advantages as words in a prompt: RECAP of pi*0.6 (Physical Intelligence, 2025). Pure functions.

A decision is positive if its advantage lies above a quantile of those of its task. The policy learns all decisions by flow
matching, each with its word in the prompt, so what is bad is learned as bad instead of being pushed away from. A share of
the words is left out, so that the policy also knows the average, from which guidance moves away at inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .update_data import sample_seeds

ADVANTAGE_QUANTILE = 0.7
"""Above it an advantage is positive: the best 30 %, as RLinf's RECAP takes."""

INDICATOR_DROPOUT = 0.3
"""Share of samples without the word. Ours, of the size that classifier-free guidance is trained with."""

_DROPOUT = 4
"""Kind of the random numbers, see `sample_seeds`; experts take the next one."""


def positive_decisions(
    advantages: np.ndarray, tasks: Sequence[str], quantile: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Which decisions are positive.

    Args:
        advantages: float (D,), neither clipped nor whitened.
        tasks: Instruction of each; every task has a threshold of its own, since some are harder than others.
        quantile: In (0, 1), interpolated linearly.

    Returns:
        (bool (D,), task to threshold). A positive advantage is larger than the threshold. Where so many are equal to the
        largest one that the threshold is as large, the largest ones are positive. Of a task whose advantages are all equal
        none is.
    """
    advantages = np.asarray(advantages, np.float64)
    if not 0 < quantile < 1:
        raise ValueError(f"advantage_quantile: expected a number between 0 and 1, got {quantile}")
    if advantages.ndim != 1 or len(advantages) != len(tasks) or not np.isfinite(advantages).all():
        raise ValueError(
            f"advantages: expected one finite number for each of {len(tasks)} decisions, got {advantages!r:.80}"
        )
    positive = np.zeros(len(advantages), bool)
    names, numbers = np.unique(np.asarray(tasks, dtype=object).astype(str), return_inverse=True)
    thresholds = {}
    for number, name in enumerate(names):
        own = numbers == number
        mine = advantages[own]
        thresholds[str(name)] = threshold = float(np.quantile(mine, quantile))
        positive[own] = (mine > threshold) | ((mine == mine.max()) & (mine > mine.min()))
    return positive, thresholds


def left_out(run_seed: int, update: int, shape: tuple[int, ...], rate: float, *, experts: bool) -> np.ndarray:
    """At which uses of samples in an update the word is left out, bool of `shape`.

    A use's draw depends on run, update and its place in the plan alone, so that a resumed update drops the same ones and a
    longer plan begins with them.

    Args:
        run_seed, update: Whose plan it is.
        shape: Of the plan.
        rate: Share that is left out, in [0, 1).
        experts: Whether it is the plan of the experts.
    """
    seed = sample_seeds(run_seed, update, _DROPOUT + experts, np.zeros(1))[0]
    return np.asarray(np.random.default_rng(seed).random(shape) < rate)


def indicators(positive: np.ndarray, dropped: np.ndarray) -> list[str]:
    """The words of samples, see `syvla.processing.prompt_format.ADVANTAGES`; both arguments bool (n,)."""
    words = np.where(dropped, "none", np.where(positive, "positive", "negative"))
    return [str(word) for word in words]


def label_metrics(positive: np.ndarray, outcomes: np.ndarray, thresholds: dict[str, float]) -> dict[str, float]:
    """Shares of positive decisions, of all and by the outcome (n,) of their rollouts, and the range of the thresholds."""
    metrics = {
        "recap/positive_share": float(positive.mean()),
        "recap/threshold_min": min(thresholds.values()),
        "recap/threshold_max": max(thresholds.values()),
    }
    for name, own in (("success", outcomes >= 0.5), ("failure", outcomes < 0.5)):
        if own.any():
            metrics[f"recap/positive_share_{name}"] = float(positive[own].mean())
    return metrics
