"""Returns and advantages over chunk-level decisions (paper, section 3.3; GAE: Schulman et al., 2016).

One decision is one action chunk: the observation it was made at, and the reward that its execution brought. Rewards are 0
but for the last control step of an episode, which brings the person's 0 or 1. The discount counts control steps, not
decisions (a semi-Markov decision process; Sutton, Precup and Singh, 1999): the value of an observation does not depend on how
often the robot asks for a chunk. All functions are pure and work in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ADVANTAGE_CLIP = 0.8
"""Bound of the advantages of rollouts (design: below the expert's 1.0, so that no rollout outweighs it)."""

EXPERT_ADVANTAGE = 1.0
"""Advantage of every expert sample (paper, section 3.3)."""


CHUNK_DISCOUNT = 0.99
"""Discount over a whole chunk of the policy where nothing else is said. Ours."""


def default_discount(chunk_size: int) -> float:
    """Discount of one control step for a policy with chunks of this length: 0.9998 at 50 steps."""
    return float(CHUNK_DISCOUNT ** (1.0 / chunk_size))


def decision_rewards(steps: np.ndarray, reward: float, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and discounts of an episode whose outcome is known at its end.

    Args:
        steps: Control steps that ran of each decision, (n,).
        reward: Outcome, which the last control step brings.
        gamma: Discount per control step.

    Returns:
        (rewards: 0, and at the last decision `reward` discounted by its own steps before the last one; discounts
        gamma ** steps), float64 (n,) each.
    """
    steps = np.asarray(steps)
    if steps.ndim != 1 or not len(steps) or (steps < 0).any() or steps[-1] < 1:
        raise ValueError(
            f"steps: expected at least 1 decision, and a last one of which something ran, got {steps!r:.80}"
        )
    rewards = np.zeros(len(steps))
    rewards[-1] = reward * float(gamma) ** (int(steps[-1]) - 1)
    return rewards, float(gamma) ** steps.astype(np.float64)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    *,
    gamma: float | np.ndarray,
    lam: float,
    bootstrap_value: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """GAE(gamma, lambda) of one episode.

    Args:
        rewards: Per decision, (n,).
        values: V of the observation of each decision, (n,).
        gamma: Discount over each decision, (n,) as `decision_rewards` gives it, or one for all.
        lam: Lambda; 0 gives one-step temporal differences, 1 Monte-Carlo advantages.
        bootstrap_value: V of the observation after the last decision when the episode was cut off by a time limit. None:
            the episode ended by itself, in success or failure, and nothing follows.

    Returns:
        (advantages, returns = advantages + values), float64 (n,) each; neither clipped nor whitened.

    Raises:
        ValueError: If shapes disagree or a number is not finite.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    if rewards.ndim != 1 or rewards.shape != values.shape or not len(rewards):
        raise ValueError(f"values: expected one per reward, shape {rewards.shape}, got {values.shape}")
    discounts = np.broadcast_to(np.asarray(gamma, np.float64), rewards.shape)
    for name, rates in (("gamma", discounts), ("lam", np.array([lam]))):
        if not ((rates >= 0.0) & (rates <= 1.0)).all():
            raise ValueError(f"{name}: expected a number in [0, 1], got {rates}")
    following = 0.0 if bootstrap_value is None else float(bootstrap_value)
    if not (np.isfinite(rewards).all() and np.isfinite(values).all() and np.isfinite(following)):
        raise ValueError("rewards and values: expected finite numbers; is the value model's checkpoint damaged?")
    errors = rewards + discounts * np.append(values[1:], following) - values  # temporal differences
    advantages = np.empty_like(errors)
    accumulated = 0.0
    for step in reversed(range(len(errors))):
        accumulated = errors[step] + discounts[step] * lam * accumulated
        advantages[step] = accumulated
    return advantages, advantages + values


def group_relative_advantages(rewards: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Advantages of whole rollouts (GRPO; Shao et al., 2024): standard deviations above the group's mean reward.

    Args:
        rewards: Outcome of each rollout, (n,).
        groups: Its group, n names: rollouts of one task are compared with one another.

    Returns:
        float64 (n,), by the sample standard deviation, as veRL and SimpleVLA-RL take it; 0 in a group whose rewards are all
        alike, and for a rollout that is alone.

    Raises:
        ValueError: If a reward has no group or is not finite.
    """
    rewards = np.asarray(rewards, np.float64)
    if rewards.shape != (len(groups),) or not np.isfinite(rewards).all():
        raise ValueError(f"rewards: expected one finite number for each of {len(groups)} rollouts, got {rewards!r:.80}")
    advantages = np.zeros(len(rewards))
    _, numbers = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    for number in range(numbers.max(initial=-1) + 1):
        own = numbers == number
        if np.ptp(rewards[own]) > 0:
            advantages[own] = (rewards[own] - rewards[own].mean()) / rewards[own].std(ddof=1)
    return advantages


def clip_advantages(advantages: np.ndarray, limit: float = ADVANTAGE_CLIP) -> tuple[np.ndarray, float]:
    """Advantages within +-limit and the share of them that was outside. They are not whitened.

    Whitening would undo both the bound and the expert's constant: a batch of failures alone would get positive advantages.
    """
    if limit <= 0:
        raise ValueError(f"advantage_clip: expected a positive number, got {limit}")
    outside = np.abs(advantages) > limit
    return np.clip(advantages, -limit, limit), float(outside.mean()) if len(outside) else 0.0


def monte_carlo_returns(frames: int, gamma: float, reward: float) -> np.ndarray:
    """Discounted return from each frame of a recorded episode, whose last control step brings `reward`.

    Args:
        frames: Length of the episode in control steps.
        gamma: Discount per control step.
        reward: Outcome, 1 for success.

    Returns:
        float64 (frames,).
    """
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    return float(gamma) ** np.arange(frames - 1, -1, -1, dtype=np.float64) * float(reward)


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant. NaN for constant returns."""
    values, returns = np.asarray(values, np.float64).ravel(), np.asarray(returns, np.float64).ravel()
    if values.shape != returns.shape:
        raise ValueError(f"values: expected one per return, {returns.shape}, got {values.shape}")
    variance = returns.var() if len(returns) else 0.0
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else float("nan")
