"""Chunks of a flow with one stochastic step each, for rollouts that are scored by that step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from syvla.modeling_syvla.flow_sde import sample_with_sde_step
from syvla.modeling_syvla.flow_solver import require_uniform_euler
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .in_process import ModelInputs, SyVLAPolicy
from .intention import Intention


@torch.inference_mode()
def sample_rollout(
    policy: SyVLAPolicy, inputs: ModelInputs, intention: Intention, *, seeds: Sequence[int], sampler: RolloutSampler
) -> tuple[np.ndarray, list[ChainStep]]:
    """`SyVLAPolicy.denoise` with one stochastic step per sample.

    Noise, stochastic step and its number come from each sample's own seed.

    Returns:
        (chunks (B, T, D_action) in physical units, the stochastic step of each).

    Raises:
        ValueError: If the action head is no flow, or its steps are not equal Euler steps.
    """
    model, shape = policy.model, policy.chunk_shape
    if model.config.action_head != "flow_matching":
        raise ValueError(f"{sampler.method}: expected a policy that samples a flow, got {model.config.action_head!r}")
    require_uniform_euler(model.config, sampler.method)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    kick = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    step = torch.stack([torch.randint(sampler.num_steps, (), generator=generator) for generator in generators])
    context = model.encode_expert_context(intention.query_states, inputs.expert, intention.mask)
    actions, before, after = sample_with_sde_step(
        lambda x, t: model.expert.predict_velocity(x, t, context),
        noise.to(model.device),
        kick.to(model.device),
        step.to(model.device),
        num_steps=sampler.num_steps,
        noise_level=sampler.noise_level,
    )
    width = policy.processor.embodiments[policy.embodiment]["action_dim"]
    own = [part[..., :width].float().cpu().numpy() for part in (before, after)]
    chains = [ChainStep(x, following, int(number), sampler) for x, following, number in zip(*own, step, strict=True)]
    return policy.physical(actions[..., :width], inputs), chains
