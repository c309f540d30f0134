"""The policy's part of the update's loss on a merged batch of rollout and expert samples, with its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .config import SyVLAPPOConfig
from .losses import approximate_kl, bounded_negatives_loss, clamp_through, policy_loss
from .objective_settings import FLOW_MATCHING


def policy_objective(
    outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, Any], args: SyVLAPPOConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics.

    Args:
        outputs: Of [`PolicyAndValue`]: `scores` (B, S), `query_mask`, `velocity`, `mask`.
        inputs: Of the trainer: `old_scores` (B, S), for "nft" also `old_velocities` (B, S, T, D) and `points`, `advantages`
            (B,), `is_expert` bool (B,), the policy's `action_mask`; for "recap" `positive` bool (B,).
        args: [`SyVLAPPOConfig`].

    Returns:
        (scalar, metrics by name).
    """
    expert, old, scores = inputs["is_expert"], inputs["old_scores"], outputs["scores"]
    metrics: dict[str, float] = {}
    steps = inputs["policy"]["action_mask"].any(-1).sum(-1).clamp(min=1)
    cfm = -scores / steps[:, None]  # flow-matching loss per entry, as in imitation; of flow_sde its weighted error
    detached = cfm.detach()
    groups = {"rollout": ~expert, "expert": expert}
    if "positive" in inputs:
        groups |= {"positive": ~expert & inputs["positive"], "negative": ~expert & ~inputs["positive"]}
    for name, rows in groups.items():
        if rows.any():
            metrics[f"policy/cfm_{name}"] = float(detached[rows].mean())
    if outputs["query_mask"] is not None:
        metrics["decoupling/masked_fraction"] = float((~outputs["query_mask"]).float().mean())
    if args.objective in FLOW_MATCHING:
        loss = cfm.mean()
        return loss, {**metrics, "loss/policy_avg": float(loss.detach())}
    if args.objective == "nft":
        velocity, old_velocity = outputs["velocity"], inputs["old_velocities"]
        given = (velocity, old_velocity, inputs["points"][2], outputs["mask"], inputs["advantages"])
        losses = bounded_negatives_loss(*given, limit=args.advantage_clip, beta=args.nft_beta)
        change = (velocity.detach() - old_velocity).square()[outputs["mask"][:, None].expand_as(velocity)].mean()
        return losses.mean(), {
            **metrics,
            "loss/policy_avg": float(losses.detach().mean()),
            "nft/velocity_change": float(change.sqrt()),
        }
    if args.clamp_old_cfm:
        old = old.clamp(min=-args.clamp_old_cfm)
    log_ratio = args.ratio_temperature * (scores - old)
    if args.average_flow_samples:
        log_ratio = log_ratio.mean(dim=1, keepdim=True)
    clamped = clamp_through(log_ratio, args.clamp_logratio)
    own = args.cliprange if args.expert_cliprange is None else args.expert_cliprange
    losses, clipped = policy_loss(
        clamped,
        inputs["advantages"],
        torch.where(expert, own, args.cliprange),
        dual_clip=args.dual_clip or None,
        trust_region=args.trust_region,
    )
    with torch.no_grad():
        ratio = clamped.exp()
        if (~expert).any():
            metrics["policy/approxkl_avg"] = float(approximate_kl(clamped[~expert]))
            metrics["objective/kl"] = float(-clamped[~expert].mean())
        metrics |= {
            "policy/clipfrac_avg": float(clipped.float().mean()),
            "val/ratio": float(ratio.mean()),
            "val/ratio_var": float(ratio.var(unbiased=False)),
            "policy/logratio_min": float(log_ratio.min()),
            "policy/logratio_max": float(log_ratio.max()),
            "loss/policy_avg": float(losses.mean()),
        }
    return losses.mean(), metrics
