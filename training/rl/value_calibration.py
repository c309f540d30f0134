"""Fits the value model to an update's rollouts before their advantages are computed, and says what they are worth.

Demonstrations are successes: a value model that was warmed up on them alone expects success everywhere. The advantages of a
success are then about 0 and those of a failure strongly negative, so that nothing is reinforced. Value-only steps on the
rollouts mend that; they end as soon as the values explain rollouts that were held out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list

from syvla.serving.recording.decision import Decision, Rollout
from syvla.training.retrieval.demonstrations import SUCCESS

from .credit import FAILED_DECISIONS, credited_parts

STEPS_BETWEEN_LOOKS = 5
"""Steps between two measurements on the held-out rollouts. Ours."""

ALIKE = 1e-3
"""Variance of held-out returns below which they are alike, so that the error itself decides."""

SMALL_ERROR = 0.1
"""Root mean square error that is good enough then. Ours."""

BINS = ((-np.inf, -0.4), (-0.4, -0.1), (-0.1, 0.1), (0.1, 0.4), (0.4, np.inf))
"""Of the advantages' histogram."""


TOLD_METRICS = (
    *("val/explained_variance", "val/explained_heldout", "val/calibration_error_heldout", "val/value_only_steps"),
    *("objective/advantage_success_mean", "objective/advantage_failure_mean"),
)
"""Metrics in the log line that an update begins with."""


@dataclass(frozen=True)
class ValueTargets:
    """Observations with the returns that followed. n observations.

    Attributes:
        decisions: What the value model sees.
        returns: float32 (n,).
        owners: Number of the rollout, or of the part of one that a takeover ended, of each, int64 (n,).
        outcomes: Of each of these.
    """

    decisions: list[Decision]
    returns: np.ndarray
    owners: np.ndarray
    outcomes: list[float]


def value_targets(
    rollouts: Sequence[Rollout], gamma: float, *, leave_out_timeouts: bool, failed_decisions: int = FAILED_DECISIONS
) -> ValueTargets:
    """Monte-Carlo returns of the decisions of which something ran; `gamma` per control step.

    A rollout labeled 0 that a time limit cut off says nothing about what would have followed; it may be left out. Where a
    person took over, the last `failed_decisions` before it failed, and those before them are left out, see `credit`.
    """
    decisions: list[Decision] = []
    returns: list[float] = []
    owners: list[int] = []
    outcomes: list[float] = []
    for rollout in rollouts:
        for part in credited_parts(rollout, failed_decisions=failed_decisions, bootstrap_timeouts=leave_out_timeouts):
            if part.outcome is None:
                continue
            own = rollout.decisions[part.first : part.last]
            left = sum(decision.executed or 0 for decision in own)
            for decision in own:
                if decision.valid.any():
                    decisions.append(decision)
                    returns.append(part.outcome * gamma ** (left - 1))
                    owners.append(len(outcomes))
                left -= decision.executed or 0
            outcomes.append(part.outcome)
    return ValueTargets(decisions, np.array(returns, np.float32), np.array(owners, np.int64), outcomes)


def held_out_rollouts(outcomes: Sequence[float], share: float, generator: np.random.Generator) -> set[int]:
    """Numbers of rollouts to measure on: of each outcome at least one, if there are two or more of it."""
    chosen: set[int] = set()
    won = np.array(outcomes) >= SUCCESS
    for success in sorted(set(won.tolist())):
        own = np.flatnonzero(won == success)
        if len(own) > 1:
            count = min(max(1, round(share * len(own))), len(own) - 1)
            chosen |= {int(number) for number in generator.choice(own, count, replace=False)}
    return chosen


def fit_quality(values: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """How well values predict returns.

    Returns:
        `explained`: 1 - mean squared error / variance of the returns, in which an offset counts, unlike in
        `explained_variance`; NaN for returns that are alike. `error`: root mean square. `calibration_error`: mean over
        tenths of the values' range of |mean value - mean return|, weighted by their numbers (Naeini et al., 2015).
    """
    values, returns = np.asarray(values, np.float64), np.asarray(returns, np.float64)
    squared = float(np.mean((values - returns) ** 2))
    variance = float(returns.var())
    bins = np.clip((values * 10).astype(int), 0, 9)
    gaps = [abs((values - returns)[bins == number].sum()) for number in range(10)]
    return {
        "explained": 1.0 - squared / variance if variance >= ALIKE else float("nan"),
        "error": squared**0.5,
        "calibration_error": float(sum(gaps) / len(values)),
    }


def good_enough(quality: dict[str, float], threshold: float) -> bool:
    """Whether values explain the held-out returns."""
    explained = quality["explained"]
    return quality["error"] <= SMALL_ERROR if np.isnan(explained) else explained >= threshold


def calibrate_values(
    value_model: Any,
    inputs: Callable[[list[Decision]], dict[str, torch.Tensor]],
    targets: ValueTargets,
    *,
    threshold: float,
    max_steps: int,
    heldout_share: float,
    batch_size: int,
    learning_rate: float,
    precision: Callable[[], Any],
    seed: int,
) -> dict[str, float]:
    """Takes value-only steps until the held-out rollouts are explained, at most `max_steps`. Keeps the best weights.

    Args:
        value_model: [`SyVLAValueModel`].
        inputs: Its batch for decisions, on its device.
        targets: Of the update's rollouts.
        threshold: Of `fit_quality`'s `explained`.
        max_steps, heldout_share, batch_size, learning_rate, seed: Of the fit.
        precision: Context manager of the forward passes.

    Returns:
        Metrics `val/...`; empty where nothing can be held out.
    """
    generator = np.random.default_rng(seed)
    heldout = held_out_rollouts(targets.outcomes, heldout_share, generator)
    measured = np.flatnonzero(np.isin(targets.owners, sorted(heldout)))
    fitted = np.setdiff1d(np.arange(len(targets.returns)), measured)
    if not len(measured) or not len(fitted):
        return {}

    def values_of(rows: np.ndarray) -> torch.Tensor:
        with precision():
            found: torch.Tensor = value_model(**inputs([targets.decisions[row] for row in rows])).value
        return found

    @torch.no_grad()
    def quality() -> dict[str, float]:
        parts = [values_of(measured[low : low + batch_size]) for low in range(0, len(measured), batch_size)]
        return fit_quality(torch.cat(parts).float().cpu().numpy(), targets.returns[measured])

    parameters = [p for p in value_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    first = best = quality()
    kept = [p.detach().clone() for p in parameters]
    steps, order = 0, np.zeros(0, np.int64)
    while steps < max_steps and not good_enough(best, threshold):
        for _ in range(min(STEPS_BETWEEN_LOOKS, max_steps - steps)):
            if len(order) < min(batch_size, len(fitted)):
                order = generator.permutation(fitted)
            rows, order = order[:batch_size], order[batch_size:]
            values = values_of(rows)
            loss = F.mse_loss(values.float(), torch.from_numpy(targets.returns[rows]).to(values.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            steps += 1
        found = quality()
        if found["error"] < best["error"]:  # False for NaN
            best, kept = found, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, weight in zip(parameters, kept, strict=True):
            parameter.copy_(weight)
    optimizer.zero_grad(set_to_none=True)
    return {
        "val/value_only_steps": float(steps),
        "val/heldout_rollouts": float(len(heldout)),
        "val/explained_heldout_before": first["explained"],
        **{f"val/{name}_heldout": value for name, value in best.items()},
    }


def share_calibration(value_model: torch.nn.Module, metrics: dict[str, float]) -> dict[str, float]:
    """Gives all processes the first one's weights and metrics; returns the metrics."""
    message = [metrics]
    broadcast_object_list(message)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for parameter in value_model.parameters():
            torch.distributed.broadcast(parameter.data, 0)
    return message[0]


def advantage_metrics(advantages: np.ndarray, outcomes: np.ndarray) -> dict[str, float]:
    """Histogram of advantages (n,) as shares, and their means by the outcome (n,) of their rollouts."""
    metrics = {"objective/advantage_std": float(advantages.std())}
    for low, high in BINS:
        share = float(((advantages >= low) & (advantages < high)).mean())
        metrics[f"objective/advantage_share[{low:g},{high:g})"] = share
    for name, own in (("success", outcomes >= SUCCESS), ("failure", outcomes < SUCCESS)):
        if own.any():
            metrics[f"objective/advantage_{name}_mean"] = float(advantages[own].mean())
    return metrics


def information_problem(advantages: np.ndarray, outcomes: np.ndarray, spread: float, *, relative: bool = False) -> str:
    """Why advantages (n,) say nothing about what to do more often; empty if they do.

    Args:
        advantages: Of decisions.
        outcomes: Of their rollouts.
        spread: Smallest difference that counts; 0: any will do.
        relative: Whether their order alone counts, as for labels by a quantile, and not which of them are above 0.
    """
    if spread <= 0:
        return ""
    won, lost = advantages[outcomes >= SUCCESS], advantages[outcomes < SUCCESS]
    if (deviation := float(advantages.std())) < spread:
        return f"the advantages of all decisions are alike (standard deviation {deviation:.2g})"
    if len(won) and len(lost) and won.mean() - lost.mean() < spread:
        return (
            f"decisions of successes have no higher advantages than those of failures (means {won.mean():.2g} and "
            f"{lost.mean():.2g})"
        )
    if len(won) and len(lost) and won.mean() < spread and not relative:
        return (
            f"nothing is reinforced: advantages are {won.mean():.2g} on average in successes and {lost.mean():.2g} in "
            "failures; the value model expects success everywhere"
        )
    return ""
