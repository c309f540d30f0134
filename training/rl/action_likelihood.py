"""How likely a policy finds an action chunk, as a ratio to an older policy (paper: silent; ours, see below).

A flow has no closed likelihood. Both methods compare the model's velocity v at points of the path with a target and differ
in points, targets and weights only:

    score = -w * sum over executed steps of the mean over dimensions of (v(x, t) - target)^2
    log ratio = ratio_temperature * (score - old score)

- "fpo" (flow policy optimization): x on the straight path between noise and the chunk, target = chunk - noise, w = 1. The
  score is the negative flow-matching loss, so it is defined for expert and rollout chunks alike.
- "flow_sde": one step of the stochastic sampler (Flow-GRPO, pi_RL), x' ~ N(mean(x, v), std^2). Its log-density has the form
  above, since the mean is linear in v. Rollouts bring the step that was taken; for expert chunks it is drawn given the chunk
  (a pseudo-chain), and then E_z[log ratio] = w * (flow-matching loss of old - of new).

The one reduction, mean over dimensions and sum over executed steps, is the same for both. Old and new scores have to be
computed on the same points, with dropout off (`disable_dropout`), so that the ratio is 1 before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from syvla.modeling_syvla.action_expert import EncodedObservation, ExpertContext
from syvla.modeling_syvla.expert_inputs import ExpertObservation, full_width, own_action_dims
from syvla.modeling_syvla.intention_decoupling import find_decoupling_mask, keep_states

from .flow_points import ScoredPoints, make_points


@dataclass(frozen=True)
class ActionScores:
    """What `action_scores` found.

    Attributes:
        scores: float32 (R, S).
        query_mask: bool (R, N), True where Intention Decoupling kept the query state; None without it.
        velocity: What the policy answered at the points, float32 (R, S, T, D).
        mask: bool (R, T, D), entries that count.
    """

    scores: torch.Tensor
    query_mask: torch.Tensor | None
    velocity: torch.Tensor
    mask: torch.Tensor


def action_scores(
    policy: Any,
    batch: Mapping[str, torch.Tensor],
    points: ScoredPoints,
    *,
    decoupling: bool | None = None,
) -> ActionScores:
    """Scores of the batch's chunks under a policy, float32; differentiable.

    The VLM runs once, the expert's prefix once (twice with Intention Decoupling), the suffix S times.

    Args:
        policy: [`SyVLAModel`], in either mode, with dropout off.
        batch: What the processor's `collate` returns for robot items with actions. Steps that `action_mask` excludes, as
            padding or because they were never executed, do not count.
        points: Where to ask, for all samples of the batch.
        decoupling: Whether to zero weak query states first, as in the other stages of training. None: as the config says.

    Raises:
        ValueError: If dropout would make old and new scores incomparable.
    """
    _require_no_dropout(policy)
    config = policy.config
    hidden = policy.encode(
        batch["input_ids"],
        batch.get("attention_mask"),
        batch.get("mm_token_type_ids"),
        batch.get("pixel_values"),
        batch.get("image_grid_thw"),
    )
    query_states = policy.select_query_states(hidden, batch["input_ids"])
    observation = ExpertObservation.checked(
        config,
        len(query_states),
        batch["state"],
        batch["embodiment_ids"],
        batch["expert_pixel_values"],
        batch.get("expert_view_mask"),
    )
    mask = full_width(config, "action_mask", batch["action_mask"], observation.embodiment_ids)
    mask = mask & own_action_dims(config, mask, observation.embodiment_ids)  # (B, T, D)
    encoded = policy.expert.encode_observation(observation)
    query_mask = None
    # The mask is found anew for old and for new scores. With equal weights both get the same one, so the ratio starts at 1.
    if config.intention_decoupling if decoupling is None else decoupling:
        with torch.enable_grad():  # old scores are computed without gradients, but the mask needs one
            probe = query_states.detach().requires_grad_()
            velocity = _velocities(policy, probe, encoded.detach(), points)
            loss = -_scores(velocity, points, mask).sum(dim=1)
            settings = (config.decoupling_quantile, config.decoupling_scope, config.decoupling_choice)
            query_mask = find_decoupling_mask(loss, probe, *settings)
        query_states = keep_states(query_states, query_mask)
    velocity = _velocities(policy, query_states, encoded, points)
    return ActionScores(_scores(velocity, points, mask), query_mask, velocity, mask)


def require_scored_design(config: Any) -> None:
    """Raises ValueError for a baseline's design, whose chunks `action_scores` cannot score."""
    for name, expected in (("action_head", "flow_matching"), ("conditioning", "query_states")):
        if (found := getattr(config, name)) != expected:
            raise ValueError(
                f"{name}: reinforcement learning scores policies with {expected!r}, this checkpoint has {found!r}; pass one "
                "that was trained without this override"
            )
    for name, drawn in (
        ("decoupling_choice", config.decoupling_choice == "random"),
        ("query_noise", config.query_noise),
    ):
        if drawn:
            raise ValueError(
                f"{name}: reinforcement learning compares old scores with new ones, for which {getattr(config, name)!r} would "
                "draw anew; fine-tune it with model_overrides that reset this field first"
            )
    if config.chunk_end == "masked":
        raise ValueError(
            "chunk_end: reinforcement learning scores whole chunks, in which every step attends to every other; a checkpoint "
            "with 'masked' was trained otherwise. Fine-tune it with model_overrides '{\"chunk_end\": \"hold\"}' first"
        )


def action_log_ratio(
    policy: Any,
    batch: Mapping[str, torch.Tensor],
    old_scores: torch.Tensor,
    seeds: Sequence[int],
    *,
    method: str = "fpo",
    num_samples: int = 8,
    ratio_temperature: float = 1.0,
    num_steps: int | None = None,
    noise_level: float = 0.5,
    decoupling: bool | None = None,
) -> torch.Tensor:
    """log(pi / pi_old) of the batch's chunks, one per sample and point, float32 (B, S); differentiable.

    Args:
        policy, batch, decoupling: See `action_scores`.
        old_scores: Scores of the same batch and seeds under the old policy, (B, S), from `action_scores` on `make_points`.
        seeds, method, num_samples, num_steps, noise_level: See `make_points`.
        ratio_temperature: Factor of the log ratio; with it the clip range is calibrated to the length of the chunk.
    """
    points = make_points(
        batch,
        seeds,
        policy.config,
        method=method,
        num_samples=num_samples,
        num_steps=num_steps,
        noise_level=noise_level,
    )
    scores = action_scores(policy, batch, points, decoupling=decoupling).scores
    if scores.shape != old_scores.shape:
        raise ValueError(f"old_scores: expected shape {tuple(scores.shape)}, got {tuple(old_scores.shape)}")
    return ratio_temperature * (scores - old_scores)


def _velocities(
    policy: Any, query_states: torch.Tensor, encoded: EncodedObservation, points: ScoredPoints
) -> torch.Tensor:
    """The policy's velocity at the points on given query states, float32 (B, S, T, D).

    The S points of a sample share one context, whose keys and values are repeated to make a batch of B * S for the expert.
    """
    context = policy.expert.encode_context(encoded, policy.condition(query_states))
    samples = points.timestep.shape[1]
    repeated = ExpertContext(
        [(k.repeat_interleave(samples, 0), v.repeat_interleave(samples, 0)) for k, v in context.prefix],
        [(k.repeat_interleave(samples, 0), v.repeat_interleave(samples, 0)) for k, v in context.condition],
        context.prefix_mask.repeat_interleave(samples, 0),
        context.embodiment_ids.repeat_interleave(samples, 0),
    )
    # The velocity is asked for at given points x, never by integrating the flow: a score needs one pass and has a gradient.
    velocity = policy.expert.predict_velocity(points.x.flatten(0, 1), points.timestep.flatten(), repeated)
    found: torch.Tensor = velocity.float().view_as(points.x)
    return found


def _scores(velocity: torch.Tensor, points: ScoredPoints, mask: torch.Tensor) -> torch.Tensor:
    """Scores of the points, float32 (B, S)."""
    return -points.weight * summed_error(velocity, points.target, mask)


def summed_error(velocity: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of velocities (B, S, T, D), its mean over dimensions and sum over steps where `mask` (B, T, D) counts.

    Returns:
        float32 (B, S).
    """
    error = velocity - target
    error = torch.where(mask[:, None], error, torch.zeros_like(error)).square()  # also stops NaN in padding
    dims = mask.sum(dim=-1).clamp(min=1)  # (B, T)
    # A mean over dimensions, so that robots of 7 and of 14 joints have ratios of one size; a sum over steps, since every
    # executed action is a factor of the chunk's likelihood.
    per_step = error.sum(dim=-1) / dims[:, None]  # (B, S, T)
    return per_step.sum(dim=-1)


# ---------------------------------------------------------------------- dropout

_RATES = ("dropout", "attention_dropout", "drop_prob")


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off for good, in training mode too; configs, and so what is saved, stay as they are.

    Old and new scores are computed at different times and in different batches: with dropout their ratio would be noise.
    """
    for module, name in _dropouts(model):
        setattr(module, name, 0.0)


def _require_no_dropout(policy: nn.Module) -> None:
    if policy.training and (active := _dropouts(policy)):
        module, name = active[0]
        raise ValueError(
            f"dropout: {len(active)} modules have some, the first is {type(module).__name__}.{name} = "
            f"{getattr(module, name)}; call disable_dropout(policy) first, or ratios are not 1 for equal policies"
        )


def _dropouts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules with a dropout rate above 0 and the attribute that holds it."""
    found = []
    for module in model.modules():
        names = ("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else _RATES
        for name in names:
            rate = getattr(module, name, None)
            if isinstance(rate, float) and rate > 0:
                found.append((module, name))
    return found
