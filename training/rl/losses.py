"""Losses of the update: clipped policy objectives and value loss. Pure functions of tensors, float32."""

from __future__ import annotations

import torch

from .action_likelihood import summed_error


def clamp_through(x: torch.Tensor, limit: float) -> torch.Tensor:
    """`x` within +-limit whose gradient is that of `x`: a ratio that ran away stays finite and can come back."""
    return x + (x.clamp(-limit, limit) - x).detach()


def policy_loss(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    cliprange: torch.Tensor,
    *,
    dual_clip: float | None = None,
    trust_region: str = "ppo",
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped objective (Schulman et al., 2017), negated.

    Args:
        log_ratio: (B, S), one ratio per sample and point of its flow, already clamped.
        advantages: (B,).
        cliprange: (B,), since experts may have their own.
        dual_clip: c of dual clipping (Ye et al., 2020): at A < 0 the objective is at least c * A.
        trust_region: "ppo", or "aspo" (FPO++): at A <= 0, A * r - |A| / (2 * cliprange) * (r - 1)^2.

    Returns:
        (loss per sample (B,), clipped bool (B, S), True where the ratio's gradient is cut off).
    """
    ratio = log_ratio.exp()
    advantage, eps = advantages[:, None], cliprange[:, None]
    # The minimum is pessimistic. At A > 0 nothing is gained by a ratio above 1 + eps, at A < 0 nothing by one below 1 - eps; a
    # ratio that moved the wrong way keeps its gradient and can come back.
    plain = ratio * advantage
    bounded = ratio.clamp(1 - eps, 1 + eps) * advantage
    objective = torch.minimum(plain, bounded)
    clipped = bounded < plain
    # At A < 0 a large ratio makes the objective arbitrarily negative; dual clipping bounds what one sample can pull.
    if dual_clip is not None:
        floor = dual_clip * advantage
        below = (advantage < 0) & (objective < floor)
        objective, clipped = torch.where(below, floor.expand_as(objective), objective), clipped | below
    if trust_region == "aspo":
        quadratic = plain - advantage.abs() / (2 * eps) * (ratio - 1).square()
        objective = torch.where(advantage > 0, objective, quadratic)
        clipped = clipped & (advantage > 0)
    elif trust_region != "ppo":
        raise ValueError(f"trust_region: expected 'ppo' or 'aspo', got {trust_region!r}")
    return -objective.mean(dim=1), clipped


def bounded_negatives_loss(
    velocity: torch.Tensor,
    old_velocity: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    limit: float,
    beta: float,
) -> torch.Tensor:
    """Negative-aware fine-tuning of a flow (DiffusionNFT; RLinf's `embodied_nft`): no ratio, and negatives with an end.

    `w |v+ - u|^2 + (1 - w) |v- - u|^2`, where `v+ = v_old + beta (v - v_old)`, `v- = v_old - beta (v - v_old)` and
    `w = (A + limit) / (2 limit)`. What is good draws v towards u; what is bad draws it towards the mirror image of u behind
    v_old, a finite target, where a ratio would push without end.

    Args:
        velocity: v, (B, S, T, D); with a gradient.
        old_velocity: v_old at the same points, of the policy before the update.
        target: u.
        mask: bool (B, T, D), entries that count.
        advantages: A (B,), taken within +-limit; an expert's 1 is all positive.
        limit, beta: Positive.

    Returns:
        Loss per sample (B,): its mean over points, steps and dimensions.
    """
    weight = ((advantages.clamp(-limit, limit) + limit) / (2 * limit))[:, None]
    change = beta * (velocity - old_velocity)
    steps = mask.any(-1).sum(-1).clamp(min=1)[:, None]
    towards, against = (summed_error(old_velocity + part, target, mask) / steps for part in (change, -change))
    return (weight * towards + (1 - weight) * against).mean(dim=1)


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error, of the worse of the value and the value clipped around the old one.

    Args:
        values, old_values, returns: (B,).

    Returns:
        (loss per sample (B,), bool (B,), True where the clipped error is the larger one).
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def approximate_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """KL(old, new) by Schulman's k3 estimator, r - 1 - log r, mean; never negative. Scalar."""
    return (log_ratio.exp() - 1 - log_ratio).mean()
