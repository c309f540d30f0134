"""Points at which a policy's velocity is compared with a target, for the likelihood ratios of `action_likelihood`.

Pure functions of chunks and seeds. Time runs as everywhere in this repository: t = 0 is noise, t = 1 the action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from syvla.modeling_syvla.expert_inputs import full_width
from syvla.modeling_syvla.flow_matching import interpolate, sample_timesteps, target_velocity
from syvla.modeling_syvla.flow_sde import sde_step
from syvla.modeling_syvla.flow_solver import require_uniform_euler
from syvla.serving.contract.rollout_sampler import ChainStep

METHODS = ("fpo", "flow_sde")


@dataclass(frozen=True)
class ScoredPoints:
    """Where a policy is asked for its velocity, S times per sample, and what the answer is compared with.

    Attributes:
        x: Points, float32 (B, S, T, D).
        timestep: float32 (B, S); 0 = noise, 1 = action.
        target: Velocity to compare with, float32 (B, S, T, D).
        weight: Factor of the squared error in the score, w in `action_likelihood`, float32 (B, S).
    """

    x: torch.Tensor
    timestep: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor

    def to(self, device: torch.device | str) -> ScoredPoints:
        return ScoredPoints(*(value.to(device) for value in (self.x, self.timestep, self.target, self.weight)))


def make_points(
    batch: Mapping[str, torch.Tensor],
    seeds: Sequence[int],
    config: Any,
    *,
    method: str = "fpo",
    num_samples: int = 8,
    num_steps: int | None = None,
    noise_level: float = 0.5,
) -> ScoredPoints:
    """Points of a method for the chunks of a batch.

    Args:
        batch: With `actions` (B, T, D): the whole chunk, steps that were not executed included, since the model attends to
            them; zeros beyond the end of an episode, as in the model's own training. For "flow_sde" it may hold
            `chain_before`, `chain_after` (B, T, D) and `chain_step` (B,), the step that a rollout's sampler took, -1 where a
            sample has none and gets a pseudo-chain.
        seeds: One per sample.
        config: [`SyVLAConfig`].
        method: One of `METHODS`.
        num_samples: S.
        num_steps: K of "flow_sde"; None: the model's.
        noise_level: a of "flow_sde" (0.5: pi_RL).
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    actions = full_width(config, "actions", batch["actions"].float(), batch["embodiment_ids"])
    if len(seeds) != len(actions):
        raise ValueError(f"seeds: expected one for each of the {len(actions)} samples, got {len(seeds)}")
    if method == "fpo":
        return fpo_points(actions, seeds, num_samples, config)
    require_uniform_euler(config, f"method={method}")
    num_steps = num_steps or int(config.num_inference_steps)
    points = flow_sde_points(actions, seeds, num_samples, num_steps=num_steps, noise_level=noise_level)
    if "chain_step" not in batch:
        return points
    step = batch["chain_step"]
    stored = step >= 0
    before, after = (
        full_width(config, name, batch[name].float(), batch["embodiment_ids"])[:, None].expand_as(points.x)
        for name in ("chain_before", "chain_after")
    )
    number = step.clamp(min=0)[:, None].expand_as(points.timestep)
    taken = chain_points(before, after, number, num_steps=num_steps, noise_level=noise_level)
    return ScoredPoints(
        torch.where(stored[:, None, None, None], taken.x, points.x),
        torch.where(stored[:, None], taken.timestep, points.timestep),
        torch.where(stored[:, None, None, None], taken.target, points.target),
        torch.where(stored[:, None], taken.weight, points.weight),
    )


def fpo_points(actions: torch.Tensor, seeds: Sequence[int], num_samples: int, config: Any) -> ScoredPoints:
    """Points of "fpo": times from the model's training distribution and noise, from each sample's own seed.

    Args:
        actions: Normalized chunks, (B, T, D).
        seeds: One per sample; the same seed gives the same points in any batch and on any device.
        num_samples: S.
        config: [`SyVLAConfig`] with the distribution of times.
    """
    actions = actions.float()
    times, noises = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        times.append(
            sample_timesteps(
                num_samples,
                config.time_beta_alpha,
                config.time_beta_beta,
                config.time_max,
                device=torch.device("cpu"),
                generator=generator,
            )
        )
        noises.append(torch.randn((num_samples, *actions.shape[1:]), generator=generator))
    timestep, noise = torch.stack(times).to(actions.device), torch.stack(noises).to(actions.device)
    chunk = actions[:, None].expand_as(noise)
    x = interpolate(noise.flatten(0, 1), chunk.flatten(0, 1), timestep.flatten()).view_as(noise)
    return ScoredPoints(x, timestep, target_velocity(noise, chunk), torch.ones_like(timestep))


def flow_sde_points(
    actions: torch.Tensor, seeds: Sequence[int], num_samples: int, *, num_steps: int, noise_level: float
) -> ScoredPoints:
    """Points of "flow_sde" for chunks without a chain: S steps of pseudo-chains that end in the chunk.

    Args:
        actions: Normalized chunks, (B, T, D).
        seeds: One per sample.
        num_samples: S, each at a random one of the sampler's steps.
        num_steps: K, steps of the sampler.
        noise_level: a; the sampler adds noise of scale a * sqrt((1 - t) / t).
    """
    actions = actions.float()
    steps, noises, kicks = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        steps.append(torch.randint(num_steps, (num_samples,), generator=generator))
        noises.append(torch.randn((num_samples, *actions.shape[1:]), generator=generator))
        kicks.append(torch.randn((num_samples, *actions.shape[1:]), generator=generator))
    step, noise, kick = (torch.stack(parts).to(actions.device) for parts in (steps, noises, kicks))
    chunk = actions[:, None].expand_as(noise)
    timestep = step.float() / num_steps
    x = interpolate(noise.flatten(0, 1), chunk.flatten(0, 1), timestep.flatten()).view_as(noise)
    keep, gain, std = sde_step(timestep, num_steps, noise_level)
    # The step that a model with exact velocity `chunk - noise` would take.
    mean = _wide(keep) * x + _wide(gain) * (chunk - noise)
    return chain_points(x, mean + _wide(std) * kick, step, num_steps=num_steps, noise_level=noise_level)


def chain_points(
    before: torch.Tensor, after: torch.Tensor, step: torch.Tensor, *, num_steps: int, noise_level: float
) -> ScoredPoints:
    """Points of "flow_sde" for steps that a sampler took.

    Args:
        before, after: x before and after the step, (B, S, T, D).
        step: Number of the step, int (B, S), 0 is the first one, from pure noise.
        num_steps, noise_level: See `flow_sde_points`; those of the sampler.
    """
    timestep = step.float() / num_steps
    keep, gain, std = sde_step(timestep, num_steps, noise_level)
    target = (after - _wide(keep) * before) / _wide(gain)
    return ScoredPoints(before, timestep, target, (gain / std).square() / 2)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x[..., None, None]


def chain_tensors(chains: Sequence[ChainStep | None], actions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Steps of the sampler as `make_points` takes them; -1 for samples without one."""
    before, after = torch.zeros_like(actions), torch.zeros_like(actions)
    for row, chain in enumerate(chains):
        if chain is not None:
            steps, dims = chain.before.shape
            before[row, :steps, :dims] = torch.tensor(chain.before)
            after[row, :steps, :dims] = torch.tensor(chain.after)
    number = torch.tensor([-1 if chain is None else chain.step for chain in chains])
    return {"chain_before": before, "chain_after": after, "chain_step": number}
