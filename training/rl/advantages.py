"""Returns and advantages over chunk-level decisions (paper, section 3.3; GAE: Schulman et al., 2016).

One decision is one action chunk: the observation it was made at, and the reward that its execution brought. Rewards are 0
but for the last decision of an episode, where the person's 0 or 1 stands. All functions are pure and work in float64.
"""

from __future__ import annotations

import numpy as np

ADVANTAGE_CLIP = 0.8
"""Bound of the advantages of rollouts (design: below the expert's 1.0, so that no rollout outweighs it)."""

EXPERT_ADVANTAGE = 1.0
"""Advantage of every expert sample (paper, section 3.3)."""


def decision_rewards(num_decisions: int, reward: float) -> np.ndarray:
    """Rewards of an episode whose outcome is known at its end: zeros, then `reward`. float64 (n,)"""
    if num_decisions < 1:
        raise ValueError(f"decisions: expected at least 1 in an episode, got {num_decisions}")
    rewards = np.zeros(num_decisions)
    rewards[-1] = reward
    return rewards


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    *,
    gamma: float,
    lam: float,
    bootstrap_value: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """GAE(gamma, lambda) of one episode.

    Args:
        rewards: Per decision, (n,).
        values: V of the observation of each decision, (n,).
        gamma: Discount per decision, not per control step.
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
    for name, rate in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1], got {rate}")
    following = 0.0 if bootstrap_value is None else float(bootstrap_value)
    if not (np.isfinite(rewards).all() and np.isfinite(values).all() and np.isfinite(following)):
        raise ValueError("rewards and values: expected finite numbers; is the value model's checkpoint damaged?")
    errors = rewards + gamma * np.append(values[1:], following) - values  # temporal differences
    advantages = np.empty_like(errors)
    accumulated = 0.0
    for step in reversed(range(len(errors))):
        accumulated = errors[step] + gamma * lam * accumulated
        advantages[step] = accumulated
    return advantages, advantages + values


def clip_advantages(advantages: np.ndarray, limit: float = ADVANTAGE_CLIP) -> tuple[np.ndarray, float]:
    """Advantages within +-limit and the share of them that was outside. They are not whitened.

    Whitening would undo both the bound and the expert's constant: a batch of failures alone would get positive advantages.
    """
    if limit <= 0:
        raise ValueError(f"advantage_clip: expected a positive number, got {limit}")
    outside = np.abs(advantages) > limit
    return np.clip(advantages, -limit, limit), float(outside.mean()) if len(outside) else 0.0


def monte_carlo_returns(frames: int, decision_steps: int, gamma: float, reward: float) -> np.ndarray:
    """Discounted return from each frame of a recorded episode, as if a decision were made at that frame.

    A frame with r control steps left to the end (itself included) is followed by ceil(r / decision_steps) decisions, the
    last of which brings `reward`.

    Args:
        frames: Length of the episode.
        decision_steps: Control steps that are executed per decision.
        gamma: Discount per decision.
        reward: Outcome, 1 for success.

    Returns:
        float64 (frames,).
    """
    if frames < 1 or decision_steps < 1:
        raise ValueError(f"frames, decision_steps: expected at least 1 each, got {frames} and {decision_steps}")
    left = np.arange(frames, 0, -1)
    decisions = -(-left // decision_steps)
    return float(gamma) ** (decisions - 1) * float(reward)


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant. NaN for constant returns."""
    values, returns = np.asarray(values, np.float64).ravel(), np.asarray(returns, np.float64).ravel()
    if values.shape != returns.shape:
        raise ValueError(f"values: expected one per return, {returns.shape}, got {values.shape}")
    variance = returns.var() if len(returns) else 0.0
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else float("nan")
